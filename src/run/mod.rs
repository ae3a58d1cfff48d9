//! Running a plan: a [`Workspace`] is the plan's memory on one device, and its executor.

mod cpu;
#[cfg(feature = "gpu")]
mod gpu;
pub mod lockstep;

use crate::device::{Device, Executor, Precision};
use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernels::softmax_cross_entropy::IGNORE;
use crate::parameters::{Parameters, check_finite};
use crate::plan::{Kind, Plan, Storage, Tensor};
use ndarray::{ArrayD, ArrayView, Dimension, IxDyn};
use std::ops::Range;
use std::sync::Arc;

/// What an executor did, since its workspace was made.
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
pub trait Observer {
    /// Called after step `index` of the plan; the workspace can be read.
    fn after_step(&mut self, workspace: &mut Workspace, index: usize) -> impl Future<Output = Result<()>>;
}

enum Memory {
    F32(cpu::Memory<f32>),
    F64(cpu::Memory<f64>),
    #[cfg(feature = "gpu")]
    Gpu(Box<gpu::Memory>),
}

/// A plan's memory on one device, allocated once, and the executor that runs the plan on it.
///
/// Every method that may wait for a GPU has an `_async` form; the plain forms block, and do not exist in a browser.
pub struct Workspace {
    plan: Arc<Plan>,
    memory: Memory,
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workspace").field("bytes", &self.plan.bytes()).finish_non_exhaustive()
    }
}

impl Workspace {
    /// Allocates a plan's memory on a device and uploads the parameters.
    ///
    /// Errors: a plan recorded over other parameters, more memory than the device offers (said before
    /// anything is allocated), a kernel that the driver refuses.
    pub async fn new_async(device: &Device, plan: impl Into<Arc<Plan>>, parameters: &Parameters) -> Result<Workspace> {
        Workspace::build(device, plan.into(), parameters, false).await
    }

    /// As [`Workspace::new_async`], with guard words before and behind every slot of its own; see [`Workspace::check_guards_async`].
    pub async fn guarded_async(
        device: &Device,
        plan: impl Into<Arc<Plan>>,
        parameters: &Parameters,
    ) -> Result<Workspace> {
        Workspace::build(device, plan.into(), parameters, true).await
    }

    async fn build(device: &Device, plan: Arc<Plan>, parameters: &Parameters, guarded: bool) -> Result<Workspace> {
        check_layout(&plan, parameters)?;
        let memory = match &device.executor {
            Executor::Cpu(Precision::F32) => Memory::F32(cpu::Memory::new(&plan, false)?),
            Executor::Cpu(precision) => Memory::F64(cpu::Memory::new(&plan, *precision == Precision::Reference)?),
            #[cfg(feature = "gpu")]
            Executor::Gpu(gpu, class) => {
                Memory::Gpu(Box::new(gpu::Memory::new(gpu.clone(), *class, &plan, guarded).await?))
            }
        };
        // slices end where slots end on the CPU: there is nothing to guard
        #[cfg(not(feature = "gpu"))]
        let _ = guarded;
        let mut workspace = Workspace { plan, memory };
        workspace.write_parameters(parameters)?;
        let plan = workspace.plan.clone();
        for (tensor, values) in &plan.initial {
            workspace.write(tensor, values)?;
        }
        Ok(workspace)
    }

    /// The plan it runs.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        match &self.memory {
            Memory::F32(m) => m.counters(),
            Memory::F64(m) => m.counters(),
            #[cfg(feature = "gpu")]
            Memory::Gpu(m) => m.counters(),
        }
    }

    /// Writes floats, row-major. Errors: a wrong length, a slot of tokens, a number that is not finite.
    pub fn write<T: Float>(&mut self, to: &Tensor, values: &[T]) -> Result<()> {
        self.plan.check("writing to a workspace", to)?;
        let slot = self.plan.slot(to.slot);
        if matches!(slot.kind, Kind::Tokens { .. }) || values.len() != to.len() {
            let expected = match slot.kind {
                Kind::Tokens { .. } => "token ids".to_string(),
                _ => format!("{} values for shape {:?}", to.len(), to.shape()),
            };
            return Err(Error::Value { slot: slot.name.clone(), expected, found: format!("{} floats", values.len()) });
        }
        // in the precision it will have: 1e300 is infinite in f32
        let stored = |v: &T| if matches!(self.memory, Memory::F64(_)) { v.to_f64() } else { v.to_f64() as f32 as f64 };
        check_finite(&slot.name, values.iter().map(stored))?;
        self.store(to, values)
    }

    /// Writes an array of any strides. Errors as [`Workspace::write`], and for a shape other than the tensor's.
    pub fn write_array<T: Float, D: Dimension>(&mut self, to: &Tensor, values: ArrayView<'_, T, D>) -> Result<()> {
        self.plan.check("writing to a workspace", to)?;
        if values.shape() != to.shape() {
            let doing = format!("writing `{}`", self.plan.slot(to.slot).name);
            return Err(Error::shape(doing, format!("{:?}", to.shape()), values.shape()));
        }
        match values.as_slice() {
            Some(slice) => self.write(to, slice),
            None => self.write(to, &values.iter().copied().collect::<Vec<_>>()),
        }
    }

    /// Writes token ids. Errors: a wrong length, an id outside the vocabulary, a slot of floats.
    pub fn write_tokens(&mut self, to: &Tensor, ids: &[u32]) -> Result<()> {
        self.plan.check("writing to a workspace", to)?;
        let slot = self.plan.slot(to.slot);
        let Kind::Tokens { vocab_size, ignorable } = slot.kind else {
            let (expected, found) = ("floats".to_string(), "token ids".to_string());
            return Err(Error::Value { slot: slot.name.clone(), expected, found });
        };
        if ids.len() != to.len() {
            let expected = format!("{} token ids for shape {:?}", to.len(), to.shape());
            return Err(Error::Value { slot: slot.name.clone(), expected, found: format!("{}", ids.len()) });
        }
        let bad = |id: u32| id as usize >= vocab_size && !(ignorable && id == IGNORE);
        if let Some((index, found)) = ids.iter().copied().enumerate().find(|(_, id)| bad(*id)) {
            return Err(Error::Token { slot: slot.name.clone(), index, found, vocab_size });
        }
        match &mut self.memory {
            Memory::F32(m) => m.write_tokens(to, ids),
            Memory::F64(m) => m.write_tokens(to, ids),
            #[cfg(feature = "gpu")]
            Memory::Gpu(m) => m.write(&self.plan, to, bytemuck::cast_slice(ids))?,
        }
        Ok(())
    }

    /// Replaces the values of all parameters.
    pub fn write_parameters(&mut self, parameters: &Parameters) -> Result<()> {
        check_layout(&self.plan, parameters)?;
        let wide = matches!(self.memory, Memory::F64(_));
        let stored = |v: &f64| if wide { *v } else { *v as f32 as f64 };
        check_finite("the block of all parameters", parameters.block().iter().map(stored))?;
        match &mut self.memory {
            Memory::F32(m) => m.write_parameters(parameters.block()),
            Memory::F64(m) => m.write_parameters(parameters.block()),
            #[cfg(feature = "gpu")]
            Memory::Gpu(m) => m.write_parameters(parameters.block())?,
        }
        Ok(())
    }

    fn store<T: Float>(&mut self, to: &Tensor, values: &[T]) -> Result<()> {
        match &mut self.memory {
            Memory::F32(m) => m.write(&self.plan, to, values),
            Memory::F64(m) => m.write(&self.plan, to, values),
            #[cfg(feature = "gpu")]
            Memory::Gpu(m) => {
                let values: Vec<f32> = values.iter().map(|v| v.to_f64() as f32).collect();
                m.write(&self.plan, to, bytemuck::cast_slice(&values))?
            }
        }
        Ok(())
    }

    /// Fills every slot that a step of the plan writes with NaN: what a step forgets to write then shows.
    pub fn poison(&mut self) -> Result<()> {
        let plan = self.plan.clone();
        for step in plan.steps() {
            for id in step.written() {
                let slot = plan.slot(id);
                // the block's padding is part of the norm and stays zero; its parameters have slots of their own
                let block = slot.storage == Storage::Gradients(0) && slot.name == "gradients";
                if matches!(slot.kind, Kind::Activation | Kind::Gradient | Kind::ParameterGradient) && !block {
                    let tensor = plan.whole(id);
                    self.store(&tensor, &vec![f32::NAN; tensor.len()])?;
                }
            }
        }
        Ok(())
    }

    /// Runs the whole plan. On a GPU it returns once the work is submitted.
    pub async fn run_async(&mut self) -> Result<()> {
        self.run_steps_async(0..self.plan.steps.len()).await
    }

    /// Runs some steps of the plan.
    pub async fn run_steps_async(&mut self, steps: Range<usize>) -> Result<()> {
        if steps.start > steps.end || steps.end > self.plan.steps.len() {
            let wanted = format!("steps within 0..{}", self.plan.steps.len());
            return Err(Error::config("running a plan", wanted, format!("{steps:?}")));
        }
        match &mut self.memory {
            Memory::F32(m) => m.run(&self.plan, steps),
            Memory::F64(m) => m.run(&self.plan, steps),
            #[cfg(feature = "gpu")]
            Memory::Gpu(m) => m.run(&self.plan, steps).await?,
        }
        Ok(())
    }

    /// Runs the plan step by step and shows each to an observer. Slower: every step is a submit.
    pub async fn run_observed_async(&mut self, observer: &mut impl Observer) -> Result<()> {
        for index in 0..self.plan.steps.len() {
            self.run_steps_async(index..index + 1).await?;
            observer.after_step(self, index).await?;
        }
        Ok(())
    }

    /// Reads a tensor back, row-major.
    pub async fn read_async<T: Float>(&mut self, from: &Tensor) -> Result<Vec<T>> {
        self.plan.check("reading from a workspace", from)?;
        let slot = self.plan.slot(from.slot);
        if matches!(slot.kind, Kind::Tokens { .. }) {
            return Err(Error::config(format!("reading `{}`", slot.name), "a slot of floats", "token ids"));
        }
        fn convert<A: Float, T: Float>(values: &[A]) -> Vec<T> {
            values.iter().map(|v| T::of(v.to_f64())).collect()
        }
        match &mut self.memory {
            Memory::F32(m) => Ok(convert(m.read(&self.plan, from))),
            Memory::F64(m) => Ok(convert(m.read(&self.plan, from))),
            #[cfg(feature = "gpu")]
            Memory::Gpu(m) => {
                let bytes = m.read(&self.plan, from).await?;
                Ok(convert(&bytemuck::pod_collect_to_vec::<u8, f32>(&bytes)))
            }
        }
    }

    /// [`Workspace::read_async`] as an array of the tensor's shape.
    pub async fn read_array_async<T: Float>(&mut self, from: &Tensor) -> Result<ArrayD<T>> {
        let values = self.read_async(from).await?;
        ArrayD::from_shape_vec(IxDyn(from.shape()), values)
            .map_err(|_| Error::shape("reading an array", format!("{} elements", from.len()), from.shape()))
    }

    /// Reads a tensor of one element, such as a loss. Error: [`Error::NonFinite`] if it is not a finite number.
    pub async fn scalar_async(&mut self, from: &Tensor) -> Result<f64> {
        let values = self.read_async::<f64>(from).await?;
        let [value] = values[..] else {
            let doing = format!("reading `{}` as a scalar", self.plan.slot(from.slot).name);
            return Err(Error::shape(doing, "one element", from.shape()));
        };
        check_finite(&self.plan.slot(from.slot).name, [value].into_iter())?;
        Ok(value)
    }

    /// Reads all parameters back. `into` must be the block the plan was recorded over; it stays as it is where
    /// a value is not finite.
    pub async fn read_parameters_async(&mut self, into: &mut Parameters) -> Result<()> {
        check_layout(&self.plan, into)?;
        let mut block = vec![0.0; into.block().len()];
        match &mut self.memory {
            Memory::F32(m) => m.read_parameters(&mut block),
            Memory::F64(m) => m.read_parameters(&mut block),
            #[cfg(feature = "gpu")]
            Memory::Gpu(m) => m.read_parameters(&mut block).await?,
        }
        check_finite("the block of all parameters", block.iter().copied())?;
        into.block_mut().copy_from_slice(&block);
        Ok(())
    }

    /// Waits until everything submitted is done.
    pub async fn finish_async(&mut self) -> Result<()> {
        match &mut self.memory {
            Memory::F32(_) | Memory::F64(_) => Ok(()),
            #[cfg(feature = "gpu")]
            Memory::Gpu(m) => m.finish().await,
        }
    }

    /// Checks the guard words of [`Workspace::guarded_async`]. On the CPU a write outside a slot cannot happen.
    pub async fn check_guards_async(&mut self) -> Result<()> {
        match &mut self.memory {
            Memory::F32(_) | Memory::F64(_) => Ok(()),
            #[cfg(feature = "gpu")]
            Memory::Gpu(m) => m.check_guards(&self.plan).await,
        }
    }

    /// Cuts work into submits of about this many floating point operations, so that no watchdog kills one; a
    /// dispatch counts as 5e6 at least.
    /// Software adapters have no watchdog and start without a limit.
    pub fn set_submit_flops(&mut self, flops: f64) -> Result<()> {
        if flops.is_nan() || flops <= 0.0 {
            return Err(Error::config("operations in a submit", "more than zero", flops));
        }
        #[cfg(feature = "gpu")]
        if let Memory::Gpu(m) = &mut self.memory {
            m.set_submit_flops(flops);
        }
        Ok(())
    }
}

fn check_layout(plan: &Plan, parameters: &Parameters) -> Result<()> {
    match plan.layout == parameters.layout() {
        true => Ok(()),
        false => Err(Error::config("parameters of a workspace", "those the plan was recorded over", "others")),
    }
}

/// Blocking forms.
#[cfg(not(target_arch = "wasm32"))]
impl Workspace {
    /// Blocking [`Workspace::new_async`].
    pub fn new(device: &Device, plan: impl Into<Arc<Plan>>, parameters: &Parameters) -> Result<Workspace> {
        pollster::block_on(Workspace::new_async(device, plan, parameters))
    }

    /// Blocking [`Workspace::guarded_async`].
    pub fn guarded(device: &Device, plan: impl Into<Arc<Plan>>, parameters: &Parameters) -> Result<Workspace> {
        pollster::block_on(Workspace::guarded_async(device, plan, parameters))
    }

    /// Blocking [`Workspace::run_async`]: blocks until the work is submitted, not until it is done.
    pub fn run(&mut self) -> Result<()> {
        pollster::block_on(self.run_async())
    }

    /// Blocking [`Workspace::run_steps_async`].
    pub fn run_steps(&mut self, steps: Range<usize>) -> Result<()> {
        pollster::block_on(self.run_steps_async(steps))
    }

    /// Blocking [`Workspace::run_observed_async`].
    pub fn run_observed(&mut self, observer: &mut impl Observer) -> Result<()> {
        pollster::block_on(self.run_observed_async(observer))
    }

    /// Blocking [`Workspace::read_async`].
    pub fn read<T: Float>(&mut self, from: &Tensor) -> Result<Vec<T>> {
        pollster::block_on(self.read_async(from))
    }

    /// Blocking [`Workspace::read_array_async`].
    pub fn read_array<T: Float>(&mut self, from: &Tensor) -> Result<ArrayD<T>> {
        pollster::block_on(self.read_array_async(from))
    }

    /// Blocking [`Workspace::scalar_async`].
    pub fn scalar(&mut self, from: &Tensor) -> Result<f64> {
        pollster::block_on(self.scalar_async(from))
    }

    /// Blocking [`Workspace::read_parameters_async`].
    pub fn read_parameters(&mut self, into: &mut Parameters) -> Result<()> {
        pollster::block_on(self.read_parameters_async(into))
    }

    /// Blocking [`Workspace::finish_async`].
    pub fn finish(&mut self) -> Result<()> {
        pollster::block_on(self.finish_async())
    }

    /// Blocking [`Workspace::check_guards_async`].
    pub fn check_guards(&mut self) -> Result<()> {
        pollster::block_on(self.check_guards_async())
    }
}
