//! `lstm_forward`: the recurrence of one LSTM layer in one direction over all steps.
//!
//! ```text
//! [i|f|g|o] = gates[t] + h[before] W_hh^T                forget_bias is added to f
//! i, f, o   = sigmoid                                    g = tanh
//! c[after]  = f c[before] + i g                          h[after] = o tanh(c[after])
//! ```
//!
//! On entry `gates [T, B, 4H]` holds the product of all inputs `x W_ih^T + b_ih + b_hh`, on return the
//! activated gates, which the backward pass needs. `h` and `c` are `[T+1, B, ..]` with the initial
//! state in row 0 (row T in reverse), so no step is special. The options of the cell, from lengths to layer norm,
//! are in [`recurrence`]. Equations: `docs/lstm.md`.
//!
//! On a GPU a time step is one dispatch; a layer norm and a projection, which need all units of a row, add one each.

use super::recurrence::{self, COUPLED, GATES, LENGTHS, MASK, NORM, NORMS, PEEPHOLE, PROJECTION, Recurrence, Variant};
use crate::error::Result;
use crate::float::{Float, Vectorized};
use crate::kernel::{
    AdapterClass, Binding, Kernel, Operand, Scratch, Shader, first_that_suits, fold, reads, tokens, writes,
};
use crate::plan::Tensor;
use crate::recorder::Recorder;
use crate::tile;
use rayon::prelude::*;
use std::ops::Range;

/// Parameters of `lstm_forward`.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct LstmForward(pub Variant);

/// Records the recurrence over all steps.
pub fn record(rec: &mut Recorder<'_>, of: &Recurrence) -> Result<()> {
    let (kernel, operands) = step(of)?;
    rec.push_some(kernel, &operands)
}

/// The kernel and its operands in binding order.
pub fn step(of: &Recurrence) -> Result<(LstmForward, [Option<&Tensor>; 11])> {
    let operands = [
        Some(&of.weight_hh),
        Some(&of.gates),
        Some(&of.h),
        Some(&of.c),
        of.lengths.as_ref(),
        of.peephole.as_ref(),
        of.mask.as_ref(),
        of.projection.as_ref().map(|p| &p.m),
        of.projection.as_ref().map(|p| &p.weight_hr),
        of.norm.as_ref().map(|n| &n.weight),
        of.norm.as_ref().map(|n| &n.normalized),
    ];
    Ok((LstmForward(of.variant()?), operands))
}

/// The `override` declarations of `lstm_forward_norm`.
const NORM_OPTIONS: &[&str] = &["has_lengths", "has_peephole", "has_mask", "coupled", "has_cell_clip", "projected"];

/// The operands by name.
struct Slots<'a, T> {
    weight_hh: &'a [T],
    gates: &'a mut [T],
    h: &'a mut [T],
    c: &'a mut [T],
    lengths: &'a [u32],
    peephole: &'a [T],
    mask: &'a [T],
    m: &'a mut [T],
    weight_hr: &'a [T],
    norm: &'a [T],
    normalized: &'a mut [T],
}

impl<'a, T> Slots<'a, T> {
    fn new(operands: &'a mut [Operand<'_, T>]) -> Self {
        let [
            Operand::Read(weight_hh),
            Operand::Write(gates),
            Operand::Write(h),
            Operand::Write(c),
            Operand::Tokens(lengths),
            Operand::Read(peephole),
            Operand::Read(mask),
            Operand::Write(m),
            Operand::Read(weight_hr),
            Operand::Read(norm),
            Operand::Write(normalized),
        ] = operands
        else {
            unreachable!("bindings of lstm_forward")
        };
        Slots { weight_hh, gates, h, c, lengths, peephole, mask, m, weight_hr, norm, normalized }
    }
}

impl Kernel for LstmForward {
    const NAME: &'static str = "lstm_forward";
    const BINDINGS: &'static [Binding] = &[
        reads("weight_hh"),
        writes("gates"),
        writes("h"),
        writes("c"),
        tokens("lengths"),
        reads("peephole"),
        reads("mask"),
        writes("m"),
        reads("weight_hr"),
        reads("layer_norm"),
        writes("normalized"),
    ];
    const FIELDS: &'static [&'static str] = Variant::FIELDS;
    const FLOATS: &'static [&'static str] = Variant::FLOATS;
    const PACKS: &'static [usize] = &[0, 8];

    fn shaders() -> &'static [Shader<Self>] {
        &[
            Shader {
                name: "lstm_forward_registers",
                source: include_str!("../../shaders/lstm_forward_registers.wgsl"),
                suits: |k, class| class == AdapterClass::Software && k.0.hidden.is_multiple_of(4) && k.0.options == 0,
                constants: |_| Vec::new(),
                grid: |k| fold(k.0.hidden.div_ceil(32) as u64 * k.0.batch.div_ceil(8) as u64),
                binds: Some(&[0, 1, 2, 3]),
            },
            Shader {
                name: "lstm_forward",
                source: include_str!("../../shaders/lstm_forward.wgsl"),
                suits: |_, _| true,
                constants: |k| {
                    k.0.constants(&[
                        "has_lengths",
                        "has_peephole",
                        "has_mask",
                        "coupled",
                        "has_cell_clip",
                        "projected",
                        "normed",
                    ])
                },
                grid: |k| fold(k.0.hidden.div_ceil(8) as u64 * k.0.batch.div_ceil(8) as u64),
                binds: Some(&[0, 1, 2, 3, 4, 5, 6, 7]),
            },
            // the cell's output is h ..
            Shader {
                name: "lstm_forward_norm",
                source: include_str!("../../shaders/lstm_forward_norm.wgsl"),
                suits: |k, _| k.0.has(NORM) && !k.0.has(PROJECTION),
                constants: |k| k.0.constants(NORM_OPTIONS),
                grid: |k| fold(k.0.batch as u64),
                binds: Some(&[1, 3, 2, 4, 5, 6, 9, 10]),
            },
            // .. or m
            Shader {
                name: "lstm_forward_norm",
                source: include_str!("../../shaders/lstm_forward_norm.wgsl"),
                suits: |k, _| k.0.has(NORM) && k.0.has(PROJECTION),
                constants: |k| k.0.constants(NORM_OPTIONS),
                grid: |k| fold(k.0.batch as u64),
                binds: Some(&[1, 3, 7, 4, 5, 6, 9, 10]),
            },
            Shader {
                name: "lstm_forward_project",
                source: include_str!("../../shaders/lstm_forward_project.wgsl"),
                suits: |k, _| k.0.has(PROJECTION),
                constants: |k| k.0.constants(&["has_lengths", "has_output_clip"]),
                grid: |k| fold(k.0.outputs.div_ceil(8) as u64 * k.0.batch.div_ceil(8) as u64),
                binds: Some(&[8, 7, 2, 4]),
            },
        ]
    }

    fn sequence(&self, class: AdapterClass) -> Vec<&'static Shader<Self>> {
        let (products, rest) = Self::shaders().split_at(2);
        let wanted = rest.iter().filter(|shader| (shader.suits)(self, class));
        std::iter::once(first_that_suits(products, self, class)).chain(wanted).collect()
    }

    fn repeats(&self) -> u32 {
        self.0.steps
    }

    fn needs(&self) -> Option<Vec<u128>> {
        let s = self.0.lengths_of_slots()?;
        Some(vec![
            s.weight_hh,
            s.gates,
            s.h,
            s.c,
            s.lengths,
            s.peephole,
            s.mask,
            s.m,
            s.weight_hr,
            s.norm,
            s.normalized,
        ])
    }

    fn flops(&self) -> f64 {
        self.0.flops()
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let s = Slots::new(operands);
        let k = &self.0;
        let [steps, batch, hidden, outputs] = k.sizes();
        let direction = k.direction();
        for (n, row) in (0..steps).flat_map(|n| (0..batch).map(move |row| (n, row))) {
            let t = direction.time(n, steps);
            let (before, after) = (direction.row_before(t) * batch + row, direction.row_after(t) * batch + row);
            let at = |gate: usize, j: usize| ((t * batch + row) * GATES + gate) * hidden + j;
            let kept = (t * batch + row) * NORMS * (hidden + 1)..(t * batch + row + 1) * NORMS * (hidden + 1);
            if k.has(LENGTHS) && t >= s.lengths[row] as usize {
                for j in 0..hidden {
                    for (gate, value) in [T::ZERO, T::ONE, T::ZERO, T::ZERO].into_iter().enumerate() {
                        s.gates[at(gate, j)] = value;
                    }
                    s.c[after * hidden + j] = s.c[before * hidden + j];
                    if k.has(PROJECTION) {
                        s.m[(t * batch + row) * hidden + j] = T::ZERO;
                    }
                }
                for p in 0..outputs {
                    s.h[after * outputs + p] = s.h[before * outputs + p];
                }
                if k.has(NORM) {
                    s.normalized[kept].fill(T::ZERO);
                }
                continue;
            }
            for u in 0..GATES * hidden {
                let mut sum = T::ZERO;
                for p in 0..outputs {
                    sum += s.h[before * outputs + p] * s.weight_hh[u * outputs + p];
                }
                s.gates[at(0, u)] += sum;
            }
            if k.has(NORM) {
                for gate in 0..GATES {
                    let values = &mut s.gates[at(gate, 0)..at(gate, hidden)];
                    layer_norm(values, gate, s.norm, k.epsilon(), &mut s.normalized[kept.clone()]);
                }
            }
            let peephole =
                |gate: usize, j: usize| if k.has(PEEPHOLE) { s.peephole[gate * hidden + j] } else { T::ZERO };
            let mut c = vec![T::ZERO; hidden];
            for j in 0..hidden {
                let c_before = s.c[before * hidden + j];
                let i = (s.gates[at(0, j)] + peephole(0, j) * c_before).sigmoid();
                let f = (s.gates[at(1, j)] + peephole(1, j) * c_before + k.forget_bias()).sigmoid();
                let f = if k.has(COUPLED) { T::ONE - i } else { f };
                let g = s.gates[at(2, j)].tanh();
                let mask = if k.has(MASK) { s.mask[k.mask_at(t, row) + j] } else { T::ONE };
                for (gate, value) in [i, f, g].into_iter().enumerate() {
                    s.gates[at(gate, j)] = value;
                }
                c[j] = f * c_before + i * g * mask;
            }
            if k.has(NORM) {
                layer_norm(&mut c, GATES, s.norm, k.epsilon(), &mut s.normalized[kept]);
            }
            for j in 0..hidden {
                let c = k.cell_clip().map_or(c[j], |limit| clip(c[j], limit));
                let o = (s.gates[at(3, j)] + peephole(2, j) * c).sigmoid();
                s.gates[at(3, j)] = o;
                s.c[after * hidden + j] = c;
                let m = o * c.tanh();
                match k.has(PROJECTION) {
                    true => s.m[(t * batch + row) * hidden + j] = m,
                    false => s.h[after * outputs + j] = m,
                }
            }
            if k.has(PROJECTION) {
                for p in 0..outputs {
                    let mut sum = T::ZERO;
                    for j in 0..hidden {
                        sum += s.m[(t * batch + row) * hidden + j] * s.weight_hr[p * hidden + j];
                    }
                    s.h[after * outputs + p] = k.output_clip().map_or(sum, |limit| clip(sum, limit));
                }
            }
        }
    }

    fn execute<T: Float>(&self, operands: &mut [Operand<'_, T>], scratch: &mut Scratch<T>) {
        let s = Slots::new(operands);
        let k = &self.0;
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
        let groups = tile::row_groups(batch, self.flops());
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
}

/// v within plus and minus `limit`; a NaN stays one.
#[inline(always)]
fn clip<T: Float>(v: T, limit: T) -> T {
    if v > limit {
        limit
    } else if v < -limit {
        -limit
    } else {
        v
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

/// Norm number `index` over H values in place; `kept` is the row that the backward pass needs.
#[inline(always)]
fn layer_norm<T: Float>(values: &mut [T], index: usize, norm: &[T], epsilon: T, kept: &mut [T]) {
    let hidden = values.len();
    let (gain, shift) = (&norm[index * hidden..][..hidden], &norm[(NORMS + index) * hidden..][..hidden]);
    kept[NORMS * hidden + index] = recurrence::normalize(values, epsilon);
    kept[index * hidden..][..hidden].copy_from_slice(values);
    for j in 0..hidden {
        values[j] = gain[j] * values[j] + shift[j];
    }
}
