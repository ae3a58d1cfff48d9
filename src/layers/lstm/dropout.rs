//! Where the masks of a training plan come from.

use crate::error::Result;
use crate::kernels::{count, dropout_mask};
use crate::recorder::Recorder;
use crate::rng::threefry;
use crate::tensor::Tensor;
use crate::time::Direction;

/// Draws the masks of dropout on the device: a counter-based generator, keyed by seed, training step, layer, direction
/// and index (and by the number of the LSTM, from 0, where several are recorded with one `Dropout`), so that a run can
/// be repeated, and is the same on CPU and GPU.
///
/// A *training step* is a run of the plan. Their count is a state of the plan; a run that goes on from a checkpoint
/// writes it back.
///
/// ```
/// # use everloop::{Device, Parameters, Recorder, Rng, Store, Workspace};
/// # use everloop::layers::{Dropout, LstmConfig, LstmInputs};
/// # fn main() -> everloop::Result<()> {
/// # let mut parameters = Parameters::new();
/// let config = LstmConfig::new(3, 8).with_layers(2).with_dropout(0.5);
/// let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(1))?;
/// let mut rec = Recorder::new(&parameters);
/// let x = rec.input("x", &[4, 2, 3])?;
/// let dropout = Dropout::record(&mut rec, "dropout.step", 7)?;
/// lstm.record_with(&mut rec, &x, LstmInputs { dropout: Some(&dropout), ..LstmInputs::default() })?;
/// let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
/// workspace.write_count(&dropout.step, 1000)?;
/// workspace.run()?;
/// assert_eq!(workspace.read_words(&dropout.step)?, [1001]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Dropout {
    /// The number of the training step, counted from 1, `[1]`: one more after each run.
    pub step: Tensor,
    name: String,
    seed: u64,
}

/// What a mask is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Place {
    pub layer: usize,
    pub direction: Direction,
    /// On g, or on the way to the layer above.
    pub recurrent: bool,
}

impl Place {
    fn key(&self, seed: u64, user: u32) -> [u32; 2] {
        let index = 4 * self.layer as u32 + 2 * (self.direction == Direction::Reverse) as u32 + self.recurrent as u32;
        threefry([seed as u32, (seed >> 32) as u32], [index, user])
    }
}

impl Dropout {
    /// Records the count of training steps in the slot `name` (`dropout.step`, say); to be recorded once in a plan,
    /// before the layers that use it. Error: a name that is taken.
    pub fn record(rec: &mut Recorder<'_>, name: &str, seed: u64) -> Result<Dropout> {
        rec.attempt(|rec| {
            let step = rec.counter(name)?;
            count::record(rec, &step)?;
            Ok(Dropout { step, name: name.to_string(), seed })
        })
    }

    /// The number of the LSTM that is recorded with it: the masks of the second differ from those of the first.
    pub(super) fn user(&self, rec: &mut Recorder<'_>) -> u32 {
        rec.count(&format!("LSTMs recorded with {}", self.name)) as u32
    }

    /// Records the mask at a place: 0 or 1/(1-p).
    pub(super) fn record_mask(
        &self,
        rec: &mut Recorder<'_>,
        (user, place): (u32, Place),
        mask: &Tensor,
        p: f64,
    ) -> Result<()> {
        dropout_mask::record(rec, &self.step, mask, place.key(self.seed, user), p)
    }
}
