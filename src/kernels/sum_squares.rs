//! `sum_squares`: the sum of squares, in parts that [`sum`](super::sum) adds.
//!
//! ```text
//! partials[w] = sum of x[e]^2 over the elements of workgroup w
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, one_shader, parameters, reads, sized, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `sum_squares`.
    SumSquares {
        /// Elements.
        len: u32,
        /// Parts.
        partials: u32,
    }
}

/// How many parts a sum of squares over `len` elements has.
pub fn parts(len: usize) -> usize {
    len.div_ceil(4096).clamp(1, 256)
}

/// Records `partials [parts(len)]` of the sum of squares of x.
pub fn record(rec: &mut Recorder<'_>, x: &Tensor, partials: &Tensor) -> Result<()> {
    if partials.len() != parts(x.len()) {
        return Err(Error::shape("recording a sum of squares", format!("[{}]", parts(x.len())), partials.shape()));
    }
    rec.push(SumSquares { len: x.len() as u32, partials: partials.len() as u32 }, &[x, partials])
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
    const NAME: &'static str = "sum_squares";
    const BINDINGS: &'static [Binding] = &[reads("x"), writes("partials")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    one_shader!("sum_squares", |k| [k.partials, 1, 1]);

    fn needs(&self) -> Option<Vec<u128>> {
        Some(vec![sized(&[self.len])?, sized(&[self.partials])?])
    }

    fn flops(&self) -> f64 {
        2.0 * self.len as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Read(x), Operand::Write(partials)] = operands else { unreachable!("bindings of sum_squares") };
        for (w, partial) in partials[..self.partials as usize].iter_mut().enumerate() {
            *partial = T::ZERO;
            for chunk in x[..self.len as usize].chunks(256).skip(w).step_by(self.partials as usize) {
                *partial += squares(chunk);
            }
        }
    }
}
