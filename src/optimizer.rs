//! The update of all parameters: norm, clipping and descent are passes over the whole block.

use crate::error::{Error, Result, ensure};
use crate::kernels::{clip_norm, sgd, sum, sum_squares};
use crate::recorder::Recorder;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Stochastic gradient descent, with clipping by the global norm if wanted.
///
/// ```text
/// norm = sqrt(sum of the squares of all gradients together)
/// g   *= min(1, clip_norm / (norm + 1e-6))
/// w   -= learning_rate g
/// ```
///
/// ```
/// use everloop::{Device, Parameters, Recorder, Store, Workspace, loss, optimizer::SgdConfig};
/// # fn main() -> everloop::Result<()> {
/// let mut parameters = Parameters::new();
/// parameters.declare("w", &[2], vec![1.0, 0.0])?;
/// let mut rec = Recorder::new(&parameters);
/// let (w, wanted) = (rec.parameter("w")?, rec.input("wanted", &[2])?);
/// let loss = loss::mean_squared_error(&mut rec, "loss", &w, &wanted)?;
/// rec.backward(&loss)?;
/// let update = SgdConfig::new(0.5).with_clip_norm(10.0).record(&mut rec)?;
/// let store = Store::new(&Device::cpu(), &parameters)?;
/// let mut workspace = Workspace::new(&store, rec.finish())?;
/// workspace.write(&wanted, &[3.0f32, 0.0])?;
/// workspace.run()?;
/// if let Some(norm) = &update.norm {
///     assert_eq!(workspace.scalar(norm)?, 2.0); // of 2 (w - wanted) / 2
/// }
/// store.read(&mut parameters)?;
/// assert_eq!(parameters.get("w")?, [2.0, 0.0]);
/// workspace.write(&update.learning_rate, &[0.25f32])?; // from the next run on
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SgdConfig {
    /// Learning rate at the start; a state of the plan, so it can change between runs.
    pub learning_rate: f64,
    /// Largest norm of all gradients together; `None` leaves them alone.
    pub clip_norm: Option<f64>,
}

/// Slots of a recorded update; [`SgdConfig`] has an example.
#[derive(Debug, Clone)]
pub struct Update {
    /// The learning rate, `[1]`, a state.
    pub learning_rate: Tensor,
    /// Norm of all gradients before clipping, `[1]`, where clipping is on.
    pub norm: Option<Tensor>,
}

impl SgdConfig {
    /// Plain descent.
    pub fn new(learning_rate: f64) -> Self {
        SgdConfig { learning_rate, clip_norm: None }
    }

    /// Clips all gradients together to this norm.
    pub fn with_clip_norm(self, clip_norm: f64) -> Self {
        SgdConfig { clip_norm: Some(clip_norm), ..self }
    }

    /// Errors: a negative or non-finite learning rate, a clip norm that is not positive and finite.
    pub fn validate(&self) -> Result<()> {
        // as f32, in which a GPU has them
        let (rate, norm) = (self.learning_rate, self.clip_norm.unwrap_or(1.0));
        let good = (rate as f32).is_finite() && rate >= 0.0;
        ensure!(good, Error::config("learning_rate", "a finite number of at least 0 (in f32)", rate));
        let good = (norm as f32).is_finite() && norm as f32 > 0.0;
        ensure!(good, Error::config("clip_norm", "a finite number above 0 (in f32)", norm));
        Ok(())
    }

    /// Records the update of all parameters. Errors: those of [`SgdConfig::validate`], no backward pass recorded
    /// before, or one that reaches no parameter, a second update.
    pub fn record(&self, rec: &mut Recorder<'_>) -> Result<Update> {
        self.validate()?;
        rec.attempt(|rec| {
            rec.begin_update()?;
            let (parameters, gradients) = (rec.block(false)?, rec.block(true)?);
            let learning_rate = rec.state_with("optimizer.learning_rate", &[self.learning_rate])?;
            let mut norm = None;
            if let Some(max_norm) = self.clip_norm {
                let partials = rec.activation("optimizer.partials", &[sum_squares::parts(gradients.len())])?;
                let norm = norm.insert(rec.activation("optimizer.norm", &[1])?);
                sum_squares::record(rec, &gradients, &partials)?;
                sum::record(rec, &partials, norm, 1, true)?;
                clip_norm::record(rec, norm, &gradients, max_norm)?;
            }
            sgd::record(rec, &learning_rate, &gradients, &parameters)?;
            Ok(Update { learning_rate, norm })
        })
    }
}
