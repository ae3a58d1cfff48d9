//! `lstm_forward`: the recurrence of one LSTM layer over all steps, in one direction or in two.
//!
//! ```text
//! F2  [i|f|g|o] = gates[t] + h[before] W_hh^T, then the cell's rule: kernels::recurrence
//! ```
//!
//! On entry `gates [D, T, B, 4H]` holds the product of all inputs `x W_ih^T + b_ih + b_hh`, on return the
//! activated gates, which the backward pass needs. `h` and `c` are `[D, T+1, B, ..]` with the initial
//! state in row 0 (row T in reverse), so no step is special. The options of the cell, from lengths to layer norm,
//! are in [`recurrence`](super::recurrence). Equations: `docs/lstm.md`.
//!
//! On a GPU a time step of all directions is one dispatch; a layer norm and a projection, which need all units of a row, add one each.

mod cpu;

use super::prelude::*;
use super::recurrence::lstm::{lstm_output, lstm_state};
use super::recurrence::*;

over_sequence! {
    /// Parameters of `lstm_forward`.
    LstmForward
}

operands! { LstmForward {
    weight_hh: read, gates: write, h: write, c: write, lengths: [read_words], peephole: [read], mask: [read],
    m: [write], weight_hr: [read], layer_norm: [read], normalized: [write],
} }

/// Records the recurrence over all steps.
pub fn record(rec: &mut Recorder<'_>, of: &Recurrence) -> Result<()> {
    record_as(rec, of, |kernel| kernel)
}

/// Records it as the kernel that `wrap` makes of it.
pub fn record_as<K>(rec: &mut Recorder<'_>, of: &Recurrence, wrap: fn(LstmForward) -> K) -> Result<()>
where
    K: for<'a> Kernel<Tensors<'a> = Tensors<'a>>,
{
    let (sequence, weights) = of.sequence(rec)?;
    let tensors = Tensors {
        weight_hh: &weights.weight_hh,
        gates: &of.gates,
        h: &of.h,
        c: &of.c,
        lengths: of.lengths.as_ref(),
        peephole: weights.peephole.as_ref(),
        mask: of.mask.as_ref(),
        m: of.projection.as_ref().map(|p| &p.m),
        weight_hr: weights.weight_hr.as_ref(),
        layer_norm: weights.layer_norm.as_ref(),
        normalized: of.norm.as_ref().map(|n| &n.normalized),
    };
    rec.push(wrap(LstmForward(sequence)), tensors)
}

/// The stages of a step; the first and the projection are over tiles of 8 rows and `units` units or outputs.
fn stages(k: &Sequence, first: &'static [Part], project: &'static [Part], units: u32) -> Vec<Stage> {
    let names = ["weight_hh", "gates", "h", "c", "lengths", "peephole", "mask", "m"];
    // with a norm the cell comes later: its options are off, so that fewer pipelines are built
    let of = Sequence { options: if k.has(NORM) { NORM } else { k.options }, ..*k };
    let stage = Stage::new(first, &names, k.tiles(k.hidden, units));
    let mut all = vec![stage.with_constants(&of.overrides(CELL_OPTIONS | LENGTHS | PROJECTION | NORM))];
    if k.has(NORM) {
        let output = if k.has(PROJECTION) { "m" } else { "h" };
        let names = ["gates", "c", output, "lengths", "peephole", "mask", "layer_norm", "normalized"];
        let parts = wgsl![ACTIVATION, SEQUENCE, TOTAL, CELL, "lstm_forward_norm"];
        let stage = Stage::new(parts, &names, fold(k.batch as u64 * k.directions as u64));
        all.push(stage.with_constants(&k.overrides(CELL_OPTIONS | LENGTHS | PROJECTION)));
    }
    if k.has(PROJECTION) {
        let stage = Stage::new(project, &["weight_hr", "m", "h", "lengths"], k.tiles(k.outputs, units));
        all.push(stage.with_constants(&k.overrides(LENGTHS | OUTPUT_CLIP)));
    }
    all
}

impl Kernel for LstmForward {
    const NAME: &'static str = "lstm_forward";
    over_sequence!();

    variants! { |k| k.0.steps,
        "per_step_registers": |k, of, adapter| {
            let views = [of.weight_hh, of.gates, of.h, of.c].map(Some);
            let more = [of.peephole, of.mask, of.m, of.weight_hr];
            for_software(adapter, || k.0.in_quads(&[&views[..], &more].concat()))
        } => |k| {
            let first = wgsl![ACTIVATION, SEQUENCE, MADD, CELL, "lstm_forward_registers"];
            stages(&k.0, first, wgsl![ACTIVATION, SEQUENCE, MADD, "lstm_forward_project_registers"], 32)
        },
        "per_step": |_, _, _| Ok(()) => |k| {
            let first = wgsl![ACTIVATION, SEQUENCE, CELL, "lstm_forward"];
            stages(&k.0, first, wgsl![ACTIVATION, SEQUENCE, "lstm_forward_project"], 8)
        }
    }

    fn needs(&self) -> Option<Sizes> {
        self.0.is_sound().then(|| Sizes::of(|name| self.0.elements(name)))
    }

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        let k = &self.0;
        let [steps, batch, hidden, outputs] = k.sizes();
        for (d, direction, n, row) in k.rows(steps) {
            let t = direction.time(n, steps);
            let state = |of: usize| (d * (steps + 1) + of) * batch + row;
            let (before, after) = (state(direction.row_before(t)), state(direction.row_after(t)));
            let now = (d * steps + t) * batch + row;
            let at = |gate: usize, j: usize| (now * GATES + gate) * hidden + j;
            let kept = now * NORMS * (hidden + 1)..(now + 1) * NORMS * (hidden + 1);
            let weight_hh = &s.weight_hh[d * k.weight_hh_stride as usize..];
            if k.has(LENGTHS) && t >= s.lengths[row] as usize {
                for j in 0..hidden {
                    for (gate, value) in [T::ZERO, T::ONE, T::ZERO, T::ZERO].into_iter().enumerate() {
                        s.gates[at(gate, j)] = value; // F12
                    }
                    s.c[after * hidden + j] = s.c[before * hidden + j];
                    if k.has(PROJECTION) {
                        s.m[now * hidden + j] = T::ZERO;
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
                    sum += s.h[before * outputs + p] * weight_hh[u * outputs + p];
                }
                s.gates[at(0, u)] += sum; // F2
            }
            let norm = s.layer_norm.get(d * k.layer_norm_stride as usize..).unwrap_or_default();
            if k.has(NORM) {
                for gate in 0..GATES {
                    let values = &mut s.gates[at(gate, 0)..at(gate, hidden)];
                    layer_norm(values, gate, norm, T::of(k.epsilon), &mut s.normalized[kept.clone()]); // F3
                }
            }
            let peephole = |gate: usize, j: usize| match k.has(PEEPHOLE) {
                true => s.peephole[d * k.peephole_stride as usize + gate * hidden + j],
                false => T::ZERO,
            };
            let mut c = vec![T::ZERO; hidden];
            for j in 0..hidden {
                let y = [0, 1, 2].map(|gate| s.gates[at(gate, j)]);
                let mask = if k.has(MASK) { s.mask[k.mask_at(d, t, row) + j] } else { T::ONE };
                let w = [0, 1].map(|gate| peephole(gate, j));
                let [i, f, g, u] = lstm_state(k, y, s.c[before * hidden + j], w, mask);
                for (gate, value) in [i, f, g].into_iter().enumerate() {
                    s.gates[at(gate, j)] = value;
                }
                c[j] = u;
            }
            if k.has(NORM) {
                layer_norm(&mut c, GATES, norm, T::of(k.epsilon), &mut s.normalized[kept]); // F8
            }
            for j in 0..hidden {
                let c = k.cell_clip().map_or(c[j], |limit| clip(c[j], limit));
                let [o, m] = lstm_output(s.gates[at(3, j)], c, peephole(2, j));
                s.gates[at(3, j)] = o;
                s.c[after * hidden + j] = c;
                match k.has(PROJECTION) {
                    true => s.m[now * hidden + j] = m,
                    false => s.h[after * outputs + j] = m,
                }
            }
            if k.has(PROJECTION) {
                let weight_hr = &s.weight_hr[d * k.weight_hr_stride as usize..];
                for p in 0..outputs {
                    let mut sum = T::ZERO;
                    for j in 0..hidden {
                        sum += s.m[now * hidden + j] * weight_hr[p * hidden + j];
                    }
                    s.h[after * outputs + p] = k.output_clip().map_or(sum, |limit| clip(sum, limit)); // F11
                }
            }
        }
    }
}

/// Every size and set of options of a recurrence.
pub fn cases() -> Vec<Case> {
    cases::all("lstm_forward", 1.0, |rec, sizes, directions, options| {
        let of = cases::recurrence(rec, sizes, directions, options, true)?;
        record(rec, &of)
    })
}
