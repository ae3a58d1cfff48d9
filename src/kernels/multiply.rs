//! `multiply`: the elementwise product of two tensors; the second one is repeated to the length of the first.
//!
//! ```text
//! y[e] (+)= x[e] factor[e % factor_len]      e in 0..len
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Extent, Kernel, Operand, fold_elements, one_shader, parameters, reads, sized, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `multiply`.
    Multiply {
        /// Elements of x and y.
        len: u32,
        /// Elements of the factor.
        factor_len: u32,
        /// First element in x.
        x_offset: u32,
        /// First element in the factor.
        factor_offset: u32,
        /// First element in y.
        y_offset: u32,
        /// 1 to add to y.
        accumulate: u32,
    }
}

/// Records `y (+)= x factor`; the factor's length divides that of x, such as `[B, H]` for `[T, B, H]`.
pub fn record(rec: &mut Recorder<'_>, x: &Tensor, factor: &Tensor, (y, accumulate): (&Tensor, bool)) -> Result<()> {
    if x.len() != y.len() {
        return Err(Error::shape("recording a product of elements", format!("{:?}", x.shape()), y.shape()));
    }
    if !x.len().is_multiple_of(factor.len()) {
        let wanted = format!("a factor whose length divides that of {:?}", x.shape());
        return Err(Error::shape("recording a product of elements", wanted, factor.shape()));
    }
    let kernel = Multiply {
        len: x.len() as u32,
        factor_len: factor.len() as u32,
        x_offset: x.offset as u32,
        factor_offset: factor.offset as u32,
        y_offset: y.offset as u32,
        accumulate: accumulate as u32,
    };
    rec.push(kernel, &[x, factor, y])
}

impl Kernel for Multiply {
    const NAME: &'static str = "multiply";
    const BINDINGS: &'static [Binding] = &[reads("x"), reads("factor"), writes("y")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    const VIEWS: bool = true;
    one_shader!("multiply", |k| fold_elements(k.len as u64, 256));

    fn needs(&self) -> Option<Vec<u128>> {
        let reach = |offset: u32, len: u32| Some(offset as u128 + sized(&[len])?);
        Some(vec![
            reach(self.x_offset, self.len)?,
            reach(self.factor_offset, self.factor_len)?,
            reach(self.y_offset, self.len)?,
        ])
    }

    fn extent(&self) -> Option<Extent> {
        Some(Extent::contiguous(self.y_offset, self.len))
    }

    fn flops(&self) -> f64 {
        self.len as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Read(x), Operand::Read(factor), Operand::Write(y)] = operands else {
            unreachable!("bindings of multiply")
        };
        let factor = &factor[self.factor_offset as usize..][..self.factor_len as usize];
        let x = &x[self.x_offset as usize..][..self.len as usize];
        let y = &mut y[self.y_offset as usize..][..self.len as usize];
        for (y, x) in y.chunks_mut(factor.len()).zip(x.chunks(factor.len())) {
            for (y, (x, factor)) in y.iter_mut().zip(x.iter().zip(factor)) {
                *y = if self.accumulate != 0 { *y + *x * *factor } else { *x * *factor };
            }
        }
    }
}
