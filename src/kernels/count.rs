//! `count`: the next training step.
//!
//! ```text
//! step[0] += 1      modulo 2^32
//! ```

use super::prelude::*;

parameters! {
    /// `count` has no parameters.
    Count {}
}
operands! { Count { step: write_words } }

/// Records one more training step in the counter `step [1]`.
pub fn record(rec: &mut Recorder<'_>, step: &Tensor) -> Result<()> {
    ensure!(step.len() == 1, Error::shape("recording the count of training steps", "[1]", step.shape()));
    rec.push(Count {}, Tensors { step })
}

impl Kernel for Count {
    word!("count", |_| [1, 1, 1]);
    needs!(step: []);
    flops!(1.0);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        s.step[0] = s.step[0].wrapping_add(1);
    }
}

/// Three steps.
pub fn cases() -> Vec<Case> {
    vec![Case::new("count to 3", 1.0, |rec| {
        let step = rec.counter("step")?;
        (0..3).try_for_each(|_| record(rec, &step))
    })]
}
