//! The plan: the recorded program for one batch size and number of steps. Pure data, no device.
//!
//! A plan is a list of *slots* (named arrays) and a list of *steps* (a kernel with its slots).
//! Printing a plan gives its listing: each slot with its bytes, each step with its operands.

use crate::error::{Error, Result};
use crate::kernel::{Access, Operation};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tells plans apart, so that a tensor of one is not taken for a tensor of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PlanId(u64);

impl PlanId {
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        PlanId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Index of a slot in its plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub(crate) usize);

/// What a slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Floats written by the caller.
    Input,
    /// Token ids written by the caller.
    Tokens {
        /// Ids must be below this.
        vocab_size: usize,
        /// Whether [`IGNORE`](crate::loss::IGNORE) may stand among the ids.
        ignorable: bool,
    },
    /// A parameter, or the block of all of them.
    Parameter,
    /// The gradient of a parameter, or the block of all of them.
    ParameterGradient,
    /// Computed by a forward step.
    Activation,
    /// Computed by a backward step.
    Gradient,
}

/// Where a slot's elements live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// In a buffer of its own.
    Own,
    /// In the block of all parameters, from this float on.
    Parameters(usize),
    /// In the block of all parameter gradients, from this float on.
    Gradients(usize),
}

/// A named array of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// A path such as `lstm.0.reverse.gates`; gradients have a `d` before the last part.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// What it is for.
    pub kind: Kind,
    /// Where it lives.
    pub storage: Storage,
}

impl Slot {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in f32 (token ids have as many).
    pub fn bytes(&self) -> u64 {
        self.len() as u64 * 4
    }
}

/// A slot, or contiguous leading-axis rows of one, with a shape.
///
/// ```text
/// h [T+1, B, H]   rows 1..T+1 of it, as [T, B, H]: offset B * H
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub(crate) plan: PlanId,
    pub(crate) slot: SlotId,
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
}

impl Tensor {
    /// Row-major shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of the last axis.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all axes but the last.
    pub fn rows(&self) -> usize {
        self.len() / self.columns().max(1)
    }

    /// The slot it lies in.
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// The same elements under another shape.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        if shape.iter().product::<usize>() != self.len() {
            return Err(Error::shape("reshaping", format!("{} elements as in {:?}", self.len(), self.shape), shape));
        }
        Ok(Tensor { shape: shape.to_vec(), ..self.clone() })
    }

    /// Entries `start..start + count` of the leading axis.
    pub fn narrow(&self, start: usize, count: usize) -> Result<Tensor> {
        let lead = self.shape.first().copied().unwrap_or(0);
        if count == 0 || start.checked_add(count).is_none_or(|end| end > lead) {
            let wanted = format!("{count} entries (at least one) from {start} on the leading axis");
            return Err(Error::shape("taking rows", wanted, &self.shape));
        }
        let mut shape = self.shape.clone();
        shape[0] = count;
        Ok(Tensor { offset: self.offset + start * (self.len() / lead), shape, ..self.clone() })
    }

    /// Entry `index` of the leading axis, without that axis.
    pub fn row(&self, index: usize) -> Result<Tensor> {
        let one = self.narrow(index, 1)?;
        one.reshape(&self.shape[1..])
    }
}

/// The part of a training step a step of the plan belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Outputs and loss.
    Forward,
    /// Gradients.
    Backward,
    /// Norm, clipping, optimizer.
    Update,
}

/// One step of a plan: a kernel and its slots in binding order.
#[derive(Debug, Clone)]
pub struct Step {
    /// The kernel with its parameters.
    pub operation: Arc<dyn Operation>,
    /// Slots in binding order; `None` where this step leaves a binding out.
    pub operands: Vec<Option<SlotId>>,
    /// The part of the training step.
    pub phase: Phase,
}

impl Step {
    /// The slots this step writes.
    pub fn written(&self) -> impl Iterator<Item = SlotId> {
        let bindings = self.operation.bindings().iter();
        bindings.zip(&self.operands).filter(|(b, _)| b.access == Access::Write).filter_map(|(_, id)| *id)
    }
}

/// The direction in which an LSTM layer walks through time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From step 0 to the last.
    Forward,
    /// From the last step to 0.
    Reverse,
}

impl Direction {
    /// Row of a `[T+1, B, H]` state slot with the state *after* time `t`: the initial state stands
    /// before row 1 going forward, and behind row T-1 in reverse.
    pub fn row_after(self, t: usize) -> usize {
        match self {
            Direction::Forward => t + 1,
            Direction::Reverse => t,
        }
    }

    /// Row with the state *before* time `t`.
    pub fn row_before(self, t: usize) -> usize {
        match self {
            Direction::Forward => t,
            Direction::Reverse => t + 1,
        }
    }

    /// Row with the initial state of a run over `steps`.
    pub fn first_row(self, steps: usize) -> usize {
        match self {
            Direction::Forward => 0,
            Direction::Reverse => steps,
        }
    }

    /// Row with the final state.
    pub fn last_row(self, steps: usize) -> usize {
        steps - self.first_row(steps)
    }

    /// The time of the `n`-th step worked on.
    pub fn time(self, n: usize, steps: usize) -> usize {
        match self {
            Direction::Forward => n,
            Direction::Reverse => steps - 1 - n,
        }
    }
}

/// Where the parts of one LSTM layer and direction lie, for traces and tests.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Path of the layer, such as `lstm`.
    pub name: String,
    /// Layer number from 0.
    pub layer: usize,
    /// Direction.
    pub direction: Direction,
    /// Input `[T, B, I]`.
    pub x: Tensor,
    /// Activated gates `[T, B, 4H]`, i, f, g, o.
    pub gates: Tensor,
    /// `h [T+1, B, P]`, P = H without a projection.
    pub h: Tensor,
    /// `c [T+1, B, H]`.
    pub c: Tensor,
    /// `weight_ih [4H, I]`.
    pub weight_ih: Tensor,
    /// `weight_hh [4H, P]`.
    pub weight_hh: Tensor,
    /// Gradients of `gates` before activation, `h` and `c`, where a backward pass was recorded.
    pub gradients: Option<[Tensor; 3]>,
}

/// The recorded program. Made by a [`Recorder`](crate::Recorder), run by a [`Workspace`](crate::Workspace).
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub(crate) id: PlanId,
    pub(crate) slots: Vec<Slot>,
    pub(crate) steps: Vec<Step>,
    pub(crate) cells: Vec<Cell>,
    pub(crate) block_len: usize,
    pub(crate) trains: bool,
    /// [`Parameters::layout`](crate::Parameters) of the block it was recorded over.
    pub(crate) layout: u64,
    /// Values that inputs have in a new workspace.
    pub(crate) initial: Vec<(Tensor, Vec<f64>)>,
}

impl Plan {
    /// All slots, indexed by [`SlotId`].
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// All steps in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The steps of a phase; phases follow each other.
    pub fn phase(&self, phase: Phase) -> Range<usize> {
        let start = self.steps.iter().position(|s| s.phase == phase).unwrap_or(self.steps.len());
        start..start + self.steps.iter().filter(|s| s.phase == phase).count()
    }

    /// All LSTM layers and directions.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// A slot.
    pub fn slot(&self, id: SlotId) -> &Slot {
        &self.slots[id.0]
    }

    /// The whole of a slot, by name.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let found = self.slots.iter().position(|s| s.name == name);
        let index = found.ok_or_else(|| Error::Name {
            doing: "looking up a slot of the plan",
            name: name.to_string(),
            problem: "is not known",
        })?;
        Ok(self.whole(SlotId(index)))
    }

    /// The whole of a slot.
    pub fn whole(&self, id: SlotId) -> Tensor {
        Tensor { plan: self.id, slot: id, offset: 0, shape: self.slot(id).shape.clone() }
    }

    /// Error: a tensor of another plan.
    pub(crate) fn check(&self, doing: &str, tensor: &Tensor) -> Result<()> {
        match tensor.plan == self.id && tensor.slot.0 < self.slots.len() {
            true => Ok(()),
            false => Err(Error::config(doing, "a tensor of this plan", "a tensor of another one")),
        }
    }

    /// Bytes of all slots and blocks in f32: linear in the number of steps.
    pub fn bytes(&self) -> u64 {
        let own = self.slots.iter().filter(|s| s.storage == Storage::Own).map(Slot::bytes).sum::<u64>();
        own + self.block_len as u64 * 4 * if self.trains { 2 } else { 1 }
    }

    /// Floating point operations of one run.
    pub fn flops(&self) -> f64 {
        self.steps.iter().map(|s| s.operation.flops()).sum()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan: {} slots, {} steps, {} bytes", self.slots.len(), self.steps.len(), self.bytes())?;
        for slot in &self.slots {
            let place = match slot.storage {
                Storage::Own => String::new(),
                Storage::Parameters(at) => format!(" at parameters[{at}]"),
                Storage::Gradients(at) => format!(" at gradients[{at}]"),
            };
            let kind = format!("{:?}", slot.kind);
            let kind = kind.split(' ').next().unwrap_or_default();
            writeln!(f, "  {:<17} {:<34} {:?} {} bytes{place}", kind, slot.name, slot.shape, slot.bytes())?;
        }
        for (index, step) in self.steps.iter().enumerate() {
            write!(f, "{index:>3} {:<8} {}", format!("{:?}", step.phase).to_lowercase(), step.operation.name())?;
            for (binding, id) in step.operation.bindings().iter().zip(&step.operands) {
                let arrow = if binding.access == Access::Write { "->" } else { "=" };
                if let Some(id) = id {
                    write!(f, " {}{arrow}{}", binding.name, self.slot(*id).name)?;
                }
            }
            for (name, value) in step.operation.fields().iter().filter(|(_, v)| *v != 0.0) {
                write!(f, " {name}:{value}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_of_rows() {
        let t = Tensor { plan: PlanId(1), slot: SlotId(0), offset: 0, shape: vec![5, 2, 3] };
        let rows = t.narrow(1, 4).unwrap();
        assert_eq!((rows.offset, rows.shape()), (6, &[4, 2, 3][..]));
        assert_eq!(t.row(4).unwrap(), Tensor { offset: 24, shape: vec![2, 3], ..t.clone() });
        assert!(t.narrow(3, 3).is_err() && t.narrow(0, 0).is_err() && t.reshape(&[29]).is_err());
    }

    #[test]
    fn rows_of_states() {
        for direction in [Direction::Forward, Direction::Reverse] {
            assert_eq!(direction.row_before(direction.time(0, 7)), direction.first_row(7));
            assert_eq!(direction.row_after(direction.time(6, 7)), direction.last_row(7));
            for n in 1..7 {
                assert_eq!(direction.row_before(direction.time(n, 7)), direction.row_after(direction.time(n - 1, 7)));
            }
        }
    }
}
