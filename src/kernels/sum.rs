//! `sum`: adds up partial sums.
//!
//! ```text
//! total[0] = sum_e x[e] / divisor, or the square root of that
//! ```

use crate::error::Result;
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, one_shader, parameters, reads, sized, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `sum`.
    Sum {
        /// Elements.
        len: u32,
        /// 1 to take the square root.
        root: u32,
        /// Divisor (a count: exact in every precision).
        divisor: u32,
    }
}

/// Records `total [1] = sum(x) / divisor`, or its square root.
pub fn record(rec: &mut Recorder<'_>, x: &Tensor, total: &Tensor, divisor: usize, root: bool) -> Result<()> {
    rec.push(Sum { len: x.len() as u32, root: root as u32, divisor: divisor as u32 }, &[x, total])
}

impl Kernel for Sum {
    const NAME: &'static str = "sum";
    const BINDINGS: &'static [Binding] = &[reads("x"), writes("total")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    one_shader!("sum", |_| [1, 1, 1]);

    fn needs(&self) -> Option<Vec<u128>> {
        Some(vec![sized(&[self.len, self.divisor])? / self.divisor as u128, 1])
    }

    fn flops(&self) -> f64 {
        self.len as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Read(x), Operand::Write(total)] = operands else { unreachable!("bindings of sum") };
        let sum = x[..self.len as usize].iter().map(|x| x.to_f64()).sum::<f64>();
        let sum = T::of(sum / self.divisor as f64);
        total[0] = if self.root != 0 { sum.sqrt() } else { sum };
    }
}
