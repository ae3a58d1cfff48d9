//! Options of the LSTM layer where they meet bad input, each other, or other parts of a plan.

mod common;

use common::{Model, gpu};
use everloop::Direction;
use everloop::instruments::kernels::lstm_backward::{self, Gradients, LstmBackward};
use everloop::instruments::kernels::lstm_forward::{self, LstmForward};
use everloop::instruments::kernels::recurrence::{COUPLED, LENGTHS, NORM, OUTPUT_CLIP, PROJECTION, Sequence};
use everloop::instruments::kernels::{copy_columns, recurrence::Recurrence};
use everloop::layers::{
    Bias, Connection, Dropout, Fill, Init, Join, LstmConfig, LstmInputs, LstmState, add, columns, multiply,
};
use everloop::plan::Directions;
use everloop::{Device, Parameters, Recorder, Rng, Store, Tensor, Workspace, loss};

fn devices() -> Vec<Device> {
    [Some(Device::cpu()), Some(Device::cpu_f64()), gpu()].into_iter().flatten().collect()
}

#[test]
fn configurations_that_make_no_sense() {
    let good = LstmConfig::new(3, 4).with_layers(2);
    good.validate().unwrap();
    let one_bias = Init { forget_bias: Some(1.0), ..Init::default() };
    for wrong in [
        good.clone().with_projection(0),
        good.clone().with_proj_clip(1.0),
        good.clone().with_projection(2).with_proj_clip(0.0),
        good.clone().with_cell_clip(-1.0),
        good.clone().with_cell_clip(1e-60),
        good.clone().with_cell_clip(f64::INFINITY),
        good.clone().with_forget_bias(1e300),
        good.clone().with_layer_norm(0.0),
        good.clone().with_layer_norm(-1e-5),
        good.clone().with_layer_norm(1e300),
        good.clone().with_dropout(1.0),
        good.clone().with_dropout(-0.1),
        good.clone().with_recurrent_dropout(f64::NAN),
        good.clone().with_hidden_sizes(&[4, 5]).with_connection(Connection::Residual),
        good.clone().with_bidirectional(Join::Layers).with_hidden_sizes(&[2, 3]).with_connection(Connection::Highway),
        good.clone().with_bias(Bias::None).with_init(one_bias),
        good.clone().with_projection(1 << 20).with_bidirectional(Join::Layers).with_connection(Connection::Highway),
    ] {
        let error = wrong.validate().unwrap_err().to_string();
        assert!(error.contains("LSTM"), "{error}");
        assert!(wrong.declare(&mut Parameters::new(), "lstm", &mut Rng::new(1)).is_err());
        // nor does a declared one take it afterwards
        let mut parameters = Parameters::new();
        let mut lstm = good.declare(&mut parameters, "lstm", &mut Rng::new(1)).unwrap();
        lstm.config = wrong;
        let mut rec = Recorder::new(&parameters);
        let x = rec.input("x", &[2, 2, 3]).unwrap();
        assert!(lstm.record(&mut rec, &x, None).is_err());
    }
}

#[test]
fn inputs_that_do_not_fit() {
    let mut parameters = Parameters::new();
    let config = LstmConfig::new(3, 4).with_projection(2);
    let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(1)).unwrap();
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[5, 2, 3]).unwrap();
    let floats = rec.input("floats", &[2]).unwrap();
    let longer = rec.lengths("longer", 2, 7).unwrap();
    let rows = rec.lengths("rows", 3, 5).unwrap();
    for lengths in [&floats, &longer, &rows] {
        let inputs = LstmInputs { lengths: Some(lengths), ..LstmInputs::default() };
        assert!(lstm.record_with(&mut rec, &x, inputs).is_err());
    }
    let wide = [LstmState { h: rec.input("h", &[2, 4]).unwrap(), c: rec.input("c", &[2, 4]).unwrap() }];
    assert!(lstm.record(&mut rec, &x, Some(&wide)).is_err());
    let masks = [rec.input("mask", &[5, 2, 2]).unwrap()];
    let inputs = LstmInputs { masks: Some(&masks), ..LstmInputs::default() };
    assert!(lstm.record_with(&mut rec, &x, inputs).is_err());
    let inputs = LstmInputs { masks: Some(&[]), ..LstmInputs::default() };
    assert!(lstm.record_with(&mut rec, &x, inputs).is_err());

    let lengths = rec.tokens("lengths", &[4], 6).unwrap();
    let (from, to) = (rec.input("from", &[10, 1]).unwrap(), rec.activation("to", &[10, 1]).unwrap());
    let part = copy_columns::BatchRows {
        batch: 3,
        source_batch_first: false,
        target_batch_first: false,
        lengths: Some(lengths.narrow(2, 2).unwrap()),
    };
    let to = everloop::Target::replace(&to);
    assert!(copy_columns::record_columns(&mut rec, (&from, 0), (&to, 0), 1, Some(&part)).is_err());
}

/// Parameters written by hand reach no place outside of the slots.
#[test]
fn kernels_refuse_variants_that_do_not_fit() {
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    let shape = |rows: usize, columns: usize| [1, rows, 2, columns];
    let weight = rec.input("weight", &[16, 4]).unwrap();
    let [gates, dgates] = ["gates", "dgates"].map(|name| rec.activation(name, &shape(3, 16)).unwrap());
    let [h, c, dh, dc] = ["h", "c", "dh", "dc"].map(|name| rec.activation(name, &shape(4, 4)).unwrap());
    let all = Recurrence::new(Directions::One(Direction::Forward), &[weight], &gates, &h, &c);
    lstm_forward::record(&mut rec, &all).unwrap();
    let to = Gradients { dgates, dh, dc, dnormalized: None };
    lstm_backward::record(&mut rec, &all, &to).unwrap();
    let operands = lstm_forward::Tensors {
        weight_hh: &all.weight_hh[0],
        gates: &all.gates,
        h: &all.h,
        c: &all.c,
        lengths: None,
        peephole: None,
        mask: None,
        m: None,
        weight_hr: None,
        layer_norm: None,
        normalized: None,
    };
    let gradients = lstm_backward::Tensors {
        weight_hh: &all.weight_hh[0],
        gates: &all.gates,
        c: &all.c,
        dgates: &to.dgates,
        dh: &to.dh,
        dc: &to.dc,
        peephole: None,
        mask: None,
        weight_hr: None,
        h: None,
        layer_norm: None,
        normalized: None,
        dnormalized: None,
    };
    let fits = Sequence {
        steps: 3,
        batch: 2,
        hidden: 4,
        outputs: 4,
        directions: 1,
        reverse: 0,
        options: 0,
        mask_steps: 0,
        weight_hh_stride: 0,
        peephole_stride: 0,
        weight_hr_stride: 0,
        layer_norm_stride: 0,
        forget_bias: 0.0,
        cell_clip: 0.0,
        output_clip: 0.0,
        epsilon: 0.0,
    };
    for wrong in [
        Sequence { outputs: 3, ..fits },
        Sequence { outputs: 5, ..fits },
        Sequence { hidden: 5, ..fits },
        Sequence { steps: 4, ..fits },
        Sequence { batch: 0, ..fits },
        Sequence { options: OUTPUT_CLIP, ..fits },
        Sequence { options: LENGTHS, ..fits },
        Sequence { options: NORM, ..fits },
        Sequence { options: PROJECTION, outputs: 2, ..fits },
        Sequence { directions: 2, ..fits },
        Sequence { directions: 0, ..fits },
    ] {
        assert!(rec.push(LstmForward(wrong), operands).is_err(), "{wrong:?}");
        // the way back tells ended rows by their gates: it has no slot of lengths that could be missing
        let refused = rec.push(LstmBackward(wrong), gradients).is_err();
        assert_eq!(refused, wrong.options != LENGTHS, "{wrong:?}");
    }
    rec.push(LstmForward(Sequence { options: COUPLED, ..fits }), operands).unwrap();
    rec.push(LstmBackward(fits), gradients).unwrap();
    let mut odd = all.clone();
    for (cell_clip, forget_bias) in [(Some(f64::NAN), 0.0), (Some(-1.0), 0.0), (None, f64::INFINITY)] {
        (odd.options.cell_clip, odd.options.forget_bias) = (cell_clip, forget_bias);
        assert!(lstm_forward::record(&mut rec, &odd).is_err());
    }
}

#[test]
fn state_is_carried_only_to_inputs() {
    let mut parameters = Parameters::new();
    let lstm = LstmConfig::new(3, 4).declare(&mut parameters, "lstm", &mut Rng::new(1)).unwrap();
    parameters.declare("h0", &[2, 4], vec![0.0; 8]).unwrap();
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[5, 2, 3]).unwrap();
    let first = lstm.record(&mut rec, &x, None).unwrap();
    let learned = rec.parameter("h0").unwrap();
    let wide = rec.input("wide", &[2, 5]).unwrap();
    let fits = rec.input("fits", &[2, 4]).unwrap();
    let also = rec.input("also", &[2, 4]).unwrap();
    for h in [&learned, &first.state[0].h, &wide] {
        assert!(first.carry(&mut rec, &[LstmState { h: h.clone(), c: fits.clone() }]).is_err());
    }
    assert!(first.carry(&mut rec, &[]).is_err());
    first.carry(&mut rec, &[LstmState { h: fits, c: also }]).unwrap();
}

/// What nobody wants is not computed, though x is copied on the way.
#[test]
fn no_gradient_of_an_input_that_nobody_wants() {
    for wanted in [false, true] {
        let mut parameters = Parameters::new();
        let config = LstmConfig::new(3, 4).with_batch_first();
        let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(1)).unwrap();
        let mut rec = Recorder::new(&parameters);
        let x = rec.input("x", &[2, 5, 3]).unwrap();
        let out = lstm.record(&mut rec, &x, None).unwrap().output;
        // a wish that comes after the layers is heard too
        if wanted {
            rec.want_gradient(&x).unwrap();
        }
        let target = rec.input("target", out.shape()).unwrap();
        let loss = loss::mean_squared_error(&mut rec, "loss", &out, &target).unwrap();
        rec.backward(&loss).unwrap();
        let plan = rec.finish();
        assert_eq!(plan.slots().iter().any(|slot| slot.name == "lstm.dx"), wanted, "{plan}");
        assert_eq!(plan.tensor("dx").is_ok(), wanted);
    }
}

/// Sums and slices hand the question on, and an explicit wish is an answer.
#[test]
fn what_is_made_of_unwanted_parts_is_unwanted() {
    for (wish, names) in [(None, ""), (Some("x"), "dx dsum dslice"), (Some("sum"), "dsum dslice")] {
        let parameters = Parameters::new();
        let mut rec = Recorder::new(&parameters);
        let (x, y) = (rec.input("x", &[2, 4]).unwrap(), rec.input("y", &[2, 4]).unwrap());
        let sum = add(&mut rec, "sum", &x, &y).unwrap();
        let slice = columns(&mut rec, "slice", &sum, 1, 2).unwrap();
        let target = rec.input("target", &[2, 2]).unwrap();
        let loss = loss::mean_squared_error(&mut rec, "loss", &slice, &target).unwrap();
        match wish {
            Some("x") => rec.want_gradient(&x).unwrap(),
            Some(_) => rec.want_gradient(&sum).unwrap(),
            None => {}
        }
        rec.backward(&loss).unwrap();
        let plan = rec.finish();
        for name in ["dx", "dsum", "dslice"] {
            assert_eq!(plan.tensor(name).is_ok(), names.split(' ').any(|n| n == name), "{name} with {wish:?}");
        }
    }
}

/// Masks of one training step: two layers of two LSTMs that share a `Dropout`.
fn masks(device: &Device, seed: u64, runs: usize) -> Vec<Vec<f64>> {
    let mut parameters = Parameters::new();
    let config = LstmConfig::new(8, 8).with_layers(2).with_dropout(0.5).with_recurrent_dropout(0.25);
    let mut rec_parameters = |name: &str| config.declare(&mut parameters, name, &mut Rng::new(1)).unwrap();
    let (encoder, decoder) = (rec_parameters("encoder"), rec_parameters("decoder"));
    let mut rec = Recorder::new(&parameters);
    let dropout = Dropout::record(&mut rec, "dropout.step", seed).unwrap();
    let x = rec.input("x", &[4, 3, 8]).unwrap();
    let inputs = LstmInputs { dropout: Some(&dropout), ..LstmInputs::default() };
    let y = encoder.record_with(&mut rec, &x, inputs).unwrap().output;
    decoder.record_with(&mut rec, &y, inputs).unwrap();
    let plan = std::sync::Arc::new(rec.finish());
    let mut workspace = Workspace::new(&Store::new(device, &parameters).unwrap(), plan.clone()).unwrap();
    (0..runs).for_each(|_| workspace.run().unwrap());
    ["encoder.0.mask", "encoder.0.recurrent_mask", "encoder.1.recurrent_mask", "decoder.0.mask"]
        .map(|name| workspace.read(&plan.tensor(name).unwrap()).unwrap())
        .to_vec()
}

#[test]
fn masks_are_the_same_on_every_device_and_differ_otherwise() {
    let first = masks(&Device::cpu(), 5, 1);
    for device in devices() {
        for (ours, theirs) in masks(&device, 5, 1).iter().zip(&first) {
            assert!(ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() < 1e-6), "on {device}");
        }
    }
    let (seeded, later) = (masks(&Device::cpu(), 6, 1), masks(&Device::cpu(), 5, 2));
    for other in [&first[3], &seeded[0], &later[0]] {
        assert_ne!(other, &first[0]);
    }
    assert_ne!(first[1], first[2], "two layers");
    for (mask, keep) in first.iter().zip([0.5, 0.75, 0.75, 0.5]) {
        assert!(mask.iter().all(|v| *v == 0.0 || (v - 1.0 / keep).abs() < 1e-6));
        let kept = mask.iter().filter(|v| **v > 0.0).count() as f64 / mask.len() as f64;
        assert!((kept - keep).abs() < 0.2, "{kept} of {keep}");
    }
}

/// One mask for all steps, and none in a plan without a `Dropout`.
#[test]
fn variational_masks_and_plans_without_dropout() {
    let mut model = Model::of(LstmConfig::new(3, 6).with_layers(2).with_dropout(0.4).with_recurrent_dropout(0.4));
    model.config.variational = true;
    let (_, plan) = model.record(&mut Rng::new(1)).unwrap();
    assert!(plan.slots().iter().all(|slot| !slot.name.contains("mask")));
    model.dropout = true;
    let (_, plan) = model.record(&mut Rng::new(1)).unwrap();
    assert_eq!(plan.tensor("lstm.0.mask").unwrap().shape(), [model.batch, 6]);
    assert_eq!(plan.tensor("lstm.1.recurrent_mask").unwrap().shape(), [1, model.batch, 6]);
}

/// Initial values reach every layer and direction.
#[test]
fn initial_values_of_every_layer_and_direction() {
    let init = Init { input: Fill::Glorot, recurrent: Fill::Orthogonal, forget_bias: Some(2.0) };
    let config = LstmConfig::new(5, 6).with_layers(2).with_bidirectional(Join::Layers).with_init(init);
    let mut parameters = Parameters::new();
    config.declare(&mut parameters, "lstm", &mut Rng::new(3)).unwrap();
    for suffix in ["l0", "l0_reverse", "l1", "l1_reverse"] {
        let get = |kind: &str| parameters.get(&format!("lstm.{kind}_{suffix}")).unwrap();
        for j in 0..24 {
            let wanted = if (6..12).contains(&j) { 2.0 } else { 0.0 };
            assert_eq!(get("bias_ih")[j] + get("bias_hh")[j], wanted, "{suffix} {j}");
        }
        let weight = get("weight_hh");
        for (a, b) in (0..6).flat_map(|a| (0..6).map(move |b| (a, b))) {
            let product: f64 = (0..24).map(|row| weight[row * 6 + a] * weight[row * 6 + b]).sum();
            assert!((product - (a == b) as u8 as f64).abs() < 1e-12, "{suffix}");
        }
        let columns = if suffix.starts_with("l0") { 5 } else { 12 };
        let bound = (6.0 / (24.0 + columns as f64)).sqrt();
        assert!(get("weight_ih").iter().all(|v| v.abs() <= bound));
    }
}

/// A batch with lengths gives what each of its rows gives alone, without lengths.
#[test]
fn rows_of_a_batch_do_not_know_of_each_other() {
    let config = LstmConfig::new(3, 5)
        .with_layers(2)
        .with_bidirectional(Join::Layers)
        .with_projection(4)
        .with_peephole()
        .with_layer_norm(1e-2)
        .with_connection(Connection::Residual);
    let mut parameters = Parameters::new();
    let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(1)).unwrap();
    let (steps, lengths) = (6, [4u32, 6, 1, 3]);
    let x = Rng::new(2).vector(steps * 4 * 3, 1.0);
    let read = |workspace: &mut Workspace, tensor: &Tensor| workspace.read::<f64>(tensor).unwrap();
    for device in devices() {
        let mut rec = Recorder::new(&parameters);
        let slot = rec.input("x", &[steps, 4, 3]).unwrap();
        let given = rec.lengths("lengths", 4, steps).unwrap();
        let inputs = LstmInputs { lengths: Some(&given), cells: true, ..LstmInputs::default() };
        let all = lstm.record_with(&mut rec, &slot, inputs).unwrap();
        let mut workspace = Workspace::new(&Store::new(&device, &parameters).unwrap(), rec.finish()).unwrap();
        workspace.write(&slot, &x).unwrap();
        workspace.write_lengths(&given, &lengths).unwrap();
        workspace.run().unwrap();
        let output = read(&mut workspace, &all.output);
        for (row, length) in lengths.iter().map(|length| *length as usize).enumerate() {
            let mut rec = Recorder::new(&parameters);
            let alone = rec.input("x", &[length, 3]).unwrap();
            let one = lstm.record(&mut rec, &alone, None).unwrap();
            let mut single = Workspace::new(&Store::new(&device, &parameters).unwrap(), rec.finish()).unwrap();
            let of_row: Vec<f64> = (0..length).flat_map(|t| x[(t * 4 + row) * 3..][..3].to_vec()).collect();
            single.write(&alone, &of_row).unwrap();
            single.run().unwrap();
            let near = |a: &[f64], b: &[f64], what: &str| {
                let worst = a.iter().zip(b).fold(0.0f64, |worst, (a, b)| worst.max((a - b).abs()));
                assert!(a.len() == b.len() && worst < 1e-5, "{what} of row {row} on {device}: {worst}");
            };
            let columns = all.output.columns();
            let found: Vec<f64> =
                (0..steps).flat_map(|t| output[(t * 4 + row) * columns..][..columns].to_vec()).collect();
            near(&found[..length * columns], &read(&mut single, &one.output), "output");
            assert!(found[length * columns..].iter().all(|v| *v == 0.0));
            for (whole, own) in all.state.iter().zip(&one.state) {
                near(&read(&mut workspace, &whole.h.row(row).unwrap()), &read(&mut single, &own.h), "h");
                near(&read(&mut workspace, &whole.c.row(row).unwrap()), &read(&mut single, &own.c), "c");
            }
        }
    }
}

#[test]
fn a_factor_must_fit() {
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    let (x, factor) = (rec.input("x", &[2, 3, 4]).unwrap(), rec.input("factor", &[2, 4]).unwrap());
    assert!(multiply(&mut rec, "y", &x, &factor).is_err());
}

/// A training step with every option: one submit, no read-back, no buffer created.
#[test]
fn a_training_step_with_every_option_is_one_submit() {
    let Some(gpu) = gpu() else { return };
    let config = LstmConfig::new(6, 6)
        .with_layers(2)
        .with_bidirectional(Join::Stacks)
        .with_projection(5)
        .with_proj_clip(0.3)
        .with_peephole()
        .with_cell_clip(0.5)
        .with_layer_norm(1e-2)
        .with_dropout(0.2)
        .with_recurrent_dropout(0.2)
        .with_connection(Connection::Highway)
        .with_batch_first();
    let mut model = Model::of(config);
    (model.lengths, model.dropout, model.cells) = (true, true, true);
    let (parameters, plan) = model.record(&mut Rng::new(1)).unwrap();
    let mut workspace = Workspace::new(&Store::new(&gpu, &parameters).unwrap(), plan).unwrap();
    model.write(&mut workspace, &mut Rng::new(2)).unwrap();
    workspace.run().unwrap();
    workspace.finish().unwrap();
    let before = workspace.counters();
    (0..3).for_each(|_| workspace.run().unwrap());
    workspace.finish().unwrap();
    let did = workspace.counters() - before;
    assert_eq!((did.submits, did.read_backs, did.bytes_allocated), (3, 0, 0), "{did:?}");
}

/// A layer in reverse is the forward one over the reversed sequence, each row from its own end.
#[test]
fn a_reverse_layer_reads_from_the_end() {
    let (steps, batch, lengths) = (5, 3, [5u32, 2, 4]);
    let values = Rng::new(3).vector(steps * batch * 2, 1.0);
    let run = |device: &Device, reverse: bool| -> (Vec<f64>, Vec<f64>) {
        let mut parameters = Parameters::new();
        let config = LstmConfig::new(2, 4).with_layers(2);
        let config = if reverse { config.with_reverse() } else { config };
        let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(1)).unwrap();
        let mut rec = Recorder::new(&parameters);
        let x = rec.input("x", &[steps, batch, 2]).unwrap();
        let given = rec.lengths("lengths", batch, steps).unwrap();
        let inputs = LstmInputs { lengths: Some(&given), ..LstmInputs::default() };
        let made = lstm.record_with(&mut rec, &x, inputs).unwrap();
        assert_eq!(parameters.entry("lstm.weight_hh_l1_reverse").is_ok(), reverse);
        let mut workspace = Workspace::new(&Store::new(device, &parameters).unwrap(), rec.finish()).unwrap();
        // row by row, the steps that it has in the other order
        let turned = |values: &[f64], width: usize| -> Vec<f64> {
            let at = |t: usize, b: usize| if t < lengths[b] as usize { lengths[b] as usize - 1 - t } else { t };
            let rows = (0..steps).flat_map(|t| (0..batch).map(move |b| (t, b)));
            rows.flat_map(|(t, b)| values[(at(t, b) * batch + b) * width..][..width].to_vec()).collect()
        };
        let input = if reverse { values.clone() } else { turned(&values, 2) };
        workspace.write(&x, &input).unwrap();
        workspace.write_lengths(&given, &lengths).unwrap();
        workspace.run().unwrap();
        let output = workspace.read::<f64>(&made.output).unwrap();
        let last = workspace.read::<f64>(&made.state[1].c).unwrap();
        (if reverse { output } else { turned(&output, 4) }, last)
    };
    for device in devices() {
        assert_eq!(run(&device, true), run(&device, false), "{device}");
    }
    assert!(LstmConfig::new(1, 1).with_reverse().with_bidirectional(Join::Layers).validate().is_err());
}
