//! What [`lstm_forward`](super::lstm_forward) and [`lstm_backward`](super::lstm_backward) share: the slots of one
//! layer and direction, and the options of its cell.
//!
//! Every option is a branch of the same two kernels, chosen when the plan is recorded:
//!
//! ```text
//! z        = gates[t] + h[before] W_hh^T                                  all inputs and biases are in gates already
//! y        = gamma norm(z) + beta, for each gate                          layer norm; else y = z
//! i        = sigmoid(y_i + w_i c[before])                                 w: peepholes
//! f        = sigmoid(y_f + w_f c[before] + forget_bias)                   coupled: f = 1 - i
//! g        = tanh(y_g)
//! u        = f c[before] + i g mask                                       mask: recurrent dropout
//! c[after] = clip(gamma norm(u) + beta)                                   layer norm, cell_clip; else u
//! o        = sigmoid(y_o + w_o c[after])
//! m        = o tanh(c[after])
//! h[after] = clip(m W_hr^T)                                               projection, output_clip; else m
//! ```
//!
//! in the order of TensorFlow's `LayerNormLSTMCell`, of which `LayerNormBasicLSTMCell` and `LSTMCell` are parts; the
//! coupling is that of ONNX and of Greff et al. 2017. At and past a row's length nothing happens: the gates are
//! (i, f, g, o) = (0, 1, 0, 0), which no sigmoid gives, so c stays; h is carried along.

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{parameters, sized, split};
use crate::plan::{Direction, Tensor};

/// Gates in every packed matrix and vector: i, f, g, o, as in PyTorch.
pub const GATES: usize = 4;

/// What a layer norm normalises: each gate and the new cell.
pub const NORMS: usize = 5;

/// Options of a cell, all off at first.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CellOptions {
    /// Added to the pre-activation of f.
    pub forget_bias: f64,
    /// f = 1 - i.
    pub coupled: bool,
    /// c is kept within plus and minus this.
    pub cell_clip: Option<f64>,
    /// The projected h is kept within plus and minus this.
    pub output_clip: Option<f64>,
    /// Added to the variances of a layer norm.
    pub epsilon: f64,
}

/// The slots of one layer and direction. P = H without a projection.
#[derive(Debug, Clone, PartialEq)]
pub struct Recurrence {
    /// The way through time.
    pub direction: Direction,
    /// Options that are numbers.
    pub options: CellOptions,
    /// `[4H, P]`
    pub weight_hh: Tensor,
    /// `[T, B, 4H]`
    pub gates: Tensor,
    /// `[T+1, B, P]`
    pub h: Tensor,
    /// `[T+1, B, H]`
    pub c: Tensor,
    /// Steps of each row, ids at most T, `[B]`.
    pub lengths: Option<Tensor>,
    /// Weights from the cell to i, f and o, `[3H]`.
    pub peephole: Option<Tensor>,
    /// What g is multiplied by, `[T, B, H]`, or `[B, H]` for all steps.
    pub mask: Option<Tensor>,
    /// The matrix from the cell's output to h, and the cell's output.
    pub projection: Option<Projection>,
    /// Gains and shifts, and what they are applied to.
    pub norm: Option<Norm>,
}

/// Slots of a projection.
#[derive(Debug, Clone, PartialEq)]
pub struct Projection {
    /// `[P, H]`
    pub weight_hr: Tensor,
    /// o tanh(c), `[T, B, H]`.
    pub m: Tensor,
}

/// Slots of a layer norm.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// Gains (gamma) of i, f, g, o, c, then shifts (beta), `[2, 5H]`.
    pub weight: Tensor,
    /// Normalised i, f, g, o, c, then 1 / standard deviation of each, `[T, B, 5H + 5]`.
    pub normalized: Tensor,
}

parameters! {
    /// Sizes and options of a recurrence, the uniform block of both kernels.
    Variant {
        /// T, the number of steps.
        steps: u32,
        /// B, the batch.
        batch: u32,
        /// H, the hidden size.
        hidden: u32,
        /// P, the columns of h; H without a projection.
        outputs: u32,
        /// 1 to walk from the last step to the first.
        reverse: u32,
        /// Which options are on: `LENGTHS`, `PEEPHOLE`, ..
        options: u32,
        /// Steps of the mask: T, 1 where one serves all of them, 0 for none.
        mask_steps: u32,
        /// Added to the pre-activation of f.
        forget_bias: f32,
        /// What f32 loses of it, for the f64 executor.
        forget_bias_rest: f32,
        /// Limit of c.
        cell_clip: f32,
        /// What f32 loses of it.
        cell_clip_rest: f32,
        /// Limit of h.
        output_clip: f32,
        /// What f32 loses of it.
        output_clip_rest: f32,
        /// Added to variances.
        epsilon: f32,
        /// What f32 loses of it.
        epsilon_rest: f32,
    }
}

/// Rows have lengths.
pub const LENGTHS: u32 = 1;
/// The gates see the cell.
pub const PEEPHOLE: u32 = 2;
/// g is multiplied by a mask.
pub const MASK: u32 = 4;
/// f = 1 - i.
pub const COUPLED: u32 = 8;
/// c is limited.
pub const CELL_CLIP: u32 = 16;
/// h is a projection of the cell's output.
pub const PROJECTION: u32 = 32;
/// h is limited.
pub const OUTPUT_CLIP: u32 = 64;
/// Gates and cell are normalised.
pub const NORM: u32 = 128;

impl Variant {
    pub(super) const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    pub(super) const FLOATS: &'static [&'static str] = &[
        "forget_bias",
        "forget_bias_rest",
        "cell_clip",
        "cell_clip_rest",
        "output_clip",
        "output_clip_rest",
        "epsilon",
        "epsilon_rest",
    ];

    /// T, B, H, P.
    pub(super) fn sizes(&self) -> [usize; 4] {
        [self.steps, self.batch, self.hidden, self.outputs].map(|size| size as usize)
    }

    pub(super) fn has(&self, option: u32) -> bool {
        self.options & option != 0
    }

    pub(super) fn direction(&self) -> Direction {
        if self.reverse != 0 { Direction::Reverse } else { Direction::Forward }
    }

    pub(super) fn forget_bias<T: Float>(&self) -> T {
        join(self.forget_bias, self.forget_bias_rest)
    }

    pub(super) fn epsilon<T: Float>(&self) -> T {
        join(self.epsilon, self.epsilon_rest)
    }

    pub(super) fn cell_clip<T: Float>(&self) -> Option<T> {
        self.has(CELL_CLIP).then(|| join(self.cell_clip, self.cell_clip_rest))
    }

    pub(super) fn output_clip<T: Float>(&self) -> Option<T> {
        self.has(OUTPUT_CLIP).then(|| join(self.output_clip, self.output_clip_rest))
    }

    /// First element of the mask of row `row` at time `t`.
    pub(super) fn mask_at(&self, t: usize, row: usize) -> usize {
        (t % self.mask_steps as usize * self.batch as usize + row) * self.hidden as usize
    }

    /// Values of `override` declarations: 1 where the option of that name is on.
    pub(super) fn constants(&self, names: &[&'static str]) -> Vec<(&'static str, f64)> {
        const OPTIONS: [(&str, u32); 8] = [
            ("has_lengths", LENGTHS),
            ("has_peephole", PEEPHOLE),
            ("has_mask", MASK),
            ("coupled", COUPLED),
            ("has_cell_clip", CELL_CLIP),
            ("projected", PROJECTION),
            ("has_output_clip", OUTPUT_CLIP),
            ("normed", NORM),
        ];
        let named = |name: &&'static str| OPTIONS.iter().find(|(option, _)| option == name);
        let value = |(name, option): &(&'static str, u32)| (*name, self.has(*option) as u32 as f64);
        names.iter().filter_map(named).map(value).collect()
    }

    /// Elements of each slot.
    pub(super) fn slot_sizes(&self) -> Option<SlotSizes> {
        let Self { steps, batch, hidden, outputs, .. } = *self;
        if !self.has(PROJECTION) && (outputs != hidden || self.has(OUTPUT_CLIP)) {
            return None;
        }
        let of = |option: u32, size: u128| if self.has(option) { size } else { 0 };
        let rows = sized(&[steps, batch])?;
        let mask = if self.has(MASK) { sized(&[self.mask_steps, batch, hidden])? } else { 0 };
        let (hidden, outputs, batch) = (sized(&[hidden])?, sized(&[outputs])?, batch as u128);
        Some(SlotSizes {
            weight_hh: 4 * hidden * outputs,
            gates: rows * 4 * hidden,
            h: (rows + batch) * outputs,
            c: (rows + batch) * hidden,
            lengths: of(LENGTHS, batch),
            peephole: of(PEEPHOLE, 3 * hidden),
            mask,
            weight_hr: of(PROJECTION, outputs * hidden),
            m: of(PROJECTION, rows * hidden),
            norm: of(NORM, 10 * hidden),
            normalized: of(NORM, rows * (5 * hidden + 5)),
            dnormalized: of(NORM, rows * 5 * hidden),
        })
    }

    pub(super) fn flops(&self) -> f64 {
        let [steps, batch, hidden, outputs] = self.sizes().map(|size| size as f64);
        let projection = if self.has(PROJECTION) { hidden * outputs } else { 0.0 };
        2.0 * (GATES as f64 * hidden * outputs + projection) * steps * batch
    }
}

/// Elements of each slot of a recurrence; 0 where an option is off.
pub(super) struct SlotSizes {
    pub weight_hh: u128,
    pub gates: u128,
    pub h: u128,
    pub c: u128,
    pub lengths: u128,
    pub peephole: u128,
    pub mask: u128,
    pub weight_hr: u128,
    pub m: u128,
    pub norm: u128,
    pub normalized: u128,
    pub dnormalized: u128,
}

fn join<T: Float>(high: f32, rest: f32) -> T {
    T::of(high as f64 + rest as f64)
}

impl Recurrence {
    /// A plain cell over `gates [T, B, 4H]`, `h` and `c` `[T+1, B, H]`, without options.
    pub fn new(direction: Direction, weight_hh: &Tensor, gates: &Tensor, h: &Tensor, c: &Tensor) -> Self {
        Recurrence {
            direction,
            options: CellOptions::default(),
            weight_hh: weight_hh.clone(),
            gates: gates.clone(),
            h: h.clone(),
            c: c.clone(),
            lengths: None,
            peephole: None,
            mask: None,
            projection: None,
            norm: None,
        }
    }

    /// Checks every shape; the uniform block.
    pub(super) fn variant(&self) -> Result<Variant> {
        let (steps, batch, hidden) = match self.gates.shape() {
            [steps, batch, width] if width % GATES == 0 => (*steps, *batch, width / GATES),
            other => return Err(Error::shape("recording an LSTM", "gates of shape [T, B, 4H]", other)),
        };
        let outputs = self.h.columns();
        if self.projection.is_none() {
            expect("h", &self.h, &[steps + 1, batch, hidden])?;
        }
        expect("weight_hh", &self.weight_hh, &[GATES * hidden, outputs])?;
        expect("h", &self.h, &[steps + 1, batch, outputs])?;
        expect("c", &self.c, &[steps + 1, batch, hidden])?;
        let mut options = if self.options.coupled { COUPLED } else { 0 };
        let mut present = |option: u32, given: bool| options |= if given { option } else { 0 };
        present(LENGTHS, self.lengths.is_some());
        present(PEEPHOLE, self.peephole.is_some());
        present(MASK, self.mask.is_some());
        present(CELL_CLIP, self.options.cell_clip.is_some());
        present(PROJECTION, self.projection.is_some());
        present(OUTPUT_CLIP, self.options.output_clip.is_some());
        present(NORM, self.norm.is_some());
        if let Some(lengths) = &self.lengths {
            expect("lengths", lengths, &[batch])?;
        }
        if let Some(peephole) = &self.peephole {
            expect("peephole", peephole, &[3 * hidden])?;
        }
        let every_step = self.mask.as_ref().is_some_and(|mask| mask.shape().len() == 3);
        if let Some(mask) = &self.mask {
            let shape = [steps, batch, hidden];
            expect("mask", mask, if every_step { &shape } else { &shape[1..] })?;
        }
        if let Some(Projection { weight_hr, m }) = &self.projection {
            expect("weight_hr", weight_hr, &[outputs, hidden])?;
            expect("m", m, &[steps, batch, hidden])?;
        } else if self.options.output_clip.is_some() {
            return Err(Error::config("the clip of an LSTM's projection", "a projection", "none"));
        }
        if let Some(Norm { weight, normalized }) = &self.norm {
            expect("layer_norm", weight, &[2, NORMS * hidden])?;
            expect("normalized", normalized, &[steps, batch, NORMS * hidden + NORMS])?;
        }
        let CellOptions { forget_bias, cell_clip, output_clip, epsilon, .. } = self.options;
        let above_zero = |v: f64| (v as f32).is_finite() && v as f32 > 0.0;
        for (what, value, good) in [
            ("forget bias", forget_bias, (forget_bias as f32).is_finite()),
            ("cell clip", cell_clip.unwrap_or(1.0), cell_clip.is_none_or(above_zero)),
            ("output clip", output_clip.unwrap_or(1.0), output_clip.is_none_or(above_zero)),
            ("epsilon of the norm", epsilon, self.norm.is_none() || above_zero(epsilon)),
        ] {
            if !good {
                let wanted = "a finite number (above 0 but for the forget bias), also in f32";
                return Err(Error::config(format!("the {what} of an LSTM"), wanted, value));
            }
        }
        let (forget_bias, forget_bias_rest) = split(forget_bias);
        let (cell_clip, cell_clip_rest) = split(cell_clip.unwrap_or(0.0));
        let (output_clip, output_clip_rest) = split(output_clip.unwrap_or(0.0));
        let (epsilon, epsilon_rest) = split(epsilon);
        Ok(Variant {
            steps: steps as u32,
            batch: batch as u32,
            hidden: hidden as u32,
            outputs: outputs as u32,
            reverse: (self.direction == Direction::Reverse) as u32,
            options,
            mask_steps: if every_step { steps as u32 } else { self.mask.is_some() as u32 },
            forget_bias,
            forget_bias_rest,
            cell_clip,
            cell_clip_rest,
            output_clip,
            output_clip_rest,
            epsilon,
            epsilon_rest,
        })
    }
}

pub(super) fn expect(name: &str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    match tensor.shape() == shape {
        true => Ok(()),
        false => Err(Error::shape(format!("recording an LSTM, `{name}`"), format!("{shape:?}"), tensor.shape())),
    }
}

/// Normalises a row in place; gives 1 / its standard deviation.
#[inline(always)]
pub(super) fn normalize<T: Float>(row: &mut [T], epsilon: T) -> T {
    let count = T::of(row.len() as f64);
    let mean = sum(row.iter(), |v| *v) / count;
    let variance = sum(row.iter(), |v| (*v - mean) * (*v - mean)) / count;
    let scale = T::ONE / (variance + epsilon).sqrt();
    row.iter_mut().for_each(|v| *v = (*v - mean) * scale);
    scale
}

/// The sum of f over items, in eight lanes.
#[inline(always)]
pub(super) fn sum<I, T: Float>(items: impl Iterator<Item = I>, f: impl Fn(I) -> T) -> T {
    let mut lanes = [T::ZERO; 8];
    for (n, item) in items.enumerate() {
        lanes[n % 8] += f(item);
    }
    lanes.into_iter().fold(T::ZERO, |total, lane| total + lane)
}
