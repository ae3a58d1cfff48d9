//! `sgd`: stochastic gradient descent over the block of all parameters.
//!
//! ```text
//! parameters[e] -= learning_rate gradients[e]
//! ```

use super::prelude::*;

parameters! {
    /// Parameters of `sgd`.
    Sgd {
        /// Elements.
        len: u32,
    }
}
operands! { Sgd { learning_rate: read, gradients: read, parameters: write } }

/// Records the update of the block of parameters; `learning_rate` is `[1]`.
pub fn record(rec: &mut Recorder<'_>, learning_rate: &Tensor, gradients: &Tensor, parameters: &Tensor) -> Result<()> {
    rec.push(Sgd { len: parameters.len() as u32 }, Tensors { learning_rate, gradients, parameters })
}

impl Kernel for Sgd {
    word!("sgd", |k| fold_elements(k.len as u64, 256));
    needs!(learning_rate: [], gradients: [len], parameters: [len]);
    flops!(2.0, len);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        for (p, g) in s.parameters.iter_mut().zip(s.gradients) {
            *p = *p - s.learning_rate[0] * *g; // O3
        }
    }
}

/// Views.
pub fn cases() -> Vec<Case> {
    let case = |len: usize| {
        Case::new(format!("sgd {len}"), 1.0, move |rec| {
            let learning_rate = rec.input("learning_rate", &[3])?.narrow(1, 1)?;
            let gradients = rec.input("gradients", &[3, len])?.row(2)?;
            let parameters = rec.activation("parameters", &[3, len])?.row(1)?;
            record(rec, &learning_rate, &gradients, &parameters)
        })
    };
    [1, 3, 255, 5_000, 70_000].map(case).into()
}
