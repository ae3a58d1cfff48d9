//! Where the masks of a training plan come from.

use super::layer::slots;
use crate::error::Result;
use crate::kernels::{count, dropout_mask};
use crate::plan::{Direction, Tensor};
use crate::recorder::Recorder;
use crate::rng::threefry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Draws the masks of dropout on the device: a counter-based generator, keyed by seed, training step, layer, direction
/// and index (and by the number of the LSTM, from 0, where several are recorded with one `Dropout`), so that a run can
/// be repeated, and is the same on CPU and GPU.
///
/// A *training step* is a run of the plan. Their count is part of the workspace; a run that goes on from a checkpoint
/// writes it back.
#[derive(Debug, Clone)]
pub struct Dropout {
    /// The number n of the training step, counted from 1, as `[n mod 2^20, n / 2^20]`: floats that stay exact. It is
    /// one more after each run.
    pub step: Tensor,
    seed: u64,
    /// LSTMs recorded with it so far: the masks of the second differ from those of the first.
    users: Arc<AtomicU32>,
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
    /// before the layers that use it.
    pub fn record(rec: &mut Recorder<'_>, name: &str, seed: u64) -> Result<Dropout> {
        let step = rec.input_with(name, &[0.0, 0.0])?;
        count::record(rec, &step)?;
        Ok(Dropout { step, seed, users: Arc::default() })
    }

    /// The number of the LSTM that is recorded with it.
    pub(super) fn user(&self) -> u32 {
        self.users.fetch_add(1, Ordering::Relaxed)
    }

    /// A mask of 0 or 1/(1-p) for `[T, B, columns]`, one for all steps where it is `variational`; none for p = 0.
    pub(super) fn mask(
        &self,
        rec: &mut Recorder<'_>,
        (name, user, place): (&str, u32, Place),
        p: f64,
        shape: &[usize],
        variational: bool,
    ) -> Result<Option<Tensor>> {
        if p == 0.0 {
            return Ok(None);
        }
        let kind = if place.recurrent { "recurrent_mask" } else { "mask" };
        let shape = if variational { &shape[1..] } else { shape };
        let mask = rec.activation(&format!("{}.{kind}", slots(name, place.layer, place.direction)), shape)?;
        dropout_mask::record(rec, &self.step, &mask, place.key(self.seed, user), p)?;
        Ok(Some(mask))
    }
}
