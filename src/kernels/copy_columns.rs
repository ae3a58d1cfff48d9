//! `copy_columns`: copies or adds a block of columns: concatenation, slices, sums of tensors.
//!
//! ```text
//! result[r, d..d+width] (+)= source[r, s..s+width]      r in 0..rows
//! ```
//!
//! Where rows are steps of batch rows ([`BatchRows`]), either side may have the batch first, and steps at and past a
//! row's length count as zero, whatever stands there.

use super::prelude::*;

parameters! {
    /// Parameters of `copy_columns`.
    CopyColumns {
        /// Rows of both.
        rows: u32,
        /// Columns copied.
        width: u32,
        /// Columns of the source.
        source_stride: u32,
        /// Columns of the result.
        result_stride: u32,
        /// 1 if the result is added to, not replaced.
        adds: u32,
        /// Row r is step r / batch of batch row r % batch.
        batch: u32,
        /// 1 if in the source all steps of a batch row lie side by side.
        source_batch_first: u32,
        /// 1 if in the result all steps of a batch row lie side by side.
        result_batch_first: u32,
        /// 1 if batch rows have lengths.
        has_lengths: u32,
    }
}
operands! { CopyColumns { source: read, result: write, lengths: [read_words] } }

/// Rows that are steps of batch rows.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchRows {
    /// B
    pub batch: usize,
    /// Whether the source is `[B, T, ..]`.
    pub source_batch_first: bool,
    /// Whether the target is `[B, T, ..]`.
    pub target_batch_first: bool,
    /// Steps of each batch row, at most T, `[B]`.
    pub lengths: Option<Tensor>,
}

impl BatchRows {
    /// The way back.
    pub fn reversed(&self) -> BatchRows {
        let (source_batch_first, target_batch_first) = (self.target_batch_first, self.source_batch_first);
        BatchRows { source_batch_first, target_batch_first, ..self.clone() }
    }
}

/// Records `result (+)= source`, element by element.
pub fn record(rec: &mut Recorder<'_>, source: &Tensor, result: &Target) -> Result<()> {
    let wanted = format!("as many elements as {:?}", source.shape());
    ensure!(source.len() == result.tensor.len(), Error::shape("recording a copy", wanted, result.tensor.shape()));
    let result = Target { tensor: result.tensor.reshape(source.shape())?, adds: result.adds };
    record_columns(rec, (source, 0), (&result, 0), source.columns(), None)
}

/// Records `result[.., at..at + width] (+)= source[.., from..from + width]`, also over [`BatchRows`]; all axes but the
/// last are rows.
pub fn record_columns(
    rec: &mut Recorder<'_>,
    (source, from): (&Tensor, usize),
    (result, at): (&Target, usize),
    width: usize,
    rows: Option<&BatchRows>,
) -> Result<()> {
    let doing = "recording a copy of columns";
    let Target { tensor: result, adds } = result;
    let fits = |start: usize, of: &Tensor| start.checked_add(width).is_some_and(|end| end <= of.columns());
    let good = width > 0 && source.rows() == result.rows() && fits(from, source) && fits(at, result);
    let wanted = || format!("as many rows as {:?} and columns for {width} from {from} to {at}", source.shape());
    ensure!(good, Error::shape(doing, wanted(), result.shape()));
    let batch = rows.map_or(1, |rows| rows.batch);
    let good = batch > 0 && source.rows().is_multiple_of(batch);
    ensure!(good, Error::shape(doing, format!("steps of {batch} rows"), source.shape()));
    let lengths = rows.and_then(|rows| rows.lengths.as_ref());
    if let Some(lengths) = lengths {
        rec.check_lengths(doing, lengths, batch, source.rows() / batch)?;
    }
    let sizes = [source.rows(), width, source.columns(), result.columns(), batch];
    let [count, width, source_stride, result_stride, batch] = sizes.map(|size| size as u32);
    let first = rows.map_or([false; 2], |rows| [rows.source_batch_first, rows.target_batch_first]);
    let [source_batch_first, result_batch_first] = first.map(u32::from);
    let [adds, has_lengths] = [*adds, lengths.is_some()].map(u32::from);
    let (source, result) = (behind(source, from)?, behind(result, at)?);
    let kernel = CopyColumns {
        rows: count,
        width,
        source_stride,
        result_stride,
        adds,
        batch,
        source_batch_first,
        result_batch_first,
        has_lengths,
    };
    rec.push(kernel, Tensors { source: &source, result: &result, lengths })
}

/// All elements of a tensor from one on: where a block of columns begins.
pub(super) fn behind(tensor: &Tensor, first: usize) -> Result<Tensor> {
    match first {
        0 => Ok(tensor.clone()),
        _ => tensor.reshape(&[tensor.len()])?.narrow(first, tensor.len() - first),
    }
}

impl Kernel for CopyColumns {
    word!("copy_columns", |k| fold_elements(k.rows as u64 * k.width as u64, 256));

    fn needs(&self) -> Option<Sizes> {
        sized(&[self.rows, self.width, self.batch])?;
        if self.source_stride < self.width || self.result_stride < self.width || !self.rows.is_multiple_of(self.batch) {
            return None;
        }
        let reach = |stride: u32| (self.rows - 1) as u128 * stride as u128 + self.width as u128;
        let lengths = if self.has_lengths != 0 { self.batch as u128 } else { 0 };
        Some(Sizes { source: reach(self.source_stride), result: reach(self.result_stride), lengths })
    }

    fn extent(&self) -> Option<Extent> {
        let [rows, width, stride] = [self.rows, self.width, self.result_stride].map(|size| size as usize);
        Some(Extent { start: 0, rows, width, stride })
    }

    flops!(1.0, rows, width);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        let (width, batch) = (self.width as usize, self.batch as usize);
        let steps = self.rows as usize / batch;
        for (t, b) in (0..steps).flat_map(|t| (0..batch).map(move |b| (t, b))) {
            let row = |batch_first: u32| if batch_first != 0 { b * steps + t } else { t * batch + b };
            let from = &s.source[row(self.source_batch_first) * self.source_stride as usize..][..width];
            let to = &mut s.result[row(self.result_batch_first) * self.result_stride as usize..][..width];
            let ended = self.has_lengths != 0 && t >= s.lengths[b] as usize;
            for (to, from) in to.iter_mut().zip(from) {
                let from = if ended { T::ZERO } else { *from };
                *to = if self.adds != 0 { *to + from } else { from };
            }
        }
    }
}

/// Whole tensors, blocks of columns, and rows in every order, with and without lengths.
pub fn cases() -> Vec<Case> {
    let whole = |len: usize, adds: bool| {
        Case::new(format!("copy_columns all of {len}, adds {adds}"), 1.0, move |rec| {
            let x = rec.input("x", &[3, len])?.row(1)?;
            let y = output(rec, "y", &[1, len, 1], adds)?;
            record(rec, &x, &y)
        })
    };
    let block = |([rows, width], [from, source], [at, result]): ([usize; 2], [usize; 2], [usize; 2]), adds: bool| {
        let name = format!("copy_columns {rows} x {width}, {from} of {source} to {at} of {result}, adds {adds}");
        Case::new(name, 1.0, move |rec| {
            let x = rec.input("x", &[rows + 1, source])?.narrow(1, rows)?;
            let tensor = rec.activation("y", &[rows + 2, result])?.narrow(1, rows)?;
            record_columns(rec, (&x, from), (&Target { tensor, adds }, at), width, None)
        })
    };
    let batches = |[steps, batch, width]: [usize; 3], options: u32| {
        let has = |option: u32| options & option != 0;
        let (source_batch_first, target_batch_first, has_lengths, adds) = (has(1), has(2), has(4), has(8));
        Case::new(format!("copy_columns {steps} x {batch} x {width}, options {options}"), 1.0, move |rec| {
            let x = rec.input("x", &[steps * batch, width + 2])?;
            let tensor = rec.activation("y", &[2, steps * batch, width + 1])?.row(1)?;
            let lengths = has_lengths.then(|| rec.lengths("lengths", batch, steps)).transpose()?;
            let rows = BatchRows { batch, source_batch_first, target_batch_first, lengths };
            record_columns(rec, (&x, 2), (&Target { tensor, adds }, 1), width, Some(&rows))
        })
    };
    let mut all = with_and_without([1, 3, 257, 70_001], whole);
    let blocks = [
        ([1, 1], [0, 1], [0, 1]),
        ([1, 1], [3, 4], [1, 2]),
        ([5, 3], [4, 7], [6, 9]),
        ([17, 33], [3, 36], [1, 34]),
        ([300, 16], [0, 16], [32, 48]),
        ([300, 16], [3, 19], [1, 17]),
    ];
    all.extend(with_and_without(blocks, block));
    let sizes = [[1, 1, 1], [5, 3, 17], [4, 33, 3]].into_iter();
    all.extend(sizes.flat_map(|sizes| (0..16).map(move |options| batches(sizes, options))));
    all
}
