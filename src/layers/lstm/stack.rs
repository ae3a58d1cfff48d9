//! Stacks of LSTM layers in one or two directions.

use super::config::{Connection, Join, LstmConfig};
use super::dropout::{Dropout, Place};
use super::layer::{self, At, Inputs, LstmState, Outputs};
use crate::error::{Error, Result, ensure, same_shape};
use crate::kernels::copy_columns::{self, BatchRows};
use crate::layers::ops::{self, concatenate_rows};
use crate::recorder::{Recorder, Target};
use crate::tensor::Tensor;
use crate::time::Direction;
use crate::weights::tables::HIGHWAY;

/// A declared LSTM: layers, directions, and how they are joined.
///
/// ```
/// # use everloop::{Parameters, Recorder, Rng, layers::{Join, LstmConfig}};
/// # fn main() -> everloop::Result<()> {
/// let mut parameters = Parameters::new();
/// let config = LstmConfig::new(3, 5).with_layers(2).with_bidirectional(Join::Layers);
/// let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(1))?;
/// let mut rec = Recorder::new(&parameters);
/// let x = rec.input("x", &[4, 2, 3])?; // [T, B, I]
/// let made = lstm.record(&mut rec, &x, None)?;
/// assert_eq!(made.output.shape(), [4, 2, 10]); // [T, B, 2 H]
/// assert_eq!(made.state.len(), 4); // two layers, two directions
/// # Ok(()) }
/// ```
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
///
/// ```
/// # use everloop::{Parameters, Recorder, Rng, layers::{LstmConfig, LstmInputs}};
/// # fn main() -> everloop::Result<()> {
/// # let mut parameters = Parameters::new();
/// # let lstm = LstmConfig::new(3, 5).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
/// # let mut rec = Recorder::new(&parameters);
/// # let x = rec.input("x", &[4, 2, 3])?;
/// let lengths = rec.lengths("lengths", 2, 4)?;
/// let inputs = LstmInputs { lengths: Some(&lengths), cells: true, ..LstmInputs::default() };
/// let made = lstm.record_with(&mut rec, &x, inputs)?;
/// assert_eq!(made.cells[0].shape(), [4, 2, 5]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct LstmInputs<'a> {
    /// States to start from; zero if left out.
    pub initial: Option<&'a [LstmState]>,
    /// How many steps each batch row has, `[B]`, in any order: a slot of
    /// [`Recorder::lengths`](crate::Recorder::lengths). Past its end a row gives exact zeros and takes no
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
///
/// [`LstmInputs`] has an example.
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
        let (wanted, found) = (self.state.len(), initial.len());
        ensure!(wanted == found, Error::config("states to carry an LSTM's state to", wanted.to_string(), found));
        let pairs = || self.state.iter().zip(initial).flat_map(|(from, to)| [(&from.h, &to.h), (&from.c, &to.c)]);
        for (from, to) in pairs() {
            rec.check_target("carrying the state of an LSTM", to)?;
            same_shape("carrying the state of an LSTM", from.shape(), to.shape())?;
        }
        rec.attempt(|rec| pairs().try_for_each(|(from, to)| copy_columns::record(rec, from, &Target::replace(to))))
    }
}

impl Lstm {
    /// Records the LSTM over `x [T, B, I]`, from a given state or from zero: [`Lstm::record_with`] for the plain case.
    /// Errors as there.
    pub fn record(&self, rec: &mut Recorder<'_>, x: &Tensor, initial: Option<&[LstmState]>) -> Result<LstmOutput> {
        self.record_with(rec, x, LstmInputs { initial, ..LstmInputs::default() })
    }

    /// Records the LSTM over `x [T, B, I]` (with `batch_first` `[B, T, I]`), or `[T, I]` for one row without a batch.
    ///
    /// Gradients reach x and the initial state where they are wanted. Errors: shapes that do not fit, a wrong number
    /// of states or masks, lengths that may exceed T.
    pub fn record_with(&self, rec: &mut Recorder<'_>, x: &Tensor, inputs: LstmInputs<'_>) -> Result<LstmOutput> {
        rec.attempt(|rec| self.record_all(rec, x, inputs))
    }

    fn record_all(&self, rec: &mut Recorder<'_>, x: &Tensor, inputs: LstmInputs<'_>) -> Result<LstmOutput> {
        let config = &self.config;
        let (steps, batch) = self.check(rec, x, &inputs)?;
        let (layers, directions) = (config.layers(), config.directions());
        let unbatched = x.shape().len() == 2;
        let batch_first = config.batch_first && !unbatched;
        let place = &rec.instance(if self.name.is_empty() { "lstm" } else { &self.name });
        let at = |layer: usize| At { name: &self.name, place, config, layer };
        // time first, and clean past the ends: what is there may be anything
        let lengths = inputs.lengths.cloned();
        let rows = BatchRows { batch, source_batch_first: batch_first, target_batch_first: false, lengths };
        let rows = (batch_first || inputs.lengths.is_some()).then_some(rows);
        let shape = [steps, batch, config.input_size];
        let x = if unbatched { x.reshape(&shape)? } else { x.clone() };
        let x = concatenate_rows(rec, &format!("{place}.x"), &[&x], &shape[..2], rows.as_ref())?;
        let rows = rows.map(|rows| rows.reversed());

        let user = inputs.dropout.map_or(0, |dropout| dropout.user(rec));
        let (mut made, mut states): (Vec<Tensor>, Vec<(usize, Direction, Outputs)>) = (Vec::new(), Vec::new());
        let mut below = vec![x; directions.len()];
        for layer in 0..layers {
            let range = layer * directions.len()..(layer + 1) * directions.len();
            let initial = inputs.initial.map(|states| states[range.clone()].iter().map(batched).collect());
            let initial = initial.transpose()?;
            let mask = self.mask(rec, at(layer), &inputs, (user, steps, batch), range)?;
            let inputs_of = Inputs { x: &below, initial, lengths: inputs.lengths, mask };
            let outputs = layer::record(rec, at(layer), inputs_of)?;
            made = outputs.iter().map(|of| of.h.clone()).collect();
            states.extend(directions.iter().zip(outputs).map(|(direction, of)| (layer, *direction, of)));
            let above = |rec: &mut Recorder<'_>, direction: Direction, x: &Tensor, y: Tensor| {
                self.above(rec, at(layer), (user, direction), inputs.dropout, x, y)
            };
            // the last layer's directions are joined in the copy that makes the output
            let plain = layer == 0 || config.connection == Connection::Plain;
            if config.bidirectional == Some(Join::Layers) && !(layer + 1 == layers && plain) {
                let parts: Vec<_> = made.iter().collect();
                let joined = ops::concatenate(rec, &at(layer).slot(Direction::Forward, "joined"), &parts)?;
                let x = above(rec, Direction::Forward, &below[0], joined)?;
                (below, made) = (vec![x.clone(); directions.len()], vec![x]);
            } else if config.bidirectional != Some(Join::Layers) {
                let both = directions.iter().zip(&below).zip(made);
                made = both.map(|((direction, x), y)| above(rec, *direction, x, y)).collect::<Result<_>>()?;
                below = made.clone();
            }
        }
        let lead = if batch_first { [batch, steps] } else { [steps, batch] };
        let finish = |rec: &mut Recorder<'_>, slot: String, parts: &[&Tensor]| -> Result<Tensor> {
            let made = concatenate_rows(rec, &slot, parts, &lead, rows.as_ref())?;
            if unbatched { made.reshape(&[steps, made.columns()]) } else { Ok(made) }
        };
        let joined = match config.bidirectional {
            Some(Join::Layers) if made.len() > 1 => at(layers - 1).slot(Direction::Forward, "joined"),
            Some(Join::Stacks) => format!("{place}.joined"),
            _ => format!("{place}.output"),
        };
        let output = finish(rec, joined, &made.iter().collect::<Vec<_>>())?;
        let mut result = LstmOutput { output, state: Vec::new(), cells: Vec::new() };
        for (layer, direction, outputs) in states {
            let LstmState { h, c } = outputs.last;
            result.state.push(if unbatched { LstmState { h: h.row(0)?, c: c.row(0)? } } else { LstmState { h, c } });
            if inputs.cells {
                result.cells.push(finish(rec, at(layer).slot(direction, "cells"), &[&outputs.c])?);
            }
        }
        Ok(result)
    }

    /// Checks the configuration, and what can be said of the inputs before anything is recorded; T and B.
    fn check(&self, rec: &Recorder<'_>, x: &Tensor, inputs: &LstmInputs<'_>) -> Result<(usize, usize)> {
        self.config.validate()?;
        let count = self.config.layers() * self.config.directions().len();
        let given = [("initial states", inputs.initial.map(<[_]>::len)), ("masks", inputs.masks.map(<[_]>::len))];
        for (what, found) in given {
            let (found, of) = (found.unwrap_or(count), format!("{what} of the LSTM `{}`", self.name));
            ensure!(found == count, Error::config(of, count.to_string(), found));
        }
        let (steps, batch) = self.sizes(x)?;
        if let Some(lengths) = inputs.lengths {
            let doing = format!("recording the lengths of the LSTM `{}`", self.name);
            rec.check_lengths(&doing, lengths, batch, steps)?;
        }
        Ok((steps, batch))
    }

    /// What g of a layer is multiplied by, `[D, T, B, H]` or `[D, B, H]`: masks given, or drawn, or none.
    fn mask(
        &self,
        rec: &mut Recorder<'_>,
        at: At<'_>,
        inputs: &LstmInputs<'_>,
        (user, steps, batch): (u32, usize, usize),
        range: std::ops::Range<usize>,
    ) -> Result<Option<Tensor>> {
        let (config, directions) = (&self.config, self.config.directions());
        let (name, hidden) = (at.slot(Direction::Forward, "recurrent_mask"), config.hidden_sizes[at.layer]);
        match (inputs.masks, inputs.dropout) {
            (Some(masks), _) => {
                let masks = &masks[range];
                let lead = |shape: &[usize]| [&[directions.len()], shape].concat();
                if let [mask] = masks {
                    return mask.reshape(&lead(mask.shape())).map(Some);
                }
                let all = rec.activation(&name, &lead(masks[0].shape()))?;
                for (d, mask) in masks.iter().enumerate() {
                    copy_columns::record(rec, mask, &Target::replace(&all.row(d)?))?;
                }
                Ok(Some(all))
            }
            (None, Some(dropout)) if config.recurrent_dropout > 0.0 => {
                let shape = match config.variational {
                    true => vec![directions.len(), batch, hidden],
                    false => vec![directions.len(), steps, batch, hidden],
                };
                let all = rec.activation(&name, &shape)?;
                for (d, direction) in directions.iter().enumerate() {
                    let place = Place { layer: at.layer, direction: *direction, recurrent: true };
                    dropout.record_mask(rec, (user, place), &all.row(d)?, config.recurrent_dropout)?;
                }
                Ok(Some(all))
            }
            _ => Ok(None),
        }
    }

    /// From one layer to the next: the connection around it, and values dropped on the way up.
    fn above(
        &self,
        rec: &mut Recorder<'_>,
        at: At<'_>,
        (user, direction): (u32, Direction),
        dropout: Option<&Dropout>,
        x: &Tensor,
        y: Tensor,
    ) -> Result<Tensor> {
        let config = &self.config;
        let y = if at.layer > 0 { self.connect(rec, at, direction, x, y)? } else { y };
        let Some(dropout) = dropout.filter(|_| at.layer + 1 < config.layers() && config.dropout > 0.0) else {
            return Ok(y);
        };
        let shape = if config.variational { &y.shape()[1..] } else { y.shape() };
        let mask = rec.activation(&at.slot(direction, "mask"), shape)?;
        let place = Place { layer: at.layer, direction, recurrent: false };
        dropout.record_mask(rec, (user, place), &mask, config.dropout)?;
        ops::multiply(rec, &at.slot(direction, "dropped"), &y, &mask)
    }

    /// `y`, or y connected to the layer's input x.
    fn connect(
        &self,
        rec: &mut Recorder<'_>,
        at: At<'_>,
        direction: Direction,
        x: &Tensor,
        y: Tensor,
    ) -> Result<Tensor> {
        match self.config.connection {
            Connection::Plain => Ok(y),
            Connection::Residual => ops::add(rec, &at.slot(direction, "residual"), &y, x),
            Connection::Highway => {
                let names = HIGHWAY.map(|kind| at.parameter(direction, kind));
                ops::highway(rec, &at.slot(direction, "highway"), &names, x, &y)
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

/// A state with its batch.
fn batched(state: &LstmState) -> Result<LstmState> {
    let of = |tensor: &Tensor| match *tensor.shape() {
        [len] => tensor.reshape(&[1, len]),
        _ => Ok(tensor.clone()),
    };
    Ok(LstmState { h: of(&state.h)?, c: of(&state.c)? })
}
