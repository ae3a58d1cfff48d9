//! `sgd`: stochastic gradient descent over the block of all parameters.
//!
//! ```text
//! parameters[e] -= learning_rate gradients[e]
//! ```

use crate::error::Result;
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, fold_elements, one_shader, parameters, reads, sized, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `sgd`.
    Sgd {
        /// Elements.
        len: u32,
    }
}

/// Records the update of the block of parameters; `learning_rate [1]` is an input.
pub fn record(rec: &mut Recorder<'_>, learning_rate: &Tensor, gradients: &Tensor, parameters: &Tensor) -> Result<()> {
    rec.push(Sgd { len: parameters.len() as u32 }, &[learning_rate, gradients, parameters])
}

impl Kernel for Sgd {
    const NAME: &'static str = "sgd";
    const BINDINGS: &'static [Binding] = &[reads("learning_rate"), reads("gradients"), writes("parameters")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    one_shader!("sgd", |k| fold_elements(k.len as u64, 256));

    fn needs(&self) -> Option<Vec<u128>> {
        let len = sized(&[self.len])?;
        Some(vec![1, len, len])
    }

    fn flops(&self) -> f64 {
        2.0 * self.len as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Read(learning_rate), Operand::Read(gradients), Operand::Write(parameters)] = operands else {
            unreachable!("bindings of sgd")
        };
        for (p, g) in parameters.iter_mut().zip(gradients.iter()) {
            *p = *p - learning_rate[0] * *g;
        }
    }
}
