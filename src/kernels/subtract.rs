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
    if x.len() != y.len() || x.len() != difference.len() {
        return Err(Error::shape("recording a difference", format!("{:?}", x.shape()), y.shape()));
    }
    rec.push(Subtract { len: x.len() as u32 }, Tensors { x, y, difference })
}

impl Kernel for Subtract {
    const NAME: &'static str = "subtract";
    plain!(["subtract"], |k| fold_elements(k.len as u64, 256));

    fn needs(&self) -> Option<Sizes> {
        let len = sized(&[self.len])?;
        Some(Sizes { x: len, y: len, difference: len })
    }

    fn flops(&self) -> f64 {
        self.len as f64
    }

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
            let out = rec.activation("out", &[rows + 1, columns])?;
            rec.fill(&out.row(0)?, 0.5)?;
            record(rec, &x, &y, &out.narrow(1, rows)?)
        })
    };
    [(1, 1), (3, 85), (70, 300)].map(|(rows, columns)| case(rows, columns)).into()
}
