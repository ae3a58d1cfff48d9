//! `mean_loss`: the mean of the row losses that count.
//!
//! ```text
//! counted = sum_r rows[r].2
//! loss = sum_r rows[r].0 / counted      accuracy = sum_r rows[r].1 / counted      0 if nothing counts
//! ```

use super::prelude::*;
use crate::kernels::softmax_cross_entropy;

parameters! {
    /// Parameters of `mean_loss`.
    MeanLoss {
        /// Rows.
        rows: u32,
    }
}
operands! { MeanLoss { row_losses: read, loss: write, accuracy: write, counted: write } }

/// Records mean loss, accuracy and count, each `[1]`, of `row_losses [.., 3]`.
pub fn record(rec: &mut Recorder<'_>, row_losses: &Tensor, [loss, accuracy, counted]: [&Tensor; 3]) -> Result<()> {
    rec.push(MeanLoss { rows: row_losses.rows() as u32 }, Tensors { row_losses, loss, accuracy, counted })
}

impl Kernel for MeanLoss {
    word!("mean_loss", |_| [1, 1, 1]);
    needs!(row_losses: [rows, 3], loss: [], accuracy: [], counted: []);
    flops!(3.0, rows);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        // in f64: an f32 stops counting at 2^24
        let mut sums = [0.0; 3];
        for row in s.row_losses.chunks_exact(3) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value.to_f64());
        }
        let count = f64::max(sums[2], 1.0);
        let [loss, accuracy] = [sums[0] / count, sums[1] / count].map(T::of);
        (s.loss[0], s.accuracy[0], s.counted[0]) = (loss, accuracy, T::of(sums[2]));
    }
}

/// Row losses of a cross-entropy, and views.
pub fn cases() -> Vec<Case> {
    let case = |rows: usize| {
        Case::new(format!("mean_loss {rows}"), 1.0, move |rec| {
            let (logits, targets) = (rec.input("logits", &[rows, 3])?, rec.targets("targets", &[rows], 3)?);
            let probabilities = rec.activation("probabilities", &[rows, 3])?;
            let row_losses = rec.activation("row_losses", &[rows + 1, 3])?.narrow(1, rows)?;
            softmax_cross_entropy::record(rec, [&logits, &targets, &probabilities, &row_losses])?;
            let loss = rec.activation("loss", &[3])?.narrow(1, 1)?;
            let accuracy = rec.activation("accuracy", &[2])?.narrow(1, 1)?;
            let counted = rec.activation("counted", &[1])?;
            record(rec, &row_losses, [&loss, &accuracy, &counted])
        })
    };
    [1, 3, 65, 257, 70_001].map(case).into()
}
