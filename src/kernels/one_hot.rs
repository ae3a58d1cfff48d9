//! `one_hot`: turns token ids into unit vectors.
//!
//! ```text
//! y[r, v] = 1 if ids[r] = v, else 0
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, fold_elements, one_shader, parameters, sized, tokens, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `one_hot`.
    OneHot {
        /// Number of ids.
        rows: u32,
        /// Vocabulary size.
        columns: u32,
    }
}

/// Records the unit vectors of `ids` into `y [.., V]`.
pub fn record(rec: &mut Recorder<'_>, ids: &Tensor, y: &Tensor) -> Result<()> {
    rec.check_ids("recording one-hot vectors", ids, y.columns(), false)?;
    if y.rows() != ids.len() {
        return Err(Error::shape("recording one-hot vectors", format!("{} rows", ids.len()), y.shape()));
    }
    rec.push(OneHot { rows: ids.len() as u32, columns: y.columns() as u32 }, &[ids, y])
}

impl Kernel for OneHot {
    const NAME: &'static str = "one_hot";
    const BINDINGS: &'static [Binding] = &[tokens("ids"), writes("y")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    one_shader!("one_hot", |k| fold_elements(k.rows as u64 * k.columns as u64, 256));

    fn needs(&self) -> Option<Vec<u128>> {
        Some(vec![sized(&[self.rows])?, sized(&[self.rows, self.columns])?])
    }

    fn flops(&self) -> f64 {
        self.rows as f64 * self.columns as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Tokens(ids), Operand::Write(y)] = operands else { unreachable!("bindings of one_hot") };
        for (id, y) in ids.iter().zip(y.chunks_exact_mut(self.columns as usize)) {
            y.fill(T::ZERO);
            y[*id as usize] = T::ONE;
        }
    }
}
