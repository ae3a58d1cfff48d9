//! `sum_rows`: sums over rows: the gradient of a bias.
//!
//! ```text
//! sums[j] (+)= sum_r x[r, j]
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, one_shader, parameters, reads, sized, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `sum_rows`.
    SumRows {
        /// Rows summed.
        rows: u32,
        /// Columns.
        columns: u32,
        /// 1 to add to the sums.
        accumulate: u32,
    }
}

/// Rows of one dispatch, `CHUNK` in the shader.
const CHUNK: u32 = 524_288;

/// Records `sums (+)= column sums of x`; all axes of x but the last are rows.
pub fn record(rec: &mut Recorder<'_>, x: &Tensor, sums: &Tensor, accumulate: bool) -> Result<()> {
    if sums.len() != x.columns() {
        return Err(Error::shape("recording a sum over rows", format!("[{}]", x.columns()), sums.shape()));
    }
    let kernel = SumRows { rows: x.rows() as u32, columns: x.columns() as u32, accumulate: accumulate as u32 };
    rec.push(kernel, &[x, sums])
}

impl Kernel for SumRows {
    const NAME: &'static str = "sum_rows";
    const BINDINGS: &'static [Binding] = &[reads("x"), writes("sums")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    one_shader!("sum_rows", |k| [k.columns.div_ceil(16), 1, 1]);

    fn repeats(&self) -> u32 {
        self.rows.div_ceil(CHUNK)
    }

    fn needs(&self) -> Option<Vec<u128>> {
        Some(vec![sized(&[self.rows, self.columns])?, sized(&[self.columns])?])
    }

    fn flops(&self) -> f64 {
        self.rows as f64 * self.columns as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Read(x), Operand::Write(sums)] = operands else { unreachable!("bindings of sum_rows") };
        // in f64, 64 columns at a time: a long sum in f32 loses digits with every row
        let columns = self.columns as usize;
        for first in (0..columns).step_by(64) {
            let width = (columns - first).min(64);
            let mut totals = [0.0; 64];
            for row in x[..self.rows as usize * columns].chunks_exact(columns) {
                let row = &row[first..first + width];
                totals.iter_mut().zip(row).for_each(|(total, x)| *total += x.to_f64());
            }
            for (sum, total) in sums[first..first + width].iter_mut().zip(totals) {
                *sum = T::of(total + if self.accumulate != 0 { sum.to_f64() } else { 0.0 });
            }
        }
    }
}
