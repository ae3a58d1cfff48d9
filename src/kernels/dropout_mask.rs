//! `dropout_mask`: zeros at random places, and 1 / (1 - p) at the others.
//!
//! ```text
//! mask[e] = 0 if word(e) < p 2^32, else 1 / (1 - p)      e in 0..len
//! word(e) = first word of threefry(key, (e, step))       step = step[0] + 2^20 step[1]
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, fold_elements, one_shader, parameters, reads, sized, split, writes};
use crate::kernels::count::CARRY;
use crate::plan::Tensor;
use crate::recorder::Recorder;
use crate::rng::threefry;

parameters! {
    /// Parameters of `dropout_mask`.
    DropoutMask {
        /// Elements.
        len: u32,
        /// First word of the key.
        key_low: u32,
        /// Second word of the key.
        key_high: u32,
        /// Random words below it drop the element.
        threshold: u32,
        /// 1 / (1 - p), rounded.
        scale: f32,
        /// What the rounding took.
        scale_rest: f32,
    }
}

/// Records the mask of training step `step [2]` (see [`count`](super::count)); masks differ by key and step.
/// Error: `p` outside 0 <= p < 1.
pub fn record(rec: &mut Recorder<'_>, step: &Tensor, mask: &Tensor, key: [u32; 2], p: f64) -> Result<()> {
    if !(0.0..1.0).contains(&p) {
        return Err(Error::config("recording a dropout mask", "0 <= p < 1", p));
    }
    if step.len() != 2 {
        return Err(Error::shape("recording a dropout mask", "a training step [2]", step.shape()));
    }
    let [key_low, key_high] = key;
    let threshold = (p * 4_294_967_296.0).round() as u32;
    let (scale, scale_rest) = split(1.0 / (1.0 - p));
    let len = mask.len() as u32;
    rec.push(DropoutMask { len, key_low, key_high, threshold, scale, scale_rest }, &[step, mask])
}

impl Kernel for DropoutMask {
    const NAME: &'static str = "dropout_mask";
    const BINDINGS: &'static [Binding] = &[reads("step"), writes("mask")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    const FLOATS: &'static [&'static str] = &["scale", "scale_rest"];
    one_shader!("dropout_mask", |k| fold_elements(k.len as u64, 256));

    fn needs(&self) -> Option<Vec<u128>> {
        Some(vec![2, sized(&[self.len])?])
    }

    fn flops(&self) -> f64 {
        80.0 * self.len as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Read(step), Operand::Write(mask)] = operands else { unreachable!("bindings of dropout_mask") };
        let [low, high] = [step[0], step[1]].map(|value| value.to_f64() as u32);
        let step = high.wrapping_mul(CARRY).wrapping_add(low);
        let scale = T::of(self.scale as f64 + self.scale_rest as f64);
        for (mask, e) in mask[..self.len as usize].iter_mut().zip(0u32..) {
            let [word, _] = threefry([self.key_low, self.key_high], [e, step]);
            *mask = if word < self.threshold { T::ZERO } else { scale };
        }
    }
}
