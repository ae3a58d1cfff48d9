//! The device a plan runs on: a GPU through wgpu, or the CPU.

#[cfg(any(feature = "gpu", not(target_arch = "wasm32")))]
use crate::error::{Error, Result};
use crate::kernel::AdapterClass;
use std::fmt;
#[cfg(feature = "gpu")]
use {crate::gpu::Gpu, std::sync::Arc, std::time::Duration};

/// The precision of the CPU executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits, as on the GPU.
    F32,
    /// 64 bits, for gradient checks.
    F64,
    /// 64 bits by the kernels' twins, plain loops written from the equations: slow, the referee of all others.
    Reference,
}

#[derive(Debug, Clone)]
pub(crate) enum Executor {
    Cpu(Precision),
    #[cfg(feature = "gpu")]
    Gpu(Arc<Gpu>, AdapterClass),
}

/// Where to run. Printing it tells adapter, driver, backend and type, and why it was chosen.
///
/// | constructor | takes |
/// |---|---|
/// | [`Device::auto`] | a real GPU if there is one, else the CPU; never a software adapter |
/// | [`Device::gpu`] | the best adapter, a software one if there is no other |
/// | [`Device::named`] | the adapter whose name contains a text |
/// | [`Device::from_wgpu`] | a device that the application has already |
/// | [`Device::cpu`], [`Device::cpu_f64`], [`Device::reference`] | the CPU |
#[derive(Debug, Clone)]
pub struct Device {
    pub(crate) executor: Executor,
    reason: String,
}

impl Device {
    /// The CPU in f32.
    pub fn cpu() -> Device {
        Device { executor: Executor::Cpu(Precision::F32), reason: "asked for".into() }
    }

    /// The CPU in f64.
    pub fn cpu_f64() -> Device {
        Device { executor: Executor::Cpu(Precision::F64), reason: "asked for".into() }
    }

    /// The twins in f64: see [`Precision::Reference`].
    pub fn reference() -> Device {
        Device { executor: Executor::Cpu(Precision::Reference), reason: "asked for".into() }
    }

    /// Whether it is a GPU, software adapters included.
    pub fn is_gpu(&self) -> bool {
        !matches!(self.executor, Executor::Cpu(_))
    }

    /// Whether it is a software adapter: a CPU that plays a GPU.
    pub fn is_software(&self) -> bool {
        match &self.executor {
            Executor::Cpu(_) => false,
            #[cfg(feature = "gpu")]
            Executor::Gpu(gpu, _) => gpu.is_software(),
        }
    }

    /// The same device with the shaders chosen as for another class of adapter, to test every one of them anywhere.
    pub fn with_shaders_for(self, class: AdapterClass) -> Device {
        match self.executor {
            #[cfg(feature = "gpu")]
            Executor::Gpu(gpu, _) => Device { executor: Executor::Gpu(gpu, class), ..self },
            Executor::Cpu(_) => {
                let _ = class;
                self
            }
        }
    }

    /// Why this device was chosen.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Adapter name, or "CPU (f32)".
    pub fn name(&self) -> String {
        match &self.executor {
            Executor::Cpu(Precision::F32) => "CPU (f32)".into(),
            Executor::Cpu(Precision::F64) => "CPU (f64)".into(),
            Executor::Cpu(Precision::Reference) => "CPU (reference)".into(),
            #[cfg(feature = "gpu")]
            Executor::Gpu(gpu, _) => gpu.info().name.clone(),
        }
    }

    /// The limits that decide what fits, in bytes or units; none for the CPU.
    pub fn limits(&self) -> Vec<(&'static str, u64)> {
        match &self.executor {
            Executor::Cpu(_) => Vec::new(),
            #[cfg(feature = "gpu")]
            Executor::Gpu(gpu, _) => {
                let limits = gpu.limits();
                vec![
                    ("largest buffer", limits.max_buffer_size),
                    ("largest storage binding", limits.max_storage_buffer_binding_size),
                    ("storage buffers in a stage", limits.max_storage_buffers_per_shader_stage as u64),
                    ("workgroup memory", limits.max_compute_workgroup_storage_size as u64),
                    ("threads in a workgroup", limits.max_compute_invocations_per_workgroup as u64),
                    ("workgroups in a dimension", limits.max_compute_workgroups_per_dimension as u64),
                ]
            }
        }
    }

    /// Driver name and version; empty for the CPU.
    pub fn driver(&self) -> String {
        match &self.executor {
            Executor::Cpu(_) => String::new(),
            #[cfg(feature = "gpu")]
            Executor::Gpu(gpu, _) => format!("{} {}", gpu.info().driver, gpu.info().driver_info).trim().to_string(),
        }
    }
}

#[cfg(feature = "gpu")]
impl Device {
    fn from_gpu(gpu: Gpu, reason: impl Into<String>) -> Device {
        let class = gpu.class();
        Device { executor: Executor::Gpu(Arc::new(gpu), class), reason: reason.into() }
    }

    /// The adapters of this machine, best first: name, type, backend, driver.
    pub async fn adapters_async() -> Vec<String> {
        let text = |a: &wgpu::Adapter| {
            let info = a.get_info();
            let driver = format!("{} {}", info.driver, info.driver_info);
            format!("{}, {:?}, {:?}, driver {}", info.name, info.device_type, info.backend, driver.trim())
        };
        Gpu::adapters().await.iter().map(text).collect()
    }

    /// A real GPU if there is one, else the CPU; [`Device::reason`] says which and why.
    pub async fn auto_async() -> Device {
        match Gpu::best(|info| info.device_type != wgpu::DeviceType::Cpu, "a GPU that is not a software adapter").await
        {
            Ok(gpu) => Device::from_gpu(gpu, "the best GPU of this machine"),
            Err(error) => Device { reason: format!("no GPU to use: {error}"), ..Device::cpu() },
        }
    }

    /// The best adapter, a software one if there is no other.
    pub async fn gpu_async() -> Result<Device> {
        Ok(Device::from_gpu(Gpu::best(|_| true, "a GPU").await?, "asked for"))
    }

    /// The first adapter whose name contains `text`, upper and lower case alike.
    pub async fn named_async(text: &str) -> Result<Device> {
        let lower = text.to_lowercase();
        let wanted = format!("an adapter whose name contains `{text}`");
        let gpu = Gpu::best(|info| info.name.to_lowercase().contains(&lower), &wanted).await?;
        Ok(Device::from_gpu(gpu, format!("its name contains `{text}`")))
    }

    /// A device that the application has already. everloop installs its own handlers for uncaptured
    /// errors and for the loss of the device.
    pub fn from_wgpu(device: wgpu::Device, queue: wgpu::Queue) -> Result<Device> {
        Ok(Device::from_gpu(Gpu::new(device, queue)?, "given by the application"))
    }

    /// Sets how long to wait for the GPU before an operation ends in [`Error::Timeout`]; 120 s at first.
    pub fn set_deadline(&self, deadline: Duration) -> Result<()> {
        if deadline.is_zero() {
            return Err(Error::config("deadline", "more than zero", "0 s"));
        }
        if let Executor::Gpu(gpu, _) = &self.executor {
            gpu.set_deadline(deadline);
        }
        Ok(())
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Device {
    /// Blocking [`Device::adapters_async`].
    #[cfg(feature = "gpu")]
    pub fn adapters() -> Vec<String> {
        pollster::block_on(Device::adapters_async())
    }

    /// None: this build has no GPU support.
    #[cfg(not(feature = "gpu"))]
    pub fn adapters() -> Vec<String> {
        Vec::new()
    }

    /// Blocking [`Device::auto_async`].
    #[cfg(feature = "gpu")]
    pub fn auto() -> Device {
        pollster::block_on(Device::auto_async())
    }

    /// The CPU: this build has no GPU support.
    #[cfg(not(feature = "gpu"))]
    pub fn auto() -> Device {
        Device { reason: "built without the feature `gpu`".into(), ..Device::cpu() }
    }

    /// Blocking [`Device::gpu_async`].
    #[cfg(feature = "gpu")]
    pub fn gpu() -> Result<Device> {
        pollster::block_on(Device::gpu_async())
    }

    /// An error: this build has no GPU support.
    #[cfg(not(feature = "gpu"))]
    pub fn gpu() -> Result<Device> {
        let found = "a build without the feature `gpu`".into();
        Err(Error::NoAdapter { wanted: "a GPU".into(), found })
    }

    /// Blocking [`Device::named_async`].
    #[cfg(feature = "gpu")]
    pub fn named(text: &str) -> Result<Device> {
        pollster::block_on(Device::named_async(text))
    }

    /// An error: this build has no GPU support.
    #[cfg(not(feature = "gpu"))]
    pub fn named(text: &str) -> Result<Device> {
        let found = "a build without the feature `gpu`".into();
        Err(Error::NoAdapter { wanted: format!("an adapter whose name contains `{text}`"), found })
    }

    /// What users write: `auto`, `gpu`, `cpu`, `cpu-f64`, or part of an adapter's name.
    pub fn parse(text: &str) -> Result<Device> {
        match text {
            "auto" => Ok(Device::auto()),
            "gpu" => Device::gpu(),
            "cpu" => Ok(Device::cpu()),
            "cpu-f64" => Ok(Device::cpu_f64()),
            "" => Err(Error::config("device", "auto, gpu, cpu, cpu-f64 or part of an adapter's name", "nothing")),
            name => Device::named(name),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name())?;
        #[cfg(feature = "gpu")]
        if let Executor::Gpu(gpu, _) = &self.executor {
            let kind =
                if gpu.is_software() { "software adapter".into() } else { format!("{:?}", gpu.info().device_type) };
            write!(f, ", {kind}, {:?}, driver {}", gpu.info().backend, self.driver())?;
        }
        write!(f, " ({})", self.reason)
    }
}
