//! `lstm_backward`: the recurrence of one LSTM layer in one direction, back through time.
//!
//! ```text
//! dh[after] += dgates[the step worked on just before] W_hh
//! dct        = dc[after] + dh[after] o (1 - tanh(c)^2)      dc[before] += dct f
//! di = dct g i (1-i)     df = dct c[before] f (1-f)
//! dg = dct i (1-g^2)     do = dh[after] tanh(c) o (1-o)
//! ```
//!
//! On entry `dh` and `dc` `[T+1, B, H]` hold what flows in from outside (the layer above, the final
//! state), on return the whole gradient of every h and c, the initial state's included. The series
//! calls the rows dHt and dCt, and `dct f` dc_next. `dgates [T, B, 4H]` are the gradients of the
//! pre-activations; the weight gradients are products over all of it. Derivation: `docs/lstm.md`.

use crate::error::Result;
use crate::float::{Float, Vectorized};
use crate::kernel::{AdapterClass, Binding, Kernel, Operand, Shader, fold, parameters, reads, sized, writes};
use crate::kernels::lstm_forward::{GATES, dimensions, expect};
use crate::plan::{Direction, Tensor};
use crate::recorder::Recorder;
use crate::tile;
use rayon::prelude::*;
use std::ops::Range;

parameters! {
    /// Parameters of `lstm_backward`.
    LstmBackward {
        /// T, the number of steps.
        steps: u32,
        /// B, the batch.
        batch: u32,
        /// H, the hidden size.
        hidden: u32,
        /// 1 if the forward pass walked from the last step to the first.
        reverse: u32,
    }
}

/// Records the way back over `gates [T, B, 4H]` and `c [T+1, B, H]`; updates `dh` and `dc`, writes `dgates`.
#[allow(clippy::too_many_arguments)]
pub fn record(
    rec: &mut Recorder<'_>,
    direction: Direction,
    weight_hh: &Tensor,
    gates: &Tensor,
    c: &Tensor,
    dgates: &Tensor,
    dh: &Tensor,
    dc: &Tensor,
) -> Result<()> {
    let [steps, batch, hidden] = dimensions(gates)?;
    expect("weight_hh", weight_hh, &[GATES * hidden, hidden])?;
    expect("dgates", dgates, gates.shape())?;
    for (name, tensor) in [("c", c), ("dh", dh), ("dc", dc)] {
        expect(name, tensor, &[steps + 1, batch, hidden])?;
    }
    let kernel = LstmBackward {
        steps: steps as u32,
        batch: batch as u32,
        hidden: hidden as u32,
        reverse: (direction == Direction::Reverse) as u32,
    };
    rec.push(kernel, &[weight_hh, gates, c, dgates, dh, dc])
}

impl LstmBackward {
    fn sizes(&self) -> [usize; 3] {
        [self.steps as usize, self.batch as usize, self.hidden as usize]
    }

    fn direction(&self) -> Direction {
        if self.reverse != 0 { Direction::Reverse } else { Direction::Forward }
    }

    /// The step worked on just before the `n`-th one of the way back.
    fn next_time(&self, n: usize) -> Option<usize> {
        n.checked_sub(1).map(|n| self.time(n))
    }

    /// The time of the `n`-th step of the way back.
    fn time(&self, n: usize) -> usize {
        let steps = self.steps as usize;
        self.direction().time(steps - 1 - n, steps)
    }

    /// State row of the `n`-th step of the way back; for n = T the initial state.
    fn row_after(&self, n: usize) -> usize {
        match n == self.steps as usize {
            true => self.direction().first_row(n),
            false => self.direction().row_after(self.time(n)),
        }
    }
}

impl Kernel for LstmBackward {
    const NAME: &'static str = "lstm_backward";
    const BINDINGS: &'static [Binding] =
        &[reads("weight_hh"), reads("gates"), reads("c"), writes("dgates"), writes("dh"), writes("dc")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;

    fn shaders() -> &'static [Shader<Self>] {
        &[
            Shader {
                name: "lstm_backward_registers",
                source: include_str!("../../shaders/lstm_backward_registers.wgsl"),
                suits: |k, class| class == AdapterClass::Software && k.hidden.is_multiple_of(4),
                constants: |_| Vec::new(),
                grid: |k| fold(k.hidden.div_ceil(64) as u64 * k.batch.div_ceil(8) as u64),
            },
            Shader {
                name: "lstm_backward",
                source: include_str!("../../shaders/lstm_backward.wgsl"),
                suits: |_, _| true,
                constants: |_| Vec::new(),
                grid: |k| fold(k.hidden.div_ceil(8) as u64 * k.batch.div_ceil(8) as u64),
            },
        ]
    }

    fn repeats(&self) -> u32 {
        self.steps + 1
    }

    fn needs(&self) -> Option<Vec<u128>> {
        let Self { steps, batch, hidden, .. } = *self;
        let (gates, states) =
            (sized(&[steps, batch, 4, hidden])?, sized(&[steps, batch, hidden])? + sized(&[batch, hidden])?);
        Some(vec![sized(&[4, hidden, hidden])?, gates, states, gates, states, states])
    }

    fn flops(&self) -> f64 {
        let [steps, batch, hidden] = self.sizes();
        2.0 * (GATES * hidden * hidden) as f64 * (steps * batch) as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [
            Operand::Read(weight),
            Operand::Read(gates),
            Operand::Read(c),
            Operand::Write(dgates),
            Operand::Write(dh),
            Operand::Write(dc),
        ] = operands
        else {
            unreachable!("bindings of lstm_backward")
        };
        let [steps, batch, hidden] = self.sizes();
        let one = T::ONE;
        for n in 0..=steps {
            for row in 0..batch {
                let after = (self.row_after(n) * batch + row) * hidden;
                if let Some(next) = self.next_time(n) {
                    let dnext = &dgates[(next * batch + row) * GATES * hidden..][..GATES * hidden];
                    for j in 0..hidden {
                        for (u, d) in dnext.iter().enumerate() {
                            dh[after + j] += *d * weight[u * hidden + j];
                        }
                    }
                }
                if n == steps {
                    continue;
                }
                let t = self.time(n);
                let before = (self.direction().row_before(t) * batch + row) * hidden;
                for j in 0..hidden {
                    let at = |gate: usize| (t * batch + row) * GATES * hidden + gate * hidden + j;
                    let [i, f, g, o] = [0, 1, 2, 3].map(|gate| gates[at(gate)]);
                    let dht = dh[after + j];
                    let tanh_c = c[after + j].tanh();
                    let dct = dc[after + j] + dht * o * (one - tanh_c * tanh_c);
                    dc[after + j] = dct;
                    dc[before + j] += dct * f;
                    dgates[at(0)] = dct * g * i * (one - i);
                    dgates[at(1)] = dct * c[before + j] * f * (one - f);
                    dgates[at(2)] = dct * i * (one - g * g);
                    dgates[at(3)] = dht * tanh_c * o * (one - o);
                }
            }
        }
    }

    fn execute<T: Float>(&self, operands: &mut [Operand<'_, T>], scratch: &mut Vec<T>) {
        let [
            Operand::Read(weight),
            Operand::Read(gates),
            Operand::Read(c),
            Operand::Write(dgates),
            Operand::Write(dh),
            Operand::Write(dc),
        ] = operands
        else {
            unreachable!("bindings of lstm_backward")
        };
        let [_, batch, hidden] = self.sizes();
        let width = 4 * tile::lanes::<T>();
        let units = hidden.next_multiple_of(width);
        let memory = tile::aligned(scratch, GATES * hidden * (units + batch));
        let (panels, rows) = memory.split_at_mut(GATES * hidden * units);
        // [panel][gate and unit summed over][4 N units]
        for (p, panel) in panels.chunks_exact_mut(GATES * hidden * width).enumerate() {
            let valid = (hidden - p * width).min(width);
            for (u, to) in panel.chunks_exact_mut(width).enumerate() {
                to[..valid].copy_from_slice(&weight[u * hidden + p * width..][..valid]);
                to[valid..].fill(T::ZERO);
            }
        }
        let panels = &*panels;
        let (gates, c) = (*gates, *c);
        let groups = tile::row_groups(batch, self.flops());
        let mut dgates = tile::split_rows(dgates, batch, GATES * hidden, &groups).into_iter();
        let mut dh = tile::split_rows(dh, batch, hidden, &groups).into_iter();
        let mut dc = tile::split_rows(dc, batch, hidden, &groups).into_iter();
        let mut x = tile::split_rows(rows, batch, GATES * hidden, &groups).into_iter().flatten();
        let workers: Vec<_> = groups
            .iter()
            .filter_map(|rows| {
                let (dgates, dh, dc, x) = (dgates.next()?, dh.next()?, dc.next()?, x.next()?);
                Some(Worker { kernel: self, rows: rows.clone(), units, panels, gates, c, dgates, dh, dc, x })
            })
            .collect();
        match workers.len() {
            1 => workers.into_iter().for_each(T::vectorize),
            _ => workers.into_par_iter().for_each(T::vectorize),
        }
    }
}

/// Some batch rows of a sequence, with every per-step slice of theirs.
struct Worker<'a, T> {
    kernel: &'a LstmBackward,
    rows: Range<usize>,
    /// H rounded up to whole panels.
    units: usize,
    /// `[panel][4H][4 N]`
    panels: &'a [T],
    /// All rows.
    gates: &'a [T],
    /// All rows.
    c: &'a [T],
    dgates: Vec<&'a mut [T]>,
    dh: Vec<&'a mut [T]>,
    dc: Vec<&'a mut [T]>,
    /// dgates of the step worked on just before, interleaved.
    x: &'a mut [T],
}

impl<T: Float> Vectorized for Worker<'_, T> {
    #[inline(always)]
    fn run<const N: usize, const R: usize, const FMA: bool>(mut self) {
        let [steps, _, hidden] = self.kernel.sizes();
        let size = GATES * hidden * 4 * N;
        for n in 0..=steps {
            if let Some(next) = self.kernel.next_time(n) {
                tile::interleave(self.dgates[next], GATES * hidden, R, self.x);
            }
            for p in 0..self.units / (4 * N) {
                let panel = &self.panels[p * size..(p + 1) * size];
                for rows in tile::blocks(self.rows.len(), R) {
                    tile::with_rows!(rows.len(), self.block::<N, FMA>(n, p, panel, rows.clone()));
                }
            }
        }
    }
}

impl<T: Float> Worker<'_, T> {
    /// One panel of units for `R` rows at the `n`-th step of the way back.
    #[inline(always)]
    fn block<const N: usize, const R: usize, const FMA: bool>(
        &mut self,
        n: usize,
        p: usize,
        panel: &[T],
        rows: Range<usize>,
    ) {
        let hidden = self.kernel.hidden as usize;
        let sums = match self.kernel.next_time(n) {
            Some(_) => {
                let width = GATES * hidden;
                tile::multiply::<T, N, R, FMA>(&self.x[rows.start * width..rows.end * width], panel)
            }
            None => [[[T::ZERO; N]; 4]; R],
        };
        for r in 0..R {
            for v in 0..4 {
                let unit = (p * 4 + v) * N;
                if unit < hidden {
                    self.finish(n, rows.start + r, unit, &sums[r][v]);
                }
            }
        }
    }

    /// The cell's derivatives for `N` units of one row.
    #[inline(always)]
    fn finish<const N: usize>(&mut self, n: usize, row: usize, unit: usize, sum: &[T; N]) {
        let [steps, batch, hidden] = self.kernel.sizes();
        let (valid, one) = (hidden - unit, T::ONE);
        let (after, at) = (self.kernel.row_after(n), row * hidden + unit);
        let mut dht: [T; N] = tile::load(&self.dh[after][at..], valid);
        for lane in 0..N {
            dht[lane] += sum[lane];
        }
        tile::store(&dht, &mut self.dh[after][at..], valid);
        if n == steps {
            return;
        }
        let t = self.kernel.time(n);
        let before = self.kernel.direction().row_before(t);
        let in_batch = |step: usize| (step * batch + self.rows.start) * hidden + at;
        let c_after: [T; N] = tile::load(&self.c[in_batch(after)..], valid);
        let c_before: [T; N] = tile::load(&self.c[in_batch(before)..], valid);
        let gate_at = |gate: usize| (row * GATES + gate) * hidden + unit;
        let all_rows = (t * batch + self.rows.start) * GATES * hidden;
        let [i, f, g, o]: [[T; N]; GATES] =
            std::array::from_fn(|gate| tile::load(&self.gates[all_rows + gate_at(gate)..], valid));
        let mut dct: [T; N] = tile::load(&self.dc[after][at..], valid);
        let mut dc_next: [T; N] = tile::load(&self.dc[before][at..], valid);
        let mut dgates = [[T::ZERO; N]; GATES];
        for lane in 0..N {
            let tanh_c = c_after[lane].tanh();
            let (i, f, g, o) = (i[lane], f[lane], g[lane], o[lane]);
            dct[lane] += dht[lane] * o * (one - tanh_c * tanh_c);
            dc_next[lane] += dct[lane] * f;
            dgates[0][lane] = dct[lane] * g * i * (one - i);
            dgates[1][lane] = dct[lane] * c_before[lane] * f * (one - f);
            dgates[2][lane] = dct[lane] * i * (one - g * g);
            dgates[3][lane] = dht[lane] * tanh_c * o * (one - o);
        }
        tile::store(&dct, &mut self.dc[after][at..], valid);
        tile::store(&dc_next, &mut self.dc[before][at..], valid);
        for (gate, values) in dgates.iter().enumerate() {
            tile::store(values, &mut self.dgates[t][gate_at(gate)..], valid);
        }
    }
}
