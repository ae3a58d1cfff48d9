//! The device a plan runs on: a GPU through wgpu, or the CPU.

#[cfg(feature = "gpu")]
use crate::error::ensure;
use crate::error::{Error, Result};
use crate::kernel::{Adapter, AdapterClass, Kernel};
use crate::kernels::ALL;
use crate::plan::Plan;
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
///
/// ```
/// use everloop::Device;
/// let device = Device::auto();
/// println!("{device}"); // name, kind, backend, driver, and why it was chosen
/// assert!(!device.is_software(), "a CPU that plays a GPU is never taken unasked");
/// assert_eq!(Device::parse("cpu")?.name(), "CPU (f32)");
/// assert!(Device::parse("no such adapter").is_err());
/// # Ok::<(), everloop::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Device {
    pub(crate) executor: Executor,
    reason: String,
    /// Kernels and the variants that were asked for.
    variants: Vec<(&'static str, &'static str)>,
}

impl Device {
    /// The CPU in f32.
    pub fn cpu() -> Device {
        Device { executor: Executor::Cpu(Precision::F32), reason: "asked for".into(), variants: Vec::new() }
    }

    /// The CPU in f64.
    pub fn cpu_f64() -> Device {
        Device { executor: Executor::Cpu(Precision::F64), reason: "asked for".into(), variants: Vec::new() }
    }

    /// The CPU in f64 by the kernels' twins, plain loops written from the equations: slow, the referee of all others.
    pub fn reference() -> Device {
        Device { executor: Executor::Cpu(Precision::Reference), reason: "asked for".into(), variants: Vec::new() }
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

    /// The same device with the variants chosen as for another class of adapter, to test every one of them anywhere.
    #[doc(hidden)]
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

    /// The same device with a kernel computed in one way, wherever that fits: `lstm_forward` and `per_step`, say. On
    /// the CPU a kernel has its twin, `twin`, and some have a fast form. [`Plan::listing`] shows what runs, and why.
    ///
    /// A plan with steps of the kernel, none of which the variant fits, is an error when its workspace is made.
    ///
    /// Error: a kernel or a variant that is not known; the message names those that are.
    ///
    /// ```
    /// use everloop::Device;
    /// let slow = Device::cpu().with_variant("lstm_forward", "twin")?;
    /// let error = Device::cpu().with_variant("lstm_forward", "fast").unwrap_err();
    /// assert!(error.to_string().contains("lanes, twin"));
    /// # Ok::<(), everloop::Error>(())
    /// ```
    pub fn with_variant(self, kernel: &str, variant: &str) -> Result<Device> {
        let Some(known) = ALL.iter().find(|known| known.name == kernel) else {
            let names: Vec<_> = ALL.iter().map(|known| known.name).collect();
            return Err(Error::config("a kernel to choose a variant of", names.join(", "), kernel));
        };
        self.with_one_of(known.name, (known.variants)(), known.form, variant)
    }

    /// [`Device::with_variant`] for a kernel of another crate. Error: a variant that is not known.
    pub fn with_variant_of<K: Kernel>(self, variant: &str) -> Result<Device> {
        self.with_one_of(K::NAME, K::variants().iter().map(|variant| variant.name).collect(), K::FORM, variant)
    }

    fn with_one_of(
        mut self,
        kernel: &'static str,
        variants: Vec<&'static str>,
        form: &'static str,
        wanted: &str,
    ) -> Result<Device> {
        let mut names = if self.is_gpu() { variants } else { vec![form, "twin"] };
        names.dedup();
        let Some(variant) = names.iter().find(|name| **name == wanted) else {
            return Err(Error::config(format!("a variant of `{kernel}` on {}", self.name()), names.join(", "), wanted));
        };
        self.variants.retain(|(name, _)| *name != kernel);
        self.variants.push((kernel, variant));
        Ok(self)
    }

    /// What variants may know of it; none on the CPU.
    pub(crate) fn adapter(&self) -> Option<Adapter> {
        match &self.executor {
            Executor::Cpu(_) => None,
            #[cfg(feature = "gpu")]
            Executor::Gpu(_, class) => Some(Adapter::of(*class)),
        }
    }

    /// What runs each step of a plan, and why.
    pub(crate) fn choose(&self, plan: &Plan) -> Result<Vec<(&'static str, String)>> {
        let wanted = |kernel: &str| self.variants.iter().find(|(name, _)| *name == kernel).map(|(_, variant)| *variant);
        let Some(adapter) = self.adapter() else {
            let of = |step: &crate::plan::Step| match (wanted(step.operation.name()), &self.executor) {
                (Some(variant), _) => (variant, "asked for".into()),
                (None, Executor::Cpu(Precision::Reference)) => ("twin", "the reference".into()),
                (None, _) => (step.operation.form(), String::new()),
            };
            return Ok(plan.steps().iter().map(of).collect());
        };
        let choose = |step: &crate::plan::Step| {
            let (operation, operands) = (&step.operation, &step.operands);
            let refused = |why| Error::config(format!("a variant of `{}`", operation.name()), "one that fits", why);
            operation.choose(operands, &adapter, wanted(operation.name())).map_err(refused)
        };
        let choices = plan.steps().iter().map(choose).collect::<Result<Vec<_>>>()?;
        for (kernel, variant) in &self.variants {
            let steps = plan.steps().iter().zip(&choices).filter(|(step, _)| step.operation.name() == *kernel);
            let mut reasons = steps.map(|(_, (chosen, why))| (chosen != variant).then_some(why));
            if let Some(Some(why)) = reasons.next()
                && reasons.all(|reason| reason.is_some())
            {
                let what = format!("the variant `{variant}` of `{kernel}`");
                return Err(Error::config(what, "a step in which it fits", why));
            }
        }
        Ok(choices)
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

/// Which adapter is wanted.
enum Wanted<'a> {
    Real,
    Any,
    Named(&'a str),
}

impl Device {
    #[cfg(feature = "gpu")]
    async fn find(wanted: Wanted<'_>, reason: String) -> Result<Device> {
        let gpu = match wanted {
            Wanted::Real => {
                let real = |info: &wgpu::AdapterInfo| info.device_type != wgpu::DeviceType::Cpu;
                Gpu::best(real, "a GPU that is not a software adapter").await?
            }
            Wanted::Any => Gpu::best(|_| true, "a GPU").await?,
            Wanted::Named(text) => {
                let (lower, wanted) = (text.to_lowercase(), format!("an adapter whose name contains `{text}`"));
                Gpu::best(|info| info.name.to_lowercase().contains(&lower), &wanted).await?
            }
        };
        Ok(Device::from_gpu(gpu, reason))
    }

    #[cfg(not(feature = "gpu"))]
    async fn find(wanted: Wanted<'_>, _: String) -> Result<Device> {
        let wanted = match wanted {
            Wanted::Named(text) => format!("an adapter whose name contains `{text}`"),
            Wanted::Real | Wanted::Any => "a GPU".into(),
        };
        Err(Error::NoAdapter { wanted, found: "a build without the feature `gpu`".into() })
    }

    #[cfg(feature = "gpu")]
    fn from_gpu(gpu: Gpu, reason: String) -> Device {
        let class = gpu.class();
        Device { executor: Executor::Gpu(Arc::new(gpu), class), reason, variants: Vec::new() }
    }

    /// The adapters of this machine, best first: name, type, backend, driver. None in a build without GPU support.
    pub async fn adapters_async() -> Vec<String> {
        #[cfg(feature = "gpu")]
        {
            let text = |a: &wgpu::Adapter| {
                let info = a.get_info();
                let driver = format!("{} {}", info.driver, info.driver_info);
                format!("{}, {:?}, {:?}, driver {}", info.name, info.device_type, info.backend, driver.trim())
            };
            Gpu::adapters().await.iter().map(text).collect()
        }
        #[cfg(not(feature = "gpu"))]
        Vec::new()
    }

    /// A real GPU if there is one, else the CPU; [`Device::reason`] says which and why.
    pub async fn auto_async() -> Device {
        match Device::find(Wanted::Real, "the best GPU of this machine".into()).await {
            Ok(device) => device,
            Err(error) if cfg!(feature = "gpu") => {
                Device { reason: format!("no GPU to use: {error}"), ..Device::cpu() }
            }
            Err(_) => Device { reason: "built without the feature `gpu`".into(), ..Device::cpu() },
        }
    }

    /// The best adapter, a software one if there is no other. Errors: no adapter, or one below WebGPU's limits.
    pub async fn gpu_async() -> Result<Device> {
        Device::find(Wanted::Any, "asked for".into()).await
    }

    /// The first adapter whose name contains `text`, upper and lower case alike. Errors as [`Device::gpu_async`].
    pub async fn named_async(text: &str) -> Result<Device> {
        Device::find(Wanted::Named(text), format!("its name contains `{text}`")).await
    }

    /// What users write: `auto`, `gpu`, `cpu`, `cpu-f64`, or part of an adapter's name. Errors: an empty text, and those
    /// of [`Device::gpu_async`].
    pub async fn parse_async(text: &str) -> Result<Device> {
        match text {
            "auto" => Ok(Device::auto_async().await),
            "gpu" => Device::gpu_async().await,
            "cpu" => Ok(Device::cpu()),
            "cpu-f64" => Ok(Device::cpu_f64()),
            "" => Err(Error::config("device", "auto, gpu, cpu, cpu-f64 or part of an adapter's name", "nothing")),
            name => Device::named_async(name).await,
        }
    }
}

#[cfg(feature = "gpu")]
impl Device {
    /// A device that the application has already. everloop installs its own handlers for uncaptured
    /// errors and for the loss of the device. Error: limits below what the kernels are written to.
    pub fn from_wgpu(device: wgpu::Device, queue: wgpu::Queue) -> Result<Device> {
        Ok(Device::from_gpu(Gpu::new(device, queue)?, "given by the application".into()))
    }

    /// Sets how long to wait for the GPU before an operation ends in [`Error::Timeout`]; 120 s at first. Error: zero.
    pub fn set_deadline(&self, deadline: Duration) -> Result<()> {
        ensure!(!deadline.is_zero(), Error::config("deadline", "more than zero", "0 s"));
        if let Executor::Gpu(gpu, _) = &self.executor {
            gpu.set_deadline(deadline);
        }
        Ok(())
    }
}

blocking! { Device {
    /// Blocking [`Device::adapters_async`].
    fn adapters() -> Vec<String> = Device::adapters_async();
    /// Blocking [`Device::auto_async`].
    fn auto() -> Device = Device::auto_async();
    /// Blocking [`Device::gpu_async`]. Errors as there.
    fn gpu() -> Result<Device> = Device::gpu_async();
    /// Blocking [`Device::named_async`]. Errors as there.
    fn named(text: &str) -> Result<Device> = Device::named_async(text);
    /// Blocking [`Device::parse_async`]. Errors as there.
    fn parse(text: &str) -> Result<Device> = Device::parse_async(text);
} }

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
