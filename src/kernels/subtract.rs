//! `subtract`: the difference of two tensors.
//!
//! ```text
//! difference[e] = x[e] - y[e]
//! ```

use super::prelude::*;

parameters! {
    /// Parameters of `subtract`.
    Subtract {
        /// Elements.
        len: u32,
    }
}
operands! { Subtract { x: read, y: read, difference: write } }

/// Records `difference = x - y`.
pub fn record(rec: &mut Recorder<'_>, x: &Tensor, y: &Tensor, difference: &Tensor) -> Result<()> {
    same_len("recording a difference", x, &[y, difference])?;
    rec.push(Subtract { len: x.len() as u32 }, Tensors { x, y, difference })
}

impl Kernel for Subtract {
    word!("subtract", |k| fold_elements(k.len as u64, 256));
    needs!(x: [len], y: [len], difference: [len]);
    flops!(1.0, len);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        for (out, (x, y)) in s.difference.iter_mut().zip(s.x.iter().zip(s.y)) {
            *out = *x - *y;
        }
    }
}

/// Views and whole slots.
pub fn cases() -> Vec<Case> {
    let case = |rows: usize, columns: usize| {
        Case::new(format!("subtract {rows} {columns}"), 1.0, move |rec| {
            let (x, y) = (rec.input("x", &[rows + 2, columns])?.narrow(1, rows)?, rec.input("y", &[rows, columns])?);
            let out = behind_a_row(rec, rows, columns)?;
            record(rec, &x, &y, &out)
        })
    };
    [(1, 1), (3, 85), (70, 300)].map(|(rows, columns)| case(rows, columns)).into()
}
