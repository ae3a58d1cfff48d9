//! `softmax_cross_entropy`: softmax and cross-entropy of each row, stable for any logits.
//!
//! ```text
//! p[r, v] = exp(logits[r, v] - max_r) / sum_v exp(logits[r, v] - max_r)
//! rows[r] = (-ln p[r, target_r], 1 if the target is the first largest logit, 1)
//!         = (0, 0, 0) if the target is IGNORE
//! ```

use super::prelude::*;

parameters! {
    /// Parameters of `softmax_cross_entropy`.
    SoftmaxCrossEntropy {
        /// Rows.
        rows: u32,
        /// Classes.
        columns: u32,
    }
}
operands! { SoftmaxCrossEntropy { logits: read, targets: read_words, probabilities: write, row_losses: write } }

/// A target id that takes its row out of loss, accuracy and gradient.
pub const IGNORE: u32 = u32::MAX;

/// Records softmax and row losses of `logits [.., V]` into `probabilities` (same shape) and `row_losses [.., 3]`.
pub fn record(rec: &mut Recorder<'_>, [logits, targets, probabilities, row_losses]: [&Tensor; 4]) -> Result<()> {
    rec.check_ids("recording a cross-entropy", targets, logits.columns(), true)?;
    let rows = logits.rows();
    let wrong = || Error::shape("recording a cross-entropy", format!("{rows} targets"), targets.shape());
    ensure!(targets.len() == rows, wrong());
    let kernel = SoftmaxCrossEntropy { rows: rows as u32, columns: logits.columns() as u32 };
    rec.push(kernel, Tensors { logits, targets, probabilities, row_losses })
}

impl Kernel for SoftmaxCrossEntropy {
    word!("softmax_cross_entropy", |k| fold(k.rows as u64));
    needs!(logits: [rows, columns], targets: [rows], probabilities: [rows, columns], row_losses: [rows, 3]);
    flops!(4.0, rows, columns);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        let columns = self.columns as usize;
        let rows = s.logits.chunks_exact(columns).zip(s.probabilities.chunks_exact_mut(columns));
        for ((target, (logits, p)), out) in s.targets.iter().zip(rows).zip(s.row_losses.chunks_exact_mut(3)) {
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

/// Rows, classes and bounds of the logits: around the 64 lanes of a row, and far beyond what exp takes.
pub(super) const SIZES: [(usize, usize, f64); 6] =
    [(1, 1, 1.0), (3, 2, 1.0), (5, 63, 1.0), (2, 64, 100.0), (9, 65, 1e4), (70, 300, 5.0)];

/// Whole slots, and views.
pub fn cases() -> Vec<Case> {
    let whole = |(rows, classes, bound): (usize, usize, f64)| {
        Case::new(format!("softmax_cross_entropy {rows} {classes} within {bound}"), bound, move |rec| {
            let (logits, targets) = (rec.input("logits", &[rows, classes])?, rec.targets("targets", &[rows], classes)?);
            let (out, row_losses) = (rec.activation("out", &[rows, classes])?, rec.activation("rows", &[rows, 3])?);
            record(rec, [&logits, &targets, &out, &row_losses])
        })
    };
    let views = |rows: usize, classes: usize| {
        Case::new(format!("softmax_cross_entropy {rows} {classes}, views"), 1.0, move |rec| {
            let logits = rec.input("logits", &[rows + 1, classes])?.narrow(1, rows)?;
            let targets = rec.targets("targets", &[2, rows], classes)?.row(1)?;
            let probabilities = rec.activation("probabilities", &[rows + 2, classes])?.narrow(1, rows)?;
            let row_losses = rec.activation("rows", &[rows + 3, 3])?.narrow(2, rows)?;
            record(rec, [&logits, &targets, &probabilities, &row_losses])
        })
    };
    SIZES.into_iter().map(whole).chain([views(1, 3), views(17, 65)]).collect()
}
