//! `embedding_forward`: looks token ids up in a table.
//!
//! ```text
//! y[r, e] = table[ids[r], e]
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, fold_elements, one_shader, parameters, reads, sized, tokens, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `embedding_forward`.
    EmbeddingForward {
        /// Number of ids.
        rows: u32,
        /// Embedding size.
        columns: u32,
    }
}

/// Records the look-up of `ids` in `table [V, E]` into `y [.., E]`.
pub fn record(rec: &mut Recorder<'_>, ids: &Tensor, table: &Tensor, y: &Tensor) -> Result<()> {
    rec.check_ids("recording an embedding", ids, table.rows(), false)?;
    if y.rows() != ids.len() || y.columns() != table.columns() {
        let wanted = format!("[{}, {}]", ids.len(), table.columns());
        return Err(Error::shape("recording an embedding", wanted, y.shape()));
    }
    let kernel = EmbeddingForward { rows: ids.len() as u32, columns: table.columns() as u32 };
    rec.push(kernel, &[ids, table, y])
}

impl Kernel for EmbeddingForward {
    const NAME: &'static str = "embedding_forward";
    const BINDINGS: &'static [Binding] = &[tokens("ids"), reads("table"), writes("y")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    one_shader!("embedding_forward", |k| fold_elements(k.rows as u64 * k.columns as u64, 256));

    fn needs(&self) -> Option<Vec<u128>> {
        // the table's rows are held against the ids when the step is recorded
        Some(vec![sized(&[self.rows])?, sized(&[self.columns])?, sized(&[self.rows, self.columns])?])
    }

    fn flops(&self) -> f64 {
        self.rows as f64 * self.columns as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Tokens(ids), Operand::Read(table), Operand::Write(y)] = operands else {
            unreachable!("bindings of embedding_forward")
        };
        let columns = self.columns as usize;
        for (id, y) in ids.iter().zip(y.chunks_exact_mut(columns)) {
            y.copy_from_slice(&table[*id as usize * columns..][..columns]);
        }
    }
}
