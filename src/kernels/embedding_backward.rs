//! `embedding_backward`: the gradient of an embedding table.
//!
//! ```text
//! dtable[v, e] (+)= sum of dy[r, e] over the rows r with ids[r] = v, in order
//! ```

use super::embedding_forward::same_rows;
use super::prelude::*;

parameters! {
    /// Parameters of `embedding_backward`.
    EmbeddingBackward {
        /// Number of ids.
        rows: u32,
        /// Embedding size.
        columns: u32,
        /// Rows of the table.
        vocab_size: u32,
        /// 1 if dtable is added to, not replaced.
        adds: u32,
    }
}
operands! { EmbeddingBackward { ids: read_words, dy: read, dtable: write } }

/// Rows of one dispatch, `CHUNK` in the shader.
const CHUNK: u32 = 32_768;

/// Records `dtable [V, E] (+)= dy [.., E]` scattered by `ids`.
pub fn record(rec: &mut Recorder<'_>, ids: &Tensor, dy: &Tensor, dtable: &Target) -> Result<()> {
    let Target { tensor: dtable, adds } = dtable;
    rec.check_ids("recording the gradient of an embedding", ids, dtable.rows(), false)?;
    same_rows("recording the gradient of an embedding", ids, dtable, dy)?;
    let [rows, columns, vocab_size] = [ids.len(), dtable.columns(), dtable.rows()].map(|size| size as u32);
    rec.push(EmbeddingBackward { rows, columns, vocab_size, adds: *adds as u32 }, Tensors { ids, dy, dtable })
}

impl Kernel for EmbeddingBackward {
    word!("embedding_backward", |k| fold_elements(k.vocab_size as u64 * k.columns as u64, 256), |k| k
        .rows
        .div_ceil(CHUNK));
    needs!(ids: [rows], dy: [rows, columns], dtable: [vocab_size, columns]);
    flops!(1.0, rows, columns);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        let columns = self.columns as usize;
        if self.adds == 0 {
            s.dtable.fill(T::ZERO);
        }
        for (id, dy) in s.ids.iter().zip(s.dy.chunks_exact(columns)) {
            let row = &mut s.dtable[*id as usize * columns..][..columns];
            row.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += *dy);
        }
    }
}

/// Tables larger and smaller than the rows, and more rows than one dispatch takes.
pub fn cases() -> Vec<Case> {
    let case = |[rows, vocab, columns]: [usize; 3], adds: bool| {
        Case::new(format!("embedding_backward {rows} {vocab} {columns}, adds {adds}"), 0.02, move |rec| {
            let ids = rec.tokens("ids", &[2, rows], vocab)?.row(1)?;
            let dy = rec.input("dy", &[3, rows, columns])?.row(1)?;
            let dtable = output(rec, "dtable", &[vocab, columns], adds)?;
            record(rec, &ids, &dy, &dtable)
        })
    };
    let sizes = [[1, 1, 1], [1, 7, 1], [7, 3, 5], [17, 7, 33], [64, 300, 17], [300, 7, 16], [40_000, 2, 1]];
    with_and_without(sizes, case)
}
