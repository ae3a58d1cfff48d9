//! Running a plan: a [`Workspace`] is the plan's memory on one device, and its executor.

/// The same for every kind of `Memory` or [`Shared`](store::Shared).
macro_rules! each {
    ($of:expr, $kind:ident $name:ident => $work:expr) => {
        each!($of, $kind cpu $name => $work, gpu $name => $work)
    };
    ($of:expr, $kind:ident cpu $name:ident => $work:expr, gpu $gpu:ident => $other:expr) => {
        match $of {
            $kind::F32($name) => $work,
            $kind::F64($name) => $work,
            #[cfg(feature = "gpu")]
            $kind::Gpu($gpu) => $other,
        }
    };
}

mod cpu;
#[cfg(feature = "gpu")]
mod gpu;
pub mod lockstep;
mod store;

pub use store::Store;

use crate::error::{Error, Result, ensure};
use crate::float::Float;
use crate::kernel::Operation;
use crate::kernels::softmax_cross_entropy::IGNORE;
use crate::parameters::check_finite;
use crate::plan::{Kind, Plan, Storage};
use crate::tensor::{Dtype, Tensor};
use ndarray::{ArrayD, ArrayView, Dimension, IxDyn};
use std::ops::Range;
use std::sync::Arc;
use store::Shared;

/// What an executor did, since its workspace was made.
///
/// ```
/// # use everloop::{Device, Parameters, Recorder, Store, Workspace};
/// # let parameters = Parameters::new();
/// # let mut rec = Recorder::new(&parameters);
/// # let x = rec.state("x", &[3])?;
/// # rec.fill(&x, 1.0)?;
/// # let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
/// let before = workspace.counters();
/// workspace.run()?;
/// let step = workspace.counters() - before;
/// assert_eq!((step.dispatches, step.read_backs, step.bytes_allocated), (1, 0, 0));
/// # Ok::<(), everloop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Queue submits; a training step is one.
    pub submits: u64,
    /// Dispatches inside them (on the CPU: kernels run).
    pub dispatches: u64,
    /// Times the host waited for data from the device.
    pub read_backs: u64,
    /// Bytes of buffers created.
    pub bytes_allocated: u64,
}

impl std::ops::Sub for Counters {
    type Output = Counters;
    fn sub(self, before: Counters) -> Counters {
        Counters {
            submits: self.submits - before.submits,
            dispatches: self.dispatches - before.dispatches,
            read_backs: self.read_backs - before.read_backs,
            bytes_allocated: self.bytes_allocated - before.bytes_allocated,
        }
    }
}

/// Sees each step of [`Workspace::run_observed`].
///
/// ```
/// # use everloop::{Device, Observer, Parameters, Recorder, Result, Store, Workspace};
/// struct Count(usize);
/// impl Observer for Count {
///     async fn after_step(&mut self, workspace: &mut Workspace, index: usize) -> Result<()> {
///         println!("{index}: {}", workspace.plan().steps()[index].operation.name());
///         self.0 += 1;
///         Ok(())
///     }
/// }
/// # let parameters = Parameters::new();
/// # let mut rec = Recorder::new(&parameters);
/// # let x = rec.state("x", &[3])?;
/// # rec.fill(&x, 1.0)?;
/// # let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
/// let mut count = Count(0);
/// workspace.run_observed(&mut count)?;
/// assert_eq!(count.0, 1);
/// # Ok::<(), everloop::Error>(())
/// ```
pub trait Observer {
    /// Called after step `index` of the plan; the workspace can be read. An error ends the run.
    fn after_step(&mut self, workspace: &mut Workspace, index: usize) -> impl Future<Output = Result<()>>;
}

enum Memory {
    F32(cpu::Memory<f32>),
    F64(cpu::Memory<f64>),
    #[cfg(feature = "gpu")]
    Gpu(Box<gpu::Memory>),
}

/// A plan's memory on one device, allocated once, and the executor that runs the plan on it. The parameters lie in the
/// [`Store`], which other workspaces may share.
///
/// Every method that may wait for a GPU has an `_async` form; the plain forms block, and do not exist in a browser.
///
/// ```
/// use everloop::{Device, Parameters, Recorder, Result, Rng, Store, Workspace, layers::LstmConfig};
/// # fn main() -> Result<()> {
/// let mut parameters = Parameters::new();
/// let lstm = LstmConfig::new(2, 4).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
/// let mut rec = Recorder::new(&parameters);
/// let x = rec.input("x", &[3, 1, 2])?;
/// let h = lstm.record(&mut rec, &x, None)?.output;
/// let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
/// workspace.write(&x, &[0.5f32; 6])?;
/// workspace.run()?;
/// assert_eq!(workspace.read::<f32>(&h)?.len(), 3 * 4);
/// # Ok(()) }
/// ```
pub struct Workspace {
    plan: Arc<Plan>,
    store: Store,
    memory: Memory,
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workspace").field("bytes", &self.plan.bytes()).finish_non_exhaustive()
    }
}

impl Workspace {
    /// Allocates a plan's memory on the device of a store.
    ///
    /// Errors: a plan recorded over other parameters, more memory than the device offers (said before
    /// anything is allocated), a kernel that the driver refuses, a variant asked for that fits nowhere.
    pub async fn new_async(store: &Store, plan: impl Into<Arc<Plan>>) -> Result<Workspace> {
        Workspace::build(store, plan.into(), false).await
    }

    /// As [`Workspace::new_async`], with guard words before and behind every slot of its own; see [`Workspace::check_guards_async`].
    #[doc(hidden)]
    pub async fn guarded_async(store: &Store, plan: impl Into<Arc<Plan>>) -> Result<Workspace> {
        Workspace::build(store, plan.into(), true).await
    }

    async fn build(store: &Store, plan: Arc<Plan>, guarded: bool) -> Result<Workspace> {
        store.check_plan(&plan)?;
        let variants: Vec<&str> = store.device.choose(&plan)?.into_iter().map(|(variant, _)| variant).collect();
        let twins = || variants.iter().map(|variant| *variant == "twin").collect();
        let memory = match &store.shared {
            Shared::F32(of) => Memory::F32(cpu::Memory::new(&plan, of.clone(), twins(), <dyn Operation>::run_f32)?),
            Shared::F64(of) => Memory::F64(cpu::Memory::new(&plan, of.clone(), twins(), <dyn Operation>::run_f64)?),
            #[cfg(feature = "gpu")]
            Shared::Gpu(shared) => {
                Memory::Gpu(Box::new(gpu::Memory::new(&plan, shared.clone(), &variants, guarded).await?))
            }
        };
        // slices end where slots end on the CPU: there is nothing to guard
        #[cfg(not(feature = "gpu"))]
        let _ = guarded;
        let mut workspace = Workspace { plan: plan.clone(), store: store.clone(), memory };
        for (tensor, values) in &plan.initial {
            workspace.write(tensor, values)?;
        }
        Ok(workspace)
    }

    /// The store of its parameters.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The plan it runs.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        each!(&self.memory, Memory m => m.counters())
    }

    /// Writes floats, row-major. Errors: a tensor of another plan, a wrong length, a slot that holds no floats, a number
    /// that is not finite; nothing was written then.
    pub fn write<T: Float>(&mut self, to: &Tensor, values: &[T]) -> Result<()> {
        self.check_write(to, Dtype::F32, values.len())?;
        // in the precision it will have: 1e300 is infinite in f32
        let wide = matches!(self.memory, Memory::F64(_));
        let stored = |v: &T| if wide { v.to_f64() } else { v.to_f64() as f32 as f64 };
        check_finite(&self.plan.slot(to.slot).name, values.iter().map(stored))?;
        self.put(to, values)
    }

    /// Writes an array of any strides. Errors as [`Workspace::write`], and for a shape other than the tensor's.
    pub fn write_array<T: Float, D: Dimension>(&mut self, to: &Tensor, values: ArrayView<'_, T, D>) -> Result<()> {
        self.plan.check("writing to a workspace", to)?;
        let doing = || format!("writing `{}`", self.plan.slot(to.slot).name);
        let fits = values.shape() == to.shape();
        ensure!(fits, Error::shape(doing(), format!("{:?}", to.shape()), values.shape()));
        match values.as_slice() {
            Some(slice) => self.write(to, slice),
            None => self.write(to, &values.iter().copied().collect::<Vec<_>>()),
        }
    }

    /// Writes token ids or targets. Errors: a wrong length, an id outside the vocabulary, a slot of something else;
    /// nothing was written then.
    pub fn write_tokens(&mut self, to: &Tensor, ids: &[u32]) -> Result<()> {
        self.check_write(to, Dtype::U32, ids.len())?;
        let slot = self.plan.slot(to.slot);
        let Kind::Tokens { vocab_size, ignorable } = slot.kind else { return Err(self.not_a("token ids", to)) };
        let bad = |id: u32| id as usize >= vocab_size && !(ignorable && id == IGNORE);
        if let Some((index, found)) = ids.iter().copied().enumerate().find(|(_, id)| bad(*id)) {
            return Err(Error::Token { slot: slot.name.clone(), index, found, vocab_size });
        }
        self.put_words(to, ids)
    }

    /// Writes the number of steps of each batch row. Errors: a wrong number of them, one beyond T, a slot of something
    /// else; nothing was written then.
    pub fn write_lengths(&mut self, to: &Tensor, lengths: &[u32]) -> Result<()> {
        self.check_write(to, Dtype::U32, lengths.len())?;
        let slot = self.plan.slot(to.slot);
        let Kind::Lengths { steps } = slot.kind else { return Err(self.not_a("lengths", to)) };
        if let Some((row, length)) = lengths.iter().enumerate().find(|(_, length)| **length as usize > steps) {
            let expected = format!("lengths of 0 to {steps} steps");
            return Err(Error::value(&slot.name, expected, format!("{length} for row {row}")));
        }
        self.put_words(to, lengths)
    }

    /// Writes a count. Errors: a slot of something else, a tensor of another plan.
    pub fn write_count(&mut self, to: &Tensor, count: u32) -> Result<()> {
        self.check_write(to, Dtype::U32, 1)?;
        match self.plan.slot(to.slot).kind {
            Kind::State => self.put_words(to, &[count]),
            _ => Err(self.not_a("a count", to)),
        }
    }

    fn check_write(&self, to: &Tensor, dtype: Dtype, len: usize) -> Result<()> {
        self.plan.check("writing to a workspace", to)?;
        let slot = self.plan.slot(to.slot);
        ensure!(slot.dtype == dtype, self.not_a(if dtype == Dtype::F32 { "floats" } else { "whole numbers" }, to));
        let expected = || format!("{} values for shape {:?}", to.len(), to.shape());
        ensure!(len == to.len(), Error::value(&slot.name, expected(), len));
        Ok(())
    }

    /// The error of writing something to a slot of something else.
    fn not_a(&self, found: &str, to: &Tensor) -> Error {
        let slot = self.plan.slot(to.slot);
        let expected = match (slot.kind, slot.dtype) {
            (Kind::State, Dtype::U32) => "a count".into(),
            (kind, Dtype::U32) => kind.to_string(),
            (_, Dtype::F32) => "floats".into(),
        };
        Error::value(&slot.name, expected, found)
    }

    fn put<T: Float>(&mut self, to: &Tensor, values: &[T]) -> Result<()> {
        each!(&mut self.memory, Memory cpu m => m.write(to, values), gpu m => match std::any::TypeId::of::<T>() == std::any::TypeId::of::<f32>() {
            true => m.write(to, bytemuck::cast_slice(values))?,
            false => {
                let values: Vec<f32> = values.iter().map(|v| v.to_f64() as f32).collect();
                m.write(to, bytemuck::cast_slice(&values))?
            }
        });
        Ok(())
    }

    fn put_words(&mut self, to: &Tensor, words: &[u32]) -> Result<()> {
        each!(&mut self.memory, Memory cpu m => m.write_words(to, words), gpu m => m.write(to, bytemuck::cast_slice(words))?);
        Ok(())
    }

    /// Fills every slot that a step of the plan writes with NaN: what a step forgets to write then shows.
    #[doc(hidden)]
    pub fn poison(&mut self) -> Result<()> {
        let plan = self.plan.clone();
        for id in plan.steps().iter().flat_map(|step| step.written()).map(|view| view.slot) {
            let slot = plan.slot(id);
            // the block's padding is part of the norm and stays zero; its parameters have slots of their own
            let block = slot.storage == Storage::Gradients(0) && slot.name == "gradients";
            if matches!(slot.kind, Kind::Activation | Kind::Gradient | Kind::ParameterGradient) && !block {
                let tensor = plan.whole(id);
                self.put(&tensor, &vec![f32::NAN; tensor.len()])?;
            }
        }
        Ok(())
    }

    /// Runs the whole plan. On a GPU it returns once the work is submitted.
    ///
    /// Errors: those of the device, lost or silent; [`Error::DeviceLost`] and [`Error::Timeout`] say so.
    pub async fn run_async(&mut self) -> Result<()> {
        self.run_steps_async(0..self.plan.steps.len()).await
    }

    /// Runs some steps of the plan. Errors: steps that the plan does not have, and those of [`Workspace::run_async`].
    pub async fn run_steps_async(&mut self, steps: Range<usize>) -> Result<()> {
        let count = self.plan.steps.len();
        let refused = || Error::config("running a plan", format!("steps within 0..{count}"), format!("{steps:?}"));
        ensure!(steps.start <= steps.end && steps.end <= count, refused());
        each!(&mut self.memory, Memory cpu m => steps.for_each(|index| m.run(index)), gpu m => m.run(steps).await?);
        Ok(())
    }

    /// Runs the plan step by step and shows each to an observer. Slower: every step is a submit.
    /// Errors: those of [`Workspace::run_async`] and of the observer.
    pub async fn run_observed_async(&mut self, observer: &mut impl Observer) -> Result<()> {
        for index in 0..self.plan.steps.len() {
            self.run_steps_async(index..index + 1).await?;
            observer.after_step(self, index).await?;
        }
        Ok(())
    }

    /// Reads a tensor back, row-major. Errors: a tensor of another plan, one that holds no floats, those of the device.
    pub async fn read_async<T: Float>(&mut self, from: &Tensor) -> Result<Vec<T>> {
        self.check_read(from, Dtype::F32)?;
        let convert = |values: Vec<f64>| values.into_iter().map(T::of).collect();
        Ok(each!(&mut self.memory, Memory cpu m => convert(m.read(from)), gpu m => {
            let bytes = m.read(from).await?;
            bytes.chunks_exact(4).map(|b| T::of(f32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f64)).collect()
        }))
    }

    /// Reads token ids, lengths or a count back. Errors: a tensor of another plan, one that holds floats, those of the
    /// device.
    pub async fn read_words_async(&mut self, from: &Tensor) -> Result<Vec<u32>> {
        self.check_read(from, Dtype::U32)?;
        Ok(each!(&mut self.memory, Memory cpu m => m.read_words(from).to_vec(), gpu m => {
            bytemuck::pod_collect_to_vec(&m.read(from).await?)
        }))
    }

    fn check_read(&self, from: &Tensor, dtype: Dtype) -> Result<()> {
        self.plan.check("reading from a workspace", from)?;
        let slot = self.plan.slot(from.slot);
        let (wanted, found) = match dtype {
            Dtype::F32 => ("a slot of floats", "whole numbers, which `read_words` reads"),
            Dtype::U32 => ("a slot of whole numbers", "floats, which `read` reads"),
        };
        ensure!(slot.dtype == dtype, Error::config(format!("reading `{}`", slot.name), wanted, found));
        Ok(())
    }

    /// [`Workspace::read_async`] as an array of the tensor's shape. Errors as there.
    pub async fn read_array_async<T: Float>(&mut self, from: &Tensor) -> Result<ArrayD<T>> {
        let values = self.read_async(from).await?;
        ArrayD::from_shape_vec(IxDyn(from.shape()), values)
            .map_err(|_| Error::shape("reading an array", format!("{} elements", from.len()), from.shape()))
    }

    /// Reads a tensor of one element, such as a loss. Error: [`Error::NonFinite`] if it is not a finite number.
    pub async fn scalar_async(&mut self, from: &Tensor) -> Result<f64> {
        let values = self.read_async::<f64>(from).await?;
        let name = &self.plan.slot(from.slot).name;
        let wrong = || Error::shape(format!("reading `{name}` as a scalar"), "one element", from.shape());
        ensure!(values.len() == 1, wrong());
        check_finite(name, values.iter().copied())?;
        Ok(values[0])
    }

    /// Waits until everything submitted is done. Errors: those of the device.
    pub async fn finish_async(&mut self) -> Result<()> {
        each!(&mut self.memory, Memory cpu _m => Ok(()), gpu m => m.finish().await)
    }

    /// Checks the guard words of [`Workspace::guarded_async`]. On the CPU a write outside a slot cannot happen.
    #[doc(hidden)]
    pub async fn check_guards_async(&mut self) -> Result<()> {
        each!(&mut self.memory, Memory cpu _m => Ok(()), gpu m => m.check_guards().await)
    }

    #[doc(hidden)]
    /// Cuts work into submits of about this many floating point operations, so that no watchdog kills one; a
    /// dispatch counts as 5e6 at least.
    /// Software adapters have no watchdog and start without a limit.
    pub fn set_submit_flops(&mut self, flops: f64) -> Result<()> {
        let some = flops > 0.0;
        ensure!(some, Error::config("operations in a submit", "more than zero", flops));
        #[cfg(feature = "gpu")]
        if let Memory::Gpu(m) = &mut self.memory {
            m.set_submit_flops(flops);
        }
        Ok(())
    }
}

blocking! { Workspace {
    /// Blocking [`Workspace::new_async`]. Errors as there.
    fn new(store: &Store, plan: impl Into<Arc<Plan>>) -> Result<Workspace> = Workspace::new_async(store, plan);
    /// Blocking [`Workspace::guarded_async`].
    #[doc(hidden)]
    fn guarded(store: &Store, plan: impl Into<Arc<Plan>>) -> Result<Workspace> = Workspace::guarded_async(store, plan);
    /// Blocking [`Workspace::run_async`]: blocks until the work is submitted, not until it is done. Errors as there.
    fn run(&mut self) -> Result<()> = self.run_async();
    /// Blocking [`Workspace::run_steps_async`]. Errors as there.
    fn run_steps(&mut self, steps: Range<usize>) -> Result<()> = self.run_steps_async(steps);
    /// Blocking [`Workspace::run_observed_async`]. Errors as there.
    fn run_observed(&mut self, observer: &mut impl Observer) -> Result<()> = self.run_observed_async(observer);
    /// Blocking [`Workspace::read_async`]. Errors as there.
    fn read[T: Float](&mut self, from: &Tensor) -> Result<Vec<T>> = self.read_async(from);
    /// Blocking [`Workspace::read_array_async`]. Errors as there.
    fn read_array[T: Float](&mut self, from: &Tensor) -> Result<ArrayD<T>> = self.read_array_async(from);
    /// Blocking [`Workspace::read_words_async`]. Errors as there.
    fn read_words(&mut self, from: &Tensor) -> Result<Vec<u32>> = self.read_words_async(from);
    /// Blocking [`Workspace::scalar_async`]. Errors as there.
    fn scalar(&mut self, from: &Tensor) -> Result<f64> = self.scalar_async(from);
    /// Blocking [`Workspace::finish_async`]. Errors as there.
    fn finish(&mut self) -> Result<()> = self.finish_async();
    /// Blocking [`Workspace::check_guards_async`].
    #[doc(hidden)]
    fn check_guards(&mut self) -> Result<()> = self.check_guards_async();
} }
