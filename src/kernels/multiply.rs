//! `multiply`: the elementwise product of two tensors; the second one is repeated to the length of the first.
//!
//! ```text
//! y[e] (+)= x[e] factor[e % factor_len]      e in 0..len
//! ```

use super::prelude::*;

parameters! {
    /// Parameters of `multiply`.
    Multiply {
        /// Elements of x and y.
        len: u32,
        /// Elements of the factor.
        factor_len: u32,
        /// 1 if y is added to, not replaced.
        adds: u32,
    }
}
operands! { Multiply { x: read, factor: read, y: write } }

/// Records `y (+)= x factor`; the factor's length divides that of x, such as `[B, H]` for `[T, B, H]`.
pub fn record(rec: &mut Recorder<'_>, x: &Tensor, factor: &Tensor, y: &Target) -> Result<()> {
    let Target { tensor: y, adds } = y;
    let doing = "recording a product of elements";
    same_len(doing, x, &[y])?;
    let wanted = format!("a factor whose length divides that of {:?}", x.shape());
    ensure!(x.len().is_multiple_of(factor.len()), Error::shape(doing, wanted, factor.shape()));
    let kernel = Multiply { len: x.len() as u32, factor_len: factor.len() as u32, adds: *adds as u32 };
    rec.push(kernel, Tensors { x, factor, y })
}

impl Kernel for Multiply {
    word!("multiply", |k| fold_elements(k.len as u64, 256));
    needs!(x: [len], factor: [factor_len], y: [len]);
    flops!(1.0, len);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        let len = s.factor.len();
        for (y, x) in s.y.chunks_mut(len).zip(s.x.chunks(len)) {
            for (y, (x, factor)) in y.iter_mut().zip(x.iter().zip(s.factor)) {
                *y = if self.adds != 0 { *y + *x * *factor } else { *x * *factor };
            }
        }
    }
}

/// Factors of one element and of many, whole slots and views.
pub fn cases() -> Vec<Case> {
    let whole = |[len, times]: [usize; 2], adds: bool| {
        Case::new(format!("multiply {times} x {len}, adds {adds}"), 1.0, move |rec| {
            let (x, factor) = (rec.input("x", &[times, len])?, rec.input("factor", &[len])?);
            let y = output(rec, "y", &[times, len], adds)?;
            record(rec, &x, &factor, &y)
        })
    };
    let views = |[len, times]: [usize; 2], adds: bool| {
        Case::new(format!("multiply {times} x {len}, views, adds {adds}"), 1.0, move |rec| {
            let x = rec.input("x", &[times + 2, len])?.narrow(2, times)?;
            let factor = rec.input("factor", &[3, len])?.row(1)?;
            let tensor = rec.activation("y", &[times + 2, len])?.narrow(1, times)?;
            record(rec, &x, &factor, &Target { tensor, adds })
        })
    };
    let sizes = [[1, 1], [3, 1], [1, 5], [17, 33], [257, 300]].into_iter();
    sizes.flat_map(|size| [whole(size, false), whole(size, true), views(size, false), views(size, true)]).collect()
}
