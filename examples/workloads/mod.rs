//! The workloads W1 to W6, for the example `throughput` and for `cargo bench`.
//!
//! | workload | batch | steps | input | hidden | layers |
//! |---|--:|--:|--:|--:|--:|
//! | W1 | 1 | 64 | 64 | 64 | 1 |
//! | W2 | 32 | 64 | 128 | 256 | 2 |
//! | W3 | 64 | 128 | 512 | 512 | 1 |
//! | W4 | 64 | 64 | 1024 | 1024 | 2 |
//! | W5 | 1 | 256 single steps with carried state, time per step | 256 | 256 | 1 |
//! | W6 | 8 | 1024 | 128 | 128 | 1 |
//!
//! Modes: `fwd`; `fwd_sync`, the same with h read back (W5: on every step); `train`: forward, mean squared error,
//! backward, SGD update of all weights (W5: over the 256 steps as one sequence). With lengths, every second row of the
//! batch has half the steps; with dropout, a fifth of g is dropped in the recurrence.

use everloop::layers::{Dropout, Lstm, LstmConfig, LstmInputs, LstmState};
use everloop::optimizer::SgdConfig;
use everloop::{Device, Parameters, Plan, Recorder, Result, Rng, Store, Tensor, Workspace, loss};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Mode {
    /// Forward.
    Fwd,
    /// Forward, and h read back.
    FwdSync,
    /// A training step.
    Train,
}

/// Sizes of a workload.
#[derive(Clone, Copy)]
pub struct Workload {
    /// W1 to W6.
    pub name: &'static str,
    pub batch: usize,
    pub steps: usize,
    pub input: usize,
    pub hidden: usize,
    pub layers: usize,
    /// Forward runs are single steps with carried state.
    pub streaming: bool,
    /// Rows have lengths.
    pub lengths: bool,
    /// Recurrent dropout.
    pub dropout: bool,
}

const fn workload(name: &'static str, [batch, steps, input, hidden, layers]: [usize; 5]) -> Workload {
    Workload { name, batch, steps, input, hidden, layers, streaming: false, lengths: false, dropout: false }
}

/// All workloads.
pub const WORKLOADS: [Workload; 6] = [
    workload("W1", [1, 64, 64, 64, 1]),
    workload("W2", [32, 64, 128, 256, 2]),
    workload("W3", [64, 128, 512, 512, 1]),
    workload("W4", [64, 64, 1024, 1024, 2]),
    Workload { streaming: true, ..workload("W5", [1, 256, 256, 256, 1]) },
    workload("W6", [8, 1024, 128, 128, 1]),
];

impl Workload {
    /// Multiply-adds of one forward pass, counted twice.
    pub fn forward_flops(&self) -> f64 {
        let input = |l: usize| if l == 0 { self.input } else { self.hidden };
        let layer = |l: usize| 8.0 * self.hidden as f64 * (input(l) + self.hidden) as f64;
        (0..self.layers).map(layer).sum::<f64>() * (self.batch * self.steps) as f64
    }

    /// The recorded plan with its parameters.
    pub fn record(&self, mode: Mode) -> Result<Recorded> {
        let mut parameters = Parameters::new();
        let config = LstmConfig::new(self.input, self.hidden).with_layers(self.layers);
        let config = if self.dropout { config.with_recurrent_dropout(0.2) } else { config };
        let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(1))?;
        let mut rec = Recorder::new(&parameters);
        let streaming = self.streaming && mode != Mode::Train;
        let steps = if streaming { 1 } else { self.steps };
        let x = rec.input("x", &[steps, self.batch, self.input])?;
        let (h, loss) = match streaming {
            true => (self.carry(&mut rec, &lstm, &x)?, None),
            false => {
                let lengths = if self.lengths { Some(rec.lengths("lengths", self.batch, steps)?) } else { None };
                let dropout = if self.dropout { Some(Dropout::record(&mut rec, "dropout.step", 5)?) } else { None };
                let (lengths, dropout) = (lengths.as_ref(), dropout.as_ref());
                let inputs = LstmInputs { lengths, dropout, ..LstmInputs::default() };
                let h = lstm.record_with(&mut rec, &x, inputs)?.output;
                let loss = if mode == Mode::Train { Some(train(&mut rec, &h)?) } else { None };
                (h, loss)
            }
        };
        let plan = rec.finish();
        Ok(Recorded { parameters, plan, x, h, loss, runs: if streaming { self.steps } else { 1 } })
    }

    /// One step whose final state is the initial state of the next run.
    fn carry(&self, rec: &mut Recorder<'_>, lstm: &Lstm, x: &Tensor) -> Result<Tensor> {
        let mut state = |name: &str| rec.state(name, &[self.batch, self.hidden]);
        let carried = LstmState { h: state("carried.h")?, c: state("carried.c")? };
        let out = lstm.record(rec, x, Some(std::slice::from_ref(&carried)))?;
        out.carry(rec, &[carried])?;
        Ok(out.output)
    }
}

fn train(rec: &mut Recorder<'_>, h: &Tensor) -> Result<Tensor> {
    let target = rec.input("target", h.shape())?;
    let loss = loss::mean_squared_error(rec, "loss", h, &target)?;
    rec.backward(&loss)?;
    SgdConfig::new(0.01).record(rec)?;
    Ok(loss)
}

/// A recorded workload.
pub struct Recorded {
    pub parameters: Parameters,
    pub plan: Plan,
    x: Tensor,
    h: Tensor,
    loss: Option<Tensor>,
    runs: usize,
}

impl Recorded {
    /// The plan's memory on a device, with random inputs.
    pub fn open(self, device: &Device) -> Result<Session> {
        let Recorded { parameters, plan, x, h, loss, runs } = self;
        let (target, lengths) = (plan.tensor("target"), plan.tensor("lengths"));
        let mut workspace = Workspace::new(&Store::new(device, &parameters)?, plan)?;
        let values =
            |seed: usize, len: usize| Rng::new(seed as u64).vector(len, 1.0).iter().map(|v| *v as f32).collect();
        let inputs: Vec<Vec<f32>> = (0..runs).map(|t| values(t, x.len())).collect();
        workspace.write(&x, &inputs[0])?;
        if let Ok(target) = target {
            workspace.write(&target, &Rng::new(9).vector(target.len(), 1.0))?;
        }
        if let Ok(lengths) = lengths {
            let steps = x.shape()[0] as u32;
            let values: Vec<u32> = (0..lengths.len()).map(|row| if row % 2 == 0 { steps } else { steps / 2 }).collect();
            workspace.write_lengths(&lengths, &values)?;
        }
        Ok(Session { workspace, inputs, x, h, loss })
    }
}

/// A plan in its workspace, and what one timed call does with it.
pub struct Session {
    pub workspace: Workspace,
    /// Input of each run of a call; a single one stays where it is.
    pub inputs: Vec<Vec<f32>>,
    x: Tensor,
    h: Tensor,
    /// For training.
    pub loss: Option<Tensor>,
}

impl Session {
    /// One call, waited for.
    pub fn call(&mut self, mode: Mode) -> Result<()> {
        for input in &self.inputs {
            if self.inputs.len() > 1 {
                self.workspace.write(&self.x, input)?;
            }
            self.workspace.run()?;
            if mode == Mode::FwdSync {
                std::hint::black_box(self.workspace.read::<f32>(&self.h)?);
            }
        }
        self.workspace.finish()
    }
}
