//! `dropout_mask`: zeros at random places, and 1 / (1 - p) at the others.
//!
//! ```text
//! mask[e] = 0 if word(e) < p 2^32, else 1 / (1 - p)      e in 0..len
//! word(e) = first word of threefry(key, (e, step))
//! ```

use super::prelude::*;
use crate::kernels::count;
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
        /// 1 / (1 - p)
        scale: f64,
    }
}
operands! { DropoutMask { step: read_words, mask: write } }

/// Records the mask of training step `step [1]` (see [`count`](super::count)); masks differ by key and step.
/// Error: `p` outside 0 <= p < 1.
pub fn record(rec: &mut Recorder<'_>, step: &Tensor, mask: &Tensor, key: [u32; 2], p: f64) -> Result<()> {
    ensure!((0.0..1.0).contains(&p), Error::config("recording a dropout mask", "0 <= p < 1", p));
    ensure!(step.len() == 1, Error::shape("recording a dropout mask", "a training step [1]", step.shape()));
    let [key_low, key_high] = key;
    let (threshold, scale) = ((p * 4_294_967_296.0).round() as u32, 1.0 / (1.0 - p));
    rec.push(DropoutMask { len: mask.len() as u32, key_low, key_high, threshold, scale }, Tensors { step, mask })
}

impl Kernel for DropoutMask {
    word!("dropout_mask", |k| fold_elements(k.len as u64, 256));
    needs!(step: [], mask: [len]);
    flops!(80.0, len);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        for (mask, e) in s.mask.iter_mut().zip(0u32..) {
            let [word, _] = threefry([self.key_low, self.key_high], [e, s.step[0]]);
            *mask = if word < self.threshold { T::ZERO } else { T::of(self.scale) };
        }
    }
}

/// Shares from none to nearly all, other keys, two steps, and a view.
pub fn cases() -> Vec<Case> {
    let case = |len: usize, p: f64, key: [u32; 2]| {
        Case::new(format!("dropout_mask {len} {p} {key:?}"), 1.0, move |rec| {
            let (step, out) = (rec.counter("step")?, rec.activation("out", &[2, len])?);
            for row in 0..2 {
                count::record(rec, &step)?;
                record(rec, &step, &out.row(row)?, key, p)?;
            }
            Ok(())
        })
    };
    vec![
        case(1, 0.5, [1, 2]),
        case(3, 0.1, [2, 2]),
        case(255, 0.999, [1, 3]),
        case(257, 0.3, [7, 0x9e37_79b9]),
        case(1_000, 0.0, [1, 2]),
        case(70_001, 0.3, [1, 2]),
        case(70_001, 0.999, [u32::MAX; 2]),
    ]
}
