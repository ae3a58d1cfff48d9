//! `fill`: sets every element of a slot, or of some rows of it.
//!
//! ```text
//! target[e] = value      e in 0..len
//! ```

use crate::float::Float;
use crate::kernel::{Binding, Extent, Kernel, Operand, fold_elements, one_shader, parameters, sized, writes};

parameters! {
    /// Parameters of `fill`.
    Fill {
        /// Number of elements.
        len: u32,
        /// First element within the slot.
        offset: u32,
        /// The value.
        value: f32,
    }
}

impl Kernel for Fill {
    const NAME: &'static str = "fill";
    const BINDINGS: &'static [Binding] = &[writes("target_")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    const FLOATS: &'static [&'static str] = &["value"];

    const VIEWS: bool = true;
    one_shader!("fill", |k| fold_elements(k.len as u64, 256));

    fn needs(&self) -> Option<Vec<u128>> {
        Some(vec![self.offset as u128 + sized(&[self.len])?])
    }

    fn extent(&self) -> Option<Extent> {
        Some(Extent::contiguous(self.offset, self.len))
    }

    fn flops(&self) -> f64 {
        self.len as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Write(target)] = operands else { unreachable!("bindings of fill") };
        target[self.offset as usize..][..self.len as usize].fill(T::of(self.value as f64));
    }
}
