//! The CPU's fast form of `lstm_forward`: packed weights, a few rows at a time, each thread its own rows.

use super::Slices;
use crate::float::{Float, Vectorized};
use crate::kernel::Scratch;
use crate::kernels::recurrence::division::{Division, Part, each_block};
use crate::kernels::recurrence::lstm_lanes::{lstm_output, lstm_state};
use crate::kernels::recurrence::*;
use crate::tile;

pub(super) fn execute<T: Float>(k: &Sequence, s: Slices<'_, T>, scratch: &mut Scratch<T>) {
    let ([_, _, hidden, outputs], lanes) = (k.sizes(), tile::lanes::<T>());
    let units = hidden.next_multiple_of(lanes);
    let (projected, inner) = if k.has(PROJECTION) { (outputs.next_multiple_of(4 * lanes), hidden) } else { (0, 0) };
    // of a direction: weight_hh as [panel][k][gate][lane], weight_hr as [panel][k][4 lanes]
    let weights = ([outputs * GATES * units, hidden * projected], [s.weight_hh, s.weight_hr]);
    let division = Division::new(k, scratch, weights, |[panels, output_panels], [weight_hh, weight_hr]| {
        for (p, panel) in panels.chunks_exact_mut(outputs * GATES * lanes).enumerate() {
            tile::pack(panel, GATES * lanes, |v| {
                let (gate, unit) = (v / lanes, p * lanes + v % lanes);
                (unit < hidden).then(|| &weight_hh[(gate * hidden + unit) * outputs..][..outputs])
            });
        }
        tile::pack_rows(output_panels, 4 * lanes, hidden, outputs, |output| &weight_hr[output * hidden..]);
    });
    let read = [s.peephole, s.mask, s.layer_norm];
    let parts = division.parts(&mut scratch.memory, [outputs, inner], read).into_iter();
    let mut gates = division.split(s.gates, GATES * hidden);
    let (mut h, mut c) = (division.split(s.h, outputs), division.split(s.c, hidden));
    let (mut m, mut normalized) = (division.split(s.m, hidden), division.split(s.normalized, NORMS * (hidden + 1)));
    let workers = parts.filter_map(|part| {
        let (gates, h, c, m, normalized) = (gates.next()?, h.next()?, c.next()?, m.next()?, normalized.next()?);
        Some(Worker { part, units, lengths: s.lengths, gates, h, c, m, normalized })
    });
    tile::run::<T, _>(workers.collect(), k.flops());
}

/// Some batch rows of a sequence in one direction, with every per-step slice of theirs. Of the memory of the part, the
/// first is for h of the step before, the second for m of this step.
struct Worker<'a, T> {
    /// Panels: `weight_hh` as `[panel][k][gate][lane]`, `weight_hr` as `[panel][k][4 lanes]`.
    part: Part<'a, T>,
    /// H rounded up to whole vectors.
    units: usize,
    /// All rows.
    lengths: &'a [u32],
    gates: Vec<&'a mut [T]>,
    h: Vec<&'a mut [T]>,
    c: Vec<&'a mut [T]>,
    m: Vec<&'a mut [T]>,
    normalized: Vec<&'a mut [T]>,
}

impl<T: Float> Vectorized for Worker<'_, T> {
    #[inline(always)]
    fn run<const N: usize, const R: usize, const FMA: bool>(mut self) {
        let [x, y] = std::mem::take(&mut self.part.free);
        let Part { kernel: k, direction, ref rows, panels, peephole, norm, .. } = self.part;
        let ([steps, _, hidden, outputs], count) = (k.sizes(), rows.len());
        for n in 0..steps {
            let t = direction.time(n, steps);
            let (before, after) = (direction.row_before(t), direction.row_after(t));
            let (h_before, h_after) = tile::pair(&mut self.h, before, after);
            let (c_before, c_after) = tile::pair(&mut self.c, before, after);
            tile::interleave(h_before, outputs, R, x);
            let mut step = Step {
                k,
                gates: self.gates[t],
                h_before,
                h_after,
                c_before,
                c_after,
                m: self.m.get_mut(t).map_or(&mut [], |m| m),
                normalized: self.normalized.get_mut(t).map_or(&mut [], |normalized| normalized),
                peephole,
                mask: self.part.mask(t),
                norm,
            };
            let sizes = [outputs, GATES * N, GATES * self.units, count, R];
            each_block!(panels[0], x, sizes, step.units::<N, FMA> / GATES);
            if k.has(NORM) {
                (0..count).for_each(|row| step.norm_row::<N>(row));
            }
            if k.has(PROJECTION) {
                tile::interleave(step.m, hidden, R, y);
                let sizes = [hidden, 4 * N, outputs, count, R];
                each_block!(panels[1], y, sizes, step.outputs::<N, FMA>);
            }
            if k.has(LENGTHS) {
                let lengths = &self.lengths[rows.clone()];
                let ended = lengths.iter().enumerate().filter(|(_, length)| t >= **length as usize);
                ended.for_each(|(row, _)| step.carry(row));
            }
        }
    }
}

/// One time step of some batch rows.
struct Step<'a, T> {
    k: &'a Sequence,
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
        let sums = tile::multiply::<T, N, R, FMA>(x, panel); // F2
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

    /// i, f, g from their pre-activations, and u, for `N` units of one row.
    #[inline(always)]
    fn state<const N: usize>(&mut self, row: usize, unit: usize, pre: &mut [[T; N]; GATES]) -> [T; N] {
        let hidden = self.k.hidden as usize;
        let (valid, at) = (hidden - unit, row * hidden + unit);
        let c_before: [T; N] = tile::load(&self.c_before[at..], valid);
        let peephole = |gate: usize| tile::load(&self.peephole[gate * hidden + unit..], valid);
        let w: Option<[[T; N]; 2]> = self.k.has(PEEPHOLE).then(|| std::array::from_fn(peephole));
        let mask: Option<[T; N]> = self.k.has(MASK).then(|| tile::load(&self.mask[at..], valid));
        let u = lstm_state(self.k, pre, &c_before, w, mask);
        for gate in 0..3 {
            tile::store(&pre[gate], &mut self.gates[(row * GATES + gate) * hidden + unit..], valid);
        }
        u
    }

    /// o, c and the cell's output from the new state, for `N` units of one row.
    #[inline(always)]
    fn emit<const N: usize>(&mut self, row: usize, unit: usize, pre: &[[T; N]; GATES], mut c: [T; N]) {
        let k = self.k;
        let hidden = k.hidden as usize;
        let (valid, at) = (hidden - unit, row * hidden + unit);
        if let Some(limit) = k.cell_clip() {
            for lane in 0..N {
                c[lane] = clip(c[lane], limit); // F8
            }
        }
        let w: Option<[T; N]> = k.has(PEEPHOLE).then(|| tile::load(&self.peephole[2 * hidden + unit..], valid));
        let [o, m] = lstm_output(&pre[3], &c, w);
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
            layer_norm(values, gate, self.norm, T::of(k.epsilon), kept); // F3
        }
        for unit in (0..hidden).step_by(N) {
            let mut pre: [[T; N]; GATES] = self.load_gates(row, unit);
            let c = self.state(row, unit, &mut pre);
            tile::store(&c, &mut self.c_after[row * hidden + unit..], hidden - unit);
        }
        let kept = &mut self.normalized[row * NORMS * (hidden + 1)..][..NORMS * (hidden + 1)];
        layer_norm(&mut self.c_after[row * hidden..][..hidden], GATES, self.norm, T::of(k.epsilon), kept);
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
        let sums = tile::multiply::<T, N, R, FMA>(y, panel); // F11
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
            self.gates[(row * GATES + gate) * hidden..][..hidden].fill(value); // F12
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
