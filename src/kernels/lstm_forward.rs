//! `lstm_forward`: the recurrence of one LSTM layer in one direction over all steps.
//!
//! ```text
//! [i|f|g|o] = gates[t] + h[before] W_hh^T + b_hh         forget_bias is added to f
//! i, f, o   = sigmoid                                    g = tanh
//! c[after]  = f c[before] + i g                          h[after] = o tanh(c[after])
//! ```
//!
//! On entry `gates [T, B, 4H]` holds the product of all inputs `x W_ih^T + b_ih`, on return the
//! activated gates, which the backward pass needs. `h` and `c` are `[T+1, B, H]` with the initial
//! state in row 0 (row T in reverse), so no step is special. Equations: `docs/lstm.md`.

use crate::error::{Error, Result};
use crate::float::{Float, Vectorized};
use crate::kernel::{AdapterClass, Binding, Kernel, Operand, Shader, fold, parameters, reads, sized, split, writes};
use crate::plan::{Direction, Tensor};
use crate::recorder::Recorder;
use crate::tile;
use rayon::prelude::*;
use std::ops::Range;

/// Gates in every packed matrix and vector: i, f, g, o, as in PyTorch.
pub const GATES: usize = 4;

parameters! {
    /// Parameters of `lstm_forward`.
    LstmForward {
        /// T, the number of steps.
        steps: u32,
        /// B, the batch.
        batch: u32,
        /// H, the hidden size.
        hidden: u32,
        /// 1 to walk from the last step to the first.
        reverse: u32,
        /// 1 if `bias_hh` is added.
        has_bias: u32,
        /// Added to the pre-activation of f.
        forget_bias: f32,
        /// What f32 loses of it, for the f64 executor.
        forget_bias_rest: f32,
    }
}

/// Records the recurrence over `gates [T, B, 4H]`, `h` and `c` `[T+1, B, H]`.
#[allow(clippy::too_many_arguments)]
pub fn record(
    rec: &mut Recorder<'_>,
    direction: Direction,
    weight_hh: &Tensor,
    bias_hh: Option<&Tensor>,
    forget_bias: f64,
    gates: &Tensor,
    h: &Tensor,
    c: &Tensor,
) -> Result<()> {
    let [steps, batch, hidden] = dimensions(gates)?;
    expect("weight_hh", weight_hh, &[GATES * hidden, hidden])?;
    expect("h", h, &[steps + 1, batch, hidden])?;
    expect("c", c, &[steps + 1, batch, hidden])?;
    if let Some(bias) = bias_hh {
        expect("bias_hh", bias, &[GATES * hidden])?;
    }
    let kernel = LstmForward {
        steps: steps as u32,
        batch: batch as u32,
        hidden: hidden as u32,
        reverse: (direction == Direction::Reverse) as u32,
        has_bias: bias_hh.is_some() as u32,
        forget_bias: split(forget_bias).0,
        forget_bias_rest: split(forget_bias).1,
    };
    rec.push(kernel, &[weight_hh, bias_hh.unwrap_or(weight_hh), gates, h, c])
}

/// T, B, H of a `[T, B, 4H]` tensor.
pub(crate) fn dimensions(gates: &Tensor) -> Result<[usize; 3]> {
    match gates.shape() {
        [steps, batch, width] if width % GATES == 0 => Ok([*steps, *batch, width / GATES]),
        other => Err(Error::shape("recording an LSTM", "gates of shape [T, B, 4H]", other)),
    }
}

pub(crate) fn expect(name: &str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    match tensor.shape() == shape {
        true => Ok(()),
        false => Err(Error::shape(format!("recording an LSTM, `{name}`"), format!("{shape:?}"), tensor.shape())),
    }
}

impl LstmForward {
    fn sizes(&self) -> [usize; 3] {
        [self.steps as usize, self.batch as usize, self.hidden as usize]
    }

    fn forget_bias<T: Float>(&self) -> T {
        T::of(self.forget_bias as f64 + self.forget_bias_rest as f64)
    }

    fn direction(&self) -> Direction {
        if self.reverse != 0 { Direction::Reverse } else { Direction::Forward }
    }
}

impl Kernel for LstmForward {
    const NAME: &'static str = "lstm_forward";
    const BINDINGS: &'static [Binding] =
        &[reads("weight_hh"), reads("bias_hh"), writes("gates"), writes("h"), writes("c")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    const FLOATS: &'static [&'static str] = &["forget_bias", "forget_bias_rest"];

    fn shaders() -> &'static [Shader<Self>] {
        &[
            Shader {
                name: "lstm_forward_registers",
                source: include_str!("../../shaders/lstm_forward_registers.wgsl"),
                suits: |k, class| class == AdapterClass::Software && k.hidden.is_multiple_of(4),
                constants: |_| Vec::new(),
                grid: |k| fold(k.hidden.div_ceil(32) as u64 * k.batch.div_ceil(8) as u64),
            },
            Shader {
                name: "lstm_forward",
                source: include_str!("../../shaders/lstm_forward.wgsl"),
                suits: |_, _| true,
                constants: |_| Vec::new(),
                grid: |k| fold(k.hidden.div_ceil(8) as u64 * k.batch.div_ceil(8) as u64),
            },
        ]
    }

    fn repeats(&self) -> u32 {
        self.steps
    }

    fn needs(&self) -> Option<Vec<u128>> {
        let Self { steps, batch, hidden, .. } = *self;
        let (width, states) = (sized(&[4, hidden])?, sized(&[steps, batch, hidden])? + sized(&[batch, hidden])?);
        Some(vec![width * hidden as u128, width, sized(&[steps, batch, 4, hidden])?, states, states])
    }

    fn flops(&self) -> f64 {
        let [steps, batch, hidden] = self.sizes();
        2.0 * (GATES * hidden * hidden) as f64 * (steps * batch) as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Read(weight), Operand::Read(bias), Operand::Write(gates), Operand::Write(h), Operand::Write(c)] =
            operands
        else {
            unreachable!("bindings of lstm_forward")
        };
        let [steps, batch, hidden] = self.sizes();
        let direction = self.direction();
        for n in 0..steps {
            let t = direction.time(n, steps);
            for row in 0..batch {
                let before = (direction.row_before(t) * batch + row) * hidden;
                let after = (direction.row_after(t) * batch + row) * hidden;
                for j in 0..hidden {
                    let at = |gate: usize| (t * batch + row) * GATES * hidden + gate * hidden + j;
                    let pre = |gate: usize| {
                        let u = gate * hidden + j;
                        let mut sum = T::ZERO;
                        for k in 0..hidden {
                            sum += h[before + k] * weight[u * hidden + k];
                        }
                        sum + gates[at(gate)] + if self.has_bias != 0 { bias[u] } else { T::ZERO }
                    };
                    let i = pre(0).sigmoid();
                    let f = (pre(1) + self.forget_bias()).sigmoid();
                    let g = pre(2).tanh();
                    let o = pre(3).sigmoid();
                    for (gate, value) in [i, f, g, o].into_iter().enumerate() {
                        gates[at(gate)] = value;
                    }
                    c[after + j] = f * c[before + j] + i * g;
                    h[after + j] = o * c[after + j].tanh();
                }
            }
        }
    }

    fn execute<T: Float>(&self, operands: &mut [Operand<'_, T>], scratch: &mut Vec<T>) {
        let [Operand::Read(weight), Operand::Read(bias), Operand::Write(gates), Operand::Write(h), Operand::Write(c)] =
            operands
        else {
            unreachable!("bindings of lstm_forward")
        };
        let [steps, batch, hidden] = self.sizes();
        if steps * batch < PACKING_PAYS {
            return T::vectorize(Direct { kernel: self, weight, bias, gates, h, c });
        }
        let lanes = tile::lanes::<T>();
        let units = hidden.next_multiple_of(lanes);
        let memory = tile::aligned(scratch, (hidden + 1) * GATES * units + batch * hidden);
        let (panels, rest) = memory.split_at_mut(hidden * GATES * units);
        let (biases, rows) = rest.split_at_mut(GATES * units);
        // [panel][k][gate][lane]
        for u in 0..GATES * units {
            let (gate, unit) = (u / units, u % units);
            let to = unit / lanes * hidden * GATES * lanes + gate * lanes + unit % lanes;
            for k in 0..hidden {
                let value = if unit < hidden { weight[(gate * hidden + unit) * hidden + k] } else { T::ZERO };
                panels[to + k * GATES * lanes] = value;
            }
            let inside = unit < hidden && self.has_bias != 0;
            let extra = if gate == 1 { self.forget_bias() } else { T::ZERO };
            biases[u] = extra + if inside { bias[gate * hidden + unit] } else { T::ZERO };
        }
        let (panels, biases) = (&*panels, &*biases);
        let groups = tile::row_groups(batch, self.flops());
        let mut gates = tile::split_rows(gates, batch, GATES * hidden, &groups).into_iter();
        let mut h = tile::split_rows(h, batch, hidden, &groups).into_iter();
        let mut c = tile::split_rows(c, batch, hidden, &groups).into_iter();
        let mut x = tile::split_rows(rows, batch, hidden, &groups).into_iter().flatten();
        let workers: Vec<_> = groups
            .iter()
            .filter_map(|rows| {
                let (gates, h, c, x) = (gates.next()?, h.next()?, c.next()?, x.next()?);
                Some(Worker { kernel: self, rows: rows.len(), units, panels, biases, gates, h, c, x })
            })
            .collect();
        match workers.len() {
            1 => workers.into_iter().for_each(T::vectorize),
            _ => workers.into_par_iter().for_each(T::vectorize),
        }
    }
}

/// Below this many rows and steps together, packing the weights costs more than it brings: streaming, step by step.
const PACKING_PAYS: usize = 8;

/// The recurrence straight from the weights as they are, unit by unit.
struct Direct<'a, T> {
    kernel: &'a LstmForward,
    weight: &'a [T],
    bias: &'a [T],
    gates: &'a mut [T],
    h: &'a mut [T],
    c: &'a mut [T],
}

impl<T: Float> Vectorized for Direct<'_, T> {
    #[inline(always)]
    fn run<const N: usize, const R: usize, const FMA: bool>(self) {
        let [steps, batch, hidden] = self.kernel.sizes();
        let direction = self.kernel.direction();
        let bias = |u: usize| if self.kernel.has_bias != 0 { self.bias[u] } else { T::ZERO };
        for (n, row) in (0..steps).flat_map(|n| (0..batch).map(move |row| (n, row))) {
            let t = direction.time(n, steps);
            let before = (direction.row_before(t) * batch + row) * hidden;
            let after = (direction.row_after(t) * batch + row) * hidden;
            let gates = &mut self.gates[(t * batch + row) * GATES * hidden..][..GATES * hidden];
            for (u, gate) in gates.iter_mut().enumerate() {
                let weights = &self.weight[u * hidden..][..hidden];
                *gate += tile::dot::<T, N, FMA>(weights, &self.h[before..][..hidden]) + bias(u);
            }
            for j in 0..hidden {
                let i = gates[j].sigmoid();
                let f = (gates[hidden + j] + self.kernel.forget_bias()).sigmoid();
                let g = gates[2 * hidden + j].tanh();
                let o = gates[3 * hidden + j].sigmoid();
                for (gate, value) in [i, f, g, o].into_iter().enumerate() {
                    gates[gate * hidden + j] = value;
                }
                self.c[after + j] = f * self.c[before + j] + i * g;
                self.h[after + j] = o * self.c[after + j].tanh();
            }
        }
    }
}

/// Some batch rows of a sequence, with every per-step slice of theirs.
struct Worker<'a, T> {
    kernel: &'a LstmForward,
    rows: usize,
    /// H rounded up to whole vectors.
    units: usize,
    /// `[panel][k][gate][lane]`
    panels: &'a [T],
    /// `[gate][unit]`
    biases: &'a [T],
    gates: Vec<&'a mut [T]>,
    h: Vec<&'a mut [T]>,
    c: Vec<&'a mut [T]>,
    /// h of the step before, interleaved.
    x: &'a mut [T],
}

impl<T: Float> Vectorized for Worker<'_, T> {
    #[inline(always)]
    fn run<const N: usize, const R: usize, const FMA: bool>(mut self) {
        let [steps, _, hidden] = self.kernel.sizes();
        let direction = self.kernel.direction();
        let size = hidden * GATES * N;
        for n in 0..steps {
            let t = direction.time(n, steps);
            tile::interleave(self.h[direction.row_before(t)], hidden, R, self.x);
            for p in 0..self.units / N {
                let panel = &self.panels[p * size..(p + 1) * size];
                for rows in tile::blocks(self.rows, R) {
                    tile::with_rows!(rows.len(), self.block::<N, FMA>(t, p, panel, rows.clone()));
                }
            }
        }
    }
}

impl<T: Float> Worker<'_, T> {
    /// One panel of units for `R` rows at time `t`.
    #[inline(always)]
    fn block<const N: usize, const R: usize, const FMA: bool>(
        &mut self,
        t: usize,
        p: usize,
        panel: &[T],
        rows: Range<usize>,
    ) {
        let [_, _, hidden] = self.kernel.sizes();
        let direction = self.kernel.direction();
        let (before, after) = (direction.row_before(t), direction.row_after(t));
        let (c_before, c_after) = tile::pair(&mut self.c, before, after);
        let gates = &mut *self.gates[t];
        let x = &self.x[rows.start * hidden..rows.end * hidden];
        let sums = tile::multiply::<T, N, R, FMA>(x, panel);
        let unit = p * N;
        let valid = hidden - unit;
        for r in 0..R {
            let row = rows.start + r;
            let mut pre = sums[r];
            for (gate, pre) in pre.iter_mut().enumerate() {
                let input: [T; N] = tile::load(&gates[(row * GATES + gate) * hidden + unit..], valid);
                let bias = &self.biases[gate * self.units + unit..][..N];
                for lane in 0..N {
                    pre[lane] = pre[lane] + input[lane] + bias[lane];
                }
            }
            let old: [T; N] = tile::load(&c_before[row * hidden + unit..], valid);
            let mut c = [T::ZERO; N];
            let mut h = [T::ZERO; N];
            for lane in 0..N {
                pre[0][lane] = pre[0][lane].sigmoid();
                pre[1][lane] = pre[1][lane].sigmoid();
                pre[2][lane] = pre[2][lane].tanh();
                pre[3][lane] = pre[3][lane].sigmoid();
                c[lane] = pre[1][lane] * old[lane] + pre[0][lane] * pre[2][lane];
                h[lane] = pre[3][lane] * c[lane].tanh();
            }
            for (gate, values) in pre.iter().enumerate() {
                tile::store(values, &mut gates[(row * GATES + gate) * hidden + unit..], valid);
            }
            tile::store(&c, &mut c_after[row * hidden + unit..], valid);
            tile::store(&h, &mut self.h[after][row * hidden + unit..], valid);
        }
    }
}
