//! The CPU's fast form of `lstm_forward`: packed weights, a few rows at a time, each thread its own rows.

use super::{Slots, clip, layer_norm};
use crate::float::{Float, Vectorized};
use crate::kernel::Scratch;
use crate::kernels::recurrence::{COUPLED, GATES, LENGTHS, MASK, NORM, NORMS, PEEPHOLE, PROJECTION, Variant};
use crate::tile;
use rayon::prelude::*;
use std::ops::Range;

pub(super) fn execute<T: Float>(k: &Variant, s: Slots<'_, T>, scratch: &mut Scratch<T>) {
    let [_, batch, hidden, outputs] = k.sizes();
    let lanes = tile::lanes::<T>();
    let units = hidden.next_multiple_of(lanes);
    let projected = if k.has(PROJECTION) { outputs.next_multiple_of(4 * lanes) } else { 0 };
    let inner = if k.has(PROJECTION) { hidden } else { 0 };
    let packed = tile::aligned(&mut scratch.packed, outputs * GATES * units + hidden * projected);
    let (panels, output_panels) = packed.split_at_mut(outputs * GATES * units);
    let memory = tile::aligned(&mut scratch.memory, batch * (outputs + inner));
    let (x, y) = memory.split_at_mut(batch * outputs);
    if !scratch.is_packed {
        // [panel][k][gate][lane]
        for (p, panel) in panels.chunks_exact_mut(outputs * GATES * lanes).enumerate() {
            tile::pack(panel, GATES * lanes, |v| {
                let (gate, unit) = (v / lanes, p * lanes + v % lanes);
                (unit < hidden).then(|| &s.weight_hh[(gate * hidden + unit) * outputs..][..outputs])
            });
        }
        tile::pack_rows(output_panels, 4 * lanes, hidden, outputs, |output| &s.weight_hr[output * hidden..]);
    }
    let (panels, output_panels) = (&*panels, &*output_panels);
    let groups = tile::row_groups(batch, k.flops());
    let mut gates = tile::split_rows(s.gates, batch, GATES * hidden, &groups).into_iter();
    let mut h = tile::split_rows(s.h, batch, outputs, &groups).into_iter();
    let mut c = tile::split_rows(s.c, batch, hidden, &groups).into_iter();
    let mut m = tile::split_rows(s.m, batch, hidden, &groups).into_iter();
    let mut normalized = tile::split_rows(s.normalized, batch, NORMS * (hidden + 1), &groups).into_iter();
    let mut x = tile::split_rows(x, batch, outputs, &groups).into_iter().flatten();
    let mut y = tile::split_rows(y, batch, hidden, &groups).into_iter().flatten();
    let workers: Vec<_> = groups
        .iter()
        .filter_map(|rows| {
            Some(Worker {
                kernel: k,
                rows: rows.clone(),
                units,
                panels,
                output_panels,
                lengths: s.lengths,
                peephole: s.peephole,
                mask: s.mask,
                norm: s.norm,
                gates: gates.next()?,
                h: h.next()?,
                c: c.next()?,
                m: m.next()?,
                normalized: normalized.next()?,
                x: x.next()?,
                y: y.next().unwrap_or_default(),
            })
        })
        .collect();
    match workers.len() {
        1 => workers.into_iter().for_each(T::vectorize),
        _ => workers.into_par_iter().for_each(T::vectorize),
    }
}

/// Some batch rows of a sequence, with every per-step slice of theirs.
struct Worker<'a, T> {
    kernel: &'a Variant,
    rows: Range<usize>,
    /// H rounded up to whole vectors.
    units: usize,
    /// `weight_hh` as `[panel][k][gate][lane]`.
    panels: &'a [T],
    /// `weight_hr` as `[panel][k][4 lanes]`.
    output_panels: &'a [T],
    /// All rows.
    lengths: &'a [u32],
    peephole: &'a [T],
    /// All rows.
    mask: &'a [T],
    norm: &'a [T],
    gates: Vec<&'a mut [T]>,
    h: Vec<&'a mut [T]>,
    c: Vec<&'a mut [T]>,
    m: Vec<&'a mut [T]>,
    normalized: Vec<&'a mut [T]>,
    /// h of the step before, interleaved.
    x: &'a mut [T],
    /// m of this step, interleaved.
    y: &'a mut [T],
}

impl<T: Float> Vectorized for Worker<'_, T> {
    #[inline(always)]
    fn run<const N: usize, const R: usize, const FMA: bool>(mut self) {
        let k = self.kernel;
        let [steps, _, hidden, outputs] = k.sizes();
        let direction = k.direction();
        for n in 0..steps {
            let t = direction.time(n, steps);
            let (before, after) = (direction.row_before(t), direction.row_after(t));
            let (h_before, h_after) = tile::pair(&mut self.h, before, after);
            let (c_before, c_after) = tile::pair(&mut self.c, before, after);
            tile::interleave(h_before, outputs, R, self.x);
            let mut step = Step {
                k,
                forget_bias: k.forget_bias(),
                gates: self.gates[t],
                h_before,
                h_after,
                c_before,
                c_after,
                m: self.m.get_mut(t).map_or(&mut [], |m| m),
                normalized: self.normalized.get_mut(t).map_or(&mut [], |normalized| normalized),
                peephole: self.peephole,
                mask: if k.has(MASK) { &self.mask[k.mask_at(t, self.rows.start)..] } else { &[] },
                norm: self.norm,
            };
            for p in 0..self.units / N {
                let panel = &self.panels[p * outputs * GATES * N..][..outputs * GATES * N];
                for rows in tile::blocks(self.rows.len(), R) {
                    let x = &self.x[rows.start * outputs..rows.end * outputs];
                    tile::with_rows!(rows.len(), step.units::<N, FMA>(rows.start, p * N, x, panel));
                }
            }
            if k.has(NORM) {
                (0..self.rows.len()).for_each(|row| step.norm_row::<N>(row));
            }
            if k.has(PROJECTION) {
                tile::interleave(step.m, hidden, R, self.y);
                for p in 0..outputs.div_ceil(4 * N) {
                    let panel = &self.output_panels[p * hidden * 4 * N..][..hidden * 4 * N];
                    for rows in tile::blocks(self.rows.len(), R) {
                        let y = &self.y[rows.start * hidden..rows.end * hidden];
                        tile::with_rows!(rows.len(), step.outputs::<N, FMA>(rows.start, p * 4 * N, y, panel));
                    }
                }
            }
            if k.has(LENGTHS) {
                let lengths = &self.lengths[self.rows.clone()];
                let ended = lengths.iter().enumerate().filter(|(_, length)| t >= **length as usize);
                ended.for_each(|(row, _)| step.carry(row));
            }
        }
    }
}

/// One time step of some batch rows.
struct Step<'a, T> {
    k: &'a Variant,
    forget_bias: T,
    gates: &'a mut [T],
    h_before: &'a [T],
    h_after: &'a mut [T],
    c_before: &'a [T],
    c_after: &'a mut [T],
    m: &'a mut [T],
    normalized: &'a mut [T],
    peephole: &'a [T],
    mask: &'a [T],
    norm: &'a [T],
}

impl<T: Float> Step<'_, T> {
    /// `N` units from `unit` on, of `R` rows from `first` on.
    #[inline(always)]
    fn units<const N: usize, const R: usize, const FMA: bool>(
        &mut self,
        first: usize,
        unit: usize,
        x: &[T],
        panel: &[T],
    ) {
        let hidden = self.k.hidden as usize;
        let sums = tile::multiply::<T, N, R, FMA>(x, panel);
        for r in 0..R {
            let row = first + r;
            let mut pre = sums[r];
            for (gate, pre) in pre.iter_mut().enumerate() {
                let place = (row * GATES + gate) * hidden + unit;
                let input: [T; N] = tile::load(&self.gates[place..], hidden - unit);
                for lane in 0..N {
                    pre[lane] += input[lane];
                }
                if self.k.has(NORM) {
                    tile::store(pre, &mut self.gates[place..], hidden - unit);
                }
            }
            if !self.k.has(NORM) {
                let c = self.state(row, unit, &mut pre);
                self.emit(row, unit, &pre, c);
            }
        }
    }

    /// i, f, g from their pre-activations, and `f c[before] + i g`, for `N` units of one row.
    #[inline(always)]
    fn state<const N: usize>(&mut self, row: usize, unit: usize, pre: &mut [[T; N]; GATES]) -> [T; N] {
        let k = self.k;
        let hidden = k.hidden as usize;
        let (valid, at) = (hidden - unit, row * hidden + unit);
        let c_before: [T; N] = tile::load(&self.c_before[at..], valid);
        if k.has(PEEPHOLE) {
            for gate in 0..2 {
                let w: [T; N] = tile::load(&self.peephole[gate * hidden + unit..], valid);
                for lane in 0..N {
                    pre[gate][lane] += w[lane] * c_before[lane];
                }
            }
        }
        for lane in 0..N {
            pre[0][lane] = pre[0][lane].sigmoid();
            pre[1][lane] = (pre[1][lane] + self.forget_bias).sigmoid();
            pre[2][lane] = pre[2][lane].tanh();
        }
        if k.has(COUPLED) {
            for lane in 0..N {
                pre[1][lane] = T::ONE - pre[0][lane];
            }
        }
        for gate in 0..3 {
            tile::store(&pre[gate], &mut self.gates[(row * GATES + gate) * hidden + unit..], valid);
        }
        if k.has(MASK) {
            let mask: [T; N] = tile::load(&self.mask[at..], valid);
            for lane in 0..N {
                pre[2][lane] = pre[2][lane] * mask[lane];
            }
        }
        let mut c = [T::ZERO; N];
        for lane in 0..N {
            c[lane] = pre[1][lane] * c_before[lane] + pre[0][lane] * pre[2][lane];
        }
        c
    }

    /// o, c and the cell's output from the new state, for `N` units of one row.
    #[inline(always)]
    fn emit<const N: usize>(&mut self, row: usize, unit: usize, pre: &[[T; N]; GATES], mut c: [T; N]) {
        let k = self.k;
        let hidden = k.hidden as usize;
        let (valid, at) = (hidden - unit, row * hidden + unit);
        if let Some(limit) = k.cell_clip() {
            for lane in 0..N {
                c[lane] = clip(c[lane], limit);
            }
        }
        let mut o = pre[3];
        if k.has(PEEPHOLE) {
            let w: [T; N] = tile::load(&self.peephole[2 * hidden + unit..], valid);
            for lane in 0..N {
                o[lane] += w[lane] * c[lane];
            }
        }
        let mut m = [T::ZERO; N];
        for lane in 0..N {
            o[lane] = o[lane].sigmoid();
            m[lane] = o[lane] * c[lane].tanh();
        }
        tile::store(&o, &mut self.gates[(row * GATES + 3) * hidden + unit..], valid);
        tile::store(&c, &mut self.c_after[at..], valid);
        let output = if k.has(PROJECTION) { &mut *self.m } else { &mut *self.h_after };
        tile::store(&m, &mut output[at..], valid);
    }

    /// The cell of a row whose pre-activations lie in `gates`, with its norms.
    #[inline(always)]
    fn norm_row<const N: usize>(&mut self, row: usize) {
        let k = self.k;
        let hidden = k.hidden as usize;
        let kept = &mut self.normalized[row * NORMS * (hidden + 1)..][..NORMS * (hidden + 1)];
        for gate in 0..GATES {
            let values = &mut self.gates[(row * GATES + gate) * hidden..][..hidden];
            layer_norm(values, gate, self.norm, k.epsilon(), kept);
        }
        for unit in (0..hidden).step_by(N) {
            let mut pre: [[T; N]; GATES] = self.load_gates(row, unit);
            let c = self.state(row, unit, &mut pre);
            tile::store(&c, &mut self.c_after[row * hidden + unit..], hidden - unit);
        }
        let kept = &mut self.normalized[row * NORMS * (hidden + 1)..][..NORMS * (hidden + 1)];
        layer_norm(&mut self.c_after[row * hidden..][..hidden], GATES, self.norm, k.epsilon(), kept);
        for unit in (0..hidden).step_by(N) {
            let pre: [[T; N]; GATES] = self.load_gates(row, unit);
            let c: [T; N] = tile::load(&self.c_after[row * hidden + unit..], hidden - unit);
            self.emit(row, unit, &pre, c);
        }
    }

    #[inline(always)]
    fn load_gates<const N: usize>(&self, row: usize, unit: usize) -> [[T; N]; GATES] {
        let hidden = self.k.hidden as usize;
        std::array::from_fn(|gate| tile::load(&self.gates[(row * GATES + gate) * hidden + unit..], hidden - unit))
    }

    /// `4 N` outputs of the projection from `output` on, of `R` rows from `first` on.
    #[inline(always)]
    fn outputs<const N: usize, const R: usize, const FMA: bool>(
        &mut self,
        first: usize,
        output: usize,
        y: &[T],
        panel: &[T],
    ) {
        let outputs = self.k.outputs as usize;
        let sums = tile::multiply::<T, N, R, FMA>(y, panel);
        for (r, v) in (0..R).flat_map(|r| (0..4).map(move |v| (r, v))) {
            let output = output + v * N;
            if output < outputs {
                let mut h = sums[r][v];
                if let Some(limit) = self.k.output_clip() {
                    h.iter_mut().for_each(|h| *h = clip(*h, limit));
                }
                tile::store(&h, &mut self.h_after[(first + r) * outputs + output..], outputs - output);
            }
        }
    }

    /// What a row has at and past its length, whatever was computed for it.
    #[inline(always)]
    fn carry(&mut self, row: usize) {
        let [_, _, hidden, outputs] = self.k.sizes();
        for (gate, value) in [T::ZERO, T::ONE, T::ZERO, T::ZERO].into_iter().enumerate() {
            self.gates[(row * GATES + gate) * hidden..][..hidden].fill(value);
        }
        self.c_after[row * hidden..][..hidden].copy_from_slice(&self.c_before[row * hidden..][..hidden]);
        self.h_after[row * outputs..][..outputs].copy_from_slice(&self.h_before[row * outputs..][..outputs]);
        if self.k.has(PROJECTION) {
            self.m[row * hidden..][..hidden].fill(T::ZERO);
        }
        if self.k.has(NORM) {
            self.normalized[row * NORMS * (hidden + 1)..][..NORMS * (hidden + 1)].fill(T::ZERO);
        }
    }
}
