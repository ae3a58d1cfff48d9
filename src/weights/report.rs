//! What an import did to each tensor, as a table.

use super::header::TensorInfo;
use super::{Dtype, Import, message};
use crate::error::Result;
use std::fmt;

/// What became of a tensor.
///
/// [`ImportReport`] has an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Imported, or by [`Weights::compare`](super::Weights::compare) to be imported.
    Matched,
    /// In the file, and no parameter takes it.
    Unused,
    /// In the file, outside the prefix.
    Outside,
    /// Declared, and not in the file.
    Missing,
    /// In the file and declared, and it does not fit; the cause.
    Unfit(String),
}

impl Status {
    fn word(&self) -> &'static str {
        match self {
            Status::Matched => "matched",
            Status::Unused => "unused",
            Status::Outside => "outside",
            Status::Missing => "missing",
            Status::Unfit(_) => "unfit",
        }
    }
}

/// One line of an [`ImportReport`].
///
/// [`ImportReport`] has an example.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The tensor's name in the file, or the name it would have there.
    pub tensor: String,
    /// The parameters it fills, or would fill.
    pub parameters: Vec<String>,
    /// Its shape in the file; the declared one where it is missing.
    pub shape: Vec<usize>,
    /// Its type in the file.
    pub dtype: Option<Dtype>,
    /// What became of it.
    pub status: Status,
    /// For weights of an LSTM: the order of gates in the file, and how it becomes ours.
    pub gates: Option<String>,
    /// For biases of an LSTM, and a shift that has the part of one: the rule.
    pub bias: Option<&'static str>,
    /// For a missing tensor the closest name in the file, for an unused one the closest that is missing.
    pub closest: Option<String>,
}

/// What an import did, or would do: one line for each parameter and for each tensor of the file.
///
/// ```
/// use everloop::weights::{self, Export, Import, Status, Weights};
/// use everloop::{Parameters, Rng, layers::DenseConfig};
/// # fn main() -> everloop::Result<()> {
/// let mut parameters = Parameters::new();
/// DenseConfig::new(3, 2).declare(&mut parameters, "head", &mut Rng::new(1))?;
/// let file = Weights::from_bytes(&weights::to_bytes(&parameters, &Export::new())?)?;
/// DenseConfig::new(2, 1).declare(&mut parameters, "tail", &mut Rng::new(1))?;
/// let report = file.compare(&parameters, &Import::new()); // printing it gives a table
/// assert_eq!(report.count(|status| *status == Status::Missing), 2);
/// assert!(report.check(&Import::new()).is_err() && report.check(&Import::new().with_missing()).is_ok());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ImportReport {
    /// Parameters in the order of declaration, then the rest of the file by name.
    pub lines: Vec<Line>,
}

impl Line {
    /// `shape` is the declared one.
    pub(super) fn of(name: &str, tensor: Option<&TensorInfo>, shape: &[usize], parameters: Vec<String>) -> Line {
        Line {
            tensor: name.to_string(),
            parameters,
            shape: tensor.map_or(shape, TensorInfo::shape).to_vec(),
            dtype: tensor.map(TensorInfo::dtype),
            status: Status::Matched,
            gates: None,
            bias: None,
            closest: None,
        }
    }
}

impl ImportReport {
    /// Whether every parameter was filled, and every tensor under the prefix was used.
    pub fn is_complete(&self) -> bool {
        self.lines.iter().all(|l| matches!(l.status, Status::Matched | Status::Outside))
    }

    /// How many tensors have a status.
    pub fn count(&self, of: impl Fn(&Status) -> bool) -> usize {
        self.lines.iter().filter(|l| of(&l.status)).count()
    }

    /// Whether `import` puts up with every mismatch.
    ///
    /// # Errors
    ///
    /// The first one that it does not allow.
    pub fn check(&self, import: &Import) -> Result<()> {
        let refused = self.lines.iter().find(|line| match line.status {
            Status::Matched | Status::Outside => false,
            Status::Unused => !import.allow_unused,
            Status::Missing => !import.allow_missing,
            Status::Unfit(_) => !import.allow_unfit,
        });
        let Some(line) = refused else { return Ok(()) };
        let closest = line.closest.as_ref().map(|name| message::escape(name));
        let cause = match (&line.status, closest) {
            (Status::Unfit(cause), _) => return Err(message::tensor(&line.tensor, cause.clone())),
            (Status::Missing, Some(name)) => format!("is missing from the file; the closest name there is `{name}`"),
            (Status::Missing, None) => "is missing from the file".to_string(),
            (_, Some(name)) => format!("is taken by no parameter; the closest that is missing is `{name}`"),
            (_, None) if self.lacks_second(line) => {
                "is taken by no parameter: one bias vector was declared, and PyTorch adds two".to_string()
            }
            (_, None) => "is taken by no parameter".to_string(),
        };
        let (missing, unused) = (self.count(|s| *s == Status::Missing), self.count(|s| *s == Status::Unused));
        Err(message::tensor(&line.tensor, format!("{cause} ({missing} missing, {unused} unused)")))
    }

    /// Whether `line` is a `bias_hh` that is left over where `bias_ih` was taken.
    fn lacks_second(&self, line: &Line) -> bool {
        let first = line.tensor.replace("bias_hh_l", "bias_ih_l");
        first != line.tensor && self.lines.iter().any(|l| l.status == Status::Matched && l.tensor == first)
    }

    pub(super) fn name_closest(&mut self) {
        let names = |status: Status| -> Vec<String> {
            let lines = self.lines.iter().filter(|l| l.status == status);
            lines.map(|l| l.tensor.clone()).take(CANDIDATES).collect()
        };
        let (missing, mut unused) = (names(Status::Missing), names(Status::Unused));
        unused.extend(names(Status::Outside).into_iter().take(CANDIDATES - unused.len()));
        let lines = self.lines.iter_mut().filter(|l| matches!(l.status, Status::Missing | Status::Unused));
        for line in lines.take(NAMED) {
            line.closest = closest(&line.tensor, if line.status == Status::Missing { &unused } else { &missing });
        }
    }
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = ["matched", "missing", "unused", "unfit", "outside"]
            .map(|word| format!("{} {word}", self.count(|status| status.word() == word)));
        writeln!(f, "import: {} the prefix", counts.join(", "))?;
        for line in &self.lines {
            let (name, dtype) = (message::escape(&line.tensor), line.dtype.map_or("-", Dtype::name));
            write!(f, "  {:<8}{name} {} {dtype}", line.status.word(), message::shape(&line.shape))?;
            if line.parameters.iter().any(|p| *p != line.tensor) {
                let names: Vec<String> = line.parameters.iter().map(|p| message::escape(p)).collect();
                write!(f, " -> {}", names.join(", "))?;
            }
            let cause = if let Status::Unfit(cause) = &line.status { Some(cause.clone()) } else { None };
            let gates = line.gates.as_ref().map(|gates| format!("gates {gates}"));
            let bias = line.bias.map(|bias| format!("bias: {bias}"));
            let closest = line.closest.as_ref().map(|name| format!("closest: {}", message::escape(name)));
            [gates, bias, cause, closest].iter().flatten().try_for_each(|note| write!(f, "; {note}"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Names compared, and lines that are told the closest one: a file of many names must not cost minutes.
pub(super) const CANDIDATES: usize = 2000;
const NAMED: usize = 16;
/// Characters compared, from the end: there names differ.
const COMPARED: usize = 64;

/// The candidate that takes the fewest edits to become `name`.
pub(super) fn closest(name: &str, candidates: &[String]) -> Option<String> {
    let tail = |name: &str| name.chars().rev().take(COMPARED).collect::<String>();
    let name = tail(name);
    candidates.iter().min_by_key(|c| strsim::levenshtein(&name, &tail(c))).cloned()
}
