//! `scale`: a multiple of a tensor, with one factor on the device.
//!
//! ```text
//! y[e] (+)= alpha / divisor factor[0] x[e]
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Extent, Kernel, Operand, fold_elements, one_shader, parameters, reads, sized, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `scale`.
    Scale {
        /// Elements.
        len: u32,
        /// First element in y.
        y_offset: u32,
        /// 1 to add to y.
        accumulate: u32,
        /// Divisor (a count: exact in every precision).
        divisor: u32,
        /// Constant factor.
        alpha: f32,
    }
}

/// Records `y (+)= alpha / divisor factor x`; x is a whole slot.
pub fn record(
    rec: &mut Recorder<'_>,
    x: &Tensor,
    (alpha, divisor, factor): (f64, usize, &Tensor),
    (y, accumulate): (&Tensor, bool),
) -> Result<()> {
    if x.len() != y.len() || x.offset != 0 || factor.len() != 1 || factor.offset != 0 {
        return Err(Error::shape("recording a multiple", format!("{:?}", x.shape()), y.shape()));
    }
    let (len, y_offset) = (x.len() as u32, y.offset as u32);
    let (accumulate, divisor, alpha) = (accumulate as u32, divisor as u32, alpha as f32);
    rec.push(Scale { len, y_offset, accumulate, divisor, alpha }, &[x, factor, y])
}

impl Kernel for Scale {
    const NAME: &'static str = "scale";
    const BINDINGS: &'static [Binding] = &[reads("x"), reads("factor"), writes("y")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    const FLOATS: &'static [&'static str] = &["alpha"];
    const VIEWS: bool = true;
    one_shader!("scale", |k| fold_elements(k.len as u64, 256));

    fn needs(&self) -> Option<Vec<u128>> {
        let len = sized(&[self.len, self.divisor])? / self.divisor as u128;
        Some(vec![len, 1, self.y_offset as u128 + len])
    }

    fn extent(&self) -> Option<Extent> {
        Some(Extent::contiguous(self.y_offset, self.len))
    }

    fn flops(&self) -> f64 {
        2.0 * self.len as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Read(x), Operand::Read(factor), Operand::Write(y)] = operands else {
            unreachable!("bindings of scale")
        };
        let factor = T::of(self.alpha as f64) / T::of(self.divisor as f64) * factor[0];
        for (y, x) in y[self.y_offset as usize..].iter_mut().zip(&x[..self.len as usize]) {
            *y = if self.accumulate != 0 { *y + factor * *x } else { factor * *x };
        }
    }
}
