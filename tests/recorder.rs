//! Recording: what is refused leaves nothing behind, and what nobody can train costs nothing.

use everloop::layers::*;
use everloop::optimizer::SgdConfig;
use everloop::plan::Phase;
use everloop::{Device, Error, Parameters, Plan, Recorder, Result, Rng, Store, Tensor, Workspace, loss};

fn parameters() -> Result<(Parameters, Embedding, Lstm, Dense)> {
    let (rng, mut parameters) = (&mut Rng::new(1), Parameters::new());
    let embedding = EmbeddingConfig::new(11, 3).declare(&mut parameters, "embedding", rng)?;
    let lstm = LstmConfig::new(3, 5).with_layers(2).with_bidirectional(Join::Layers).with_dropout(0.5);
    let lstm = lstm.declare(&mut parameters, "lstm", rng)?;
    let dense = DenseConfig::new(10, 4).declare(&mut parameters, "dense", rng)?;
    Ok((parameters, embedding, lstm, dense))
}

/// A refusal: it must be an error, and change nothing.
type Refusal<'a> = &'a dyn Fn(&mut Recorder<'_>, &Tensor) -> Result<()>;

/// A whole training plan, with `refused` tried at every stage of its recording.
fn plan(refused: &[Refusal<'_>]) -> Result<Plan> {
    let (parameters, embedding, lstm, dense) = parameters()?;
    let mut rec = Recorder::new(&parameters);
    let ids = rec.tokens("ids", &[4, 2], 11)?;
    let x = rec.input("x", &[4, 2, 3])?;
    let try_all = |rec: &mut Recorder<'_>| {
        for (index, refuse) in refused.iter().enumerate() {
            assert!(refuse(rec, &x).is_err(), "refusal {index} was none");
        }
    };
    try_all(&mut rec);
    let embedded = embedding.record(&mut rec, &ids)?;
    let dropout = Dropout::record(&mut rec, "dropout.step", 3)?;
    try_all(&mut rec);
    let inputs = LstmInputs { dropout: Some(&dropout), ..LstmInputs::default() };
    let both = add(&mut rec, "both", &embedded, &x)?;
    let y = lstm.record_with(&mut rec, &both, inputs)?.output;
    try_all(&mut rec);
    let logits = dense.record(&mut rec, &y)?;
    let targets = rec.targets("targets", &[4, 2], 4)?;
    let out = loss::softmax_cross_entropy(&mut rec, "loss", &logits, &targets)?;
    try_all(&mut rec);
    rec.backward(&out.loss)?;
    try_all(&mut rec);
    SgdConfig::new(0.1).with_clip_norm(1.0).record(&mut rec)?;
    try_all(&mut rec);
    Ok(rec.finish())
}

#[test]
fn what_is_refused_leaves_nothing_behind() {
    let (_, embedding, lstm, dense) = parameters().unwrap();
    let others = Parameters::new();
    let mut other = Recorder::new(&others);
    let foreign = other.input("x", &[4, 2, 3]).unwrap();
    let refused: &[Refusal<'_>] = &[
        &|rec, x| rec.input("x", x.shape()).map(drop),
        &|rec, _| rec.input("zero", &[4, 0]).map(drop),
        // the second slot of the layer is refused, or the third
        &|rec, x| {
            rec.attempt(|rec| {
                rec.activation("lstm.1.h", &[1])?;
                lstm.record(rec, x, None).map(drop)
            })
        },
        &|rec, x| {
            let wide = LstmState { h: x.row(0)?, c: x.row(0)? };
            lstm.record(rec, x, Some(&[wide.clone(), wide.clone(), wide.clone(), wide])).map(drop)
        },
        &|rec, x| lstm.record(rec, &x.reshape(&[2, 4, 3])?.reshape(&[8, 3])?.reshape(&[4, 3, 2])?, None).map(drop),
        &|rec, x| dense.record(rec, x).map(drop),
        &|rec, x| embedding.record(rec, x).map(drop),
        &|rec, x| add(rec, "bad", x, &x.row(0)?).map(drop),
        &|rec, x| concatenate(rec, "bad", &[x, &x.row(0)?]).map(drop),
        &|rec, x| columns(rec, "bad", x, 2, 2).map(drop),
        &|rec, x| one_hot(rec, "bad", x, 3).map(drop),
        &|rec, x| loss::mean_squared_error(rec, "bad", x, &x.row(0)?).map(drop),
        &|rec, x| loss::softmax_cross_entropy(rec, "bad", x, x).map(drop),
        &|rec, _| rec.backward(&foreign),
        &|rec, x| rec.backward(x),
        &|rec, _| SgdConfig::new(-1.0).record(rec).map(drop),
        &|rec, _| Dropout::record(rec, "x", 1).map(drop),
        &|rec, _| rec.freeze("decoder"),
        &|rec, _| rec.detach(&foreign).map(drop),
        &|rec, x| rec.want_gradient(&x.row(0)?),
    ];
    assert_eq!(plan(refused).unwrap().to_string(), plan(&[]).unwrap().to_string());
}

/// A backward pass that fails in the middle is as if it had not been begun: the tape is still there.
#[test]
fn a_refused_backward_pass_can_be_recorded_again() {
    let (parameters, _, lstm, _) = parameters().unwrap();
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[4, 2, 3]).unwrap();
    let y = lstm.record(&mut rec, &x, None).unwrap().output;
    let wanted = rec.input("wanted", y.shape()).unwrap();
    let loss = loss::mean_squared_error(&mut rec, "loss", &y, &wanted).unwrap();
    // the name of a gradient of the first layer is taken: found when most of the way back is recorded
    let refused = rec.attempt(|rec| {
        rec.input("lstm.0.dgates", &[1])?;
        rec.backward(&loss)
    });
    assert!(matches!(refused, Err(Error::Name { .. })), "{refused:?}");
    rec.backward(&loss).unwrap();
    SgdConfig::new(0.1).record(&mut rec).unwrap();
    let plan = rec.finish();
    assert!(plan.tensor("lstm.0.dgates").is_ok());
    assert!(plan.steps().iter().any(|step| step.operation.name() == "sgd"));
}

/// Steps of the backward pass, by kernel.
fn backward(plan: &Plan, kernel: &str) -> usize {
    let steps = &plan.steps()[plan.phase(Phase::Backward)];
    steps.iter().filter(|step| step.operation.name() == kernel).count()
}

fn frozen(paths: &[&str]) -> (Parameters, Plan) {
    let (rng, mut parameters) = (&mut Rng::new(1), Parameters::new());
    let encoder = LstmConfig::new(3, 4).with_layers(2).declare(&mut parameters, "encoder", rng).unwrap();
    let decoder = LstmConfig::new(4, 4).declare(&mut parameters, "decoder", rng).unwrap();
    let mut rec = Recorder::new(&parameters);
    paths.iter().try_for_each(|path| rec.freeze(path)).unwrap();
    let x = rec.input("x", &[3, 2, 3]).unwrap();
    let y = encoder.record(&mut rec, &x, None).unwrap().output;
    let y = decoder.record(&mut rec, &y, None).unwrap().output;
    let wanted = rec.input("wanted", y.shape()).unwrap();
    let loss = loss::mean_squared_error(&mut rec, "loss", &y, &wanted).unwrap();
    rec.backward(&loss).unwrap();
    SgdConfig::new(0.5).record(&mut rec).unwrap();
    let plan = rec.finish();
    (parameters, plan)
}

#[test]
fn the_backward_of_a_frozen_part_is_not_run() {
    let all = frozen(&[]).1;
    assert_eq!(backward(&all, "lstm_backward"), 3);
    let half = frozen(&["encoder"]).1;
    assert_eq!(backward(&half, "lstm_backward"), 1);
    assert!(half.tensor("encoder.1.dh").is_err() && half.tensor("encoder.dweight_hh_l0").is_err());
    // the lower layer needs the way back through the upper one, whose weights get none
    let below = frozen(&["decoder", "encoder.weight_ih_l1"]).1;
    assert_eq!(backward(&below, "lstm_backward"), 3);
    assert!(below.tensor("decoder.dweight_hh_l0").is_err() && below.tensor("encoder.dweight_ih_l1").is_err());
    for paths in [&[][..], &["encoder"], &["decoder", "encoder.weight_ih_l1"]] {
        let (before, plan) = frozen(paths);
        let mut after = before.clone();
        let mut workspace = Workspace::new(&Store::new(&Device::cpu_f64(), &before).unwrap(), plan).unwrap();
        let plan = workspace.plan().clone();
        for name in ["x", "wanted"] {
            let tensor = plan.tensor(name).unwrap();
            workspace.write(&tensor, &Rng::new(4).vector(tensor.len(), 1.0)).unwrap();
        }
        workspace.run().unwrap();
        workspace.store().read(&mut after).unwrap();
        for parameter in before.iter() {
            let held = paths.iter().any(|path| parameter.name.starts_with(path));
            let same = before.get(&parameter.name).unwrap() == after.get(&parameter.name).unwrap();
            assert_eq!(same, held, "{} with {paths:?} frozen", parameter.name);
        }
    }
}

#[test]
fn nothing_is_recorded_for_a_loss_that_trains_nothing() {
    let (parameters, _, lstm, _) = parameters().unwrap();
    let mut rec = Recorder::new(&parameters);
    rec.freeze("").unwrap();
    let x = rec.input("x", &[4, 2, 3]).unwrap();
    let y = lstm.record(&mut rec, &x, None).unwrap().output;
    let wanted = rec.input("wanted", y.shape()).unwrap();
    let loss = loss::mean_squared_error(&mut rec, "loss", &y, &wanted).unwrap();
    rec.backward(&loss).unwrap();
    assert!(SgdConfig::new(0.1).record(&mut rec).is_err(), "there is nothing to update");
    assert!(rec.finish().phase(Phase::Backward).is_empty());
}

/// `loss = mean((detached(w[0]) + w[1] + w[1])^2)` has no gradient for row 0 and that of both uses for row 1.
#[test]
fn any_tensor_can_be_detached() {
    let mut parameters = Parameters::new();
    parameters.declare("w", &[2, 2], vec![1.0, 2.0, 3.0, 4.0]).unwrap();
    let mut rec = Recorder::new(&parameters);
    let w = rec.parameter("w").unwrap();
    let held = rec.detach(&w.row(0).unwrap()).unwrap();
    let half = add_named(&mut rec, "half", &held, &w.row(1).unwrap());
    let also = add_named(&mut rec, "also", &half, &w.row(1).unwrap());
    // what is detached whole is as if it were an input
    let cut = rec.detach(&also).unwrap();
    let zero = rec.input("zero", &[2]).unwrap();
    let loss = loss::mean_squared_error(&mut rec, "loss", &also, &zero).unwrap();
    let nothing = loss::mean_squared_error(&mut rec, "nothing", &cut, &zero).unwrap();
    let total = add_named(&mut rec, "total", &loss, &nothing);
    rec.backward(&total).unwrap();
    let gradient = rec.gradient(&w).unwrap();
    let store = Store::new(&Device::cpu_f64(), &parameters).unwrap();
    let mut workspace = Workspace::new(&store, rec.finish()).unwrap();
    workspace.run().unwrap();
    // d mean((a + 2 b)^2) / db = 2 (a + 2 b) 2 / 2, a + 2 b = (7, 10)
    assert_eq!(workspace.read::<f64>(&gradient).unwrap(), [0.0, 0.0, 14.0, 20.0]);
}

fn add_named(rec: &mut Recorder<'_>, name: &str, a: &Tensor, b: &Tensor) -> Tensor {
    add(rec, name, a, b).unwrap()
}
