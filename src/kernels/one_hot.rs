//! `one_hot`: turns token ids into unit vectors.
//!
//! ```text
//! y[r, v] = 1 if ids[r] = v, else 0
//! ```

use super::prelude::*;

parameters! {
    /// Parameters of `one_hot`.
    OneHot {
        /// Number of ids.
        rows: u32,
        /// Vocabulary size.
        columns: u32,
    }
}
operands! { OneHot { ids: read_words, y: write } }

/// Records the unit vectors of `ids` into `y [.., V]`.
pub fn record(rec: &mut Recorder<'_>, ids: &Tensor, y: &Tensor) -> Result<()> {
    rec.check_ids("recording one-hot vectors", ids, y.columns(), false)?;
    ensure!(y.rows() == ids.len(), Error::shape("recording one-hot vectors", format!("{} rows", ids.len()), y.shape()));
    rec.push(OneHot { rows: ids.len() as u32, columns: y.columns() as u32 }, Tensors { ids, y })
}

impl Kernel for OneHot {
    word!("one_hot", |k| fold_elements(k.rows as u64 * k.columns as u64, 256));
    needs!(ids: [rows], y: [rows, columns]);
    flops!(1.0, rows, columns);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        for (id, y) in s.ids.iter().zip(s.y.chunks_exact_mut(self.columns as usize)) {
            y.fill(T::ZERO);
            y[*id as usize] = T::ONE;
        }
    }
}

/// Vocabularies larger and smaller than the rows, and views.
pub fn cases() -> Vec<Case> {
    let case = |[rows, vocab]: [usize; 2]| {
        Case::new(format!("one_hot {rows} {vocab}"), 1.0, move |rec| {
            let ids = rec.tokens("ids", &[2, rows], vocab)?.row(1)?;
            let out = behind_a_row(rec, rows, vocab)?;
            record(rec, &ids, &out)
        })
    };
    [[1, 1], [1, 7], [7, 3], [17, 7], [300, 7], [64, 300], [40_000, 2]].map(case).into()
}
