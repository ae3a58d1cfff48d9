//! `embedding_backward`: the gradient of an embedding table.
//!
//! ```text
//! dtable[v, e] (+)= sum of dy[r, e] over the rows r with ids[r] = v, in order
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, fold_elements, one_shader, parameters, reads, sized, tokens, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `embedding_backward`.
    EmbeddingBackward {
        /// Number of ids.
        rows: u32,
        /// Embedding size.
        columns: u32,
        /// Rows of the table.
        vocab_size: u32,
        /// 1 to add to dtable.
        accumulate: u32,
    }
}

/// Rows of one dispatch, `CHUNK` in the shader.
const CHUNK: u32 = 32_768;

/// Records `dtable [V, E] (+)= dy [.., E]` scattered by `ids`.
pub fn record(rec: &mut Recorder<'_>, ids: &Tensor, dy: &Tensor, dtable: &Tensor, accumulate: bool) -> Result<()> {
    rec.check_ids("recording the gradient of an embedding", ids, dtable.rows(), false)?;
    if dy.rows() != ids.len() || dy.columns() != dtable.columns() {
        let wanted = format!("[{}, {}]", ids.len(), dtable.columns());
        return Err(Error::shape("recording the gradient of an embedding", wanted, dy.shape()));
    }
    let kernel = EmbeddingBackward {
        rows: ids.len() as u32,
        columns: dtable.columns() as u32,
        vocab_size: dtable.rows() as u32,
        accumulate: accumulate as u32,
    };
    rec.push(kernel, &[ids, dy, dtable])
}

impl Kernel for EmbeddingBackward {
    const NAME: &'static str = "embedding_backward";
    const BINDINGS: &'static [Binding] = &[tokens("ids"), reads("dy"), writes("dtable")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    one_shader!("embedding_backward", |k| fold_elements(k.vocab_size as u64 * k.columns as u64, 256));

    fn repeats(&self) -> u32 {
        self.rows.div_ceil(CHUNK)
    }

    fn needs(&self) -> Option<Vec<u128>> {
        let ids = sized(&[self.rows])?;
        Some(vec![ids, sized(&[self.rows, self.columns])?, sized(&[self.vocab_size, self.columns])?])
    }

    fn flops(&self) -> f64 {
        self.rows as f64 * self.columns as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Tokens(ids), Operand::Read(dy), Operand::Write(dtable)] = operands else {
            unreachable!("bindings of embedding_backward")
        };
        let columns = self.columns as usize;
        if self.accumulate == 0 {
            dtable[..self.vocab_size as usize * columns].fill(T::ZERO);
        }
        for (id, dy) in ids.iter().zip(dy.chunks_exact(columns)) {
            let row = &mut dtable[*id as usize * columns..][..columns];
            row.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += *dy);
        }
    }
}
