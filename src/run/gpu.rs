//! The GPU executor: a run of the plan is one compute pass in one command buffer, one submit.

use super::Counters;
use crate::error::{Error, Result, ensure};
use crate::gpu::{Gpu, Pipeline, Submission, UNIFORM_STRIDE};
use crate::kernel::{Access, Bind, Dispatch, MAX_WORDS};
use crate::plan::{Plan, Slot, Storage};
use crate::tensor::{PlanId, Tensor};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Bytes of guard before and behind a slot, in guarded workspaces: a storage offset that every device accepts.
const GUARD: u64 = 256;
/// The guard's word: a NaN that no computation makes.
const GUARD_WORD: u32 = 0x7fed_cba9;
/// Submits that may be under way: bounds what an unread training loop queues up.
const IN_FLIGHT: usize = 3;
/// About 100 ms on a slow GPU; watchdogs kill at 2 s.
const SUBMIT_FLOPS: f64 = 1e11;
/// Bytes of what stands for bindings to write that a step leaves out: one place for each of the eight of a shader.
const ABSENT: u64 = 8 * UNIFORM_STRIDE;
/// What a dispatch costs at least, in operations: some microseconds even where there is nothing to compute.
const DISPATCH_FLOPS: f64 = 5e6;

struct Step {
    /// The dispatches of one repeat.
    dispatches: Vec<Bound>,
    repeats: u32,
    flops: f64,
}

/// A dispatch with its pipeline and slots.
struct Bound {
    pipeline: Arc<Pipeline>,
    bindings: wgpu::BindGroup,
    grid: [u32; 3],
}

/// The block of a store on a GPU.
#[derive(Debug)]
pub(super) struct Shared {
    gpu: Arc<Gpu>,
    parameters: wgpu::Buffer,
    /// Made for the first plan that trains, with the plan that wrote them: what another leaves alone would be stale.
    gradients: Mutex<(Option<wgpu::Buffer>, PlanId)>,
    len: usize,
}

const STORAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);
const UNIFORM: wgpu::BufferUsages = wgpu::BufferUsages::UNIFORM.union(wgpu::BufferUsages::COPY_DST);
const STAGING: wgpu::BufferUsages = wgpu::BufferUsages::MAP_READ.union(wgpu::BufferUsages::COPY_DST);

fn buffer(gpu: &Gpu, label: &str, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    let label = Some(label);
    gpu.device().create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Copies some bytes of a buffer to `staging` and waits for them.
async fn read_back(gpu: &Gpu, from: &wgpu::Buffer, offset: u64, bytes: u64, staging: &wgpu::Buffer) -> Result<Vec<u8>> {
    let copy = gpu.scoped("copying to the staging buffer", || {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(from, offset, staging, 0, bytes);
        gpu.submit(encoder.finish())
    });
    let submission = copy.await?;
    gpu.map(staging, bytes, submission).await
}

impl Shared {
    pub async fn new(gpu: Arc<Gpu>, len: usize) -> Result<Self> {
        let limits = gpu.limits();
        let (needed, limit) = (len as u64 * 4, limits.max_buffer_size.min(limits.max_storage_buffer_binding_size));
        ensure!(needed <= limit, Error::Limit { what: "the block of all parameters, in bytes,".into(), needed, limit });
        let parameters = gpu.scoped("allocating the parameters", || buffer(&gpu, "parameters", needed.max(4), STORAGE));
        let parameters = parameters.await?;
        Ok(Shared { parameters, gradients: Mutex::default(), len, gpu })
    }

    pub fn bytes(&self) -> u64 {
        self.parameters.size() + lock(&self.gradients).0.as_ref().map_or(0, wgpu::Buffer::size)
    }

    pub fn write(&self, block: &[f64]) -> Result<()> {
        let values: Vec<f32> = block.iter().map(|v| *v as f32).collect();
        self.gpu.queue().write_buffer(&self.parameters, 0, bytemuck::cast_slice(&values));
        self.gpu.check("writing the parameters to the device")
    }

    pub async fn read(&self, block: &mut [f64]) -> Result<()> {
        let bytes = block.len() as u64 * 4;
        if bytes == 0 {
            return Ok(());
        }
        let staging =
            self.gpu.scoped("allocating a staging buffer", || buffer(&self.gpu, "staging", bytes, STAGING)).await?;
        let bytes = read_back(&self.gpu, &self.parameters, 0, bytes, &staging).await?;
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        block.iter_mut().zip(values).for_each(|(to, value)| *to = value as f64);
        Ok(())
    }

    /// The buffer of all gradients, where a plan trains; else what stands for it.
    async fn gradients(&self, trains: bool) -> Result<wgpu::Buffer> {
        if let Some(made) = &lock(&self.gradients).0 {
            return Ok(made.clone());
        }
        let size = if trains { (self.len as u64 * 4).max(4) } else { 4 };
        let made =
            self.gpu.scoped("allocating the gradients", || buffer(&self.gpu, "gradients", size, STORAGE)).await?;
        if trains {
            lock(&self.gradients).0 = Some(made.clone());
        }
        Ok(made)
    }

    /// Notes that a plan writes the gradients; whether another one did before.
    fn own_gradients(&self, plan: PlanId) -> bool {
        let before = std::mem::replace(&mut lock(&self.gradients).1, plan);
        before != plan && before != PlanId::default()
    }
}

/// The memory of a plan on a GPU.
pub(super) struct Memory {
    plan: Arc<Plan>,
    gpu: Arc<Gpu>,
    shared: Arc<Shared>,
    /// Indexed by slot; `None` for slots that live in a block.
    own: Vec<Option<wgpu::Buffer>>,
    gradients: wgpu::Buffer,
    /// What stands for a binding that a step leaves out: one to read, one to write.
    absent: [wgpu::Buffer; 2],
    uniforms: wgpu::BindGroup,
    steps: Vec<Step>,
    staging: Option<wgpu::Buffer>,
    guard: u64,
    submit_flops: f64,
    in_flight: VecDeque<Submission>,
    counters: Counters,
}

impl Memory {
    pub async fn new(plan: &Arc<Plan>, shared: Arc<Shared>, variants: &[&str], guarded: bool) -> Result<Self> {
        let gpu = shared.gpu.clone();
        let guard = if guarded { GUARD } else { 0 };
        let chosen = || plan.steps().iter().zip(variants);
        let dispatches: Vec<_> = chosen().map(|(s, v)| s.operation.dispatches(v)).collect();
        let scratch: Vec<_> = chosen().map(|(s, v)| s.operation.scratch(v)).collect();
        let repeats = chosen().map(|(s, v)| s.operation.repeats(v)).max().unwrap_or(1).max(1) as u64;
        let uniform_bytes = plan.steps().len().max(1) as u64 * UNIFORM_STRIDE;
        check_limits(&gpu, plan, &dispatches, &scratch, guard, uniform_bytes.max(repeats * UNIFORM_STRIDE))?;

        let mut bytes_allocated = 0;
        let mut create = |label: &str, size: u64, usage| {
            bytes_allocated += size;
            buffer(&gpu, label, size, usage)
        };
        let buffers = gpu.scoped("allocating the memory of a plan", || {
            let own: Vec<_> = plan
                .slots()
                .iter()
                .map(|s| (s.storage == Storage::Own).then(|| create(&s.name, s.bytes() + 2 * guard, STORAGE)))
                .collect();
            let fields = create("parameters of the steps", uniform_bytes, UNIFORM);
            let numbers = create("numbers of the dispatches", repeats * UNIFORM_STRIDE, UNIFORM);
            let absent = [create("absent, read", UNIFORM_STRIDE, STORAGE), create("absent", ABSENT, STORAGE)];
            let scratch: Vec<Vec<_>> = scratch
                .iter()
                .map(|all| all.iter().map(|(name, words)| create(name, (words * 4).max(4), STORAGE)).collect())
                .collect();
            (own, absent, fields, numbers, scratch)
        });
        let (own, absent, fields, numbers, scratch) = buffers.await?;
        let gradients = shared.gradients(plan.trains).await?;

        let mut bytes = vec![0u8; uniform_bytes as usize];
        for (step, to) in plan.steps().iter().zip(bytes.chunks_exact_mut(UNIFORM_STRIDE as usize)) {
            let words = step.operation.words(&step.operands);
            to[..4 * words.len()].copy_from_slice(bytemuck::cast_slice(&words));
        }
        gpu.queue().write_buffer(&fields, 0, &bytes);
        let mut bytes = vec![0u8; (repeats * UNIFORM_STRIDE) as usize];
        for (number, to) in (0u32..).zip(bytes.chunks_exact_mut(UNIFORM_STRIDE as usize)) {
            to[..4].copy_from_slice(&number.to_le_bytes());
        }
        gpu.queue().write_buffer(&numbers, 0, &bytes);
        let entry = |binding, buffer| wgpu::BindGroupEntry {
            binding,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset: 0,
                size: std::num::NonZeroU64::new(4 * MAX_WORDS as u64),
            }),
        };
        let uniforms = gpu.scoped("binding the parameters of the steps", || {
            gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("uniforms"),
                layout: gpu.uniforms(),
                entries: &[entry(0, &fields), entry(1, &numbers)],
            })
        });
        let uniforms = uniforms.await?;

        let submit_flops = if gpu.is_software() { f64::INFINITY } else { SUBMIT_FLOPS };
        let mut memory = Memory {
            plan: plan.clone(),
            gpu,
            shared,
            own,
            gradients,
            absent,
            uniforms,
            steps: Vec::with_capacity(dispatches.len()),
            staging: None,
            guard,
            submit_flops,
            in_flight: VecDeque::new(),
            counters: Counters { bytes_allocated, ..Counters::default() },
        };
        for (((step, variant), dispatches), scratch) in chosen().zip(dispatches).zip(scratch) {
            let mut bound = Vec::with_capacity(dispatches.len());
            for dispatch in dispatches {
                let writes = |bind: &Bind| match bind {
                    Bind::Operand(at) => step.operation.bindings()[*at].access == Access::Write,
                    Bind::Scratch(_) => true,
                };
                let writes: Vec<bool> = dispatch.binds.iter().map(writes).collect();
                let pipeline = memory.gpu.pipeline(&dispatch, &writes).await?;
                let bindings = memory.bind(step, &pipeline, &dispatch, &writes, &scratch).await?;
                bound.push(Bound { pipeline, bindings, grid: dispatch.grid });
            }
            let repeats = step.operation.repeats(variant);
            memory.steps.push(Step { dispatches: bound, repeats, flops: step.operation.flops() });
        }
        if guarded {
            memory.write_guards();
        }
        Ok(memory)
    }

    async fn bind(
        &self,
        step: &crate::plan::Step,
        pipeline: &Pipeline,
        dispatch: &Dispatch,
        writes: &[bool],
        scratch: &[wgpu::Buffer],
    ) -> Result<wgpu::BindGroup> {
        let place = |(binding, (bind, writes)): (u32, (&Bind, &bool))| {
            let view = match bind {
                Bind::Operand(at) => step.operands[*at].as_ref(),
                Bind::Scratch(at) => {
                    let whole = scratch[*at].as_entire_binding();
                    return wgpu::BindGroupEntry { binding, resource: whole };
                }
            };
            let (buffer, offset, bytes) = match view {
                Some(view) => {
                    let slot = self.plan.slot(view.slot);
                    let (buffer, offset) = self.place(view);
                    (buffer, offset, slot.bytes() + if slot.storage == Storage::Own { self.guard } else { 0 })
                }
                None if !writes => (&self.absent[0], 0, UNIFORM_STRIDE),
                // written bindings may not overlap
                None => (&self.absent[1], binding as u64 * UNIFORM_STRIDE, UNIFORM_STRIDE),
            };
            let size = std::num::NonZeroU64::new(bytes);
            let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size });
            wgpu::BindGroupEntry { binding, resource }
        };
        let entries: Vec<_> = (0u32..).zip(dispatch.binds.iter().zip(writes)).map(place).collect();
        let (label, layout) = (Some(dispatch.name), &pipeline.layout);
        let descriptor = wgpu::BindGroupDescriptor { label, layout, entries: &entries };
        self.gpu.scoped("binding the operands of a step", || self.gpu.device().create_bind_group(&descriptor)).await
    }

    /// The buffer a view's slot lies in, and where in bytes the slot begins.
    fn place(&self, view: &Tensor) -> (&wgpu::Buffer, u64) {
        match (self.plan.slot(view.slot).storage, &self.own[view.slot.0]) {
            (Storage::Gradients(at), _) => (&self.gradients, at as u64 * 4),
            (Storage::Parameters(at), _) => (&self.shared.parameters, at as u64 * 4),
            (Storage::Own, Some(buffer)) => (buffer, self.guard),
            (Storage::Own, None) => unreachable!("every slot of its own has a buffer"),
        }
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub fn set_submit_flops(&mut self, flops: f64) {
        self.submit_flops = flops;
    }

    pub fn write(&mut self, to: &Tensor, bytes: &[u8]) -> Result<()> {
        if matches!(self.plan.slot(to.slot).storage, Storage::Gradients(_)) {
            self.shared.own_gradients(self.plan.id);
        }
        let (buffer, offset) = self.place(to);
        self.gpu.queue().write_buffer(buffer, offset + to.offset as u64 * 4, bytes);
        self.gpu.check("writing to the device")
    }

    /// Encodes and submits; cut only where one submit would run too long.
    pub async fn run(&mut self, range: Range<usize>) -> Result<()> {
        let is_gradient = |view: &Tensor| matches!(self.plan.slot(view.slot).storage, Storage::Gradients(_));
        let trains = self.plan.steps()[range.clone()].iter().flat_map(|step| step.written()).any(is_gradient);
        let mut clears = trains && self.shared.own_gradients(self.plan.id);
        let mut at = (range.start, 0);
        while at.0 < range.end {
            let gpu = self.gpu.clone();
            let (submission, next, dispatches) =
                gpu.scoped("submitting a run", || self.submit_from(at, range.end, clears)).await?;
            (at, clears) = (next, false);
            self.counters.submits += 1;
            self.counters.dispatches += dispatches;
            self.in_flight.push_back(submission);
            if self.in_flight.len() > IN_FLIGHT
                && let Some(oldest) = self.in_flight.pop_front()
            {
                self.gpu.wait(oldest, "waiting for an earlier run").await?;
            }
        }
        Ok(())
    }

    /// One submit from dispatch `repeat` of step `step` on; where the next one starts, and how many dispatches it had.
    fn submit_from(
        &self,
        (mut step, mut repeat): (usize, u32),
        end: usize,
        clears: bool,
    ) -> (Submission, (usize, u32), u64) {
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        if clears {
            encoder.clear_buffer(&self.gradients, 0, None);
        }
        let mut dispatches = 0;
        let mut flops = 0.0;
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            let mut set = None;
            while step < end && (dispatches == 0 || flops < self.submit_flops) {
                let Step { dispatches: bound, repeats, flops: work } = &self.steps[step];
                while repeat < *repeats && (dispatches == 0 || flops < self.submit_flops) {
                    let offset = |index: u64| (index * UNIFORM_STRIDE) as u32;
                    let uniforms = [offset(step as u64), offset(repeat as u64)];
                    for (n, Bound { pipeline, bindings, grid: [x, y, z] }) in bound.iter().enumerate() {
                        if set.replace((step, n)) != Some((step, n)) {
                            pass.set_pipeline(&pipeline.pipeline);
                            pass.set_bind_group(0, bindings, &[]);
                        }
                        pass.set_bind_group(1, &self.uniforms, &uniforms);
                        pass.dispatch_workgroups(*x, *y, *z);
                        dispatches += 1;
                    }
                    flops += (work / *repeats as f64).max(DISPATCH_FLOPS * bound.len() as f64);
                    repeat += 1;
                }
                if repeat == *repeats {
                    (step, repeat) = (step + 1, 0);
                }
            }
        }
        (self.gpu.submit(encoder.finish()), (step, repeat), dispatches)
    }

    pub async fn read(&mut self, from: &Tensor) -> Result<Vec<u8>> {
        let (buffer, offset) = self.place(from);
        self.read_bytes(buffer.clone(), offset + from.offset as u64 * 4, from.len() as u64 * 4).await
    }

    async fn read_bytes(&mut self, from: wgpu::Buffer, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        let gpu = self.gpu.clone();
        let staging = match self.staging.take().filter(|s| s.size() >= bytes) {
            Some(staging) => staging,
            None => {
                self.counters.bytes_allocated += bytes;
                gpu.scoped("allocating a staging buffer", || buffer(&gpu, "staging", bytes, STAGING)).await?
            }
        };
        let data = read_back(&gpu, &from, offset, bytes, &staging).await?;
        self.counters.submits += 1;
        self.counters.read_backs += 1;
        self.in_flight.clear();
        self.staging = Some(staging);
        Ok(data)
    }

    pub async fn finish(&mut self) -> Result<()> {
        match self.in_flight.drain(..).next_back() {
            Some(last) => self.gpu.wait(last, "waiting for a run").await,
            None => self.gpu.check("waiting for a run"),
        }
    }

    fn write_guards(&self) {
        let words = [GUARD_WORD; GUARD as usize / 4];
        for (slot, buffer) in self.plan.slots().iter().zip(&self.own) {
            if let Some(buffer) = buffer {
                for at in [0, GUARD + slot.bytes()] {
                    self.gpu.queue().write_buffer(buffer, at, bytemuck::cast_slice(&words));
                }
            }
        }
    }

    pub async fn check_guards(&mut self) -> Result<()> {
        let plan = self.plan.clone();
        ensure!(self.guard != 0, Error::config("checking guards", "a guarded workspace", "one without guards"));
        for (slot, buffer) in plan.slots().iter().zip(self.own.clone()) {
            if let Some(buffer) = buffer {
                for at in [0, GUARD + slot.bytes()] {
                    let bytes = self.read_bytes(buffer.clone(), at, GUARD).await?;
                    let whole = bytes.chunks_exact(4).all(|word| word == GUARD_WORD.to_le_bytes());
                    ensure!(whole, Error::Guard { slot: slot.name.clone() });
                }
            }
        }
        // in the block of gradients, what lies between the slots is zero from the beginning
        if plan.trains {
            let mut bytes = self.read_bytes(self.gradients.clone(), 0, plan.block_len as u64 * 4).await?;
            for slot in plan.slots().iter().filter(|slot| slot.name != "gradients") {
                if let Storage::Gradients(at) = slot.storage {
                    bytes[4 * at..4 * (at + slot.len())].fill(0);
                }
            }
            let clean = bytes.iter().all(|byte| *byte == 0);
            ensure!(clean, Error::Guard { slot: "the block of all gradients".into() });
        }
        Ok(())
    }
}

/// Whatever does not fit is said before anything is allocated.
fn check_limits(
    gpu: &Gpu,
    plan: &Plan,
    dispatches: &[Vec<Dispatch>],
    scratch: &[Vec<(&'static str, u64)>],
    guard: u64,
    uniforms: u64,
) -> Result<()> {
    let limits = gpu.limits();
    let largest = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
    let check = |what: String, needed: u64, limit: u64| match needed > limit {
        true => Err(Error::Limit { what, needed, limit }),
        false => Ok(()),
    };
    let slot = |s: &Slot| check(format!("slot `{}` {:?}, in bytes,", s.name, s.shape), s.bytes() + 2 * guard, largest);
    plan.slots().iter().try_for_each(slot)?;
    for (name, words) in scratch.iter().flatten() {
        check(format!("the scratch `{name}` of a step, in bytes,"), words * 4, largest)?;
    }
    check("the table of the steps, in bytes,".into(), uniforms, limits.max_buffer_size)?;
    for (step, dispatches) in plan.steps().iter().zip(dispatches) {
        let most = limits.max_compute_workgroups_per_dimension as u64;
        for size in dispatches.iter().flat_map(|dispatch| dispatch.grid) {
            check(format!("the grid of a step of `{}`", step.operation.name()), size as u64, most)?;
        }
    }
    Ok(())
}
