//! Stacks of LSTM layers in one or two directions.

use super::config::{Connection, Join, LstmConfig, ParameterNames};
use super::dropout::{Dropout, Place};
use super::layer::{self, Inputs, LstmState, Outputs, slots};
use crate::error::{Error, Result};
use crate::kernels::copy_columns::{self, Rows};
use crate::layers::ops::{self, concatenate_rows};
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

/// What an [`Lstm`] reads beside x; all may be left out.
///
/// Lists have an entry for each layer and direction: layer by layer, forward before reverse.
#[derive(Debug, Clone, Copy, Default)]
pub struct LstmInputs<'a> {
    /// States to start from; zero if left out.
    pub initial: Option<&'a [LstmState]>,
    /// How many steps each batch row has, `[B]`, in any order: a slot of
    /// [`Recorder::tokens`](crate::Recorder::tokens) below T + 1. Past its end a row gives exact zeros and takes no
    /// gradient, whatever its input holds there; its final state is that of its own end, where the reverse direction
    /// starts. A row of length 0 gives zeros and the initial state.
    pub lengths: Option<&'a Tensor>,
    /// Drops values as the configuration says; without it nothing is dropped.
    pub dropout: Option<&'a Dropout>,
    /// What g is multiplied by, time first in any case: `[T, B, H]` or `[B, H]`, in place of masks drawn by `dropout`.
    pub masks: Option<&'a [Tensor]>,
    /// Also give every c.
    pub cells: bool,
}

/// What an [`Lstm`] leaves behind.
#[derive(Debug, Clone)]
pub struct LstmOutput {
    /// h of the last layer at every step, `[T, B, D P]`: forward direction first. (With `batch_first`
    /// `[B, T, D P]`, of an input without a batch `[T, D P]`; P = H without a projection.)
    pub output: Tensor,
    /// Final state of each layer and direction, in PyTorch's order: layer by layer, forward before reverse.
    pub state: Vec<LstmState>,
    /// Where [`LstmInputs::cells`] asked for it: c of each layer and direction at every step, laid out as `output`,
    /// in the order of `state`.
    pub cells: Vec<Tensor>,
}

impl LstmOutput {
    /// Copies the final state to the slots `initial` that the LSTM was recorded from, so that the next run of the plan
    /// goes on where this one ends. (No gradient flows from one run into another.) Errors: a target that is not a whole
    /// input of the plan and of the state's shape.
    pub fn carry(&self, rec: &mut Recorder<'_>, initial: &[LstmState]) -> Result<()> {
        if initial.len() != self.state.len() {
            let (wanted, found) = (self.state.len().to_string(), initial.len());
            return Err(Error::config("states to carry an LSTM's state to", wanted, found));
        }
        let pairs = || self.state.iter().zip(initial).flat_map(|(from, to)| [(&from.h, &to.h), (&from.c, &to.c)]);
        for (from, to) in pairs() {
            rec.check_input("carrying the state of an LSTM", to)?;
            if from.shape() != to.shape() {
                let wanted = format!("{:?}", from.shape());
                return Err(Error::shape("carrying the state of an LSTM", wanted, to.shape()));
            }
        }
        pairs().try_for_each(|(from, to)| copy_columns::record(rec, (from, 0), (to, 0), from.columns(), false))
    }
}

impl Lstm {
    /// Records the LSTM over `x [T, B, I]`, from a given state or from zero: [`Lstm::record_with`] for the plain case.
    pub fn record(&self, rec: &mut Recorder<'_>, x: &Tensor, initial: Option<&[LstmState]>) -> Result<LstmOutput> {
        self.record_with(rec, x, LstmInputs { initial, ..LstmInputs::default() })
    }

    /// Records the LSTM over `x [T, B, I]` (with `batch_first` `[B, T, I]`), or `[T, I]` for one row without a batch.
    ///
    /// Gradients reach x and the initial state where they are wanted. Errors: shapes that do not fit, a wrong number
    /// of states or masks, lengths that may exceed T.
    pub fn record_with(&self, rec: &mut Recorder<'_>, x: &Tensor, inputs: LstmInputs<'_>) -> Result<LstmOutput> {
        let config = &self.config;
        config.validate()?;
        let (layers, directions) = (config.layers(), config.directions());
        let count = layers * directions.len();
        for (what, found) in
            [("initial states", inputs.initial.map(<[_]>::len)), ("masks", inputs.masks.map(<[_]>::len))]
        {
            if let Some(found) = found.filter(|found| *found != count) {
                return Err(Error::config(format!("{what} of the LSTM `{}`", self.name), count.to_string(), found));
            }
        }
        let unbatched = x.shape().len() == 2;
        let batch_first = config.batch_first && !unbatched;
        let (steps, batch) = self.sizes(x)?;
        if let Some(lengths) = inputs.lengths {
            rec.check_ids(&format!("recording the lengths of the LSTM `{}`", self.name), lengths, steps + 1, false)?;
        }
        let name = &rec.instance(if self.name.is_empty() { "lstm" } else { &self.name });
        // time first, and clean past the ends: what is there may be anything
        let rows = Rows {
            batch,
            source_batch_first: batch_first,
            target_batch_first: false,
            lengths: inputs.lengths.cloned(),
        };
        let rows = (batch_first || inputs.lengths.is_some()).then_some(rows);
        let shape = [steps, batch, config.input_size];
        let x = match unbatched {
            true => x.reshape(&shape)?,
            false => x.clone(),
        };
        let x = concatenate_rows(rec, &format!("{name}.x"), &[&x], &shape[..2], rows.as_ref())?;
        let rows = rows.map(|rows| rows.reversed());

        let user = inputs.dropout.map_or(0, Dropout::user);
        let mut state: Vec<Option<Outputs>> = (0..count).map(|_| None).collect();
        let mut one = |rec: &mut Recorder<'_>, layer: usize, direction: Direction, x: &Tensor| -> Result<Tensor> {
            let index = layer * directions.len() + (direction == Direction::Reverse) as usize;
            let mut initial = inputs.initial.map(|states| states[index].clone());
            if let (true, Some(state)) = (unbatched, &mut initial) {
                for tensor in [&mut state.h, &mut state.c] {
                    if let [len] = *tensor.shape() {
                        *tensor = tensor.reshape(&[1, len])?;
                    }
                }
            }
            let mask = match (inputs.masks, inputs.dropout) {
                (Some(masks), _) => Some(masks[index].clone()),
                (None, Some(dropout)) => {
                    let shape = [steps, batch, config.hidden_sizes[layer]];
                    let place = Place { layer, direction, recurrent: true };
                    dropout.mask(rec, (name, user, place), config.recurrent_dropout, &shape, config.variational)?
                }
                (None, None) => None,
            };
            let inputs = Inputs { x, initial, lengths: inputs.lengths, mask };
            let outputs = layer::record(rec, (&self.name, name, config), (layer, direction), inputs)?;
            let h = outputs.h.clone();
            state[index] = Some(outputs);
            Ok(h)
        };
        // from one layer to the next: the connection around it, and values dropped on the way up
        let above = |rec: &mut Recorder<'_>, layer: usize, direction: Direction, x: &Tensor, y: Tensor| {
            let y = if layer > 0 { self.connect(rec, name, (layer, direction), x, y)? } else { y };
            match inputs.dropout {
                Some(dropout) if layer + 1 < layers => {
                    let place = Place { layer, direction, recurrent: false };
                    match dropout.mask(rec, (name, user, place), config.dropout, y.shape(), config.variational)? {
                        Some(mask) => {
                            ops::multiply(rec, &format!("{}.dropped", slots(name, layer, direction)), &y, &mask)
                        }
                        None => Ok(y),
                    }
                }
                _ => Ok(y),
            }
        };
        let mut parts = Vec::new();
        match config.bidirectional {
            Some(Join::Layers) => {
                let mut x = x;
                for layer in 0..layers {
                    let forward = one(rec, layer, Direction::Forward, &x)?;
                    let reverse = one(rec, layer, Direction::Reverse, &x)?;
                    // the last layer's directions are joined in the copy that makes the output
                    if layer + 1 == layers && (layer == 0 || config.connection == Connection::Plain) {
                        parts = vec![forward, reverse];
                        break;
                    }
                    let joined = ops::concatenate(rec, &format!("{name}.{layer}.joined"), &[&forward, &reverse])?;
                    x = above(rec, layer, Direction::Forward, &x, joined)?;
                    parts = vec![x.clone()];
                }
            }
            _ => {
                for direction in directions {
                    let mut x = x.clone();
                    for layer in 0..layers {
                        let y = one(rec, layer, *direction, &x)?;
                        x = above(rec, layer, *direction, &x, y)?;
                    }
                    parts.push(x);
                }
            }
        }
        let lead = if batch_first { [batch, steps] } else { [steps, batch] };
        let finish = |rec: &mut Recorder<'_>, slot: String, parts: &[&Tensor]| -> Result<Tensor> {
            let made = concatenate_rows(rec, &slot, parts, &lead, rows.as_ref())?;
            if unbatched { made.reshape(&[steps, made.columns()]) } else { Ok(made) }
        };
        let joined = match config.bidirectional {
            Some(Join::Layers) if parts.len() > 1 => format!("{name}.{}.joined", layers - 1),
            Some(Join::Stacks) => format!("{name}.joined"),
            _ => format!("{name}.output"),
        };
        let output = finish(rec, joined, &parts.iter().collect::<Vec<_>>())?;
        let mut result = LstmOutput { output, state: Vec::new(), cells: Vec::new() };
        for (index, outputs) in state.into_iter().flatten().enumerate() {
            let mut last = outputs.last;
            if unbatched {
                last = LstmState { h: last.h.row(0)?, c: last.c.row(0)? };
            }
            result.state.push(last);
            if inputs.cells {
                let direction = directions[index % directions.len()];
                let place = slots(name, index / directions.len(), direction);
                result.cells.push(finish(rec, format!("{place}.cells"), &[&outputs.c])?);
            }
        }
        Ok(result)
    }

    /// `y`, or y connected to the layer's input x.
    fn connect(
        &self,
        rec: &mut Recorder<'_>,
        name: &str,
        (layer, direction): (usize, Direction),
        x: &Tensor,
        y: Tensor,
    ) -> Result<Tensor> {
        let place = slots(name, layer, direction);
        match self.config.connection {
            Connection::Plain => Ok(y),
            Connection::Residual => ops::add(rec, &format!("{place}.residual"), &y, x),
            Connection::Highway => {
                let names = ParameterNames::new(&self.name, layer, direction);
                ops::highway(rec, &format!("{place}.highway"), (&names.weight_highway, &names.bias_highway), x, &y)
            }
        }
    }

    /// T and B of an input.
    fn sizes(&self, x: &Tensor) -> Result<(usize, usize)> {
        let input_size = self.config.input_size;
        match (x.shape(), self.config.batch_first) {
            ([steps, columns], _) if *columns == input_size => Ok((*steps, 1)),
            ([steps, batch, columns], false) if *columns == input_size => Ok((*steps, *batch)),
            ([batch, steps, columns], true) if *columns == input_size => Ok((*steps, *batch)),
            (other, batch_first) => {
                let wanted = match batch_first {
                    true => format!("[B, T, {input_size}], batch first"),
                    false => format!("[T, B, {input_size}], time first"),
                };
                Err(Error::shape(format!("recording the input of the LSTM `{}`", self.name), wanted, other))
            }
        }
    }
}
