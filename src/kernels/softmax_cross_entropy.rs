//! `softmax_cross_entropy`: softmax and cross-entropy of each row, stable for any logits.
//!
//! ```text
//! p[r, v] = exp(logits[r, v] - max_r) / sum_v exp(logits[r, v] - max_r)
//! rows[r] = (-ln p[r, target_r], 1 if the target is the first largest logit, 1)
//!         = (0, 0, 0) if the target is IGNORE
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, fold, one_shader, parameters, reads, sized, tokens, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `softmax_cross_entropy`.
    SoftmaxCrossEntropy {
        /// Rows.
        rows: u32,
        /// Classes.
        columns: u32,
    }
}

/// A target id that takes its row out of loss, accuracy and gradient.
pub const IGNORE: u32 = u32::MAX;

/// Records softmax and row losses of `logits [.., V]` into `probabilities` (same shape) and `row_losses [.., 3]`.
pub fn record(
    rec: &mut Recorder<'_>,
    logits: &Tensor,
    targets: &Tensor,
    probabilities: &Tensor,
    row_losses: &Tensor,
) -> Result<()> {
    rec.check_ids("recording a cross-entropy", targets, logits.columns(), true)?;
    if targets.len() != logits.rows() {
        return Err(Error::shape("recording a cross-entropy", format!("{} targets", logits.rows()), targets.shape()));
    }
    let kernel = SoftmaxCrossEntropy { rows: logits.rows() as u32, columns: logits.columns() as u32 };
    rec.push(kernel, &[logits, targets, probabilities, row_losses])
}

impl Kernel for SoftmaxCrossEntropy {
    const NAME: &'static str = "softmax_cross_entropy";
    const BINDINGS: &'static [Binding] =
        &[reads("logits"), tokens("targets"), writes("probabilities"), writes("row_losses")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    one_shader!("softmax_cross_entropy", |k| fold(k.rows as u64));

    fn needs(&self) -> Option<Vec<u128>> {
        let all = sized(&[self.rows, self.columns])?;
        Some(vec![all, sized(&[self.rows])?, all, sized(&[self.rows, 3])?])
    }

    fn flops(&self) -> f64 {
        4.0 * self.rows as f64 * self.columns as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [
            Operand::Read(logits),
            Operand::Tokens(targets),
            Operand::Write(probabilities),
            Operand::Write(row_losses),
        ] = operands
        else {
            unreachable!("bindings of softmax_cross_entropy")
        };
        let columns = self.columns as usize;
        let rows = logits.chunks_exact(columns).zip(probabilities.chunks_exact_mut(columns));
        for ((target, (logits, p)), out) in targets.iter().zip(rows).zip(row_losses.chunks_exact_mut(3)) {
            let mut top = 0;
            for (v, x) in logits.iter().enumerate() {
                if *x > logits[top] {
                    top = v;
                }
            }
            let mut total = T::ZERO;
            for (p, x) in p.iter_mut().zip(logits) {
                *p = (*x - logits[top]).exp();
                total += *p;
            }
            p.iter_mut().for_each(|p| *p = *p / total);
            if *target == IGNORE {
                out.fill(T::ZERO);
            } else {
                out[0] = total.ln() + logits[top] - logits[*target as usize];
                out[1] = if top == *target as usize { T::ONE } else { T::ZERO };
                out[2] = T::ONE;
            }
        }
    }
}
