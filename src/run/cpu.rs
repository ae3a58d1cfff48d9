//! The CPU executor: runs the same plan in f32 or f64, with no driver present.

use super::Counters;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Access, Operand, Operation, Scratch};
use crate::plan::{Kind, Plan, Slot, SlotId, Step, Storage, Tensor};
use std::ops::Range;

/// The memory of a plan, and scratch that kernels keep between runs.
pub(super) struct Memory<T> {
    /// Indexed by slot; empty for slots that live in a block.
    own: Vec<Vec<T>>,
    tokens: Vec<Vec<u32>>,
    parameters: Vec<T>,
    gradients: Vec<T>,
    scratch: Scratch<T>,
    /// For each step: the version of the parameters its packed operands are of, 0 for none, and these.
    packed: Vec<(u64, Vec<T>)>,
    /// Whether a step may keep what it packed until the parameters are written.
    keeps: Vec<bool>,
    version: u64,
    counters: Counters,
    /// Bytes of slots and blocks; the scratch is added when asked.
    bytes: u64,
    /// Run the twins instead of the fast forms.
    twins: bool,
}

/// An error, where allocating would end the process: asks for all of it at once, and gives it back untouched.
fn check_memory(bytes: u64) -> Result<()> {
    let room = usize::try_from(bytes).ok().and_then(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).ok());
    room.ok_or_else(|| Error::OutOfMemory { doing: format!("allocating {bytes} bytes for a plan") })
}

impl<T: Float> Memory<T> {
    pub fn new(plan: &Plan, twins: bool) -> Result<Self> {
        let of = |wanted: bool, len: usize| if wanted { len } else { 0 };
        let is_tokens = |s: &Slot| matches!(s.kind, Kind::Tokens { .. });
        let parameter = |id: &SlotId| matches!(plan.slot(*id).storage, Storage::Parameters(_));
        let trains = plan.steps().iter().flat_map(|step| step.written()).any(|id| parameter(&id));
        let packs = |step: &Step| -> Vec<SlotId> {
            step.operation.packs().iter().filter_map(|at| step.operands[*at]).collect()
        };
        let keeps: Vec<bool> = plan.steps().iter().map(|step| !trains && packs(step).iter().all(parameter)).collect();
        // what is packed is about as large as the operands
        let kept = plan.steps().iter().zip(&keeps).filter(|(_, keeps)| **keeps).flat_map(|(step, _)| packs(step));
        let kept: u64 = kept.map(|id| plan.slot(id).bytes()).sum();
        check_memory((plan.bytes() + kept) / 4 * size_of::<T>() as u64)?;
        let own: Vec<Vec<T>> = plan
            .slots()
            .iter()
            .map(|s| vec![T::ZERO; of(s.storage == Storage::Own && !is_tokens(s), s.len())])
            .collect();
        let tokens: Vec<Vec<u32>> = plan.slots().iter().map(|s| vec![0; of(is_tokens(s), s.len())]).collect();
        let parameters = vec![T::ZERO; plan.block_len];
        let gradients = vec![T::ZERO; of(plan.trains, plan.block_len)];
        let floats = own.iter().map(Vec::len).sum::<usize>() + parameters.len() + gradients.len();
        let bytes = floats * size_of::<T>() + tokens.iter().map(Vec::len).sum::<usize>() * 4;
        let counters = Counters::default();
        let packed = plan.steps().iter().map(|_| (0, Vec::new())).collect();
        let (scratch, bytes) = (Scratch::default(), bytes as u64);
        Ok(Memory { own, tokens, parameters, gradients, scratch, packed, keeps, version: 1, counters, bytes, twins })
    }

    pub fn counters(&self) -> Counters {
        let packed = self.packed.iter().map(|(_, values)| values.capacity()).sum::<usize>();
        let scratch = self.scratch.memory.capacity() + self.scratch.packed.capacity() + packed;
        Counters { bytes_allocated: self.bytes + (scratch * size_of::<T>()) as u64, ..self.counters }
    }

    pub fn read(&self, plan: &Plan, from: &Tensor) -> &[T] {
        let (buffer, start) = match plan.slot(from.slot).storage {
            Storage::Own => (&self.own[from.slot.0], 0),
            Storage::Parameters(at) => (&self.parameters, at),
            Storage::Gradients(at) => (&self.gradients, at),
        };
        &buffer[start + from.offset..][..from.len()]
    }

    pub fn write<S: Float>(&mut self, plan: &Plan, to: &Tensor, values: &[S]) {
        let (buffer, start) = match plan.slot(to.slot).storage {
            Storage::Own => (&mut self.own[to.slot.0], 0),
            Storage::Parameters(at) => {
                self.version += 1;
                (&mut self.parameters, at)
            }
            Storage::Gradients(at) => (&mut self.gradients, at),
        };
        let to = &mut buffer[start + to.offset..][..values.len()];
        to.iter_mut().zip(values).for_each(|(to, value)| *to = T::of(value.to_f64()));
    }

    pub fn write_tokens(&mut self, to: &Tensor, ids: &[u32]) {
        self.tokens[to.slot.0][to.offset..][..ids.len()].copy_from_slice(ids);
    }

    pub fn write_parameters(&mut self, block: &[f64]) {
        self.version += 1;
        self.parameters.iter_mut().zip(block).for_each(|(to, value)| *to = T::of(*value));
    }

    pub fn read_parameters(&self, block: &mut [f64]) {
        block.iter_mut().zip(&self.parameters).for_each(|(to, value)| *to = value.to_f64());
    }

    /// The buffer a slot lies in, and the slot's range of it.
    fn place(&mut self, plan: &Plan, id: SlotId) -> (&mut Vec<T>, Range<usize>) {
        let len = plan.slot(id).len();
        match plan.slot(id).storage {
            Storage::Own => (&mut self.own[id.0], 0..len),
            Storage::Parameters(at) => (&mut self.parameters, at..at + len),
            Storage::Gradients(at) => (&mut self.gradients, at..at + len),
        }
    }

    pub fn run(&mut self, plan: &Plan, steps: Range<usize>)
    where
        Self: Execute<T>,
    {
        for index in steps {
            let step = &plan.steps()[index];
            let bindings = step.operation.bindings();
            // A written buffer is bound once (the recorder checks it), so it can be taken out for the step.
            let mut taken: Vec<Vec<T>> = Vec::with_capacity(bindings.len());
            for (binding, id) in bindings.iter().zip(&step.operands) {
                taken.push(match binding.access {
                    Access::Write => id.map_or(Vec::new(), |id| std::mem::take(self.place(plan, id).0)),
                    _ => Vec::new(),
                });
            }
            let mut scratch = std::mem::take(&mut self.scratch);
            if self.keeps[index] {
                std::mem::swap(&mut scratch.packed, &mut self.packed[index].1);
            }
            scratch.is_packed = self.keeps[index] && self.packed[index].0 == self.version;
            let mut operands = Vec::with_capacity(bindings.len());
            for ((binding, id), buffer) in bindings.iter().zip(&step.operands).zip(&mut taken) {
                let Some(id) = id else {
                    operands.push(match binding.access {
                        Access::Write => Operand::Write(&mut []),
                        Access::Tokens => Operand::Tokens(&[]),
                        Access::Read => Operand::Read(&[]),
                    });
                    continue;
                };
                let slot = plan.slot(*id);
                let start = match slot.storage {
                    Storage::Own => 0,
                    Storage::Parameters(at) | Storage::Gradients(at) => at,
                };
                operands.push(match binding.access {
                    Access::Write => Operand::Write(&mut buffer[start..start + slot.len()]),
                    Access::Tokens => Operand::Tokens(&self.tokens[id.0]),
                    Access::Read => Operand::Read(self.read(plan, &plan.whole(*id))),
                });
            }
            Self::execute(&*step.operation, &mut operands, &mut scratch, self.twins);
            drop(operands);
            if self.keeps[index] {
                std::mem::swap(&mut scratch.packed, &mut self.packed[index].1);
                self.packed[index].0 = self.version;
            }
            self.scratch = scratch;
            for ((binding, id), buffer) in bindings.iter().zip(&step.operands).zip(taken) {
                if let (Access::Write, Some(id)) = (binding.access, id) {
                    *self.place(plan, *id).0 = buffer;
                }
            }
            self.counters.dispatches += 1;
        }
    }
}

/// Picks the form of an [`Operation`].
pub(super) trait Execute<T> {
    fn execute(operation: &dyn Operation, operands: &mut [Operand<'_, T>], scratch: &mut Scratch<T>, twins: bool);
}

impl Execute<f32> for Memory<f32> {
    fn execute(operation: &dyn Operation, operands: &mut [Operand<'_, f32>], scratch: &mut Scratch<f32>, _twins: bool) {
        operation.execute_f32(operands, scratch);
    }
}

impl Execute<f64> for Memory<f64> {
    fn execute(operation: &dyn Operation, operands: &mut [Operand<'_, f64>], scratch: &mut Scratch<f64>, twins: bool) {
        match twins {
            true => operation.twin_f64(operands),
            false => operation.execute_f64(operands, scratch),
        }
    }
}
