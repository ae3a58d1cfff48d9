//! `sum`: adds up partial sums.
//!
//! ```text
//! total[0] = sum_e x[e] / divisor, or the square root of that
//! ```

use super::prelude::*;
use crate::kernels::sum_squares;

parameters! {
    /// Parameters of `sum`.
    Sum {
        /// Elements.
        len: u32,
        /// 1 to take the square root.
        root: u32,
        /// Divisor (a count: exact in every precision).
        divisor: u32,
    }
}
operands! { Sum { x: read, total: write } }

/// Records `total [1] = sum(x) / divisor`, or its square root.
pub fn record(rec: &mut Recorder<'_>, x: &Tensor, total: &Tensor, divisor: usize, root: bool) -> Result<()> {
    rec.push(Sum { len: x.len() as u32, root: root as u32, divisor: divisor as u32 }, Tensors { x, total })
}

impl Kernel for Sum {
    word!("sum", |_| [1, 1, 1]);
    needs!(x: [len], total: []; divisor);
    flops!(1.0, len);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        let sum = s.x.iter().map(|x| x.to_f64()).sum::<f64>();
        let sum = T::of(sum / self.divisor as f64);
        s.total[0] = if self.root != 0 { sum.sqrt() } else { sum }; // O1
    }
}

/// Of partial sums of squares, which have a root: means, norms, and a view.
pub fn cases() -> Vec<Case> {
    let case = |len: usize, divisor: usize, root: bool| {
        Case::new(format!("sum of {len} by {divisor}, root {root}"), 1.0, move |rec| {
            let parts = sum_squares::parts(len);
            let (x, partials) = (rec.input("x", &[len])?, rec.activation("partials", &[parts + 2])?.narrow(1, parts)?);
            let total = rec.activation("total", &[3])?.narrow(1, 1)?;
            sum_squares::record(rec, &x, &partials)?;
            record(rec, &partials, &total, divisor, root)
        })
    };
    let sizes = [1, 255, 5_000, 70_000, 1_050_001].into_iter();
    let poisoned = Case::new("sum of 3, replaced", 1.0, |rec| {
        let (x, out) = (rec.input("x", &[3])?, rec.activation("out", &[1])?);
        record(rec, &x, &out, 1, false)
    });
    sizes.flat_map(|len| [case(len, len, false), case(len, 1, true)]).chain([poisoned]).collect()
}
