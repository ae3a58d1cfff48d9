//! `mean_loss`: the mean of the row losses that count.
//!
//! ```text
//! counted = sum_r rows[r].2
//! loss = sum_r rows[r].0 / counted      accuracy = sum_r rows[r].1 / counted      0 if nothing counts
//! ```

use crate::error::Result;
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, one_shader, parameters, reads, sized, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `mean_loss`.
    MeanLoss {
        /// Rows.
        rows: u32,
    }
}

/// Records mean loss, accuracy and count, each `[1]`, of `row_losses [.., 3]`.
pub fn record(
    rec: &mut Recorder<'_>,
    row_losses: &Tensor,
    loss: &Tensor,
    accuracy: &Tensor,
    counted: &Tensor,
) -> Result<()> {
    rec.push(MeanLoss { rows: row_losses.rows() as u32 }, &[row_losses, loss, accuracy, counted])
}

impl Kernel for MeanLoss {
    const NAME: &'static str = "mean_loss";
    const BINDINGS: &'static [Binding] = &[reads("row_losses"), writes("loss"), writes("accuracy"), writes("counted")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    one_shader!("mean_loss", |_| [1, 1, 1]);

    fn needs(&self) -> Option<Vec<u128>> {
        Some(vec![sized(&[self.rows, 3])?, 1, 1, 1])
    }

    fn flops(&self) -> f64 {
        3.0 * self.rows as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Read(row_losses), Operand::Write(loss), Operand::Write(accuracy), Operand::Write(counted)] =
            operands
        else {
            unreachable!("bindings of mean_loss")
        };
        // in f64: an f32 stops counting at 2^24
        let mut sums = [0.0; 3];
        for row in row_losses.chunks_exact(3) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value.to_f64());
        }
        let count = f64::max(sums[2], 1.0);
        let [out_loss, out_accuracy] = [sums[0] / count, sums[1] / count].map(T::of);
        (loss[0], accuracy[0], counted[0]) = (out_loss, out_accuracy, T::of(sums[2]));
    }
}
