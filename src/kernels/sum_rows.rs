//! `sum_rows`: sums over rows: the gradient of a bias.
//!
//! ```text
//! sums[j] (+)= sum_r x[r, j]
//! ```

use super::prelude::*;

parameters! {
    /// Parameters of `sum_rows`.
    SumRows {
        /// Rows summed.
        rows: u32,
        /// Columns.
        columns: u32,
        /// 1 if the sums are added to, not replaced.
        adds: u32,
    }
}
operands! { SumRows { x: read, sums: write } }

/// Rows of one dispatch, `CHUNK` in the shader.
const CHUNK: u32 = 524_288;

/// Records `sums (+)= column sums of x`; all axes of x but the last are rows.
pub fn record(rec: &mut Recorder<'_>, x: &Tensor, sums: &Target) -> Result<()> {
    let Target { tensor: sums, adds } = sums;
    if sums.len() != x.columns() {
        return Err(Error::shape("recording a sum over rows", format!("[{}]", x.columns()), sums.shape()));
    }
    let kernel = SumRows { rows: x.rows() as u32, columns: x.columns() as u32, adds: *adds as u32 };
    rec.push(kernel, Tensors { x, sums })
}

impl Kernel for SumRows {
    const NAME: &'static str = "sum_rows";
    plain!(["sum_rows"], |k| [k.columns.div_ceil(16), 1, 1], |k| k.rows.div_ceil(CHUNK));

    fn needs(&self) -> Option<Sizes> {
        Some(Sizes { x: sized(&[self.rows, self.columns])?, sums: sized(&[self.columns])? })
    }

    fn flops(&self) -> f64 {
        self.rows as f64 * self.columns as f64
    }

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        // in f64, 64 columns at a time: a long sum in f32 loses digits with every row
        let columns = self.columns as usize;
        for first in (0..columns).step_by(64) {
            let width = (columns - first).min(64);
            let mut totals = [0.0; 64];
            for row in s.x.chunks_exact(columns) {
                let row = &row[first..first + width];
                totals.iter_mut().zip(row).for_each(|(total, x)| *total += x.to_f64());
            }
            for (sum, total) in s.sums[first..first + width].iter_mut().zip(totals) {
                *sum = T::of(total + if self.adds != 0 { sum.to_f64() } else { 0.0 });
            }
        }
    }
}

/// Views, added to and replaced, and more rows than one dispatch takes.
pub fn cases() -> Vec<Case> {
    let case = |[rows, columns]: [usize; 2], adds: bool| {
        Case::new(format!("sum_rows {rows} {columns}, adds {adds}"), 0.02, move |rec| {
            let x = rec.input("x", &[rows + 2, columns])?.narrow(1, rows)?;
            let tensor = match adds {
                true => rec.activation("sums", &[3, columns])?.row(1)?,
                false => rec.activation("out", &[columns])?,
            };
            record(rec, &x, &Target { tensor, adds })
        })
    };
    let sizes = [[1, 1], [5, 3], [17, 33], [300, 16], [257, 65]].into_iter();
    sizes.flat_map(|size| [false, true].map(|adds| case(size, adds))).chain([case([600_001, 1], true)]).collect()
}
