//! Sizes and options of an LSTM, and the names and shapes of its parameters.

use super::init::{self, Init};
use crate::error::{Error, Result};
use crate::kernels::recurrence::{GATES, NORMS};
use crate::layers::{check_count, check_size, path};
use crate::parameters::Parameters;
use crate::rng::Rng;
use crate::time::{Direction, Directions};
use serde::{Deserialize, Serialize};

/// Where the two directions of a bidirectional stack meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Join {
    /// After every layer: each layer above reads both directions (PyTorch).
    Layers,
    /// Only at the end: one full stack in each direction (TensorFlow's `bidirectional_dynamic_rnn` over
    /// `MultiRNNCell`, the Deep-Breathe series).
    Stacks,
}

/// The bias vectors of each layer and direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bias {
    /// None.
    None,
    /// `bias_ih` (TensorFlow, Keras).
    One,
    /// `bias_ih` and `bias_hh`, which are added (PyTorch, ONNX).
    Two,
}

/// How a layer above the first is connected to its input x; its output is y.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Connection {
    /// y alone.
    Plain,
    /// `x + y`.
    Residual,
    /// `s x + (1 - s) y` with `s = sigmoid(x W^T + b)`, b = 1 at first (Srivastava et al. 2015, TensorFlow's
    /// `HighwayWrapper`).
    Highway,
}

/// Sizes and options of an [`Lstm`](super::Lstm). Options combine freely.
///
/// ```
/// use everloop::layers::{Join, LstmConfig};
/// let config = LstmConfig::new(16, 32).with_layers(2).with_bidirectional(Join::Layers);
/// assert_eq!(config.hidden_sizes, [32, 32]);
/// assert_eq!(config.output_size(), 64);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LstmConfig {
    /// I, columns of the input.
    pub input_size: usize,
    /// H of each layer; layers may differ.
    pub hidden_sizes: Vec<usize>,
    /// P, columns of h where a matrix `weight_hr [P, H]` projects the cell's output.
    pub proj_size: Option<usize>,
    /// Two directions, and how they are joined; `None` for one direction.
    pub bidirectional: Option<Join>,
    /// One direction, from the last step to the first; its parameters' names end in `_reverse`.
    #[serde(default)]
    pub reverse: bool,
    /// Bias vectors; two at first.
    pub bias: Bias,
    /// Added to the forget gate's pre-activation, on top of the biases and after a layer norm; 0 at first, as in
    /// PyTorch. TensorFlow and the series use 1.
    pub forget_bias: f64,
    /// Weights from the cell to the gates i, f (the cell before) and o (the new one), as in TensorFlow's `LSTMCell`.
    pub peephole: bool,
    /// The forget gate is `1 - i` (ONNX's `input_forget`); its rows of the weights have no effect.
    pub coupled: bool,
    /// Keeps c within plus and minus this.
    pub cell_clip: Option<f64>,
    /// Keeps the projected h within plus and minus this.
    pub proj_clip: Option<f64>,
    /// Normalises each gate's pre-activation and the new cell, with this epsilon, above 0, inside the square root
    /// (TensorFlow's `LayerNormBasicLSTMCell`, where it is 1e-12).
    pub layer_norm: Option<f64>,
    /// Probability to drop each value between two layers, in plans that are recorded with a
    /// [`Dropout`](super::Dropout).
    pub dropout: f64,
    /// Probability to drop each value of g in the recurrence, in the same plans.
    pub recurrent_dropout: f64,
    /// Drops the same values at every step (Gal and Ghahramani 2016).
    pub variational: bool,
    /// Connection around each layer above the first; its input and output must have the same size.
    pub connection: Connection,
    /// Input and output are `[B, T, ..]` instead of `[T, B, ..]`.
    pub batch_first: bool,
    /// Initial values of the parameters.
    pub init: Init,
}

impl LstmConfig {
    /// One layer in one direction, with PyTorch's defaults.
    pub fn new(input_size: usize, hidden_size: usize) -> Self {
        LstmConfig {
            input_size,
            hidden_sizes: vec![hidden_size],
            proj_size: None,
            bidirectional: None,
            reverse: false,
            bias: Bias::Two,
            forget_bias: 0.0,
            peephole: false,
            coupled: false,
            cell_clip: None,
            proj_clip: None,
            layer_norm: None,
            dropout: 0.0,
            recurrent_dropout: 0.0,
            variational: false,
            connection: Connection::Plain,
            batch_first: false,
            init: Init::default(),
        }
    }

    /// `layers` layers of the first one's hidden size.
    pub fn with_layers(self, layers: usize) -> Self {
        let hidden = self.hidden_sizes.first().copied().unwrap_or(0);
        LstmConfig { hidden_sizes: vec![hidden; layers], ..self }
    }

    /// Layers of different hidden sizes.
    pub fn with_hidden_sizes(self, hidden_sizes: &[usize]) -> Self {
        LstmConfig { hidden_sizes: hidden_sizes.to_vec(), ..self }
    }

    /// A projection to `proj_size` columns.
    pub fn with_projection(self, proj_size: usize) -> Self {
        LstmConfig { proj_size: Some(proj_size), ..self }
    }

    /// Two directions, joined as told.
    pub fn with_bidirectional(self, join: Join) -> Self {
        LstmConfig { bidirectional: Some(join), ..self }
    }

    /// In one direction, from the last step to the first: ONNX's `reverse`, Keras' `go_backwards`. The output lies at
    /// the times of the input.
    pub fn with_reverse(self) -> Self {
        LstmConfig { reverse: true, ..self }
    }

    /// With these bias vectors.
    pub fn with_bias(self, bias: Bias) -> Self {
        LstmConfig { bias, ..self }
    }

    /// With this forget bias.
    pub fn with_forget_bias(self, forget_bias: f64) -> Self {
        LstmConfig { forget_bias, ..self }
    }

    /// With peepholes.
    pub fn with_peephole(self) -> Self {
        LstmConfig { peephole: true, ..self }
    }

    /// With the forget gate `1 - i`.
    pub fn with_coupled_gates(self) -> Self {
        LstmConfig { coupled: true, ..self }
    }

    /// With c kept within plus and minus `limit`.
    pub fn with_cell_clip(self, limit: f64) -> Self {
        LstmConfig { cell_clip: Some(limit), ..self }
    }

    /// With the projected h kept within plus and minus `limit`.
    pub fn with_proj_clip(self, limit: f64) -> Self {
        LstmConfig { proj_clip: Some(limit), ..self }
    }

    /// With layer norms of this epsilon.
    pub fn with_layer_norm(self, epsilon: f64) -> Self {
        LstmConfig { layer_norm: Some(epsilon), ..self }
    }

    /// With this probability of dropping values between layers.
    pub fn with_dropout(self, probability: f64) -> Self {
        LstmConfig { dropout: probability, ..self }
    }

    /// With this probability of dropping values of g.
    pub fn with_recurrent_dropout(self, probability: f64) -> Self {
        LstmConfig { recurrent_dropout: probability, ..self }
    }

    /// With one mask for all steps.
    pub fn with_variational_dropout(self) -> Self {
        LstmConfig { variational: true, ..self }
    }

    /// With this connection around each layer above the first.
    pub fn with_connection(self, connection: Connection) -> Self {
        LstmConfig { connection, ..self }
    }

    /// With input and output `[B, T, ..]`.
    pub fn with_batch_first(self) -> Self {
        LstmConfig { batch_first: true, ..self }
    }

    /// With these initial values.
    pub fn with_init(self, init: Init) -> Self {
        LstmConfig { init, ..self }
    }

    /// Errors: no layer, a size of zero, a number that is not finite or out of its
    /// range, options that need another one.
    pub fn validate(&self) -> Result<()> {
        check_size("input_size of an LSTM", self.input_size)?;
        check_size("layers of an LSTM", self.hidden_sizes.len())?;
        for (layer, hidden) in self.hidden_sizes.iter().copied().enumerate() {
            check_size("hidden_size of an LSTM", hidden)?;
            if self.connection == Connection::Highway && layer > 0 {
                check_count("a highway's weight of an LSTM", &[self.layer_input_size(layer); 2])?;
            }
            let (outputs, input) = (self.state_sizes(layer).0, self.layer_input_size(layer));
            check_count("a weight of an LSTM", &[4, hidden, input.max(hidden).max(outputs)])?;
            if let Some(proj_size) = self.proj_size {
                check_size("proj_size of an LSTM", proj_size)?;
            }
        }
        let number = |what: &str, wanted: &str, value: f64, good: bool| match good {
            true => Ok(()),
            false => Err(Error::config(format!("{what} of an LSTM"), wanted, value)),
        };
        // as f32, which is what a device computes in
        let finite = |v: f64| (v as f32).is_finite();
        number("forget_bias", "a finite number", self.forget_bias, finite(self.forget_bias))?;
        for (what, limit) in [("cell_clip", self.cell_clip), ("proj_clip", self.proj_clip)] {
            let limit = limit.unwrap_or(1.0);
            number(what, "a finite number above 0", limit, finite(limit) && limit as f32 > 0.0)?;
        }
        // with 0 a row of equal values would be 0 / 0
        let epsilon = self.layer_norm.unwrap_or(1.0);
        number(
            "epsilon of the layer norm",
            "a finite number above 0",
            epsilon,
            finite(epsilon) && epsilon as f32 > 0.0,
        )?;
        for (what, p) in [("dropout", self.dropout), ("recurrent_dropout", self.recurrent_dropout)] {
            number(what, "at least 0 and below 1", p, (0.0..1.0).contains(&p))?;
        }
        if self.reverse && self.bidirectional.is_some() {
            return Err(Error::config("reverse of an LSTM", "one direction", "two"));
        }
        if self.proj_clip.is_some() && self.proj_size.is_none() {
            return Err(Error::config("proj_clip of an LSTM", "a proj_size", "none"));
        }
        if self.connection != Connection::Plain {
            for layer in 1..self.layers() {
                let (x, y) = (self.layer_input_size(layer), self.layer_output_size(layer));
                if x != y {
                    let wanted = format!("layer {layer} as wide as its input, {x}");
                    return Err(Error::config(format!("a {:?} connection of an LSTM", self.connection), wanted, y));
                }
            }
        }
        self.init.validate(self.bias != Bias::None)
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.hidden_sizes.len()
    }

    /// The directions of each layer.
    pub fn directions(&self) -> &'static [Direction] {
        self.ways().list()
    }

    /// The same, as the recurrence has them.
    pub(super) fn ways(&self) -> Directions {
        match (self.bidirectional, self.reverse) {
            (None, false) => Directions::One(Direction::Forward),
            (None, true) => Directions::One(Direction::Reverse),
            (Some(_), _) => Directions::Both,
        }
    }

    /// Columns of the output: those of the last layer's h, twice for two directions.
    pub fn output_size(&self) -> usize {
        self.state_sizes(self.layers().saturating_sub(1)).0 * self.directions().len()
    }

    /// Columns of h (P, or H without a projection) and of c (H) of a layer.
    pub fn state_sizes(&self, layer: usize) -> (usize, usize) {
        let hidden = self.hidden_sizes.get(layer).copied().unwrap_or(0);
        (self.proj_size.unwrap_or(hidden), hidden)
    }

    /// Columns of what layer `layer` reads.
    pub(crate) fn layer_input_size(&self, layer: usize) -> usize {
        match layer {
            0 => self.input_size,
            _ => self.layer_output_size(layer - 1),
        }
    }

    /// Columns of what the layer above reads.
    fn layer_output_size(&self, layer: usize) -> usize {
        let joined = if self.bidirectional == Some(Join::Layers) { 2 } else { 1 };
        self.state_sizes(layer).0.saturating_mul(joined)
    }

    /// Declares the parameters, those that PyTorch has under its names; initial values as [`LstmConfig::init`] says.
    ///
    /// | parameter | shape | |
    /// |---|---|---|
    /// | `weight_ih_l{k}[_reverse]` | `[4H, I]` | rows i, f, g, o |
    /// | `weight_hh_l{k}[_reverse]` | `[4H, P]` | P = H without a projection |
    /// | `bias_ih_l{k}[_reverse]`, `bias_hh_l{k}[_reverse]` | `[4H]` | [`Bias`] |
    /// | `weight_hr_l{k}[_reverse]` | `[P, H]` | `proj_size` |
    /// | `weight_peephole_l{k}[_reverse]` | `[3H]` | `peephole`: to i, f, o |
    /// | `layer_norm_l{k}[_reverse]` | `[2, 5H]` | `layer_norm`: gains, then shifts, of i, f, g, o, c |
    /// | `weight_highway_l{k}[_reverse]`, `bias_highway_l{k}[_reverse]` | `[D, D]`, `[D]` | [`Connection::Highway`] |
    pub fn declare(&self, parameters: &mut Parameters, name: &str, rng: &mut Rng) -> Result<super::Lstm> {
        self.validate()?;
        for (layer, hidden) in self.hidden_sizes.iter().copied().enumerate() {
            for direction in self.directions() {
                let names = ParameterNames::new(name, layer, *direction);
                let (input, (outputs, _)) = (self.layer_input_size(layer), self.state_sizes(layer));
                let gates = GATES * hidden;
                parameters.declare(names.weight_ih, &[gates, input], self.init.input_weight(rng, hidden, input))?;
                parameters.declare(
                    names.weight_hh,
                    &[gates, outputs],
                    self.init.recurrent_weight(rng, hidden, outputs),
                )?;
                if self.bias != Bias::None {
                    parameters.declare(names.bias_ih, &[gates], self.init.bias(rng, hidden, true))?;
                }
                if self.bias == Bias::Two {
                    parameters.declare(names.bias_hh, &[gates], self.init.bias(rng, hidden, false))?;
                }
                if self.proj_size.is_some() {
                    let weight = self.init.projection(rng, hidden, outputs);
                    parameters.declare(names.weight_hr, &[outputs, hidden], weight)?;
                }
                if self.peephole {
                    let weight = rng.vector(3 * hidden, init::bound(hidden));
                    parameters.declare(names.weight_peephole, &[3 * hidden], weight)?;
                }
                if self.layer_norm.is_some() {
                    let mut weight = vec![1.0; NORMS * hidden];
                    weight.resize(2 * NORMS * hidden, 0.0);
                    parameters.declare(names.layer_norm, &[2, NORMS * hidden], weight)?;
                }
                let joined = *direction == Direction::Reverse && self.bidirectional == Some(Join::Layers);
                if self.connection == Connection::Highway && layer > 0 && !joined {
                    let weight = rng.vector(input * input, init::bound(input));
                    parameters.declare(names.weight_highway, &[input, input], weight)?;
                    parameters.declare(names.bias_highway, &[input], vec![1.0; input])?;
                }
            }
        }
        parameters.note_config("LstmConfig", name, self)?;
        Ok(super::Lstm { config: self.clone(), name: name.to_string() })
    }
}

/// Names of the parameters of one layer and direction.
pub(super) struct ParameterNames {
    pub weight_ih: String,
    pub weight_hh: String,
    pub bias_ih: String,
    pub bias_hh: String,
    pub weight_hr: String,
    pub weight_peephole: String,
    pub layer_norm: String,
    pub weight_highway: String,
    pub bias_highway: String,
}

impl ParameterNames {
    pub fn new(prefix: &str, layer: usize, direction: Direction) -> Self {
        let suffix = if direction == Direction::Reverse { "_reverse" } else { "" };
        let name = |kind: &str| path(prefix, &format!("{kind}_l{layer}{suffix}"));
        ParameterNames {
            weight_ih: name("weight_ih"),
            weight_hh: name("weight_hh"),
            bias_ih: name("bias_ih"),
            bias_hh: name("bias_hh"),
            weight_hr: name("weight_hr"),
            weight_peephole: name("weight_peephole"),
            layer_norm: name("layer_norm"),
            weight_highway: name("weight_highway"),
            bias_highway: name("bias_highway"),
        }
    }
}
