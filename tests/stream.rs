//! Streaming: T steps against one run over T, state that is read, set, saved and reset.

mod common;

use common::gpu;
use everloop::StreamState;
use everloop::layers::{Bias, Connection, Join, LstmConfig};
use everloop::{Device, Error, Parameters, Recorder, Rng, Store, Stream, Workspace};

/// One of each option, and sizes on both sides of a vector.
fn configs() -> Vec<LstmConfig> {
    let three = LstmConfig::new(5, 24).with_layers(3);
    vec![
        LstmConfig::new(1, 1).with_bias(Bias::None),
        LstmConfig::new(40, 128).with_layers(2),
        LstmConfig::new(3, 33).with_bias(Bias::One).with_projection(7).with_peephole().with_cell_clip(0.4),
        LstmConfig { bidirectional: None, ..LstmConfig::new(300, 70).with_everything() },
        three.clone().with_connection(Connection::Highway).with_forget_bias(1.0),
        three.with_connection(Connection::Residual).with_batch_first().with_projection(24).with_proj_clip(0.1),
    ]
}

const STEPS: usize = 19;

/// The outputs of all steps `[T, B, P]` by one run, and by steps; and whether the final state is the same.
fn both(device: &Device, config: &LstmConfig, streams: usize) -> (Vec<f64>, Vec<f64>) {
    let mut parameters = Parameters::new();
    let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(4)).unwrap();
    let x = Rng::new(5).vector(STEPS * streams * config.input_size, 1.0);
    let mut stream = Stream::new(&Store::new(device, &parameters).unwrap(), &lstm, streams).unwrap();
    let mut stepped = Vec::new();
    for x in x.chunks(streams * config.input_size) {
        stepped.extend(stream.step::<f64>(x).unwrap());
    }
    for layer in stream.state().unwrap().layers {
        stepped.extend(layer.h);
        stepped.extend(layer.c);
    }
    let time_first = LstmConfig { batch_first: false, ..config.clone() };
    let lstm = everloop::layers::Lstm { config: time_first, ..lstm };
    let mut rec = Recorder::new(&parameters);
    let slot = rec.input("x", &[STEPS, streams, config.input_size]).unwrap();
    let made = lstm.record(&mut rec, &slot, None).unwrap();
    let mut workspace = Workspace::new(&Store::new(device, &parameters).unwrap(), rec.finish()).unwrap();
    workspace.write(&slot, &x).unwrap();
    workspace.run().unwrap();
    let mut whole = workspace.read::<f64>(&made.output).unwrap();
    for state in &made.state {
        whole.extend(workspace.read::<f64>(&state.h).unwrap());
        whole.extend(workspace.read::<f64>(&state.c).unwrap());
    }
    (whole, stepped)
}

#[test]
fn steps_equal_one_run_bit_for_bit_on_the_cpu() {
    for (config, streams) in configs().iter().flat_map(|c| [(c, 1), (c, 7), (c, 40)]) {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let (whole, stepped) = both(&device, config, streams);
            let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(bits(&whole) == bits(&stepped), "{streams} streams on {device}, {config:?}");
        }
    }
}

#[test]
fn steps_equal_one_run_on_the_gpu() {
    let Some(gpu) = gpu() else { return };
    for (config, streams) in configs().iter().flat_map(|c| [(c, 1), (c, 7)]) {
        let (whole, stepped) = both(&gpu, config, streams);
        let worst = whole.iter().zip(&stepped).fold(0.0f64, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst <= 1e-6, "{worst} with {streams} streams, {config:?}");
    }
}

#[test]
fn states_are_read_set_saved_and_reset() {
    let folder = std::env::temp_dir().join(format!("everloop-stream-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("state.safetensors");
    for device in [Some(Device::cpu()), Some(Device::cpu_f64()), gpu()].into_iter().flatten() {
        let mut parameters = Parameters::new();
        let config = LstmConfig::new(4, 9).with_layers(2).with_projection(3);
        let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(1)).unwrap();
        let x = Rng::new(2).vector(3 * 4, 1.0);
        let mut stream = Stream::new(&Store::new(&device, &parameters).unwrap(), &lstm, 3).unwrap();
        let begin = stream.state().unwrap();
        assert!(begin.layers.iter().all(|l| l.h.iter().chain(&l.c).all(|v| *v == 0.0)));
        let first = stream.step::<f64>(&x).unwrap();
        stream.state().unwrap().save(&file).unwrap();
        let bytes = stream.state().unwrap().to_bytes().unwrap();
        assert_eq!(StreamState::from_bytes(&bytes).unwrap(), StreamState::load(&file).unwrap());
        assert!(StreamState::from_bytes(&bytes[..20]).is_err());
        let second = stream.step::<f64>(&x).unwrap();
        assert_ne!(first, second);

        let mut other = Stream::new(&Store::new(&device, &parameters).unwrap(), &lstm, 3).unwrap();
        other.set_state(&StreamState::load(&file).unwrap()).unwrap();
        assert_eq!(other.step::<f64>(&x).unwrap(), second, "a saved state went on elsewhere on {device}");

        // the other streams go on
        other.reset(1).unwrap();
        let third = stream.step::<f64>(&x).unwrap();
        let mixed = other.step::<f64>(&x).unwrap();
        assert_eq!((&mixed[..3], &mixed[6..]), (&third[..3], &third[6..]));
        assert!(mixed[3..6] == first[3..6], "{mixed:?} {first:?}");

        let before = stream.state().unwrap();
        assert!(stream.step(&x[..7]).is_err() && stream.step(&[f32::NAN; 12]).is_err());
        assert!(stream.reset(3).is_err());
        let mut wrong = before.clone();
        wrong.layers[1].c[[0, 0]] = f64::INFINITY;
        assert!(stream.set_state(&wrong).is_err());
        wrong.layers.pop();
        assert!(stream.set_state(&wrong).is_err());
        assert_eq!(stream.state().unwrap(), before, "an error must leave the state");
    }
    std::fs::write(&file, b"not a file of weights").unwrap();
    assert!(StreamState::load(&file).is_err());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn two_directions_cannot_stream() {
    let mut parameters = Parameters::new();
    let config = LstmConfig::new(2, 2).with_bidirectional(Join::Layers);
    let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(1)).unwrap();
    let refused = Stream::new(&Store::new(&Device::cpu(), &parameters).unwrap(), &lstm, 1);
    assert!(matches!(refused, Err(Error::Config { .. })), "{refused:?}");
}

/// Weights are packed once where nobody trains them: new ones must be seen all the same.
#[test]
fn new_parameters_take_effect() {
    let mut parameters = Parameters::new();
    let lstm = LstmConfig::new(3, 20).declare(&mut parameters, "lstm", &mut Rng::new(1)).unwrap();
    let mut other = Parameters::new();
    LstmConfig::new(3, 20).declare(&mut other, "lstm", &mut Rng::new(2)).unwrap();
    let run = |workspace: &mut Workspace, out: &everloop::Tensor| {
        workspace.run().unwrap();
        workspace.read::<f32>(out).unwrap()
    };
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[2, 1, 3]).unwrap();
    let out = lstm.record(&mut rec, &x, None).unwrap().output;
    let plan = std::sync::Arc::new(rec.finish());
    let values = Rng::new(3).vector(6, 1.0);
    let fresh = |parameters: &Parameters| {
        let mut workspace = Workspace::new(&Store::new(&Device::cpu(), parameters).unwrap(), plan.clone()).unwrap();
        workspace.write(&x, &values).unwrap();
        run(&mut workspace, &out)
    };
    let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters).unwrap(), plan.clone()).unwrap();
    workspace.write(&x, &values).unwrap();
    assert_eq!(run(&mut workspace, &out), run(&mut workspace, &out));
    workspace.store().write(&other).unwrap();
    assert_eq!(run(&mut workspace, &out), fresh(&other));
    let weight = plan.tensor("lstm.weight_hh_l0").unwrap();
    workspace.write(&weight, parameters.get("lstm.weight_hh_l0").unwrap()).unwrap();
    other.set("lstm.weight_hh_l0", parameters.get("lstm.weight_hh_l0").unwrap()).unwrap();
    assert_eq!(run(&mut workspace, &out), fresh(&other));
}
