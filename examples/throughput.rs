//! One measurement as one JSON line: a workload, a mode, a device. Workloads and modes: `workloads/mod.rs`.
//!
//! ```text
//! cargo run --release --example throughput -- --workload W2 --mode train --device cpu --json
//! ```

mod workloads;

use clap::{Parser, ValueEnum};
use everloop::Counters;
use everloop::Device;
use std::process::ExitCode;
use std::time::Instant;
use workloads::{Mode, WORKLOADS, Workload};

fn workload(text: &str) -> std::result::Result<Workload, String> {
    let found = WORKLOADS.into_iter().find(|w| w.name.eq_ignore_ascii_case(text));
    found.ok_or_else(|| format!("expected one of {}", WORKLOADS.map(|w| w.name).join(", ")))
}

fn variant(text: &str) -> std::result::Result<(String, String), String> {
    let parts = text.split_once('=').map(|(kernel, variant)| (kernel.to_string(), variant.to_string()));
    parts.ok_or("expected KERNEL=VARIANT, such as lstm_forward=per_step".into())
}

fn count(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or("expected a whole number of at least 1".into())
}

fn seconds(text: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|s: &f64| s.is_finite() && *s >= 0.0).ok_or("expected a number of seconds".into())
}

/// Measures one workload on one device.
#[derive(Parser)]
struct Arguments {
    /// W1 to W6.
    #[arg(long, value_parser = workload)]
    workload: Workload,
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
    #[arg(long, default_value_t = 9, value_parser = count)]
    n: usize,
    /// Seconds after which no further run starts.
    #[arg(long, default_value_t = 30.0, value_parser = seconds)]
    budget: f64,
    /// Compute a kernel in one way, KERNEL=VARIANT, wherever that fits; may be given several times. --plan shows names.
    #[arg(long, value_name = "KERNEL=VARIANT", value_parser = variant)]
    variant: Vec<(String, String)>,
    /// Give every second row of the batch half the steps.
    #[arg(long)]
    lengths: bool,
    /// Drop a fifth of g in the recurrence.
    #[arg(long)]
    dropout: bool,
    /// Print the plan with every slot and its bytes, and what would run each step and why; and stop.
    #[arg(long)]
    plan: bool,
    /// Steps in place of the workload's own.
    #[arg(long, value_parser = count)]
    steps: Option<usize>,
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

fn measure(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let mut workload = arguments.workload;
    workload.steps = arguments.steps.unwrap_or(workload.steps);
    (workload.lengths, workload.dropout) = (arguments.lengths, arguments.dropout);
    if workload.streaming && arguments.mode != Mode::Train && (workload.lengths || workload.dropout) {
        let wanted = "expected --mode train for --lengths or --dropout";
        return Err(format!("{}: {wanted}, found single steps, which have neither", workload.name).into());
    }
    let mut device = Device::parse(&arguments.device)?;
    for (kernel, variant) in &arguments.variant {
        device = device.with_variant(kernel, variant)?;
    }
    let recorded = workload.record(arguments.mode)?;
    if arguments.plan {
        print!("{}", recorded.plan.listing(&device)?);
        return Ok(());
    }
    let mut session = recorded.open(&device)?;

    let started = Instant::now();
    for _ in 0..3 {
        session.call(arguments.mode)?;
        if started.elapsed().as_secs_f64() > 2.0 {
            break;
        }
    }
    let (warm, started) = (session.workspace.counters(), Instant::now());
    let mut seconds = Vec::new();
    while seconds.len() < arguments.n && (seconds.is_empty() || started.elapsed().as_secs_f64() < arguments.budget) {
        let start = Instant::now();
        session.call(arguments.mode)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let calls = (seconds.len() * session.inputs.len()) as u64;
    let spent = session.workspace.counters() - warm;
    if let Some(loss) = &session.loss {
        session.workspace.scalar(loss)?;
    }
    seconds.sort_by(f64::total_cmp);
    report(arguments, &workload, &device, &seconds, per_call(spent, calls));
    Ok(())
}

/// What each run did; every one does the same.
fn per_call(spent: Counters, calls: u64) -> [u64; 4] {
    [spent.dispatches, spent.submits, spent.read_backs, spent.bytes_allocated].map(|count| count / calls)
}

fn report(arguments: &Arguments, workload: &Workload, device: &Device, seconds: &[f64], counts: [u64; 4]) {
    let steps = if workload.streaming { workload.steps as f64 } else { 1.0 };
    let (median, least) = (seconds[seconds.len() / 2] / steps, seconds[0] / steps);
    let flops = workload.forward_flops() / steps * if arguments.mode == Mode::Train { 3.0 } else { 1.0 };
    let mode = arguments.mode.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default();
    let [dispatches, submits, read_backs, bytes] = counts;
    let line = serde_json::json!({
        "system": "everloop",
        "version": env!("CARGO_PKG_VERSION"),
        "backend": if device.is_gpu() { "wgpu" } else { "cpu" },
        "workload": workload.name,
        "mode": mode,
        "ms_median": median * 1e3,
        "ms_min": least * 1e3,
        "n": seconds.len(),
        "gflops": flops / median / 1e9,
        "peak_rss_mib": peak_rss_mib(),
        "variants": arguments.variant.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
        "lengths": workload.lengths,
        "dropout": workload.dropout,
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
            "{} {mode}: {:.4} ms (least {:.4}, n {}), {:.2} GFLOP/s",
            workload.name,
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
