//! `copy_columns`: copies or adds a block of columns: concatenation, slices, sums of tensors.
//!
//! ```text
//! target[r, d..d+width] (+)= source[r, s..s+width]      r in 0..rows
//! ```
//!
//! Where rows are steps of batch rows ([`Rows`]), either side may have the batch first, and steps at and past a row's
//! length count as zero, whatever stands there.

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{
    Binding, Extent, Kernel, Operand, fold_elements, one_shader, parameters, reads, sized, tokens, writes,
};
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
        /// Row r is step r / batch of batch row r % batch.
        batch: u32,
        /// 1 if in the source all steps of a batch row lie side by side.
        source_batch_first: u32,
        /// 1 if in the target all steps of a batch row lie side by side.
        target_batch_first: u32,
        /// 1 if batch rows have lengths.
        has_lengths: u32,
    }
}

/// Rows that are steps of batch rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// B
    pub batch: usize,
    /// Whether the source is `[B, T, ..]`.
    pub source_batch_first: bool,
    /// Whether the target is `[B, T, ..]`.
    pub target_batch_first: bool,
    /// Steps of each batch row, ids at most T, `[B]`.
    pub lengths: Option<Tensor>,
}

impl Rows {
    /// The way back.
    pub fn reversed(&self) -> Rows {
        let (source_batch_first, target_batch_first) = (self.target_batch_first, self.source_batch_first);
        Rows { source_batch_first, target_batch_first, ..self.clone() }
    }
}

/// Records `target[.., at..] (+)= source[.., from..from + width]`; all axes but the last are rows.
pub fn record(
    rec: &mut Recorder<'_>,
    source: (&Tensor, usize),
    target: (&Tensor, usize),
    width: usize,
    accumulate: bool,
) -> Result<()> {
    record_rows(rec, source, target, width, accumulate, None)
}

/// As [`record`], over [`Rows`].
pub fn record_rows(
    rec: &mut Recorder<'_>,
    (source, from): (&Tensor, usize),
    (target, at): (&Tensor, usize),
    width: usize,
    accumulate: bool,
    rows: Option<&Rows>,
) -> Result<()> {
    let fits = |start: usize, of: &Tensor| start.checked_add(width).is_some_and(|end| end <= of.columns());
    if source.rows() != target.rows() || !fits(from, source) || !fits(at, target) {
        let wanted = format!("as many rows as {:?} and columns for {width} from {from} to {at}", source.shape());
        return Err(Error::shape("recording a copy of columns", wanted, target.shape()));
    }
    let lengths = rows.and_then(|rows| rows.lengths.as_ref());
    if let (Some(lengths), Some(rows)) = (lengths, rows)
        && (lengths.offset != 0 || lengths.len() != rows.batch)
    {
        let wanted = format!("a whole slot of [{}]", rows.batch);
        return Err(Error::shape("recording the lengths of a copy of columns", wanted, lengths.shape()));
    }
    if let Some(rows) = rows.filter(|rows| rows.batch == 0 || source.rows() % rows.batch != 0) {
        return Err(Error::shape(
            "recording a copy of columns",
            format!("steps of {} rows", rows.batch),
            source.shape(),
        ));
    }
    let kernel = CopyColumns {
        rows: source.rows() as u32,
        width: width as u32,
        source_offset: (source.offset + from) as u32,
        source_stride: source.columns() as u32,
        target_offset: (target.offset + at) as u32,
        target_stride: target.columns() as u32,
        accumulate: accumulate as u32,
        batch: rows.map_or(1, |rows| rows.batch) as u32,
        source_batch_first: rows.is_some_and(|rows| rows.source_batch_first) as u32,
        target_batch_first: rows.is_some_and(|rows| rows.target_batch_first) as u32,
        has_lengths: lengths.is_some() as u32,
    };
    rec.push_some(kernel, &[Some(source), Some(target), lengths])
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
    const BINDINGS: &'static [Binding] = &[reads("source"), writes("target_"), tokens("lengths")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    const VIEWS: bool = true;
    one_shader!("copy_columns", |k| fold_elements(k.rows as u64 * k.width as u64, 256));

    fn needs(&self) -> Option<Vec<u128>> {
        if self.source_stride < self.width || self.target_stride < self.width {
            return None;
        }
        let rows = sized(&[self.rows, self.width, self.batch])? / (self.width as u128 * self.batch as u128) - 1;
        let reach = |offset: u32, stride: u32| offset as u128 + rows * stride as u128 + self.width as u128;
        let lengths = if self.has_lengths != 0 { self.batch as u128 } else { 0 };
        self.rows.is_multiple_of(self.batch).then(|| {
            vec![reach(self.source_offset, self.source_stride), reach(self.target_offset, self.target_stride), lengths]
        })
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
        let [Operand::Read(source), Operand::Write(target), Operand::Tokens(lengths)] = operands else {
            unreachable!("bindings of copy_columns")
        };
        let (width, batch) = (self.width as usize, self.batch as usize);
        let steps = self.rows as usize / batch;
        for (t, b) in (0..steps).flat_map(|t| (0..batch).map(move |b| (t, b))) {
            let row = |batch_first: u32| if batch_first != 0 { b * steps + t } else { t * batch + b };
            let (from, to) = (row(self.source_batch_first), row(self.target_batch_first));
            let from = &source[self.source_offset as usize + from * self.source_stride as usize..][..width];
            let to = &mut target[self.target_offset as usize + to * self.target_stride as usize..][..width];
            let ended = self.has_lengths != 0 && t >= lengths[b] as usize;
            for (to, from) in to.iter_mut().zip(from) {
                let from = if ended { T::ZERO } else { *from };
                *to = if self.accumulate != 0 { *to + from } else { from };
            }
        }
    }
}
