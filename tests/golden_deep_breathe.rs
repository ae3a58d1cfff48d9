//! The Deep-Breathe series, number by number: every output, every intermediate of every step forward and
//! backward, every gradient, and whole training runs, on the CPU in f64 and f32 and on the GPU.
//!
//! Fixtures, their layout and their tolerances: `tests/fixtures/deep-breathe/README.md`.

#[path = "common/deep_breathe.rs"]
mod deep_breathe;

use deep_breathe::{
    Array, F32, F64, Model, Report, THEIRS, Tolerances, join_kernel, load, of_ndarray, read, split_kernel,
};
use everloop::instruments::gradient_name;
use everloop::layers::{LstmConfig, LstmState};
use everloop::trace::read_series;
use everloop::{Device, Parameters, Recorder, Rng, Store, Workspace, loss};
use serde_json::Value;
use std::sync::OnceLock;

/// The GPU, one for all tests. Without one a test is skipped, which it says, or fails where one is required.
fn gpu() -> Option<Device> {
    static GPU: OnceLock<Option<Device>> = OnceLock::new();
    let device = GPU.get_or_init(|| match Device::gpu() {
        Ok(device) => Some(device),
        Err(error) if std::env::var("EVERLOOP_REQUIRE_GPU").is_ok_and(|v| v == "1") => {
            panic!("EVERLOOP_REQUIRE_GPU=1, but: {error}")
        }
        Err(_) => None,
    });
    if device.is_none() {
        eprintln!("skipped: no GPU adapter");
    }
    device.clone()
}

fn check(name: &str, device: &Device, tolerances: Tolerances) {
    let fixture = load(name);
    let run = Model::new(&fixture, THEIRS, false).and_then(|model| model.check_run(device, tolerances));
    let training = Model::new(&fixture, THEIRS, true).and_then(|model| model.check_training(device, tolerances));
    let (run, training) = (run.unwrap(), training.unwrap());
    let title = format!("{name} on {}", device.name());
    let mut failures = run.failures.clone();
    failures.extend(training.failures.clone());
    let all = Report {
        names: run.names.iter().chain(&training.names).cloned().collect(),
        numbers: run.numbers + training.numbers,
        worst: if training.worst.0 > run.worst.0 { training.worst } else { run.worst },
        failures,
    };
    all.assert_passed(&title);
}

macro_rules! fixtures {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            use super::*;

            #[test]
            fn cpu_f64() {
                check(stringify!($name), &Device::cpu_f64(), F64);
            }

            #[test]
            fn cpu_f32() {
                check(stringify!($name), &Device::cpu(), F32);
            }

            #[test]
            fn gpu() {
                if let Some(device) = super::gpu() {
                    check(stringify!($name), &device, F32);
                }
            }
        }
    )* };
}

fixtures! {
    single_seed,
    single_random,
    single_forgetbias0_random,
    initstate_seed,
    initstate_random,
    initstate_multi_random,
    multi_seed,
    multi_random,
    bi_seed,
    bi_random,
    bimulti_seed,
    bimulti_random,
    indep_batch_many_to_one,
    indep_bi_final_state,
    indep_many_to_many_lengths_bi,
    indep_layernorm_lstm,
    indep_layernorm_dropout_lstm,
    indep_dropout_basic_lstm,
    indep_peephole_proj_lstm,
}

#[test]
fn every_fixture_is_tested() {
    let source = include_str!("golden_deep_breathe.rs");
    let (_, list) = source.split_once("fixtures! {").unwrap();
    let (list, _) = list.split_once('}').unwrap();
    let folder = format!("{}/tests/fixtures/deep-breathe", env!("CARGO_MANIFEST_DIR"));
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap().file_name().into_string().unwrap();
        let Some(name) = file.strip_suffix(".json") else { continue };
        let tested = list.contains(&format!(" {name},")) || source.contains(&format!("fn {name}()"));
        assert!(tested, "{name} is not tested");
    }
}

fn on_all_devices(test: impl Fn(&Device, Tolerances)) {
    test(&Device::cpu_f64(), F64);
    test(&Device::cpu(), F32);
    if let Some(device) = gpu() {
        test(&device, F32);
    }
}

#[test]
fn the_input_past_the_end_of_a_row_does_not_matter() {
    let mut fixture = load("indep_many_to_many_lengths_bi");
    let x = fixture["inputs"]["x"]["data"].as_array_mut().unwrap();
    // x is [3, 4, 5], the lengths 4, 2, 3
    for past in [30..40, 55..60] {
        x[past].fill(3e38.into());
    }
    on_all_devices(|device, tolerances| {
        let report = Model::new(&fixture, THEIRS, false).unwrap().check_run(device, tolerances).unwrap();
        report.assert_passed(&format!("3e38 past the end on {}", device.name()));
    });
}

#[test]
fn cell_single_call() {
    let fixture = load("cell_single_call");
    let (inputs, expected) = (&fixture["inputs"], &fixture["expected"]);
    let number = |name: &str| inputs[name].as_f64().unwrap();
    let (input, hidden) = (number("input_size") as usize, number("hidden") as usize);
    on_all_devices(|device, tolerances| {
        let mut parameters = Parameters::new();
        let config = LstmConfig::new(input, hidden).with_forget_bias(number("forget_bias"));
        let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(0)).unwrap();
        for (name, value) in [
            ("lstm.weight_ih_l0", number("weight")),
            ("lstm.weight_hh_l0", number("weight")),
            ("lstm.bias_ih_l0", number("bias")),
            ("lstm.bias_hh_l0", 0.0),
        ] {
            let len = parameters.get(name).unwrap().len();
            parameters.set(name, &vec![value; len]).unwrap();
        }
        let mut rec = Recorder::new(&parameters);
        let x = rec.input("x", &[1, 1, input]).unwrap();
        let h = rec.input("h0", &[1, hidden]).unwrap();
        let c = rec.input("c0", &[1, hidden]).unwrap();
        let initial = LstmState { h, c };
        lstm.record(&mut rec, &x, Some(std::slice::from_ref(&initial))).unwrap();
        let mut workspace = Workspace::new(&Store::new(device, &parameters).unwrap(), rec.finish()).unwrap();
        workspace.poison().unwrap();
        for (slot, name) in [(&x, "x"), (&initial.h, "h0"), (&initial.c, "c0")] {
            workspace.write(slot, &Array::parse(&inputs[name]).data).unwrap();
        }
        workspace.run().unwrap();
        let cells = read_series(&mut workspace).unwrap();
        let step = &cells[0].steps[0];
        assert!(step.gradients.is_none() && cells[0].initial_gradient_difference().is_none());
        let mut report = Report::default();
        let parts = [("f", &step.f), ("i", &step.i), ("g", &step.g), ("o", &step.o), ("c", &step.c), ("h", &step.h)];
        for (name, ours) in parts {
            report.compare(name, tolerances.outputs, &of_ndarray(ours), &Array::parse(&expected[name]));
        }
        report.assert_passed(&format!("cell_single_call on {}", device.name()));
    });
}

#[test]
fn softmax_ce() {
    let fixture = load("softmax_ce");
    let logits = Array::parse(&fixture["inputs"]["logits"]);
    let labels: Vec<u32> = Array::parse(&fixture["inputs"]["labels"]).data.iter().map(|id| *id as u32).collect();
    let expected = |name: &str| Array::parse(&fixture["expected"][name]);
    let classes = logits.shape[1];
    // the loss is a mean over rows; theirs is one for each row, and the gradient that of the sum
    let run = |device: &Device, rows: std::ops::Range<usize>| {
        let parameters = Parameters::new();
        let mut rec = Recorder::new(&parameters);
        let x = rec.input("logits", &[rows.len(), classes]).unwrap();
        rec.want_gradient(&x).unwrap();
        let targets = rec.targets("targets", &[rows.len()], classes).unwrap();
        let made = loss::softmax_cross_entropy(&mut rec, "loss", &x, &targets).unwrap();
        rec.backward(&made.loss).unwrap();
        let plan = rec.finish();
        let dlogits = plan.tensor(&gradient_name("logits")).unwrap();
        let mut workspace = Workspace::new(&Store::new(device, &parameters).unwrap(), plan).unwrap();
        workspace.poison().unwrap();
        workspace.write(&x, &logits.data[rows.start * classes..rows.end * classes]).unwrap();
        workspace.write_tokens(&targets, &labels[rows]).unwrap();
        workspace.run().unwrap();
        let loss = workspace.scalar(&made.loss).unwrap();
        (loss, read(&mut workspace, &made.probabilities).unwrap(), read(&mut workspace, &dlogits).unwrap())
    };
    on_all_devices(|device, tolerances| {
        let mut report = Report::default();
        let within = tolerances.outputs;
        let count = labels.len();
        let (mean, probs, dlogits) = run(device, 0..count);
        report.compare("probs", within, &probs, &expected("probs"));
        let sum = Array::new(&dlogits.shape, dlogits.data.iter().map(|d| d * count as f64).collect());
        report.compare("dlogits_sum_loss", within, &sum, &expected("dlogits_sum_loss"));
        let losses: Vec<f64> = (0..count).map(|row| run(device, row..row + 1).0).collect();
        let mean_of_rows = losses.iter().sum::<f64>() / count as f64;
        report.compare("loss", within, &Array::new(&[count], losses), &expected("loss"));
        report.compare("mean", within, &Array::new(&[], vec![mean]), &Array::new(&[], vec![mean_of_rows]));
        // dp_i / dlogit_j = p_i (1[i = j] - p_j)
        for (row, p) in probs.data.chunks(classes).enumerate() {
            let entry = |i: usize, j: usize| p[i] * (if i == j { 1.0 } else { 0.0 } - p[j]);
            let jacobian = (0..classes).flat_map(|i| (0..classes).map(move |j| entry(i, j))).collect();
            let name = format!("jacobian_row{row}");
            report.compare(&name, within, &Array::new(&[classes, classes], jacobian), &expected(&name));
        }
        report.assert_passed(&format!("softmax_ce on {}", device.name()));
    });
}

/// The comparison itself: with an error planted, on the CPU at the wide tolerance, it must fail, at the names where
/// that error can show.
mod planted_errors {
    use super::*;

    fn run(fixture: &Value, order: [usize; 4]) -> Report {
        Model::new(fixture, order, false).unwrap().check_run(&Device::cpu(), F32).unwrap()
    }

    fn train(fixture: &Value) -> Report {
        Model::new(fixture, THEIRS, true).unwrap().check_training(&Device::cpu(), F32).unwrap()
    }

    fn exchange(fixture: &mut Value, [left, right]: [String; 2]) {
        let first = fixture.pointer(&left).unwrap().clone();
        let second = std::mem::replace(fixture.pointer_mut(&right).unwrap(), first);
        *fixture.pointer_mut(&left).unwrap() = second;
    }

    fn assert_only(report: &Report, names: &[&str]) {
        let found: Vec<&str> = report.failures.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(found, names);
    }

    #[test]
    fn nothing_planted() {
        run(&load("single_random"), THEIRS).assert_passed("run");
        train(&load("single_random")).assert_passed("training");
    }

    #[test]
    fn two_gates_swapped() {
        for order in [[0, 1, 2, 3], [1, 0, 3, 2], [1, 2, 0, 3]] {
            let report = run(&load("single_random"), order);
            assert!(report.failed("logits") && report.failed("loss") && report.failed("grads.fw.0.W"), "{order:?}");
            assert!(report.failed("fw.0.step0.i") || report.failed("fw.0.step0.g"), "{order:?}");
        }
    }

    /// Pointers to all tensors of a fixture at and below `path`.
    fn tensors(fixture: &Value, path: &str) -> Vec<String> {
        match fixture.pointer(path).unwrap().as_object() {
            None => Vec::new(),
            Some(fields) if fields.contains_key("data") => vec![path.to_string()],
            Some(fields) => fields.keys().flat_map(|key| tensors(fixture, &format!("{path}/{key}"))).collect(),
        }
    }

    #[test]
    fn a_sign_flipped_in_any_expected_value() {
        for (name, least) in [
            ("single_random", 55),
            ("indep_many_to_many_lengths_bi", 17),
            ("indep_layernorm_lstm", 44),
            ("indep_layernorm_dropout_lstm", 44),
            ("indep_dropout_basic_lstm", 35),
            ("indep_peephole_proj_lstm", 39),
        ] {
            let original = load(name);
            let paths = tensors(&original, "/expected");
            assert!(paths.len() >= least, "{name}: {paths:?}");
            for path in paths {
                let mut fixture = original.clone();
                let data = fixture.pointer_mut(&format!("{path}/data")).unwrap().as_array_mut().unwrap();
                let largest =
                    |a: &&mut Value, b: &&mut Value| a.as_f64().unwrap().abs().total_cmp(&b.as_f64().unwrap().abs());
                let value = data.iter_mut().max_by(largest).unwrap();
                // with no state before it, step 0 has some that are all 0
                *value = value.as_f64().filter(|v| *v != 0.0).map_or(1e-3, |v| -v).into();
                let report = run(&fixture, THEIRS);
                // the gradient of b is compared with those of both biases
                let wanted = if path.ends_with("grads/fw.0.b") || path.ends_with("grads/bw.0.b") { 2 } else { 1 };
                assert_eq!(report.failures.len(), wanted, "{name}{path}: {:?}", report.failures);
            }
        }
    }

    #[test]
    fn another_number_in_the_options() {
        let (lengths, norm, both, peephole) = (
            "indep_many_to_many_lengths_bi",
            "indep_layernorm_lstm",
            "indep_layernorm_dropout_lstm",
            "indep_peephole_proj_lstm",
        );
        let (mask, basic) = ("/inputs/dropout_mask/data/1", "indep_dropout_basic_lstm");
        for (name, path, value, seen) in [
            (lengths, "/inputs/lengths/1", 3.0, ["outputs", "loss", "final_state.bw.0.h", "grads_input.x"]),
            (lengths, "/inputs/lengths/1", 1.0, ["outputs", "loss", "final_state.fw.0.c", "grads.bw.0.W"]),
            (norm, "/config/layer_norm_eps", 1e-3, ["step0.f", "logits", "grads.fw.0.ln_c.gamma", "grads.fw.0.W"]),
            (norm, "/config/forget_bias", 0.0, ["step0.f", "logits", "grads.fw.0.ln_f.beta", "grads.fw.0.W"]),
            (both, "/config/dropout_keep_prob", 0.75, ["step0.g", "logits", "grads.fw.0.ln_g.beta", "grads.fw.0.W"]),
            (both, mask, 1.0, ["step0.g", "step0.c", "logits", "grads.fw.0.W"]),
            (basic, mask, 1.0, ["step0.g", "step0.c", "logits", "grads.fw.0.W"]),
            (peephole, "/config/cell_clip", 0.6, ["step0.c", "logits", "grads.fw.0.p_o", "grads.fw.0.W"]),
            (peephole, "/config/proj_clip", 0.3, ["step0.h", "logits", "grads.fw.0.proj", "grads.fw.0.W"]),
        ] {
            let mut fixture = load(name);
            let place = fixture.pointer_mut(path).unwrap();
            assert_ne!(place.as_f64(), Some(value));
            *place = value.into();
            let report = run(&fixture, THEIRS);
            assert!(seen.iter().all(|name| report.failed(name)), "{name}{path}: {:?}", report.failures);
        }
    }

    #[test]
    fn values_past_the_end_of_a_row() {
        let mut fixture = load("indep_many_to_many_lengths_bi");
        fixture["inputs"]["lengths"][1] = 3.into();
        let report = run(&fixture, THEIRS);
        for name in ["outputs", "grads_input.x"] {
            let zeros = |(n, what): &(String, String)| n == name && what.contains("not exactly 0");
            assert!(report.failures.iter().any(zeros), "{:?}", report.failures);
        }
    }

    #[test]
    fn parameters_of_a_cell_exchanged() {
        for (name, [left, right], seen) in [
            ("indep_layernorm_lstm", ["ln_f.gamma", "ln_f.beta"], "step0.f"),
            ("indep_layernorm_lstm", ["ln_i.gamma", "ln_g.gamma"], "step0.i"),
            ("indep_layernorm_lstm", ["ln_o.beta", "ln_c.beta"], "step0.c"),
            ("indep_peephole_proj_lstm", ["p_f", "p_i"], "step0.f"),
            ("indep_peephole_proj_lstm", ["p_i", "p_o"], "step0.o"),
        ] {
            let mut fixture = load(name);
            exchange(&mut fixture, [left, right].map(|part| format!("/params/fw.0.{part}")));
            let report = run(&fixture, THEIRS);
            assert!(report.failed(seen) && report.failed("logits"), "{left} {right}: {:?}", report.failures);
        }
    }

    #[test]
    fn a_relative_error_of_a_ten_thousandth() {
        let mut fixture = load("single_random");
        let value = fixture.pointer_mut("/expected/bptt/fw.0.step2/dct/data/0").unwrap();
        *value = (value.as_f64().unwrap() * (1.0 + 1e-4)).into();
        assert_only(&run(&fixture, THEIRS), &["fw.0.step2.dct"]);
    }

    #[test]
    fn a_time_step_dropped() {
        let mut fixture = load("single_random");
        fixture["config"]["seq"] = 2.into();
        fixture["inputs"]["x_ids"]["data"].as_array_mut().unwrap().remove(0);
        let report = run(&fixture, THEIRS);
        assert!(report.failed("logits") && report.failed("steps") && report.failed("fw_out"), "{:?}", report.failures);
    }

    #[test]
    fn steps_in_the_wrong_order() {
        let mut fixture = load("single_random");
        fixture["inputs"]["x_ids"]["data"].as_array_mut().unwrap().swap(0, 1);
        let report = run(&fixture, THEIRS);
        assert!(report.failed("logits") && report.failed("fw.0.step0.f"), "{:?}", report.failures);
    }

    #[test]
    fn the_forget_bias_left_out() {
        let mut fixture = load("single_random");
        fixture["config"]["forget_bias"] = 0.0.into();
        let report = run(&fixture, THEIRS);
        assert!(report.failed("fw.0.step0.f") && report.failed("logits"), "{:?}", report.failures);
        assert!(!report.failed("fw.0.step0.i"));
        assert!(train(&fixture).failed("losses"));
    }

    #[test]
    fn an_initial_state_left_out() {
        let mut fixture = load("initstate_random");
        let state = &mut fixture["inputs"]["initial_state"]["fw.0.h0"]["data"];
        *state = vec![0.0; 5].into();
        let report = run(&fixture, THEIRS);
        assert!(report.failed("fw.0.step0.f") && report.failed("grads.fw.0.W"), "{:?}", report.failures);
    }

    #[test]
    fn the_directions_exchanged() {
        let mut fixture = load("bi_random");
        for part in ["W", "b"] {
            exchange(&mut fixture, ["fw", "bw"].map(|direction| format!("/params/{direction}.0.{part}")));
        }
        let report = run(&fixture, THEIRS);
        assert!(report.failed("bw_out") && report.failed("fw_out") && report.failed("logits"), "{:?}", report.failures);
    }

    #[test]
    fn rows_of_a_batch_exchanged() {
        let mut fixture = load("indep_batch_many_to_one");
        fixture["inputs"]["targets"]["data"].as_array_mut().unwrap().swap(0, 1);
        let report = run(&fixture, THEIRS);
        assert!(
            !report.failed("logits") && report.failed("loss") && report.failed("grads.dense.W"),
            "{:?}",
            report.failures
        );
    }

    #[test]
    fn a_wrong_learning_rate() {
        let mut fixture = load("single_random");
        fixture["config"]["learning_rate"] = 0.101.into();
        let report = train(&fixture);
        assert!(report.failed("losses") && report.failed("params_after.20.fw.0.W"), "{:?}", report.failures);
    }

    #[test]
    fn an_expectation_that_nothing_compares() {
        let mut fixture = load("single_random");
        fixture["expected"]["attention"] = 1.0.into();
        fixture["expected"]["bptt"]["fw.0.step0"]["dnew"] = 1.0.into();
        assert_eq!(run(&fixture, THEIRS).failures.len(), 2);
    }
}

#[test]
fn kernels_split_and_join() {
    let kernel = Array::new(&[8, 5], (0..40).map(f64::from).collect());
    let [weight_ih, weight_hh] = split_kernel(&kernel, 3, THEIRS);
    assert_eq!((weight_ih.shape.as_slice(), weight_hh.shape.as_slice()), (&[8, 3][..], &[8, 2][..]));
    // our first row is i, their third
    assert_eq!((&weight_ih.data[..3], &weight_hh.data[..2]), (&[10.0, 11.0, 12.0][..], &[13.0, 14.0][..]));
    assert_eq!(join_kernel([&weight_ih, &weight_hh], THEIRS), kernel);
}
