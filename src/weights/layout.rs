//! The layouts of other frameworks: their names, gate orders and bias rules.
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
//! *One vector* for a layer becomes `bias_ih`, with `bias_hh` = 0 where the LSTM has
//! [two](crate::layers::Bias::Two); writing one sums both. A forget bias that stands *outside* is a number that the
//! framework adds to the forget gate at run time and that is in no file: the layout carries it. Going from one rule to
//! the other moves the difference into the forget gate's biases, or with a layer norm into its shift (the forget bias
//! stands after the norm), so the model computes the same.
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

pub use super::layer::Layer;
use super::message;
use super::solve::NORM_OR_BIAS;
use super::tables::{Part, Sizes, TABLES, Table};
use super::write::{Array, fits};
use crate::error::{Result, ensure};

/// How a framework arranges the weights of an LSTM layer; see the [table](self).
///
/// [`Import`](super::Import) has an example.
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

impl Layout {
    pub(super) fn table(self) -> &'static Table {
        match self {
            Layout::PyTorch => &TABLES[0],
            Layout::Keras => &TABLES[1],
            Layout::TensorFlow { .. } => &TABLES[2],
            Layout::Onnx => &TABLES[3],
            Layout::DeepBreathe { .. } => &TABLES[4],
            Layout::Textbook { .. } => &TABLES[5],
        }
    }

    /// The gates in the framework's order and letters.
    pub fn gates(self) -> &'static str {
        self.table().gates
    }

    /// `order[p]` is the place among i, f, g, o of the gate that the framework has at place p.
    pub fn order(self) -> [usize; 4] {
        self.table().order()
    }

    /// What becomes of the biases, for reports.
    pub fn bias_rule(self) -> &'static str {
        self.table().bias_rule
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
    pub fn names(self) -> Vec<&'static str> {
        self.table().rows.iter().map(|row| row.names[0]).collect()
    }

    /// The layer that `arrays` hold, named as in [`names`](Layout::names) (or as in TensorFlow's checkpoints); two for
    /// a bidirectional ONNX node, forward first.
    ///
    /// # Errors
    ///
    /// A missing or unknown name, one that stands twice, a shape that does not fit, a part of which only some arrays are
    /// there, a bias beside a layer norm where there can be none.
    pub fn read(self, arrays: &[Array]) -> Result<Vec<Layer>> {
        let table = self.table();
        let mut found: Vec<Option<&Array>> = vec![None; table.rows.len()];
        for array in arrays {
            let wrong = |cause: &str| message::tensor(&array.name, cause);
            let unknown = || wrong(&format!("no array of this layout: {}", self.names().join(" ")));
            let place = table.place(&array.name).ok_or_else(unknown)?;
            ensure!(found[place].replace(array).is_none(), wrong("stands twice"));
            fits(&array.name, &array.shape, &array.values)?;
        }
        let sizes = table.solve(|place| found[place].map(|array| &array.shape[..]));
        let sizes = sizes.map_err(|(place, cause)| message::tensor(table.rows[place].names[0], cause))?;
        let there = || table.rows.iter().zip(&found).filter_map(|(row, array)| Some((row, (*array)?)));
        let projected = there().any(|(row, _)| row.parts[0] == Part::Projection);
        let layer = |direction: usize| {
            let mut layer = Layer { forget_bias: self.forget_bias(), ..Layer::sized(&sizes, projected) };
            for (row, array) in there() {
                row.runs(&sizes, direction).iter().for_each(|run| run.read(layer.part_mut(run.part), &array.values));
            }
            layer
        };
        Ok((0..sizes.directions).map(layer).collect())
    }

    /// The arrays of one layer; for ONNX of one or two layers of the same sizes, the directions of a node, forward
    /// first. What `read` gives comes back bit by bit (a lone `bias_ih` with a `bias_hh` of zeros).
    ///
    /// # Errors
    ///
    /// A wrong number of layers, sizes that differ, lengths that do not fit the sizes, a part that the layout has no
    /// arrays for.
    pub fn write(self, layers: &[Layer]) -> Result<Vec<Array>> {
        let table = self.table();
        let most = if table.directed() { 2 } else { 1 };
        let Some(first) = layers.first().filter(|_| layers.len() <= most) else {
            return Err(message::tensor(table.rows[0].names[0], format!("cannot hold {} layers", layers.len())));
        };
        let theirs = layers.iter().map(|layer| self.prepare(layer)).collect::<Result<Vec<Layer>>>()?;
        let same = theirs.iter().all(|layer| layer.sizes() == first.sizes());
        ensure!(same, message::tensor("W", "the directions of an ONNX node have the same sizes"));
        let sizes = Sizes { directions: layers.len(), ..first.sizes() };
        let mut arrays = Vec::new();
        for row in &table.rows {
            // zeros for the direction that lacks what the other one has
            if !row.parts.iter().any(|part| theirs.iter().any(|layer| layer.part(*part).is_some())) {
                continue;
            }
            let shape = row.shape(&sizes);
            let mut values = vec![0.0; shape.iter().product()];
            for (direction, layer) in theirs.iter().enumerate() {
                for run in row.runs(&sizes, direction) {
                    layer.part(run.part).into_iter().for_each(|ours| run.write(ours, &mut values));
                }
            }
            arrays.push(Array { name: row.names[0].to_string(), shape, values });
        }
        Ok(arrays)
    }

    /// The layer by the framework's rules of biases, without what has no effect and no arrays in this layout. Errors: a
    /// part that has an effect and no array, lengths that do not fit.
    fn prepare(self, layer: &Layer) -> Result<Layer> {
        let table = self.table();
        layer.check()?;
        let mut layer = layer.clone();
        layer.move_forget_bias(self.forget_bias());
        if !table.holds(Part::BiasHh) {
            layer.add_biases();
        }
        let zero = |values: &[f64]| values.iter().all(|v| *v == 0.0);
        if !table.holds(Part::Peephole) && layer.part(Part::Peephole).is_some_and(zero) {
            layer.peephole = None;
        }
        let lost = |part: &Part| *part != Part::BiasHh && !table.holds(*part) && layer.part(*part).is_some();
        if let Some(part) = Part::ALL.into_iter().find(lost) {
            let names = self.names().join(" ");
            let cause = format!("the layer has {}, and this layout has no array for it: {names}", part.words());
            return Err(message::tensor(part.kind(), cause));
        }
        if table.norm_or_bias() && layer.layer_norm.is_some() && layer.bias.take().is_some_and(|[sums, _]| !zero(&sums))
        {
            return Err(message::tensor("bias", format!("{NORM_OR_BIAS} in this layout, the layer has both")));
        }
        Ok(layer)
    }
}
