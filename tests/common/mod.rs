//! Shared by the tests: devices, random values, models.
#![allow(dead_code, unused_imports)]

use everloop::layers::{Join, LstmConfig, LstmState};
use everloop::plan::{Kind, Storage};
use everloop::{Device, Error, Parameters, Plan, Recorder, Result, Rng, Tensor, Workspace, loss};
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

pub use everloop::doctor::F32;

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
    pub state: bool,
}

impl Model {
    pub fn random(rng: &mut Rng, hidden: usize, batch: usize, steps: usize) -> Model {
        let mut size = |most: usize| 1 + rng.below(most);
        let (input, layers) = (size(20), size(3));
        let sizes: Vec<usize> = (0..layers).map(|_| size(hidden)).collect();
        let mut config = LstmConfig::new(input, 1).with_hidden_sizes(&sizes).with_forget_bias(rng.below(2) as f64);
        match rng.below(3) {
            0 => config = config.with_bidirectional(Join::Layers),
            1 => config = config.with_bidirectional(Join::Stacks),
            _ => {}
        }
        config = config.with_bias(rng.below(5) > 0);
        let (batch, steps) = (1 + rng.below(batch), 1 + rng.below(steps));
        Model { config, batch, steps, classes: 2 + rng.below(9), state: rng.below(2) == 1 }
    }

    /// Parameters and the plan of forward and backward, with gradients for x and the initial state;
    /// the loss also reaches the final state of every layer and direction.
    pub fn record(&self, rng: &mut Rng) -> Result<(Parameters, Plan)> {
        let mut parameters = Parameters::new();
        let lstm = self.config.declare(&mut parameters, "lstm", rng)?;
        let dense = everloop::layers::DenseConfig::new(self.config.output_size(), self.classes);
        let dense = dense.declare(&mut parameters, "linear", rng)?;
        let mut rec = Recorder::new(&parameters);
        let x = rec.input("x", &[self.steps, self.batch, self.config.input_size])?;
        rec.want_gradient(&x)?;
        let mut initial = Vec::new();
        for (layer, hidden) in self.config.hidden_sizes.iter().enumerate() {
            for direction in self.config.directions() {
                let mut input = |name: &str| -> Result<Tensor> {
                    let tensor = rec.input(&format!("{name}.{layer}.{direction:?}"), &[self.batch, *hidden])?;
                    rec.want_gradient(&tensor)?;
                    Ok(tensor)
                };
                initial.push(LstmState { h: input("h0")?, c: input("c0")? });
            }
        }
        let out = lstm.record(&mut rec, &x, self.state.then_some(&initial[..]))?;
        let logits = dense.record(&mut rec, &out.output)?;
        let targets = rec.targets("targets", &[self.steps, self.batch], self.classes)?;
        let entropy = loss::softmax_cross_entropy(&mut rec, "entropy", &logits, &targets)?;
        let c_last = &out.state[0].c;
        let wanted = rec.input("wanted", c_last.shape())?;
        let squared = loss::mean_squared_error(&mut rec, "squared", c_last, &wanted)?;
        let total = everloop::layers::add(&mut rec, "loss", &entropy.loss, &squared)?;
        rec.backward(&total)?;
        Ok((parameters.clone(), rec.finish()))
    }

    /// Random inputs into a workspace of this model's plan.
    pub fn write(&self, workspace: &mut Workspace, rng: &mut Rng) -> Result<()> {
        let plan = workspace.plan().clone();
        for slot in plan.slots() {
            let tensor = plan.tensor(&slot.name)?;
            match slot.kind {
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
