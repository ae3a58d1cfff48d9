//! CPU against GPU on the workloads of the example `throughput`: `cargo bench`. Prints which adapter it used.

#[path = "../examples/workloads/mod.rs"]
mod workloads;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use everloop::Device;
use std::time::Duration;
use workloads::{Mode, WORKLOADS};

fn compare(criterion: &mut Criterion) {
    let mut devices = vec![("cpu", Device::cpu())];
    match Device::gpu() {
        Ok(gpu) => {
            println!("gpu: {gpu}");
            devices.push((if gpu.is_software() { "software-adapter" } else { "gpu" }, gpu));
        }
        Err(error) => println!("no GPU to compare with: {error}"),
    }
    for (mode, name) in [(Mode::Fwd, "forward"), (Mode::Train, "train")] {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
        for workload in WORKLOADS {
            for (label, device) in &devices {
                // seconds a run on a CPU that plays a GPU, and no news in it
                if device.is_software() && ["W3", "W4"].contains(&workload.name) {
                    println!("{name}/{}: left out on the software adapter {}", workload.name, device.name());
                    continue;
                }
                match workload.record(mode).and_then(|recorded| recorded.open(device)) {
                    Ok(mut session) => {
                        // elements are floating point operations: Gelem/s reads as GFLOP/s
                        let passes = if mode == Mode::Train { 3.0 } else { 1.0 };
                        group.throughput(Throughput::Elements((passes * workload.forward_flops()) as u64));
                        group.bench_function(BenchmarkId::new(*label, workload.name), |bench| {
                            bench.iter(|| session.call(mode).expect("the device must run"))
                        });
                        if let Some(Err(error)) = session.loss.clone().map(|loss| session.workspace.scalar(&loss)) {
                            println!("{name}/{} on {label}: {error}", workload.name);
                        }
                    }
                    Err(error) => println!("{name}/{} on {label}: {error}", workload.name),
                }
            }
        }
        group.finish();
    }
}

criterion_group!(benches, compare);
criterion_main!(benches);
