//! The wgpu device: choosing an adapter, errors as values, pipelines, waiting with a deadline.

use crate::error::{Error, Result};
use crate::kernel::{AdapterClass, Dispatch};
use futures_intrusive::channel::shared::{OneshotReceiver, oneshot_channel};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Bytes between two uniform blocks: the offset alignment every WebGPU device accepts.
pub(crate) const UNIFORM_STRIDE: u64 = 256;

/// What went wrong outside any call: set by wgpu's handlers, read after each wait.
#[derive(Default)]
struct Faults {
    lost: Option<String>,
    error: Option<String>,
}

/// A wgpu device with everything that is shared by its workspaces.
pub(crate) struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    limits: wgpu::Limits,
    faults: Arc<Mutex<Faults>>,
    deadline: Mutex<Duration>,
    pipelines: Mutex<HashMap<Made, Arc<Pipeline>>>,
    uniforms: wgpu::BindGroupLayout,
}

/// What a pipeline is made of: the text, the bits of its constants, and which bindings are written.
type Made = (String, Vec<(&'static str, u64)>, Vec<bool>);

/// Work under way on the device.
pub(crate) struct Submission {
    index: wgpu::SubmissionIndex,
    done: OneshotReceiver<()>,
}

/// A compute pipeline with the layout of its storage bindings.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("info", &self.info).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Gpu {
    /// All adapters, best first: discrete before integrated before virtual before software.
    pub async fn adapters() -> Vec<wgpu::Adapter> {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
        // GL is left out: it lacks features and is the least tested for compute
        descriptor.backends &=
            wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12 | wgpu::Backends::BROWSER_WEBGPU;
        let instance = wgpu::Instance::new(descriptor);
        let rank = |kind| match kind {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        };
        #[cfg(not(target_arch = "wasm32"))]
        let mut adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
        #[cfg(target_arch = "wasm32")]
        let mut adapters: Vec<_> =
            instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await.into_iter().collect();
        adapters.sort_by_key(|a| rank(a.get_info().device_type));
        adapters
    }

    /// The best adapter that `accept`s.
    pub async fn best(accept: impl Fn(&wgpu::AdapterInfo) -> bool, wanted: &str) -> Result<Gpu> {
        let adapters = Gpu::adapters().await;
        let name = |info: wgpu::AdapterInfo| format!("{} ({:?})", info.name, info.device_type);
        let names: Vec<_> = adapters.iter().map(|a| name(a.get_info())).collect();
        let Some(adapter) = adapters.into_iter().find(|a| accept(&a.get_info())) else {
            let found = if names.is_empty() { "no adapter".to_string() } else { names.join(", ") };
            return Err(Error::NoAdapter { wanted: wanted.to_string(), found });
        };
        let have = adapter.limits();
        let limits = wgpu::Limits {
            // a block of all parameters may be larger than WebGPU's default of 128 MiB
            max_buffer_size: have.max_buffer_size,
            max_storage_buffer_binding_size: have.max_storage_buffer_binding_size,
            ..wgpu::Limits::default()
        };
        let mut short = None;
        limits.check_limits_with_fail_fn(&have, true, |name, needed, limit| {
            short = Some(Error::Limit { what: format!("{}: {name}", adapter.get_info().name), needed, limit });
        });
        if let Some(error) = short {
            return Err(error);
        }
        let descriptor =
            wgpu::DeviceDescriptor { label: Some("everloop"), required_limits: limits, ..Default::default() };
        let (device, queue) = adapter.request_device(&descriptor).await.map_err(|e| Error::Gpu {
            doing: format!("opening {}", adapter.get_info().name),
            message: e.to_string(),
        })?;
        Gpu::new(device, queue)
    }

    /// Takes over a device: installs the handlers, checks the limits the kernels are written to.
    pub fn new(device: wgpu::Device, queue: wgpu::Queue) -> Result<Gpu> {
        let faults = Arc::new(Mutex::new(Faults::default()));
        let slot = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&slot).error.get_or_insert(error.to_string());
        }));
        let slot = faults.clone();
        device.set_device_lost_callback(move |reason, message| {
            lock(&slot).lost.get_or_insert(format!("{message} ({reason:?})"));
        });
        let (limits, needed) = (device.limits(), wgpu::Limits::default());
        for (what, needed, limit) in [
            (
                "storage buffers in a stage",
                needed.max_storage_buffers_per_shader_stage,
                limits.max_storage_buffers_per_shader_stage,
            ),
            ("workgroup memory", needed.max_compute_workgroup_storage_size, limits.max_compute_workgroup_storage_size),
            (
                "threads in a workgroup",
                needed.max_compute_invocations_per_workgroup,
                limits.max_compute_invocations_per_workgroup,
            ),
        ] {
            if limit < needed {
                let what = format!("a kernel: {what}");
                return Err(Error::Limit { what, needed: needed as u64, limit: limit as u64 });
            }
        }
        let entry = |binding| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Uniform,
                has_dynamic_offset: true,
                min_binding_size: None,
            },
            count: None,
        };
        let uniforms = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("uniforms"),
            entries: &[entry(0), entry(1)],
        });
        let info = device.adapter_info();
        let deadline = Mutex::new(Duration::from_secs(120));
        Ok(Gpu { device, queue, info, limits, faults, deadline, pipelines: Mutex::default(), uniforms })
    }

    pub fn info(&self) -> &wgpu::AdapterInfo {
        &self.info
    }
    pub fn limits(&self) -> &wgpu::Limits {
        &self.limits
    }
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }
    /// Layout of group 1: the parameters of a step and the number of its dispatch, both at a dynamic offset.
    pub fn uniforms(&self) -> &wgpu::BindGroupLayout {
        &self.uniforms
    }
    pub fn set_deadline(&self, deadline: Duration) {
        *lock(&self.deadline) = deadline;
    }
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }
    pub fn class(&self) -> AdapterClass {
        if self.is_software() { AdapterClass::Software } else { AdapterClass::Hardware }
    }

    /// Turns what the handlers saw into an error.
    pub fn check(&self, doing: &str) -> Result<()> {
        // lets wgpu call the handlers; what the poll itself answers is said again by them
        let _ = self.device.poll(wgpu::PollType::Poll);
        let mut faults = lock(&self.faults);
        if let Some(reason) = &faults.lost {
            return Err(Error::DeviceLost { doing: doing.to_string(), reason: reason.clone() });
        }
        match faults.error.take() {
            Some(message) => Err(Error::Gpu { doing: doing.to_string(), message }),
            None => Ok(()),
        }
    }

    /// Runs `create` inside error scopes: what would be a panic is an [`Error`].
    pub async fn scoped<T>(&self, doing: &str, create: impl FnOnce() -> T) -> Result<T> {
        let scopes = [
            self.device.push_error_scope(wgpu::ErrorFilter::Internal),
            self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory),
            self.device.push_error_scope(wgpu::ErrorFilter::Validation),
        ];
        let made = create();
        // popped before anything is awaited: a scope must not be held across an await
        let errors: Vec<_> = scopes.into_iter().rev().map(|scope| scope.pop()).collect();
        let mut first = None;
        for error in errors {
            let error = error.await;
            first = first.or(error);
        }
        self.check(doing)?;
        let doing = doing.to_string();
        match first {
            None => Ok(made),
            Some(wgpu::Error::OutOfMemory { .. }) => Err(Error::OutOfMemory { doing }),
            Some(error) => Err(Error::Gpu { doing, message: error.to_string() }),
        }
    }

    /// The pipeline of a dispatch, made at first use; `writes` says which of its bindings are written.
    pub async fn pipeline(&self, dispatch: &Dispatch, writes: &[bool]) -> Result<Arc<Pipeline>> {
        let bits = dispatch.constants.iter().map(|(name, value)| (*name, value.to_bits())).collect();
        let key: Made = (dispatch.source.clone(), bits, writes.to_vec());
        if let Some(found) = lock(&self.pipelines).get(&key) {
            return Ok(found.clone());
        }
        let label = Some(dispatch.name);
        let entries: Vec<_> = (0..)
            .zip(writes)
            .map(|(binding, writes)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: !writes },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let doing = format!("building the kernel `{}`", dispatch.name);
        let made = self.scoped(&doing, || {
            let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label,
                source: wgpu::ShaderSource::Wgsl(dispatch.source.as_str().into()),
            });
            let layout =
                self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
            let whole = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label,
                bind_group_layouts: &[Some(&layout), Some(&self.uniforms)],
                immediate_size: 0,
            });
            let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label,
                layout: Some(&whole),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &dispatch.constants,
                    // every kernel writes its workgroup memory before reading it
                    zero_initialize_workgroup_memory: false,
                },
                cache: None,
            });
            Pipeline { pipeline, layout }
        });
        let made = Arc::new(made.await?);
        lock(&self.pipelines).insert(key, made.clone());
        Ok(made)
    }

    /// Submits, and leaves word for when it is done.
    pub fn submit(&self, commands: wgpu::CommandBuffer) -> Submission {
        let index = self.queue.submit([commands]);
        let (sender, done) = oneshot_channel();
        self.queue.on_submitted_work_done(move || {
            let _ = sender.send(());
        });
        Submission { index, done }
    }

    /// Waits until a submission is done: with a deadline, or in a browser, which cannot be polled, by its word.
    pub async fn wait(&self, submission: Submission, doing: &str) -> Result<()> {
        self.poll(submission.index, doing)?;
        if cfg!(target_arch = "wasm32") {
            submission.done.receive().await;
        }
        self.check(doing)
    }

    fn poll(&self, submission: wgpu::SubmissionIndex, doing: &str) -> Result<()> {
        let timeout = *lock(&self.deadline);
        let poll = wgpu::PollType::Wait { submission_index: Some(submission), timeout: Some(timeout) };
        let answer = self.device.poll(poll);
        self.check(doing)?;
        match answer {
            Ok(_) => Ok(()),
            Err(wgpu::PollError::Timeout) => {
                Err(Error::Timeout { doing: doing.to_string(), seconds: timeout.as_secs_f64() })
            }
            Err(error) => Err(Error::Gpu { doing: doing.to_string(), message: error.to_string() }),
        }
    }

    /// Waits for a buffer of which `bytes` were copied into, and hands them out.
    pub async fn map(&self, buffer: &wgpu::Buffer, bytes: u64, submission: Submission) -> Result<Vec<u8>> {
        let doing = "reading back from the device";
        let (sender, receiver) = oneshot_channel();
        buffer.map_async(wgpu::MapMode::Read, 0..bytes, move |result| {
            let _ = sender.send(result);
        });
        // the callback comes with the poll, so that the deadline of the poll is also that of the receiver
        self.poll(submission.index, doing)?;
        let lost = |message: String| Error::Gpu { doing: doing.to_string(), message };
        match receiver.receive().await {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(lost(error.to_string())),
            None => return Err(lost("the device dropped the request".into())),
        }
        let data = buffer.get_mapped_range(0..bytes).map_err(|e| lost(e.to_string()))?.to_vec();
        buffer.unmap();
        Ok(data)
    }
}
