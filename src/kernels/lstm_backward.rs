//! `lstm_backward`: the recurrence of one LSTM layer in one direction, back through time.
//!
//! ```text
//! dh[after] += dgates[the step worked on just before] W_hh
//! do = dh[after] tanh(c) o (1-o)
//! dct        = dc[after] + dh[after] o (1 - tanh(c)^2)      dc[before] += dct f
//! di = dct g i (1-i)     df = dct c[before] f (1-f)         dg = dct i (1-g^2)
//! ```
//!
//! On entry `dh` and `dc` `[T+1, B, ..]` hold what flows in from outside (the layer above, the final
//! state), on return the whole gradient of every h and c, the initial state's included. The series
//! calls the rows dHt and dCt, and `dct f` dc_next. `dgates [T, B, 4H]` are the gradients of the
//! pre-activations; the weight gradients are products over all of it. Derivation: `docs/lstm.md`.
//!
//! With the options of [`recurrence`](super::recurrence):
//!
//! ```text
//! projection    dm = dh W_hr takes the place of dh[after]; where output_clip holds h, dh becomes 0
//! peephole      dct += do w_o                               dc[before] += di w_i + df w_f
//! cell_clip     dct goes no further where it holds c
//! layer norm    dnormalized [T, B, 5H]: the gradients after gain and shift, of i, f, g, o, c
//! coupled       di = (dct g - dct c[before]) i (1-i)        df = 0
//! past the end  dgates = 0                                  dh, dc[before] += dh, dc[after]
//! ```

mod cpu;

use super::recurrence::{
    COUPLED, GATES, LENGTHS, MASK, NORM, NORMS, OUTPUT_CLIP, PEEPHOLE, PROJECTION, Recurrence, Variant, expect,
};
use crate::error::Result;
use crate::float::Float;
use crate::kernel::{AdapterClass, Binding, Kernel, Operand, Scratch, Shader, first_that_suits, fold, reads, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

/// Parameters of `lstm_backward`.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct LstmBackward(pub Variant);

/// Where the gradients of a [`Recurrence`] go.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// `[T, B, 4H]`
    pub dgates: Tensor,
    /// `[T+1, B, P]`
    pub dh: Tensor,
    /// `[T+1, B, H]`
    pub dc: Tensor,
    /// `[T, B, 5H]`, for a layer norm.
    pub dnormalized: Option<Tensor>,
}

/// Records the way back; updates `dh` and `dc`, writes `dgates` and `dnormalized`.
pub fn record(rec: &mut Recorder<'_>, of: &Recurrence, to: &Gradients) -> Result<()> {
    let (kernel, operands) = step(of, to)?;
    rec.push_some(kernel, &operands)
}

/// The kernel and its operands in binding order.
pub fn step<'a>(of: &'a Recurrence, to: &'a Gradients) -> Result<(LstmBackward, [Option<&'a Tensor>; 13])> {
    let variant = of.variant()?;
    expect("dgates", &to.dgates, of.gates.shape())?;
    expect("dh", &to.dh, of.h.shape())?;
    expect("dc", &to.dc, of.c.shape())?;
    if let (Some(dnormalized), [steps, batch, hidden, _]) = (&to.dnormalized, variant.sizes()) {
        expect("dnormalized", dnormalized, &[steps, batch, NORMS * hidden])?;
    }
    let operands = [
        Some(&of.weight_hh),
        Some(&of.gates),
        Some(&of.c),
        Some(&to.dgates),
        Some(&to.dh),
        Some(&to.dc),
        of.peephole.as_ref(),
        of.mask.as_ref(),
        of.projection.as_ref().map(|p| &p.weight_hr),
        of.options.output_clip.map(|_| &of.h),
        of.norm.as_ref().map(|n| &n.weight),
        of.norm.as_ref().map(|n| &n.normalized),
        to.dnormalized.as_ref(),
    ];
    Ok((LstmBackward(variant), operands))
}

/// The operands by name.
struct Slots<'a, T> {
    weight_hh: &'a [T],
    gates: &'a [T],
    c: &'a [T],
    dgates: &'a mut [T],
    dh: &'a mut [T],
    dc: &'a mut [T],
    peephole: &'a [T],
    mask: &'a [T],
    weight_hr: &'a [T],
    h: &'a [T],
    norm: &'a [T],
    normalized: &'a [T],
    dnormalized: &'a mut [T],
}

impl<'a, T> Slots<'a, T> {
    fn new(operands: &'a mut [Operand<'_, T>]) -> Self {
        let [
            Operand::Read(weight_hh),
            Operand::Read(gates),
            Operand::Read(c),
            Operand::Write(dgates),
            Operand::Write(dh),
            Operand::Write(dc),
            Operand::Read(peephole),
            Operand::Read(mask),
            Operand::Read(weight_hr),
            Operand::Read(h),
            Operand::Read(norm),
            Operand::Read(normalized),
            Operand::Write(dnormalized),
        ] = operands
        else {
            unreachable!("bindings of lstm_backward")
        };
        Slots { weight_hh, gates, c, dgates, dh, dc, peephole, mask, weight_hr, h, norm, normalized, dnormalized }
    }
}

impl LstmBackward {
    /// The step worked on just before the `n`-th one of the way back.
    fn next_time(&self, n: usize) -> Option<usize> {
        n.checked_sub(1).map(|n| self.time(n))
    }

    /// The time of the `n`-th step of the way back.
    fn time(&self, n: usize) -> usize {
        let steps = self.0.steps as usize;
        self.0.direction().time(steps - 1 - n, steps)
    }

    /// State row of the `n`-th step of the way back; for n = T the initial state.
    fn row_after(&self, n: usize) -> usize {
        match n == self.0.steps as usize {
            true => self.0.direction().first_row(n),
            false => self.0.direction().row_after(self.time(n)),
        }
    }
}

/// Constants of the shader `lstm_backward`: which product, and what follows it.
fn constants(k: &LstmBackward, from_h: bool, cell: bool) -> Vec<(&'static str, f64)> {
    let mut constants = k.0.constants(&[
        "has_lengths",
        "has_peephole",
        "has_mask",
        "coupled",
        "has_cell_clip",
        "has_output_clip",
        "normed",
    ]);
    constants.extend([("from_h", from_h as u32 as f64), ("cell", cell as u32 as f64)]);
    constants
}

impl Kernel for LstmBackward {
    const NAME: &'static str = "lstm_backward";
    const BINDINGS: &'static [Binding] = &[
        reads("weight_hh"),
        reads("gates"),
        reads("c"),
        writes("dgates"),
        writes("dh"),
        writes("dc"),
        reads("peephole"),
        reads("mask"),
        reads("weight_hr"),
        reads("h"),
        reads("layer_norm"),
        reads("normalized"),
        writes("dnormalized"),
    ];
    const FIELDS: &'static [&'static str] = Variant::FIELDS;
    const FLOATS: &'static [&'static str] = Variant::FLOATS;
    const PACKS: &'static [usize] = &[0, 8];

    fn shaders() -> &'static [Shader<Self>] {
        &[
            Shader {
                name: "lstm_backward_registers",
                source: include_str!("../../shaders/lstm_backward_registers.wgsl"),
                suits: |k, class| class == AdapterClass::Software && k.0.hidden.is_multiple_of(4) && k.0.options == 0,
                constants: |_| Vec::new(),
                grid: |k| fold(k.0.hidden.div_ceil(64) as u64 * k.0.batch.div_ceil(8) as u64),
                binds: Some(&[0, 1, 2, 3, 4, 5]),
            },
            // dh from dgates, and without a projection the cell
            Shader {
                name: "lstm_backward",
                source: include_str!("../../shaders/lstm_backward.wgsl"),
                suits: |k, _| !k.0.has(PROJECTION),
                constants: |k| constants(k, false, true),
                grid: |k| fold(k.0.hidden.div_ceil(8) as u64 * k.0.batch.div_ceil(8) as u64),
                binds: Some(&[0, 1, 2, 3, 4, 5, 6, 7]),
            },
            Shader {
                name: "lstm_backward",
                source: include_str!("../../shaders/lstm_backward.wgsl"),
                suits: |_, _| true,
                constants: |k| constants(k, false, false),
                grid: |k| fold(k.0.outputs.div_ceil(8) as u64 * k.0.batch.div_ceil(8) as u64),
                binds: Some(&[0, 1, 9, 3, 4, 5, 6, 7]),
            },
            // with one, the cell's output from dh
            Shader {
                name: "lstm_backward",
                source: include_str!("../../shaders/lstm_backward.wgsl"),
                suits: |k, _| k.0.has(PROJECTION),
                constants: |k| constants(k, true, true),
                grid: |k| fold(k.0.hidden.div_ceil(8) as u64 * k.0.batch.div_ceil(8) as u64),
                binds: Some(&[8, 1, 2, 3, 4, 5, 6, 7]),
            },
            Shader {
                name: "lstm_backward_norm",
                source: include_str!("../../shaders/lstm_backward_norm.wgsl"),
                suits: |k, _| k.0.has(NORM),
                constants: |k| k.0.constants(&["has_lengths", "has_peephole", "has_mask", "coupled", "has_cell_clip"]),
                grid: |k| fold(k.0.batch as u64),
                binds: Some(&[1, 2, 5, 6, 7, 10, 11, 12]),
            },
            Shader {
                name: "lstm_backward_norm_gates",
                source: include_str!("../../shaders/lstm_backward_norm_gates.wgsl"),
                suits: |k, _| k.0.has(NORM),
                constants: |_| Vec::new(),
                grid: |k| fold(k.0.batch as u64),
                binds: Some(&[3, 10, 11, 12]),
            },
        ]
    }

    fn sequence(&self, class: AdapterClass) -> Vec<&'static Shader<Self>> {
        let (products, rest) = Self::shaders().split_at(3);
        let wanted = rest.iter().filter(|shader| (shader.suits)(self, class));
        std::iter::once(first_that_suits(products, self, class)).chain(wanted).collect()
    }

    fn repeats(&self) -> u32 {
        self.0.steps + 1
    }

    fn needs(&self) -> Option<Vec<u128>> {
        let s = self.0.slot_sizes()?;
        Some(vec![
            s.weight_hh,
            s.gates,
            s.c,
            s.gates,
            s.h,
            s.c,
            s.peephole,
            s.mask,
            s.weight_hr,
            if self.0.has(OUTPUT_CLIP) { s.h } else { 0 },
            s.norm,
            s.normalized,
            s.dnormalized,
        ])
    }

    fn flops(&self) -> f64 {
        self.0.flops()
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let s = Slots::new(operands);
        let k = &self.0;
        let [steps, batch, hidden, outputs] = k.sizes();
        let one = T::ONE;
        for (n, row) in (0..=steps).flat_map(|n| (0..batch).map(move |row| (n, row))) {
            let after = self.row_after(n) * batch + row;
            if let Some(next) = self.next_time(n) {
                for p in 0..outputs {
                    let mut sum = T::ZERO;
                    for u in 0..GATES * hidden {
                        sum += s.dgates[(next * batch + row) * GATES * hidden + u] * s.weight_hh[u * outputs + p];
                    }
                    s.dh[after * outputs + p] += sum;
                }
            }
            if n == steps {
                continue;
            }
            let t = self.time(n);
            let before = k.direction().row_before(t) * batch + row;
            let at = |gate: usize, j: usize| ((t * batch + row) * GATES + gate) * hidden + j;
            if k.has(LENGTHS) && s.gates[at(3, 0)] == T::ZERO {
                for p in 0..outputs {
                    let carried = s.dh[after * outputs + p];
                    s.dh[before * outputs + p] += carried;
                }
                for j in 0..hidden {
                    let carried = s.dc[after * hidden + j];
                    s.dc[before * hidden + j] += carried;
                    (0..GATES).for_each(|gate| s.dgates[at(gate, j)] = T::ZERO);
                }
                if k.has(NORM) {
                    s.dnormalized[(t * batch + row) * NORMS * hidden..][..NORMS * hidden].fill(T::ZERO);
                }
                continue;
            }
            let dh = &mut s.dh[after * outputs..][..outputs];
            if let Some(limit) = k.output_clip::<T>() {
                for p in 0..outputs {
                    if !within(s.h[after * outputs + p], limit) {
                        dh[p] = T::ZERO;
                    }
                }
            }
            let dm = |j: usize| match k.has(PROJECTION) {
                true => (0..outputs).fold(T::ZERO, |sum, p| sum + dh[p] * s.weight_hr[p * hidden + j]),
                false => dh[j],
            };
            let peephole =
                |gate: usize, j: usize| if k.has(PEEPHOLE) { s.peephole[gate * hidden + j] } else { T::ZERO };
            // of the pre-activations after gain and shift
            let mut d_o = vec![T::ZERO; hidden];
            let mut du = vec![T::ZERO; hidden];
            for j in 0..hidden {
                let (dm, o, c) = (dm(j), s.gates[at(3, j)], s.c[after * hidden + j]);
                let tanh_c = c.tanh();
                d_o[j] = dm * tanh_c * o * (one - o);
                let dct = s.dc[after * hidden + j] + dm * o * (one - tanh_c * tanh_c) + d_o[j] * peephole(2, j);
                s.dc[after * hidden + j] = dct;
                du[j] = if k.cell_clip().is_none_or(|limit| within(c, limit)) { dct } else { T::ZERO };
            }
            // through norm number `index`: 1/std (d - mean(d) - x mean(d x)) with d = gain dy
            let dnormalized = (t * batch + row) * NORMS * hidden;
            let normalized = (t * batch + row) * NORMS * (hidden + 1);
            let through_norm = |dy: &[T], index: usize| -> Vec<T> {
                let count = T::of(hidden as f64);
                let x = &s.normalized[normalized + index * hidden..][..hidden];
                let d: Vec<T> = (0..hidden).map(|j| s.norm[index * hidden + j] * dy[j]).collect();
                let mean = d.iter().fold(T::ZERO, |sum, d| sum + *d) / count;
                let mean_x = d.iter().zip(x).fold(T::ZERO, |sum, (d, x)| sum + *d * *x) / count;
                let scale = s.normalized[normalized + NORMS * hidden + index];
                d.iter().zip(x).map(|(d, x)| scale * (*d - mean - *x * mean_x)).collect()
            };
            if k.has(NORM) {
                s.dnormalized[dnormalized + GATES * hidden..][..hidden].copy_from_slice(&du);
                du = through_norm(&du, GATES);
            }
            for j in 0..hidden {
                let [i, f, g] = [0, 1, 2].map(|gate| s.gates[at(gate, j)]);
                let mask = if k.has(MASK) { s.mask[k.mask_at(t, row) + j] } else { one };
                let c_before = s.c[before * hidden + j];
                let (di, df) = match k.has(COUPLED) {
                    true => ((du[j] * g * mask - du[j] * c_before) * i * (one - i), T::ZERO),
                    false => (du[j] * g * mask * i * (one - i), du[j] * c_before * f * (one - f)),
                };
                s.dc[before * hidden + j] += du[j] * f + di * peephole(0, j) + df * peephole(1, j);
                for (gate, value) in [di, df, du[j] * i * mask * (one - g * g), d_o[j]].into_iter().enumerate() {
                    s.dgates[at(gate, j)] = value;
                }
            }
            if k.has(NORM) {
                for gate in 0..GATES {
                    let dgate = &mut s.dgates[at(gate, 0)..at(gate, hidden)];
                    s.dnormalized[dnormalized + gate * hidden..][..hidden].copy_from_slice(dgate);
                    dgate.copy_from_slice(&through_norm(dgate, gate));
                }
            }
        }
    }

    fn execute<T: Float>(&self, operands: &mut [Operand<'_, T>], scratch: &mut Scratch<T>) {
        cpu::execute(self, Slots::new(operands), scratch);
    }
}

/// Whether a clip at `limit` left v as it was; at the limit itself it counts as clipped.
#[inline(always)]
fn within<T: Float>(v: T, limit: T) -> bool {
    // so written, a NaN is within
    !(v >= limit || v <= -limit)
}
