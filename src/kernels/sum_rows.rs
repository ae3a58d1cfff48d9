//! `sum_rows`: sums over rows: the gradient of a bias.
//!
//! ```text
//! sums[j] (+)= sum_r x[r, j]
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, one_shader, parameters, reads, writes};
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

    fn flops(&self) -> f64 {
        self.rows as f64 * self.columns as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Read(x), Operand::Write(sums)] = operands else { unreachable!("bindings of sum_rows") };
        if self.accumulate == 0 {
            sums[..self.columns as usize].fill(T::ZERO);
        }
        for row in x.chunks_exact(self.columns as usize) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += *x);
        }
    }
}
