//! `highway`: a gate that mixes what goes round a layer with what comes out of it (Srivastava et al. 2015).
//!
//! ```text
//! carry[e] = sigmoid(carry[e])
//! y[e] = carry[e] x[e] + (1 - carry[e]) h[e]      e in 0..len
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, fold_elements, one_shader, parameters, reads, sized, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `highway`.
    Highway {
        /// Elements.
        len: u32,
        /// First element in carry.
        carry_offset: u32,
        /// First element in x.
        x_offset: u32,
        /// First element in h.
        h_offset: u32,
        /// First element in y.
        y_offset: u32,
    }
}

/// Records `y = carry x + (1 - carry) h`; `carry` holds the gate before its sigmoid on entry, and after it on return.
pub fn record(rec: &mut Recorder<'_>, carry: &Tensor, x: &Tensor, h: &Tensor, y: &Tensor) -> Result<()> {
    if let Some(other) = [carry, h, y].iter().find(|t| t.len() != x.len()) {
        return Err(Error::shape("recording a highway", format!("{:?}", x.shape()), other.shape()));
    }
    let kernel = Highway {
        len: x.len() as u32,
        carry_offset: carry.offset as u32,
        x_offset: x.offset as u32,
        h_offset: h.offset as u32,
        y_offset: y.offset as u32,
    };
    rec.push(kernel, &[carry, x, h, y])
}

impl Kernel for Highway {
    const NAME: &'static str = "highway";
    const BINDINGS: &'static [Binding] = &[writes("carry"), reads("x"), reads("h"), writes("y")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    const VIEWS: bool = true;
    one_shader!("highway", |k| fold_elements(k.len as u64, 256));

    fn needs(&self) -> Option<Vec<u128>> {
        let len = sized(&[self.len])?;
        let offsets = [self.carry_offset, self.x_offset, self.h_offset, self.y_offset];
        Some(offsets.iter().map(|offset| *offset as u128 + len).collect())
    }

    fn flops(&self) -> f64 {
        10.0 * self.len as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Write(carry), Operand::Read(x), Operand::Read(h), Operand::Write(y)] = operands else {
            unreachable!("bindings of highway")
        };
        let carry = &mut carry[self.carry_offset as usize..];
        let (x, h) = (&x[self.x_offset as usize..], &h[self.h_offset as usize..]);
        let y = &mut y[self.y_offset as usize..];
        for e in 0..self.len as usize {
            carry[e] = carry[e].sigmoid();
            y[e] = carry[e] * x[e] + (T::ONE - carry[e]) * h[e];
        }
    }
}
