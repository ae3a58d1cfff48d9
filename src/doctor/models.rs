//! Whole models to examine a device with.

use super::F32;
use crate::device::Device;
use crate::error::Result;
use crate::layers::{self, DenseConfig, Dropout, Join, LstmConfig, LstmInputs, LstmState};
use crate::loss;
use crate::parameters::Parameters;
use crate::plan::{Kind, Plan, Storage};
use crate::recorder::{Recorder, gradient_name};
use crate::rng::Rng;
use crate::run::{Store, Workspace, lockstep};
use crate::tensor::{Dtype, SlotId, Tensor};
use std::sync::Arc;

/// The count of training steps before a run whose masks are to be repeated.
const FIRST_STEP: u32 = 3;

/// Random values for every input, and for everything else that has a buffer of its own if `all` is asked for.
fn fill(workspace: &mut Workspace, rng: &mut Rng, bound: f64, all: bool) -> Result<()> {
    let plan = workspace.plan().clone();
    for (slot, index) in plan.slots().iter().zip(0..) {
        let tensor = plan.whole(SlotId(index));
        let mut words = |most: usize| (0..slot.len()).map(|_| rng.below(most) as u32).collect::<Vec<_>>();
        match slot.kind {
            Kind::Tokens { vocab_size, .. } => workspace.write_tokens(&tensor, &words(vocab_size))?,
            Kind::Lengths { steps } => workspace.write_lengths(&tensor, &words(steps + 1))?,
            Kind::State if slot.dtype == Dtype::U32 => workspace.write_count(&tensor, FIRST_STEP)?,
            kind if slot.storage == Storage::Own && (all || kind == Kind::Input) => {
                workspace.write(&tensor, &rng.vector(slot.len(), bound))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// A whole model to examine.
pub(super) struct Form {
    pub name: &'static str,
    config: LstmConfig,
    steps: usize,
    batch: usize,
    /// Whether rows have lengths.
    lengths: bool,
}

pub(super) fn forms() -> Vec<Form> {
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
        form("in reverse", LstmConfig::new(7, 20).with_reverse(), 6, 5, true),
        form("everything at once", dropped.with_everything(), 5, 9, true),
    ]
}

/// A model of every layer: LSTM of some form with given state, dense, both losses.
fn model(form: &Form) -> Result<(Parameters, Arc<Plan>)> {
    let Form { ref config, steps, batch, .. } = *form;
    let (rng, mut parameters) = (&mut Rng::new(9), Parameters::new());
    let lstm = config.declare(&mut parameters, "lstm", rng)?;
    let dense = DenseConfig::new(config.output_size(), 5).declare(&mut parameters, "linear", rng)?;
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[steps, batch, config.input_size])?;
    rec.want_gradient(&x)?;
    let mut initial = Vec::new();
    for (layer, direction) in (0..config.layers()).flat_map(|k| config.directions().iter().map(move |d| (k, d))) {
        let mut state = |name: &str, columns: usize| -> Result<Tensor> {
            let tensor = rec.input(&format!("{name}.{layer}.{direction:?}"), &[batch, columns])?;
            rec.want_gradient(&tensor).map(|()| tensor)
        };
        let (outputs, hidden) = config.state_sizes(layer);
        initial.push(LstmState { h: state("h0", outputs)?, c: state("c0", hidden)? });
    }
    let lengths = form.lengths.then(|| rec.lengths("lengths", batch, steps)).transpose()?;
    let dropout = (config.dropout > 0.0).then(|| Dropout::record(&mut rec, "dropout.step", 7)).transpose()?;
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
    let plan = Arc::new(rec.finish());
    Ok((parameters, plan))
}

/// Whole models on the device, in lock-step with the twins.
pub(super) async fn check_model(device: &Device, form: &Form) -> Result<f64> {
    let (parameters, plan) = model(form)?;
    agree(device, &parameters, &plan, (1.0, false), true).await
}

/// Runs a plan on a device, guarded, in lock-step with the twins in f64, both [filled](fill) alike and then poisoned if
/// told; the worst error over tolerance.
pub(super) async fn agree(
    device: &Device,
    parameters: &Parameters,
    plan: &Arc<Plan>,
    (bound, all): (f64, bool),
    poisoned: bool,
) -> Result<f64> {
    let reference = Store::new_async(&Device::reference(), parameters).await?;
    let mut reference = Workspace::new_async(&reference, plan.clone()).await?;
    let mut other = Workspace::guarded_async(&Store::new_async(device, parameters).await?, plan.clone()).await?;
    for workspace in [&mut reference, &mut other] {
        fill(workspace, &mut Rng::new(5), bound, all)?;
        if poisoned {
            workspace.poison()?;
        }
    }
    let worst = lockstep::run_async(&mut other, &mut reference, F32).await?;
    other.check_guards_async().await?;
    Ok(worst)
}

/// The device's gradients of a model against central differences in f64.
pub(super) async fn check_gradients(device: &Device, form: &Form) -> Result<f64> {
    let (parameters, plan) = model(form)?;
    let exact = Store::new_async(&Device::cpu_f64(), &parameters).await?;
    let mut exact = Workspace::new_async(&exact, plan.clone()).await?;
    let mut other = Workspace::new_async(&Store::new_async(device, &parameters).await?, plan.clone()).await?;
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
            if let Ok(step) = plan.tensor("dropout.step") {
                exact.write_count(&step, FIRST_STEP)?;
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
