//! The CPU's fast form of `lstm_backward`: packed weights, a few rows at a time, each thread its own rows.

use super::Slices;
use crate::float::{Float, Vectorized};
use crate::kernel::Scratch;
use crate::kernels::recurrence::lstm_lanes::{lstm_output_back, lstm_state_back};
use crate::kernels::recurrence::*;
use crate::tile;
use crate::time::Direction;
use std::ops::Range;

pub(super) fn execute<T: Float>(k: &Sequence, s: Slices<'_, T>, scratch: &mut Scratch<T>) {
    let ([_, batch, hidden, outputs], directions) = (k.sizes(), k.directions());
    let width = 4 * tile::lanes::<T>();
    // of a direction, of weight_hh and weight_hr: [panel][gate and unit, or output, summed over][4 N units]
    let to_outputs = outputs.next_multiple_of(width);
    let (to_units, inner) = if k.has(PROJECTION) { (hidden.next_multiple_of(width), outputs) } else { (0, 0) };
    let sizes = [GATES * hidden * to_outputs, outputs * to_units];
    let (count, len) = (directions.len(), sizes[0] + sizes[1]);
    let packed = tile::packed(scratch, count * len, |packed| {
        for (d, packed) in packed.chunks_exact_mut(len).enumerate() {
            let (panels, output_panels) = packed.split_at_mut(sizes[0]);
            let weight_hh = &s.weight_hh[d * k.weight_hh_stride as usize..];
            let weight_hr = s.weight_hr.get(d * k.weight_hr_stride as usize..).unwrap_or_default();
            pack_columns(panels, width, &weight_hh[..GATES * hidden * outputs], outputs);
            pack_columns(output_panels, width, &weight_hr[..inner * hidden], hidden);
        }
    });
    let packed = tile::from_line(&packed, count * len);
    let memory = tile::aligned(&mut scratch.memory, count * batch * (GATES * hidden + inner));
    let (x, y) = memory.split_at_mut(count * batch * GATES * hidden);
    let groups = tile::row_groups(batch, count, k.flops());
    let mut dgates = tile::split_rows(s.dgates, count, batch, GATES * hidden, &groups).into_iter();
    let mut dh = tile::split_rows(s.dh, count, batch, outputs, &groups).into_iter();
    let mut dc = tile::split_rows(s.dc, count, batch, hidden, &groups).into_iter();
    let mut dnormalized = tile::split_rows(s.dnormalized, count, batch, NORMS * hidden, &groups).into_iter();
    let mut x = tile::split_rows(x, count, batch, GATES * hidden, &groups).into_iter().flatten();
    let mut y = tile::split_rows(y, count, batch, outputs, &groups).into_iter().flatten();
    let each = directions.iter().enumerate().flat_map(|(d, direction)| groups.iter().map(move |rows| (d, *direction, rows)));
    let workers: Vec<_> = each
        .filter_map(|(d, direction, rows)| {
            let (panels, output_panels) = packed[d * len..][..len].split_at(sizes[0]);
            let part = |of: &'_ [T]| of.len() / count * d..of.len() / count * (d + 1);
            let weights = |of: &'_ [T], stride: u32| -> usize { (d * stride as usize).min(of.len()) };
            Some(Worker {
                kernel: k,
                d,
                direction,
                rows: rows.clone(),
                panels,
                output_panels,
                gates: &s.gates[part(s.gates)],
                c: &s.c[part(s.c)],
                h: &s.h[part(s.h)],
                peephole: &s.peephole[weights(s.peephole, k.peephole_stride)..],
                mask: s.mask,
                norm: &s.layer_norm[weights(s.layer_norm, k.layer_norm_stride)..],
                normalized: &s.normalized[part(s.normalized)],
                dgates: dgates.next()?,
                dh: dh.next()?,
                dc: dc.next()?,
                dnormalized: dnormalized.next()?,
                x: x.next()?,
                y: y.next().unwrap_or_default(),
            })
        })
        .collect();
    tile::run::<T, _>(workers, k.flops());
}

/// Rows of `columns` values to panels `[panel][row][width]`, with zeros behind the last column.
fn pack_columns<T: Float>(panels: &mut [T], width: usize, rows: &[T], columns: usize) {
    let count = rows.len() / columns;
    for (p, panel) in panels.chunks_exact_mut((count * width).max(1)).enumerate() {
        let valid = (columns - p * width).min(width);
        for (row, to) in rows.chunks_exact(columns).zip(panel.chunks_exact_mut(width)) {
            to[..valid].copy_from_slice(&row[p * width..][..valid]);
            to[valid..].fill(T::ZERO);
        }
    }
}

/// Some batch rows of a sequence in one direction, with every per-step slice of theirs.
struct Worker<'a, T> {
    kernel: &'a Sequence,
    d: usize,
    direction: Direction,
    rows: Range<usize>,
    /// `weight_hh` as `[panel][4H][4 N]`.
    panels: &'a [T],
    /// `weight_hr` as `[panel][P][4 N]`.
    output_panels: &'a [T],
    /// All rows of the direction, as the other slices without steps.
    gates: &'a [T],
    c: &'a [T],
    h: &'a [T],
    peephole: &'a [T],
    mask: &'a [T],
    norm: &'a [T],
    normalized: &'a [T],
    dgates: Vec<&'a mut [T]>,
    dh: Vec<&'a mut [T]>,
    dc: Vec<&'a mut [T]>,
    dnormalized: Vec<&'a mut [T]>,
    /// dgates of the step worked on just before, interleaved.
    x: &'a mut [T],
    /// dh of this step, interleaved.
    y: &'a mut [T],
}

impl<'a, T: Float> Vectorized for Worker<'a, T> {
    #[inline(always)]
    fn run<const N: usize, const R: usize, const FMA: bool>(mut self) {
        let k = self.kernel;
        let [steps, batch, hidden, outputs] = k.sizes();
        for n in 0..=steps {
            let next = n.checked_sub(1).map(|n| back(self.direction, n, steps).0);
            if let Some(next) = next {
                tile::interleave(self.dgates[next], GATES * hidden, R, self.x);
            }
            // behind the first step there is only the initial state
            let is_step = n < steps;
            let (t, after) = back(self.direction, n, steps);
            let before = if is_step { self.direction.row_before(t) } else { 0 };
            let (dh_before, dh_after) = match is_step {
                true => tile::pair(&mut self.dh, before, after),
                false => (&mut [][..], &mut *self.dh[after]),
            };
            let (dc_before, dc_after) = match is_step {
                true => tile::pair(&mut self.dc, before, after),
                false => (&mut [][..], &mut [][..]),
            };
            let rows = |all: &'a [T], step: usize, width: usize| -> &'a [T] {
                all.get((step * batch + self.rows.start) * width..).unwrap_or_default()
            };
            let mut step = Step {
                k,
                is_step,
                gates: rows(self.gates, t, GATES * hidden),
                c_before: rows(self.c, before, hidden),
                c_after: rows(self.c, after, hidden),
                h_after: rows(self.h, after, outputs),
                mask: if k.has(MASK) { &self.mask[k.mask_at(self.d, t, self.rows.start)..] } else { &[] },
                normalized: rows(self.normalized, t, NORMS * (hidden + 1)),
                peephole: self.peephole,
                norm: self.norm,
                dgates: self.dgates[t],
                dh_before,
                dh_after,
                dc_before,
                dc_after,
                dnormalized: self.dnormalized.get_mut(t).map_or(&mut [], |dnormalized| dnormalized),
            };
            let sizes = [GATES * hidden, 4 * N, outputs, self.rows.len(), R];
            tile::each_panel(self.panels, self.x, sizes, #[inline(always)] |first, rows, x, panel| {
                let x = if next.is_some() { x } else { &[] };
                tile::with_rows!(rows.len(), step.outputs::<N, FMA>(rows.start, first, x, panel));
            });
            if is_step && k.has(PROJECTION) {
                tile::interleave(step.dh_after, outputs, R, self.y);
                let sizes = [outputs, 4 * N, hidden, self.rows.len(), R];
                tile::each_panel(self.output_panels, self.y, sizes, #[inline(always)] |first, rows, y, panel| {
                    tile::with_rows!(rows.len(), step.units::<N, FMA>(rows.start, first, y, panel));
                });
            }
            if is_step && k.has(NORM) {
                // the interleaved dgates are not needed again before the next step
                let free = &mut self.x[..hidden];
                (0..self.rows.len()).for_each(|row| step.norm_row::<N>(row, free));
            }
        }
    }
}

/// One step of the way back, for some batch rows.
struct Step<'a, T> {
    k: &'a Sequence,
    /// Not so for the initial state, which only takes what flows into its h.
    is_step: bool,
    gates: &'a [T],
    c_before: &'a [T],
    c_after: &'a [T],
    h_after: &'a [T],
    mask: &'a [T],
    normalized: &'a [T],
    peephole: &'a [T],
    norm: &'a [T],
    dgates: &'a mut [T],
    dh_before: &'a mut [T],
    dh_after: &'a mut [T],
    dc_before: &'a mut [T],
    dc_after: &'a mut [T],
    dnormalized: &'a mut [T],
}

impl<T: Float> Step<'_, T> {
    /// dh of `4 N` outputs from `output` on, of `R` rows from `first` on; without a projection their cells too.
    #[inline(always)]
    fn outputs<const N: usize, const R: usize, const FMA: bool>(
        &mut self,
        first: usize,
        output: usize,
        x: &[T],
        panel: &[T],
    ) {
        let outputs = self.k.outputs as usize;
        let sums = tile::multiply::<T, N, R, FMA>(x, panel); // B1
        for (r, v) in (0..R).flat_map(|r| (0..4).map(move |v| (r, v))) {
            let (row, output) = (first + r, output + v * N);
            if output >= outputs {
                continue;
            }
            let (at, valid) = (row * outputs + output, outputs - output);
            let mut dht: [T; N] = tile::load(&self.dh_after[at..], valid);
            for lane in 0..N {
                dht[lane] += sums[r][v][lane];
            }
            if self.is_step && self.ended(row) {
                let mut carried: [T; N] = tile::load(&self.dh_before[at..], valid);
                for lane in 0..N {
                    carried[lane] += dht[lane]; // B11
                }
                tile::store(&carried, &mut self.dh_before[at..], valid);
            } else if let (true, Some(limit)) = (self.is_step, self.k.output_clip()) {
                let h: [T; N] = tile::load(&self.h_after[at..], valid);
                for lane in 0..N {
                    if !within(h[lane], limit) {
                        dht[lane] = T::ZERO;
                    }
                }
            }
            tile::store(&dht, &mut self.dh_after[at..], valid);
            if self.is_step && !self.k.has(PROJECTION) {
                self.cell(row, output, &dht);
            }
        }
    }

    /// The cells of `4 N` units from `unit` on, of `R` rows from `first` on, from dh through the projection.
    #[inline(always)]
    fn units<const N: usize, const R: usize, const FMA: bool>(
        &mut self,
        first: usize,
        unit: usize,
        y: &[T],
        panel: &[T],
    ) {
        let sums = tile::multiply::<T, N, R, FMA>(y, panel); // B2
        for (r, v) in (0..R).flat_map(|r| (0..4).map(move |v| (r, v))) {
            let unit = unit + v * N;
            if unit < self.k.hidden as usize {
                self.cell(first + r, unit, &sums[r][v]);
            }
        }
    }

    /// Whether the row's length lies before this step: a sigmoid is never 0.
    #[inline(always)]
    fn ended(&self, row: usize) -> bool {
        self.k.has(LENGTHS) && self.gates[(row * GATES + 3) * self.k.hidden as usize] == T::ZERO
    }

    /// The cell's derivatives for `N` units of one row; with a norm, those of o and c only.
    #[inline(always)]
    fn cell<const N: usize>(&mut self, row: usize, unit: usize, dm: &[T; N]) {
        let k = self.k;
        let hidden = k.hidden as usize;
        let (valid, at, o_at) = (hidden - unit, row * hidden + unit, (row * GATES + 3) * hidden + unit);
        let c_after: [T; N] = tile::load(&self.c_after[at..], valid);
        let o: [T; N] = tile::load(&self.gates[o_at..], valid);
        let dc: [T; N] = tile::load(&self.dc_after[at..], valid);
        let w: Option<[T; N]> = k.has(PEEPHOLE).then(|| tile::load(&self.peephole[2 * hidden + unit..], valid));
        let [dy_o, mut dc] = lstm_output_back(dm, &o, &c_after, dc, w);
        tile::store(&dc, &mut self.dc_after[at..], valid);
        tile::store(&dy_o, &mut self.dgates[o_at..], valid);
        if k.has(NORM) {
            return;
        }
        if let (Some(limit), false) = (k.cell_clip(), self.ended(row)) {
            for lane in 0..N {
                if !within(c_after[lane], limit) {
                    dc[lane] = T::ZERO; // B5
                }
            }
        }
        self.gates(row, unit, &dc);
    }

    /// The derivatives of i, f, g and of the cell before, from that of u.
    #[inline(always)]
    fn gates<const N: usize>(&mut self, row: usize, unit: usize, du: &[T; N]) {
        let k = self.k;
        let hidden = k.hidden as usize;
        let (valid, at) = (hidden - unit, row * hidden + unit);
        let gate_at = |gate: usize| (row * GATES + gate) * hidden + unit;
        let c_before: [T; N] = tile::load(&self.c_before[at..], valid);
        let ifg: [[T; N]; 3] = std::array::from_fn(|gate| tile::load(&self.gates[gate_at(gate)..], valid));
        let dc_before: [T; N] = tile::load(&self.dc_before[at..], valid);
        let peephole = |gate: usize| tile::load(&self.peephole[gate * hidden + unit..], valid);
        let w: Option<[[T; N]; 2]> = k.has(PEEPHOLE).then(|| std::array::from_fn(peephole));
        let mask: Option<[T; N]> = k.has(MASK).then(|| tile::load(&self.mask[at..], valid));
        let (dy, dc_before) = lstm_state_back(k, du, &ifg, &c_before, w, mask, dc_before);
        tile::store(&dc_before, &mut self.dc_before[at..], valid);
        for (gate, values) in dy.iter().enumerate() {
            tile::store(values, &mut self.dgates[gate_at(gate)..], valid);
        }
    }

    /// The rest of a row's cell behind [`Step::cell`], with its norms; `du` is memory for H values.
    #[inline(always)]
    fn norm_row<const N: usize>(&mut self, row: usize, du: &mut [T]) {
        let k = self.k;
        let hidden = k.hidden as usize;
        let ended = self.ended(row);
        let normalized = &self.normalized[row * NORMS * (hidden + 1)..];
        let dnormalized = row * NORMS * hidden;
        du.copy_from_slice(&self.dc_after[row * hidden..][..hidden]);
        let kept = &mut self.dnormalized[dnormalized..][..NORMS * hidden];
        if ended {
            kept.fill(T::ZERO);
        } else {
            if let Some(limit) = k.cell_clip() {
                for (du, c) in du.iter_mut().zip(&self.c_after[row * hidden..]) {
                    if !within(*c, limit) {
                        *du = T::ZERO;
                    }
                }
            }
            kept[GATES * hidden..].copy_from_slice(du);
            through_norm(du, GATES, self.norm, normalized);
        }
        for unit in (0..hidden).step_by(N) {
            let du: [T; N] = tile::load(&du[unit..], hidden - unit);
            self.gates(row, unit, &du);
        }
        if !ended {
            for gate in 0..GATES {
                let dgate = &mut self.dgates[(row * GATES + gate) * hidden..][..hidden];
                self.dnormalized[dnormalized + gate * hidden..][..hidden].copy_from_slice(dgate);
                through_norm(dgate, gate, self.norm, normalized); // B10
            }
        }
    }
}

/// Gradients after gain and shift of norm number `index` to those before the norm, in place:
/// `1/std (d - mean(d) - x mean(d x))` with `d = gain dy`, for H values x of mean 0 and variance 1.
#[inline(always)]
fn through_norm<T: Float>(dy: &mut [T], index: usize, norm: &[T], normalized: &[T]) {
    let hidden = dy.len();
    let (gain, x) = (&norm[index * hidden..][..hidden], &normalized[index * hidden..][..hidden]);
    let scale = normalized[NORMS * hidden + index];
    dy.iter_mut().zip(gain).for_each(|(d, gain)| *d = *d * *gain);
    let count = T::of(hidden as f64);
    let mean = sum(dy.iter().copied(), |d| d) / count;
    let mean_x = sum(dy.iter().zip(x), |(d, x)| *d * *x) / count;
    dy.iter_mut().zip(x).for_each(|(d, x)| *d = scale * (*d - mean - *x * mean_x));
}
