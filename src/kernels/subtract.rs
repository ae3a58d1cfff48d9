//! `subtract`: the difference of two tensors.
//!
//! ```text
//! difference[e] = x[e] - y[e]
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, fold_elements, one_shader, parameters, reads, sized, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `subtract`.
    Subtract {
        /// Elements.
        len: u32,
        /// First element in x.
        x_offset: u32,
        /// First element in y.
        y_offset: u32,
    }
}

/// Records `difference = x - y`; the difference is a whole slot.
pub fn record(rec: &mut Recorder<'_>, x: &Tensor, y: &Tensor, difference: &Tensor) -> Result<()> {
    if x.len() != y.len() || x.len() != difference.len() || difference.offset != 0 {
        return Err(Error::shape("recording a difference", format!("{:?}", x.shape()), y.shape()));
    }
    let kernel = Subtract { len: x.len() as u32, x_offset: x.offset as u32, y_offset: y.offset as u32 };
    rec.push(kernel, &[x, y, difference])
}

impl Kernel for Subtract {
    const NAME: &'static str = "subtract";
    const BINDINGS: &'static [Binding] = &[reads("x"), reads("y"), writes("difference")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    const VIEWS: bool = true;
    one_shader!("subtract", |k| fold_elements(k.len as u64, 256));

    fn needs(&self) -> Option<Vec<u128>> {
        let len = sized(&[self.len])?;
        Some(vec![self.x_offset as u128 + len, self.y_offset as u128 + len, len])
    }

    fn flops(&self) -> f64 {
        self.len as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Read(x), Operand::Read(y), Operand::Write(difference)] = operands else {
            unreachable!("bindings of subtract")
        };
        let (x, y) = (&x[self.x_offset as usize..], &y[self.y_offset as usize..]);
        for (out, (x, y)) in difference[..self.len as usize].iter_mut().zip(x.iter().zip(y)) {
            *out = *x - *y;
        }
    }
}
