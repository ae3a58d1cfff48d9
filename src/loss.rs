//! Losses: scalars on the device, read when somebody wants to know.

use crate::error::{Error, Result, ensure};
use crate::kernels::{self, scale, subtract, sum, sum_squares};
use crate::layers::path;
use crate::recorder::Recorder;
use crate::tensor::Tensor;

pub use crate::kernels::softmax_cross_entropy::IGNORE;

/// What [`softmax_cross_entropy`] leaves on the device.
///
/// [`softmax_cross_entropy`] has an example.
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
///
/// Errors: another number of targets than of rows, targets that may lie outside the classes, tensors of another plan or
/// type, a name that is taken.
///
/// ```
/// use everloop::{Device, Parameters, Recorder, Store, Workspace, loss};
/// # fn main() -> everloop::Result<()> {
/// let parameters = Parameters::new();
/// let mut rec = Recorder::new(&parameters);
/// let (logits, targets) = (rec.input("logits", &[3, 2])?, rec.targets("targets", &[3], 2)?);
/// let out = loss::softmax_cross_entropy(&mut rec, "loss", &logits, &targets)?;
/// let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
/// workspace.write(&logits, &[0.0f32; 6])?;
/// workspace.write_tokens(&targets, &[0, 1, loss::IGNORE])?;
/// workspace.run()?;
/// assert!((workspace.scalar(&out.loss)? - 2f64.ln()).abs() < 1e-6);
/// assert_eq!(workspace.scalar(&out.counted)?, 2.0);
/// assert_eq!(workspace.scalar(&out.accuracy)?, 0.5); // of equal logits the first is the largest
/// # Ok(()) }
/// ```
pub fn softmax_cross_entropy(
    rec: &mut Recorder<'_>,
    name: &str,
    logits: &Tensor,
    targets: &Tensor,
) -> Result<CrossEntropy> {
    rec.attempt(|rec| {
        let probabilities = rec.activation(&path(name, "probabilities"), logits.shape())?;
        let rows = rec.activation(&path(name, "rows"), &[logits.rows(), 3])?;
        let accuracy = rec.activation(&path(name, "accuracy"), &[1])?;
        let counted = rec.activation(&path(name, "counted"), &[1])?;
        let loss = rec.activation(name, &[1])?;
        kernels::softmax_cross_entropy::record(rec, [logits, targets, &probabilities, &rows])?;
        kernels::mean_loss::record(rec, &rows, [&loss, &accuracy, &counted])?;
        let out = CrossEntropy { loss, accuracy, counted, probabilities };
        let (made, logits, targets) = (out.clone(), logits.clone(), targets.clone());
        rec.on_backward(move |rec| {
            let Some(dloss) = rec.gradient(&made.loss) else { return Ok(()) };
            let Some(dlogits) = rec.contribute(&logits)? else { return Ok(()) };
            let inputs = [&made.probabilities, &targets, &made.counted, &dloss];
            kernels::softmax_cross_entropy_backward::record(rec, inputs, &dlogits)
        });
        Ok(out)
    })
}

/// Records the mean squared error over all elements, `[1]`.
///
/// Errors: other shapes, tensors of another plan or type, a name that is taken.
///
/// ```
/// use everloop::{Device, Parameters, Recorder, Store, Workspace, loss};
/// # fn main() -> everloop::Result<()> {
/// let parameters = Parameters::new();
/// let mut rec = Recorder::new(&parameters);
/// let (y, wanted) = (rec.input("y", &[2])?, rec.input("wanted", &[2])?);
/// rec.want_gradient(&y)?;
/// let loss = loss::mean_squared_error(&mut rec, "loss", &y, &wanted)?;
/// rec.backward(&loss)?;
/// let dy = rec.gradient(&y).expect("asked for");
/// let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
/// workspace.write(&y, &[1.0f32, 2.0])?;
/// workspace.write(&wanted, &[1.0f32, 4.0])?;
/// workspace.run()?;
/// assert_eq!(workspace.scalar(&loss)?, 2.0);
/// assert_eq!(workspace.read::<f32>(&dy)?, [0.0, -2.0]);
/// # Ok(()) }
/// ```
pub fn mean_squared_error(rec: &mut Recorder<'_>, name: &str, prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    let wanted = format!("{:?}", prediction.shape());
    let same = prediction.shape() == target.shape();
    ensure!(same, Error::shape("recording a mean squared error", wanted, target.shape()));
    rec.attempt(|rec| {
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
                    scale::record(rec, &difference, (factor, len, &dloss), &gradient)?;
                }
            }
            Ok(())
        });
        Ok(loss)
    })
}
