//! The layouts of other frameworks: the one place that knows gate orders and bias rules.
//!
//! | layout | gates | arrays of one layer | biases | forget bias |
//! |---|---|---|---|---|
//! | [`PyTorch`](Layout::PyTorch) | i f g o | `weight_ih [4H, I]`, `weight_hh [4H, P]` | `bias_ih [4H]` + `bias_hh [4H]` | inside |
//! | [`Keras`](Layout::Keras) | i f c o | `kernel [I, 4H]`, `recurrent_kernel [H, 4H]` | `bias [4H]` | inside |
//! | [`TensorFlow`](Layout::TensorFlow) | i j f o | `kernel [I+P, 4H]`, rows x then h | `bias [4H]` | outside |
//! | [`Onnx`](Layout::Onnx) | i o f c | `W [D, 4H, I]`, `R [D, 4H, H]` | `B [D, 8H]`: of W, then of R | inside |
//! | [`DeepBreathe`](Layout::DeepBreathe) | f i c o | `W [4H, I+P]`, columns x then h | `b [4H]` | outside |
//! | [`Textbook`](Layout::Textbook) | i f o c | `W_ix W_fx W_ox W_cx [H, I]`, `W_ih W_fh W_oh W_ch [H, H]` | `b_i b_f b_o b_c [H]` | outside |
//!
//! g, c and j are names of the same gate, the candidate. Biases are optional in every layout. P = H without a
//! projection. What a layer can have beside:
//!
//! | layout | projection | peepholes | layer norm |
//! |---|---|---|---|
//! | PyTorch | `weight_hr [P, H]` | `weight_peephole [3H]`: to i, f, o (ours) | `layer_norm [2, 5H]`: gains of i, f, g, o, c, then shifts (ours) |
//! | TensorFlow | `projection/kernel [H, P]` | `w_i_diag w_f_diag w_o_diag [H]` | `gamma_input beta_input [H]`, .. `forget` `transform` `output` `state`; or `input/gamma`, .. as in checkpoints |
//! | ONNX | | `P [D, 3H]`: to i, o, f | |
//! | Deep-Breathe | `proj [H, P]` | `p_i p_f p_o [H]` | `ln_i.gamma ln_i.beta [H]`, .. `ln_f` `ln_g` `ln_o` `ln_c` |
//!
//! TensorFlow and Deep-Breathe have no bias beside a layer norm. Writing a part that a layout has no arrays for is an
//! error, except for peepholes and biases of zeros, which are left out.
//!
//! *One vector* for a layer becomes `bias_ih`, with `bias_hh` = 0 where the LSTM has [two](Bias::Two); writing one sums
//! both. A forget bias that stands *outside* is a number that the framework adds to the forget gate at run time and
//! that is in no file: the layout carries it. Going from one rule to the other moves the difference into the forget
//! gate's biases, or with a layer norm into its shift (the forget bias stands after the norm), so the model computes
//! the same.
//!
//! ```
//! use everloop::weights::layout::{Layer, Layout};
//! # fn main() -> everloop::Result<()> {
//! let tensorflow = Layout::TensorFlow { forget_bias: 1.0 };
//! let layer = Layer { bias: Some([vec![0.5; 8], vec![0.0; 8]]), ..Layer::zeros(3, 2) }; // [4H], i f g o
//! let arrays = tensorflow.write(&[layer])?;
//! assert_eq!((arrays[0].name.as_str(), &arrays[0].shape[..]), ("kernel", &[5, 8][..]));
//! assert_eq!(arrays[1].values[4..6], [-0.5, -0.5]); // i j f o, and the 1 that TensorFlow adds is taken off
//! # Ok(()) }
//! ```

use super::message;
use super::write::Array;
use crate::error::Result;
use crate::kernels::recurrence::NORMS;
use crate::layers::{Bias, Lstm, path};
use crate::parameters::Parameters;
use crate::plan::Direction;
use crate::recorder::gradient_name;
use crate::run::Workspace;

/// How a framework arranges the weights of an LSTM layer; see the [table](self).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Layout {
    /// PyTorch's `LSTMCell`, and ours; a stack's names have `_l{k}` and `_reverse` behind.
    PyTorch,
    /// Keras 2 and 3.
    Keras,
    /// TensorFlow 1's `BasicLSTMCell`, `LSTMCell` and `LayerNormBasicLSTMCell`.
    TensorFlow {
        /// The cell's argument, 1 unless it was set.
        forget_bias: f64,
    },
    /// The ONNX operator LSTM, D directions in one array.
    Onnx,
    /// The Deep-Breathe series.
    DeepBreathe {
        /// Added outside of `b`; the series uses 1.
        forget_bias: f64,
    },
    /// Twelve arrays.
    Textbook {
        /// What the model adds outside of `b_f`: [`LstmConfig::forget_bias`](crate::layers::LstmConfig::forget_bias).
        forget_bias: f64,
    },
}

/// The textbook's arrays: input weights, recurrent weights, biases.
pub const TEXTBOOK: [&str; 12] =
    ["W_ix", "W_fx", "W_ox", "W_cx", "W_ih", "W_fh", "W_oh", "W_ch", "b_i", "b_f", "b_o", "b_c"];

/// What [`get`], [`set`] and [`gradient`] know beside the [textbook's arrays](TEXTBOOK), where an LSTM has it: the
/// projection `[P, H]` (h from the cell's output m), the peepholes `[H]`, gains and shifts of a layer norm `[H]`
/// (g the candidate, c the new cell).
pub const PARTS: [&str; 14] = [
    "W_hm", "W_ic", "W_fc", "W_oc", "gamma_i", "gamma_f", "gamma_g", "gamma_o", "gamma_c", "beta_i", "beta_f",
    "beta_g", "beta_o", "beta_c",
];

/// Matrix and bias; projection, peepholes to i, f, o; gains of i, f, g, o, c, then shifts.
const TENSORFLOW: [&str; 16] = [
    "kernel",
    "bias",
    "projection/kernel",
    "w_i_diag",
    "w_f_diag",
    "w_o_diag",
    "gamma_input",
    "gamma_forget",
    "gamma_transform",
    "gamma_output",
    "gamma_state",
    "beta_input",
    "beta_forget",
    "beta_transform",
    "beta_output",
    "beta_state",
];

/// The last ten as they stand in checkpoints.
const CHECKPOINT: [&str; 10] = [
    "input/gamma",
    "forget/gamma",
    "transform/gamma",
    "output/gamma",
    "state/gamma",
    "input/beta",
    "forget/beta",
    "transform/beta",
    "output/beta",
    "state/beta",
];

/// As [`TENSORFLOW`].
const DEEP_BREATHE: [&str; 16] = [
    "W",
    "b",
    "proj",
    "p_i",
    "p_f",
    "p_o",
    "ln_i.gamma",
    "ln_f.gamma",
    "ln_g.gamma",
    "ln_o.gamma",
    "ln_c.gamma",
    "ln_i.beta",
    "ln_f.beta",
    "ln_g.beta",
    "ln_o.beta",
    "ln_c.beta",
];

/// Gates of the textbook's order, in ours.
const TEXTBOOK_ORDER: [usize; 4] = [0, 1, 3, 2];

impl Layout {
    /// The gates in the framework's order and letters.
    pub fn gates(self) -> &'static str {
        match self {
            Layout::PyTorch => "i,f,g,o",
            Layout::Keras => "i,f,c,o",
            Layout::TensorFlow { .. } => "i,j,f,o",
            Layout::Onnx => "i,o,f,c",
            Layout::DeepBreathe { .. } => "f,i,c,o",
            Layout::Textbook { .. } => "i,f,o,c",
        }
    }

    /// `order[p]` is the place among i, f, g, o of the gate that the framework has at place p.
    pub fn order(self) -> [usize; 4] {
        match self {
            Layout::PyTorch | Layout::Keras => [0, 1, 2, 3],
            Layout::TensorFlow { .. } => [0, 2, 1, 3],
            Layout::Onnx => [0, 3, 1, 2],
            Layout::DeepBreathe { .. } => [1, 0, 2, 3],
            Layout::Textbook { .. } => TEXTBOOK_ORDER,
        }
    }

    /// What becomes of the biases, for reports.
    pub fn bias_rule(self) -> &'static str {
        match self {
            Layout::PyTorch => "two vectors",
            Layout::Keras => "one vector: bias_ih",
            Layout::Onnx => "two vectors in one array",
            Layout::TensorFlow { .. } | Layout::DeepBreathe { .. } | Layout::Textbook { .. } => {
                "one vector: bias_ih; the forget bias stands outside"
            }
        }
    }

    /// The forget bias that the framework adds outside of the arrays; 0 where it has none.
    pub fn forget_bias(self) -> f64 {
        match self {
            Layout::PyTorch | Layout::Keras | Layout::Onnx => 0.0,
            Layout::TensorFlow { forget_bias }
            | Layout::DeepBreathe { forget_bias }
            | Layout::Textbook { forget_bias } => forget_bias,
        }
    }

    /// Names of a layer's arrays, weights first.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Layout::PyTorch => {
                &["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peephole", "layer_norm"]
            }
            Layout::Keras => &["kernel", "recurrent_kernel", "bias"],
            Layout::TensorFlow { .. } => &TENSORFLOW,
            Layout::Onnx => &["W", "R", "B", "P"],
            Layout::DeepBreathe { .. } => &DEEP_BREATHE,
            Layout::Textbook { .. } => &TEXTBOOK,
        }
    }

    /// Another name of the array at `place` of [`names`](Layout::names), which is read too.
    pub(super) fn alias(self, place: usize) -> Option<&'static str> {
        match self {
            Layout::TensorFlow { .. } => {
                CHECKPOINT.get(place.checked_sub(TENSORFLOW.len() - CHECKPOINT.len())?).copied()
            }
            _ => None,
        }
    }

    /// Names of what a layer can have: the projection, the peepholes and the layer norm; empty where there are none.
    pub(super) fn parts(self) -> [&'static [&'static str]; 3] {
        let names = self.names();
        match self {
            Layout::PyTorch => [&names[4..5], &names[5..6], &names[6..7]],
            Layout::TensorFlow { .. } | Layout::DeepBreathe { .. } => [&names[2..3], &names[3..6], &names[6..]],
            Layout::Onnx => [&[], &names[3..4], &[]],
            Layout::Keras | Layout::Textbook { .. } => [&[], &[], &[]],
        }
    }

    /// The layer that `arrays` hold, named as in [`names`](Layout::names) (or as in TensorFlow's checkpoints); two for a
    /// bidirectional ONNX node, forward first. Errors: a missing or unknown name, one that stands twice, a shape that
    /// does not fit, a part of which only some arrays are there, a bias beside a layer norm where there can be none.
    pub fn read(self, arrays: &[Array]) -> Result<Vec<Layer>> {
        let mut source = Source { arrays: Vec::new() };
        for array in arrays {
            let ours = (0..self.names().len()).find(|place| {
                self.names()[*place] == array.name || self.alias(*place).is_some_and(|alias| alias == array.name)
            });
            let Some(name) = ours.map(|place| self.names()[place]) else {
                return Err(message::tensor(
                    &array.name,
                    format!("no array of this layout: {}", self.names().join(" ")),
                ));
            };
            if source.find(name).is_some() {
                return Err(message::tensor(&array.name, "stands twice"));
            }
            source.arrays.push((name, array));
        }
        let [projection, peephole, norm] = self.parts();
        let mut layers = match self {
            Layout::PyTorch => {
                let ([rows, input], ih) = source.get("weight_ih")?;
                let ([_, outputs], hh) = source.get("weight_hh")?;
                let hidden = if source.find(projection[0]).is_some() { rows / 4 } else { outputs };
                gate_rows("weight_ih", [rows, input], hidden)?;
                source.check("weight_hh", &[rows, outputs])?;
                let projection = source.blocks(projection, &[outputs, hidden])?.map(|values| (outputs, values));
                let bias = match (source.vector("bias_ih", rows)?, source.vector("bias_hh", rows)?) {
                    (None, None) => None,
                    (Some(ih), None) => Some(one_vector(ih)),
                    (Some(ih), Some(hh)) => Some([ih, hh]),
                    (None, Some(_)) => return Err(message::tensor("bias_ih", "is missing, and bias_hh is there")),
                };
                vec![Layer {
                    projection,
                    peephole: source.blocks(peephole, &[3 * hidden])?,
                    layer_norm: source.blocks(norm, &[2, NORMS * hidden])?,
                    ..Layer::read(input, hidden, ih.to_vec(), hh.to_vec(), bias)
                }]
            }
            Layout::Keras => {
                let ([input, columns], kernel) = source.get("kernel")?;
                let ([hidden, _], recurrent) = source.get("recurrent_kernel")?;
                gate_rows("kernel", [columns, input], hidden)?;
                source.check("recurrent_kernel", &[hidden, columns])?;
                let bias = source.vector("bias", columns)?.map(one_vector);
                let (ih, hh) = (transpose(kernel, columns), transpose(recurrent, columns));
                vec![Layer::read(input, hidden, ih, hh, bias)]
            }
            Layout::TensorFlow { .. } | Layout::DeepBreathe { .. } => {
                let transposed = matches!(self, Layout::TensorFlow { .. });
                let (weight, bias) = if transposed { ("kernel", "bias") } else { ("W", "b") };
                let (shape, values) = source.get(weight)?;
                let [rows, columns] = if transposed { [shape[1], shape[0]] } else { shape };
                let hidden = rows / 4;
                let projection = match source.find(projection[0]) {
                    None => None,
                    Some(_) => {
                        let ([_, outputs], _) = source.get::<2>(projection[0])?;
                        let values = source.blocks(projection, &[hidden, outputs])?.unwrap_or_default();
                        Some((outputs, transpose(&values, outputs)))
                    }
                };
                let outputs = projection.as_ref().map_or(hidden, |(outputs, _)| *outputs);
                let input = columns.saturating_sub(outputs);
                gate_rows(weight, [rows, input], hidden)?;
                let joined = if transposed { transpose(values, rows) } else { values.to_vec() };
                let part = |from: usize, to: usize| -> Vec<f64> {
                    joined.chunks_exact(columns).flat_map(|row| &row[from..to]).copied().collect()
                };
                let layer_norm = source.blocks(norm, &[hidden])?;
                if layer_norm.is_some() && source.find(bias).is_some() {
                    return Err(message::tensor(bias, NO_BIAS));
                }
                let bias = source.vector(bias, rows)?.map(one_vector);
                vec![Layer {
                    projection,
                    peephole: source.blocks(peephole, &[hidden])?,
                    layer_norm,
                    ..Layer::read(input, hidden, part(0, input), part(input, columns), bias)
                }]
            }
            Layout::Onnx => {
                let ([directions, rows, input], w) = source.get("W")?;
                let ([_, _, hidden], r) = source.get("R")?;
                gate_rows("W", [rows, input], hidden)?;
                source.check("R", &[directions, rows, hidden])?;
                if !(1..=2).contains(&directions) {
                    return Err(message::tensor("W", format!("{directions} directions, expected 1 or 2")));
                }
                let biases =
                    source.find("B").map(|b| source.check("B", &[directions, 2 * rows]).map(|()| b)).transpose()?;
                let peepholes = source.blocks(peephole, &[directions, 3 * hidden])?;
                let layer = |d: usize| {
                    let bias = biases.map(|b| {
                        let (w, r) = b.values[d * 2 * rows..(d + 1) * 2 * rows].split_at(rows);
                        [w.to_vec(), r.to_vec()]
                    });
                    let part = |values: &[f64], size: usize| values[d * size..(d + 1) * size].to_vec();
                    let peephole = peepholes.as_ref().map(|p| swap_last(part(p, 3 * hidden)));
                    Layer {
                        peephole,
                        ..Layer::read(input, hidden, part(w, rows * input), part(r, rows * hidden), bias)
                    }
                };
                (0..directions).map(layer).collect()
            }
            Layout::Textbook { .. } => {
                let ([hidden, input], _) = source.get::<2>(TEXTBOOK[0])?;
                gate_rows(TEXTBOOK[0], [hidden.saturating_mul(4), input], hidden)?;
                let (mut ih, mut hh, mut bias) = (Vec::new(), Vec::new(), Vec::new());
                for p in 0..4 {
                    source.check(TEXTBOOK[p], &[hidden, input])?;
                    source.check(TEXTBOOK[4 + p], &[hidden, hidden])?;
                    ih.extend_from_slice(source.get::<2>(TEXTBOOK[p])?.1);
                    hh.extend_from_slice(source.get::<2>(TEXTBOOK[4 + p])?.1);
                    bias.extend(source.vector(TEXTBOOK[8 + p], hidden)?.unwrap_or_default());
                }
                if !bias.is_empty() && bias.len() != 4 * hidden {
                    return Err(message::tensor("b_i", "the four biases stand together or not at all"));
                }
                vec![Layer::read(input, hidden, ih, hh, (!bias.is_empty()).then(|| one_vector(bias)))]
            }
        };
        for layer in &mut layers {
            layer.reorder(|to, from| to[self.order()[from]] = from);
            layer.forget_bias = self.forget_bias();
        }
        Ok(layers)
    }

    /// The arrays of one layer; for ONNX of one or two layers of the same sizes, the directions of a node, forward
    /// first. What `read` gives comes back bit by bit (a lone `bias_ih` with a `bias_hh` of zeros). Errors: a wrong
    /// number of layers, sizes that differ, lengths that do not fit the sizes, a part that the layout has no arrays
    /// for.
    pub fn write(self, layers: &[Layer]) -> Result<Vec<Array>> {
        let onnx = matches!(self, Layout::Onnx);
        let (first, second) = match layers {
            [first] => (first, None),
            [first, second] if onnx => (first, Some(second)),
            _ => return Err(message::tensor(self.names()[0], format!("cannot hold {} layers", layers.len()))),
        };
        let (input, hidden) = (first.input_size, first.hidden_size);
        if second.is_some_and(|s| (s.input_size, s.hidden_size) != (input, hidden)) {
            return Err(message::tensor("W", "the directions of an ONNX node have the same sizes"));
        }
        let mut theirs = Vec::new();
        for layer in layers {
            layer.check()?;
            let mut layer = layer.clone();
            layer.move_forget_bias(self.forget_bias());
            self.holds(&mut layer)?;
            layer.reorder(|to, from| to[from] = self.order()[from]);
            theirs.push(layer);
        }
        if theirs.iter().any(|l| l.bias.is_some()) {
            for layer in &mut theirs {
                layer.bias.get_or_insert_with(|| one_vector(vec![0.0; 4 * hidden]));
            }
        }
        if theirs.iter().any(|l| l.peephole.is_some()) {
            for layer in &mut theirs {
                layer.peephole.get_or_insert_with(|| vec![0.0; 3 * hidden]);
            }
        }
        let (rows, outputs) = (4 * hidden, first.output_size());
        let all =
            |part: fn(&Layer) -> &[f64]| theirs.iter().flat_map(|l| part(l).iter().copied()).collect::<Vec<f64>>();
        let (ih, hh) = (all(|l| &l.weight_ih), all(|l| &l.weight_hh));
        let biases = theirs[0].bias.clone();
        let sums = biases.as_ref().map(|[ih, hh]| ih.iter().zip(hh).map(|(a, b)| sum(*a, *b)).collect::<Vec<f64>>());
        let array = |name: &str, shape: &[usize], values: Vec<f64>| Array {
            name: name.to_string(),
            shape: shape.to_vec(),
            values,
        };
        let mut arrays = Vec::new();
        match self {
            Layout::PyTorch => {
                arrays.push(array("weight_ih", &[rows, input], ih));
                arrays.push(array("weight_hh", &[rows, outputs], hh));
                if let Some([ih, hh]) = biases {
                    arrays.push(array("bias_ih", &[rows], ih));
                    arrays.push(array("bias_hh", &[rows], hh));
                }
            }
            Layout::Keras => {
                arrays.push(array("kernel", &[input, rows], transpose(&ih, input)));
                arrays.push(array("recurrent_kernel", &[hidden, rows], transpose(&hh, hidden)));
                arrays.extend(sums.map(|b| array("bias", &[rows], b)));
            }
            Layout::TensorFlow { .. } | Layout::DeepBreathe { .. } => {
                let pairs = ih.chunks_exact(input).zip(hh.chunks_exact(outputs));
                let joined: Vec<f64> = pairs.flat_map(|(x, h)| x.iter().chain(h)).copied().collect();
                let columns = input + outputs;
                if matches!(self, Layout::TensorFlow { .. }) {
                    arrays.push(array("kernel", &[columns, rows], transpose(&joined, columns)));
                    arrays.extend(sums.map(|b| array("bias", &[rows], b)));
                } else {
                    arrays.push(array("W", &[rows, columns], joined));
                    arrays.extend(sums.map(|b| array("b", &[rows], b)));
                }
            }
            Layout::Onnx => {
                arrays.push(array("W", &[layers.len(), rows, input], ih));
                arrays.push(array("R", &[layers.len(), rows, hidden], hh));
                if biases.is_some() {
                    let values = theirs.iter().flat_map(|l| l.bias.iter().flatten().flatten()).copied().collect();
                    arrays.push(array("B", &[layers.len(), 2 * rows], values));
                }
            }
            Layout::Textbook { .. } => {
                let block =
                    |values: &[f64], p: usize| values[p * values.len() / 4..(p + 1) * values.len() / 4].to_vec();
                (0..4).for_each(|p| arrays.push(array(TEXTBOOK[p], &[hidden, input], block(&ih, p))));
                (0..4).for_each(|p| arrays.push(array(TEXTBOOK[4 + p], &[hidden, hidden], block(&hh, p))));
                if let Some(sums) = sums {
                    (0..4).for_each(|p| arrays.push(array(TEXTBOOK[8 + p], &[hidden], block(&sums, p))));
                }
            }
        }
        let [projections, peepholes, norms] = self.parts();
        let (pytorch, onnx) = (matches!(self, Layout::PyTorch), matches!(self, Layout::Onnx));
        let Layer { projection, peephole, layer_norm, .. } = &theirs[0];
        if let Some((outputs, values)) = projection {
            let (shape, values) = match pytorch {
                true => ([*outputs, hidden], values.clone()),
                false => ([hidden, *outputs], transpose(values, hidden)),
            };
            projections.iter().for_each(|name| arrays.push(array(name, &shape, values.clone())));
        }
        if peephole.is_some() {
            let all = theirs.iter().filter_map(|l| l.peephole.clone());
            let values = all.flat_map(|p| if onnx { swap_last(p) } else { p }).collect::<Vec<f64>>();
            let len = values.len() / peepholes.len();
            let shape = if onnx { vec![layers.len(), 3 * hidden] } else { vec![len] };
            arrays.extend(peepholes.iter().zip(values.chunks_exact(len)).map(|(n, v)| array(n, &shape, v.to_vec())));
        }
        if let Some(values) = layer_norm {
            let len = values.len() / norms.len();
            let shape = if pytorch { vec![2, NORMS * hidden] } else { vec![len] };
            arrays.extend(norms.iter().zip(values.chunks_exact(len)).map(|(n, v)| array(n, &shape, v.to_vec())));
        }
        Ok(arrays)
    }

    /// Leaves out of `layer` what has no effect and no arrays in this layout. Errors: a part that has an effect.
    fn holds(self, layer: &mut Layer) -> Result<()> {
        let [projection, peephole, norm] = self.parts();
        let zero = |values: &[f64]| values.iter().all(|v| *v == 0.0);
        if peephole.is_empty() && layer.peephole.as_ref().is_some_and(|p| zero(p)) {
            layer.peephole = None;
        }
        let parts = [
            ("weight_hr", "a projection", projection.is_empty() && layer.projection.is_some()),
            ("weight_peephole", "peepholes", peephole.is_empty() && layer.peephole.is_some()),
            ("layer_norm", "a layer norm", norm.is_empty() && layer.layer_norm.is_some()),
        ];
        if let Some((name, part, _)) = parts.into_iter().find(|(.., lost)| *lost) {
            let cause =
                format!("the layer has {part}, and this layout has no array for it: {}", self.names().join(" "));
            return Err(message::tensor(name, cause));
        }
        if let (Layout::TensorFlow { .. } | Layout::DeepBreathe { .. }, Some(_)) = (self, &layer.layer_norm)
            && let Some([ih, hh]) = layer.bias.take()
            && ih.iter().zip(&hh).any(|(a, b)| a + b != 0.0)
        {
            return Err(message::tensor("bias", NO_BIAS));
        }
        Ok(())
    }
}

const NO_BIAS: &str = "a layer norm stands in the place of the biases in this layout, the layer has both";

/// One layer and direction in our layout: rows i, f, g, o.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// I.
    pub input_size: usize,
    /// H.
    pub hidden_size: usize,
    /// `[4H, I]`, row-major.
    pub weight_ih: Vec<f64>,
    /// `[4H, P]`; P = H without a projection.
    pub weight_hh: Vec<f64>,
    /// `bias_ih` and `bias_hh`, each `[4H]`.
    pub bias: Option<[Vec<f64>; 2]>,
    /// P and `[P, H]`.
    pub projection: Option<(usize, Vec<f64>)>,
    /// `[3H]`: to i, f, o.
    pub peephole: Option<Vec<f64>>,
    /// `[2, 5H]`: gains of i, f, g, o and the new cell, then shifts.
    pub layer_norm: Option<Vec<f64>>,
    /// What the model adds to the forget gate on top of the biases.
    pub forget_bias: f64,
}

impl Layer {
    /// All weights zero, no biases.
    pub fn zeros(input_size: usize, hidden_size: usize) -> Layer {
        let zeros = |columns: usize| vec![0.0; hidden_size.saturating_mul(4).saturating_mul(columns)];
        Layer::read(input_size, hidden_size, zeros(input_size), zeros(hidden_size), None)
    }

    /// The layer `layer` of `lstm` out of its parameters. Errors: no such layer or direction.
    pub fn from_parameters(
        parameters: &Parameters,
        lstm: &Lstm,
        (layer, direction): (usize, Direction),
    ) -> Result<Layer> {
        let names = names(lstm, layer, direction);
        let (hidden_size, config) = (lstm.config.state_sizes(layer).1, &lstm.config);
        let input_size = parameters.entry(&names[0])?.shape.last().copied().unwrap_or(0);
        let get = |name: &str| parameters.get(name).map(<[f64]>::to_vec);
        let part = |there: bool, name: &str| there.then(|| get(name)).transpose();
        let bias = match config.bias {
            Bias::None => None,
            Bias::One => Some(one_vector(get(&names[2])?)),
            Bias::Two => Some([get(&names[2])?, get(&names[3])?]),
        };
        Ok(Layer {
            projection: config.proj_size.map(|p| get(&names[4]).map(|values| (p, values))).transpose()?,
            peephole: part(config.peephole, &names[5])?,
            layer_norm: part(config.layer_norm.is_some(), &names[6])?,
            forget_bias: config.forget_bias,
            ..Layer::read(input_size, hidden_size, get(&names[0])?, get(&names[1])?, bias)
        })
    }

    /// Sets the parameters of the layer `layer` of `lstm`. What this layer's forget bias has above `lstm`'s goes into
    /// `bias_ih`, or with a layer norm into its shift. For an LSTM with one bias vector both are added; biases and
    /// peepholes that the layer lacks become 0. Errors: other sizes, biases or peepholes that are not 0 for an LSTM
    /// without, a projection or a layer norm that only one of both has, a value that is not finite. On an error
    /// nothing is set.
    pub fn store(
        &self,
        parameters: &mut Parameters,
        lstm: &Lstm,
        (layer, direction): (usize, Direction),
    ) -> Result<()> {
        self.check()?;
        let names = names(lstm, layer, direction);
        let mut moved = self.clone();
        moved.move_forget_bias(lstm.config.forget_bias);
        let bias = match (lstm.config.bias != Bias::None, moved.bias) {
            (true, None) => Some(one_vector(vec![0.0; 4 * self.hidden_size])),
            (false, Some(bias)) if bias.iter().flatten().any(|v| *v != 0.0) => {
                return Err(message::tensor(&names[2], "the LSTM was declared without biases, the layer has some"));
            }
            (false, _) => None,
            (true, bias) => bias,
        };
        let (config, hidden) = (&lstm.config, self.hidden_size);
        let peephole = match (config.peephole, moved.peephole) {
            (true, None) => Some(vec![0.0; 3 * hidden]),
            (false, Some(peephole)) if peephole.iter().any(|v| *v != 0.0) => {
                return Err(message::tensor(&names[5], "the LSTM was declared without peepholes, the layer has some"));
            }
            (false, _) => None,
            (true, peephole) => peephole,
        };
        for (name, part, declared, has) in [
            (&names[4], "projection", config.proj_size.is_some(), self.projection.is_some()),
            (&names[6], "layer norm", config.layer_norm.is_some(), self.layer_norm.is_some()),
        ] {
            if declared != has {
                let cause = match has {
                    true => format!("the LSTM was declared without a {part}, the layer has one"),
                    false => format!("the LSTM was declared with a {part}, the layer has none"),
                };
                return Err(message::tensor(name, cause));
            }
        }
        let mut all = vec![
            (&names[0], vec![4 * hidden, self.input_size], moved.weight_ih),
            (&names[1], vec![4 * hidden, self.output_size()], moved.weight_hh),
        ];
        all.extend(moved.projection.map(|(outputs, values)| (&names[4], vec![outputs, hidden], values)));
        all.extend(peephole.map(|values| (&names[5], vec![3 * hidden], values)));
        all.extend(moved.layer_norm.map(|values| (&names[6], vec![2, NORMS * hidden], values)));
        if let Some([ih, hh]) = bias {
            let one = lstm.config.bias == Bias::One;
            let first = ih.iter().zip(&hh).map(|(ih, hh)| if one { sum(*ih, *hh) } else { *ih }).collect();
            all.push((&names[2], vec![4 * hidden], first));
            if !one {
                all.push((&names[3], vec![4 * hidden], hh));
            }
        }
        for (name, shape, values) in &all {
            let declared = &parameters.entry(name)?.shape;
            if declared != shape {
                let cause =
                    format!("is declared as {}, the layer has {}", message::shape(declared), message::shape(shape));
                return Err(message::tensor(name, cause));
            }
            if let Some((index, value)) = values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
                return Err(message::tensor(name, format!("element {index} is {value}")));
            }
        }
        all.iter().try_for_each(|(name, _, values)| parameters.set(name, values))
    }

    /// P, columns of h: H without a projection.
    pub fn output_size(&self) -> usize {
        self.projection.as_ref().map_or(self.hidden_size, |(outputs, _)| *outputs)
    }

    fn read(input: usize, hidden: usize, ih: Vec<f64>, hh: Vec<f64>, bias: Option<[Vec<f64>; 2]>) -> Layer {
        Layer {
            input_size: input,
            hidden_size: hidden,
            weight_ih: ih,
            weight_hh: hh,
            bias,
            projection: None,
            peephole: None,
            layer_norm: None,
            forget_bias: 0.0,
        }
    }

    fn check(&self) -> Result<()> {
        let (input, hidden, outputs) = (self.input_size, self.hidden_size, self.output_size());
        let rows = hidden.saturating_mul(4);
        let wanted = [rows.saturating_mul(input), rows.saturating_mul(outputs)];
        let fits = [self.weight_ih.len(), self.weight_hh.len()] == wanted
            && self.bias.iter().flatten().all(|b| b.len() == rows)
            && self.projection.iter().all(|(_, p)| p.len() == outputs.saturating_mul(hidden))
            && self.peephole.iter().all(|p| p.len() == hidden.saturating_mul(3))
            && self.layer_norm.iter().all(|n| n.len() == hidden.saturating_mul(2 * NORMS))
            && wanted.iter().all(|len| *len > 0);
        match fits {
            true => Ok(()),
            false => {
                let cause = format!("its lengths do not fit the sizes I = {input}, H = {hidden}, P = {outputs}");
                Err(message::tensor("layer", cause))
            }
        }
    }

    /// `put(blocks, p)` notes in `blocks` which block of four goes where; peepholes and layer norm stay in our order.
    fn reorder(&mut self, put: impl Fn(&mut [usize; 4], usize)) {
        let mut blocks = [0; 4];
        (0..4).for_each(|p| put(&mut blocks, p));
        for values in [&mut self.weight_ih, &mut self.weight_hh].into_iter().chain(self.bias.iter_mut().flatten()) {
            let len = values.len() / 4;
            *values = blocks.iter().flat_map(|b| &values[b * len..(b + 1) * len]).copied().collect();
        }
    }

    /// Makes `outside` the forget bias, and moves the difference into the biases, or into the shift of the forget
    /// gate's norm; gates in our order.
    fn move_forget_bias(&mut self, outside: f64) {
        let (difference, hidden) = (self.forget_bias - outside, self.hidden_size);
        self.forget_bias = outside;
        if difference == 0.0 {
            return;
        }
        if let Some(norm) = &mut self.layer_norm {
            norm[(NORMS + 1) * hidden..(NORMS + 2) * hidden].iter_mut().for_each(|b| *b += difference);
        } else {
            let [bias, _] = self.bias.get_or_insert_with(|| one_vector(vec![0.0; 4 * hidden]));
            bias[hidden..2 * hidden].iter_mut().for_each(|b| *b += difference);
        }
    }
}

/// The values of one of the [textbook's arrays](TEXTBOOK), or of the other [`PARTS`] of an LSTM, row-major. With a
/// projection `W_ih`, .. are `[H, P]`. A bias is the sum of PyTorch's two, without the model's `forget_bias`. Errors: an
/// unknown name, no such layer, an LSTM without this part.
pub fn get(parameters: &Parameters, lstm: &Lstm, at: (usize, Direction), name: &str) -> Result<Vec<f64>> {
    let place = Place::of(lstm, at, name)?;
    let values = place.part(parameters.get(&place.parameter)?);
    match &place.second {
        None => Ok(values),
        Some(second) => Ok(values.iter().zip(place.part(parameters.get(second)?)).map(|(a, b)| sum(*a, b)).collect()),
    }
}

/// Sets one of the textbook's arrays, or of the other [`PARTS`]. A bias goes into `bias_ih`, and its part of `bias_hh` becomes 0. Errors: as
/// [`get`], a wrong number of values, a value that is not finite.
pub fn set(parameters: &mut Parameters, lstm: &Lstm, at: (usize, Direction), name: &str, values: &[f64]) -> Result<()> {
    let place = Place::of(lstm, at, name)?;
    let mut all = parameters.get(&place.parameter)?.to_vec();
    let range = place.range(&all);
    if values.len() != range.len() {
        return Err(message::tensor(name, format!("{} values, expected {}", values.len(), range.len())));
    }
    all[range.clone()].copy_from_slice(values);
    if let Some((index, value)) = values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        return Err(message::tensor(name, format!("element {index} is {value}")));
    }
    if let Some(second) = &place.second {
        let mut zeroed = parameters.get(second)?.to_vec();
        zeroed[range].fill(0.0);
        parameters.set(second, &zeroed)?;
    }
    parameters.set(&place.parameter, &all)
}

/// The loss's gradient for one of the textbook's arrays, or of the other [`PARTS`], from a workspace whose plan has a backward pass. Errors: as
/// [`get`], no gradients in the plan, and the device's.
pub async fn gradient_async(
    workspace: &mut Workspace,
    lstm: &Lstm,
    at: (usize, Direction),
    name: &str,
) -> Result<Vec<f64>> {
    let place = Place::of(lstm, at, name)?;
    // both of PyTorch's biases have the gradient of their sum
    let gradient = workspace.plan().tensor(&gradient_name(&place.parameter))?;
    Ok(place.part(&workspace.read_async::<f64>(&gradient).await?))
}

/// Blocking [`gradient_async`].
#[cfg(not(target_arch = "wasm32"))]
pub fn gradient(workspace: &mut Workspace, lstm: &Lstm, at: (usize, Direction), name: &str) -> Result<Vec<f64>> {
    pollster::block_on(gradient_async(workspace, lstm, at, name))
}

/// Where an array lies: in block `block` of the `blocks` equal ones of `parameter`, and for a bias of `second` too.
struct Place {
    parameter: String,
    second: Option<String>,
    block: usize,
    blocks: usize,
}

impl Place {
    fn of(lstm: &Lstm, (layer, direction): (usize, Direction), name: &str) -> Result<Place> {
        let index = TEXTBOOK.iter().chain(&PARTS).position(|n| *n == name).ok_or_else(|| {
            message::tensor(name, format!("expected one of {} {}", TEXTBOOK.join(" "), PARTS.join(" ")))
        })?;
        let [ih, hh, bias_ih, bias_hh, hr, peephole, norm] = names(lstm, layer, direction);
        let (parameter, (block, blocks)) = match index {
            0..4 => (ih, (TEXTBOOK_ORDER[index], 4)),
            4..8 => (hh, (TEXTBOOK_ORDER[index - 4], 4)),
            8..12 => (bias_ih, (TEXTBOOK_ORDER[index - 8], 4)),
            12 => (hr, (0, 1)),
            13..16 => (peephole, (index - 13, 3)),
            _ => (norm, (index - 16, 2 * NORMS)),
        };
        let second = ((8..12).contains(&index) && lstm.config.bias == Bias::Two).then_some(bias_hh);
        Ok(Place { parameter, second, block, blocks })
    }

    fn range(&self, values: &[f64]) -> std::ops::Range<usize> {
        let len = values.len() / self.blocks;
        self.block * len..(self.block + 1) * len
    }

    fn part(&self, values: &[f64]) -> Vec<f64> {
        values[self.range(values)].to_vec()
    }
}

/// Names of the parameters of one layer and direction.
pub(super) fn names(lstm: &Lstm, layer: usize, direction: Direction) -> [String; 7] {
    let suffix = if direction == Direction::Reverse { "_reverse" } else { "" };
    ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peephole", "layer_norm"]
        .map(|kind| path(&lstm.name, &format!("{kind}_l{layer}{suffix}")))
}

/// i, f, o to i, o, f and back.
fn swap_last(mut peephole: Vec<f64>) -> Vec<f64> {
    let hidden = peephole.len() / 3;
    peephole[hidden..].rotate_left(hidden);
    peephole
}

/// Not `a + b` where b is zero: -0 stays -0.
fn sum(a: f64, b: f64) -> f64 {
    if b == 0.0 { a } else { a + b }
}

fn one_vector(bias: Vec<f64>) -> [Vec<f64>; 2] {
    let zeros = vec![0.0; bias.len()];
    [bias, zeros]
}

/// `[rows, columns]` to `[columns, rows]`.
fn transpose(values: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|c| values.iter().skip(c).step_by(columns)).copied().collect()
}

/// Error: rows that are not four gates of `hidden`, a size of zero.
fn gate_rows(name: &str, [rows, input]: [usize; 2], hidden: usize) -> Result<()> {
    match hidden > 0 && input > 0 && hidden.checked_mul(4) == Some(rows) {
        true => Ok(()),
        false => {
            let cause =
                format!("{rows} gate rows and input size {input} do not fit four gates of hidden size {hidden}");
            Err(message::tensor(name, cause))
        }
    }
}

/// Arrays under the layout's names.
struct Source<'a> {
    arrays: Vec<(&'static str, &'a Array)>,
}

impl<'a> Source<'a> {
    fn find(&self, name: &str) -> Option<&'a Array> {
        self.arrays.iter().find(|(n, _)| *n == name).map(|(_, array)| *array)
    }

    /// Arrays of the same shape that are all there or none, one behind the other.
    fn blocks(&self, names: &[&str], shape: &[usize]) -> Result<Option<Vec<f64>>> {
        if !names.iter().any(|name| self.find(name).is_some()) {
            return Ok(None);
        }
        let mut all = Vec::new();
        for name in names {
            self.check(name, shape)?;
            if shape.contains(&0) {
                return Err(message::tensor(name, format!("shape {} is empty", message::shape(shape))));
            }
            all.extend(self.find(name).iter().flat_map(|a| &a.values));
        }
        Ok(Some(all))
    }

    /// An array of N axes whose values fit its shape.
    fn get<const N: usize>(&self, name: &str) -> Result<([usize; N], &'a [f64])> {
        let array = self.find(name).ok_or_else(|| message::tensor(name, "is missing"))?;
        let shape = <[usize; N]>::try_from(&array.shape[..])
            .map_err(|_| message::tensor(name, format!("shape {}, expected {N} axes", message::shape(&array.shape))))?;
        self.check(name, &shape)?;
        Ok((shape, &array.values))
    }

    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let array = self.find(name).ok_or_else(|| message::tensor(name, "is missing"))?;
        let len = shape.iter().try_fold(1usize, |n, size| n.checked_mul(*size));
        if array.shape != shape || len != Some(array.values.len()) {
            let (found, wanted) = (message::shape(&array.shape), message::shape(shape));
            let cause = format!("shape {found} with {} values, expected {wanted}", array.values.len());
            return Err(message::tensor(name, cause));
        }
        Ok(())
    }

    fn vector(&self, name: &str, len: usize) -> Result<Option<Vec<f64>>> {
        match self.find(name) {
            None => Ok(None),
            Some(array) => self.check(name, &[len]).map(|()| Some(array.values.clone())),
        }
    }
}
