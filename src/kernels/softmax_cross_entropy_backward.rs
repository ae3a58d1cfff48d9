//! `softmax_cross_entropy_backward`: the gradient of the mean cross-entropy for the logits.
//!
//! ```text
//! dlogits[r, v] (+)= dloss / counted (p[r, v] - [v = target_r])      0 where the target is IGNORE
//! ```

use super::prelude::*;
use crate::kernels::mean_loss;
use crate::kernels::softmax_cross_entropy::{self, IGNORE, SIZES};

parameters! {
    /// Parameters of `softmax_cross_entropy_backward`.
    SoftmaxCrossEntropyBackward {
        /// Rows.
        rows: u32,
        /// Classes.
        columns: u32,
        /// 1 if dlogits is added to, not replaced.
        adds: u32,
    }
}
operands! {
    SoftmaxCrossEntropyBackward {
        probabilities: read,
        targets: read_words,
        counted: read,
        dloss: read,
        dlogits: write,
    }
}

/// Records the gradient for the logits; `dlogits` has the shape of `probabilities`.
pub fn record(
    rec: &mut Recorder<'_>,
    [probabilities, targets, counted, dloss]: [&Tensor; 4],
    dlogits: &Target,
) -> Result<()> {
    let [rows, columns] = [probabilities.rows(), probabilities.columns()].map(|size| size as u32);
    let Target { tensor: dlogits, adds } = dlogits;
    let kernel = SoftmaxCrossEntropyBackward { rows, columns, adds: *adds as u32 };
    rec.push(kernel, Tensors { probabilities, targets, counted, dloss, dlogits })
}

impl Kernel for SoftmaxCrossEntropyBackward {
    word!("softmax_cross_entropy_backward", |k| fold_elements(k.rows as u64 * k.columns as u64, 256));
    needs!(probabilities: [rows, columns], targets: [rows], counted: [], dloss: [], dlogits: [rows, columns]);
    flops!(2.0, rows, columns);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        let columns = self.columns as usize;
        let rows = s.probabilities.chunks_exact(columns).zip(s.dlogits.chunks_exact_mut(columns));
        for (target, (p, dlogits)) in s.targets.iter().zip(rows) {
            for (v, (p, out)) in p.iter().zip(dlogits).enumerate() {
                let hit = if v == *target as usize { T::ONE } else { T::ZERO };
                let value = if *target == IGNORE { T::ZERO } else { (*p - hit) * (s.dloss[0] / s.counted[0]) };
                *out = if self.adds != 0 { *out + value } else { value };
            }
        }
    }
}

/// Behind `softmax_cross_entropy` and `mean_loss`: whole slots that are replaced, views that are added to.
pub fn cases() -> Vec<Case> {
    let case = |(rows, classes, bound): (usize, usize, f64), adds: bool| {
        let name = format!("softmax_cross_entropy_backward {rows} {classes} within {bound}, adds {adds}");
        Case::new(name, bound, move |rec| {
            let (logits, targets) = (rec.input("logits", &[rows, classes])?, rec.targets("targets", &[rows], classes)?);
            let probabilities = rec.activation("probabilities", &[rows, classes])?;
            let row_losses = rec.activation("rows", &[rows, 3])?;
            let mut slot = |name, len| rec.activation(name, &[len]);
            let (loss, accuracy) = (slot("loss", 1)?, slot("accuracy", 1)?);
            let (counted, dloss) = (slot("counted", 1)?, slot("dloss", 2)?);
            rec.fill(&dloss, 0.7)?;
            softmax_cross_entropy::record(rec, [&logits, &targets, &probabilities, &row_losses])?;
            mean_loss::record(rec, &row_losses, [&loss, &accuracy, &counted])?;
            let dlogits = output(rec, "dlogits", &[rows, classes], adds)?;
            let inputs = [&probabilities, &targets, &counted, &dloss.narrow(1, 1)?];
            record(rec, inputs, &dlogits)
        })
    };
    with_and_without(SIZES, case)
}
