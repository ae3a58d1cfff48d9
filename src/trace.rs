//! Every intermediate of a run, by name.
//!
//! Two views of the same numbers:
//!
//! * [`Trace`] sees a run step by step and notes every slot that a step of the plan wrote, with
//!   statistics or with all values. It is an [`Observer`](crate::run::Observer): nothing is paid for
//!   it in a run without one.
//! * [`read_series`] reads what a finished run left in its [`Workspace`], and gives each time step of
//!   each LSTM layer under the names that derivations of backpropagation through time use: `f i g o c h`
//!   forward, `dHt dOt dCt dCproj dFt dIt dHX` with `dx`, `dh_next` and `dc_next` backward.
//!
//! ```
//! use everloop::layers::LstmConfig;
//! use everloop::trace::{Detail, Trace};
//! use everloop::{Device, Parameters, Recorder, Rng, Workspace};
//! # fn main() -> everloop::Result<()> {
//! let mut parameters = Parameters::new();
//! let lstm = LstmConfig::new(3, 5).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
//! let mut rec = Recorder::new(&parameters);
//! let x = rec.input("x", &[4, 2, 3])?;
//! lstm.record(&mut rec, &x, None)?;
//! let mut workspace = Workspace::new(&Device::cpu(), rec.finish(), &parameters)?;
//!
//! let mut trace = Trace::new(Detail::Statistics);
//! workspace.run_observed(&mut trace)?;
//! let gates = trace.entries().iter().filter(|e| e.kernel == "lstm_forward" && e.slot == "lstm.0.gates");
//! assert_eq!(gates.count(), 4);
//! assert_eq!(trace.first_non_finite(), None);
//! # Ok(()) }
//! ```

use crate::kernel::Operation;
use crate::plan::{Cell, Direction, Phase, Plan, SlotId, Tensor};
#[cfg(not(target_arch = "wasm32"))]
use crate::{
    error::{Error, Result},
    kernels::lstm_forward::GATES,
    run::{Observer, Workspace},
};
use ndarray::Array2;
#[cfg(not(target_arch = "wasm32"))]
use ndarray::{Array3, Axis, Ix2, Ix3, s};
use std::fmt::Write as _;
use std::io::{self, Write};

/// How much of each slot a [`Trace`] keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// [`Statistics`] only.
    Statistics,
    /// Statistics and every value.
    Values,
}

/// A summary of some numbers. Least, largest, mean and norm are taken over the finite ones, and are NaN
/// where there is none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    /// How many numbers.
    pub elements: usize,
    /// How many of them are NaN or infinite.
    pub non_finite: usize,
    /// Least.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Mean.
    pub mean: f64,
    /// Square root of the sum of squares.
    pub norm: f64,
}

impl Statistics {
    /// The summary of `values`.
    pub fn of(values: &[f64]) -> Statistics {
        let finite = || values.iter().copied().filter(|v| v.is_finite());
        let count = finite().count();
        let or_nan = |value: f64| if count == 0 { f64::NAN } else { value };
        Statistics {
            elements: values.len(),
            non_finite: values.len() - count,
            min: or_nan(finite().fold(f64::INFINITY, f64::min)),
            max: or_nan(finite().fold(f64::NEG_INFINITY, f64::max)),
            mean: or_nan(finite().sum::<f64>() / count.max(1) as f64),
            norm: or_nan(finite().map(|v| v * v).sum::<f64>().sqrt()),
        }
    }
}

/// Where in an LSTM some numbers belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Layer number from 0.
    pub layer: usize,
    /// Direction.
    pub direction: Direction,
    /// Time step; `None` for the initial state.
    pub time: Option<usize>,
}

/// What one step of a plan wrote into one slot, or into one time step of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Index of the step in the plan.
    pub step: usize,
    /// The part of the training step.
    pub phase: Phase,
    /// The kernel.
    pub kernel: &'static str,
    /// The slot.
    pub slot: String,
    /// Layer, direction and time, for slots of an LSTM.
    pub place: Option<Place>,
    /// Shape of what was written; without the time axis where `place` tells the time.
    pub shape: Vec<usize>,
    /// Summary.
    pub statistics: Statistics,
    /// All values, row-major, for [`Detail::Values`].
    pub values: Option<Vec<f64>>,
}

impl Entry {
    /// The entry as one JSON object: the fields by name, with `layer`, `direction`, `time` and the statistics beside
    /// them. Numbers that are not finite are the strings "NaN", "inf", "-inf"; finite ones have all their digits.
    pub fn to_json(&self) -> String {
        let place = self.place.map(|p| (p.layer, direction_name(p.direction), p.time));
        let or_null = |n: Option<usize>| n.map_or("null".to_string(), |n| n.to_string());
        let mut line = format!(
            "{{\"step\":{},\"phase\":{},\"kernel\":{},\"slot\":{},\"layer\":{},\"direction\":{},\"time\":{},\"shape\":{:?}",
            self.step,
            json_text(phase_name(self.phase)),
            json_text(self.kernel),
            json_text(&self.slot),
            or_null(place.map(|p| p.0)),
            place.map_or("null".to_string(), |p| json_text(p.1)),
            or_null(place.and_then(|p| p.2)),
            self.shape,
        );
        let of = self.statistics;
        let _ = write!(line, ",\"elements\":{},\"non_finite\":{}", of.elements, of.non_finite);
        for (name, value) in [("min", of.min), ("max", of.max), ("mean", of.mean), ("norm", of.norm)] {
            let _ = write!(line, ",\"{name}\":{}", json_number(value));
        }
        if let Some(values) = &self.values {
            let values: Vec<String> = values.iter().copied().map(json_number).collect();
            let _ = write!(line, ",\"values\":[{}]", values.join(","));
        }
        line.push('}');
        line
    }
}

/// An observer that notes every slot each step of a plan wrote.
///
/// Slots of an LSTM (gates, h, c and their gradients) are noted time step by time step, in the order
/// the step worked on them; all others as a whole. Of a slot that is written in parts, only what the step
/// wrote is noted.
#[derive(Debug, Clone)]
pub struct Trace {
    detail: Detail,
    entries: Vec<Entry>,
}

impl Trace {
    /// An empty trace.
    pub fn new(detail: Detail) -> Trace {
        Trace { detail, entries: Vec::new() }
    }

    /// What was noted so far, in the order of the run.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Forgets all entries, to trace another run.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// The first entry with a NaN or an infinity in it: where things went wrong.
    pub fn first_non_finite(&self) -> Option<&Entry> {
        self.entries.iter().find(|e| e.statistics.non_finite > 0)
    }

    /// Writes one line for each entry, and one for each row of its values where they were kept.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        let width = |longest: fn(&Entry) -> usize| self.entries.iter().map(longest).max().unwrap_or(0);
        let (kernel, slot) = (width(|e| e.kernel.len()), width(|e| e.slot.len()));
        for entry in &self.entries {
            let place = match entry.place {
                None => String::new(),
                Some(Place { layer, direction, time }) => {
                    let time = time.map_or("initial".to_string(), |t| format!("t {t}"));
                    format!("layer {layer} {} {time}", direction_name(direction))
                }
            };
            let (phase, shape, of) = (phase_name(entry.phase), format!("{:?}", entry.shape), entry.statistics);
            write!(
                out,
                "{:>4} {phase:<8} {:<kernel$} {:<slot$} {place:<23} {shape:<13}",
                entry.step, entry.kernel, entry.slot
            )?;
            write!(
                out,
                " min {:>12.5e} max {:>12.5e} mean {:>12.5e} norm {:>11.5e}",
                of.min, of.max, of.mean, of.norm
            )?;
            match of.non_finite {
                0 => writeln!(out)?,
                count => writeln!(out, "  {count} of {} not finite", of.elements)?,
            }
            let columns = entry.shape.last().copied().unwrap_or(1).max(1);
            for row in entry.values.iter().flat_map(|v| v.chunks(columns)) {
                let row: Vec<String> = row.iter().map(|v| format!("{v:>13.6e}")).collect();
                writeln!(out, "     {}", row.join(" "))?;
            }
        }
        Ok(())
    }

    /// Writes one JSON object on a line for each entry; see [`Entry::to_json`].
    pub fn write_json_lines(&self, out: &mut impl Write) -> io::Result<()> {
        self.entries.iter().try_for_each(|entry| writeln!(out, "{}", entry.to_json()))
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Observer for Trace {
    fn after_step(&mut self, workspace: &mut Workspace, index: usize) -> Result<()> {
        let plan = workspace.plan().clone();
        let Some(step) = plan.steps().get(index) else { return Ok(()) };
        for id in step.written() {
            let slot = plan.slot(id);
            for (place, tensor) in parts(&plan, id, &*step.operation, step.phase) {
                let mut values = workspace.read::<f64>(&tensor)?;
                let mut shape = tensor.shape;
                if place.is_none()
                    && let Some(part) = Extent::of(&*step.operation, values.len()).pick(&values)
                {
                    (values, shape) = part;
                }
                self.entries.push(Entry {
                    step: index,
                    phase: step.phase,
                    kernel: step.operation.name(),
                    slot: slot.name.clone(),
                    place,
                    shape,
                    statistics: Statistics::of(&values),
                    values: (self.detail == Detail::Values).then_some(values),
                });
            }
        }
        Ok(())
    }
}

/// How a slot of an LSTM is cut into time steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// `[T, B, ..]`: row t is time t.
    Times,
    /// `[T+1, B, ..]`: the states, see [`Direction::row_after`].
    States,
}

/// The parts of a slot that a step wrote, each with its place, in the order the step worked on them.
fn parts(plan: &Plan, id: SlotId, operation: &dyn Operation, phase: Phase) -> Vec<(Option<Place>, Tensor)> {
    let shape = plan.slot(id).shape.clone();
    let whole = plan.whole(id);
    let Some((cell, rows)) = plan.cells().iter().find_map(|cell| rows_of(cell, id).map(|rows| (cell, rows))) else {
        return vec![(None, whole)];
    };
    let (row_len, written) = (whole.len() / shape[0].max(1), Extent::of(operation, whole.len()));
    let (direction, layer) = (cell.direction, cell.layer);
    let steps = match rows {
        Rows::Times => shape[0],
        Rows::States => shape[0].saturating_sub(1),
    };
    let mut at: Vec<(Option<usize>, usize)> = Vec::new();
    if rows == Rows::States {
        at.push((None, direction.first_row(steps)));
    }
    for time in (0..steps).map(|n| direction.time(n, steps)) {
        at.push((Some(time), if rows == Rows::States { direction.row_after(time) } else { time }));
    }
    if phase == Phase::Backward {
        at.reverse();
    }
    let part = |(time, row): (Option<usize>, usize)| {
        let start = row * row_len;
        let touched = start < written.end() && written.start < start + row_len;
        let tensor = Tensor { offset: start, shape: shape[1..].to_vec(), ..whole.clone() };
        touched.then_some((Some(Place { layer, direction, time }), tensor))
    };
    at.into_iter().filter_map(part).collect()
}

/// How `id` is cut into time steps, if it is a slot of this cell.
fn rows_of(cell: &Cell, id: SlotId) -> Option<Rows> {
    let [dgates, dh, dc] = match &cell.gradients {
        Some(gradients) => gradients.each_ref().map(|tensor| Some(tensor.slot)),
        None => [None; 3],
    };
    match Some(id) {
        slot if slot == Some(cell.gates.slot) || slot == dgates => Some(Rows::Times),
        slot if [Some(cell.h.slot), Some(cell.c.slot), dh, dc].contains(&slot) => Some(Rows::States),
        _ => None,
    }
}

/// The elements of its output that a step writes: `width` of every `stride` from `start` on, `rows` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    start: usize,
    rows: usize,
    width: usize,
    stride: usize,
}

impl Extent {
    /// Kernels that can write a part of a slot tell where among their parameters; all others write everything.
    fn of(operation: &dyn Operation, len: usize) -> Extent {
        let fields = operation.fields();
        let field = |name: &str| fields.iter().find(|(n, _)| *n == name).map_or(0, |(_, value)| *value as usize);
        let one = |start: usize, width: usize| Extent { start, rows: 1, width, stride: width };
        match operation.name() {
            "fill" => one(field("offset"), field("len")),
            "scale" => one(field("y_offset"), field("len")),
            "matmul" => one(field("c_offset"), field("m") * field("n")),
            "copy_columns" => Extent {
                start: field("target_offset"),
                rows: field("rows"),
                width: field("width"),
                stride: field("target_stride"),
            },
            _ => one(0, len),
        }
    }

    fn end(&self) -> usize {
        self.start + self.rows.saturating_sub(1) * self.stride + self.width
    }

    /// The written ones of all elements, with their shape, where they are not all.
    fn pick(&self, values: &[f64]) -> Option<(Vec<f64>, Vec<usize>)> {
        let part = self.rows * self.width < values.len();
        part.then(|| {
            let rows = values.get(self.start..self.end()).unwrap_or(values).chunks(self.stride.max(1));
            let picked = rows.flat_map(|row| row.iter().take(self.width)).copied().collect();
            (picked, vec![self.rows, self.width])
        })
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Forward => "forward",
        Phase::Backward => "backward",
        Phase::Update => "update",
    }
}

fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "forward",
        Direction::Reverse => "reverse",
    }
}

/// A JSON number: the shortest digits that read back as the same f64.
fn json_number(value: f64) -> String {
    if value.is_finite() { format!("{value:?}") } else { format!("\"{value}\"") }
}

fn json_text(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            c if (c as u32) < 0x20 => {
                let _ = write!(quoted, "\\u{:04x}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A name of the literature, its formula, and the numbers `[B, width]`.
pub type Named<'a> = (&'static str, &'static str, &'a Array2<f64>);

/// h and c, or their gradients, each `[B, H]`.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesState {
    /// Hidden state.
    pub h: Array2<f64>,
    /// Cell state.
    pub c: Array2<f64>,
}

/// Gradients of one time step of one LSTM layer, all of the loss with respect to what the name says.
///
/// Gradients of gates are those of the *pre-activations*: the derivative of the activation is in them.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesGradients {
    /// `dHt [B, H]`: h of this step, from above and from the next step together.
    pub dht: Array2<f64>,
    /// `dOt [B, H]`: output gate.
    pub dot: Array2<f64>,
    /// `dCt [B, H]`: c of this step, through h and through the next c.
    pub dct: Array2<f64>,
    /// `dCproj [B, H]`: candidate g.
    pub dcproj: Array2<f64>,
    /// `dFt [B, H]`: forget gate.
    pub dft: Array2<f64>,
    /// `dIt [B, H]`: input gate.
    pub dit: Array2<f64>,
    /// `dHX [B, I+H]`: x and the h before, through this step's gates.
    pub dhx: Array2<f64>,
    /// `dx [B, I]`: the first I columns of dHX.
    pub dx: Array2<f64>,
    /// `dh_next [B, H]`: the last H columns of dHX, handed to the step worked on before.
    pub dh_next: Array2<f64>,
    /// `dc_next [B, H]`: handed to c of the step worked on before.
    pub dc_next: Array2<f64>,
}

impl SeriesGradients {
    /// All of them with name and formula, in the order in which they are computed.
    pub fn named(&self) -> [Named<'_>; 10] {
        [
            ("dHt", "dE/dht from above + dh_next of the step after", &self.dht),
            ("dOt", "dHt * tanh(ct) * ot * (1 - ot)", &self.dot),
            ("dCt", "dHt * ot * (1 - tanh(ct)^2) + dc_next of the step after", &self.dct),
            ("dCproj", "dCt * it * (1 - cproj^2)", &self.dcproj),
            ("dFt", "dCt * ct_prev * ft * (1 - ft)", &self.dft),
            ("dIt", "dCt * cproj * it * (1 - it)", &self.dit),
            ("dHX", "Wf^T dFt + Wi^T dIt + Wc^T dCproj + Wo^T dOt", &self.dhx),
            ("dx", "dHX, columns of x", &self.dx),
            ("dh_next", "dHX, columns of ht_prev", &self.dh_next),
            ("dc_next", "dCt * ft", &self.dc_next),
        ]
    }
}

/// One time step of one LSTM layer and direction. All arrays are `[B, H]`.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesStep {
    /// Time step t.
    pub time: usize,
    /// Forget gate.
    pub f: Array2<f64>,
    /// Input gate.
    pub i: Array2<f64>,
    /// Candidate, "cproj" in the series.
    pub g: Array2<f64>,
    /// Output gate.
    pub o: Array2<f64>,
    /// Cell state after this step.
    pub c: Array2<f64>,
    /// Hidden state after this step.
    pub h: Array2<f64>,
    /// Gradients, where the plan has a backward pass through this layer.
    pub gradients: Option<SeriesGradients>,
}

impl SeriesStep {
    /// The forward values with name and formula, in the order in which they are computed.
    pub fn named(&self) -> [Named<'_>; 6] {
        [
            ("ft", "sigmoid(Wf [x; ht_prev] + bf + forget_bias)", &self.f),
            ("it", "sigmoid(Wi [x; ht_prev] + bi)", &self.i),
            ("cproj", "tanh(Wc [x; ht_prev] + bc)", &self.g),
            ("ot", "sigmoid(Wo [x; ht_prev] + bo)", &self.o),
            ("ct", "ct_prev * ft + cproj * it", &self.c),
            ("ht", "ot * tanh(ct)", &self.h),
        ]
    }
}

/// One LSTM layer and direction under the names of the literature.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesCell {
    /// Path of the layer, such as `lstm`.
    pub name: String,
    /// Layer number from 0.
    pub layer: usize,
    /// Direction.
    pub direction: Direction,
    /// State before the first step.
    pub initial: SeriesState,
    /// Its gradient as the device left it, where the plan has a backward pass through this layer.
    pub initial_gradient: Option<SeriesState>,
    /// The steps in the order worked on: step 0 of a reverse layer is time T-1.
    pub steps: Vec<SeriesStep>,
}

impl SeriesCell {
    /// Largest difference between the gradient of the initial state as the device computed it, and
    /// `dh_next`, `dc_next` of the first step as computed here. They are the same by definition, so more than
    /// rounding means that the weights are not those of the run, or that something is wrong.
    pub fn initial_gradient_difference(&self) -> Option<f64> {
        let device = self.initial_gradient.as_ref()?;
        let here = self.steps.first()?.gradients.as_ref()?;
        let pairs = device.h.iter().zip(&here.dh_next).chain(device.c.iter().zip(&here.dc_next));
        let difference = |(a, b): (&f64, &f64)| (a - b).abs();
        Some(pairs.map(difference).fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst }))
    }
}

/// Runs forward and backward of a plan, not its update, and reads all LSTM layers; see [`read_series`].
#[cfg(not(target_arch = "wasm32"))]
pub fn run_series(workspace: &mut Workspace) -> Result<Vec<SeriesCell>> {
    let steps = workspace.plan().steps();
    let end = steps.iter().position(|s| s.phase == Phase::Update).unwrap_or(steps.len());
    workspace.run_steps(0..end)?;
    read_series(workspace)
}

/// Reads all LSTM layers of a finished run, in the order in which the plan runs them.
///
/// `dHX` is not a slot of any plan: x gets its part for all steps at once, h inside the time loop. So
/// it is formed here in f64 from the device's gate gradients and the weights *as they are now*. Where the plan
/// updates the weights, use [`run_series`], which stops before that.
#[cfg(not(target_arch = "wasm32"))]
pub fn read_series(workspace: &mut Workspace) -> Result<Vec<SeriesCell>> {
    let plan = workspace.plan().clone();
    plan.cells().iter().map(|cell| read_cell(workspace, cell)).collect()
}

#[cfg(not(target_arch = "wasm32"))]
fn read_cell(workspace: &mut Workspace, cell: &Cell) -> Result<SeriesCell> {
    let gates = read_steps(workspace, &cell.gates)?;
    let (h, c) = (read_steps(workspace, &cell.h)?, read_steps(workspace, &cell.c)?);
    let (steps, hidden) = (gates.len_of(Axis(0)), gates.len_of(Axis(2)) / GATES);
    let row = |of: &Array3<f64>, row: usize| of.index_axis(Axis(0), row).to_owned();
    // columns of the packed gates: i, f, g, o
    let gate =
        |of: &Array3<f64>, t: usize, gate: usize| of.slice(s![t, .., gate * hidden..(gate + 1) * hidden]).to_owned();
    let first = cell.direction.first_row(steps);
    let mut out = SeriesCell {
        name: cell.name.clone(),
        layer: cell.layer,
        direction: cell.direction,
        initial: SeriesState { h: row(&h, first), c: row(&c, first) },
        initial_gradient: None,
        steps: Vec::with_capacity(steps),
    };
    for t in (0..steps).map(|n| cell.direction.time(n, steps)) {
        let after = cell.direction.row_after(t);
        out.steps.push(SeriesStep {
            time: t,
            i: gate(&gates, t, 0),
            f: gate(&gates, t, 1),
            g: gate(&gates, t, 2),
            o: gate(&gates, t, 3),
            c: row(&c, after),
            h: row(&h, after),
            gradients: None,
        });
    }
    let Some([dgates, dh, dc]) = &cell.gradients else { return Ok(out) };
    let dgates = read_steps(workspace, dgates)?;
    let (dh, dc) = (read_steps(workspace, dh)?, read_steps(workspace, dc)?);
    let (weight_ih, weight_hh) = (read_matrix(workspace, &cell.weight_ih)?, read_matrix(workspace, &cell.weight_hh)?);
    out.initial_gradient = Some(SeriesState { h: row(&dh, first), c: row(&dc, first) });
    for step in &mut out.steps {
        let (t, after) = (step.time, cell.direction.row_after(step.time));
        let dpre = dgates.index_axis(Axis(0), t);
        let (dx, dh_next) = (dpre.dot(&weight_ih), dpre.dot(&weight_hh));
        let mut dhx = Array2::zeros((dpre.nrows(), dx.ncols() + hidden));
        dhx.slice_mut(s![.., ..dx.ncols()]).assign(&dx);
        dhx.slice_mut(s![.., dx.ncols()..]).assign(&dh_next);
        let dct = row(&dc, after);
        step.gradients = Some(SeriesGradients {
            dht: row(&dh, after),
            dit: gate(&dgates, t, 0),
            dft: gate(&dgates, t, 1),
            dcproj: gate(&dgates, t, 2),
            dot: gate(&dgates, t, 3),
            dc_next: &dct * &step.f,
            dct,
            dhx,
            dx,
            dh_next,
        });
    }
    Ok(out)
}

#[cfg(not(target_arch = "wasm32"))]
fn read_steps(workspace: &mut Workspace, tensor: &Tensor) -> Result<Array3<f64>> {
    let values = workspace.read_array::<f64>(tensor)?.into_dimensionality::<Ix3>();
    values.map_err(|_| Error::shape("reading an LSTM", "[T, B, width]", tensor.shape()))
}

#[cfg(not(target_arch = "wasm32"))]
fn read_matrix(workspace: &mut Workspace, tensor: &Tensor) -> Result<Array2<f64>> {
    let values = workspace.read_array::<f64>(tensor)?.into_dimensionality::<Ix2>();
    values.map_err(|_| Error::shape("reading the weights of an LSTM", "[4H, width]", tensor.shape()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{DenseConfig, Join, LstmConfig};
    use crate::optimizer::SgdConfig;
    use crate::{Device, Parameters, Recorder, Rng, loss};

    const STEPS: usize = 4;

    /// Two layers, two directions, readout of the last time row, one update.
    fn workspace(device: &Device) -> Workspace {
        let (mut parameters, mut rng) = (Parameters::new(), Rng::new(5));
        let config = LstmConfig::new(3, 5).with_layers(2).with_bidirectional(Join::Stacks).with_forget_bias(1.0);
        let lstm = config.declare(&mut parameters, "lstm", &mut rng).unwrap();
        let dense = DenseConfig::new(10, 4).declare(&mut parameters, "dense", &mut rng).unwrap();
        let mut rec = Recorder::new(&parameters);
        let x = rec.input("x", &[STEPS, 2, 3]).unwrap();
        let target = rec.input("target", &[2, 4]).unwrap();
        let output = lstm.record(&mut rec, &x, None).unwrap().output;
        let y = dense.record(&mut rec, &output.row(STEPS - 1).unwrap()).unwrap();
        let loss = loss::mean_squared_error(&mut rec, "loss", &y, &target).unwrap();
        rec.backward(&loss).unwrap();
        SgdConfig::new(0.5).record(&mut rec).unwrap();
        let mut workspace = Workspace::new(device, rec.finish(), &parameters).unwrap();
        workspace.write(&x, &rng.vector(x.len(), 1.0)).unwrap();
        workspace.write(&target, &rng.vector(target.len(), 1.0)).unwrap();
        workspace.poison().unwrap();
        workspace
    }

    /// Largest violation of any formula of [`SeriesStep::named`] and [`SeriesGradients::named`] that relates
    /// numbers of this cell only.
    fn residual(cell: &SeriesCell) -> f64 {
        let mut worst: f64 = 0.0;
        let mut check = |left: &Array2<f64>, right: Array2<f64>| {
            let difference =
                (left - &right).fold(0.0, |w: f64, d| if d.is_nan() { f64::INFINITY } else { w.max(d.abs()) });
            worst = worst.max(difference);
        };
        let slope = |y: &Array2<f64>| y.mapv(|y| y * (1.0 - y));
        for (n, step) in cell.steps.iter().enumerate() {
            let c_before = if n == 0 { &cell.initial.c } else { &cell.steps[n - 1].c };
            let tanh_c = step.c.mapv(f64::tanh);
            check(&step.c, &step.f * c_before + &step.i * &step.g);
            check(&step.h, &step.o * &tanh_c);
            let Some(d) = &step.gradients else { continue };
            let after = cell.steps.get(n + 1).and_then(|s| s.gradients.as_ref());
            let from_c = after.map_or(Array2::zeros(step.c.dim()), |a| a.dc_next.clone());
            check(&d.dot, &d.dht * &tanh_c * slope(&step.o));
            check(&d.dct, &d.dht * &step.o * tanh_c.mapv(|t| 1.0 - t * t) + from_c);
            check(&d.dcproj, &d.dct * &step.i * step.g.mapv(|g| 1.0 - g * g));
            check(&d.dft, &d.dct * c_before * slope(&step.f));
            check(&d.dit, &d.dct * &step.g * slope(&step.i));
            check(&d.dc_next, &d.dct * &step.f);
        }
        worst
    }

    #[test]
    fn every_written_slot_is_noted_and_lstm_slots_step_by_step() {
        let mut workspace = workspace(&Device::cpu());
        let mut trace = Trace::new(Detail::Statistics);
        workspace.run_observed(&mut trace).unwrap();
        let plan = workspace.plan().clone();
        for (index, step) in plan.steps().iter().enumerate() {
            for id in step.written() {
                let name = &plan.slot(id).name;
                assert!(trace.entries().iter().any(|e| e.step == index && e.slot == *name), "{index} {name}");
            }
        }
        let times = |slot: &str, kernel: &str| -> Vec<Option<usize>> {
            let entries = trace.entries().iter().filter(|e| e.slot == slot && e.kernel == kernel);
            entries.map(|e| e.place.unwrap().time).collect()
        };
        assert_eq!(times("lstm.0.gates", "lstm_forward"), [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!(times("lstm.1.reverse.gates", "lstm_forward"), [Some(3), Some(2), Some(1), Some(0)]);
        assert_eq!(times("lstm.0.h", "fill"), [None]);
        assert_eq!(times("lstm.0.reverse.h", "lstm_forward"), [None, Some(3), Some(2), Some(1), Some(0)]);
        assert_eq!(times("lstm.0.dh", "lstm_backward"), [Some(3), Some(2), Some(1), Some(0), None]);
        // the layer above reads all rows but the initial state
        assert_eq!(times("lstm.0.dh", "matmul"), [Some(3), Some(2), Some(1), Some(0)]);
        // h is poisoned up to the recurrence, and each entry notes only what its step wrote
        assert_eq!(trace.first_non_finite(), None);
        assert!(trace.entries().iter().any(|e| e.phase == Phase::Update && e.slot == "parameters"));
    }

    #[test]
    fn a_nan_shows_up() {
        let mut workspace = workspace(&Device::cpu());
        let mut trace = Trace::new(Detail::Values);
        workspace.run_observed(&mut trace).unwrap();
        assert_eq!(trace.first_non_finite(), None);
        trace.clear();
        workspace.poison().unwrap();
        let of = workspace.plan().steps().iter().position(|s| s.operation.name() == "lstm_backward").unwrap();
        trace.after_step(&mut workspace, of).unwrap();
        let entry = trace.first_non_finite().unwrap();
        assert_eq!((entry.slot.as_str(), entry.statistics.non_finite), ("lstm.1.reverse.dgates", 2 * 20));
        assert!(entry.statistics.norm.is_nan());
        let mut text = Vec::new();
        trace.write_text(&mut text).unwrap();
        assert!(String::from_utf8(text).unwrap().contains("40 of 40 not finite"));
    }

    #[test]
    fn statistics_of_known_numbers() {
        let of = Statistics::of(&[3.0, -4.0, f64::NAN, f64::INFINITY]);
        assert_eq!((of.elements, of.non_finite, of.min, of.max, of.mean, of.norm), (4, 2, -4.0, 3.0, -0.5, 5.0));
        let empty = Statistics::of(&[]);
        assert_eq!((empty.elements, empty.non_finite), (0, 0));
        assert!(empty.mean.is_nan());
    }

    #[test]
    fn json_reads_back_bit_by_bit() {
        let values = vec![0.1, -0.0, 1e-310, f64::MAX, 1.0 / 3.0, 1e16, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        let entry = Entry {
            step: 7,
            phase: Phase::Backward,
            kernel: "fill",
            slot: "a \"b\"\\\n.\u{e4}".into(),
            place: Some(Place { layer: 1, direction: Direction::Reverse, time: None }),
            shape: vec![3, 3],
            statistics: Statistics::of(&values),
            values: Some(values.clone()),
        };
        let json: serde_json::Value = serde_json::from_str(&entry.to_json()).unwrap();
        assert_eq!(json["slot"], entry.slot);
        assert_eq!(
            (&json["phase"], &json["direction"], &json["layer"]),
            (&"backward".into(), &"reverse".into(), &1.into())
        );
        assert!(json["time"].is_null());
        assert_eq!((&json["non_finite"], &json["shape"]), (&3.into(), &vec![3, 3].into()));
        for (value, found) in values.iter().zip(json["values"].as_array().unwrap()) {
            let found = found.as_f64().unwrap_or_else(|| found.as_str().unwrap().parse().unwrap());
            assert!(found.to_bits() == value.to_bits() || found.is_nan() && value.is_nan(), "{value} {found}");
        }
    }

    #[test]
    fn the_series_fulfils_its_formulas_and_planted_errors_do_not() {
        let mut workspace = workspace(&Device::cpu_f64());
        let cells = run_series(&mut workspace).unwrap();
        assert_eq!(cells.len(), 4);
        for cell in &cells {
            assert_eq!(cell.steps.len(), STEPS);
            assert!(residual(cell) < 1e-14, "{} {:?}: {}", cell.layer, cell.direction, residual(cell));
            assert!(cell.initial_gradient_difference().unwrap() < 1e-15);
        }
        let swapped = |swap: fn(&mut SeriesStep)| {
            let mut cell = cells[0].clone();
            cell.steps.iter_mut().for_each(swap);
            residual(&cell)
        };
        assert!(swapped(|s| std::mem::swap(&mut s.f, &mut s.i)) > 1e-3);
        assert!(swapped(|s| std::mem::swap(&mut s.g, &mut s.o)) > 1e-3);
        let dgates = |swap: fn(&mut SeriesGradients)| {
            let mut cell = cells[0].clone();
            cell.steps.iter_mut().for_each(|s| swap(s.gradients.as_mut().unwrap()));
            residual(&cell)
        };
        assert!(dgates(|d| std::mem::swap(&mut d.dft, &mut d.dit)) > 1e-6);
        assert!(dgates(|d| d.dct *= -1.0) > 1e-6);
        let mut shorter = cells[0].clone();
        shorter.steps.remove(1);
        assert!(residual(&shorter) > 1e-6);
    }

    #[test]
    fn weights_of_another_time_are_noticed() {
        let mut workspace = workspace(&Device::cpu_f64());
        workspace.run().unwrap();
        let cells = read_series(&mut workspace).unwrap();
        assert!(cells[0].initial_gradient_difference().unwrap() > 1e-9, "the update has changed weight_hh");
    }
}
