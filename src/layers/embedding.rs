//! Token ids into vectors: a learned table, or unit vectors.

use super::{check_count, check_size, path};
use crate::error::{Error, Result};
use crate::kernels;
use crate::parameters::Parameters;
use crate::plan::Tensor;
use crate::recorder::Recorder;
use crate::rng::Rng;
use serde::{Deserialize, Serialize};

/// Sizes of an [`Embedding`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

    /// Error: a size of zero.
    pub fn validate(&self) -> Result<()> {
        check_size("vocab_size of an embedding", self.vocab_size)?;
        check_size("embedding_size of an embedding", self.embedding_size)?;
        check_count("the table of an embedding", &[self.vocab_size, self.embedding_size])
    }

    /// Declares `name.weight [V, E]`, uniform in +-sqrt(3): variance 1, as PyTorch's normal start has.
    pub fn declare(&self, parameters: &mut Parameters, name: &str, rng: &mut Rng) -> Result<Embedding> {
        self.validate()?;
        let values = rng.vector(self.vocab_size * self.embedding_size, 3f64.sqrt());
        parameters.declare(path(name, "weight"), &[self.vocab_size, self.embedding_size], values)?;
        parameters.note_config("EmbeddingConfig", name, self)?;
        Ok(Embedding { config: self.clone(), name: name.to_string() })
    }
}

/// A declared table of vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// Its sizes.
    pub config: EmbeddingConfig,
    /// Prefix of its parameters and slots.
    pub name: String,
}

impl Embedding {
    /// Records `y [.., E] = table[ids]` for ids of any shape.
    pub fn record(&self, rec: &mut Recorder<'_>, ids: &Tensor) -> Result<Tensor> {
        let table = rec.parameter(&path(&self.name, "weight"))?;
        let mut shape = ids.shape().to_vec();
        shape.push(self.config.embedding_size);
        let place = rec.instance(&self.name);
        let y = rec.activation(&path(&place, "y"), &shape)?;
        kernels::embedding_forward::record(rec, ids, &table, &y)?;
        let (ids, of) = (ids.clone(), y.clone());
        rec.on_backward(move |rec| {
            let Some(dy) = rec.gradient(&of) else { return Ok(()) };
            let Some((dtable, accumulate)) = rec.contribute(&table)? else { return Ok(()) };
            kernels::embedding_backward::record(rec, &ids, &dy, &dtable, accumulate)
        });
        Ok(y)
    }
}

/// Records unit vectors `[.., V]` of ids of any shape. Nothing is learned, so no gradient is computed
/// unless [`Recorder::want_gradient`] asks for it.
pub fn one_hot(rec: &mut Recorder<'_>, name: &str, ids: &Tensor, vocab_size: usize) -> Result<Tensor> {
    if vocab_size == 0 {
        return Err(Error::config("vocab_size of one-hot vectors", "at least 1", 0));
    }
    let mut shape = ids.shape().to_vec();
    shape.push(vocab_size);
    let y = rec.activation(name, &shape)?;
    rec.stop_gradient(&y)?;
    kernels::one_hot::record(rec, ids, &y)?;
    Ok(y)
}
