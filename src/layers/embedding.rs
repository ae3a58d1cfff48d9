//! Token ids into vectors: a learned table, or unit vectors.

use super::{check_count, check_size, path};
use crate::error::Result;
use crate::kernels;
use crate::parameters::Parameters;
use crate::recorder::Recorder;
use crate::rng::Rng;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Sizes of an [`Embedding`].
///
/// ```
/// use everloop::{Device, Parameters, Recorder, Rng, Store, Workspace, layers::EmbeddingConfig};
/// # fn main() -> everloop::Result<()> {
/// let mut parameters = Parameters::new();
/// let embedding = EmbeddingConfig::new(3, 2).declare(&mut parameters, "embedding", &mut Rng::new(1))?;
/// parameters.set("embedding.weight", &[0.0, 1.0, 10.0, 11.0, 20.0, 21.0])?;
/// let mut rec = Recorder::new(&parameters);
/// let ids = rec.tokens("ids", &[2], 3)?;
/// let y = embedding.record(&mut rec, &ids)?;
/// let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
/// workspace.write_tokens(&ids, &[2, 0])?;
/// workspace.run()?;
/// assert_eq!(workspace.read::<f32>(&y)?, [20.0, 21.0, 0.0, 1.0]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingConfig {
    /// V, rows of the table.
    pub vocab_size: usize,
    /// E, columns of the table.
    pub embedding_size: usize,
}

impl EmbeddingConfig {
    /// A table of `vocab_size` vectors.
    pub fn new(vocab_size: usize, embedding_size: usize) -> Self {
        EmbeddingConfig { vocab_size, embedding_size }
    }

    /// Errors: a size of zero, a table of 2^31 values or more.
    pub fn validate(&self) -> Result<()> {
        check_size("vocab_size of an embedding", self.vocab_size)?;
        check_size("embedding_size of an embedding", self.embedding_size)?;
        check_count("the table of an embedding", &[self.vocab_size, self.embedding_size])
    }

    /// Declares `name.weight [V, E]`, uniform in +-sqrt(3): variance 1, as PyTorch's normal start has.
    /// Errors: those of [`EmbeddingConfig::validate`], a name that is taken.
    pub fn declare(&self, parameters: &mut Parameters, name: &str, rng: &mut Rng) -> Result<Embedding> {
        self.validate()?;
        let values = rng.vector(self.vocab_size * self.embedding_size, 3f64.sqrt());
        parameters.declare(path(name, "weight"), &[self.vocab_size, self.embedding_size], values)?;
        parameters.note_config(name, self)?;
        Ok(Embedding { config: self.clone(), name: name.to_string() })
    }
}

/// A declared table of vectors; [`EmbeddingConfig`] has an example.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// Its sizes.
    pub config: EmbeddingConfig,
    /// Prefix of its parameters and slots.
    pub name: String,
}

impl Embedding {
    /// Records `y [.., E] = table[ids]` for ids of any shape. Errors: no token ids of this plan, ids that may lie
    /// outside the table, parameters without that of this layer.
    pub fn record(&self, rec: &mut Recorder<'_>, ids: &Tensor) -> Result<Tensor> {
        rec.attempt(|rec| {
            let table = rec.parameter(&path(&self.name, "weight"))?;
            let place = rec.instance(&self.name);
            let y = rec.activation(&path(&place, "y"), &[ids.shape(), &[self.config.embedding_size]].concat())?;
            kernels::embedding_forward::record(rec, ids, &table, &y)?;
            let (ids, of) = (ids.clone(), y.clone());
            rec.on_backward(move |rec| {
                let Some(dy) = rec.gradient(&of) else { return Ok(()) };
                let Some(dtable) = rec.contribute(&table)? else { return Ok(()) };
                kernels::embedding_backward::record(rec, &ids, &dy, &dtable)
            });
            Ok(y)
        })
    }
}

/// Records unit vectors `[.., V]` of ids of any shape. Nothing is learned, so no gradient is computed
/// unless [`Recorder::want_gradient`] asks for it.
///
/// Errors: a vocabulary of zero, no token ids of this plan, ids that may lie outside the vocabulary, a name that is
/// taken.
///
/// ```
/// # use everloop::{Device, Parameters, Recorder, Store, Workspace, layers};
/// # fn main() -> everloop::Result<()> {
/// # let parameters = Parameters::new();
/// # let mut rec = Recorder::new(&parameters);
/// let ids = rec.tokens("ids", &[2], 3)?;
/// let y = layers::one_hot(&mut rec, "y", &ids, 3)?;
/// let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
/// workspace.write_tokens(&ids, &[2, 0])?;
/// workspace.run()?;
/// assert_eq!(workspace.read::<f32>(&y)?, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
/// # Ok(()) }
/// ```
pub fn one_hot(rec: &mut Recorder<'_>, name: &str, ids: &Tensor, vocab_size: usize) -> Result<Tensor> {
    check_size("vocab_size of one-hot vectors", vocab_size)?;
    rec.attempt(|rec| {
        let y = rec.activation(name, &[ids.shape(), &[vocab_size]].concat())?;
        kernels::one_hot::record(rec, ids, &y)?;
        Ok(y)
    })
}
