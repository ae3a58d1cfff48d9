//! The GPU executor: a run of the plan is one compute pass in one command buffer, one submit.

use super::Counters;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Pipeline, Submission, UNIFORM_STRIDE};
use crate::kernel::{Access, AdapterClass, Binding, Dispatch, MAX_PARAMETER_BYTES};
use crate::plan::{Plan, SlotId, Storage, Tensor};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

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

/// The memory of a plan on a GPU.
pub(super) struct Memory {
    gpu: Arc<Gpu>,
    /// Indexed by slot; `None` for slots that live in a block.
    own: Vec<Option<wgpu::Buffer>>,
    parameters: wgpu::Buffer,
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
    pub async fn new(gpu: Arc<Gpu>, class: AdapterClass, plan: &Plan, guarded: bool) -> Result<Self> {
        let guard = if guarded { GUARD } else { 0 };
        let dispatches: Vec<_> = plan.steps().iter().map(|s| s.operation.dispatches(class)).collect();
        let repeats = plan.steps().iter().map(|s| s.operation.repeats()).max().unwrap_or(1) as u64;
        let uniform_bytes = plan.steps().len().max(1) as u64 * UNIFORM_STRIDE;
        check_limits(&gpu, plan, &dispatches, guard, uniform_bytes.max(repeats * UNIFORM_STRIDE))?;

        let mut counters = Counters::default();
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let mut create = |label: &str, size: u64, usage| {
            counters.bytes_allocated += size;
            let label = Some(label);
            gpu.device().create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false })
        };
        let uniform = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let buffers = gpu.scoped("allocating the memory of a plan", || {
            let own: Vec<_> = plan
                .slots()
                .iter()
                .map(|s| (s.storage == Storage::Own).then(|| create(&s.name, s.bytes() + 2 * guard, storage)))
                .collect();
            let block = (plan.block_len as u64 * 4).max(4);
            let parameters = create("parameters", block, storage);
            let gradients = create("gradients", if plan.trains { block } else { 4 }, storage);
            let fields = create("parameters of the steps", uniform_bytes, uniform);
            let numbers = create("numbers of the dispatches", repeats * UNIFORM_STRIDE, uniform);
            let absent = [create("absent, read", UNIFORM_STRIDE, storage), create("absent", ABSENT, storage)];
            (own, parameters, gradients, absent, fields, numbers)
        });
        let (own, parameters, gradients, absent, fields, numbers) = buffers.await?;

        let mut bytes = vec![0u8; uniform_bytes as usize];
        for (step, to) in plan.steps().iter().zip(bytes.chunks_exact_mut(UNIFORM_STRIDE as usize)) {
            let from = step.operation.bytes();
            to[..from.len()].copy_from_slice(from);
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
                size: std::num::NonZeroU64::new(MAX_PARAMETER_BYTES as u64),
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
            gpu,
            own,
            parameters,
            gradients,
            absent,
            uniforms,
            steps: Vec::with_capacity(dispatches.len()),
            staging: None,
            guard,
            submit_flops,
            in_flight: VecDeque::new(),
            counters,
        };
        for (step, dispatches) in plan.steps().iter().zip(dispatches) {
            let mut bound = Vec::with_capacity(dispatches.len());
            for dispatch in dispatches {
                let binds: Vec<_> = dispatch.binds.iter().map(|at| step.operation.bindings()[*at]).collect();
                let operands: Vec<_> = dispatch.binds.iter().map(|at| step.operands[*at]).collect();
                let pipeline = memory.gpu.pipeline(&dispatch, &binds).await?;
                let bindings = memory.bind(plan, &pipeline, &binds, &operands).await?;
                bound.push(Bound { pipeline, bindings, grid: dispatch.grid });
            }
            let repeats = step.operation.repeats();
            memory.steps.push(Step { dispatches: bound, repeats, flops: step.operation.flops() });
        }
        if guarded {
            memory.write_guards(plan);
        }
        Ok(memory)
    }

    async fn bind(
        &self,
        plan: &Plan,
        pipeline: &Pipeline,
        binds: &[Binding],
        operands: &[Option<SlotId>],
    ) -> Result<wgpu::BindGroup> {
        let entries: Vec<_> = (0u32..)
            .zip(binds.iter().zip(operands))
            .map(|(binding, (bind, id))| {
                let (buffer, offset, bytes) = match id {
                    Some(id) => {
                        let (buffer, offset) = self.place(plan, *id);
                        let guard = if plan.slot(*id).storage == Storage::Own { self.guard } else { 0 };
                        (buffer, offset, plan.slot(*id).bytes() + guard)
                    }
                    None if bind.access != Access::Write => (&self.absent[0], 0, UNIFORM_STRIDE),
                    // written bindings may not overlap
                    None => (&self.absent[1], binding as u64 * UNIFORM_STRIDE, UNIFORM_STRIDE),
                };
                let size = std::num::NonZeroU64::new(bytes);
                let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size });
                wgpu::BindGroupEntry { binding, resource }
            })
            .collect();
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &pipeline.layout, entries: &entries };
        self.gpu.scoped("binding the slots of a step", || self.gpu.device().create_bind_group(&descriptor)).await
    }

    /// The buffer a slot lies in, and where in bytes.
    fn place(&self, plan: &Plan, id: SlotId) -> (&wgpu::Buffer, u64) {
        match (plan.slot(id).storage, &self.own[id.0]) {
            (Storage::Gradients(at), _) => (&self.gradients, at as u64 * 4),
            (Storage::Parameters(at), _) => (&self.parameters, at as u64 * 4),
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

    pub fn write(&mut self, plan: &Plan, to: &Tensor, bytes: &[u8]) -> Result<()> {
        let (buffer, offset) = self.place(plan, to.slot);
        self.gpu.queue().write_buffer(buffer, offset + to.offset as u64 * 4, bytes);
        self.gpu.check("writing to the device")
    }

    pub fn write_parameters(&mut self, block: &[f64]) -> Result<()> {
        let values: Vec<f32> = block.iter().map(|v| *v as f32).collect();
        self.gpu.queue().write_buffer(&self.parameters, 0, bytemuck::cast_slice(&values));
        self.gpu.check("writing the parameters to the device")
    }

    pub async fn read_parameters(&mut self, block: &mut [f64]) -> Result<()> {
        let bytes = self.read_bytes(self.parameters.clone(), 0, block.len() as u64 * 4).await?;
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        block.iter_mut().zip(values).for_each(|(to, value)| *to = value as f64);
        Ok(())
    }

    /// Encodes and submits; cut only where one submit would run too long.
    pub async fn run(&mut self, plan: &Plan, range: Range<usize>) -> Result<()> {
        debug_assert_eq!(plan.steps().len(), self.steps.len());
        let mut at = (range.start, 0);
        while at.0 < range.end {
            let gpu = self.gpu.clone();
            let (submission, next, dispatches) =
                gpu.scoped("submitting a run", || self.submit_from(at, range.end)).await?;
            at = next;
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
    fn submit_from(&self, (mut step, mut repeat): (usize, u32), end: usize) -> (Submission, (usize, u32), u64) {
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
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

    pub async fn read(&mut self, plan: &Plan, from: &Tensor) -> Result<Vec<u8>> {
        let (buffer, offset) = self.place(plan, from.slot);
        self.read_bytes(buffer.clone(), offset + from.offset as u64 * 4, from.len() as u64 * 4).await
    }

    async fn read_bytes(&mut self, buffer: wgpu::Buffer, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        let gpu = self.gpu.clone();
        let staging = match self.staging.take().filter(|s| s.size() >= bytes) {
            Some(staging) => staging,
            None => {
                self.counters.bytes_allocated += bytes;
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                let descriptor =
                    wgpu::BufferDescriptor { label: Some("staging"), size: bytes, usage, mapped_at_creation: false };
                gpu.scoped("allocating a staging buffer", || gpu.device().create_buffer(&descriptor)).await?
            }
        };
        let copy = gpu.scoped("copying to the staging buffer", || {
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(&buffer, offset, &staging, 0, bytes);
            gpu.submit(encoder.finish())
        });
        let submission = copy.await?;
        let data = gpu.map(&staging, bytes, submission).await?;
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

    fn write_guards(&self, plan: &Plan) {
        let words = [GUARD_WORD; GUARD as usize / 4];
        for (slot, buffer) in plan.slots().iter().zip(&self.own) {
            if let Some(buffer) = buffer {
                for at in [0, GUARD + slot.bytes()] {
                    self.gpu.queue().write_buffer(buffer, at, bytemuck::cast_slice(&words));
                }
            }
        }
    }

    pub async fn check_guards(&mut self, plan: &Plan) -> Result<()> {
        if self.guard == 0 {
            return Err(Error::config("checking guards", "a guarded workspace", "one without guards"));
        }
        for (slot, buffer) in plan.slots().iter().zip(self.own.clone()) {
            if let Some(buffer) = buffer {
                for at in [0, GUARD + slot.bytes()] {
                    let bytes = self.read_bytes(buffer.clone(), at, GUARD).await?;
                    if bytes.chunks_exact(4).any(|word| word != GUARD_WORD.to_le_bytes()) {
                        return Err(Error::Guard { slot: slot.name.clone() });
                    }
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
            if bytes.iter().any(|byte| *byte != 0) {
                return Err(Error::Guard { slot: "the block of all gradients".into() });
            }
        }
        Ok(())
    }
}

/// Whatever does not fit is said before anything is allocated.
fn check_limits(gpu: &Gpu, plan: &Plan, dispatches: &[Vec<Dispatch>], guard: u64, uniforms: u64) -> Result<()> {
    let limits = gpu.limits();
    let largest = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
    let check = |what: String, needed: u64, limit: u64| match needed > limit {
        true => Err(Error::Limit { what, needed, limit }),
        false => Ok(()),
    };
    for slot in plan.slots() {
        check(format!("slot `{}` {:?}, in bytes,", slot.name, slot.shape), slot.bytes() + 2 * guard, largest)?;
    }
    check("the block of all parameters, in bytes,".into(), plan.block_len as u64 * 4, largest)?;
    check("the table of the steps, in bytes,".into(), uniforms, limits.max_buffer_size)?;
    for (step, dispatches) in plan.steps().iter().zip(dispatches) {
        let most = limits.max_compute_workgroups_per_dimension as u64;
        for size in dispatches.iter().flat_map(|dispatch| dispatch.grid) {
            check(format!("the grid of a step of `{}`", step.operation.name()), size as u64, most)?;
        }
    }
    Ok(())
}
