//! `highway`: a gate that mixes what goes round a layer with what comes out of it (Srivastava et al. 2015).
//!
//! ```text
//! carry[e] = sigmoid(carry[e])
//! y[e] = carry[e] x[e] + (1 - carry[e]) h[e]      e in 0..len
//! ```

use super::prelude::*;
use crate::kernels::copy_columns;

parameters! {
    /// Parameters of `highway`.
    Highway {
        /// Elements.
        len: u32,
    }
}
operands! { Highway { carry: write, x: read, h: read, y: write } }

/// Records `y = carry x + (1 - carry) h`; `carry` holds the gate before its sigmoid on entry, and after it on return.
pub fn record(rec: &mut Recorder<'_>, carry: &Tensor, x: &Tensor, h: &Tensor, y: &Tensor) -> Result<()> {
    same_len("recording a highway", x, &[carry, h, y])?;
    rec.push(Highway { len: x.len() as u32 }, Tensors { carry, x, h, y })
}

impl Kernel for Highway {
    const NAME: &'static str = "highway";
    plain!(["shared/activation", "highway"], |k| fold_elements(k.len as u64, 256));
    needs!(carry: [len], x: [len], h: [len], y: [len]);
    flops!(10.0, len);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        for e in 0..self.len as usize {
            s.carry[e] = s.carry[e].sigmoid();
            s.y[e] = s.carry[e] * s.x[e] + (T::ONE - s.carry[e]) * s.h[e];
        }
    }
}

/// Views; pre-activations up to 10,000; outputs that hold NaN before.
pub fn cases() -> Vec<Case> {
    let case = |len: usize, bound: f64| {
        Case::new(format!("highway {len} within {bound}"), bound, move |rec| {
            let (x, h) = (rec.input("x", &[2, len])?.row(1)?, rec.input("h", &[2, len])?.row(0)?);
            let carry = rec.activation("carry", &[3, len])?.row(1)?;
            let y = rec.activation("y", &[2, len])?.row(1)?;
            record(rec, &carry, &x, &h, &y)
        })
    };
    let poisoned = Case::new("highway 33, outputs replaced", 1.0, |rec| {
        let (gate, x) = (rec.input("gate", &[33])?, rec.input("x", &[33])?);
        let (carry, out) = (rec.activation("carry", &[33])?, rec.activation("out", &[33])?);
        copy_columns::record(rec, &gate, &Target::replace(&carry))?;
        record(rec, &carry, &x, &gate, &out)
    });
    let sizes = [(1, 1.0), (3, 1.0), (257, 8.0), (561, 3.0), (4_800, 3.0), (70_001, 1.0), (257, 1e4)];
    sizes.into_iter().map(|(len, bound)| case(len, bound)).chain([poisoned]).collect()
}
