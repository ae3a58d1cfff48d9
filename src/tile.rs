//! The inner loop of the CPU's recurrence: a few rows times a packed panel, all sums in registers.
//!
//! A *panel* holds, for each summed index k, four vectors of `N` lanes side by side: `[k][4][N]`.
//! Going forward the four vectors are the gates of `N` units; going back they are `4 N` units. Each
//! worker owns batch rows for a whole sequence, so threads meet only at its end.

use crate::float::{Float, Vectorized, multiply_add};
use crate::kernel::Scratch;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// `[row][vector][lane]` sums of one block.
pub(crate) type Sums<T, const N: usize, const R: usize> = [[[T; N]; 4]; R];

/// `sums[r][v] = sum_k x[k][r] panel[k][v]`, with the rows of x interleaved by [`interleave`].
///
/// Nothing in the loop can fail, so the compiler keeps all sums in registers.
#[inline(always)]
pub(crate) fn multiply<T: Float, const N: usize, const R: usize, const FMA: bool>(
    x: &[T],
    panel: &[T],
) -> Sums<T, N, R> {
    let mut sums = [[[T::ZERO; N]; 4]; R];
    for (values, weights) in x.chunks_exact(R).zip(panel.chunks_exact(4 * N)) {
        for v in 0..4 {
            for r in 0..R {
                for lane in 0..N {
                    sums[r][v][lane] = multiply_add::<T, FMA>(values[r], weights[v * N + lane], sums[r][v][lane]);
                }
            }
        }
    }
    sums
}

/// `[rows, width]` to `[block][k][row of the block]`, in blocks of at most `most` rows.
#[inline(always)]
pub(crate) fn interleave<T: Float>(rows: &[T], width: usize, most: usize, to: &mut [T]) {
    for block in blocks(rows.len() / width, most) {
        let range = block.start * width..block.end * width;
        let (rows, to) = (&rows[range.clone()], &mut to[range]);
        match block.len() {
            1 => to.copy_from_slice(rows),
            2 => interleave_block::<T, 2>(rows, width, to),
            3 => interleave_block::<T, 3>(rows, width, to),
            4 => interleave_block::<T, 4>(rows, width, to),
            5 => interleave_block::<T, 5>(rows, width, to),
            _ => interleave_block::<T, 6>(rows, width, to),
        }
    }
}

#[inline(always)]
fn interleave_block<T: Float, const R: usize>(rows: &[T], width: usize, to: &mut [T]) {
    let rows: [&[T]; R] = std::array::from_fn(|r| &rows[r * width..][..width]);
    for (k, to) in to.chunks_exact_mut(R).take(width).enumerate() {
        for r in 0..R {
            to[r] = rows[r][k];
        }
    }
}

/// Packs rows of a matrix into a panel `[k][width]`: lane v of every k is from `row(v)`, zero where there is none.
pub(crate) fn pack<'a, T: Float>(panel: &mut [T], width: usize, row: impl Fn(usize) -> Option<&'a [T]>) {
    // blocks of k that stay in the nearest cache, so that neither side walks over far memory
    for (block, to) in panel.chunks_mut(16 * width).enumerate() {
        for v in 0..width {
            match row(v) {
                Some(row) => {
                    for (k, value) in row[16 * block..].iter().take(to.len() / width).enumerate() {
                        to[k * width + v] = *value;
                    }
                }
                None => to[v..].iter_mut().step_by(width).for_each(|to| *to = T::ZERO),
            }
        }
    }
}

/// Packs a matrix of `count` rows, each `len` long from the start of `row(n)`, into panels `[panel][k][width]`.
pub(crate) fn pack_rows<'a, T: Float>(
    panels: &mut [T],
    width: usize,
    len: usize,
    count: usize,
    row: impl Fn(usize) -> &'a [T],
) {
    for (p, panel) in panels.chunks_exact_mut(len * width).enumerate() {
        pack(panel, width, |v| (p * width + v < count).then(|| &row(p * width + v)[..len]));
    }
}

/// `N` lanes from the start of a slice; those from `valid` on are zero.
#[inline(always)]
pub(crate) fn load<T: Float, const N: usize>(from: &[T], valid: usize) -> [T; N] {
    let mut lanes = [T::ZERO; N];
    if valid >= N {
        lanes.copy_from_slice(&from[..N]);
    } else {
        lanes[..valid].copy_from_slice(&from[..valid]);
    }
    lanes
}

/// The first `valid` of `N` lanes to the start of a slice.
#[inline(always)]
pub(crate) fn store<T: Float, const N: usize>(lanes: &[T; N], to: &mut [T], valid: usize) {
    if valid >= N {
        to[..N].copy_from_slice(lanes);
    } else {
        to[..valid].copy_from_slice(&lanes[..valid]);
    }
}

/// Lanes of a vector on this machine.
pub(crate) fn lanes<T: Float>() -> usize {
    struct Width<'a>(&'a mut usize);
    impl Vectorized for Width<'_> {
        #[inline(always)]
        fn run<const N: usize, const R: usize, const FMA: bool>(self) {
            *self.0 = N;
        }
    }
    let mut width = 0;
    T::vectorize(Width(&mut width));
    width
}

/// The first `len` elements of `scratch` that start on a cache line (a vector load that straddles two is slow).
pub(crate) fn aligned<T: Float>(scratch: &mut Vec<T>, len: usize) -> &mut [T] {
    let line = 64 / size_of::<T>();
    if scratch.len() < len + line {
        scratch.resize(len + line, T::ZERO);
    }
    let start = scratch.as_ptr().align_offset(64).min(line);
    &mut scratch[start..start + len]
}

/// The packed copy of a step's weights, `len` elements from [`from_line`] on, made by `pack` where there is none yet.
pub(crate) fn packed<T: Float>(scratch: &mut Scratch<T>, len: usize, pack: impl FnOnce(&mut [T])) -> Arc<Vec<T>> {
    if !scratch.is_packed {
        pack(aligned(Arc::make_mut(&mut scratch.packed), len));
    }
    scratch.packed.clone()
}

/// What [`aligned`] gave, to be read.
pub(crate) fn from_line<T>(memory: &[T], len: usize) -> &[T] {
    let start = memory.as_ptr().align_offset(64).min(64 / size_of::<T>());
    &memory[start..start + len]
}

/// Below this a second thread costs more than it brings.
const PARALLEL_FLOPS: f64 = 2e6;

/// Batch rows for each thread that works on a direction.
pub(crate) fn row_groups(batch: usize, directions: usize, flops: f64) -> Vec<Range<usize>> {
    let threads = if flops < PARALLEL_FLOPS { 1 } else { rayon::current_num_threads().div_ceil(directions) };
    blocks(batch, batch.div_ceil(threads.clamp(1, batch))).collect()
}

/// Ranges of at most `most`, as even as can be.
#[inline(always)]
pub(crate) fn blocks(len: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = len.div_ceil(most.max(1));
    (0..count).map(move |i| len * i / count..len * (i + 1) / count)
}

/// A `[directions, steps, batch, width]` buffer as one list of per-step slices for each direction and group of rows,
/// the groups of a direction side by side.
pub(crate) fn split_rows<'a, T>(
    mut buffer: &'a mut [T],
    directions: usize,
    batch: usize,
    width: usize,
    groups: &[Range<usize>],
) -> Vec<Vec<&'a mut [T]>> {
    let len = buffer.len() / directions;
    let steps = len / (batch * width);
    let mut lists: Vec<_> = (0..directions * groups.len()).map(|_| Vec::with_capacity(steps)).collect();
    for lists in lists.chunks_mut(groups.len()) {
        let (own, rest) = buffer.split_at_mut(len);
        buffer = rest;
        for mut step in own.chunks_exact_mut(batch * width) {
            for (rows, list) in groups.iter().zip(&mut *lists) {
                let (own, rest) = step.split_at_mut(rows.len() * width);
                list.push(own);
                step = rest;
            }
        }
    }
    lists
}

/// Runs workers, side by side where there is work for several threads.
pub(crate) fn run<T: Float, W: Vectorized + Send>(workers: Vec<W>, flops: f64) {
    match workers.len() == 1 || flops < PARALLEL_FLOPS {
        true => workers.into_iter().for_each(T::vectorize),
        false => workers.into_par_iter().for_each(T::vectorize),
    }
}

/// Calls `block` with the panels of `width` values a k, `count` values in all, and the blocks of at most `R` rows of the interleaved x.
#[inline(always)]
pub(crate) fn each_panel<'a, T: Float>(
    panels: &'a [T],
    x: &'a [T],
    [inner, width, count, rows, most]: [usize; 5],
    mut block: impl FnMut(usize, Range<usize>, &'a [T], &'a [T]),
) {
    for p in 0..count.div_ceil(width) {
        let panel = &panels[p * inner * width..][..inner * width];
        for rows in blocks(rows, most) {
            block(p * width, rows.clone(), &x[rows.start * inner..rows.end * inner], panel);
        }
    }
}

/// Two different entries of a list of slices.
#[inline(always)]
pub(crate) fn pair<'a, T>(list: &'a mut [&mut [T]], first: usize, second: usize) -> (&'a mut [T], &'a mut [T]) {
    let (low, high) = list.split_at_mut(first.max(second));
    if first < second { (&mut *low[first], &mut *high[0]) } else { (&mut *high[0], &mut *low[second]) }
}

/// Calls `$block::<N, rows, FMA>(..)` with the number of rows of a block as a constant.
macro_rules! with_rows {
    ($rows:expr, $object:ident . $block:ident :: <$n:ident, $fma:ident> ( $($argument:expr),* )) => {
        match $rows {
            1 => $object.$block::<$n, 1, $fma>($($argument),*),
            2 => $object.$block::<$n, 2, $fma>($($argument),*),
            3 => $object.$block::<$n, 3, $fma>($($argument),*),
            4 => $object.$block::<$n, 4, $fma>($($argument),*),
            5 => $object.$block::<$n, 5, $fma>($($argument),*),
            _ => $object.$block::<$n, 6, $fma>($($argument),*),
        }
    };
}
pub(crate) use with_rows;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_even_and_cover() {
        assert_eq!(blocks(16, 6).collect::<Vec<_>>(), [0..5, 5..10, 10..16]);
        assert_eq!(blocks(0, 6).count(), 0);
        for (len, most) in [(1, 6), (7, 6), (33, 5)] {
            let all: Vec<_> = blocks(len, most).flatten().collect();
            assert_eq!(all, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn rows_are_split_by_group() {
        let mut buffer: Vec<f32> = (0..2 * 3 * 2).map(|v| v as f32).collect();
        let groups = [0..1, 1..3];
        let lists = split_rows(&mut buffer, 1, 3, 2, &groups);
        assert_eq!(lists[0][1], [6.0, 7.0]);
        assert_eq!(lists[1][0], [2.0, 3.0, 4.0, 5.0]);
    }
}
