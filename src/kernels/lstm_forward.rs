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

mod cpu;

use super::recurrence::{self, COUPLED, GATES, LENGTHS, MASK, NORM, NORMS, PEEPHOLE, PROJECTION, Recurrence, Variant};
use crate::error::Result;
use crate::float::Float;
use crate::kernel::{
    AdapterClass, Binding, Kernel, Operand, Scratch, Shader, first_that_suits, fold, reads, tokens, writes,
};
use crate::plan::Tensor;
use crate::recorder::Recorder;

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
        let s = self.0.slot_sizes()?;
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
        cpu::execute(&self.0, Slots::new(operands), scratch);
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
