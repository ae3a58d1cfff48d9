//! `sum_products`: sums over rows of the products of two blocks of columns, the gradient of a factor; or of one block,
//! the gradient of a bias.
//!
//! ```text
//! sums[j] (+)= sum_r a[r, p + j] b[r, q + j]      j in 0..width, r in 0..rows
//! ```

use super::prelude::*;
use crate::kernels::copy_columns::behind;

parameters! {
    /// Parameters of `sum_products`.
    SumProducts {
        /// Rows summed.
        rows: u32,
        /// Columns of the products.
        width: u32,
        /// Columns of a.
        a_stride: u32,
        /// Columns of b; 0 where the factors are 1.
        b_stride: u32,
        /// 1 if the sums are added to, not replaced.
        adds: u32,
    }
}
operands! { SumProducts { a: read, b: [read], sums: write } }

/// Rows of one dispatch, `CHUNK` in the shader.
const CHUNK: u32 = 524_288;

/// Records `sums [W] (+)= column sums of a[.., from_a..from_a + W] b[.., from_b..from_b + W]`; all axes of a and b but
/// the last are rows. Without b its elements count as 1.
pub fn record(
    rec: &mut Recorder<'_>,
    (a, from_a): (&Tensor, usize),
    b: Option<(&Tensor, usize)>,
    sums: &Target,
) -> Result<()> {
    let Target { tensor: sums, adds } = sums;
    let width = sums.len();
    let fits = |start: usize, room: usize| start.checked_add(width).is_some_and(|end| end <= room);
    for (of, from) in [(a, from_a)].into_iter().chain(b) {
        let wanted = format!("{} rows and columns for {width} sums from {from}", a.rows());
        let good = of.rows() == a.rows() && fits(from, of.columns());
        ensure!(good, Error::shape("recording a sum over rows", wanted, of.shape()));
    }
    let b_stride = b.map_or(0, |(b, _)| b.columns());
    let [rows, width, a_stride, b_stride] = [a.rows(), width, a.columns(), b_stride].map(|size| size as u32);
    let kernel = SumProducts { rows, width, a_stride, b_stride, adds: *adds as u32 };
    let b = b.map(|(b, from)| behind(b, from)).transpose()?;
    rec.push(kernel, Tensors { a: &behind(a, from_a)?, b: b.as_ref(), sums })
}

impl Kernel for SumProducts {
    word!("sum_products", |k| [k.width.div_ceil(16), 1, 1], |k| k.rows.div_ceil(CHUNK));

    fn needs(&self) -> Option<Sizes> {
        let (before_last, width) = (sized(&[self.rows])? - 1, sized(&[self.width])?);
        if self.a_stride < self.width || (1..self.width).contains(&self.b_stride) {
            return None;
        }
        let reach = |stride: u32| if stride == 0 { 0 } else { before_last * stride as u128 + width };
        Some(Sizes { a: reach(self.a_stride), b: reach(self.b_stride), sums: width })
    }

    flops!(2.0, rows, width);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        // in f64, 64 columns at a time: a long sum in f32 loses digits with every row
        let columns = self.width as usize;
        for first in (0..columns).step_by(64) {
            let width = (columns - first).min(64);
            let mut totals = [0.0; 64];
            for row in 0..self.rows as usize {
                let a = &s.a[row * self.a_stride as usize + first..][..width];
                if self.b_stride == 0 {
                    totals.iter_mut().zip(a).for_each(|(total, a)| *total += a.to_f64());
                    continue;
                }
                let b = &s.b[row * self.b_stride as usize + first..][..width];
                for (total, (a, b)) in totals.iter_mut().zip(a.iter().zip(b)) {
                    *total += a.to_f64() * b.to_f64();
                }
            }
            for (sum, total) in s.sums[first..first + width].iter_mut().zip(totals) {
                *sum = T::of(total + if self.adds != 0 { sum.to_f64() } else { 0.0 });
            }
        }
    }
}

/// Blocks of columns of views, and more rows than one dispatch takes.
pub fn cases() -> Vec<Case> {
    let case = |(rows, width, bound): (usize, usize, f64), adds: bool, factors: bool| {
        Case::new(format!("sum_products {rows} {width}, adds {adds}, factors {factors}"), bound, move |rec| {
            let a = rec.input("a", &[rows + 2, width])?.narrow(1, rows)?;
            let b = if factors { Some(rec.input("b", &[1, rows, width + 4])?) } else { None };
            let sums = output(rec, "sums", &[width], adds)?;
            record(rec, (&a, 0), b.as_ref().map(|b| (b, 4)), &sums)
        })
    };
    let part = |([rows, width], [from_a, from_b, at]): ([usize; 2], [usize; 3]), adds: bool| {
        Case::new(format!("sum_products {rows} {width}, a part, adds {adds}"), 0.3, move |rec| {
            let a = rec.input("a", &[2, rows, width + from_a + 1])?.row(1)?;
            let b = rec.input("b", &[rows, width + from_b + 1])?;
            let tensor = rec.activation("sums", &[at + width + 1])?.narrow(at, width)?;
            record(rec, (&a, from_a), Some((&b, from_b)), &Target { tensor, adds })
        })
    };
    let long = Case::new("sum_products 600001 rows of one tensor", 0.02, |rec| {
        let (x, out) = (rec.input("x", &[600_001, 1])?, rec.activation("out", &[1])?);
        record(rec, (&x, 0), Some((&x, 0)), &Target::replace(&out))
    });
    let sizes = [(1, 1, 1.0), (5, 3, 1.0), (17, 33, 0.3), (300, 16, 0.3), (65_537, 65, 0.1)].into_iter();
    let ways = [(false, false), (false, true), (true, false), (true, true)];
    let all = sizes.flat_map(|size| ways.map(|(adds, factors)| case(size, adds, factors)));
    let parts = with_and_without([([1, 1], [3, 1, 2]), ([9, 4], [2, 0, 4]), ([17, 33], [3, 1, 2])], part);
    all.chain([case((600_001, 1, 0.02), true, false)]).chain(parts).chain([long]).collect()
}
