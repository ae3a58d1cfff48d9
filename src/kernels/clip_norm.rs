//! `clip_norm`: scales all gradients together to a largest norm, as PyTorch's `clip_grad_norm_`.
//!
//! ```text
//! gradients[e] *= min(1, max_norm / (norm + 1e-6))      NaN if the norm is not finite
//! ```

use crate::error::Result;
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, fold_elements, one_shader, parameters, reads, sized, split, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `clip_norm`.
    ClipNorm {
        /// Elements.
        len: u32,
        /// Largest norm.
        max_norm: f32,
        /// What f32 loses of it, for the f64 executor.
        max_norm_rest: f32,
    }
}

/// Records the clipping of the block of gradients by `norm [1]`.
pub fn record(rec: &mut Recorder<'_>, norm: &Tensor, gradients: &Tensor, max_norm: f64) -> Result<()> {
    let (max_norm, max_norm_rest) = split(max_norm);
    rec.push(ClipNorm { len: gradients.len() as u32, max_norm, max_norm_rest }, &[norm, gradients])
}

impl Kernel for ClipNorm {
    const NAME: &'static str = "clip_norm";
    const BINDINGS: &'static [Binding] = &[reads("norm"), writes("gradients")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    const FLOATS: &'static [&'static str] = &["max_norm", "max_norm_rest"];
    one_shader!("clip_norm", |k| fold_elements(k.len as u64, 256));

    fn needs(&self) -> Option<Vec<u128>> {
        let len = sized(&[self.len])?;
        Some(vec![1, len])
    }

    fn flops(&self) -> f64 {
        self.len as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Read(norm), Operand::Write(gradients)] = operands else { unreachable!("bindings of clip_norm") };
        let factor = T::of(self.max_norm as f64 + self.max_norm_rest as f64) / (norm[0] + T::of(1e-6));
        if !norm[0].to_f64().is_finite() {
            gradients.fill(T::NAN);
        } else if factor < T::ONE {
            gradients.iter_mut().for_each(|g| *g = *g * factor);
        }
    }
}
