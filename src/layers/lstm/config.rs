//! Sizes and options of an LSTM, and the names and shapes of its parameters.

use super::init::{self, Init};
use crate::error::{Error, Result, ensure};
use crate::kernels::recurrence::CellOptions;
use crate::layers::{check_count, check_size, path};
use crate::options::options;
use crate::parameters::Parameters;
use crate::rng::Rng;
use crate::time::{Direction, Directions};
use crate::weights::tables::{HIGHWAY, Part, Sizes, name_in_stack};
use serde::{Deserialize, Serialize};

/// Where the two directions of a bidirectional stack meet.
///
/// ```
/// use everloop::layers::{Join, LstmConfig};
/// let config = LstmConfig::new(3, 4).with_layers(2).with_bidirectional(Join::Layers);
/// assert_eq!(config.output_size(), 8);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Join {
    /// After every layer: each layer above reads both directions (PyTorch).
    Layers,
    /// Only at the end: one full stack in each direction (TensorFlow's `bidirectional_dynamic_rnn` over
    /// `MultiRNNCell`, the Deep-Breathe series).
    Stacks,
}

/// The bias vectors of each layer and direction.
///
/// ```
/// use everloop::layers::{Bias, LstmConfig};
/// use everloop::{Parameters, Rng};
/// # fn main() -> everloop::Result<()> {
/// let mut parameters = Parameters::new();
/// LstmConfig::new(3, 4).with_bias(Bias::One).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
/// assert!(parameters.get("lstm.bias_ih_l0").is_ok() && parameters.get("lstm.bias_hh_l0").is_err());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Bias {
    /// None.
    None,
    /// `bias_ih` (TensorFlow, Keras).
    One,
    /// `bias_ih` and `bias_hh`, which are added (PyTorch, ONNX).
    #[default]
    Two,
}

/// How a layer above the first is connected to its input x; its output is y.
///
/// ```
/// use everloop::layers::{Connection, LstmConfig};
/// use everloop::{Parameters, Rng};
/// # fn main() -> everloop::Result<()> {
/// let mut parameters = Parameters::new();
/// let config = LstmConfig::new(4, 4).with_layers(2).with_connection(Connection::Highway);
/// config.declare(&mut parameters, "lstm", &mut Rng::new(1))?;
/// assert_eq!(parameters.entry("lstm.weight_highway_l1")?.shape, [4, 4]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Connection {
    /// y alone.
    #[default]
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
///
/// The default is PyTorch's, without a layer: [`LstmConfig::new`] brings the sizes that a valid one needs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
        LstmConfig { input_size, hidden_sizes: vec![hidden_size], ..Self::default() }
    }

    /// `layers` layers of the first one's hidden size.
    pub fn with_layers(self, layers: usize) -> Self {
        let hidden = self.hidden_sizes.first().copied().unwrap_or(0);
        LstmConfig { hidden_sizes: vec![hidden; layers], ..self }
    }

    options! {
        /// Layers of different hidden sizes.
        with_hidden_sizes(hidden_sizes: &[usize]) { hidden_sizes: hidden_sizes.to_vec() }
        /// A projection to `proj_size` columns.
        with_projection(proj_size: usize) { proj_size: Some(proj_size) }
        /// Two directions, joined as told.
        with_bidirectional(join: Join) { bidirectional: Some(join) }
        /// In one direction, from the last step to the first: ONNX's `reverse`, Keras' `go_backwards`. The output lies
        /// at the times of the input.
        with_reverse() { reverse: true }
        /// With these bias vectors.
        with_bias(bias: Bias) { bias: bias }
        /// With this forget bias.
        with_forget_bias(forget_bias: f64) { forget_bias: forget_bias }
        /// With peepholes.
        with_peephole() { peephole: true }
        /// With the forget gate `1 - i`.
        with_coupled_gates() { coupled: true }
        /// With c kept within plus and minus `limit`.
        with_cell_clip(limit: f64) { cell_clip: Some(limit) }
        /// With the projected h kept within plus and minus `limit`.
        with_proj_clip(limit: f64) { proj_clip: Some(limit) }
        /// With layer norms of this epsilon.
        with_layer_norm(epsilon: f64) { layer_norm: Some(epsilon) }
        /// With this probability of dropping values between layers.
        with_dropout(probability: f64) { dropout: probability }
        /// With this probability of dropping values of g.
        with_recurrent_dropout(probability: f64) { recurrent_dropout: probability }
        /// With one mask for all steps.
        with_variational_dropout() { variational: true }
        /// With this connection around each layer above the first.
        with_connection(connection: Connection) { connection: connection }
        /// With input and output `[B, T, ..]`.
        with_batch_first() { batch_first: true }
        /// With these initial values.
        with_init(init: Init) { init: init }
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
        // as f32, which is what a device computes in
        let finite: fn(f64) -> bool = |v| (v as f32).is_finite();
        let positive: fn(f64) -> bool = |v| (v as f32).is_finite() && v as f32 > 0.0;
        let probability: fn(f64) -> bool = |v| (0.0..1.0).contains(&v);
        for (what, value, wanted, good) in [
            ("forget_bias", Some(self.forget_bias), "a finite number", finite),
            ("cell_clip", self.cell_clip, "a finite number above 0", positive),
            ("proj_clip", self.proj_clip, "a finite number above 0", positive),
            // with 0 a row of equal values would be 0 / 0
            ("epsilon of the layer norm", self.layer_norm, "a finite number above 0", positive),
            ("dropout", Some(self.dropout), "at least 0 and below 1", probability),
            ("recurrent_dropout", Some(self.recurrent_dropout), "at least 0 and below 1", probability),
        ] {
            let value = value.unwrap_or(1.0);
            ensure!(good(value), Error::config(format!("{what} of an LSTM"), wanted, value));
        }
        let one_way = !self.reverse || self.bidirectional.is_none();
        ensure!(one_way, Error::config("reverse of an LSTM", "one direction", "two"));
        let clips = self.proj_clip.is_none() || self.proj_size.is_some();
        ensure!(clips, Error::config("proj_clip of an LSTM", "a proj_size", "none"));
        for layer in (1..self.layers()).filter(|_| self.connection != Connection::Plain) {
            let (x, y) = (self.layer_input_size(layer), self.layer_output_size(layer));
            let what = format!("a {:?} connection of an LSTM", self.connection);
            ensure!(x == y, Error::config(what, format!("layer {layer} as wide as its input, {x}"), y));
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

    /// Sizes of one direction of a layer.
    pub(crate) fn sizes(&self, layer: usize) -> Sizes {
        let (outputs, hidden) = self.state_sizes(layer);
        Sizes { directions: 1, input: self.layer_input_size(layer), hidden, outputs }
    }

    /// Whether there is such a part.
    pub(crate) fn has(&self, part: Part) -> bool {
        match part {
            Part::WeightIh | Part::WeightHh => true,
            Part::BiasIh => self.bias != Bias::None,
            Part::BiasHh => self.bias == Bias::Two,
            Part::Projection => self.proj_size.is_some(),
            Part::Peephole => self.peephole,
            Part::Norm => self.layer_norm.is_some(),
        }
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
    ///
    /// # Errors
    ///
    /// What [`validate`](Self::validate) refuses, and names that are taken.
    pub fn declare(&self, parameters: &mut Parameters, name: &str, rng: &mut Rng) -> Result<super::Lstm> {
        self.validate()?;
        for (layer, direction) in (0..self.layers()).flat_map(|k| self.directions().iter().map(move |d| (k, *d))) {
            let sizes = self.sizes(layer);
            let name = |kind: &str| path(name, &name_in_stack(kind, layer, direction));
            for part in Part::ALL.into_iter().filter(|part| self.has(*part)) {
                let values = self.init.values(rng, part, &sizes);
                parameters.declare(name(part.kind()), &part.shape(&sizes), values)?;
            }
            let joined = direction == Direction::Reverse && self.bidirectional == Some(Join::Layers);
            if self.connection == Connection::Highway && layer > 0 && !joined {
                let ([weight_name, bias_name], columns) = (HIGHWAY.map(name), sizes.input);
                let weight = rng.vector(columns * columns, init::bound(columns));
                parameters.declare(weight_name, &[columns, columns], weight)?;
                parameters.declare(bias_name, &[columns], vec![1.0; columns])?;
            }
        }
        parameters.note_config(name, self)?;
        Ok(super::Lstm { config: self.clone(), name: name.to_string() })
    }

    /// Every option of cell and stack that does not exclude another, for examinations: a new one is added here.
    #[doc(hidden)]
    pub fn with_everything(self) -> Self {
        self.with_bidirectional(Join::Layers)
            .with_projection(10)
            .with_proj_clip(0.2)
            .with_peephole()
            .with_cell_clip(0.6)
            .with_coupled_gates()
            .with_layer_norm(1e-2)
            .with_variational_dropout()
            .with_connection(Connection::Highway)
            .with_bias(Bias::One)
    }

    /// What neither names nor shapes of parameters tell, in words.
    pub(crate) const UNTOLD: &str = "batch first, dropout, activations, coupled gates, clips, residual connections, \
                                     a forget bias outside the vectors";

    /// The options that names and shapes do not tell, where they are not at their default. Numbers as
    /// Debug has them, which is short for every one.
    pub(crate) fn untold(&self) -> String {
        let is = |there: bool, option: &str| there.then(|| option.to_string());
        let number = |value: Option<f64>, option: &str| value.map(|value| format!("{option} {value:?}"));
        let not_zero = |value: f64| Some(value).filter(|value| *value != 0.0);
        let all = [
            is(self.batch_first, "batch first"),
            number(not_zero(self.forget_bias), "forget bias"),
            is(self.coupled, "coupled gates"),
            number(self.cell_clip, "cell clip"),
            number(self.proj_clip, "clip of the projection"),
            number(self.layer_norm, "epsilon"),
            is(self.connection == Connection::Residual, "residual connections"),
            number(not_zero(self.dropout), "dropout"),
            number(not_zero(self.recurrent_dropout), "recurrent dropout"),
            is(self.variational, "variational dropout"),
        ];
        let there: Vec<String> = all.into_iter().flatten().collect();
        if there.is_empty() { "no further options".to_string() } else { there.join(", ") }
    }

    /// The numbers and switches of the cell's rule.
    pub(super) fn cell(&self) -> CellOptions {
        let &LstmConfig { forget_bias, coupled, cell_clip, proj_clip: output_clip, layer_norm, .. } = self;
        CellOptions { forget_bias, coupled, cell_clip, output_clip, epsilon: layer_norm.unwrap_or(0.0) }
    }
}
