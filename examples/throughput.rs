//! One measurement as one JSON line: a workload, a mode, a device.
//!
//! ```text
//! cargo run --release --example throughput -- --workload W2 --mode train --device cpu --json
//! ```
//!
//! | workload | batch | steps | input | hidden | layers |
//! |---|--:|--:|--:|--:|--:|
//! | W1 | 1 | 64 | 64 | 64 | 1 |
//! | W2 | 32 | 64 | 128 | 256 | 2 |
//! | W3 | 64 | 128 | 512 | 512 | 1 |
//! | W4 | 64 | 64 | 1024 | 1024 | 2 |
//! | W5 | 1 | 256 single steps with carried state, time per step | 256 | 256 | 1 |
//! | W6 | 8 | 1024 | 128 | 128 | 1 |
//!
//! Modes: `fwd`; `fwd_sync`, the same with h read back (W5: on every step); `train`: forward, mean squared error,
//! backward, SGD update of all weights (W5: over the 256 steps as one sequence).

use clap::{Parser, ValueEnum};
use everloop::kernel::AdapterClass;
use everloop::layers::{Lstm, LstmConfig, LstmState};
use everloop::optimizer::SgdConfig;
use everloop::run::Counters;
use everloop::{Device, Parameters, Recorder, Result, Rng, Tensor, Workspace, loss};
use std::process::ExitCode;
use std::time::Instant;

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "UPPER")]
enum Name {
    W1,
    W2,
    W3,
    W4,
    W5,
    W6,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Mode {
    Fwd,
    FwdSync,
    Train,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shaders {
    Hardware,
    Software,
}

/// Measures one workload on one device.
#[derive(Parser)]
struct Arguments {
    /// Workload, see the table in the source.
    #[arg(long, ignore_case = true)]
    workload: Name,
    /// What to time.
    #[arg(long)]
    mode: Mode,
    /// auto, gpu, cpu, cpu-f64 or part of an adapter's name.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print one JSON line.
    #[arg(long)]
    json: bool,
    /// Runs to take the median of.
    #[arg(long, default_value_t = 9)]
    n: usize,
    /// Seconds after which no further run starts.
    #[arg(long, default_value_t = 30.0)]
    budget: f64,
    /// Use the shaders meant for a class of adapter, to compare them; by default those of the adapter's own.
    #[arg(long)]
    shaders: Option<Shaders>,
    /// Print the plan with every slot and its bytes, and stop.
    #[arg(long)]
    plan: bool,
    /// Steps in place of the workload's own.
    #[arg(long)]
    steps: Option<usize>,
}

#[derive(Clone, Copy)]
struct Workload {
    batch: usize,
    steps: usize,
    input: usize,
    hidden: usize,
    layers: usize,
    streaming: bool,
}

impl Workload {
    fn of(name: Name) -> Self {
        let [batch, steps, input, hidden, layers] = match name {
            Name::W1 => [1, 64, 64, 64, 1],
            Name::W2 => [32, 64, 128, 256, 2],
            Name::W3 => [64, 128, 512, 512, 1],
            Name::W4 => [64, 64, 1024, 1024, 2],
            Name::W5 => [1, 256, 256, 256, 1],
            Name::W6 => [8, 1024, 128, 128, 1],
        };
        Workload { batch, steps, input, hidden, layers, streaming: matches!(name, Name::W5) }
    }

    /// Multiply-adds of one forward pass, counted twice.
    fn forward_flops(&self) -> f64 {
        let layer =
            |l: usize| 8.0 * self.hidden as f64 * (if l == 0 { self.input } else { self.hidden } + self.hidden) as f64;
        (0..self.layers).map(layer).sum::<f64>() * (self.batch * self.steps) as f64
    }
}

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let mut workload = Workload::of(arguments.workload);
    workload.steps = arguments.steps.unwrap_or(workload.steps);
    let mut device = Device::parse(&arguments.device)?;
    device = match arguments.shaders {
        None => device,
        Some(Shaders::Hardware) => device.with_shaders_for(AdapterClass::Hardware),
        Some(Shaders::Software) => device.with_shaders_for(AdapterClass::Software),
    };
    let mut parameters = Parameters::new();
    let config = LstmConfig::new(workload.input, workload.hidden).with_layers(workload.layers);
    let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(1))?;
    let mut session = match workload.streaming && arguments.mode != Mode::Train {
        true => Session::streaming(&workload, &lstm, &parameters, &device, arguments)?,
        false => Session::sequence(&workload, &lstm, &parameters, &device, arguments)?,
    };
    let Some(session) = &mut session else { return Ok(()) };

    let started = Instant::now();
    for _ in 0..3 {
        session.call(arguments.mode)?;
        if started.elapsed().as_secs_f64() > 2.0 {
            break;
        }
    }
    let (warm, started) = (session.workspace.counters(), Instant::now());
    let mut seconds = Vec::new();
    while seconds.len() < arguments.n.max(1)
        && (seconds.is_empty() || started.elapsed().as_secs_f64() < arguments.budget)
    {
        let start = Instant::now();
        session.call(arguments.mode)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let calls = (seconds.len() * session.runs) as u64;
    let spent = session.workspace.counters() - warm;
    if let Some(loss) = &session.loss {
        session.workspace.scalar(loss)?;
    }
    seconds.sort_by(f64::total_cmp);
    report(arguments, &workload, &device, &seconds, per_call(spent, calls));
    Ok(())
}

fn per_call(spent: Counters, calls: u64) -> [f64; 4] {
    [spent.dispatches, spent.submits, spent.read_backs, spent.bytes_allocated].map(|count| count as f64 / calls as f64)
}

fn report(arguments: &Arguments, workload: &Workload, device: &Device, seconds: &[f64], counts: [f64; 4]) {
    let steps = if workload.streaming { workload.steps as f64 } else { 1.0 };
    let (median, least) = (seconds[seconds.len() / 2] / steps, seconds[0] / steps);
    let flops = workload.forward_flops() / steps * if arguments.mode == Mode::Train { 3.0 } else { 1.0 };
    let mode = arguments.mode.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default();
    let [dispatches, submits, read_backs, bytes] = counts;
    let line = serde_json::json!({
        "system": "everloop",
        "version": env!("CARGO_PKG_VERSION"),
        "backend": if device.is_gpu() { "wgpu" } else { "cpu" },
        "workload": format!("{:?}", arguments.workload),
        "mode": mode,
        "ms_median": median * 1e3,
        "ms_min": least * 1e3,
        "n": seconds.len(),
        "gflops": flops / median / 1e9,
        "peak_rss_mib": peak_rss_mib(),
        "adapter": device.name(),
        "software_adapter": device.is_software(),
        "driver": device.driver(),
        "dispatches": dispatches,
        "submits": submits,
        "read_backs": read_backs,
        "bytes_allocated": bytes,
    });
    if arguments.json {
        println!("{line}");
    } else {
        println!("{device}");
        println!(
            "{:?} {mode}: {:.4} ms (least {:.4}, n {}), {:.2} GFLOP/s",
            arguments.workload,
            median * 1e3,
            least * 1e3,
            seconds.len(),
            flops / median / 1e9
        );
        println!(
            "per step: {dispatches} dispatches, {submits} submits, {read_backs} read-backs, {bytes} bytes allocated"
        );
    }
}

/// Largest resident set so far, on Linux; 0 elsewhere.
fn peak_rss_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// A plan in its workspace, and what one timed call does with it.
struct Session {
    workspace: Workspace,
    /// Runs of the plan in a call.
    runs: usize,
    loss: Option<Tensor>,
    /// Input of each run, for streaming.
    inputs: Vec<Vec<f32>>,
    x: Tensor,
    h: Tensor,
}

impl Session {
    fn sequence(
        workload: &Workload,
        lstm: &Lstm,
        parameters: &Parameters,
        device: &Device,
        arguments: &Arguments,
    ) -> Result<Option<Session>> {
        let mut rec = Recorder::new(parameters);
        let x = rec.input("x", &[workload.steps, workload.batch, workload.input])?;
        let output = lstm.record(&mut rec, &x, None)?.output;
        let mut target = None;
        let mut loss = None;
        if arguments.mode == Mode::Train {
            let wanted = rec.input("target", output.shape())?;
            let made = loss::mean_squared_error(&mut rec, "loss", &output, &wanted)?;
            rec.backward(&made)?;
            SgdConfig::new(0.01).record(&mut rec)?;
            (target, loss) = (Some(wanted), Some(made));
        }
        let plan = rec.finish();
        if arguments.plan {
            print!("{plan}");
            return Ok(None);
        }
        let mut workspace = Workspace::new(device, plan, parameters)?;
        workspace.write(&x, &Rng::new(7).vector(x.len(), 1.0))?;
        if let Some(target) = &target {
            workspace.write(target, &Rng::new(9).vector(target.len(), 1.0))?;
        }
        Ok(Some(Session { workspace, runs: 1, loss, inputs: vec![Vec::new()], x, h: output }))
    }

    fn streaming(
        workload: &Workload,
        lstm: &Lstm,
        parameters: &Parameters,
        device: &Device,
        arguments: &Arguments,
    ) -> Result<Option<Session>> {
        let mut rec = Recorder::new(parameters);
        let x = rec.input("x", &[1, workload.batch, workload.input])?;
        let state = |rec: &mut Recorder<'_>, name: &str| rec.input(name, &[workload.batch, workload.hidden]);
        let carried = LstmState { h: state(&mut rec, "carried.h")?, c: state(&mut rec, "carried.c")? };
        let out = lstm.record(&mut rec, &x, Some(std::slice::from_ref(&carried)))?;
        let last = &out.state[0];
        for (from, to) in [(&last.h, &carried.h), (&last.c, &carried.c)] {
            everloop::kernels::copy_columns::record(&mut rec, (from, 0), (to, 0), workload.hidden, false)?;
        }
        let plan = rec.finish();
        if arguments.plan {
            print!("{plan}");
            return Ok(None);
        }
        let workspace = Workspace::new(device, plan, parameters)?;
        let inputs = |t: usize| {
            (0..x.len())
                .map({
                    let mut rng = Rng::new(t as u64);
                    move |_| rng.symmetric(1.0) as f32
                })
                .collect()
        };
        let inputs = (0..workload.steps).map(inputs).collect();
        Ok(Some(Session { workspace, runs: workload.steps, loss: None, inputs, x, h: out.output }))
    }

    fn call(&mut self, mode: Mode) -> Result<()> {
        for input in &self.inputs {
            if !input.is_empty() {
                self.workspace.write(&self.x, input)?;
            }
            self.workspace.run()?;
            if mode == Mode::FwdSync {
                std::hint::black_box(self.workspace.read::<f32>(&self.h)?);
            }
        }
        self.workspace.finish()
    }
}
