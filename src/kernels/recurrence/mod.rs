//! What [`lstm_forward`](super::lstm_forward) and [`lstm_backward`](super::lstm_backward) share: the slots of one
//! layer in one direction or in two, and the options of its cell.
//!
//! The cell's rule is four functions, of the same names in `docs/lstm.md`, in the twin ([`lstm`]), on the CPU's lanes
//! ([`lstm_lanes`]) and in WGSL (`shaders/lstm_cell.wgsl`): plain numbers in, plain numbers out, options inside. The
//! loops around them know products, rows, lengths and directions.
//!
//! ```text
//! F2  z        = gates[t] + h[before] W_hh^T                    all inputs and biases are in gates already
//! F3  y        = gamma norm(z) + beta, for each gate            layer norm; else y = z
//! F4  i        = sigmoid(y_i + w_i c[before])                   w: peepholes          lstm_state: F4 to F7
//! F5  f        = sigmoid(y_f + w_f c[before] + forget_bias)     coupled: f = 1 - i
//! F6  g        = tanh(y_g)
//! F7  u        = f c[before] + i g mask                         mask: recurrent dropout
//! F8  c[after] = clip(gamma norm(u) + beta)                     layer norm, cell_clip; else u
//! F9  o        = sigmoid(y_o + w_o c[after])                    lstm_output: F9, F10
//! F10 m        = o tanh(c[after])
//! F11 h[after] = clip(m W_hr^T)                                 projection, output_clip; else m
//! F12 at and past a row's length: (i, f, g, o) = (0, 1, 0, 0), c and h are carried along
//!
//! B2  dm = dh[after] W_hr                                        projection: where output_clip holds h, dh becomes 0
//! B3  dy_o = dm tanh(c) o (1-o)                                  lstm_output_back: B3, B4
//! B4  dc[after] += dm o (1 - tanh(c)^2) + dy_o w_o
//! B5  du = dc[after] through F8                                  0 where cell_clip holds c; through the norm
//! B6  dy_i = du g mask i (1-i)                                   coupled: du (g mask - c[before]) i (1-i)
//! B7  dy_f = du c[before] f (1-f)                                coupled: 0
//! B8  dy_g = du i mask (1-g^2)                                   lstm_state_back: B6 to B9
//! B9  dc[before] += du f + dy_i w_i + dy_f w_f
//! ```
//!
//! in the order of TensorFlow's `LayerNormLSTMCell`, of which `LayerNormBasicLSTMCell` and `LSTMCell` are parts; the
//! coupling is that of ONNX and of Greff et al. 2017. No sigmoid gives 0, so o = 0 marks the rows that have ended.

/// A kernel over a [`Sequence`]; and what both say of themselves in their `impl Kernel`.
macro_rules! over_sequence {
    ($(#[$doc:meta])* $kernel:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub struct $kernel(pub Sequence);
        impl Fields for $kernel {
            const FIELDS: &'static [Field] = Sequence::FIELDS;
            fn values(&self) -> Vec<f64> {
                self.0.values()
            }
        }
    };
    () => {
        const FORM: &'static str = "lanes";
        const PACKS: &'static [&'static str] = &["weight_hh", "weight_hr"];
        fn packing(&self) -> Vec<u32> {
            self.0.packing()
        }
        fn flops(&self) -> f64 {
            self.0.flops()
        }
        fn execute<T: Float>(&self, slices: Slices<'_, T>, scratch: &mut Scratch<T>) {
            cpu::execute(&self.0, slices, scratch);
        }
    };
}
pub(super) use over_sequence;

pub mod cases;
pub(super) mod division;
pub mod lstm;
pub mod lstm_lanes;

use super::multiples_of_four;
use crate::error::{Error, Result, ensure};
use crate::float::Float;
use crate::kernel::{Part, fold, sized};
use crate::recorder::Recorder;
use crate::tensor::Tensor;
use crate::time::{Direction, Directions};
use crate::{parameters, wgsl};

pub(super) const SEQUENCE: Part = part(wgsl!["shared/sequence"]);
pub(super) const MADD: Part = part(wgsl!["shared/madd"]);
pub(super) const TOTAL: Part = part(wgsl!["shared/total"]);
pub(super) const CELL: Part = part(wgsl!["lstm_cell"]);

const fn part(parts: &[Part]) -> Part {
    parts[0]
}

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

/// The slots of one layer; D directions along the leading axis. P = H without a projection. Of each weight there is
/// one tensor for each direction.
#[derive(Debug, Clone, PartialEq)]
pub struct Recurrence {
    /// The ways through time.
    pub directions: Directions,
    /// Options that are numbers.
    pub options: CellOptions,
    /// `[4H, P]`
    pub weight_hh: Vec<Tensor>,
    /// `[D, T, B, 4H]`
    pub gates: Tensor,
    /// `[D, T+1, B, P]`
    pub h: Tensor,
    /// `[D, T+1, B, H]`
    pub c: Tensor,
    /// Steps of each row, `[B]`.
    pub lengths: Option<Tensor>,
    /// Weights from the cell to i, f and o, `[3H]`.
    pub peephole: Option<Vec<Tensor>>,
    /// What g is multiplied by, `[D, T, B, H]`, or `[D, B, H]` for all steps.
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
    pub weight_hr: Vec<Tensor>,
    /// o tanh(c), `[D, T, B, H]`.
    pub m: Tensor,
}

/// Slots of a layer norm.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// Gains (gamma) of i, f, g, o, c, then shifts (beta), `[2, 5H]`.
    pub weight: Vec<Tensor>,
    /// Normalised i, f, g, o, c, then 1 / standard deviation of each, `[D, T, B, 5H + 5]`.
    pub normalized: Tensor,
}

parameters! {
    /// Sizes and options of a recurrence, the parameters of both kernels.
    Sequence {
        /// T, the number of steps.
        steps: u32,
        /// B, the batch.
        batch: u32,
        /// H, the hidden size.
        hidden: u32,
        /// P, the columns of h; H without a projection.
        outputs: u32,
        /// D, 1 or 2.
        directions: u32,
        /// 1 if entry 0 walks from the last step to the first.
        reverse: u32,
        /// Which options are on: `LENGTHS`, `PEEPHOLE`, ..
        options: u32,
        /// Steps of the mask: T, 1 where one serves all of them, 0 for none.
        mask_steps: u32,
        /// Distance of the directions' `weight_hh`.
        weight_hh_stride: u32,
        /// Distance of the directions' peepholes.
        peephole_stride: u32,
        /// Distance of the directions' `weight_hr`.
        weight_hr_stride: u32,
        /// Distance of the directions' gains and shifts.
        layer_norm_stride: u32,
        /// Added to the pre-activation of f.
        forget_bias: f64,
        /// Limit of c.
        cell_clip: f64,
        /// Limit of h.
        output_clip: f64,
        /// Added to variances.
        epsilon: f64,
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
/// The options that the cell's rule sees.
pub(super) const CELL_OPTIONS: u32 = PEEPHOLE | MASK | COUPLED | CELL_CLIP;

/// How shaders call the options.
const OVERRIDES: [(&str, u32); 8] = [
    ("has_lengths", LENGTHS),
    ("has_peephole", PEEPHOLE),
    ("has_mask", MASK),
    ("coupled", COUPLED),
    ("has_cell_clip", CELL_CLIP),
    ("projected", PROJECTION),
    ("has_output_clip", OUTPUT_CLIP),
    ("normed", NORM),
];

impl Sequence {
    /// T, B, H, P.
    pub fn sizes(&self) -> [usize; 4] {
        [self.steps, self.batch, self.hidden, self.outputs].map(|size| size as usize)
    }

    /// Whether an option is on.
    pub fn has(&self, option: u32) -> bool {
        self.options & option != 0
    }

    /// The way through time of each entry of the leading axis.
    pub fn directions(&self) -> &'static [Direction] {
        match (self.directions, self.reverse) {
            (1, 0) => Directions::One(Direction::Forward),
            (1, _) => Directions::One(Direction::Reverse),
            _ => Directions::Both,
        }
        .list()
    }

    /// Every row of `steps` steps of every direction: direction, way, step, row.
    pub(super) fn rows(&self, steps: usize) -> impl Iterator<Item = (usize, Direction, usize, usize)> + use<> {
        let batch = self.batch as usize;
        self.directions()
            .iter()
            .enumerate()
            .flat_map(move |(d, way)| (0..steps).flat_map(move |n| (0..batch).map(move |row| (d, *way, n, row))))
    }

    /// The limit of c, if it has one.
    pub fn cell_clip<T: Float>(&self) -> Option<T> {
        self.has(CELL_CLIP).then(|| T::of(self.cell_clip))
    }

    /// The limit of h, if it has one.
    pub fn output_clip<T: Float>(&self) -> Option<T> {
        self.has(OUTPUT_CLIP).then(|| T::of(self.output_clip))
    }

    /// First element of the mask of a direction's row at time `t`.
    pub fn mask_at(&self, direction: usize, t: usize, row: usize) -> usize {
        let steps = self.mask_steps as usize;
        ((direction * steps + t % steps) * self.batch as usize + row) * self.hidden as usize
    }

    /// The `override` declarations that tell a shader of these options.
    pub(super) fn overrides(&self, options: u32) -> Vec<(&'static str, bool)> {
        let named = OVERRIDES.iter().filter(|(_, option)| options & option != 0);
        named.map(|(name, option)| (*name, self.has(*option))).collect()
    }

    /// A grid over tiles of `units` of `width` columns and 8 rows, of every direction.
    pub(super) fn tiles(&self, width: u32, units: u32) -> [u32; 3] {
        fold(width.div_ceil(units) as u64 * self.batch.div_ceil(8) as u64 * self.directions as u64)
    }

    /// Whether every vector of four that the `_registers` shaders load lies on a multiple of four.
    pub(super) fn in_quads(&self, views: &[Option<&Tensor>]) -> Result<(), String> {
        let strides = [self.weight_hh_stride, self.peephole_stride, self.weight_hr_stride];
        let strides = strides.map(|stride| ("the distance of two directions' weights,", stride));
        multiples_of_four([("H", self.hidden), ("P", self.outputs)].into_iter().chain(strides), views)
    }

    /// Whether the sizes make sense.
    pub(super) fn is_sound(&self) -> bool {
        let Self { steps, batch, hidden, outputs, directions, mask_steps, .. } = *self;
        let plain = self.has(PROJECTION) || outputs == hidden && !self.has(OUTPUT_CLIP);
        let masked = !self.has(MASK) || mask_steps > 0;
        plain && masked && matches!(directions, 1 | 2) && sized(&[steps, batch, hidden, outputs]).is_some()
    }

    /// Elements that an operand must have, 0 where its option is off.
    pub(super) fn elements(&self, operand: &str) -> u128 {
        let Self { steps, batch, hidden, outputs, directions, mask_steps, .. } = *self;
        let [steps, batch, hidden, outputs] = [steps, batch, hidden, outputs].map(u128::from);
        let (rows, states) = (directions as u128 * steps * batch, directions as u128 * (steps + 1) * batch);
        let span = |stride: u32, len: u128| (directions as u128 - 1) * stride as u128 + len;
        let (option, size) = match operand {
            "weight_hh" => (0, span(self.weight_hh_stride, 4 * hidden * outputs)),
            "gates" | "dgates" => (0, rows * 4 * hidden),
            "h" | "dh" => (0, states * outputs),
            "c" | "dc" => (0, states * hidden),
            "lengths" => (LENGTHS, batch),
            "peephole" => (PEEPHOLE, span(self.peephole_stride, 3 * hidden)),
            "mask" => (MASK, directions as u128 * mask_steps as u128 * batch * hidden),
            "weight_hr" => (PROJECTION, span(self.weight_hr_stride, outputs * hidden)),
            "m" => (PROJECTION, rows * hidden),
            "layer_norm" => (NORM, span(self.layer_norm_stride, 10 * hidden)),
            "normalized" => (NORM, rows * (5 * hidden + 5)),
            "dnormalized" => (NORM, rows * 5 * hidden),
            other => unreachable!("`{other}` is no operand of a recurrence"),
        };
        if option == 0 || self.has(option) { size } else { 0 }
    }

    /// What packed copies of `weight_hh` and `weight_hr` depend on.
    pub(super) fn packing(&self) -> Vec<u32> {
        let Self { hidden, outputs, directions, weight_hh_stride, weight_hr_stride, .. } = *self;
        vec![hidden, outputs, directions, weight_hh_stride, weight_hr_stride, self.options & PROJECTION]
    }

    pub(super) fn flops(&self) -> f64 {
        let [steps, batch, hidden, outputs] = self.sizes().map(|size| size as f64);
        let projection = if self.has(PROJECTION) { hidden * outputs } else { 0.0 };
        2.0 * (GATES as f64 * hidden * outputs + projection) * steps * batch * self.directions as f64
    }
}

/// A recurrence's weights as one view each.
pub(super) struct Weights {
    pub weight_hh: Tensor,
    pub peephole: Option<Tensor>,
    pub weight_hr: Option<Tensor>,
    pub layer_norm: Option<Tensor>,
}

impl Recurrence {
    /// A plain cell over `gates [D, T, B, 4H]`, `h` and `c` `[D, T+1, B, H]`, without options.
    pub fn new(directions: Directions, weight_hh: &[Tensor], gates: &Tensor, h: &Tensor, c: &Tensor) -> Self {
        Recurrence {
            directions,
            options: CellOptions::default(),
            weight_hh: weight_hh.to_vec(),
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

    /// Checks every shape; the parameters, and the weights as views.
    pub(super) fn sequence(&self, rec: &mut Recorder<'_>) -> Result<(Sequence, Weights)> {
        let count = self.directions.list().len();
        let (steps, batch, hidden) = match self.gates.shape() {
            [d, steps, batch, width] if *d == count && width % GATES == 0 => (*steps, *batch, width / GATES),
            other => {
                return Err(Error::shape("recording an LSTM", format!("gates of shape [{count}, T, B, 4H]"), other));
            }
        };
        let outputs = if self.projection.is_some() { self.h.columns() } else { hidden };
        expect("h", &self.h, &[count, steps + 1, batch, outputs])?;
        expect("c", &self.c, &[count, steps + 1, batch, hidden])?;
        let mut weight = |name: &str, all: &[Tensor], shape: &[usize]| -> Result<(Tensor, u32)> {
            let wanted = format!("{count} tensors, one for each direction");
            ensure!(all.len() == count, Error::config(format!("recording an LSTM, `{name}`"), wanted, all.len()));
            all.iter().try_for_each(|tensor| expect(name, tensor, shape))?;
            let (view, stride) = rec.span(&all.iter().collect::<Vec<_>>())?;
            Ok((view, stride as u32))
        };
        let (weight_hh, weight_hh_stride) = weight("weight_hh", &self.weight_hh, &[GATES * hidden, outputs])?;
        let mut maybe = |name: &str, all: Option<&Vec<Tensor>>, shape: &[usize]| match all {
            Some(all) => weight(name, all, shape).map(|(view, stride)| (Some(view), stride)),
            None => Ok((None, 0)),
        };
        let (peephole, peephole_stride) = maybe("peephole", self.peephole.as_ref(), &[3 * hidden])?;
        let projection = self.projection.as_ref().map(|p| &p.weight_hr);
        let (weight_hr, weight_hr_stride) = maybe("weight_hr", projection, &[outputs, hidden])?;
        let norm = self.norm.as_ref().map(|n| &n.weight);
        let (layer_norm, layer_norm_stride) = maybe("layer_norm", norm, &[2, NORMS * hidden])?;
        let every_step = self.mask.as_ref().is_some_and(|mask| mask.shape().len() == 4);
        if let Some(lengths) = &self.lengths {
            rec.check_lengths("recording an LSTM", lengths, batch, steps)?;
        }
        if let Some(mask) = &self.mask {
            let (all, one) = ([count, steps, batch, hidden], [count, batch, hidden]);
            expect("mask", mask, if every_step { &all } else { &one })?;
        }
        if let Some(Projection { m, .. }) = &self.projection {
            expect("m", m, &[count, steps, batch, hidden])?;
        } else if self.options.output_clip.is_some() {
            return Err(Error::config("the clip of an LSTM's projection", "a projection", "none"));
        }
        if let Some(Norm { normalized, .. }) = &self.norm {
            expect("normalized", normalized, &[count, steps, batch, NORMS * hidden + NORMS])?;
        }
        let CellOptions { forget_bias, coupled, cell_clip, output_clip, epsilon } = self.options;
        let above_zero = |v: f64| (v as f32).is_finite() && v as f32 > 0.0;
        for (what, value, good) in [
            ("forget bias", forget_bias, (forget_bias as f32).is_finite()),
            ("cell clip", cell_clip.unwrap_or(1.0), cell_clip.is_none_or(above_zero)),
            ("output clip", output_clip.unwrap_or(1.0), output_clip.is_none_or(above_zero)),
            ("epsilon of the norm", epsilon, self.norm.is_none() || above_zero(epsilon)),
        ] {
            let wanted = "a finite number (above 0 but for the forget bias), also in f32";
            ensure!(good, Error::config(format!("the {what} of an LSTM"), wanted, value));
        }
        let options = [
            (LENGTHS, self.lengths.is_some()),
            (PEEPHOLE, self.peephole.is_some()),
            (MASK, self.mask.is_some()),
            (COUPLED, coupled),
            (CELL_CLIP, cell_clip.is_some()),
            (PROJECTION, self.projection.is_some()),
            (OUTPUT_CLIP, output_clip.is_some()),
            (NORM, self.norm.is_some()),
        ];
        let [steps, batch, hidden, outputs, directions] =
            [steps, batch, hidden, outputs, count].map(|size| size as u32);
        let sequence = Sequence {
            steps,
            batch,
            hidden,
            outputs,
            directions,
            reverse: (self.directions.list()[0] == Direction::Reverse) as u32,
            options: options.iter().map(|(option, given)| if *given { *option } else { 0 }).sum(),
            mask_steps: if every_step { steps } else { self.mask.is_some() as u32 },
            weight_hh_stride,
            peephole_stride,
            weight_hr_stride,
            layer_norm_stride,
            forget_bias,
            cell_clip: cell_clip.unwrap_or(0.0),
            output_clip: output_clip.unwrap_or(0.0),
            epsilon,
        };
        Ok((sequence, Weights { weight_hh, peephole, weight_hr, layer_norm }))
    }
}

pub(super) fn expect(name: &str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    let doing = || format!("recording an LSTM, `{name}`");
    ensure!(tensor.shape() == shape, Error::shape(doing(), format!("{shape:?}"), tensor.shape()));
    Ok(())
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

/// Norm number `index` over H values in place; `kept` is the row that the backward pass needs.
#[inline(always)]
pub(super) fn layer_norm<T: Float>(values: &mut [T], index: usize, norm: &[T], epsilon: T, kept: &mut [T]) {
    let hidden = values.len();
    let (gain, shift) = (&norm[index * hidden..][..hidden], &norm[(NORMS + index) * hidden..][..hidden]);
    kept[NORMS * hidden + index] = normalize(values, epsilon);
    kept[index * hidden..][..hidden].copy_from_slice(values);
    for j in 0..hidden {
        values[j] = gain[j] * values[j] + shift[j];
    }
}

/// v within plus and minus `limit`; a NaN stays one.
#[inline(always)]
pub(super) fn clip<T: Float>(v: T, limit: T) -> T {
    if v > limit {
        limit
    } else if v < -limit {
        -limit
    } else {
        v
    }
}

/// Whether a clip at `limit` left v as it was; at the limit itself it counts as clipped.
#[inline(always)]
pub(super) fn within<T: Float>(v: T, limit: T) -> bool {
    // so written, a NaN is within
    !(v >= limit || v <= -limit)
}

/// Makes those gradients 0 whose values are not [`within`] a clip.
#[inline(always)]
pub(super) fn stop_at<T: Float>(limit: T, gradients: &mut [T], values: &[T]) {
    for (gradient, v) in gradients.iter_mut().zip(values) {
        *gradient = if within(*v, limit) { *gradient } else { T::ZERO };
    }
}

/// Time of the `n`-th step of the way back, and the row of the state after it; for n = T that of the initial state.
pub(super) fn back(direction: Direction, n: usize, steps: usize) -> (usize, usize) {
    match n == steps {
        true => (0, direction.first_row(steps)),
        false => {
            let time = direction.time(steps - 1 - n, steps);
            (time, direction.row_after(time))
        }
    }
}
