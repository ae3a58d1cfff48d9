//! `embedding_forward`: looks token ids up in a table.
//!
//! ```text
//! y[r, e] = table[ids[r], e]
//! ```

use super::prelude::*;

parameters! {
    /// Parameters of `embedding_forward`.
    EmbeddingForward {
        /// Number of ids.
        rows: u32,
        /// Embedding size.
        columns: u32,
    }
}
operands! { EmbeddingForward { ids: read_words, table: read, y: write } }

/// Records the look-up of `ids` in `table [V, E]` into `y [.., E]`.
pub fn record(rec: &mut Recorder<'_>, ids: &Tensor, table: &Tensor, y: &Tensor) -> Result<()> {
    rec.check_ids("recording an embedding", ids, table.rows(), false)?;
    same_rows("recording an embedding", ids, table, y)?;
    let kernel = EmbeddingForward { rows: ids.len() as u32, columns: table.columns() as u32 };
    rec.push(kernel, Tensors { ids, table, y })
}

/// Error: y has not a row like those of `table` for each id.
pub(super) fn same_rows(doing: &str, ids: &Tensor, table: &Tensor, y: &Tensor) -> Result<()> {
    let wanted = [ids.len(), table.columns()];
    ensure!([y.rows(), y.columns()] == wanted, Error::shape(doing, format!("{wanted:?}"), y.shape()));
    Ok(())
}

impl Kernel for EmbeddingForward {
    word!("embedding_forward", |k| fold_elements(k.rows as u64 * k.columns as u64, 256));

    // the table's rows are held against the ids when the step is recorded
    needs!(ids: [rows], table: [columns], y: [rows, columns]);
    flops!(1.0, rows, columns);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        let columns = self.columns as usize;
        for (id, y) in s.ids.iter().zip(s.y.chunks_exact_mut(columns)) {
            y.copy_from_slice(&s.table[*id as usize * columns..][..columns]);
        }
    }
}

/// Tables larger and smaller than the rows, and views.
pub fn cases() -> Vec<Case> {
    let case = |[rows, vocab, columns]: [usize; 3]| {
        Case::new(format!("embedding_forward {rows} {vocab} {columns}"), 1.0, move |rec| {
            let ids = rec.tokens("ids", &[2, rows], vocab)?.row(1)?;
            let table = rec.input("table", &[2, vocab, columns])?.row(1)?;
            let out = behind_a_row(rec, rows, columns)?;
            record(rec, &ids, &table, &out)
        })
    };
    [[1, 1, 1], [1, 7, 1], [7, 3, 5], [17, 7, 33], [64, 300, 17], [300, 7, 16], [40_000, 2, 1]].map(case).into()
}
