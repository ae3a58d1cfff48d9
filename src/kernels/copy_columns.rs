//! `copy_columns`: copies or adds a block of columns: concatenation, slices, sums of tensors.
//!
//! ```text
//! target[r, d..d+width] (+)= source[r, s..s+width]      r in 0..rows
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Extent, Kernel, Operand, fold_elements, one_shader, parameters, reads, sized, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `copy_columns`.
    CopyColumns {
        /// Rows of both.
        rows: u32,
        /// Columns copied.
        width: u32,
        /// First element in the source.
        source_offset: u32,
        /// Columns of the source.
        source_stride: u32,
        /// First element in the target.
        target_offset: u32,
        /// Columns of the target.
        target_stride: u32,
        /// 1 to add to the target.
        accumulate: u32,
    }
}

/// Records `target[.., at..] (+)= source[.., from..from + width]`; all axes but the last are rows.
pub fn record(
    rec: &mut Recorder<'_>,
    (source, from): (&Tensor, usize),
    (target, at): (&Tensor, usize),
    width: usize,
    accumulate: bool,
) -> Result<()> {
    let fits = |start: usize, of: &Tensor| start.checked_add(width).is_some_and(|end| end <= of.columns());
    if source.rows() != target.rows() || !fits(from, source) || !fits(at, target) {
        let wanted = format!("as many rows as {:?} and columns for {width} from {from} to {at}", source.shape());
        return Err(Error::shape("recording a copy of columns", wanted, target.shape()));
    }
    let kernel = CopyColumns {
        rows: source.rows() as u32,
        width: width as u32,
        source_offset: (source.offset + from) as u32,
        source_stride: source.columns() as u32,
        target_offset: (target.offset + at) as u32,
        target_stride: target.columns() as u32,
        accumulate: accumulate as u32,
    };
    rec.push(kernel, &[source, target])
}

/// Records the contribution of `gradient` to the gradient of `of`, if anybody wants that.
pub fn contribute(rec: &mut Recorder<'_>, gradient: &Tensor, of: &Tensor) -> Result<()> {
    if gradient.len() != of.len() {
        return Err(Error::shape("recording a gradient", format!("{:?}", of.shape()), gradient.shape()));
    }
    match rec.contribute(of)? {
        Some((target, accumulate)) => {
            let gradient = gradient.reshape(of.shape())?;
            record(rec, (&gradient, 0), (&target, 0), of.columns(), accumulate)
        }
        None => Ok(()),
    }
}

impl Kernel for CopyColumns {
    const NAME: &'static str = "copy_columns";
    const BINDINGS: &'static [Binding] = &[reads("source"), writes("target_")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    const VIEWS: bool = true;
    one_shader!("copy_columns", |k| fold_elements(k.rows as u64 * k.width as u64, 256));

    fn needs(&self) -> Option<Vec<u128>> {
        let rows = sized(&[self.rows, self.width])? / self.width as u128 - 1;
        let reach = |offset: u32, stride: u32| offset as u128 + rows * stride as u128 + self.width as u128;
        Some(vec![reach(self.source_offset, self.source_stride), reach(self.target_offset, self.target_stride)])
    }

    fn extent(&self) -> Option<Extent> {
        Some(Extent {
            start: self.target_offset as usize,
            rows: self.rows as usize,
            width: self.width as usize,
            stride: self.target_stride as usize,
        })
    }

    fn flops(&self) -> f64 {
        self.rows as f64 * self.width as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Read(source), Operand::Write(target)] = operands else {
            unreachable!("bindings of copy_columns")
        };
        let width = self.width as usize;
        for row in 0..self.rows as usize {
            let from = &source[self.source_offset as usize + row * self.source_stride as usize..][..width];
            let to = &mut target[self.target_offset as usize + row * self.target_stride as usize..][..width];
            for (to, from) in to.iter_mut().zip(from) {
                *to = if self.accumulate != 0 { *to + *from } else { *from };
            }
        }
    }
}
