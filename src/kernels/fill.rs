//! `fill`: sets every element of a tensor; recorded by [`Recorder::fill`](crate::Recorder::fill).
//!
//! ```text
//! result[e] = value      e in 0..len
//! ```

use super::prelude::*;

parameters! {
    /// Parameters of `fill`.
    Fill {
        /// Number of elements.
        len: u32,
        /// The value.
        value: f64,
    }
}
operands! { Fill { result: write } }

impl Kernel for Fill {
    word!("fill", |k| fold_elements(k.len as u64, 256));
    needs!(result: [len]);
    flops!(1.0, len);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        s.result.fill(T::of(self.value));
    }
}

/// Rows in the middle of a slot, and more elements than one dimension of workgroups.
pub fn cases() -> Vec<Case> {
    let rows = |len: usize, value: f64| {
        Case::new(format!("fill {len} with {value}"), 1.0, move |rec| {
            let y = rec.activation("y", &[3, len])?.row(1)?;
            rec.fill(&y, value)
        })
    };
    let whole = Case::new("fill 17000003", 1.0, |rec| {
        let out = rec.activation("out", &[17_000_003])?;
        rec.fill(&out, 2.5)
    });
    vec![rows(1, 0.1), rows(3, 0.0), rows(257, -1e-3), rows(70_001, 3e5), whole]
}
