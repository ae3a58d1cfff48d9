//! Every intermediate of a run, by name.
//!
//! Two views of the same numbers:
//!
//! * [`Trace`] sees a run step by step and notes every slot that a step of the plan wrote, with
//!   statistics or with all values. It is an [`Observer`]: nothing is paid for
//!   it in a run without one.
//! * [`read_series`] reads what a finished run left in its [`Workspace`], and gives each time step of
//!   each LSTM layer under the names that derivations of backpropagation through time use: `f i g o c h`
//!   forward, `dHt dOt dCt dCproj dFt dIt dHX` with `dx`, `dh_next` and `dc_next` backward.
//!
//! ```
//! use everloop::layers::LstmConfig;
//! use everloop::trace::{Detail, Trace};
//! use everloop::{Device, Parameters, Recorder, Rng, Store, Workspace};
//! # fn main() -> everloop::Result<()> {
//! let mut parameters = Parameters::new();
//! let lstm = LstmConfig::new(3, 5).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
//! let mut rec = Recorder::new(&parameters);
//! let x = rec.input("x", &[4, 2, 3])?;
//! lstm.record(&mut rec, &x, None)?;
//! let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
//!
//! let mut trace = Trace::new(Detail::Statistics);
//! workspace.run_observed(&mut trace)?;
//! let gates = trace.entries().iter().filter(|e| e.kernel == "lstm_forward" && e.slot == "lstm.0.gates");
//! assert_eq!(gates.count(), 4);
//! assert_eq!(trace.first_non_finite(), None);
//! # Ok(()) }
//! ```

mod series;

pub use series::*;

use crate::error::Result;
use crate::kernel::Extent;
use crate::plan::{Phase, Plan, Rows};
use crate::run::{Observer, Workspace};
use crate::tensor::{Dtype, Tensor};
use crate::time::Direction;
use serde_json::{Value, json};
use std::io::{self, Write};

/// How much of each slot a [`Trace`] keeps.
///
/// [`trace`](self) has an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// [`Statistics`] only.
    Statistics,
    /// Statistics and every value.
    Values,
}

/// A summary of some numbers. Least, largest, mean and norm are taken over the finite ones, and are NaN
/// where there is none.
///
/// ```
/// use everloop::trace::Statistics;
/// let summary = Statistics::of(&[3.0, -4.0, f64::NAN]);
/// assert_eq!((summary.min, summary.max, summary.norm, summary.non_finite), (-4.0, 3.0, 5.0, 1));
/// ```
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
///
/// [`trace`](self) has an example.
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
///
/// [`trace`](self) has an example.
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
        let (place, of) = (self.place, self.statistics);
        let mut fields = vec![
            ("step", json!(self.step)),
            ("phase", json!(self.phase.name())),
            ("kernel", json!(self.kernel)),
            ("slot", json!(self.slot)),
            ("layer", json!(place.map(|p| p.layer))),
            ("direction", json!(place.map(|p| p.direction.name()))),
            ("time", json!(place.and_then(|p| p.time))),
            ("shape", json!(self.shape)),
            ("elements", json!(of.elements)),
            ("non_finite", json!(of.non_finite)),
        ];
        let statistics = [("min", of.min), ("max", of.max), ("mean", of.mean), ("norm", of.norm)];
        fields.extend(statistics.map(|(name, value)| (name, json_number(value))));
        fields.extend(self.values.iter().map(|values| ("values", values.iter().copied().map(json_number).collect())));
        let fields: Vec<String> = fields.into_iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", fields.join(","))
    }
}

/// An observer that notes every slot each step of a plan wrote.
///
/// Slots of an LSTM (gates, h, c and their gradients) are noted time step by time step, in the order
/// the step worked on them; all others as a whole. Of a slot that is written in parts, only what the step
/// wrote is noted.
///
/// [`trace`](self) has an example.
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
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        let width = |longest: fn(&Entry) -> usize| self.entries.iter().map(longest).max().unwrap_or(0);
        let (kernel, slot) = (width(|e| e.kernel.len()), width(|e| e.slot.len()));
        for entry in &self.entries {
            let place = match entry.place {
                None => String::new(),
                Some(Place { layer, direction, time }) => {
                    let time = time.map_or("initial".to_string(), |t| format!("t {t}"));
                    format!("layer {layer} {} {time}", direction.name())
                }
            };
            let (step, phase, shape) = (entry.step, entry.phase.name(), format!("{:?}", entry.shape));
            write!(
                out,
                "{step:>4} {phase:<8} {:<kernel$} {:<slot$} {place:<23} {shape:<13}",
                entry.kernel, entry.slot
            )?;
            let Statistics { elements, non_finite, min, max, mean, norm } = entry.statistics;
            write!(out, " min {min:>12.5e} max {max:>12.5e} mean {mean:>12.5e} norm {norm:>11.5e}")?;
            match non_finite {
                0 => writeln!(out)?,
                count => writeln!(out, "  {count} of {elements} not finite")?,
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
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn write_json_lines(&self, out: &mut impl Write) -> io::Result<()> {
        self.entries.iter().try_for_each(|entry| writeln!(out, "{}", entry.to_json()))
    }
}

impl Observer for Trace {
    async fn after_step(&mut self, workspace: &mut Workspace, index: usize) -> Result<()> {
        let plan = workspace.plan().clone();
        let Some(step) = plan.steps().get(index) else { return Ok(()) };
        for view in step.written().filter(|view| plan.slot(view.slot).dtype == Dtype::F32) {
            for (place, tensor) in parts(&plan, view, step.phase) {
                let mut values = workspace.read_async::<f64>(&tensor).await?;
                let mut shape = tensor.shape;
                if let Some(part) = step.operation.extent().and_then(|extent| pick(extent, &values)) {
                    (values, shape) = part;
                }
                self.entries.push(Entry {
                    step: index,
                    phase: step.phase,
                    kernel: step.operation.name(),
                    slot: plan.slot(view.slot).name.clone(),
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

/// The parts of a view that a step wrote, each with its place, in the order the step worked on them.
fn parts(plan: &Plan, view: &Tensor, phase: Phase) -> Vec<(Option<Place>, Tensor)> {
    let slot = plan.slot(view.slot);
    let (layer, states) = match &slot.rows {
        Rows::Whole => return vec![(None, view.clone())],
        Rows::Times(layer) => (layer, false),
        Rows::States(layer) => (layer, true),
    };
    let [_, rows, ref shape @ ..] = slot.shape[..] else { return vec![(None, view.clone())] };
    let row_len = shape.iter().product::<usize>();
    let steps = if states { rows - 1 } else { rows };
    let mut all = Vec::new();
    for (d, direction) in layer.directions.list().iter().enumerate() {
        let times = (0..steps).map(|n| direction.time(n, steps));
        let of_time = |t: usize| (Some(t), if states { direction.row_after(t) } else { t });
        let mut at: Vec<_> = times.map(of_time).collect();
        if states {
            at.insert(0, (None, direction.first_row(steps)));
        }
        if phase == Phase::Backward {
            at.reverse();
        }
        for (time, row) in at {
            let start = (d * rows + row) * row_len;
            if start < view.offset + view.len() && view.offset < start + row_len {
                let place = Place { layer: layer.number, direction: *direction, time };
                all.push((Some(place), Tensor { offset: start, shape: shape.to_vec(), ..view.clone() }));
            }
        }
    }
    all
}

/// The written ones of all elements, with their shape, where they are not all.
fn pick(extent: Extent, values: &[f64]) -> Option<(Vec<f64>, Vec<usize>)> {
    let part = extent.rows * extent.width < values.len();
    part.then(|| {
        let rows = values.get(extent.start..).unwrap_or(values).chunks(extent.stride.max(1)).take(extent.rows);
        let picked = rows.flat_map(|row| row.iter().take(extent.width)).copied().collect();
        (picked, vec![extent.rows, extent.width])
    })
}

/// The shortest digits that read back as the same f64.
fn json_number(value: f64) -> Value {
    if value.is_finite() { value.into() } else { value.to_string().into() }
}

#[cfg(test)]
mod tests;
