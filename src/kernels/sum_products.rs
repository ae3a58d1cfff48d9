//! `sum_products`: sums over rows of the products of two blocks of columns: the gradient of a factor.
//!
//! ```text
//! sums[s + j] (+)= sum_r a[r, p + j] b[r, q + j]      j in 0..width, r in 0..rows
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Extent, Kernel, Operand, one_shader, parameters, reads, sized, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `sum_products`.
    SumProducts {
        /// Rows summed.
        rows: u32,
        /// Columns of the products.
        width: u32,
        /// First element in a.
        a_offset: u32,
        /// Columns of a.
        a_stride: u32,
        /// First element in b.
        b_offset: u32,
        /// Columns of b.
        b_stride: u32,
        /// First element in the sums.
        sums_offset: u32,
        /// 1 to add to the sums.
        accumulate: u32,
    }
}

/// Rows of one dispatch, `CHUNK` in the shader.
const CHUNK: u32 = 524_288;

/// Records `sums[at..at + width] (+)= column sums of a[.., from_a..from_a + width] b[.., from_b..from_b + width]`;
/// all axes of a and b but the last are rows.
pub fn record(
    rec: &mut Recorder<'_>,
    (a, from_a): (&Tensor, usize),
    (b, from_b): (&Tensor, usize),
    (sums, at): (&Tensor, usize),
    width: usize,
    accumulate: bool,
) -> Result<()> {
    let fits = |start: usize, room: usize| start.checked_add(width).is_some_and(|end| end <= room);
    if a.rows() != b.rows() || !fits(from_a, a.columns()) || !fits(from_b, b.columns()) {
        let wanted = format!("as many rows as {:?} and columns for {width} from {from_a} and {from_b}", a.shape());
        return Err(Error::shape("recording a sum of products", wanted, b.shape()));
    }
    if !fits(at, sums.len()) {
        let wanted = format!("room for {width} sums from {at}");
        return Err(Error::shape("recording a sum of products", wanted, sums.shape()));
    }
    let kernel = SumProducts {
        rows: a.rows() as u32,
        width: width as u32,
        a_offset: (a.offset + from_a) as u32,
        a_stride: a.columns() as u32,
        b_offset: (b.offset + from_b) as u32,
        b_stride: b.columns() as u32,
        sums_offset: (sums.offset + at) as u32,
        accumulate: accumulate as u32,
    };
    rec.push(kernel, &[a, b, sums])
}

impl Kernel for SumProducts {
    const NAME: &'static str = "sum_products";
    const BINDINGS: &'static [Binding] = &[reads("a"), reads("b"), writes("sums")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    const VIEWS: bool = true;
    one_shader!("sum_products", |k| [k.width.div_ceil(16), 1, 1]);

    fn repeats(&self) -> u32 {
        self.rows.div_ceil(CHUNK)
    }

    fn needs(&self) -> Option<Vec<u128>> {
        let (before_last, width) = (sized(&[self.rows])? - 1, sized(&[self.width])?);
        if self.a_stride < self.width || self.b_stride < self.width {
            return None;
        }
        let reach = |offset: u32, stride: u32| offset as u128 + before_last * stride as u128 + width;
        let sums = self.sums_offset as u128 + width;
        Some(vec![reach(self.a_offset, self.a_stride), reach(self.b_offset, self.b_stride), sums])
    }

    fn extent(&self) -> Option<Extent> {
        Some(Extent::contiguous(self.sums_offset, self.width))
    }

    fn flops(&self) -> f64 {
        2.0 * self.rows as f64 * self.width as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Read(a), Operand::Read(b), Operand::Write(sums)] = operands else {
            unreachable!("bindings of sum_products")
        };
        // in f64, 64 columns at a time: a long sum in f32 loses digits with every row
        let columns = self.width as usize;
        let sums = &mut sums[self.sums_offset as usize..][..columns];
        for first in (0..columns).step_by(64) {
            let width = (columns - first).min(64);
            let mut totals = [0.0; 64];
            for row in 0..self.rows as usize {
                let a = &a[self.a_offset as usize + row * self.a_stride as usize + first..][..width];
                let b = &b[self.b_offset as usize + row * self.b_stride as usize + first..][..width];
                for (total, (a, b)) in totals.iter_mut().zip(a.iter().zip(b)) {
                    *total += a.to_f64() * b.to_f64();
                }
            }
            for (sum, total) in sums[first..first + width].iter_mut().zip(totals) {
                *sum = T::of(total + if self.accumulate != 0 { sum.to_f64() } else { 0.0 });
            }
        }
    }
}
