//! The CPU's fast form of `lstm_backward`: packed weights, a few rows at a time, each thread its own rows.

use super::Slices;
use crate::float::{Float, Vectorized};
use crate::kernel::Scratch;
use crate::kernels::recurrence::division::{Division, Part, each_block};
use crate::kernels::recurrence::lstm_lanes::{lstm_output_back, lstm_state_back};
use crate::kernels::recurrence::*;
use crate::tile;

pub(super) fn execute<T: Float>(k: &Sequence, s: Slices<'_, T>, scratch: &mut Scratch<T>) {
    let [_, _, hidden, outputs] = k.sizes();
    let width = 4 * tile::lanes::<T>();
    // of a direction, of weight_hh and weight_hr: [panel][gate and unit, or output, summed over][4 N units]
    let to_outputs = outputs.next_multiple_of(width);
    let (to_units, inner) = if k.has(PROJECTION) { (hidden.next_multiple_of(width), outputs) } else { (0, 0) };
    let weights = ([GATES * hidden * to_outputs, outputs * to_units], [s.weight_hh, s.weight_hr]);
    let division = Division::new(k, scratch, weights, |[panels, output_panels], [weight_hh, weight_hr]| {
        pack_columns(panels, width, &weight_hh[..GATES * hidden * outputs], outputs);
        pack_columns(output_panels, width, &weight_hr[..inner * hidden], hidden);
    });
    let read = [s.peephole, s.mask, s.layer_norm];
    let parts = division.parts(&mut scratch.memory, [GATES * hidden, inner], read).into_iter();
    let (mut dgates, mut dh) = (division.split(s.dgates, GATES * hidden), division.split(s.dh, outputs));
    let (mut dc, mut dnormalized) = (division.split(s.dc, hidden), division.split(s.dnormalized, NORMS * hidden));
    let workers = parts.filter_map(|part| {
        let [gates, c, h, normalized] = [s.gates, s.c, s.h, s.normalized].map(|all| part.own(all));
        let (dgates, dh, dc, dnormalized) = (dgates.next()?, dh.next()?, dc.next()?, dnormalized.next()?);
        Some(Worker { part, gates, c, h, normalized, dgates, dh, dc, dnormalized })
    });
    tile::run::<T, _>(workers.collect(), k.flops());
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

/// Some batch rows of a sequence in one direction, with every per-step slice of theirs. Of the memory of the part, the
/// first is for dgates of the step worked on just before, the second for dh of this step.
struct Worker<'a, T> {
    /// Panels: `weight_hh` as `[panel][4H][4 N]`, `weight_hr` as `[panel][P][4 N]`.
    part: Part<'a, T>,
    /// All rows of the direction, as the other slices without steps.
    gates: &'a [T],
    c: &'a [T],
    h: &'a [T],
    normalized: &'a [T],
    dgates: Vec<&'a mut [T]>,
    dh: Vec<&'a mut [T]>,
    dc: Vec<&'a mut [T]>,
    dnormalized: Vec<&'a mut [T]>,
}

impl<'a, T: Float> Vectorized for Worker<'a, T> {
    #[inline(always)]
    fn run<const N: usize, const R: usize, const FMA: bool>(mut self) {
        let [x, y] = std::mem::take(&mut self.part.free);
        let Part { kernel: k, direction, rows: ref own, panels, peephole, norm, .. } = self.part;
        let ([steps, batch, hidden, outputs], count) = (k.sizes(), own.len());
        for n in 0..=steps {
            let next = n.checked_sub(1).map(|n| back(direction, n, steps).0);
            if let Some(next) = next {
                tile::interleave(self.dgates[next], GATES * hidden, R, x);
            }
            // behind the first step there is only the initial state
            let is_step = n < steps;
            let (t, after) = back(direction, n, steps);
            let before = if is_step { direction.row_before(t) } else { 0 };
            let (dh_before, dh_after) = match is_step {
                true => tile::pair(&mut self.dh, before, after),
                false => (&mut [][..], &mut *self.dh[after]),
            };
            let (dc_before, dc_after) = match is_step {
                true => tile::pair(&mut self.dc, before, after),
                false => (&mut [][..], &mut [][..]),
            };
            let rows = |all: &'a [T], step: usize, width: usize| -> &'a [T] {
                all.get((step * batch + own.start) * width..).unwrap_or_default()
            };
            let mut step = Step {
                k,
                is_step,
                has_next: next.is_some(),
                gates: rows(self.gates, t, GATES * hidden),
                c_before: rows(self.c, before, hidden),
                c_after: rows(self.c, after, hidden),
                h_after: rows(self.h, after, outputs),
                mask: self.part.mask(t),
                normalized: rows(self.normalized, t, NORMS * (hidden + 1)),
                peephole,
                norm,
                dgates: self.dgates[t],
                dh_before,
                dh_after,
                dc_before,
                dc_after,
                dnormalized: self.dnormalized.get_mut(t).map_or(&mut [], |dnormalized| dnormalized),
            };
            let sizes = [GATES * hidden, 4 * N, outputs, count, R];
            each_block!(panels[0], x, sizes, step.outputs::<N, FMA>);
            if is_step && k.has(PROJECTION) {
                tile::interleave(step.dh_after, outputs, R, y);
                let sizes = [outputs, 4 * N, hidden, count, R];
                each_block!(panels[1], y, sizes, step.units::<N, FMA>);
            }
            if is_step && k.has(NORM) {
                // the interleaved dgates are not needed again before the next step
                let free = &mut x[..hidden];
                (0..count).for_each(|row| step.norm_row::<N>(row, free));
            }
        }
    }
}

/// One step of the way back, for some batch rows.
struct Step<'a, T> {
    k: &'a Sequence,
    /// Not so for the initial state, which only takes what flows into its h.
    is_step: bool,
    /// Whether a step was worked on before.
    has_next: bool,
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
        let sums = tile::multiply::<T, N, R, FMA>(if self.has_next { x } else { &[] }, panel); // B1
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
                stop_at(limit, &mut dht, &h);
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
            stop_at(limit, &mut dc, &c_after); // B5
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
                stop_at(limit, du, &self.c_after[row * hidden..]);
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
