//! `clip_norm`: scales all gradients together to a largest norm, as PyTorch's `clip_grad_norm_`.
//!
//! ```text
//! gradients[e] *= min(1, max_norm / (norm + 1e-6))      NaN if the norm is not finite
//! ```

use super::prelude::*;
use crate::kernels::{sum, sum_squares};

parameters! {
    /// Parameters of `clip_norm`.
    ClipNorm {
        /// Elements.
        len: u32,
        /// Largest norm.
        max_norm: f64,
    }
}
operands! { ClipNorm { norm: read, gradients: write } }

/// Records the clipping of the block of gradients by `norm [1]`.
pub fn record(rec: &mut Recorder<'_>, norm: &Tensor, gradients: &Tensor, max_norm: f64) -> Result<()> {
    rec.push(ClipNorm { len: gradients.len() as u32, max_norm }, Tensors { norm, gradients })
}

impl Kernel for ClipNorm {
    word!("clip_norm", |k| fold_elements(k.len as u64, 256));
    needs!(norm: [], gradients: [len]);
    flops!(1.0, len);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        let factor = T::of(self.max_norm) / (s.norm[0] + T::of(1e-6)); // O2
        if !s.norm[0].to_f64().is_finite() {
            s.gradients.fill(T::NAN);
        } else if factor < T::ONE {
            s.gradients.iter_mut().for_each(|g| *g = *g * factor);
        }
    }
}

/// Norms above and below the largest, of views.
pub fn cases() -> Vec<Case> {
    let case = |len: usize, max_norm: f64| {
        Case::new(format!("clip_norm {len} to {max_norm:e}"), 1.0, move |rec| {
            let partials = rec.activation("partials", &[sum_squares::parts(len)])?;
            let norm = rec.activation("norm", &[3])?.narrow(1, 1)?;
            let gradients = rec.activation("gradients", &[3, len])?.row(1)?;
            sum_squares::record(rec, &gradients, &partials)?;
            sum::record(rec, &partials, &norm, 1, true)?;
            record(rec, &norm, &gradients, max_norm)
        })
    };
    [1, 3, 255, 5_000, 70_000].into_iter().flat_map(|len| [1e-3, 0.1, 1e6].map(|norm| case(len, norm))).collect()
}
