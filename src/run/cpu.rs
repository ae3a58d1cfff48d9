//! The CPU executor: runs the same plan in f32 or f64, with no driver present.

use super::Counters;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Access, Binding, Operand, Operation, Scratch};
use crate::plan::{Plan, Slot, Step, Storage};
use crate::tensor::{Dtype, PlanId, Tensor};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What a packed copy is of: kernel, what else it depends on, and where the operands lie in the block.
type Key = (&'static str, Vec<u32>, Vec<(usize, usize)>);

/// A packed copy, and the version of the parameters that it is of.
type Packed<T> = (u64, Arc<Vec<T>>);

/// The block of a store. No lock is held while a kernel runs on several threads: one of those could be given a task
/// that waits for the same lock.
#[derive(Debug)]
pub(super) struct Shared<T> {
    /// The values, and the number of times that they were written. A run reads a snapshot.
    parameters: Mutex<(Arc<Vec<T>>, u64)>,
    /// Taken out for a run that trains.
    gradients: Mutex<Gradients<T>>,
    packed: Mutex<HashMap<Key, Packed<T>>>,
    len: usize,
}

#[derive(Debug, Default)]
struct Gradients<T> {
    values: Vec<T>,
    /// The plan that wrote them: what another leaves alone would be stale.
    owner: PlanId,
}

impl<T: Float> Shared<T> {
    pub fn new(len: usize) -> Result<Self> {
        check_memory((len * size_of::<T>()) as u64, "the parameters")?;
        let parameters = Mutex::new((Arc::new(vec![T::ZERO; len]), 1));
        Ok(Shared { parameters, gradients: Mutex::default(), packed: Mutex::default(), len })
    }

    pub fn bytes(&self) -> u64 {
        let packed = lock(&self.packed).values().map(|(_, values)| values.capacity()).sum::<usize>();
        ((self.len + lock(&self.gradients).values.len() + packed) * size_of::<T>()) as u64
    }

    pub fn write<S: Float>(&self, at: usize, values: &[S]) {
        let mut parameters = lock(&self.parameters);
        parameters.1 += 1;
        let to = &mut Arc::make_mut(&mut parameters.0)[at..at + values.len()];
        to.iter_mut().zip(values).for_each(|(to, value)| *to = T::of(value.to_f64()));
    }

    pub fn read(&self, at: usize, into: &mut [f64]) {
        let (values, _) = self.snapshot();
        into.iter_mut().zip(&values[at..]).for_each(|(to, value)| *to = value.to_f64());
    }

    fn snapshot(&self) -> (Arc<Vec<T>>, u64) {
        lock(&self.parameters).clone()
    }

    /// A packed copy, and whether it is of this version of the parameters; else memory for one.
    fn packed(&self, key: &Key, version: u64) -> (Arc<Vec<T>>, bool) {
        let mut packed = lock(&self.packed);
        match packed.get(key) {
            Some((of, values)) if *of == version => (values.clone(), true),
            _ => (packed.remove(key).map(|(_, values)| values).unwrap_or_default(), false),
        }
    }

    /// The gradients for a run of a plan, and what to leave behind for another one.
    fn take_gradients(&self, plan: PlanId) -> Vec<T> {
        let mut shared = lock(&self.gradients);
        let mut values = std::mem::take(&mut shared.values);
        if std::mem::replace(&mut shared.owner, plan) != plan && !values.is_empty() {
            values.fill(T::ZERO);
        }
        values.resize(self.len, T::ZERO);
        values
    }
}

/// The elements of a slot that lies in no block.
enum Buffer<T> {
    Floats(Vec<T>),
    Words(Vec<u32>),
}

impl<T> Default for Buffer<T> {
    fn default() -> Self {
        Buffer::Floats(Vec::new())
    }
}

/// An operation in T.
type Execute<T> = fn(&(dyn Operation + 'static), Vec<Operand<'_, T>>, &mut Scratch<T>, bool);

/// The memory of a plan, and scratch that kernels keep between runs.
pub(super) struct Memory<T> {
    plan: Arc<Plan>,
    shared: Arc<Shared<T>>,
    /// Indexed by slot; empty for slots that live in a block.
    own: Vec<Buffer<T>>,
    scratch: Scratch<T>,
    /// For each step: whether it runs its twin; what its packed copy in the store is called, if it keeps one.
    twins: Vec<bool>,
    execute: Execute<T>,
    keys: Vec<Option<Key>>,
    counters: Counters,
    /// Bytes of slots; the scratch is added when asked.
    bytes: u64,
}

/// An error, where allocating would end the process: asks for all of it at once, and gives it back untouched.
fn check_memory(bytes: u64, what: &str) -> Result<()> {
    let room = usize::try_from(bytes).ok().and_then(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).ok());
    room.ok_or_else(|| Error::OutOfMemory { doing: format!("allocating {bytes} bytes for {what}") })
}

/// What the copy that a step keeps is called, where all it packs are parameters.
fn key(plan: &Plan, step: &Step) -> Option<Key> {
    let place = |at: usize| {
        let view = step.operands[at].as_ref()?;
        match plan.slot(view.slot).storage {
            Storage::Parameters(start) => Some(Some((start + view.offset, view.len()))),
            _ => Some(None),
        }
    };
    let places: Option<Vec<_>> = step.operation.packs().into_iter().filter_map(place).collect();
    places.filter(|places| !places.is_empty()).map(|places| (step.operation.name(), step.operation.packing(), places))
}

impl<T: Float> Memory<T> {
    pub fn new(plan: &Arc<Plan>, shared: Arc<Shared<T>>, twins: Vec<bool>, execute: Execute<T>) -> Result<Self> {
        let parameter = |view: &Tensor| matches!(plan.slot(view.slot).storage, Storage::Parameters(_));
        let writes_parameters = plan.steps().iter().flat_map(|step| step.written()).any(parameter);
        let keys: Vec<_> =
            plan.steps().iter().map(|step| if writes_parameters { None } else { key(plan, step) }).collect();
        // what is packed is about as large as the operands
        let kept: usize = keys.iter().flatten().flat_map(|(.., places)| places).map(|(_, len)| len).sum();
        check_memory((plan.bytes() / 4 + kept as u64) * size_of::<T>() as u64, "a plan")?;
        let buffer = |slot: &Slot| match (slot.storage, slot.dtype) {
            (Storage::Own, Dtype::F32) => Buffer::Floats(vec![T::ZERO; slot.len()]),
            (Storage::Own, Dtype::U32) => Buffer::Words(vec![0; slot.len()]),
            _ => Buffer::default(),
        };
        let own: Vec<_> = plan.slots().iter().map(buffer).collect();
        let bytes = |buffer: &Buffer<T>| match buffer {
            Buffer::Floats(floats) => size_of_val(&floats[..]) as u64,
            Buffer::Words(words) => size_of_val(&words[..]) as u64,
        };
        let (scratch, bytes, counters) = (Scratch::default(), own.iter().map(bytes).sum(), Counters::default());
        let plan = plan.clone();
        Ok(Memory { plan, shared, own, scratch, twins, execute, keys, counters, bytes })
    }

    pub fn counters(&self) -> Counters {
        let scratch = self.scratch.memory.capacity() + self.scratch.packed.capacity();
        Counters { bytes_allocated: self.bytes + (scratch * size_of::<T>()) as u64, ..self.counters }
    }

    pub fn read(&self, from: &Tensor) -> Vec<f64> {
        let mut values = vec![0.0; from.len()];
        let fill = |values: &mut [f64], from: &[T]| values.iter_mut().zip(from).for_each(|(to, v)| *to = v.to_f64());
        match (self.plan.slot(from.slot).storage, &self.own[from.slot.0]) {
            (Storage::Own, Buffer::Floats(floats)) => fill(&mut values, &floats[from.offset..]),
            (Storage::Own, Buffer::Words(_)) => {}
            (Storage::Parameters(at), _) => self.shared.read(at + from.offset, &mut values),
            (Storage::Gradients(at), _) => {
                let gradients = lock(&self.shared.gradients);
                fill(&mut values, gradients.values.get(at + from.offset..).unwrap_or_default());
            }
        }
        values
    }

    pub fn read_words(&self, from: &Tensor) -> &[u32] {
        match &self.own[from.slot.0] {
            Buffer::Words(words) => &words[from.offset..][..from.len()],
            Buffer::Floats(_) => &[],
        }
    }

    pub fn write<S: Float>(&mut self, to: &Tensor, values: &[S]) {
        let fill = |to: &mut [T]| to.iter_mut().zip(values).for_each(|(to, value)| *to = T::of(value.to_f64()));
        match (self.plan.slot(to.slot).storage, &mut self.own[to.slot.0]) {
            (Storage::Own, Buffer::Floats(floats)) => fill(&mut floats[to.offset..]),
            (Storage::Own, Buffer::Words(_)) => {}
            (Storage::Parameters(at), _) => self.shared.write(at + to.offset, values),
            (Storage::Gradients(at), _) => {
                let mut gradients = self.shared.take_gradients(self.plan.id);
                fill(&mut gradients[at + to.offset..]);
                lock(&self.shared.gradients).values = gradients;
            }
        }
    }

    pub fn write_words(&mut self, to: &Tensor, from: &[u32]) {
        if let Buffer::Words(words) = &mut self.own[to.slot.0] {
            words[to.offset..][..from.len()].copy_from_slice(from);
        }
    }

    /// Runs one step of the plan.
    pub fn run(&mut self, index: usize) {
        let (plan, shared) = (self.plan.clone(), self.shared.clone());
        let step = &plan.steps()[index];
        let storage = |view: &Tensor| plan.slot(view.slot).storage;
        let is_gradient = |view: &Tensor| matches!(storage(view), Storage::Gradients(_));
        let touches_gradients = step.operands.iter().flatten().any(is_gradient);
        let mut gradients = if touches_gradients { shared.take_gradients(plan.id) } else { Vec::new() };
        // an optimizer's pass runs on one thread: here the lock is held
        let writes = step.written().any(|view| matches!(storage(view), Storage::Parameters(_)));
        let mut guard = writes.then(|| lock(&shared.parameters));
        let (snapshot, version) = if writes { (Arc::default(), 0) } else { shared.snapshot() };
        // A written buffer is bound once (the recorder checks it), so it can be taken out for the step.
        let take = |view: &Tensor| match (storage(view), &mut guard) {
            (Storage::Parameters(_), Some(parameters)) => {
                parameters.1 += 1;
                Buffer::Floats(std::mem::take(Arc::make_mut(&mut parameters.0)))
            }
            (Storage::Gradients(_), _) => Buffer::Floats(std::mem::take(&mut gradients)),
            _ => std::mem::take(&mut self.own[view.slot.0]),
        };
        let mut taken: Vec<Buffer<T>> = step.written().map(take).collect();
        let mut scratch = std::mem::take(&mut self.scratch);
        let kept = self.keys[index].as_ref().map(|key| shared.packed(key, version));
        scratch.is_packed = kept.as_ref().is_some_and(|(_, is_packed)| *is_packed);
        let free = kept.map(|(values, _)| std::mem::replace(&mut scratch.packed, values));
        let mut written = taken.iter_mut();
        let operand = |(binding, view): (&Binding, &Option<Tensor>)| {
            let Some(view) = view else {
                return match (binding.access, binding.dtype) {
                    (Access::Write, Dtype::F32) => Operand::Write(&mut []),
                    (Access::Write, Dtype::U32) => Operand::WriteWords(&mut []),
                    (Access::Read, Dtype::F32) => Operand::Read(&[]),
                    (Access::Read, Dtype::U32) => Operand::ReadWords(&[]),
                };
            };
            let start = match storage(view) {
                Storage::Own => view.offset,
                Storage::Parameters(at) | Storage::Gradients(at) => at + view.offset,
            };
            let range = start..start + view.len();
            if binding.access == Access::Write {
                return match written.next() {
                    Some(Buffer::Floats(floats)) => Operand::Write(&mut floats[range]),
                    Some(Buffer::Words(words)) => Operand::WriteWords(&mut words[range]),
                    None => unreachable!("one was taken for each"),
                };
            }
            match (storage(view), &self.own[view.slot.0]) {
                (Storage::Own, Buffer::Floats(floats)) => Operand::Read(&floats[range]),
                (Storage::Own, Buffer::Words(words)) => Operand::ReadWords(&words[range]),
                (Storage::Parameters(_), _) => Operand::Read(&snapshot[range]),
                (Storage::Gradients(_), _) => Operand::Read(&gradients[range]),
            }
        };
        let operands = step.operation.bindings().iter().zip(&step.operands).map(operand).collect();
        (self.execute)(&*step.operation, operands, &mut scratch, self.twins[index]);
        if let (Some(free), Some(key)) = (free, &self.keys[index]) {
            let values = std::mem::replace(&mut scratch.packed, free);
            if !scratch.is_packed {
                lock(&shared.packed).insert(key.clone(), (version, values));
            }
        }
        self.scratch = scratch;
        for (view, buffer) in step.written().zip(taken) {
            match (storage(view), buffer, &mut guard) {
                (Storage::Own, buffer, _) => self.own[view.slot.0] = buffer,
                (Storage::Parameters(_), Buffer::Floats(all), Some(parameters)) => {
                    *Arc::make_mut(&mut parameters.0) = all;
                }
                (Storage::Gradients(_), Buffer::Floats(all), _) => gradients = all,
                _ => {}
            }
        }
        if touches_gradients {
            lock(&shared.gradients).values = gradients;
        }
        self.counters.dispatches += 1;
    }
}
