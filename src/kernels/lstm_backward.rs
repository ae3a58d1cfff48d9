//! `lstm_backward`: the recurrence of one LSTM layer, in one direction or in two, back through time.
//!
//! ```text
//! B1  dh[after] += dgates[the step worked on just before] W_hh, then the cell's rule back, B2 to B9: kernels::recurrence
//! B10 dgates = dy through F3                                     dnormalized [D, T, B, 5H]: dy, and dc before the norm
//! B11 past the end: dgates = 0, dh and dc [before] += dh, dc [after]
//! ```
//!
//! On entry `dh` and `dc` `[D, T+1, B, ..]` hold what flows in from outside (the layer above, the final
//! state), on return the whole gradient of every h and c, the initial state's included. The series
//! calls the rows dHt and dCt, and `dct f` dc_next. `dgates [D, T, B, 4H]` are the gradients of the
//! pre-activations; the weight gradients are products over all of it. Derivation: `docs/lstm.md`.

mod cpu;

use super::prelude::*;
use super::recurrence::lstm::{lstm_output_back, lstm_state_back};
use super::recurrence::*;

over_sequence! {
    /// Parameters of `lstm_backward`.
    LstmBackward
}

operands! { LstmBackward {
    weight_hh: read, gates: read, c: read, dgates: write, dh: write, dc: write, peephole: [read], mask: [read],
    weight_hr: [read], h: [read], layer_norm: [read], normalized: [read], dnormalized: [write],
} }

/// Where the gradients of a [`Recurrence`] go.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// `[D, T, B, 4H]`
    pub dgates: Tensor,
    /// `[D, T+1, B, P]`
    pub dh: Tensor,
    /// `[D, T+1, B, H]`
    pub dc: Tensor,
    /// `[D, T, B, 5H]`, for a layer norm.
    pub dnormalized: Option<Tensor>,
}

/// Records the way back; updates `dh` and `dc`, writes `dgates` and `dnormalized`.
pub fn record(rec: &mut Recorder<'_>, of: &Recurrence, to: &Gradients) -> Result<()> {
    record_as(rec, of, to, |kernel| kernel)
}

/// Records it as the kernel that `wrap` makes of it.
pub fn record_as<K>(rec: &mut Recorder<'_>, of: &Recurrence, to: &Gradients, wrap: fn(LstmBackward) -> K) -> Result<()>
where
    K: for<'a> Kernel<Tensors<'a> = Tensors<'a>>,
{
    let (sequence, weights) = of.sequence(rec)?;
    expect("dgates", &to.dgates, of.gates.shape())?;
    expect("dh", &to.dh, of.h.shape())?;
    expect("dc", &to.dc, of.c.shape())?;
    if let (Some(dnormalized), [d, steps, batch, _]) = (&to.dnormalized, of.gates.shape()) {
        expect("dnormalized", dnormalized, &[*d, *steps, *batch, NORMS * of.c.columns()])?;
    }
    let tensors = Tensors {
        weight_hh: &weights.weight_hh,
        gates: &of.gates,
        c: &of.c,
        dgates: &to.dgates,
        dh: &to.dh,
        dc: &to.dc,
        peephole: weights.peephole.as_ref(),
        mask: of.mask.as_ref(),
        weight_hr: weights.weight_hr.as_ref(),
        h: of.options.output_clip.map(|_| &of.h),
        layer_norm: weights.layer_norm.as_ref(),
        normalized: of.norm.as_ref().map(|n| &n.normalized),
        dnormalized: to.dnormalized.as_ref(),
    };
    rec.push(wrap(LstmBackward(sequence)), tensors)
}

/// The stages of a step; the products are `parts` over tiles of 8 rows and `units` units.
fn stages(k: &Sequence, parts: &'static [Part], units: u32) -> Vec<Stage> {
    // which product, and whether the cell follows it
    let product = |from_h: bool, cell: bool| {
        let (weight, width) = if from_h { ("weight_hr", k.hidden) } else { ("weight_hh", k.outputs) };
        let states = if cell { "c" } else { "h" };
        let names = [weight, "gates", states, "dgates", "dh", "dc", "peephole", "mask"];
        // what a product does not look at is off, so that fewer pipelines are built
        let seen = match (cell, k.has(NORM)) {
            (false, _) => LENGTHS | OUTPUT_CLIP,
            (true, false) => !if from_h { OUTPUT_CLIP } else { 0 },
            (true, true) => NORM | LENGTHS | PEEPHOLE,
        };
        let of = Sequence { options: k.options & seen, ..*k };
        let which = vec![("from_h", from_h), ("cell", cell)];
        let constants = [of.overrides(CELL_OPTIONS | LENGTHS | OUTPUT_CLIP | NORM), which].concat();
        Stage::new(parts, &names, k.tiles(width, units)).with_constants(&constants)
    };
    let mut all = match k.has(PROJECTION) {
        false => vec![product(false, true)],
        true => vec![product(false, false), product(true, true)],
    };
    if k.has(NORM) {
        let grid = fold(k.batch as u64 * k.directions as u64);
        let parts = wgsl![ACTIVATION, SEQUENCE, TOTAL, CELL, "lstm_backward_norm"];
        let names = ["gates", "c", "dc", "peephole", "mask", "layer_norm", "normalized", "dnormalized"];
        all.push(Stage::new(parts, &names, grid).with_constants(&k.overrides(CELL_OPTIONS | LENGTHS)));
        let parts = wgsl![SEQUENCE, TOTAL, "lstm_backward_norm_gates"];
        all.push(Stage::new(parts, &["dgates", "layer_norm", "normalized", "dnormalized"], grid));
    }
    all
}

impl Kernel for LstmBackward {
    const NAME: &'static str = "lstm_backward";
    over_sequence!();

    variants! { |k| k.0.steps + 1,
        "per_step_registers": |k, of, adapter| {
            let views = [of.weight_hh, of.gates, of.c, of.dgates, of.dh, of.dc].map(Some);
            let more = [of.peephole, of.mask, of.weight_hr, of.h];
            for_software(adapter, || k.0.in_quads(&[&views[..], &more].concat()))
        } => |k| stages(&k.0, wgsl![ACTIVATION, SEQUENCE, MADD, CELL, "lstm_backward_registers"], 64),
        "per_step": |_, _, _| Ok(()) =>
            |k| stages(&k.0, wgsl![ACTIVATION, SEQUENCE, CELL, "lstm_backward"], 8)
    }

    fn needs(&self) -> Option<Sizes> {
        // h is read where a clip may hold it
        let without = |name: &str| name == "h" && !self.0.has(OUTPUT_CLIP);
        let sizes = || Sizes::of(|name| if without(name) { 0 } else { self.0.elements(name) });
        self.0.is_sound().then(sizes)
    }

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        let k = &self.0;
        let [steps, batch, hidden, outputs] = k.sizes();
        for (d, direction, n, row) in k.rows(steps + 1) {
            let state = |of: usize| (d * (steps + 1) + of) * batch + row;
            let time_row = |t: usize| (d * steps + t) * batch + row;
            let (time, after) = back(direction, n, steps);
            let after = state(after);
            if n > 0 {
                let next = time_row(back(direction, n - 1, steps).0);
                let weight_hh = &s.weight_hh[d * k.weight_hh_stride as usize..];
                for p in 0..outputs {
                    let mut sum = T::ZERO;
                    for u in 0..GATES * hidden {
                        sum += s.dgates[next * GATES * hidden + u] * weight_hh[u * outputs + p];
                    }
                    s.dh[after * outputs + p] += sum; // B1
                }
            }
            if n == steps {
                continue;
            }
            let (before, now) = (state(direction.row_before(time)), time_row(time));
            let at = |gate: usize, j: usize| (now * GATES + gate) * hidden + j;
            if k.has(LENGTHS) && s.gates[at(3, 0)] == T::ZERO {
                for p in 0..outputs {
                    let carried = s.dh[after * outputs + p];
                    s.dh[before * outputs + p] += carried; // B11
                }
                for j in 0..hidden {
                    let carried = s.dc[after * hidden + j];
                    s.dc[before * hidden + j] += carried;
                    (0..GATES).for_each(|gate| s.dgates[at(gate, j)] = T::ZERO);
                }
                if k.has(NORM) {
                    s.dnormalized[now * NORMS * hidden..][..NORMS * hidden].fill(T::ZERO);
                }
                continue;
            }
            let dh = &mut s.dh[after * outputs..][..outputs];
            if let Some(limit) = k.output_clip::<T>() {
                stop_at(limit, dh, &s.h[after * outputs..]);
            }
            let weight_hr = s.weight_hr.get(d * k.weight_hr_stride as usize..).unwrap_or_default();
            let dm = |j: usize| match k.has(PROJECTION) {
                true => (0..outputs).fold(T::ZERO, |sum, p| sum + dh[p] * weight_hr[p * hidden + j]), // B2
                false => dh[j],
            };
            let peephole = |gate: usize, j: usize| match k.has(PEEPHOLE) {
                true => s.peephole[d * k.peephole_stride as usize + gate * hidden + j],
                false => T::ZERO,
            };
            let (mut dy_o, mut du) = (vec![T::ZERO; hidden], vec![T::ZERO; hidden]);
            for j in 0..hidden {
                let (o, c) = (s.gates[at(3, j)], s.c[after * hidden + j]);
                let [d_o, dc] = lstm_output_back(dm(j), o, c, s.dc[after * hidden + j], peephole(2, j));
                (dy_o[j], s.dc[after * hidden + j]) = (d_o, dc);
                du[j] = if k.cell_clip().is_none_or(|limit| within(c, limit)) { dc } else { T::ZERO }; // B5
            }
            // through norm number `index`: 1/std (d - mean(d) - x mean(d x)) with d = gain dy
            let normalized = now * NORMS * (hidden + 1);
            let norm = s.layer_norm.get(d * k.layer_norm_stride as usize..).unwrap_or_default();
            let through_norm = |dy: &[T], index: usize| -> Vec<T> {
                let count = T::of(hidden as f64);
                let x = &s.normalized[normalized + index * hidden..][..hidden];
                let d: Vec<T> = (0..hidden).map(|j| norm[index * hidden + j] * dy[j]).collect();
                let mean = d.iter().fold(T::ZERO, |sum, d| sum + *d) / count;
                let mean_x = d.iter().zip(x).fold(T::ZERO, |sum, (d, x)| sum + *d * *x) / count;
                let scale = s.normalized[normalized + NORMS * hidden + index];
                d.iter().zip(x).map(|(d, x)| scale * (*d - mean - *x * mean_x)).collect()
            };
            let dnormalized = now * NORMS * hidden;
            if k.has(NORM) {
                s.dnormalized[dnormalized + GATES * hidden..][..hidden].copy_from_slice(&du);
                du = through_norm(&du, GATES);
            }
            for j in 0..hidden {
                let ifg = [0, 1, 2].map(|gate| s.gates[at(gate, j)]);
                let mask = if k.has(MASK) { s.mask[k.mask_at(d, time, row) + j] } else { T::ONE };
                let w = [0, 1].map(|gate| peephole(gate, j));
                let [dy_i, dy_f, dy_g, carry] = lstm_state_back(k, du[j], ifg, s.c[before * hidden + j], w, mask);
                s.dc[before * hidden + j] += carry;
                for (gate, value) in [dy_i, dy_f, dy_g, dy_o[j]].into_iter().enumerate() {
                    s.dgates[at(gate, j)] = value;
                }
            }
            if k.has(NORM) {
                for gate in 0..GATES {
                    let dgate = &mut s.dgates[at(gate, 0)..at(gate, hidden)];
                    s.dnormalized[dnormalized + gate * hidden..][..hidden].copy_from_slice(dgate);
                    dgate.copy_from_slice(&through_norm(dgate, gate)); // B10
                }
            }
        }
    }
}

/// Every size and set of options of a recurrence. Gates are drawn from +-0.5: not probabilities, but the equations
/// hold for any numbers.
pub fn cases() -> Vec<Case> {
    cases::all("lstm_backward", 0.5, |rec, sizes, directions, options| {
        let of = cases::recurrence(rec, sizes, directions, options, false)?;
        let to = cases::gradients(rec, &of)?;
        record(rec, &of, &to)
    })
}
