//! Sizes and options of an LSTM, and the names and shapes of its parameters.

use crate::error::{Error, Result};
use crate::layers::{check_count, check_size, path};
use crate::plan::Direction;
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

/// Sizes and options of an [`Lstm`](super::Lstm).
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
    /// Two directions, and how they are joined; `None` for one direction.
    pub bidirectional: Option<Join>,
    /// Whether there are biases (two vectors for each layer and direction, as in PyTorch); yes at first.
    pub bias: bool,
    /// Added to the forget gate's pre-activation, on top of the biases; 0 at first, as in PyTorch.
    /// TensorFlow and the series use 1.
    pub forget_bias: f64,
}

impl LstmConfig {
    /// One layer in one direction.
    pub fn new(input_size: usize, hidden_size: usize) -> Self {
        LstmConfig { input_size, hidden_sizes: vec![hidden_size], bidirectional: None, bias: true, forget_bias: 0.0 }
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

    /// Two directions, joined as told.
    pub fn with_bidirectional(self, join: Join) -> Self {
        LstmConfig { bidirectional: Some(join), ..self }
    }

    /// With or without biases.
    pub fn with_bias(self, bias: bool) -> Self {
        LstmConfig { bias, ..self }
    }

    /// With this forget bias.
    pub fn with_forget_bias(self, forget_bias: f64) -> Self {
        LstmConfig { forget_bias, ..self }
    }

    /// Errors: no layer, a size of zero, a forget bias that is not finite.
    pub fn validate(&self) -> Result<()> {
        check_size("input_size of an LSTM", self.input_size)?;
        check_size("layers of an LSTM", self.hidden_sizes.len())?;
        for size in &self.hidden_sizes {
            check_size("hidden_size of an LSTM", *size)?;
        }
        for (layer, hidden) in self.hidden_sizes.iter().enumerate() {
            check_count("a weight of an LSTM", &[4, *hidden, self.layer_input_size(layer).max(*hidden)])?;
        }
        match self.forget_bias.is_finite() {
            true => Ok(()),
            false => Err(Error::config("forget_bias of an LSTM", "a finite number", self.forget_bias)),
        }
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.hidden_sizes.len()
    }

    /// The directions of each layer.
    pub fn directions(&self) -> &'static [Direction] {
        match self.bidirectional {
            None => &[Direction::Forward],
            Some(_) => &[Direction::Forward, Direction::Reverse],
        }
    }

    /// Columns of the output: the last hidden size, twice for two directions.
    pub fn output_size(&self) -> usize {
        self.hidden_sizes.last().copied().unwrap_or(0) * self.directions().len()
    }

    /// Columns of what layer `layer` reads.
    pub(super) fn layer_input_size(&self, layer: usize) -> usize {
        match (layer, self.bidirectional) {
            (0, _) => self.input_size,
            (_, Some(Join::Layers)) => self.hidden_sizes[layer - 1].saturating_mul(2),
            _ => self.hidden_sizes[layer - 1],
        }
    }
}

/// PyTorch's names of one layer and direction.
pub(super) struct ParameterNames {
    pub weight_ih: String,
    pub weight_hh: String,
    pub bias_ih: String,
    pub bias_hh: String,
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
        }
    }
}
