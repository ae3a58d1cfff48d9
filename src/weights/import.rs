//! From a file into declared parameters.

use super::header::TensorInfo;
use super::layer::parameter;
use super::layout::Layout;
use super::report::{CANDIDATES, ImportReport, Line, Status, closest};
use super::tables::{OUTSIDE, Part, Row, Table, kind_in_stack, name_in_stack};
use super::write::{Array, join};
use super::{Weights, message, not_a_float};
use crate::error::{Result, ensure};
use crate::layers::{Bias, Lstm, path};
use crate::options::options;
use crate::parameters::Parameters;
use crate::time::Direction;

/// What to import, and what to put up with. At first: everything, under the names as they are, and every mismatch is
/// an error.
///
/// ```
/// use everloop::weights::{self, Export, Import, Weights};
/// use everloop::{Parameters, Rng, layers::{DenseConfig, LstmConfig}};
/// # fn main() -> everloop::Result<()> {
/// let mut model = Parameters::new();
/// LstmConfig::new(3, 4).declare(&mut model, "lstm", &mut Rng::new(1))?;
/// DenseConfig::new(4, 2).declare(&mut model, "head", &mut Rng::new(1))?;
/// let file = Weights::from_bytes(&weights::to_bytes(&model, &Export::new().with_prefix("model"))?)?;
///
/// let mut encoder = Parameters::new();
/// LstmConfig::new(3, 4).declare(&mut encoder, "encoder", &mut Rng::new(2))?;
/// // the LSTM alone: its name in the file takes the place of ours, and the head stays outside
/// let import = Import::new().with_prefix("model.lstm").with_part("encoder");
/// file.import(&mut encoder, &import)?;
/// assert!(file.import(&mut encoder, &Import::new().with_prefix("model")).is_err());
/// # Ok(()) }
/// ```
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

    options! {
        /// With this prefix: `encoder` finds `lstm.weight_ih_l0` as `encoder.lstm.weight_ih_l0`.
        with_prefix(prefix: impl Into<String>) { prefix: prefix.into() }
        /// Only what was declared below `part`: with `lstm` and no prefix, the file's `weight_ih_l0` fills
        /// `lstm.weight_ih_l0`.
        with_part(part: impl Into<String>) { part: part.into() }
        /// Parameters that the file lacks are no error.
        with_missing() { allow_missing: true }
        /// Tensors that no parameter takes are no error.
        with_unused() { allow_unused: true }
        /// Tensors of a wrong shape, type or value are no error, and not imported.
        with_unfit() { allow_unfit: true }
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
            let index = self.place(&name);
            index.into_iter().for_each(|index| used[index] = true);
            let tensor = index.map(|index| &self.tensors()[index]);
            let status = match tensor {
                None => Status::Missing,
                Some(tensor) => self.fit(tensor, &parameter.shape).map_or(Status::Matched, Status::Unfit),
            };
            let (gates, bias) = pytorch_rules(parameters, &parameter.name).unwrap_or_default();
            let line = Line::of(&name, tensor, &parameter.shape, vec![parameter.name.clone()]);
            report.lines.push(Line { status, gates, bias, ..line });
        }
        self.report_rest(&mut report, &used, &import.prefix);
        report
    }

    /// Fills the declared parameters by name.
    ///
    /// # Errors
    ///
    /// A mismatch that `import` does not allow, naming the closest name; no parameter below [`Import::part`]. On an
    /// error nothing is changed.
    pub fn import(&self, parameters: &mut Parameters, import: &Import) -> Result<ImportReport> {
        let report = self.compare(parameters, import);
        report.check(import)?;
        let some = report.lines.iter().any(|l| !l.parameters.is_empty());
        ensure!(some, message::tensor(&import.part, "no parameter was declared under this name"));
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
    /// [`Import::prefix`] and the [names of the layout](Layout::names), or these with `:0` behind. [`Import::part`],
    /// [`Import::allow_missing`] and [`Import::allow_unfit`] have no meaning here: a layer is filled whole.
    ///
    /// Of an ONNX node in two directions, `direction` is taken; the other one needs a second call.
    ///
    /// # Errors
    ///
    /// As [`import`](Weights::import), and those of [`Layout::read`] and [`Layer::store`](super::layout::Layer::store);
    /// on an error nothing is changed.
    pub fn import_layer(
        &self,
        parameters: &mut Parameters,
        lstm: &Lstm,
        at: (usize, Direction),
        layout: Layout,
        import: &Import,
    ) -> Result<ImportReport> {
        let mut report = ImportReport::default();
        let mut used = vec![false; self.tensors().len()];
        let mut arrays = Vec::new();
        for row in &layout.table().rows {
            // TensorFlow's variables have the number of their output behind
            let mut names = row.names.iter().map(|leaf| join(&import.prefix, leaf)).flat_map(|n| [n.clone(), n + ":0"]);
            let Some(index) = names.find_map(|name| self.place(&name)) else { continue };
            let tensor = &self.tensors()[index];
            used[index] = true;
            if let Some(cause) = self.fit(tensor, tensor.shape()) {
                return Err(message::tensor(tensor.name(), cause));
            }
            let (shape, values) = (tensor.shape().to_vec(), self.floats(tensor).collect());
            arrays.push(Array { name: row.names[0].to_string(), shape, values });
            let filled = filled(layout.table(), row, lstm).into_iter().map(|part| parameter(lstm, at, part)).collect();
            let (gates, bias) = (layout.table().gates(row), bias_rule(layout.table(), row, lstm.config.bias));
            report.lines.push(Line { gates, bias, ..Line::of(tensor.name(), Some(tensor), &[], filled) });
        }
        if arrays.is_empty() {
            let name = join(&import.prefix, layout.table().rows[0].names[0]);
            let all: Vec<String> = self.tensors().iter().take(CANDIDATES).map(|t| t.name().to_string()).collect();
            let closest = closest(&name, &all).map_or("none".into(), |c| format!("`{}`", message::escape(&c)));
            return Err(message::tensor(&name, format!("is missing from the file; the closest name is {closest}")));
        }
        self.report_rest(&mut report, &used, &import.prefix);
        report.check(import)?;
        let mut layers = layout.read(&arrays)?;
        let index = (layers.len() == 2 && at.1 == Direction::Reverse) as usize;
        layers.swap_remove(index).store(parameters, lstm, at)?;
        Ok(report)
    }

    fn report_rest(&self, report: &mut ImportReport, used: &[bool], prefix: &str) {
        for (tensor, _) in self.tensors().iter().zip(used).filter(|(_, used)| !**used) {
            let inside = below(prefix, tensor.name()).is_some();
            let status = if inside { Status::Unused } else { Status::Outside };
            report.lines.push(Line { status, ..Line::of(tensor.name(), Some(tensor), &[], Vec::new()) });
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

/// Gate order and bias rule of a parameter under our names; `None` where it is none of an LSTM.
fn pytorch_rules(parameters: &Parameters, name: &str) -> Option<(Option<String>, Option<&'static str>)> {
    let (before, last) = name.rsplit_once('.').unwrap_or(("", name));
    let (kind, layer, direction) = kind_in_stack(last)?;
    let table = Layout::PyTorch.table();
    let row = &table.rows[table.place(kind)?];
    let second = path(before, &name_in_stack(Part::BiasHh.kind(), layer, direction));
    let bias = match row.parts[0] {
        Part::BiasIh if parameters.entry(&second).is_err() => Some("one vector"),
        Part::BiasIh | Part::BiasHh => Some(table.bias_rule),
        _ => None,
    };
    Some((table.gates(row), bias))
}

/// The parts of an LSTM that an array of a layout fills.
fn filled(table: &Table, row: &Row, lstm: &Lstm) -> Vec<Part> {
    let mut parts: Vec<Part> = row.parts.to_vec();
    match (row.parts[0], lstm.config.bias) {
        (Part::BiasIh, _) if !table.holds(Part::BiasHh) => parts.push(Part::BiasHh),
        // added
        (Part::BiasHh, Bias::One) => parts = vec![Part::BiasIh],
        _ => {}
    }
    parts.retain(|part| lstm.config.has(*part));
    parts
}

/// What becomes of an array for an LSTM with these bias vectors; `None` where it has no biases.
fn bias_rule(table: &Table, row: &Row, bias: Bias) -> Option<&'static str> {
    match (row.parts[0], bias) {
        (Part::Norm, _) => (row.blocks == [6]).then_some("the forget bias stands outside of this shift"),
        (Part::BiasIh | Part::BiasHh, bias) => Some(match (bias, table.holds(Part::BiasHh)) {
            (Bias::None, _) => "the LSTM has none: only zeros are taken",
            (Bias::One, true) => "two vectors, added into bias_ih",
            (Bias::One, false) | (Bias::Two, true) => table.bias_rule,
            (Bias::Two, false) if table.bias_rule == OUTSIDE => {
                "one vector: bias_ih, with bias_hh = 0; the forget bias stands outside"
            }
            (Bias::Two, false) => "one vector: bias_ih, with bias_hh = 0",
        }),
        _ => None,
    }
}
