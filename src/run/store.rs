//! What outlives a plan, on one device: the values of all parameters, their gradients, and weights packed for speed.

use super::cpu;
#[cfg(feature = "gpu")]
use super::gpu;
use crate::device::{Device, Executor, Precision};
use crate::error::{Error, Result, ensure};
use crate::parameters::{Parameters, check_finite};
use crate::plan::Plan;
use std::sync::Arc;

/// The parameters of a model on one device, shared by any number of workspaces and streams: one that trains, one that
/// evaluates, one that generates from the weights as they are now. A clone is another handle of the same store.
///
/// ```
/// use everloop::{Device, Parameters, Recorder, Result, Rng, Store, Stream, Workspace, layers::LstmConfig, loss};
/// use everloop::optimizer::SgdConfig;
/// # fn main() -> Result<()> {
/// let mut parameters = Parameters::new();
/// let lstm = LstmConfig::new(2, 4).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
/// let store = Store::new(&Device::cpu(), &parameters)?;
/// let mut rec = Recorder::new(&parameters);
/// let (x, wanted) = (rec.input("x", &[3, 1, 2])?, rec.input("wanted", &[3, 1, 4])?);
/// let h = lstm.record(&mut rec, &x, None)?.output;
/// let loss = loss::mean_squared_error(&mut rec, "loss", &h, &wanted)?;
/// rec.backward(&loss)?;
/// SgdConfig::new(0.5).record(&mut rec)?;
/// let mut train = Workspace::new(&store, rec.finish())?;
/// train.write(&x, &[0.5f32; 6])?;
/// train.write(&wanted, &[0.25f32; 12])?;
///
/// let before: Vec<f32> = Stream::new(&store, &lstm, 1)?.step(&[0.5f32, 0.5])?;
/// train.run()?;
/// let after: Vec<f32> = Stream::new(&store, &lstm, 1)?.step(&[0.5f32, 0.5])?;
/// assert!(before != after, "the stream sees what was trained");
/// store.read(&mut parameters)?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) device: Device,
    pub(super) shared: Shared,
    /// Without values.
    parameters: Arc<Parameters>,
}

/// The block of a store, as its executor holds it.
#[derive(Debug, Clone)]
pub(super) enum Shared {
    F32(Arc<cpu::Shared<f32>>),
    F64(Arc<cpu::Shared<f64>>),
    #[cfg(feature = "gpu")]
    Gpu(Arc<gpu::Shared>),
}

impl Store {
    /// Uploads the parameters. Errors: a value that the device's precision cannot hold, more memory than the device has.
    pub async fn new_async(device: &Device, parameters: &Parameters) -> Result<Store> {
        let len = parameters.block().len();
        let shared = match &device.executor {
            Executor::Cpu(Precision::F32) => Shared::F32(Arc::new(cpu::Shared::new(len)?)),
            Executor::Cpu(_) => Shared::F64(Arc::new(cpu::Shared::new(len)?)),
            #[cfg(feature = "gpu")]
            Executor::Gpu(gpu, _) => Shared::Gpu(Arc::new(gpu::Shared::new(gpu.clone(), len).await?)),
        };
        let store = Store { device: device.clone(), shared, parameters: Arc::new(parameters.without_values()) };
        store.write(parameters)?;
        Ok(store)
    }

    /// Names and shapes of its parameters, to record plans with; values are read with [`Store::read`].
    pub(crate) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Where it lies.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes that the device holds for it: parameters, gradients where a plan trains them, packed copies of weights.
    pub fn bytes(&self) -> u64 {
        each!(&self.shared, Shared shared => shared.bytes())
    }

    /// Replaces the values of all parameters. Errors: other names or shapes than those of the store, a value that is
    /// not finite in the device's precision; nothing was written then.
    pub fn write(&self, parameters: &Parameters) -> Result<()> {
        self.check(parameters.layout())?;
        let wide = matches!(self.shared, Shared::F64(_));
        let stored = |v: &f64| if wide { *v } else { *v as f32 as f64 };
        check_finite("the block of all parameters", parameters.block().iter().map(stored))?;
        let block = parameters.block();
        each!(&self.shared, Shared cpu shared => shared.write(0, block), gpu shared => shared.write(block)?);
        Ok(())
    }

    /// Reads all parameters back. Errors: other names or shapes than those of the store, a value that is not finite;
    /// `into` stays as it is then.
    pub async fn read_async(&self, into: &mut Parameters) -> Result<()> {
        self.check(into.layout())?;
        let mut block = vec![0.0; into.block().len()];
        each!(&self.shared, Shared cpu of => of.read(0, &mut block), gpu of => of.read(&mut block).await?);
        check_finite("the block of all parameters", block.iter().copied())?;
        into.block_mut().copy_from_slice(&block);
        Ok(())
    }

    fn check(&self, layout: u64) -> Result<()> {
        let wrong = || Error::config("parameters of a store", "those it was made of, by name and shape", "others");
        ensure!(layout == self.parameters.layout(), wrong());
        Ok(())
    }

    /// Error: a plan over other parameters.
    pub(super) fn check_plan(&self, plan: &Plan) -> Result<()> {
        let wrong = || Error::config("a plan for a store", "one recorded over the store's parameters", "others");
        ensure!(plan.layout == self.parameters.layout(), wrong());
        Ok(())
    }
}

blocking! { Store {
    /// Blocking [`Store::new_async`]. Errors as there.
    fn new(device: &Device, parameters: &Parameters) -> Result<Store> = Store::new_async(device, parameters);
    /// Blocking [`Store::read_async`]. Errors as there.
    fn read(&self, into: &mut Parameters) -> Result<()> = self.read_async(into);
} }
