//! From a file into declared parameters, with a report of every tensor.

use super::header::TensorInfo;
use super::layout::{Layer, Layout, names};
use super::write::{Array, join};
use super::{Dtype, Weights, message, not_a_float};
use crate::error::Result;
use crate::layers::{Bias, Lstm};
use crate::parameters::Parameters;
use crate::plan::Direction;
use std::fmt;

/// What to import, and what to put up with. At first: everything, under the names as they are, and every mismatch is
/// an error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Import {
    /// What the file's names have before ours, joined with a dot unless it ends with `.` or `/`. Tensors outside
    /// the prefix are reported, and never an error.
    pub prefix: String,
    /// Fill only the parameters below this name, which the file's prefix takes the place of; empty for all.
    pub part: String,
    /// Parameters that the file lacks keep their values.
    pub allow_missing: bool,
    /// Tensors under the prefix that no parameter takes are left alone.
    pub allow_unused: bool,
    /// Parameters keep their values where the file's tensor has another shape, is no float, or is not finite.
    pub allow_unfit: bool,
}

impl Import {
    /// Everything, refusing every mismatch.
    pub fn new() -> Self {
        Self::default()
    }

    /// With this prefix: `encoder` finds `lstm.weight_ih_l0` as `encoder.lstm.weight_ih_l0`.
    pub fn with_prefix(self, prefix: impl Into<String>) -> Self {
        Import { prefix: prefix.into(), ..self }
    }

    /// Only what was declared below `part`: with `lstm` and no prefix, the file's `weight_ih_l0` fills
    /// `lstm.weight_ih_l0`.
    pub fn with_part(self, part: impl Into<String>) -> Self {
        Import { part: part.into(), ..self }
    }

    /// Parameters that the file lacks are no error.
    pub fn with_missing(self) -> Self {
        Import { allow_missing: true, ..self }
    }

    /// Tensors that no parameter takes are no error.
    pub fn with_unused(self) -> Self {
        Import { allow_unused: true, ..self }
    }

    /// Tensors of a wrong shape, type or value are no error, and not imported.
    pub fn with_unfit(self) -> Self {
        Import { allow_unfit: true, ..self }
    }
}

/// What became of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Imported, or by [`Weights::compare`] to be imported.
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

/// One line of an [`ImportReport`].
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
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ImportReport {
    /// Parameters in the order of declaration, then the rest of the file by name.
    pub lines: Vec<Line>,
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

    /// Error: the first mismatch that `import` does not allow.
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

    fn name_closest(&mut self) {
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
        let (matched, missing) = (self.count(|s| *s == Status::Matched), self.count(|s| *s == Status::Missing));
        let (unused, outside) = (self.count(|s| *s == Status::Unused), self.count(|s| *s == Status::Outside));
        let unfit = self.count(|s| matches!(s, Status::Unfit(_)));
        write!(f, "import: {matched} matched, {missing} missing, {unused} unused, {unfit} unfit, {outside} outside")?;
        writeln!(f, " the prefix")?;
        for line in &self.lines {
            let status = match line.status {
                Status::Matched => "matched",
                Status::Unused => "unused",
                Status::Outside => "outside",
                Status::Missing => "missing",
                Status::Unfit(_) => "unfit",
            };
            let (name, dtype) = (message::escape(&line.tensor), line.dtype.map_or("-", Dtype::name));
            write!(f, "  {status:<8}{name} {} {dtype}", message::shape(&line.shape))?;
            if line.parameters.iter().any(|p| *p != line.tensor) {
                let names: Vec<String> = line.parameters.iter().map(|p| message::escape(p)).collect();
                write!(f, " -> {}", names.join(", "))?;
            }
            if let Some(gates) = &line.gates {
                write!(f, "; gates {gates}")?;
            }
            if let Some(bias) = line.bias {
                write!(f, "; bias: {bias}")?;
            }
            if let Status::Unfit(cause) = &line.status {
                write!(f, "; {cause}")?;
            }
            if let Some(name) = &line.closest {
                write!(f, "; closest: {}", message::escape(name))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Weights {
    /// What [`import`](Weights::import) would do; nothing is refused, nothing is changed.
    pub fn compare(&self, parameters: &Parameters, import: &Import) -> ImportReport {
        let mut report = ImportReport::default();
        let mut used = vec![false; self.tensors().len()];
        for parameter in parameters.iter() {
            let Some(rest) = below(&import.part, &parameter.name) else { continue };
            let name = join(&import.prefix, rest);
            let index = self.tensors().binary_search_by(|t| t.name().cmp(&name)).ok();
            let tensor = index.map(|index| {
                used[index] = true;
                &self.tensors()[index]
            });
            let status = match tensor {
                None => Status::Missing,
                Some(tensor) => self.fit(tensor, &parameter.shape).map_or(Status::Matched, Status::Unfit),
            };
            let (gates, bias) = pytorch_rules(parameters, &parameter.name);
            report.lines.push(Line {
                tensor: name,
                parameters: vec![parameter.name.clone()],
                shape: tensor.map_or(&parameter.shape[..], |t| t.shape()).to_vec(),
                dtype: tensor.map(TensorInfo::dtype),
                status,
                gates: gates.map(str::to_string),
                bias,
                closest: None,
            });
        }
        self.report_rest(&mut report, &used, &import.prefix);
        report
    }

    /// Fills the declared parameters by name. Errors: a mismatch that `import` does not allow, naming the closest
    /// name; no parameter below [`Import::part`]. On an error nothing is changed.
    pub fn import(&self, parameters: &mut Parameters, import: &Import) -> Result<ImportReport> {
        let report = self.compare(parameters, import);
        report.check(import)?;
        if !report.lines.iter().any(|l| !l.parameters.is_empty()) {
            return Err(message::tensor(&import.part, "no parameter was declared under this name"));
        }
        for line in report.lines.iter().filter(|l| l.status == Status::Matched) {
            let (Some(tensor), Some(parameter)) = (self.get(&line.tensor), line.parameters.first()) else { continue };
            let range = parameters.entry(parameter)?.range.clone();
            // no copy in between: a file of f16 would need four times its size
            let to = parameters.block_mut()[range].iter_mut();
            to.zip(self.floats(tensor)).for_each(|(to, value)| *to = value);
        }
        Ok(report)
    }

    /// Fills one layer and direction of an LSTM from another framework's arrays, which stand in the file as
    /// [`Import::prefix`] and the [names of the layout](Layout::names), or these with `:0` behind. Errors: as [`import`](Weights::import), and
    /// those of [`Layout::read`] and [`Layer::store`]; on an error nothing is changed. [`Import::part`],
    /// [`Import::allow_missing`] and [`Import::allow_unfit`] have no meaning here: a layer is filled whole.
    ///
    /// Of an ONNX node in two directions, `direction` is taken; the other one needs a second call.
    pub fn import_layer(
        &self,
        parameters: &mut Parameters,
        lstm: &Lstm,
        (layer, direction): (usize, Direction),
        layout: Layout,
        import: &Import,
    ) -> Result<ImportReport> {
        let mut report = ImportReport::default();
        let mut used = vec![false; self.tensors().len()];
        let mut arrays = Vec::new();
        let ours = names(lstm, layer, direction);
        for (place, leaf) in layout.names().iter().enumerate() {
            let name = join(&import.prefix, leaf);
            let other = layout.alias(place).map(|leaf| join(&import.prefix, leaf));
            // TensorFlow's variables have the number of their output behind
            let mut names = [Some(name), other].into_iter().flatten().flat_map(|name| [name.clone(), name + ":0"]);
            let found = names.find_map(|name| self.tensors().binary_search_by(|t| t.name().cmp(&name)).ok());
            let Some(index) = found else { continue };
            let tensor = &self.tensors()[index];
            let name = tensor.name().to_string();
            used[index] = true;
            if let Some(cause) = self.fit(tensor, tensor.shape()) {
                return Err(message::tensor(&name, cause));
            }
            let values = self.floats(tensor).collect();
            arrays.push(Array { name: leaf.to_string(), shape: tensor.shape().to_vec(), values });
            let rules = rules(layout, place, lstm.config.bias);
            report.lines.push(Line {
                tensor: name,
                parameters: rules
                    .fills
                    .iter()
                    .map(|p| ours[*p].clone())
                    .filter(|p| parameters.entry(p).is_ok())
                    .collect(),
                shape: tensor.shape().to_vec(),
                dtype: Some(tensor.dtype()),
                status: Status::Matched,
                gates: rules.gates,
                bias: rules.bias,
                closest: None,
            });
        }
        if arrays.is_empty() {
            let name = join(&import.prefix, layout.names()[0]);
            let all: Vec<String> = self.tensors().iter().take(CANDIDATES).map(|t| t.name().to_string()).collect();
            let closest = closest(&name, &all).map_or("none".into(), |c| format!("`{}`", message::escape(&c)));
            return Err(message::tensor(&name, format!("is missing from the file; the closest name is {closest}")));
        }
        self.report_rest(&mut report, &used, &import.prefix);
        report.check(import)?;
        let mut layers = layout.read(&arrays)?;
        let index = if layers.len() == 2 && direction == Direction::Reverse { 1 } else { 0 };
        let found: Layer = layers.swap_remove(index);
        found.store(parameters, lstm, (layer, direction))?;
        Ok(report)
    }

    fn report_rest(&self, report: &mut ImportReport, used: &[bool], prefix: &str) {
        for (tensor, _) in self.tensors().iter().zip(used).filter(|(_, used)| !**used) {
            let inside = below(prefix, tensor.name()).is_some();
            report.lines.push(Line {
                tensor: tensor.name().to_string(),
                parameters: Vec::new(),
                shape: tensor.shape().to_vec(),
                dtype: Some(tensor.dtype()),
                status: if inside { Status::Unused } else { Status::Outside },
                gates: None,
                bias: None,
                closest: None,
            });
        }
        report.name_closest();
    }

    /// Why a tensor cannot fill a parameter of this shape.
    fn fit(&self, tensor: &TensorInfo, shape: &[usize]) -> Option<String> {
        if tensor.shape() != shape {
            let (found, wanted) = (message::shape(tensor.shape()), message::shape(shape));
            return Some(format!("has shape {found}, declared is {wanted}"));
        }
        if !tensor.dtype().is_float() {
            return Some(not_a_float(tensor.dtype()));
        }
        let (index, value, count) = self.first_non_finite(tensor)?;
        Some(format!("element {index} is {value}; {count} of its values are not finite"))
    }
}

/// What of `name` stands below `prefix`.
fn below<'a>(prefix: &str, name: &'a str) -> Option<&'a str> {
    let rest = name.strip_prefix(prefix)?;
    if prefix.is_empty() || prefix.ends_with(['.', '/']) { Some(rest) } else { rest.strip_prefix('.') }
}

/// Gate order and bias rule of a parameter under our names.
fn pytorch_rules(parameters: &Parameters, name: &str) -> (Option<&'static str>, Option<&'static str>) {
    let (before, last) = name.split_at(name.rfind('.').map_or(0, |at| at + 1));
    let Some((kind, at)) = kind(last) else { return (None, None) };
    match kind {
        "bias_ih" if parameters.entry(&format!("{before}bias_hh{at}")).is_err() => (Some(GATES), Some("one vector")),
        "bias_ih" | "bias_hh" => (Some(GATES), Some(Layout::PyTorch.bias_rule())),
        "weight_ih" | "weight_hh" => (Some(GATES), None),
        "weight_peephole" => (Some(PEEPHOLES), None),
        "layer_norm" => (Some(NORMED), None),
        _ => (None, None),
    }
}

/// `bias_ih` and `_l0_reverse` of `bias_ih_l0_reverse`.
fn kind(last: &str) -> Option<(&str, &str)> {
    let (kind, at) = last.split_at(last.rfind("_l")?);
    let number = at[2..].strip_suffix("_reverse").unwrap_or(&at[2..]);
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some((kind, at))
}

const GATES: &str = "i,f,g,o";
const PEEPHOLES: &str = "i,f,o";
const NORMED: &str = "i,f,g,o,c";

/// What becomes of one array of a layout.
struct Rules {
    /// Places among the names of a layer's parameters.
    fills: &'static [usize],
    gates: Option<String>,
    bias: Option<&'static str>,
}

/// The rules of the array at `place` of the layout's names, for an LSTM with these bias vectors.
fn rules(layout: Layout, place: usize, bias: Bias) -> Rules {
    let name = layout.names()[place];
    let [projection, peephole, norm] = layout.parts();
    let one = |n: usize| (NORMED.split(',').nth(n)).map(str::to_string);
    if projection.contains(&name) {
        return Rules { fills: &[4], gates: None, bias: None };
    }
    if let Some(n) = peephole.iter().position(|p| *p == name) {
        let gates = match (layout, peephole.len()) {
            (Layout::Onnx, _) => Some(format!("i,o,f -> {PEEPHOLES}")),
            (_, 1) => Some(PEEPHOLES.to_string()),
            _ => PEEPHOLES.split(',').nth(n).map(str::to_string),
        };
        return Rules { fills: &[5], gates, bias: None };
    }
    if let Some(n) = norm.iter().position(|p| *p == name) {
        let (gates, forget) = if norm.len() == 1 { (Some(NORMED.to_string()), false) } else { (one(n % 5), n == 6) };
        return Rules { fills: &[6], gates, bias: forget.then_some("the forget bias stands outside of this shift") };
    }
    let (fills, is_bias): (&[usize], bool) = match (layout, place) {
        (Layout::PyTorch, 2) => (&[2], true),
        (Layout::PyTorch, 3) if bias == Bias::One => (&[2], true),
        (Layout::PyTorch, 3) => (&[3], true),
        (Layout::Textbook { .. }, 0..4) => (&[0], false),
        (Layout::Textbook { .. }, 4..8) => (&[1], false),
        (Layout::TensorFlow { .. } | Layout::DeepBreathe { .. }, 0) => (&[0, 1], false),
        (_, 0) => (&[0], false),
        (Layout::PyTorch | Layout::Keras | Layout::Onnx, 1) => (&[1], false),
        _ => (&[2, 3], true),
    };
    let rule = match (layout.bias_rule(), layout, bias) {
        (_, _, Bias::None) => "the LSTM has none: only zeros are taken",
        (_, Layout::PyTorch | Layout::Onnx, Bias::One) => "two vectors, added into bias_ih",
        (_, Layout::Keras, Bias::Two) => "one vector: bias_ih, with bias_hh = 0",
        (rule, Layout::PyTorch | Layout::Onnx | Layout::Keras, _) | (rule, _, Bias::One) => rule,
        _ => "one vector: bias_ih, with bias_hh = 0; the forget bias stands outside",
    };
    let gates = match layout {
        Layout::PyTorch => GATES.to_string(),
        _ => format!("{} -> {GATES}", layout.gates()),
    };
    Rules { fills, gates: Some(gates), bias: is_bias.then_some(rule) }
}

/// Names compared, and lines that are told the closest one: a file of many names must not cost minutes.
const CANDIDATES: usize = 2000;
const NAMED: usize = 16;
/// Characters compared, from the end: there names differ.
const COMPARED: usize = 64;

/// The candidate that takes the fewest edits to become `name`.
fn closest(name: &str, candidates: &[String]) -> Option<String> {
    let tail = |name: &str| name.chars().rev().take(COMPARED).collect::<Vec<char>>();
    let name = tail(name);
    candidates.iter().min_by_key(|c| edits(&name, &tail(c))).cloned()
}

/// Levenshtein's distance.
fn edits(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + (from != to) as usize;
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
