//! Both views on a small model; planted errors must show in each.

use super::*;
use crate::layers::{DenseConfig, Join, LstmConfig};
use crate::optimizer::SgdConfig;
use crate::{Device, Parameters, Recorder, Rng, Store, loss};
use ndarray::Array2;

const STEPS: usize = 4;

/// Two layers, two directions, readout of the last time row, one update.
fn workspace(device: &Device) -> Workspace {
    let config = LstmConfig::new(3, 5).with_layers(2).with_bidirectional(Join::Stacks).with_forget_bias(1.0);
    workspace_of(config, device)
}

fn workspace_of(config: LstmConfig, device: &Device) -> Workspace {
    let (mut parameters, mut rng) = (Parameters::new(), Rng::new(5));
    let lstm = config.declare(&mut parameters, "lstm", &mut rng).unwrap();
    let dense = DenseConfig::new(config.output_size(), 4).declare(&mut parameters, "dense", &mut rng).unwrap();
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[STEPS, 2, 3]).unwrap();
    let target = rec.input("target", &[2, 4]).unwrap();
    let output = lstm.record(&mut rec, &x, None).unwrap().output;
    let y = dense.record(&mut rec, &output.row(STEPS - 1).unwrap()).unwrap();
    let loss = loss::mean_squared_error(&mut rec, "loss", &y, &target).unwrap();
    rec.backward(&loss).unwrap();
    SgdConfig::new(0.5).record(&mut rec).unwrap();
    let mut workspace = Workspace::new(&Store::new(device, &parameters).unwrap(), rec.finish()).unwrap();
    workspace.write(&x, &rng.vector(x.len(), 1.0)).unwrap();
    workspace.write(&target, &rng.vector(target.len(), 1.0)).unwrap();
    workspace.poison().unwrap();
    workspace
}

/// Largest violation of any formula of [`SeriesStep::named`] and [`SeriesGradients::named`] that relates
/// numbers of this cell only.
fn residual(cell: &SeriesCell) -> f64 {
    let mut worst: f64 = 0.0;
    let mut check = |left: &Array2<f64>, right: Array2<f64>| {
        let difference = (left - &right).fold(0.0, |w: f64, d| if d.is_nan() { f64::INFINITY } else { w.max(d.abs()) });
        worst = worst.max(difference);
    };
    let slope = |y: &Array2<f64>| y.mapv(|y| y * (1.0 - y));
    for (n, step) in cell.steps.iter().enumerate() {
        let c_before = if n == 0 { &cell.initial.c } else { &cell.steps[n - 1].c };
        let tanh_c = step.c.mapv(f64::tanh);
        check(&step.c, &step.f * c_before + &step.i * &step.g);
        check(&step.h, &step.o * &tanh_c);
        let Some(d) = &step.gradients else { continue };
        let after = cell.steps.get(n + 1).and_then(|s| s.gradients.as_ref());
        let from_c = after.map_or(Array2::zeros(step.c.dim()), |a| a.dc_next.clone().unwrap());
        check(&d.dot, &d.dht * &tanh_c * slope(&step.o));
        check(&d.dct, &d.dht * &step.o * tanh_c.mapv(|t| 1.0 - t * t) + from_c);
        check(&d.dcproj, &d.dct * &step.i * step.g.mapv(|g| 1.0 - g * g));
        check(&d.dft, &d.dct * c_before * slope(&step.f));
        check(&d.dit, &d.dct * &step.g * slope(&step.i));
        check(d.dc_next.as_ref().unwrap(), &d.dct * &step.f);
    }
    worst
}

#[test]
fn every_written_slot_is_noted_and_lstm_slots_step_by_step() {
    let mut workspace = workspace(&Device::cpu());
    let mut trace = Trace::new(Detail::Statistics);
    workspace.run_observed(&mut trace).unwrap();
    let plan = workspace.plan().clone();
    for (index, step) in plan.steps().iter().enumerate() {
        for view in step.written() {
            let name = &plan.slot(view.slot).name;
            assert!(trace.entries().iter().any(|e| e.step == index && e.slot == *name), "{index} {name}");
        }
    }
    use Direction::{Forward, Reverse};
    let times = |slot: &str, kernel: &str, direction: Direction| -> Vec<Option<usize>> {
        let entries = trace.entries().iter().filter(|e| e.slot == slot && e.kernel == kernel);
        let places = entries.map(|e| e.place.unwrap()).filter(|place| place.direction == direction);
        places.map(|place| place.time).collect()
    };
    assert_eq!(times("lstm.0.gates", "lstm_forward", Forward), [Some(0), Some(1), Some(2), Some(3)]);
    assert_eq!(times("lstm.1.gates", "lstm_forward", Reverse), [Some(3), Some(2), Some(1), Some(0)]);
    assert_eq!(times("lstm.0.h", "fill", Forward), [None]);
    assert_eq!(times("lstm.0.h", "lstm_forward", Reverse), [None, Some(3), Some(2), Some(1), Some(0)]);
    assert_eq!(times("lstm.0.dh", "lstm_backward", Forward), [Some(3), Some(2), Some(1), Some(0), None]);
    // the layer above reads all rows but the initial state
    assert_eq!(times("lstm.0.dh", "matmul", Forward), [Some(3), Some(2), Some(1), Some(0)]);
    // h is poisoned up to the recurrence, and each entry notes only what its step wrote
    assert_eq!(trace.first_non_finite(), None);
    assert!(trace.entries().iter().any(|e| e.phase == Phase::Update && e.slot == "parameters"));
}

#[test]
fn a_nan_shows_up() {
    let mut workspace = workspace(&Device::cpu());
    let mut trace = Trace::new(Detail::Values);
    workspace.run_observed(&mut trace).unwrap();
    assert_eq!(trace.first_non_finite(), None);
    trace.clear();
    workspace.poison().unwrap();
    let of = workspace.plan().steps().iter().position(|s| s.operation.name() == "lstm_backward").unwrap();
    pollster::block_on(trace.after_step(&mut workspace, of)).unwrap();
    let entry = trace.first_non_finite().unwrap();
    assert_eq!((entry.slot.as_str(), entry.statistics.non_finite), ("lstm.1.dgates", 2 * 20));
    assert!(entry.statistics.norm.is_nan());
    let mut text = Vec::new();
    trace.write_text(&mut text).unwrap();
    assert!(String::from_utf8(text).unwrap().contains("40 of 40 not finite"));
}

#[test]
fn statistics_of_known_numbers() {
    let of = Statistics::of(&[3.0, -4.0, f64::NAN, f64::INFINITY]);
    assert_eq!((of.elements, of.non_finite, of.min, of.max, of.mean, of.norm), (4, 2, -4.0, 3.0, -0.5, 5.0));
    let empty = Statistics::of(&[]);
    assert_eq!((empty.elements, empty.non_finite), (0, 0));
    assert!(empty.mean.is_nan());
}

#[test]
fn json_reads_back_bit_by_bit() {
    let values = vec![0.1, -0.0, 1e-310, f64::MAX, 1.0 / 3.0, 1e16, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    let entry = Entry {
        step: 7,
        phase: Phase::Backward,
        kernel: "fill",
        slot: "a \"b\"\\\n.\u{e4}".into(),
        place: Some(Place { layer: 1, direction: Direction::Reverse, time: None }),
        shape: vec![3, 3],
        statistics: Statistics::of(&values),
        values: Some(values.clone()),
    };
    let json: serde_json::Value = serde_json::from_str(&entry.to_json()).unwrap();
    assert_eq!(json["slot"], entry.slot);
    assert_eq!(
        (&json["phase"], &json["direction"], &json["layer"]),
        (&"backward".into(), &"reverse".into(), &1.into())
    );
    assert!(json["time"].is_null());
    assert_eq!((&json["non_finite"], &json["shape"]), (&3.into(), &vec![3, 3].into()));
    for (value, found) in values.iter().zip(json["values"].as_array().unwrap()) {
        let found = found.as_f64().unwrap_or_else(|| found.as_str().unwrap().parse().unwrap());
        assert!(found.to_bits() == value.to_bits() || found.is_nan() && value.is_nan(), "{value} {found}");
    }
}

#[test]
fn the_series_fulfils_its_formulas_and_planted_errors_do_not() {
    let mut workspace = workspace(&Device::cpu_f64());
    let cells = run_series(&mut workspace).unwrap();
    assert_eq!(cells.len(), 4);
    for cell in &cells {
        assert_eq!(cell.steps.len(), STEPS);
        assert!(residual(cell) < 1e-14, "{} {:?}: {}", cell.layer, cell.direction, residual(cell));
        assert!(cell.initial_gradient_difference().unwrap() < 1e-15);
    }
    let swapped = |swap: fn(&mut SeriesStep)| {
        let mut cell = cells[0].clone();
        cell.steps.iter_mut().for_each(swap);
        residual(&cell)
    };
    assert!(swapped(|s| std::mem::swap(&mut s.f, &mut s.i)) > 1e-3);
    assert!(swapped(|s| std::mem::swap(&mut s.g, &mut s.o)) > 1e-3);
    let dgates = |swap: fn(&mut SeriesGradients)| {
        let mut cell = cells[0].clone();
        cell.steps.iter_mut().for_each(|s| swap(s.gradients.as_mut().unwrap()));
        residual(&cell)
    };
    assert!(dgates(|d| std::mem::swap(&mut d.dft, &mut d.dit)) > 1e-6);
    assert!(dgates(|d| d.dct *= -1.0) > 1e-6);
    let mut shorter = cells[0].clone();
    shorter.steps.remove(1);
    assert!(residual(&shorter) > 1e-6);
}

#[test]
fn weights_of_another_time_are_noticed() {
    let mut workspace = workspace(&Device::cpu_f64());
    workspace.run().unwrap();
    let cells = read_series(&mut workspace).unwrap();
    assert!(cells[0].initial_gradient_difference().unwrap() > 1e-9, "the update has changed weight_hh");
}

#[test]
fn cells_with_options_have_the_gradients_that_their_formulas_give() {
    let plain = || LstmConfig::new(3, 5).with_layers(2);
    for (config, has_dc_next) in [
        (plain().with_projection(2).with_proj_clip(0.05), true),
        (plain().with_coupled_gates(), true),
        (plain().with_peephole(), false),
        (plain().with_cell_clip(0.05), false),
        (plain().with_layer_norm(1e-5), false),
    ] {
        for cell in run_series(&mut workspace_of(config.clone(), &Device::cpu_f64())).unwrap() {
            assert!(cell.initial_gradient_difference().unwrap() < 1e-15, "{config:?}");
            assert!(cell.initial_gradient.as_ref().unwrap().h.iter().any(|d| *d != 0.0), "{config:?}");
            let [first, ..] = &cell.steps[..] else { panic!("no step") };
            let gradients = first.gradients.as_ref().unwrap();
            assert_eq!((gradients.dc_next.is_some(), gradients.named().len()), (has_dc_next, 9 + has_dc_next as usize));
            assert_eq!(gradients.dh_next.dim(), first.h.dim());
        }
    }
}
