//! Shared by the tests: devices, random values, models.
#![allow(dead_code, unused_imports)]

use everloop::layers::{Bias, Connection, Dropout, Join, LstmConfig, LstmInputs, LstmState};
use everloop::plan::{Kind, Storage};
use everloop::{Device, Dtype, Error, Parameters, Plan, Recorder, Result, Rng, Tensor, Workspace, loss};
use std::sync::OnceLock;

/// The GPU of this machine, shared by all tests of a binary (kernels are built once). Without one it says
/// that the test is skipped, and fails where `EVERLOOP_REQUIRE_GPU=1` asks for one.
pub fn gpu() -> Option<Device> {
    static GPU: OnceLock<Option<Device>> = OnceLock::new();
    let device = GPU.get_or_init(|| match Device::gpu() {
        Ok(device) => {
            println!("GPU tests run on {device}");
            Some(device)
        }
        Err(error) => {
            assert!(std::env::var("EVERLOOP_REQUIRE_GPU").as_deref() != Ok("1"), "a GPU is required: {error}");
            None
        }
    });
    if device.is_none() {
        eprintln!("skipped: no GPU adapter on this machine");
    }
    device.clone()
}

pub use everloop::instruments::F32;

/// Fills every slot that holds floats with random values, what steps will write included.
pub fn fill_random(workspace: &mut Workspace, rng: &mut Rng, bound: f64) -> Result<()> {
    let plan = workspace.plan().clone();
    for slot in plan.slots() {
        let tensor = plan.tensor(&slot.name)?;
        match slot.kind {
            Kind::Tokens { vocab_size, .. } => {
                let ids: Vec<u32> = (0..slot.len()).map(|_| rng.below(vocab_size) as u32).collect();
                workspace.write_tokens(&tensor, &ids)?;
            }
            Kind::Lengths { steps } => {
                let lengths: Vec<u32> = (0..slot.len()).map(|_| rng.below(steps + 1) as u32).collect();
                workspace.write_lengths(&tensor, &lengths)?;
            }
            Kind::State if slot.dtype == Dtype::U32 => workspace.write_count(&tensor, 3)?,
            _ if slot.storage == Storage::Own => workspace.write(&tensor, &rng.vector(slot.len(), bound))?,
            _ => {}
        }
    }
    Ok(())
}

/// A model drawn at random: an LSTM of any form, a dense layer, a cross-entropy over all steps.
#[derive(Debug, Clone)]
pub struct Model {
    pub config: LstmConfig,
    pub batch: usize,
    pub steps: usize,
    pub classes: usize,
    /// Starts from a given state.
    pub state: bool,
    /// Rows have lengths.
    pub lengths: bool,
    /// Drops values, where the configuration says so.
    pub dropout: bool,
    /// The loss reaches every c.
    pub cells: bool,
    /// One row without a batch.
    pub unbatched: bool,
}

impl Model {
    pub fn random(rng: &mut Rng, hidden: usize, batch: usize, steps: usize) -> Model {
        let mut size = |most: usize| 1 + rng.below(most);
        let (input, layers) = (size(20), size(3));
        let mut sizes: Vec<usize> = (0..layers).map(|_| size(hidden)).collect();
        let mut one_in = |n: usize| rng.below(n) == 0;
        let connection = match (one_in(6), one_in(6)) {
            (true, _) => Connection::Residual,
            (_, true) => Connection::Highway,
            _ => Connection::Plain,
        };
        if connection != Connection::Plain {
            sizes = vec![sizes[0]; layers];
        }
        let mut config = LstmConfig::new(input, 1).with_hidden_sizes(&sizes).with_connection(connection);
        config.bidirectional = match (one_in(3), one_in(2)) {
            (true, _) => Some(Join::Layers),
            (_, true) => Some(Join::Stacks),
            _ => None,
        };
        config.bias = match (one_in(5), one_in(3)) {
            (true, _) => Bias::None,
            (_, true) => Bias::One,
            _ => Bias::Two,
        };
        config.forget_bias = if one_in(2) { 1.0 } else { 0.0 };
        config.peephole = one_in(4);
        config.coupled = one_in(5);
        config.cell_clip = one_in(5).then_some(0.3);
        config.layer_norm = one_in(4).then_some(1.0);
        config.batch_first = one_in(4);
        if one_in(3) {
            config.proj_size = Some(1 + rng.below(hidden));
            config.proj_clip = (rng.below(3) == 0).then_some(0.2);
        }
        let mut one_in = |n: usize| rng.below(n) == 0;
        let [state, lengths, dropout, cells, unbatched] = [one_in(2), one_in(3), one_in(3), one_in(4), one_in(8)];
        if dropout {
            (config.dropout, config.recurrent_dropout) = (0.3, if one_in(2) { 0.2 } else { 0.0 });
            config.variational = one_in(2);
        }
        let (batch, steps) = (if unbatched { 1 } else { 1 + rng.below(batch) }, 1 + rng.below(steps));
        // a norm makes small pre-activations large: over many steps the recurrence is then chaotic, and rounding grows
        // a hundredfold in twenty steps on every device; an epsilon of 1 bounds that
        if config.layer_norm.is_some() && steps <= 8 {
            config.layer_norm = Some(0.1);
        }
        // a value within rounding of a clip's limit takes either branch, and of many some do
        if hidden * batch * steps > 2_000 {
            (config.cell_clip, config.proj_clip) = (None, None);
        }
        let classes = 2 + rng.below(9);
        config.reverse = config.bidirectional.is_none() && rng.below(4) == 0;
        Model { config, batch, steps, classes, state, lengths, dropout, cells, unbatched }
    }

    /// Whether one of its derivatives jumps.
    pub fn clips(&self) -> bool {
        self.config.cell_clip.is_some() || self.config.proj_clip.is_some()
    }

    /// Of one configuration, over 2 rows and 5 steps with given states.
    pub fn of(config: LstmConfig) -> Model {
        Model {
            config,
            batch: 2,
            steps: 5,
            classes: 3,
            state: true,
            lengths: false,
            dropout: false,
            cells: false,
            unbatched: false,
        }
    }

    /// Parameters and the plan of forward and backward, with gradients for x and the initial state;
    /// the loss also reaches the final state of every layer and direction.
    pub fn record(&self, rng: &mut Rng) -> Result<(Parameters, Plan)> {
        let mut parameters = Parameters::new();
        let lstm = self.config.declare(&mut parameters, "lstm", rng)?;
        // gains and shifts that are not all the same
        let names = parameters.iter().map(|parameter| parameter.name.to_string());
        let norms: Vec<String> = names.filter(|name| name.contains("layer_norm")).collect();
        for name in norms {
            let mut values = parameters.get(&name)?.to_vec();
            values.iter_mut().for_each(|v| *v = 0.5 * *v + rng.symmetric(0.3));
            parameters.set(&name, &values)?;
        }
        let dense = everloop::layers::DenseConfig::new(self.config.output_size(), self.classes);
        let dense = dense.declare(&mut parameters, "linear", rng)?;
        let mut rec = Recorder::new(&parameters);
        let shape = match (self.unbatched, self.config.batch_first) {
            (true, _) => vec![self.steps, self.config.input_size],
            (false, true) => vec![self.batch, self.steps, self.config.input_size],
            (false, false) => vec![self.steps, self.batch, self.config.input_size],
        };
        let x = rec.input("x", &shape)?;
        rec.want_gradient(&x)?;
        let lengths = match self.lengths {
            true => Some(rec.lengths("lengths", self.batch, self.steps)?),
            false => None,
        };
        let dropout = if self.dropout { Some(Dropout::record(&mut rec, "dropout.step", 77)?) } else { None };
        let mut initial = Vec::new();
        for layer in 0..self.config.layers() {
            for direction in self.config.directions() {
                let mut input = |name: &str, columns: usize| -> Result<Tensor> {
                    let shape = if self.unbatched { vec![columns] } else { vec![self.batch, columns] };
                    let tensor = rec.input(&format!("{name}.{layer}.{direction:?}"), &shape)?;
                    rec.want_gradient(&tensor)?;
                    Ok(tensor)
                };
                let (outputs, hidden) = self.config.state_sizes(layer);
                initial.push(LstmState { h: input("h0", outputs)?, c: input("c0", hidden)? });
            }
        }
        let inputs = LstmInputs {
            initial: self.state.then_some(&initial[..]),
            lengths: lengths.as_ref(),
            dropout: dropout.as_ref(),
            masks: None,
            cells: self.cells,
        };
        let out = lstm.record_with(&mut rec, &x, inputs)?;
        let logits = dense.record(&mut rec, &out.output)?;
        let targets = rec.targets("targets", &logits.shape()[..logits.shape().len() - 1], self.classes)?;
        let mut total = loss::softmax_cross_entropy(&mut rec, "entropy", &logits, &targets)?.loss;
        let mut reached = vec![out.state[0].c.clone(), out.state[out.state.len() - 1].h.clone()];
        reached.extend(out.cells);
        for (index, tensor) in reached.iter().enumerate() {
            let wanted = rec.input(&format!("wanted.{index}"), tensor.shape())?;
            let squared = loss::mean_squared_error(&mut rec, &format!("squared.{index}"), tensor, &wanted)?;
            let name = if index + 1 == reached.len() { "loss".into() } else { format!("loss.{index}") };
            total = everloop::layers::add(&mut rec, &name, &total, &squared)?;
        }
        rec.backward(&total)?;
        Ok((parameters.clone(), rec.finish()))
    }

    /// Random inputs into a workspace of this model's plan.
    pub fn write(&self, workspace: &mut Workspace, rng: &mut Rng) -> Result<()> {
        let plan = workspace.plan().clone();
        for slot in plan.slots() {
            let tensor = plan.tensor(&slot.name)?;
            match slot.kind {
                Kind::State if slot.dtype == Dtype::U32 => workspace.write_count(&tensor, 3)?,
                Kind::Lengths { steps } => {
                    let lengths: Vec<u32> = (0..slot.len()).map(|_| rng.below(steps + 1) as u32).collect();
                    workspace.write_lengths(&tensor, &lengths)?;
                }
                Kind::Input => workspace.write(&tensor, &rng.vector(slot.len(), 1.0))?,
                Kind::Tokens { vocab_size, .. } => {
                    let ids: Vec<u32> = (0..slot.len()).map(|_| rng.below(vocab_size) as u32).collect();
                    workspace.write_tokens(&tensor, &ids)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether an error is one of another variant than wanted, with its text.
pub fn text(error: Error) -> String {
    error.to_string()
}
