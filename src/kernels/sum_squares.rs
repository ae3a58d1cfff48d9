//! `sum_squares`: the sum of squares, in parts that [`sum`](super::sum) adds.
//!
//! ```text
//! partials[w] = sum of x[e]^2 over the elements of workgroup w
//! ```

use super::prelude::*;

parameters! {
    /// Parameters of `sum_squares`.
    SumSquares {
        /// Elements.
        len: u32,
        /// Parts.
        partials: u32,
    }
}
operands! { SumSquares { x: read, partials: write } }

/// How many parts a sum of squares over `len` elements has.
pub fn parts(len: usize) -> usize {
    len.div_ceil(4096).clamp(1, 256)
}

/// Records `partials [parts(len)]` of the sum of squares of x.
pub fn record(rec: &mut Recorder<'_>, x: &Tensor, partials: &Tensor) -> Result<()> {
    let count = parts(x.len());
    ensure!(
        partials.len() == count,
        Error::shape("recording a sum of squares", format!("[{count}]"), partials.shape())
    );
    rec.push(SumSquares { len: x.len() as u32, partials: partials.len() as u32 }, Tensors { x, partials })
}

/// Sum of squares of a chunk, in eight interleaved lanes.
fn squares<T: Float>(chunk: &[T]) -> T {
    let mut lanes = [T::ZERO; 8];
    for part in chunk.chunks(8) {
        lanes.iter_mut().zip(part).for_each(|(sum, x)| *sum += *x * *x);
    }
    lanes.into_iter().fold(T::ZERO, |sum, lane| sum + lane)
}

impl Kernel for SumSquares {
    word!("sum_squares", |k| [k.partials, 1, 1]);
    needs!(x: [len], partials: [partials]);
    flops!(2.0, len);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        for (w, partial) in s.partials.iter_mut().enumerate() {
            *partial = T::ZERO;
            for chunk in s.x.chunks(256).skip(w).step_by(self.partials as usize) {
                *partial += squares(chunk);
            }
        }
    }
}

/// One part and many, the most too, of views.
pub fn cases() -> Vec<Case> {
    let case = |len: usize| {
        Case::new(format!("sum_squares {len}"), 1.0, move |rec| {
            let x = rec.input("x", &[3, len])?.row(1)?;
            let out = behind_a_row(rec, parts(len), 1)?;
            record(rec, &x, &out)
        })
    };
    [1, 3, 255, 257, 5_000, 70_000, 1_050_001].map(case).into()
}
