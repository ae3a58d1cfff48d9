//! `scale`: a multiple of a tensor, with one factor on the device.
//!
//! ```text
//! y[e] (+)= alpha / divisor factor[0] x[e]
//! ```

use super::prelude::*;

parameters! {
    /// Parameters of `scale`.
    Scale {
        /// Elements.
        len: u32,
        /// 1 if y is added to, not replaced.
        adds: u32,
        /// Divisor (a count: exact in every precision).
        divisor: u32,
        /// Constant factor.
        alpha: f64,
    }
}
operands! { Scale { x: read, factor: read, y: write } }

/// Records `y (+)= alpha / divisor factor x`; `factor` is `[1]`.
pub fn record(
    rec: &mut Recorder<'_>,
    x: &Tensor,
    (alpha, divisor, factor): (f64, usize, &Tensor),
    y: &Target,
) -> Result<()> {
    let Target { tensor: y, adds } = y;
    same_len("recording a multiple", x, &[y])?;
    ensure!(factor.len() == 1, Error::shape("recording the factor of a multiple", "[1]", factor.shape()));
    let kernel = Scale { len: x.len() as u32, adds: *adds as u32, divisor: divisor as u32, alpha };
    rec.push(kernel, Tensors { x, factor, y })
}

impl Kernel for Scale {
    word!("scale", |k| fold_elements(k.len as u64, 256));
    needs!(x: [len], factor: [], y: [len]; divisor);
    flops!(2.0, len);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        let factor = T::of(self.alpha) / T::of(self.divisor as f64) * s.factor[0];
        for (y, x) in s.y.iter_mut().zip(s.x) {
            *y = if self.adds != 0 { *y + factor * *x } else { factor * *x };
        }
    }
}

/// Views, added to and replaced.
pub fn cases() -> Vec<Case> {
    let case = |(len, alpha, divisor): (usize, f64, usize), adds: bool| {
        Case::new(format!("scale {len} by {alpha} / {divisor}, adds {adds}"), 1.0, move |rec| {
            let x = rec.input("x", &[3, len])?.row(1)?;
            let factor = rec.input("factor", &[3])?.narrow(1, 1)?;
            let y = output(rec, "y", &[len], adds)?;
            record(rec, &x, (alpha, divisor, &factor), &y)
        })
    };
    let sizes = [(1, 2.0, 1), (3, 0.1, 7), (255, -2.0, 255), (5_000, 2.0, 3), (70_000, -2.0, 70_000)];
    with_and_without(sizes, case)
}
