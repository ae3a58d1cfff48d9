//! `softmax_cross_entropy_backward`: the gradient of the mean cross-entropy for the logits.
//!
//! ```text
//! dlogits[r, v] (+)= dloss / counted (p[r, v] - [v = target_r])      0 where the target is IGNORE
//! ```

use crate::error::Result;
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, fold_elements, one_shader, parameters, reads, sized, tokens, writes};
use crate::kernels::softmax_cross_entropy::IGNORE;
use crate::plan::Tensor;
use crate::recorder::Recorder;
parameters! {
    /// Parameters of `softmax_cross_entropy_backward`.
    SoftmaxCrossEntropyBackward {
        /// Rows.
        rows: u32,
        /// Classes.
        columns: u32,
        /// 1 to add to dlogits.
        accumulate: u32,
    }
}

/// Records the gradient for the logits; `dlogits` has the shape of `probabilities`.
pub fn record(
    rec: &mut Recorder<'_>,
    [probabilities, targets, counted, dloss]: [&Tensor; 4],
    dlogits: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let kernel = SoftmaxCrossEntropyBackward {
        rows: probabilities.rows() as u32,
        columns: probabilities.columns() as u32,
        accumulate: accumulate as u32,
    };
    rec.push(kernel, &[probabilities, targets, counted, dloss, dlogits])
}

impl Kernel for SoftmaxCrossEntropyBackward {
    const NAME: &'static str = "softmax_cross_entropy_backward";
    const BINDINGS: &'static [Binding] =
        &[reads("probabilities"), tokens("targets"), reads("counted"), reads("dloss"), writes("dlogits")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    one_shader!("softmax_cross_entropy_backward", |k| fold_elements(k.rows as u64 * k.columns as u64, 256));

    fn needs(&self) -> Option<Vec<u128>> {
        let all = sized(&[self.rows, self.columns])?;
        Some(vec![all, sized(&[self.rows])?, 1, 1, all])
    }

    fn flops(&self) -> f64 {
        2.0 * self.rows as f64 * self.columns as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [
            Operand::Read(probabilities),
            Operand::Tokens(targets),
            Operand::Read(counted),
            Operand::Read(dloss),
            Operand::Write(dlogits),
        ] = operands
        else {
            unreachable!("bindings of softmax_cross_entropy_backward")
        };
        let columns = self.columns as usize;
        let rows = probabilities.chunks_exact(columns).zip(dlogits.chunks_exact_mut(columns));
        for (target, (p, dlogits)) in targets.iter().zip(rows) {
            for (v, (p, out)) in p.iter().zip(dlogits).enumerate() {
                let hit = if v == *target as usize { T::ONE } else { T::ZERO };
                let value = if *target == IGNORE { T::ZERO } else { (*p - hit) * (dloss[0] / counted[0]) };
                *out = if self.accumulate != 0 { *out + value } else { value };
            }
        }
    }
}
