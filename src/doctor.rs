//! Proof on the user's own machine: can this device be trusted?
//!
//! [`examine`] runs every shader of every kernel against its twin in f64, whole models in lock-step, gradients
//! against central differences, and the traps that GPUs are known for. Each row of the [`Report`] has a
//! verdict, the worst error as a share of what is tolerated, and a time. The example `doctor` prints it.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernel::AdapterClass;
use crate::kernels::lstm_backward::Gradients;
use crate::kernels::recurrence::*;
use crate::kernels::*;
use crate::layers::{self, Bias, Connection, DenseConfig, Dropout, Join, LstmConfig, LstmInputs, LstmState};
use crate::loss;
use crate::parameters::Parameters;
use crate::plan::{Direction, Kind, Plan, Storage, Tensor};
use crate::recorder::{Recorder, gradient_name};
use crate::rng::Rng;
use crate::run::Workspace;
use crate::run::lockstep::{self, Tolerance};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What f32 may differ from f64 over sums of some thousand terms.
pub const F32: Tolerance = Tolerance { absolute: 2e-5, relative: 1e-4 };

/// One finding.
#[derive(Debug, Clone)]
pub struct Row {
    /// "kernel", "model", "gradient" or "trap".
    pub group: &'static str,
    /// What was examined.
    pub name: String,
    /// The worst error as a share of what is tolerated, or what went wrong.
    pub outcome: Result<f64, String>,
    /// How long it took.
    pub time: Duration,
}

impl Row {
    /// Whether the error is within what is tolerated.
    pub fn is_ok(&self) -> bool {
        self.outcome.as_ref().is_ok_and(|worst| *worst <= 1.0)
    }
}

/// All findings about a device; printing it gives a table.
#[derive(Debug, Clone)]
pub struct Report {
    /// The device, as it prints itself.
    pub device: String,
    /// The findings in order.
    pub rows: Vec<Row>,
}

impl Report {
    /// Whether every row is good: this device can be trusted.
    pub fn is_ok(&self) -> bool {
        self.rows.iter().all(Row::is_ok)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.device)?;
        let width = self.rows.iter().map(|r| r.name.len()).max().unwrap_or(0);
        for row in &self.rows {
            let (verdict, text) = match &row.outcome {
                Ok(worst) => (if row.is_ok() { "ok" } else { "BAD" }, format!("{worst:.4}")),
                Err(message) => ("BAD", message.clone()),
            };
            let ms = row.time.as_secs_f64() * 1e3;
            writeln!(f, "{verdict:<4}{:<9} {:<width$} {ms:>8.1} ms  {text}", row.group, row.name)?;
        }
        let bad = self.rows.iter().filter(|r| !r.is_ok()).count();
        match bad {
            0 => write!(f, "all {} rows are good: this device can be trusted", self.rows.len()),
            _ => write!(f, "{bad} of {} rows are BAD: do not trust this device", self.rows.len()),
        }
    }
}

/// A kernel at one size: what [`check`] records, runs on two devices, and compares.
pub struct Case {
    /// The kernel and its sizes.
    pub name: String,
    /// Inputs are drawn from +-bound.
    pub bound: f64,
    record: Record,
}

type Record = Box<dyn Fn(&mut Recorder<'_>) -> Result<()>>;

impl Case {
    /// A case. Slots that steps write are filled at random too; if one is called `out`, all of them hold NaN instead.
    pub fn new(
        name: impl Into<String>,
        bound: f64,
        record: impl Fn(&mut Recorder<'_>) -> Result<()> + 'static,
    ) -> Case {
        Case { name: name.into(), bound, record: Box::new(record) }
    }
}

/// Every kernel at sizes that are awkward on purpose: tails, single elements, views, sums beyond 65,535 terms.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (m, n, k) in [(1, 1, 1), (3, 5, 7), (9, 132, 20), (33, 65, 17), (70, 4, 129), (1, 256, 64)] {
        for (ta, tb, extra) in [(false, false, false), (false, true, true), (true, false, true), (true, true, false)] {
            all.push(Case::new(format!("matmul {m} {n} {k} {ta} {tb}"), 1.0, move |rec| {
                let a = rec.input("a", &if ta { [k, m] } else { [m, k] })?;
                let b = rec.input("b", &if tb { [n, k] } else { [k, n] })?;
                let bias = if extra { Some(rec.input("bias", &[n])?) } else { None };
                let second = if extra && ta { Some(rec.input("second_bias", &[n])?) } else { None };
                let c = rec.activation(if extra { "c" } else { "out" }, &[m, n])?;
                let biases: Vec<_> = bias.iter().chain(&second).collect();
                matmul::record(rec, (&a, ta), (&b, tb), &biases, (&c, extra))
            }));
        }
    }
    for (steps, batch, hidden) in [(1, 1, 1), (4, 3, 17), (3, 9, 33), (2, 7, 64), (2, 33, 65), (3, 1, 128)] {
        for direction in [Direction::Forward, Direction::Reverse] {
            all.extend(recurrences([steps, batch, hidden, hidden], direction, 0));
        }
    }
    for (sizes, options) in [
        ([3, 5, 6, 6], LENGTHS),
        ([2, 9, 17, 17], PEEPHOLE | MASK),
        ([2, 3, 70, 70], COUPLED | CELL_CLIP | LENGTHS),
        ([3, 9, 33, 5], PROJECTION),
        ([2, 3, 5, 70], PROJECTION | OUTPUT_CLIP | LENGTHS),
        ([3, 4, 1, 1], NORM),
        ([2, 3, 65, 65], NORM | LENGTHS | PEEPHOLE | CELL_CLIP),
        ([2, 9, 64, 33], NORM | PROJECTION | MASK | COUPLED),
        ([2, 3, 19, 7], LENGTHS | PEEPHOLE | MASK | CELL_CLIP | PROJECTION | OUTPUT_CLIP | NORM),
    ] {
        for direction in [Direction::Forward, Direction::Reverse] {
            all.extend(recurrences(sizes, direction, options));
        }
    }
    for (rows, columns) in [(1, 1), (17, 33), (300, 16)] {
        all.push(Case::new(format!("sum_rows {rows} {columns}"), 0.1, move |rec| {
            let x = rec.input("x", &[rows, columns])?;
            let sums = rec.activation("out", &[columns])?;
            sum_rows::record(rec, &x, &sums, false)
        }));
        all.push(Case::new(format!("copy_columns {rows} {columns}"), 1.0, move |rec| {
            let (x, y) = (rec.input("x", &[rows, columns + 3])?, rec.activation("y", &[rows, columns + 1])?);
            copy_columns::record(rec, (&x, 3), (&y, 1), columns, true)
        }));
        all.push(Case::new(format!("embedding_backward with forward and one_hot {rows} {columns}"), 0.1, move |rec| {
            let (ids, table) = (rec.tokens("ids", &[rows], 7)?, rec.input("table", &[7, columns])?);
            let (y, dtable) = (rec.activation("out", &[rows, columns])?, rec.activation("dtable", &[7, columns])?);
            let units = rec.activation("units", &[rows, 7])?;
            embedding_forward::record(rec, &ids, &table, &y)?;
            embedding_backward::record(rec, &ids, &y, &dtable, false)?;
            one_hot::record(rec, &ids, &units)
        }));
        all.push(Case::new(format!("sum_products {rows} {columns}"), 0.3, move |rec| {
            let (a, b) = (rec.input("a", &[rows, columns + 3])?, rec.input("b", &[rows, columns + 1])?);
            let sums = rec.activation("sums", &[columns + 2])?;
            sum_products::record(rec, (&a, 3), (&b, 1), (&sums, 2), columns, true)
        }));
        all.push(Case::new(format!("dropout_mask with count and multiply {rows} {columns}"), 1.0, move |rec| {
            let (x, y) = (rec.input("x", &[3, rows, columns])?, rec.activation("y", &[3, rows, columns])?);
            let (step, mask) = (rec.activation("step", &[2])?, rec.activation("out", &[rows, columns])?);
            rec.fill(&step.narrow(0, 1)?, (count::CARRY - 1) as f32)?;
            rec.fill(&step.narrow(1, 1)?, 5.0)?;
            for accumulate in [false, true] {
                count::record(rec, &step)?;
                dropout_mask::record(rec, &step, &mask, [7, 0x9e37_79b9], 0.3)?;
                multiply::record(rec, &x, &mask, (&y, accumulate))?;
            }
            Ok(())
        }));
        all.push(Case::new(format!("highway with its backward {rows} {columns}"), 3.0, move |rec| {
            let shape = [2, rows, columns];
            let (x, h, dy) = (rec.input("x", &shape)?, rec.input("h", &shape)?, rec.input("dy", &shape)?);
            let (carry, y) = (rec.activation("carry", &shape)?, rec.activation("y", &shape)?);
            let (dx, dh) = (rec.activation("dx", &shape)?, rec.activation("dh", &shape)?);
            let dcarry = rec.activation("dcarry", &shape)?;
            let (c, x, h) = (carry.row(1)?, x.row(1)?, h.row(0)?);
            highway::record(rec, &c, &x, &h, &y.row(1)?)?;
            let (dx, dh) = ((&dx.row(0)?, false), (&dh.row(1)?, true));
            highway_backward::record(rec, &c, &x, &h, &dy.row(1)?, &dcarry.row(0)?, dx, dh)
        }));
    }
    for (rows, classes, bound) in [(1, 1, 1.0), (5, 63, 1.0), (9, 65, 1e4), (70, 300, 5.0)] {
        all.push(Case::new(format!("softmax_cross_entropy {rows} {classes}"), bound, move |rec| {
            let logits = rec.input("logits", &[rows, classes])?;
            rec.want_gradient(&logits)?;
            let targets = rec.targets("targets", &[rows], classes)?;
            let out = loss::softmax_cross_entropy(rec, "out", &logits, &targets)?;
            rec.backward(&out.loss)
        }));
    }
    for len in [1usize, 255, 5_000, 70_000] {
        all.push(Case::new(format!("mean_squared_error {len}"), 1.0, move |rec| {
            let (x, wanted) = (rec.input("x", &[len])?, rec.input("wanted", &[len])?);
            rec.want_gradient(&x)?;
            let loss = loss::mean_squared_error(rec, "out", &x, &wanted)?;
            rec.backward(&loss)
        }));
        all.push(Case::new(format!("clip_norm with norm and sgd {len}"), 1.0, move |rec| {
            let partials = rec.activation("partials", &[sum_squares::parts(len)])?;
            let (norm, g) = (rec.activation("norm", &[1])?, rec.activation("g", &[len])?);
            let (rate, w) = (rec.input("rate", &[1])?, rec.activation("w", &[len])?);
            sum_squares::record(rec, &g, &partials)?;
            sum::record(rec, &partials, &norm, 1, true)?;
            clip_norm::record(rec, &norm, &g, 0.1)?;
            sgd::record(rec, &rate, &g, &w)
        }));
    }
    all
}

/// `lstm_forward` and `lstm_backward` over T, B, H, P with some [options](crate::kernels::recurrence).
fn recurrences(sizes: [usize; 4], direction: Direction, options: u32) -> [Case; 2] {
    let name = format!("{sizes:?} {direction:?} options {options}");
    let forward = Case::new(format!("lstm_forward {name}"), 1.0, move |rec| {
        let all = recurrence(rec, sizes, direction, options, true)?;
        lstm_forward::record(rec, &all)
    });
    let backward = Case::new(format!("lstm_backward {name}"), 0.5, move |rec| {
        let all = recurrence(rec, sizes, direction, options, false)?;
        let to = gradients(rec, &all)?;
        lstm_backward::record(rec, &all, &to)
    });
    [forward, backward]
}

/// Slots of a recurrence over T, B, H, P with some [options](crate::kernels::recurrence), for cases: what
/// `lstm_forward` writes is to be written, or is an input of `lstm_backward`.
pub fn recurrence(
    rec: &mut Recorder<'_>,
    [steps, batch, hidden, outputs]: [usize; 4],
    direction: Direction,
    options: u32,
    forward: bool,
) -> Result<Recurrence> {
    let has = |option: u32| options & option != 0;
    let state = |rec: &mut Recorder<'_>, name: &str, shape: &[usize]| match forward {
        true => rec.activation(name, shape),
        false => rec.input(name, shape),
    };
    let weight_hh = rec.input("weight_hh", &[4 * hidden, outputs])?;
    let gates = state(rec, "gates", &[steps, batch, 4 * hidden])?;
    let h = state(rec, "h", &[steps + 1, batch, outputs])?;
    let c = state(rec, "c", &[steps + 1, batch, hidden])?;
    let mut all = Recurrence::new(direction, &weight_hh, &gates, &h, &c);
    all.options = CellOptions {
        forget_bias: 0.5,
        coupled: has(COUPLED),
        cell_clip: has(CELL_CLIP).then_some(0.4),
        output_clip: has(OUTPUT_CLIP).then_some(0.3),
        epsilon: if has(NORM) { 1e-3 } else { 0.0 },
    };
    if has(LENGTHS) {
        all.lengths = Some(rec.tokens("lengths", &[batch], steps + 1)?);
    }
    if has(PEEPHOLE) {
        all.peephole = Some(rec.input("peephole", &[3 * hidden])?);
    }
    if has(MASK) {
        let shape = [steps, batch, hidden];
        all.mask = Some(rec.input("mask", if has(COUPLED) { &shape[1..] } else { &shape })?);
    }
    if has(PROJECTION) {
        let weight_hr = rec.input("weight_hr", &[outputs, hidden])?;
        all.projection = Some(Projection { weight_hr, m: state(rec, "m", &[steps, batch, hidden])? });
    }
    if has(NORM) {
        let weight = rec.input("layer_norm", &[2, NORMS * hidden])?;
        let normalized = state(rec, "normalized", &[steps, batch, NORMS * hidden + NORMS])?;
        all.norm = Some(Norm { weight, normalized });
    }
    Ok(all)
}

/// Slots for the gradients of a [`recurrence`](fn@recurrence).
pub fn gradients(rec: &mut Recorder<'_>, of: &Recurrence) -> Result<Gradients> {
    let [steps, batch, hidden] = [of.gates.shape()[0], of.gates.shape()[1], of.c.columns()];
    Ok(Gradients {
        dgates: rec.activation("dgates", of.gates.shape())?,
        dh: rec.activation("dh", of.h.shape())?,
        dc: rec.activation("dc", of.c.shape())?,
        dnormalized: match of.norm {
            Some(_) => Some(rec.activation("dnormalized", &[steps, batch, NORMS * hidden])?),
            None => None,
        },
    })
}

/// The traps: large arguments, loops beyond 65,535 iterations, tiny numbers, grids beyond 65,535 workgroups.
fn traps() -> Vec<Case> {
    vec![
        Case::new("pre-activations up to 10,000", 1e4, |rec| {
            let weight = rec.input("weight", &[16, 4])?;
            let gates = rec.activation("gates", &[3, 2, 16])?;
            let (h, c) = (rec.activation("h", &[4, 2, 4])?, rec.activation("c", &[4, 2, 4])?);
            rec.fill(&h, 0.5)?;
            rec.fill(&c, 30.0)?;
            lstm_forward::record(rec, &Recurrence::new(Direction::Forward, &weight, &gates, &h, &c))
        }),
        Case::new("a sum over 70,001 terms", 0.05, |rec| {
            let (a, b) = (rec.input("a", &[70_001, 4])?, rec.input("b", &[70_001, 8])?);
            let c = rec.activation("out", &[4, 8])?;
            matmul::record(rec, (&a, true), (&b, false), &[], (&c, false))
        }),
        Case::new("600,001 rows", 0.02, |rec| {
            let (x, sums) = (rec.input("x", &[600_001, 1])?, rec.activation("out", &[1])?);
            let products = rec.activation("products", &[1])?;
            sum_rows::record(rec, &x, &sums, false)?;
            sum_products::record(rec, (&x, 0), (&x, 0), (&products, 0), 1, false)
        }),
        Case::new("denormal numbers make no NaN", 1e-39, |rec| {
            let (x, y) = (rec.input("x", &[64])?, rec.input("y", &[64])?);
            let out = rec.activation("out", &[64])?;
            subtract::record(rec, &x, &y, &out)
        }),
        Case::new("17 million elements", 1.0, |rec| {
            let out = rec.activation("out", &[17_000_003])?;
            rec.fill(&out, 2.5)
        }),
    ]
}

/// Runs a case on a device, guarded and poisoned, in lock-step with the twins in f64; the worst error over tolerance.
pub async fn check(device: &Device, case: &Case) -> Result<f64> {
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    (case.record)(&mut rec)?;
    let plan = Arc::new(rec.finish());
    let mut reference = Workspace::new_async(&Device::reference(), plan.clone(), &parameters).await?;
    let mut other = Workspace::guarded_async(device, plan.clone(), &parameters).await?;
    for workspace in [&mut reference, &mut other] {
        fill(workspace, &mut Rng::new(5), case.bound, true)?;
        if plan.slots().iter().any(|s| s.name.split('.').any(|part| part == "out")) {
            workspace.poison()?;
        }
    }
    let worst = lockstep::run_async(&mut other, &mut reference, F32).await?;
    other.check_guards_async().await?;
    Ok(worst)
}

/// The count of training steps, and what it is before a run whose masks are to be repeated.
const DROPOUT_STEP: &str = "dropout.step";
const FIRST_STEP: [f32; 2] = [3.0, 0.0];

/// Random values for every input, and for everything else that has a buffer of its own if `all` is asked for.
fn fill(workspace: &mut Workspace, rng: &mut Rng, bound: f64, all: bool) -> Result<()> {
    let plan = workspace.plan().clone();
    for (slot, index) in plan.slots().iter().zip(0..) {
        let tensor = plan.whole(crate::plan::SlotId(index));
        match slot.kind {
            Kind::Tokens { vocab_size, .. } => {
                let ids: Vec<u32> = (0..slot.len()).map(|_| rng.below(vocab_size) as u32).collect();
                workspace.write_tokens(&tensor, &ids)?;
            }
            _ if slot.name == DROPOUT_STEP => workspace.write(&tensor, &FIRST_STEP)?,
            kind if slot.storage == Storage::Own && (all || kind == Kind::Input) => {
                workspace.write(&tensor, &rng.vector(slot.len(), bound))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// A whole model to examine.
struct Form {
    name: &'static str,
    config: LstmConfig,
    steps: usize,
    batch: usize,
    /// Whether rows have lengths.
    lengths: bool,
}

fn forms() -> Vec<Form> {
    let layered = LstmConfig::new(7, 24).with_hidden_sizes(&[24, 17]).with_forget_bias(1.0);
    let even = LstmConfig::new(7, 20).with_layers(2);
    let joined = layered.clone().with_bidirectional(Join::Layers);
    let projected = layered.clone().with_projection(9).with_proj_clip(0.2);
    let dropped = even.clone().with_dropout(0.3).with_recurrent_dropout(0.2);
    let form = |name, config, steps, batch, lengths| Form { name, config, steps, batch, lengths };
    vec![
        form("one direction, 2 layers", layered.clone(), 9, 5, false),
        form("two directions, joined after layers", joined.clone(), 6, 3, false),
        form("two directions, joined at the end", layered.with_bidirectional(Join::Stacks), 6, 9, false),
        form("one unit, one step", LstmConfig::new(1, 1), 1, 1, false),
        form("lengths, two directions", joined, 6, 5, true),
        form("projection, peepholes, clips", projected.with_peephole().with_cell_clip(0.4), 6, 5, false),
        form("layer norm, dropout", dropped.clone().with_layer_norm(1e-2), 6, 5, false),
        form("everything at once", everything(dropped), 5, 9, true),
    ]
}

/// All options that do not exclude each other.
fn everything(config: LstmConfig) -> LstmConfig {
    config
        .with_bidirectional(Join::Layers)
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

/// A model of every layer: LSTM of some form with given state, dense, both losses.
fn model(form: &Form) -> Result<(Parameters, Plan)> {
    let Form { config, steps, batch, .. } = form;
    let (steps, batch) = (*steps, *batch);
    let (rng, mut parameters) = (&mut Rng::new(9), Parameters::new());
    let lstm = config.declare(&mut parameters, "lstm", rng)?;
    let dense = DenseConfig::new(config.output_size(), 5).declare(&mut parameters, "linear", rng)?;
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[steps, batch, config.input_size])?;
    rec.want_gradient(&x)?;
    let mut initial = Vec::new();
    for layer in 0..config.layers() {
        for direction in config.directions() {
            let mut state = |name: &str, columns: usize| -> Result<Tensor> {
                let tensor = rec.input(&format!("{name}.{layer}.{direction:?}"), &[batch, columns])?;
                rec.want_gradient(&tensor)?;
                Ok(tensor)
            };
            let (outputs, hidden) = config.state_sizes(layer);
            initial.push(LstmState { h: state("h0", outputs)?, c: state("c0", hidden)? });
        }
    }
    let lengths = if form.lengths { Some(rec.tokens("lengths", &[batch], steps + 1)?) } else { None };
    let dropout = match config.dropout > 0.0 {
        true => Some(Dropout::record(&mut rec, DROPOUT_STEP, 7)?),
        false => None,
    };
    let (lengths, dropout) = (lengths.as_ref(), dropout.as_ref());
    let inputs = LstmInputs { initial: Some(&initial), lengths, dropout, ..LstmInputs::default() };
    let out = lstm.record_with(&mut rec, &x, inputs)?;
    let logits = dense.record(&mut rec, &out.output)?;
    let targets = rec.targets("targets", &[steps, batch], 5)?;
    let entropy = loss::softmax_cross_entropy(&mut rec, "entropy", &logits, &targets)?;
    let wanted = rec.input("wanted", out.state[0].c.shape())?;
    let squared = loss::mean_squared_error(&mut rec, "squared", &out.state[0].c, &wanted)?;
    let total = layers::add(&mut rec, "loss", &entropy.loss, &squared)?;
    rec.backward(&total)?;
    let plan = rec.finish();
    Ok((parameters, plan))
}

/// Whole models on the device, in lock-step with the twins.
async fn check_model(device: &Device, form: &Form) -> Result<f64> {
    let (parameters, plan) = model(form)?;
    let plan = Arc::new(plan);
    let mut reference = Workspace::new_async(&Device::reference(), plan.clone(), &parameters).await?;
    let mut other = Workspace::guarded_async(device, plan, &parameters).await?;
    for workspace in [&mut reference, &mut other] {
        workspace.poison()?;
        fill(workspace, &mut Rng::new(5), 1.0, false)?;
    }
    let worst = lockstep::run_async(&mut other, &mut reference, F32).await?;
    other.check_guards_async().await?;
    Ok(worst)
}

/// The device's gradients of a model against central differences in f64.
async fn check_gradients(device: &Device, form: &Form) -> Result<f64> {
    let (parameters, plan) = model(form)?;
    let plan = Arc::new(plan);
    let mut exact = Workspace::new_async(&Device::cpu_f64(), plan.clone(), &parameters).await?;
    let mut other = Workspace::new_async(device, plan.clone(), &parameters).await?;
    for workspace in [&mut exact, &mut other] {
        fill(workspace, &mut Rng::new(5), 1.0, false)?;
    }
    other.run_async().await?;
    let (loss, mut rng, mut worst) = (plan.tensor("loss")?, Rng::new(6), 0.0f64);
    for slot in plan.slots().iter().filter(|s| matches!(s.kind, Kind::Input | Kind::Parameter)) {
        let Ok(gradient) = plan.tensor(&gradient_name(&slot.name)) else { continue };
        let tensor = plan.tensor(&slot.name)?;
        let found = other.read_async::<f64>(&gradient).await?;
        let values = exact.read_async::<f64>(&tensor).await?;
        let element = rng.below(values.len());
        let mut at = [0.0; 2];
        for (loss_at, step) in at.iter_mut().zip([1e-5, -1e-5]) {
            let mut moved = values.clone();
            moved[element] += step;
            exact.write(&tensor, &moved)?;
            if let Ok(step) = plan.tensor(DROPOUT_STEP) {
                exact.write(&step, &FIRST_STEP)?;
            }
            exact.run_async().await?;
            *loss_at = exact.scalar_async(&loss).await?;
        }
        exact.write(&tensor, &values)?;
        let numeric = (at[0] - at[1]) / 2e-5;
        worst = worst.max(F32.worst(&[found[element]], &[numeric]).1);
    }
    Ok(worst)
}

/// A NaN in the weights must reach the output, in every unit.
async fn check_nan(device: &Device) -> Result<f64> {
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    let weight = rec.activation("weight", &[16, 4])?;
    let gates = rec.activation("gates", &[1, 1, 16])?;
    let (h, c) = (rec.activation("h", &[2, 1, 4])?, rec.activation("c", &[2, 1, 4])?);
    rec.fill(&weight, f32::NAN)?;
    for tensor in [&gates, &h, &c] {
        rec.fill(tensor, 0.25)?;
    }
    lstm_forward::record(&mut rec, &Recurrence::new(Direction::Forward, &weight, &gates, &h, &c))?;
    let mut workspace = Workspace::new_async(device, rec.finish(), &parameters).await?;
    workspace.run_async().await?;
    let found = workspace.read_async::<f64>(&h.row(1)?).await?;
    match found.iter().position(|v| !v.is_nan()) {
        None => Ok(0.0),
        Some(index) => {
            Err(Error::NonFinite { what: "h of NaN weights, which must be NaN".into(), index, value: found[index] })
        }
    }
}

/// Examines a device; see the [module](self). `extra` are cases of your own, for kernels that everloop does not know.
pub async fn examine_async(device: &Device, extra: &[Case]) -> Report {
    let mut rows = Vec::new();
    let mut note = |group, name: String, start: Instant, outcome: Result<f64>| {
        rows.push(Row { group, name, outcome: outcome.map_err(|e| e.to_string()), time: start.elapsed() });
    };
    let classes: &[AdapterClass] = match device.is_gpu() {
        true => &[AdapterClass::Hardware, AdapterClass::Software],
        false => &[AdapterClass::Hardware],
    };
    let cases = cases();
    for class in classes {
        let device = device.clone().with_shaders_for(*class);
        let shaders = if device.is_gpu() { format!(", {class:?} shaders").to_lowercase() } else { String::new() };
        // one row for each kernel: its worst case
        let mut kernels: Vec<&str> = cases.iter().filter_map(|c| c.name.split(' ').next()).collect();
        kernels.dedup();
        kernels.sort_unstable();
        kernels.dedup();
        for kernel in kernels {
            let (start, mut worst) = (Instant::now(), Ok(0.0f64));
            for case in cases.iter().filter(|c| c.name.split(' ').next() == Some(kernel)) {
                worst = match (worst, check(&device, case).await) {
                    (Ok(worst), Ok(here)) => Ok(worst.max(here)),
                    (Err(first), _) => Err(first),
                    (_, Err(error)) => Err(error),
                };
            }
            note("kernel", format!("{kernel}{shaders}"), start, worst);
        }
        for form in forms() {
            let start = Instant::now();
            let outcome = check_model(&device, &form).await;
            note("model", format!("{}{shaders}", form.name), start, outcome);
            let start = Instant::now();
            let outcome = check_gradients(&device, &form).await;
            note("gradient", format!("{}{shaders}", form.name), start, outcome);
        }
        for case in traps() {
            let start = Instant::now();
            let outcome = check(&device, &case).await;
            note("trap", format!("{}{shaders}", case.name), start, outcome);
        }
        let start = Instant::now();
        let outcome = check_nan(&device).await;
        note("trap", format!("NaN in the weights{shaders}"), start, outcome);
    }
    for case in extra {
        let start = Instant::now();
        let outcome = check(device, case).await;
        note("kernel", case.name.clone(), start, outcome);
    }
    Report { device: device.to_string(), rows }
}

/// Blocking [`examine_async`] of everything that everloop knows.
#[cfg(not(target_arch = "wasm32"))]
pub fn examine(device: &Device) -> Report {
    pollster::block_on(examine_async(device, &[]))
}
