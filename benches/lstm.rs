//! CPU against GPU on the workloads of `examples/throughput.rs`: `cargo bench`. Prints which adapter it used.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use everloop::layers::LstmConfig;
use everloop::optimizer::SgdConfig;
use everloop::{Device, Parameters, Recorder, Result, Rng, Workspace, loss};
use std::time::Duration;

/// Name, batch, steps, input, hidden, layers.
const WORKLOADS: [(&str, [usize; 5]); 4] = [
    ("W1", [1, 64, 64, 64, 1]),
    ("W2", [32, 64, 128, 256, 2]),
    ("W3", [64, 128, 512, 512, 1]),
    ("W6", [8, 1024, 128, 128, 1]),
];

fn workspace(device: &Device, [batch, steps, input, hidden, layers]: [usize; 5], train: bool) -> Result<Workspace> {
    let mut parameters = Parameters::new();
    let config = LstmConfig::new(input, hidden).with_layers(layers);
    let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(1))?;
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[steps, batch, input])?;
    let output = lstm.record(&mut rec, &x, None)?.output;
    if train {
        let target = rec.input("target", output.shape())?;
        let loss = loss::mean_squared_error(&mut rec, "loss", &output, &target)?;
        rec.backward(&loss)?;
        SgdConfig::new(0.01).record(&mut rec)?;
    }
    let mut workspace = Workspace::new(device, rec.finish(), &parameters)?;
    workspace.write(&x, &Rng::new(7).vector(x.len(), 1.0))?;
    Ok(workspace)
}

fn compare(criterion: &mut Criterion) {
    let mut devices = vec![("cpu", Device::cpu())];
    match Device::gpu() {
        Ok(gpu) => {
            println!("gpu: {gpu}");
            let name = if gpu.is_software() { "software-adapter" } else { "gpu" };
            devices.push((name, gpu));
        }
        Err(error) => println!("no GPU to compare with: {error}"),
    }
    for mode in ["forward", "train"] {
        let mut group = criterion.benchmark_group(mode);
        group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
        for (name, sizes) in WORKLOADS {
            for (label, device) in &devices {
                // seconds a run on a CPU that plays a GPU, and no news in it
                if device.is_software() && name == "W3" {
                    println!("{mode}/{name}: left out on the software adapter {}", device.name());
                    continue;
                }
                match workspace(device, sizes, mode == "train") {
                    Ok(mut workspace) => {
                        group.bench_function(BenchmarkId::new(*label, name), |b| {
                            b.iter(|| workspace.run().and_then(|()| workspace.finish()).expect("the device must run"))
                        });
                    }
                    Err(error) => println!("{mode}/{name} on {label}: {error}"),
                }
            }
        }
        group.finish();
    }
}

criterion_group!(benches, compare);
criterion_main!(benches);
