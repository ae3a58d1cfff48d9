//! One store, many workspaces: parameters once, whoever trains them, and weights packed once.

mod common;

use common::gpu;
use everloop::layers::{DenseConfig, Lstm, LstmConfig};
use everloop::optimizer::SgdConfig;
use everloop::{Device, Error, Parameters, Plan, Recorder, Result, Rng, Store, Stream, Tensor, Workspace, loss};
use std::sync::Arc;

fn devices() -> Vec<Device> {
    [Some(Device::cpu()), Some(Device::cpu_f64()), gpu()].into_iter().flatten().collect()
}

fn model(hidden: usize) -> Result<(Parameters, Lstm)> {
    let (rng, mut parameters) = (&mut Rng::new(1), Parameters::new());
    let lstm = LstmConfig::new(8, hidden).declare(&mut parameters, "lstm", rng)?;
    DenseConfig::new(hidden, 3).declare(&mut parameters, "dense", rng)?;
    Ok((parameters, lstm))
}

/// A step of training over a batch; with `frozen` the LSTM is not trained.
fn trainer(parameters: &Parameters, lstm: &Lstm, batch: usize, frozen: bool) -> Result<Arc<Plan>> {
    let mut rec = Recorder::new(parameters);
    if frozen {
        rec.freeze("lstm")?;
    }
    let x = rec.input("x", &[5, batch, 8])?;
    let h = lstm.record(&mut rec, &x, None)?.state[0].h.clone();
    let dense = everloop::layers::Dense { config: DenseConfig::new(h.columns(), 3), name: "dense".into() };
    let y = dense.record(&mut rec, &h)?;
    let wanted = rec.input("wanted", y.shape())?;
    let loss = loss::mean_squared_error(&mut rec, "loss", &y, &wanted)?;
    rec.backward(&loss)?;
    SgdConfig::new(0.3).record(&mut rec)?;
    Ok(Arc::new(rec.finish()))
}

fn write(workspace: &mut Workspace, seed: u64) -> Result<()> {
    let plan = workspace.plan().clone();
    for name in ["x", "wanted"] {
        let tensor: Tensor = plan.tensor(name)?;
        workspace.write(&tensor, &Rng::new(seed).vector(tensor.len(), 1.0))?;
    }
    Ok(())
}

/// The published worst case was 50 streams of a model of 12 MiB in 1.2 GiB.
#[test]
fn fifty_streams_hold_the_weights_once() {
    let (parameters, lstm) = model(864).unwrap();
    let model_bytes = parameters.count() as u64 * 4;
    assert!(model_bytes > 11 << 20, "{model_bytes}");
    for device in [Some(Device::cpu()), gpu()].into_iter().flatten() {
        let store = Store::new(&device, &parameters).unwrap();
        let mut streams: Vec<Stream> = (0..50).map(|_| Stream::new(&store, &lstm, 1).unwrap()).collect();
        let mut outputs = Vec::new();
        for stream in &mut streams {
            outputs.push(stream.step(&[0.5f32; 8]).unwrap());
        }
        assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]), "{device}");
        let own: u64 = streams.iter().map(|stream| stream.counters().bytes_allocated).sum();
        // on the CPU the weights are there a second time, packed
        assert!(store.bytes() < 5 * model_bytes / 2, "{} bytes in the store on {device}", store.bytes());
        assert!(own < 50 * 200_000, "{own} bytes of streams on {device}");
    }
}

#[test]
fn every_plan_of_a_store_sees_the_weights_as_they_are() {
    let (mut parameters, lstm) = model(16).unwrap();
    for device in devices() {
        let store = Store::new(&device, &parameters).unwrap();
        let mut train = Workspace::new(&store, trainer(&parameters, &lstm, 4, false).unwrap()).unwrap();
        let mut stream = Stream::new(&store, &lstm, 1).unwrap();
        write(&mut train, 3).unwrap();
        let mut seen = Vec::new();
        for _ in 0..3 {
            stream.reset(0).unwrap();
            seen.push(stream.step::<f64>(&[0.5f64; 8]).unwrap());
            // what was packed for the stream is of no use behind an update
            train.run().unwrap();
            let mut now = parameters.clone();
            store.read(&mut now).unwrap();
            let mut alone = Stream::new(&Store::new(&device, &now).unwrap(), &lstm, 1).unwrap();
            stream.reset(0).unwrap();
            assert_eq!(stream.step::<f64>(&[0.5f64; 8]).unwrap(), alone.step::<f64>(&[0.5f64; 8]).unwrap(), "{device}");
        }
        assert!(seen[0] != seen[1] && seen[1] != seen[2], "{device}");
        store.write(&parameters).unwrap();
        stream.reset(0).unwrap();
        assert_eq!(stream.step::<f64>(&[0.5f64; 8]).unwrap(), seen[0], "{device}");
    }
    let mut other = Parameters::new();
    DenseConfig::new(1, 1).declare(&mut other, "dense", &mut Rng::new(1)).unwrap();
    let store = Store::new(&Device::cpu(), &parameters).unwrap();
    assert!(matches!(store.read(&mut other), Err(Error::Config { .. })));
    assert!(matches!(store.write(&other), Err(Error::Config { .. })));
    let plan = Recorder::new(&other).finish();
    assert!(matches!(Workspace::new(&store, plan), Err(Error::Config { .. })));
    store.read(&mut parameters).unwrap();
}

/// Plans that train different parts share the block of gradients: none sees what another left there.
#[test]
fn plans_that_train_in_turn_do_not_mix_their_gradients() {
    let (parameters, lstm) = model(16).unwrap();
    for device in devices() {
        let run = |shared: bool| -> Result<Vec<f64>> {
            let mut store = Store::new(&device, &parameters)?;
            let mut now = parameters.clone();
            let mut kept: Vec<Workspace> = Vec::new();
            for n in 0..6 {
                let (batch, frozen) = if n % 2 == 0 { (4, false) } else { (2, true) };
                if !shared {
                    store = Store::new(&device, &now)?;
                    kept.clear();
                }
                if kept.len() < 2 {
                    kept.push(Workspace::new(&store, trainer(&parameters, &lstm, batch, frozen)?)?);
                }
                let index = if shared { n % 2 } else { 0 };
                write(&mut kept[index], n as u64)?;
                kept[index].run()?;
                store.read(&mut now)?;
            }
            Ok(now.iter().flat_map(|p| now.get(&p.name).unwrap().to_vec()).collect())
        };
        assert_eq!(run(true).unwrap(), run(false).unwrap(), "{device}");
    }
}

/// Streams on several threads while another thread trains: nothing waits for ever, and nothing is torn.
#[test]
fn streams_run_while_another_thread_trains() {
    let (parameters, lstm) = model(64).unwrap();
    for device in devices() {
        let store = Store::new(&device, &parameters).unwrap();
        let runs = if device.is_gpu() { 10 } else { 200 };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut stream = Stream::new(&store, &lstm, 2).unwrap();
                    for _ in 0..runs {
                        assert!(stream.step::<f32>(&[0.5f32; 16]).unwrap().iter().all(|v| v.is_finite()));
                    }
                });
            }
            let mut train = Workspace::new(&store, trainer(&parameters, &lstm, 32, false).unwrap()).unwrap();
            write(&mut train, 1).unwrap();
            (0..runs).for_each(|_| train.run().unwrap());
        });
    }
}
