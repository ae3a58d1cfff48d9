//! Stacks of LSTM layers in one or two directions.

use super::config::{Join, LstmConfig};
use super::layer::{self, LstmState};
use crate::error::{Error, Result};
use crate::layers::ops::concatenate;
use crate::plan::{Direction, Tensor};
use crate::recorder::Recorder;

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
        let mut state: Vec<Option<LstmState>> = vec![None; count];
        let mut one = |rec: &mut Recorder<'_>, layer: usize, direction: Direction, x: &Tensor| -> Result<Tensor> {
            let index = layer * directions.len() + (direction == Direction::Reverse) as usize;
            let initial = initial.map(|states| &states[index]);
            let (output, last) = layer::record(rec, (&self.name, &self.config), (layer, direction), x, initial)?;
            state[index] = Some(last);
            Ok(output)
        };
        let name = if self.name.is_empty() { "lstm" } else { &self.name };
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
