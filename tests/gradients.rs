//! Central differences in f64 against the recorded backward pass, over random models and over
//! compositions that no layer foresees.

mod common;

use common::Model;
use everloop::instruments::gradient_name;
use everloop::layers::{self, Bias, Connection, DenseConfig, EmbeddingConfig, Join, LstmConfig};
use everloop::plan::{Kind, Phase, Storage};
use everloop::{Device, Parameters, Plan, Recorder, Result, Rng, Store, Tensor, Workspace, loss};

/// Compares `d loss / d slot` with central differences at up to `samples` elements of every input and
/// parameter that has a gradient. Returns how many were compared.
///
/// The step of 1e-5 leaves a truncation error near 1e-10 and a rounding error near 1e-11 / 1e-5.
fn check(
    plan: &Plan,
    parameters: &Parameters,
    prepare: impl Fn(&mut Workspace) -> Result<()>,
    samples: usize,
) -> Result<usize, String> {
    check_with(None, plan, parameters, prepare, samples)
}

/// What is done in place of a step of the plan.
type Instead<'a> = &'a dyn Fn(&mut Workspace) -> Result<()>;
/// A planted error: the step, and what is done in its place.
type Plant<'a> = (usize, Instead<'a>);

/// The same with an error planted in the backward pass.
fn check_with(
    plant: Option<Plant<'_>>,
    plan: &Plan,
    parameters: &Parameters,
    prepare: impl Fn(&mut Workspace) -> Result<()>,
    samples: usize,
) -> Result<usize, String> {
    // the same masks in every run
    let repeat = |workspace: &mut Workspace| match plan.tensor("dropout.step") {
        Ok(step) => workspace.write_count(&step, 3),
        Err(_) => Ok(()),
    };
    let run = |workspace: &mut Workspace| match plant {
        None => workspace.run(),
        Some((step, instead)) => {
            workspace.run_steps(0..step)?;
            instead(workspace)?;
            workspace.run_steps(step + 1..plan.steps().len())
        }
    };
    let text = |e: everloop::Error| e.to_string();
    let mut workspace =
        Workspace::new(&Store::new(&Device::cpu_f64(), parameters).unwrap(), plan.clone()).map_err(text)?;
    prepare(&mut workspace).map_err(text)?;
    let loss = plan.tensor("loss").map_err(text)?;
    let mut rng = Rng::new(11);
    let mut compared = 0;
    for slot in plan.slots() {
        let whole_block = slot.storage == Storage::Parameters(0) && slot.name == "parameters";
        if !matches!(slot.kind, Kind::Input | Kind::Parameter) || whole_block {
            continue;
        }
        let Ok(gradient) = plan.tensor(&gradient_name(&slot.name)) else { continue };
        let tensor = plan.tensor(&slot.name).map_err(text)?;
        // the differences below ran the whole plan: nothing of that may stay
        workspace.poison().map_err(text)?;
        repeat(&mut workspace).map_err(text)?;
        run(&mut workspace).map_err(text)?;
        let analytic = workspace.read::<f64>(&gradient).map_err(text)?;
        let values = workspace.read::<f64>(&tensor).map_err(text)?;
        for _ in 0..samples.min(values.len()) {
            let e = if values.len() <= samples { compared % values.len() } else { rng.below(values.len()) };
            let mut at = |delta: f64| -> Result<f64> {
                let mut moved = values.clone();
                moved[e] += delta;
                workspace.write(&tensor, &moved)?;
                repeat(&mut workspace)?;
                workspace.run()?;
                workspace.scalar(&loss)
            };
            let step = 1e-5;
            let numeric = (at(step).map_err(text)? - at(-step).map_err(text)?) / (2.0 * step);
            workspace.write(&tensor, &values).map_err(text)?;
            compared += 1;
            let difference = (numeric - analytic[e]).abs();
            if difference.is_nan() || difference > 1e-8 + 1e-6 * numeric.abs() {
                return Err(format!(
                    "`{}` element {e}: differences give {numeric}, the plan {}",
                    slot.name, analytic[e]
                ));
            }
        }
    }
    Ok(compared)
}

fn check_model(model: &Model, seed: u64) -> Result<usize, String> {
    let (parameters, plan) = model.record(&mut Rng::new(seed)).map_err(|e| e.to_string())?;
    check(&plan, &parameters, |w| model.write(w, &mut Rng::new(seed + 1)), 3)
}

#[test]
fn random_models() {
    let mut rng = Rng::new(1);
    for case in 0..60 {
        let model = Model::random(&mut rng, 9, 4, 6);
        let compared = check_model(&model, case).unwrap_or_else(|e| panic!("case {case}: {e}\n{model:?}"));
        assert!(compared >= 6, "only {compared} gradients in case {case}");
    }
}

/// An option by name.
type Choice = (&'static str, fn(&mut Model));

const OPTIONS: [Choice; 18] = [
    ("lengths", |m| m.lengths = true),
    ("projection", |m| m.config.proj_size = Some(4)),
    ("projection with clip", |m| (m.config.proj_size, m.config.proj_clip) = (Some(4), Some(0.05))),
    ("layer norm", |m| m.config.layer_norm = Some(1e-3)),
    ("peepholes", |m| m.config.peephole = true),
    ("cell clip", |m| m.config.cell_clip = Some(0.2)),
    ("coupled gates", |m| m.config.coupled = true),
    ("dropout", |m| (m.dropout, m.config.dropout) = (true, 0.4)),
    ("recurrent dropout", |m| (m.dropout, m.config.recurrent_dropout) = (true, 0.4)),
    ("variational dropout", |m| {
        (m.dropout, m.config.dropout, m.config.recurrent_dropout, m.config.variational) = (true, 0.3, 0.3, true);
    }),
    ("residual", |m| m.config.connection = Connection::Residual),
    ("highway", |m| m.config.connection = Connection::Highway),
    ("joined layers", |m| m.config.bidirectional = Some(Join::Layers)),
    ("joined stacks", |m| m.config.bidirectional = Some(Join::Stacks)),
    ("all cells", |m| m.cells = true),
    ("batch first", |m| m.config.batch_first = true),
    ("one bias", |m| m.config.bias = Bias::One),
    // two directions stay two
    ("reverse", |m| m.config.reverse = m.config.bidirectional.is_none()),
];

#[test]
fn every_option_alone_and_in_pairs() {
    for (i, (first, choose)) in OPTIONS.iter().enumerate() {
        for (second, add) in &OPTIONS[i..] {
            let mut model = Model::of(LstmConfig::new(3, 6).with_layers(2).with_forget_bias(1.0));
            model.batch = 3;
            choose(&mut model);
            add(&mut model);
            let compared = check_model(&model, 5).unwrap_or_else(|e| panic!("{first} and {second}: {e}\n{model:?}"));
            assert!(compared >= 24, "only {compared} gradients with {first} and {second}");
        }
    }
}

/// Past the end of a row nothing comes out and nothing goes in, whatever stands there; and a row of length 0 gives its
/// initial state.
#[test]
fn past_the_end_of_a_row() {
    let mut model = Model::of(LstmConfig::new(3, 5).with_layers(2).with_bidirectional(Join::Layers));
    (model.lengths, model.batch, model.cells) = (true, 4, true);
    let (parameters, plan) = model.record(&mut Rng::new(1)).unwrap();
    let lengths = [0u32, 2, 5, 1];
    let mut results = Vec::new();
    for padding in [0.0, 1e30] {
        let mut workspace =
            Workspace::new(&Store::new(&Device::cpu_f64(), &parameters).unwrap(), plan.clone()).unwrap();
        workspace.poison().unwrap();
        model.write(&mut workspace, &mut Rng::new(2)).unwrap();
        let tensor = |name: &str| plan.tensor(name).unwrap();
        workspace.write_lengths(&tensor("lengths"), &lengths).unwrap();
        let mut x = workspace.read::<f64>(&tensor("x")).unwrap();
        let padded = |t: usize, b: usize| t >= lengths[b] as usize;
        for (e, v) in x.iter_mut().enumerate() {
            if padded(e / 12, e / 3 % 4) {
                *v = padding;
            }
        }
        workspace.write(&tensor("x"), &x).unwrap();
        workspace.run().unwrap();
        let read = |workspace: &mut Workspace, name: &str| workspace.read::<f64>(&tensor(name)).unwrap();
        for (name, width) in [("lstm.1.joined", 10), ("dx", 3), ("lstm.0.cells", 5), ("lstm.1.reverse.cells", 5)] {
            for (e, value) in read(&mut workspace, name).into_iter().enumerate() {
                let ended = padded(e / (4 * width), e / width % 4);
                assert_eq!(value == 0.0, ended, "{name}[{e}] = {value}");
            }
        }
        for (d, (direction, last)) in [("Forward", 5), ("Reverse", 0)].into_iter().enumerate() {
            for part in ["h", "c"] {
                let states = tensor(&format!("lstm.0.{part}")).row(d).unwrap();
                let rows = workspace.read::<f64>(&states.row(last).unwrap()).unwrap();
                let initial = read(&mut workspace, &format!("{part}0.0.{direction}"));
                assert_eq!(rows[..5], initial[..5], "{direction} {part} of the row of length 0");
            }
        }
        let mut all = Vec::new();
        for slot in plan.slots().iter().filter(|s| s.kind == Kind::ParameterGradient) {
            all.extend(read(&mut workspace, &slot.name));
        }
        all.push(workspace.scalar(&tensor("loss")).unwrap());
        results.push(all);
    }
    assert_eq!(results[0], results[1], "what is in the padding must not matter");
}

/// Nothing of everloop knows of residual connections: this is all it takes.
fn residual(rec: &mut Recorder<'_>, lstm: &layers::Lstm, name: &str, x: &Tensor) -> Result<Tensor> {
    let y = lstm.record(rec, x, None)?.output;
    layers::add(rec, name, x, &y)
}

fn residual_model() -> Result<(Parameters, Plan)> {
    let (rng, mut parameters) = (&mut Rng::new(4), Parameters::new());
    let first = LstmConfig::new(6, 6).declare(&mut parameters, "first", rng)?;
    let second = LstmConfig::new(6, 6).declare(&mut parameters, "second", rng)?;
    let dense = DenseConfig::new(6, 3).declare(&mut parameters, "linear", rng)?;
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[4, 2, 6])?;
    rec.want_gradient(&x)?;
    let y = residual(&mut rec, &first, "once", &x)?;
    let y = residual(&mut rec, &second, "twice", &y)?;
    let logits = dense.record(&mut rec, &y)?;
    let targets = rec.tokens("targets", &[4, 2], 3)?;
    let out = loss::softmax_cross_entropy(&mut rec, "loss", &logits, &targets)?;
    rec.backward(&out.loss)?;
    let plan = rec.finish();
    Ok((parameters, plan))
}

fn inputs(workspace: &mut Workspace) -> Result<()> {
    let plan = workspace.plan().clone();
    for slot in plan.slots() {
        let tensor = plan.tensor(&slot.name)?;
        match slot.kind {
            Kind::Input => workspace.write(&tensor, &Rng::new(8).vector(slot.len(), 1.0))?,
            Kind::Tokens { vocab_size, .. } => {
                let mut rng = Rng::new(6);
                let ids: Vec<u32> = (0..slot.len()).map(|_| rng.below(vocab_size) as u32).collect();
                workspace.write_tokens(&tensor, &ids)?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn residual_connections_round_lstm_layers() {
    let (parameters, plan) = residual_model().unwrap();
    let compared = check(&plan, &parameters, inputs, 6).unwrap();
    assert_eq!(compared, 63, "{plan}");
}

/// A slice of columns beside an LSTM's output, an embedding below both, and an initial state that another
/// LSTM computed; a layer recorded after a layer of the same weights.
#[test]
fn tied_weights_slices_and_a_computed_initial_state() {
    let (rng, mut parameters) = (&mut Rng::new(5), Parameters::new());
    let embedding = EmbeddingConfig::new(7, 5).declare(&mut parameters, "embedding", rng).unwrap();
    let encoder = LstmConfig::new(5, 4).declare(&mut parameters, "encoder", rng).unwrap();
    let decoder = LstmConfig::new(4, 4).with_forget_bias(1.0).declare(&mut parameters, "decoder", rng).unwrap();
    let tied = DenseConfig::new(4, 4).declare(&mut parameters, "tied", rng).unwrap();
    let dense = DenseConfig::new(7, 7).with_bias(false).declare(&mut parameters, "linear", rng).unwrap();
    let record = |rec: &mut Recorder<'_>| -> Result<()> {
        let ids = rec.tokens("ids", &[3, 2], 7)?;
        let x = embedding.record(rec, &ids)?;
        let encoded = encoder.record(rec, &x, None)?;
        let narrow = layers::columns(rec, "narrow", &x, 0, 4)?;
        let y = decoder.record(rec, &narrow, Some(&encoded.state))?.output;
        // the same weights a second time, from where the first left
        let y = tied.record(rec, &y)?;
        let y = tied.record(rec, &y)?;
        let y = decoder.record(rec, &y, Some(&encoded.state))?.output;
        let part = layers::columns(rec, "part", &x, 1, 3)?;
        let joined = layers::concatenate(rec, "joined", &[&y, &part])?;
        let logits = dense.record(rec, &joined)?;
        let targets = rec.targets("targets", &[3, 2], 7)?;
        let entropy = loss::softmax_cross_entropy(rec, "entropy", &logits, &targets)?;
        let wanted = rec.input("wanted", encoded.output.shape())?;
        rec.want_gradient(&wanted)?;
        let squared = loss::mean_squared_error(rec, "squared", &encoded.output, &wanted)?;
        let total = layers::add(rec, "loss", &entropy.loss, &squared)?;
        rec.backward(&total)
    };
    let mut rec = Recorder::new(&parameters);
    record(&mut rec).unwrap();
    let plan = rec.finish();
    // 35 is every element of the embedding
    let compared = check(&plan, &parameters, inputs, 35).unwrap();
    assert!(compared > 300, "{compared}\n{plan}");
}

/// A slice of columns as the only consumer: the gradient of the other columns is zero, not what was there.
#[test]
fn a_slice_alone() {
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[3, 5]).unwrap();
    rec.want_gradient(&x).unwrap();
    let part = layers::columns(&mut rec, "part", &x, 1, 2).unwrap();
    let wanted = rec.input("wanted", &[3, 2]).unwrap();
    let loss = loss::mean_squared_error(&mut rec, "loss", &part, &wanted).unwrap();
    rec.backward(&loss).unwrap();
    assert_eq!(check(&rec.finish(), &parameters, inputs, 15).unwrap(), 15);
}

/// Constants that f32 does not hold exactly keep their digits in the f64 executor.
#[test]
fn constants_are_exact_in_f64() {
    let mut parameters = Parameters::new();
    let lstm = LstmConfig::new(1, 1).with_bias(Bias::None).with_forget_bias(0.1);
    let lstm = lstm.declare(&mut parameters, "lstm", &mut Rng::new(0)).unwrap();
    parameters.set("lstm.weight_ih_l0", &[0.0; 4]).unwrap();
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[1, 1, 1]).unwrap();
    lstm.record(&mut rec, &x, None).unwrap();
    let plan = rec.finish();
    let gates = plan.tensor("lstm.0.gates").unwrap();
    let mut workspace = Workspace::new(&Store::new(&Device::cpu_f64(), &parameters).unwrap(), plan).unwrap();
    workspace.run().unwrap();
    let f = workspace.read::<f64>(&gates).unwrap()[1];
    assert!((f - 1.0 / (1.0 + (-0.1f64).exp())).abs() < 1e-14, "{f}");
}

#[test]
fn a_step_left_out_of_the_backward_pass_is_noticed() {
    let (parameters, plan) = residual_model().unwrap();
    check(&plan, &parameters, inputs, 6).unwrap();
    for index in plan.phase(Phase::Backward) {
        let nothing: Plant<'_> = (index, &|_| Ok(()));
        let seen = check_with(Some(nothing), &plan, &parameters, inputs, 6).is_err();
        assert!(seen, "step {index} ({}) was left out and nobody noticed", plan.steps()[index].operation.name());
    }
}

#[test]
fn errors_planted_in_the_recurrence_are_caught() {
    let (parameters, plan) = residual_model().unwrap();
    let step = plan.steps().iter().position(|s| s.operation.name() == "lstm_backward").unwrap();
    let dgates = plan.tensor("second.0.dgates").unwrap();
    // [T, B, 4H] = [4, 2, 24]
    let spoil = |change: fn(&mut [f64])| {
        let plan = &plan;
        let dgates = &dgates;
        move |workspace: &mut Workspace| -> Result<()> {
            assert_eq!(plan.steps()[step].operation.name(), "lstm_backward");
            workspace.run_steps(step..step + 1)?;
            let mut values = workspace.read::<f64>(dgates)?;
            change(&mut values);
            workspace.write(dgates, &values)
        }
    };
    let sign = spoil(|d| d.iter_mut().step_by(24).for_each(|d| *d = -*d));
    let swapped = spoil(|d| d.chunks_exact_mut(24).for_each(|row| row[..12].rotate_left(6)));
    let short = spoil(|d| d[..48].fill(0.0));
    let clean = spoil(|_| {});
    check_with(Some((step, &clean)), &plan, &parameters, inputs, 24).unwrap();
    let plants: [(&str, Instead<'_>); 3] = [("sign", &sign), ("swapped gates", &swapped), ("loop one short", &short)];
    for (name, plant) in plants {
        assert!(check_with(Some((step, plant)), &plan, &parameters, inputs, 24).is_err(), "{name} was not seen");
    }
}
