//! `count`: the next training step. A float counts to 2^24 only, so two of them hold it.
//!
//! ```text
//! step[0] += 1;  where that makes 2^20: step[0] = 0, step[1] += 1
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, one_shader, parameters, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

/// What one of `step[1]` stands for.
pub const CARRY: u32 = 1 << 20;

parameters! {
    /// Parameters of `count`.
    Count {
        /// What one of `step[1]` stands for: 2^20.
        carry: u32,
    }
}

/// Records one more training step in `step [2]`.
pub fn record(rec: &mut Recorder<'_>, step: &Tensor) -> Result<()> {
    if step.len() != 2 {
        return Err(Error::shape("recording the count of training steps", "[2]", step.shape()));
    }
    rec.push(Count { carry: CARRY }, &[step])
}

impl Kernel for Count {
    const NAME: &'static str = "count";
    const BINDINGS: &'static [Binding] = &[writes("step")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    one_shader!("count", |_| [1, 1, 1]);

    fn needs(&self) -> Option<Vec<u128>> {
        Some(vec![2])
    }

    fn flops(&self) -> f64 {
        1.0
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Write(step)] = operands else { unreachable!("bindings of count") };
        step[0] += T::ONE;
        let carry = T::of(self.carry as f64);
        if step[0] >= carry {
            step[0] = step[0] - carry;
            step[1] += T::ONE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_carry() {
        let mut step = [1_048_574.0f32, 3.0];
        let mut found = Vec::new();
        for _ in 0..3 {
            Count { carry: CARRY }.twin(&mut [Operand::Write(&mut step)]);
            found.push(step);
        }
        assert_eq!(found, [[1_048_575.0, 3.0], [0.0, 4.0], [1.0, 4.0]]);
    }
}
