//! The plan: the recorded program for one batch size and number of steps. Pure data, no device.
//!
//! A plan is a list of *slots* (named arrays) and a list of *steps* (a kernel with its operands, which are views of
//! slots). Printing a plan gives its listing; [`Plan::listing`] adds what would run on a device, and why.
//!
//! ```
//! # use everloop::{Device, Parameters, Recorder, Rng, layers::LstmConfig};
//! # fn main() -> everloop::Result<()> {
//! let mut parameters = Parameters::new();
//! let lstm = LstmConfig::new(3, 5).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
//! let mut rec = Recorder::new(&parameters);
//! let x = rec.input("x", &[4, 2, 3])?;
//! lstm.record(&mut rec, &x, None)?;
//! let plan = rec.finish();
//! let listing = plan.to_string();
//! assert!(listing.contains("lstm_forward weight_hh=lstm.weight_hh_l0 gates->lstm.0.gates"), "{listing}");
//! assert!(plan.listing(&Device::cpu())?.contains("lstm_forward (lanes)"));
//! # Ok(()) }
//! ```

use crate::error::{Error, Result, ensure};
use crate::kernel::{Access, Operation};
pub use crate::tensor::SlotId;
use crate::tensor::{Dtype, PlanId, Tensor};
pub use crate::time::Directions;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// What a slot is for.
///
/// [`Plan`] has an example.
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
    /// Steps of each batch row, written by the caller.
    Lengths {
        /// The largest: T.
        steps: usize,
    },
    /// What goes on from run to run: learning rate, counts, carried states.
    State,
    /// A parameter, or the block of all of them.
    Parameter,
    /// The gradient of a parameter, or the block of all of them.
    ParameterGradient,
    /// Computed by a forward step.
    Activation,
    /// Computed by a backward step.
    Gradient,
}

/// In a user's words.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Input => write!(f, "floats"),
            Kind::Tokens { vocab_size, ignorable: false } => write!(f, "tokens of a vocabulary of {vocab_size}"),
            Kind::Tokens { vocab_size, .. } => write!(f, "targets of a vocabulary of {vocab_size}"),
            Kind::Lengths { steps } => write!(f, "lengths of at most {steps}"),
            Kind::State => write!(f, "a state"),
            Kind::Parameter => write!(f, "a parameter"),
            Kind::ParameterGradient | Kind::Gradient => write!(f, "a gradient"),
            Kind::Activation => write!(f, "what a step computes"),
        }
    }
}

/// Where a slot's elements live.
///
/// [`Plan`] has an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// In a buffer of its own.
    Own,
    /// In the store's block of all parameters, from this float on.
    Parameters(usize),
    /// In the store's block of all parameter gradients, from this float on.
    Gradients(usize),
}

/// What the leading axes of a slot are.
///
/// [`Plan`] has an example.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Rows {
    /// Nothing that has a time.
    #[default]
    Whole,
    /// `[D, T, ..]` of a recurrent layer: entry t of a direction is time t.
    Times(Layer),
    /// `[D, T+1, ..]`: its states, see [`Direction::row_after`](crate::Direction::row_after).
    States(Layer),
}

/// A recurrent layer: what a trace says of its slots.
///
/// [`Plan`] has an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Path of its stack, such as `lstm`.
    pub name: Arc<str>,
    /// Number from 0.
    pub number: usize,
    /// Along the leading axis.
    pub directions: Directions,
}

/// A named array of a plan.
///
/// ```
/// # let parameters = everloop::Parameters::new();
/// let mut rec = everloop::Recorder::new(&parameters);
/// rec.lengths("lengths", 4, 20)?;
/// let slot = &rec.finish().slots()[0].clone();
/// assert_eq!((slot.name.as_str(), slot.len(), slot.dtype), ("lengths", 4, everloop::Dtype::U32));
/// assert_eq!(slot.kind, everloop::plan::Kind::Lengths { steps: 20 });
/// # Ok::<(), everloop::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// A path such as `lstm.0.gates`; gradients have a `d` before the last part.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// What its elements are.
    pub dtype: Dtype,
    /// What it is for.
    pub kind: Kind,
    /// Where it lives.
    pub storage: Storage,
    /// What its leading axes are.
    pub rows: Rows,
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

    /// Bytes on a GPU, where every element has four.
    pub fn bytes(&self) -> u64 {
        self.len() as u64 * 4
    }
}

/// The part of a training step a step of the plan belongs to.
///
/// [`Plan`] has an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Outputs and loss.
    #[default]
    Forward,
    /// Gradients.
    Backward,
    /// Norm, clipping, optimizer.
    Update,
}

impl Phase {
    /// "forward", "backward" or "update".
    pub fn name(self) -> &'static str {
        match self {
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::Update => "update",
        }
    }
}

/// One step of a plan: a kernel and its operands in binding order.
///
/// ```
/// # let parameters = everloop::Parameters::new();
/// let mut rec = everloop::Recorder::new(&parameters);
/// let x = rec.state("x", &[3])?;
/// rec.fill(&x, 1.0)?;
/// let plan = rec.finish();
/// let step = &plan.steps()[0];
/// assert_eq!((step.operation.name(), step.written().count()), ("fill", 1));
/// # Ok::<(), everloop::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Step {
    /// The kernel with its parameters.
    pub operation: Arc<dyn Operation>,
    /// Views in binding order; `None` where this step leaves a binding out.
    pub operands: Vec<Option<Tensor>>,
    /// The part of the training step.
    pub phase: Phase,
}

impl Step {
    /// The views this step writes.
    pub fn written(&self) -> impl Iterator<Item = &Tensor> {
        let bindings = self.operation.bindings().iter();
        bindings.zip(&self.operands).filter(|(b, _)| b.access == Access::Write).filter_map(|(_, view)| view.as_ref())
    }
}

/// The recorded program. Made by a [`Recorder`](crate::Recorder), run by a [`Workspace`](crate::Workspace).
///
/// ```
/// # use everloop::{Parameters, Recorder, layers, plan::Phase};
/// # fn main() -> everloop::Result<()> {
/// # let parameters = Parameters::new();
/// let mut rec = Recorder::new(&parameters);
/// let x = rec.input("x", &[2, 3])?;
/// layers::add(&mut rec, "twice", &x, &x)?;
/// let plan = rec.finish();
/// assert_eq!(plan.slots().len(), 2);
/// assert_eq!(plan.phase(Phase::Forward), 0..2); // a copy, and one that is added
/// assert_eq!(plan.tensor("twice")?.shape(), [2, 3]);
/// assert_eq!(plan.bytes(), 2 * 6 * 4);
/// println!("{plan}");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub(crate) id: PlanId,
    pub(crate) slots: Vec<Slot>,
    pub(crate) steps: Vec<Step>,
    pub(crate) block_len: usize,
    pub(crate) trains: bool,
    /// [`Parameters::layout`](crate::Parameters) of the block it was recorded over.
    pub(crate) layout: u64,
    /// Values that inputs and states have in a new workspace.
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

    /// A slot.
    pub fn slot(&self, id: SlotId) -> &Slot {
        &self.slots[id.0]
    }

    /// The whole of a slot, by name. Error: no slot has it.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let found = self.slots.iter().position(|s| s.name == name);
        let unknown = || Error::name("looking up a slot of the plan", name, "is not known");
        found.map(|index| self.whole(SlotId(index))).ok_or_else(unknown)
    }

    /// The whole of a slot.
    pub fn whole(&self, id: SlotId) -> Tensor {
        Tensor { plan: self.id, slot: id, offset: 0, shape: self.slot(id).shape.clone(), detached: false }
    }

    /// Error: a tensor of another plan.
    pub(crate) fn check(&self, doing: &str, tensor: &Tensor) -> Result<()> {
        let ours = tensor.plan == self.id && tensor.slot.0 < self.slots.len();
        ensure!(ours, Error::config(doing, "a tensor of this plan", "a tensor of another one"));
        Ok(())
    }

    /// Bytes of all slots and blocks in f32: linear in the number of steps.
    pub fn bytes(&self) -> u64 {
        self.own_bytes() + self.block_len as u64 * 4 * if self.trains { 2 } else { 1 }
    }

    /// Bytes of the slots that no other plan shares.
    pub(crate) fn own_bytes(&self) -> u64 {
        self.slots.iter().filter(|s| s.storage == Storage::Own).map(Slot::bytes).sum()
    }

    /// Floating point operations of one run.
    pub fn flops(&self) -> f64 {
        self.steps.iter().map(|s| s.operation.flops()).sum()
    }

    /// The listing with the variant of each step that runs on a device, and why it was chosen.
    ///
    /// Error: a variant that the device was told to use fits none of the steps it is for.
    pub fn listing(&self, device: &crate::Device) -> Result<String> {
        let choices = device.choose(self)?;
        let mut text = String::new();
        let note = |index: usize| {
            let (variant, why) = &choices[index];
            let why = if why.is_empty() { String::new() } else { format!(": {why}") };
            format!(" ({variant}{why})")
        };
        self.write(&mut text, note).map_err(|_| Error::config("listing a plan", "room for its text", "none"))?;
        Ok(text)
    }

    fn write(&self, f: &mut impl fmt::Write, note: impl Fn(usize) -> String) -> fmt::Result {
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
            write!(f, "{index:>3} {:<8} {}{}", step.phase.name(), step.operation.name(), note(index))?;
            for (binding, view) in step.operation.bindings().iter().zip(&step.operands) {
                let arrow = if binding.access == Access::Write { "->" } else { "=" };
                let Some(view) = view else { continue };
                write!(f, " {}{arrow}{}", binding.name, self.slot(view.slot).name)?;
                if view.len() < self.slot(view.slot).len() {
                    write!(f, "[{}..{}]", view.offset, view.offset + view.len())?;
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

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, |_| String::new())
    }
}
