//! A fully connected layer: `y = x W^T + b`.

use super::{check_count, check_size, path};
use crate::error::{Error, Result};
use crate::kernels::{copy_columns, matmul, sum_rows};
use crate::parameters::Parameters;
use crate::plan::Tensor;
use crate::recorder::Recorder;
use crate::rng::Rng;
use serde::{Deserialize, Serialize};

/// Sizes and options of a [`Dense`] layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

    /// Error: a size of zero.
    pub fn validate(&self) -> Result<()> {
        check_size("input_size of a dense layer", self.input_size)?;
        check_size("output_size of a dense layer", self.output_size)?;
        check_count("the weight of a dense layer", &[self.input_size, self.output_size])
    }

    /// Declares `name.weight [output, input]` and `name.bias [output]`, uniform in +-1/sqrt(input) as in PyTorch.
    pub fn declare(&self, parameters: &mut Parameters, name: &str, rng: &mut Rng) -> Result<Dense> {
        self.validate()?;
        let bound = 1.0 / (self.input_size as f64).sqrt();
        let weight = rng.vector(self.output_size * self.input_size, bound);
        parameters.declare(path(name, "weight"), &[self.output_size, self.input_size], weight)?;
        if self.bias {
            parameters.declare(path(name, "bias"), &[self.output_size], rng.vector(self.output_size, bound))?;
        }
        parameters.note_config("DenseConfig", name, self)?;
        Ok(Dense { config: self.clone(), name: name.to_string() })
    }
}

/// A declared fully connected layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// Its sizes.
    pub config: DenseConfig,
    /// Prefix of its parameters and slots.
    pub name: String,
}

impl Dense {
    /// Records `y [.., output] = x [.., input] W^T + b`.
    pub fn record(&self, rec: &mut Recorder<'_>, x: &Tensor) -> Result<Tensor> {
        if x.columns() != self.config.input_size {
            let wanted = format!("[.., {}]", self.config.input_size);
            return Err(Error::shape(format!("recording the dense layer `{}`", self.name), wanted, x.shape()));
        }
        let weight = rec.parameter(&path(&self.name, "weight"))?;
        let bias = if self.config.bias { Some(rec.parameter(&path(&self.name, "bias"))?) } else { None };
        let mut shape = x.shape().to_vec();
        shape.pop();
        shape.push(self.config.output_size);
        let place = rec.instance(&self.name);
        let y = rec.activation(&path(&place, "y"), &shape)?;
        matmul::record(rec, (x, false), (&weight, true), &bias.iter().collect::<Vec<_>>(), (&y, false))?;
        let (x, of) = (x.clone(), y.clone());
        rec.on_backward(move |rec| {
            let Some(dy) = rec.gradient(&of) else { return Ok(()) };
            contribute_products(rec, &dy, &x, &weight)?;
            let biases: Vec<&Tensor> = bias.iter().collect();
            contribute_biases(rec, &path(&place, "sum_dy"), &dy, &biases)
        });
        Ok(y)
    }
}

/// For `y = x W^T`: `dW (+)= dy^T x` and `dx (+)= dy W`.
pub(super) fn contribute_products(rec: &mut Recorder<'_>, dy: &Tensor, x: &Tensor, weight: &Tensor) -> Result<()> {
    if let Some((dweight, accumulate)) = rec.contribute(weight)? {
        matmul::record(rec, (dy, true), (x, false), &[], (&dweight, accumulate))?;
    }
    if let Some((dx, accumulate)) = rec.contribute(x)? {
        matmul::record(rec, (dy, false), (weight, false), &[], (&dx, accumulate))?;
    }
    Ok(())
}

/// For each bias added to all rows of y: `db (+)= sum over rows of dy`, summed once into a slot `sum`.
pub(super) fn contribute_biases(rec: &mut Recorder<'_>, sum: &str, dy: &Tensor, biases: &[&Tensor]) -> Result<()> {
    if biases.is_empty() {
        return Ok(());
    }
    let sums = rec.activation(sum, &[dy.columns()])?;
    sum_rows::record(rec, dy, &sums, false)?;
    biases.iter().try_for_each(|bias| copy_columns::contribute(rec, &sums, bias))
}
