//! How the CPU's fast forms share their work: each thread has some batch rows of one direction for the whole sequence.

use super::{MASK, Sequence};
use crate::float::Float;
use crate::kernel::Scratch;
use crate::tile;
use crate::time::Direction;
use std::ops::Range;
use std::sync::Arc;

/// A sequence, the groups of batch rows of each direction, and the weights, packed: of a direction two pieces.
pub struct Division<'k, T> {
    kernel: &'k Sequence,
    groups: Vec<Range<usize>>,
    packed: Arc<Vec<T>>,
    sizes: [usize; 2],
}

/// Some batch rows of a sequence in one direction, and what both kernels read of it.
pub struct Part<'a, T> {
    pub kernel: &'a Sequence,
    pub direction: Direction,
    pub rows: Range<usize>,
    /// `weight_hh` and `weight_hr`, packed.
    pub panels: [&'a [T]; 2],
    pub peephole: &'a [T],
    pub norm: &'a [T],
    /// Memory for interleaved rows: what each of `panels` is multiplied by.
    pub free: [&'a mut [T]; 2],
    d: usize,
    /// All rows.
    mask: &'a [T],
}

impl<'k, T: Float> Division<'k, T> {
    /// `pack` arranges the weights of one direction.
    pub fn new(
        kernel: &'k Sequence,
        scratch: &mut Scratch<T>,
        (sizes, weights): ([usize; 2], [&[T]; 2]),
        pack: impl Fn([&mut [T]; 2], [&[T]; 2]),
    ) -> Self {
        let (len, count) = (sizes[0] + sizes[1], kernel.directions as usize);
        let packed = tile::packed(scratch, count * len, |packed| {
            for (d, packed) in packed.chunks_exact_mut(len).enumerate() {
                let [weight_hh, weight_hr] = weights;
                let weights =
                    [from(weight_hh, d, kernel.weight_hh_stride), from(weight_hr, d, kernel.weight_hr_stride)];
                pack(packed.split_at_mut(sizes[0]).into(), weights);
            }
        });
        let groups = tile::row_groups(kernel.batch as usize, count, kernel.flops());
        Division { kernel, groups, packed, sizes }
    }

    /// The parts; each has `widths` values of free memory for a batch row.
    pub fn parts<'a>(
        &'a self,
        memory: &'a mut Vec<T>,
        widths: [usize; 2],
        [peephole, mask, norm]: [&'a [T]; 3],
    ) -> Vec<Part<'a, T>> {
        let Division { kernel, groups, packed, sizes } = self;
        let (len, directions) = (sizes[0] + sizes[1], kernel.directions());
        let (packed, rows) =
            (tile::from_line(packed, directions.len() * len), directions.len() * kernel.batch as usize);
        let (x, y) = tile::aligned(memory, rows * (widths[0] + widths[1])).split_at_mut(rows * widths[0]);
        let mut free = [(x, widths[0]), (y, widths[1])].map(|(all, width)| self.split(all, width.max(1)).flatten());
        let each = directions.iter().enumerate().flat_map(|(d, way)| groups.iter().map(move |rows| (d, *way, rows)));
        let part = |(d, direction, rows): (usize, Direction, &Range<usize>)| Part {
            kernel,
            direction,
            rows: rows.clone(),
            panels: packed[d * len..][..len].split_at(sizes[0]).into(),
            peephole: from(peephole, d, kernel.peephole_stride),
            norm: from(norm, d, kernel.layer_norm_stride),
            free: free.each_mut().map(|free| free.next().unwrap_or_default()),
            d,
            mask,
        };
        each.map(part).collect()
    }

    /// The per-step slices of each part, of a buffer `[D, steps, B, width]`.
    pub fn split<'a>(&self, all: &'a mut [T], width: usize) -> std::vec::IntoIter<Vec<&'a mut [T]>> {
        let [directions, batch] = [self.kernel.directions, self.kernel.batch].map(|size| size as usize);
        tile::split_rows(all, directions, batch, width, &self.groups).into_iter()
    }
}

impl<'a, T> Part<'a, T> {
    /// The direction's share of a buffer `[D, ..]`.
    pub fn own<'b>(&self, all: &'b [T]) -> &'b [T] {
        let len = all.len() / self.kernel.directions as usize;
        &all[self.d * len..][..len]
    }

    /// The mask from the first row on at time `t`.
    #[inline(always)]
    pub fn mask(&self, t: usize) -> &'a [T] {
        if self.kernel.has(MASK) { &self.mask[self.kernel.mask_at(self.d, t, self.rows.start)..] } else { &[] }
    }
}

/// Calls `$step.$block::<N, rows, FMA>(first row, first value, x, panel)` for each panel of values and block of rows; a
/// value stands for `$of` of the panel's.
macro_rules! each_block {
    ($panels:expr, $x:expr, $sizes:expr, $step:ident . $block:ident :: <$n:ident, $fma:ident> $(/ $of:expr)?) => {
        tile::each_panel($panels, $x, $sizes, #[inline(always)] |first, rows, x, panel| {
            tile::with_rows!(rows.len(), $step.$block::<$n, $fma>(rows.start, first $(/ $of)?, x, panel));
        })
    };
}
pub(in crate::kernels) use each_block;

/// The weights from those of direction `d` on; of an option that is off, none.
fn from<T>(all: &[T], d: usize, stride: u32) -> &[T] {
    &all[(d * stride as usize).min(all.len())..]
}
