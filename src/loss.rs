//! Losses: scalars on the device, read when somebody wants to know.

use crate::error::{Error, Result};
use crate::kernels::{self, copy_columns, scale, subtract, sum, sum_squares};
use crate::layers::path;
use crate::plan::Tensor;
use crate::recorder::Recorder;

pub use crate::kernels::softmax_cross_entropy::IGNORE;

/// What [`softmax_cross_entropy`] leaves on the device.
#[derive(Debug, Clone)]
pub struct CrossEntropy {
    /// Mean of `-ln p[target]` over the targets that count, `[1]`.
    pub loss: Tensor,
    /// Share of them whose target is the first largest logit, `[1]`.
    pub accuracy: Tensor,
    /// How many targets count, `[1]`.
    pub counted: Tensor,
    /// Softmax of the logits, `[.., V]`.
    pub probabilities: Tensor,
}

/// Records the mean cross-entropy of `logits [.., V]` against `targets [..]`; targets equal to [`IGNORE`] do not count.
///
/// Many-to-one is one row for each batch entry, many-to-many one for each step and batch entry.
pub fn softmax_cross_entropy(
    rec: &mut Recorder<'_>,
    name: &str,
    logits: &Tensor,
    targets: &Tensor,
) -> Result<CrossEntropy> {
    let probabilities = rec.activation(&path(name, "probabilities"), logits.shape())?;
    let rows = rec.activation(&path(name, "rows"), &[logits.rows(), 3])?;
    let accuracy = rec.activation(&path(name, "accuracy"), &[1])?;
    let counted = rec.activation(&path(name, "counted"), &[1])?;
    let loss = rec.activation(name, &[1])?;
    kernels::softmax_cross_entropy::record(rec, logits, targets, &probabilities, &rows)?;
    kernels::mean_loss::record(rec, &rows, &loss, &accuracy, &counted)?;
    let out = CrossEntropy { loss, accuracy, counted, probabilities };
    let (made, logits, targets) = (out.clone(), logits.clone(), targets.clone());
    rec.on_backward(move |rec| {
        let Some(dloss) = rec.gradient(&made.loss) else { return Ok(()) };
        let Some((dlogits, accumulate)) = rec.contribute(&logits)? else { return Ok(()) };
        let inputs = [&made.probabilities, &targets, &made.counted, &dloss];
        kernels::softmax_cross_entropy_backward::record(rec, inputs, &dlogits, accumulate)
    });
    Ok(out)
}

/// Records the mean squared error over all elements, `[1]`.
pub fn mean_squared_error(rec: &mut Recorder<'_>, name: &str, prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    if prediction.shape() != target.shape() {
        let wanted = format!("{:?}", prediction.shape());
        return Err(Error::shape("recording a mean squared error", wanted, target.shape()));
    }
    let len = prediction.len();
    let difference = rec.activation(&path(name, "difference"), prediction.shape())?;
    let partials = rec.activation(&path(name, "partials"), &[sum_squares::parts(len)])?;
    let loss = rec.activation(name, &[1])?;
    subtract::record(rec, prediction, target, &difference)?;
    sum_squares::record(rec, &difference, &partials)?;
    sum::record(rec, &partials, &loss, len, false)?;
    let (of, prediction, target) = (loss.clone(), prediction.clone(), target.clone());
    rec.on_backward(move |rec| {
        let Some(dloss) = rec.gradient(&of) else { return Ok(()) };
        for (tensor, factor) in [(&prediction, 2.0), (&target, -2.0)] {
            if let Some(gradient) = rec.contribute(tensor)? {
                scale::record(rec, &difference, (factor, len, &dloss), (&gradient.0, gradient.1))?;
            }
        }
        Ok(())
    });
    Ok(loss)
}

/// Records the backward pass from given gradients, one for each output: PyTorch's `backward(gradient=..)`.
/// The gradients are usually inputs.
pub fn backward_from(rec: &mut Recorder<'_>, outputs: &[(&Tensor, &Tensor)]) -> Result<()> {
    rec.begin_backward()?;
    for (output, gradient) in outputs {
        copy_columns::contribute(rec, gradient, output)?;
    }
    rec.walk_tape()
}
