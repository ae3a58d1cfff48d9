//! A fully connected layer: `y = x W^T + b`.

use super::{check_count, check_size, path};
use crate::error::{Error, Result, ensure};
use crate::kernels::matmul::{self, Matrix};
use crate::kernels::{copy_columns, sum_products};
use crate::layers::ops::with_columns;
use crate::parameters::Parameters;
use crate::recorder::{Recorder, Target};
use crate::rng::Rng;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Sizes and options of a [`Dense`] layer.
///
/// ```
/// use everloop::{Device, Parameters, Recorder, Rng, Store, Workspace, layers::DenseConfig};
/// # fn main() -> everloop::Result<()> {
/// let mut parameters = Parameters::new();
/// let dense = DenseConfig::new(2, 1).declare(&mut parameters, "dense", &mut Rng::new(1))?;
/// parameters.set("dense.weight", &[2.0, -1.0])?;
/// parameters.set("dense.bias", &[0.5])?;
/// let mut rec = Recorder::new(&parameters);
/// let x = rec.input("x", &[3, 2])?;
/// let y = dense.record(&mut rec, &x)?;
/// let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
/// workspace.write(&x, &[1.0f32, 0.0, 0.0, 1.0, 3.0, 4.0])?;
/// workspace.run()?;
/// assert_eq!(workspace.read::<f32>(&y)?, [2.5, -0.5, 2.5]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseConfig {
    /// Columns of x.
    pub input_size: usize,
    /// Columns of y.
    pub output_size: usize,
    /// Whether b is there; yes at first.
    pub bias: bool,
}

impl DenseConfig {
    /// A layer with bias.
    pub fn new(input_size: usize, output_size: usize) -> Self {
        DenseConfig { input_size, output_size, bias: true }
    }

    /// With or without bias.
    pub fn with_bias(self, bias: bool) -> Self {
        DenseConfig { bias, ..self }
    }

    /// Errors: a size of zero, 2^31 weights or more.
    pub fn validate(&self) -> Result<()> {
        check_size("input_size of a dense layer", self.input_size)?;
        check_size("output_size of a dense layer", self.output_size)?;
        check_count("the weight of a dense layer", &[self.input_size, self.output_size])
    }

    /// Declares `name.weight [output, input]` and `name.bias [output]`, uniform in +-1/sqrt(input) as in PyTorch.
    /// Errors: those of [`DenseConfig::validate`], a name that is taken.
    pub fn declare(&self, parameters: &mut Parameters, name: &str, rng: &mut Rng) -> Result<Dense> {
        self.validate()?;
        let bound = 1.0 / (self.input_size as f64).sqrt();
        let weight = rng.vector(self.output_size * self.input_size, bound);
        parameters.declare(path(name, "weight"), &[self.output_size, self.input_size], weight)?;
        if self.bias {
            parameters.declare(path(name, "bias"), &[self.output_size], rng.vector(self.output_size, bound))?;
        }
        parameters.note_config(name, self)?;
        Ok(Dense { config: self.clone(), name: name.to_string() })
    }
}

/// A declared fully connected layer; [`DenseConfig`] has an example.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// Its sizes.
    pub config: DenseConfig,
    /// Prefix of its parameters and slots.
    pub name: String,
}

impl Dense {
    /// Records `y [.., output] = x [.., input] W^T + b`. Errors: another number of columns, a tensor of another plan,
    /// parameters without those of this layer.
    pub fn record(&self, rec: &mut Recorder<'_>, x: &Tensor) -> Result<Tensor> {
        let (doing, wanted) = (format!("recording the dense layer `{}`", self.name), self.config.input_size);
        ensure!(x.columns() == wanted, Error::shape(doing, format!("[.., {wanted}]"), x.shape()));
        rec.attempt(|rec| {
            let weight = rec.parameter(&path(&self.name, "weight"))?;
            let bias = if self.config.bias { Some(rec.parameter(&path(&self.name, "bias"))?) } else { None };
            let place = rec.instance(&self.name);
            let y = rec.activation(&path(&place, "y"), &with_columns(x, self.config.output_size))?;
            let biases: Vec<_> = bias.iter().collect();
            matmul::record(rec, Matrix::plain(x), Matrix::transposed(&weight), &biases, &Target::replace(&y))?;
            let (x, of) = (x.clone(), y.clone());
            rec.on_backward(move |rec| {
                let Some(dy) = rec.gradient(&of) else { return Ok(()) };
                contribute_products(rec, &dy, &x, &weight)?;
                contribute_biases(rec, &path(&place, "sum_dy"), &dy, &bias.iter().collect::<Vec<_>>())
            });
            Ok(y)
        })
    }
}

/// For `y = x W^T`: `dW (+)= dy^T x` and `dx (+)= dy W`.
pub(super) fn contribute_products(rec: &mut Recorder<'_>, dy: &Tensor, x: &Tensor, weight: &Tensor) -> Result<()> {
    if let Some(dweight) = rec.contribute(weight)? {
        matmul::record(rec, Matrix::transposed(dy), Matrix::plain(x), &[], &dweight)?;
    }
    if let Some(dx) = rec.contribute(x)? {
        matmul::record(rec, Matrix::plain(dy), Matrix::plain(weight), &[], &dx)?;
    }
    Ok(())
}

/// For each bias added to all rows of y: `db (+)= sum over rows of dy`, summed once into a slot `sum`, if anybody wants
/// one of them.
pub(super) fn contribute_biases(rec: &mut Recorder<'_>, sum: &str, dy: &Tensor, biases: &[&Tensor]) -> Result<()> {
    let mut wanted = Vec::new();
    for bias in biases {
        wanted.extend(rec.contribute(bias)?);
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let sums = rec.activation(sum, &[dy.columns()])?;
    sum_products::record(rec, (dy, 0), None, &Target::replace(&sums))?;
    wanted.iter().try_for_each(|dbias| copy_columns::record(rec, &sums, dbias))
}
