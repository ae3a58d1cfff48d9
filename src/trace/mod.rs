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

mod series;

pub use series::*;

use crate::error::Result;
use crate::kernel::{Extent, Operation};
use crate::plan::{Cell, Direction, Phase, Plan, SlotId, Tensor};
use crate::run::{Observer, Workspace};
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

impl Observer for Trace {
    async fn after_step(&mut self, workspace: &mut Workspace, index: usize) -> Result<()> {
        let plan = workspace.plan().clone();
        let Some(step) = plan.steps().get(index) else { return Ok(()) };
        for id in step.written() {
            let slot = plan.slot(id);
            for (place, tensor) in parts(&plan, id, &*step.operation, step.phase) {
                let mut values = workspace.read_async::<f64>(&tensor).await?;
                let mut shape = tensor.shape;
                if place.is_none()
                    && let Some(part) = step.operation.extent().and_then(|extent| pick(extent, &values))
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
    let row_len = whole.len() / shape[0].max(1);
    let written = operation.extent().map_or(0..whole.len(), |extent| extent.start..extent.end());
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
        let touched = start < written.end && written.start < start + row_len;
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

/// The written ones of all elements, with their shape, where they are not all.
fn pick(extent: Extent, values: &[f64]) -> Option<(Vec<f64>, Vec<usize>)> {
    let part = extent.rows * extent.width < values.len();
    part.then(|| {
        let rows = values.get(extent.start..extent.end()).unwrap_or(values).chunks(extent.stride.max(1));
        let picked = rows.flat_map(|row| row.iter().take(extent.width)).copied().collect();
        (picked, vec![extent.rows, extent.width])
    })
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

#[cfg(test)]
mod tests;
