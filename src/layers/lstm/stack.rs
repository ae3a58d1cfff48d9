//! Stacks of LSTM layers in one or two directions.

use super::config::{Join, LstmConfig, ParameterNames};
use super::layer::{self, LstmState};
use crate::error::{Error, Result};
use crate::kernels::lstm_forward::GATES;
use crate::layers::ops::concatenate;
use crate::parameters::Parameters;
use crate::plan::{Direction, Tensor};
use crate::recorder::Recorder;
use crate::rng::Rng;

/// A declared LSTM: layers, directions, and how they are joined.
#[derive(Debug, Clone, PartialEq)]
pub struct Lstm {
    /// Sizes and options.
    pub config: LstmConfig,
    /// Prefix of its parameters and slots.
    pub name: String,
}

/// What an [`Lstm`] leaves behind.
#[derive(Debug, Clone)]
pub struct LstmOutput {
    /// h of the last layer at every step, `[T, B, D H]`: forward direction first.
    pub output: Tensor,
    /// Final state of each layer and direction, in PyTorch's order: layer by layer, forward before reverse.
    pub state: Vec<LstmState>,
}

impl LstmConfig {
    /// Declares the parameters under PyTorch's names, `name.weight_ih_l0` and so on, uniform in
    /// +-1/sqrt(H) as in PyTorch.
    ///
    /// | parameter | shape |
    /// |---|---|
    /// | `weight_ih_l{k}[_reverse]` | `[4H, I]`, rows i, f, g, o |
    /// | `weight_hh_l{k}[_reverse]` | `[4H, H]` |
    /// | `bias_ih_l{k}[_reverse]`, `bias_hh_l{k}[_reverse]` | `[4H]` |
    pub fn declare(&self, parameters: &mut Parameters, name: &str, rng: &mut Rng) -> Result<Lstm> {
        self.validate()?;
        for (layer, hidden) in self.hidden_sizes.iter().copied().enumerate() {
            let bound = 1.0 / (hidden as f64).sqrt();
            for direction in self.directions() {
                let names = ParameterNames::new(name, layer, *direction);
                for (name, shape) in [
                    (names.weight_ih, vec![GATES * hidden, self.layer_input_size(layer)]),
                    (names.weight_hh, vec![GATES * hidden, hidden]),
                    (names.bias_ih, vec![GATES * hidden]),
                    (names.bias_hh, vec![GATES * hidden]),
                ] {
                    if self.bias || shape.len() == 2 {
                        parameters.declare(name, &shape, rng.vector(shape.iter().product(), bound))?;
                    }
                }
            }
        }
        Ok(Lstm { config: self.clone(), name: name.to_string() })
    }
}

impl Lstm {
    /// Records the LSTM over `x [T, B, I]`.
    ///
    /// `initial` holds a state for each layer and direction, layer by layer, forward before reverse;
    /// `None` starts from zero. Gradients reach x and the initial state where they are wanted.
    pub fn record(&self, rec: &mut Recorder<'_>, x: &Tensor, initial: Option<&[LstmState]>) -> Result<LstmOutput> {
        let (layers, directions) = (self.config.layers(), self.config.directions());
        let count = layers * directions.len();
        if let Some(states) = initial.filter(|states| states.len() != count) {
            let what = format!("initial states of the LSTM `{}`", self.name);
            return Err(Error::config(what, count.to_string(), states.len()));
        }
        let name = &rec.instance(if self.name.is_empty() { "lstm" } else { &self.name });
        let mut state: Vec<Option<LstmState>> = vec![None; count];
        let mut one = |rec: &mut Recorder<'_>, layer: usize, direction: Direction, x: &Tensor| -> Result<Tensor> {
            let index = layer * directions.len() + (direction == Direction::Reverse) as usize;
            let initial = initial.map(|states| &states[index]);
            let (output, last) = layer::record(rec, (&self.name, name, &self.config), (layer, direction), x, initial)?;
            state[index] = Some(last);
            Ok(output)
        };
        let output = match self.config.bidirectional {
            None => (0..layers).try_fold(x.clone(), |x, layer| one(rec, layer, Direction::Forward, &x))?,
            Some(Join::Layers) => (0..layers).try_fold(x.clone(), |x, layer| {
                let forward = one(rec, layer, Direction::Forward, &x)?;
                let reverse = one(rec, layer, Direction::Reverse, &x)?;
                concatenate(rec, &format!("{name}.{layer}.joined"), &[&forward, &reverse])
            })?,
            Some(Join::Stacks) => {
                let forward = (0..layers).try_fold(x.clone(), |x, layer| one(rec, layer, Direction::Forward, &x))?;
                let reverse = (0..layers).try_fold(x.clone(), |x, layer| one(rec, layer, Direction::Reverse, &x))?;
                concatenate(rec, &format!("{name}.joined"), &[&forward, &reverse])?
            }
        };
        Ok(LstmOutput { output, state: state.into_iter().flatten().collect() })
    }
}
