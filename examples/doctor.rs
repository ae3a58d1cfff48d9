//! Can this machine's GPU be trusted? Lists the adapters, examines one, and prints a table; exit code 0 only if all is good.
//!
//! ```text
//! cargo run --release --example doctor
//! cargo run --release --example doctor -- --device llvmpipe --json doctor.json
//! ```

use clap::Parser;
use everloop::{Device, doctor};
use std::path::PathBuf;
use std::process::ExitCode;

/// Examines a device: kernels against their twins, models, gradients, traps.
#[derive(Parser)]
struct Arguments {
    /// gpu, cpu, auto or part of an adapter's name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Write the findings to this file as JSON, to paste into an issue.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match examine(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn examine(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    let adapters = Device::adapters();
    println!("adapters of this machine: {}", if adapters.is_empty() { "none" } else { "" });
    adapters.iter().for_each(|adapter| println!("  {adapter}"));
    let device = Device::parse(&arguments.device)?;
    for (limit, value) in device.limits() {
        println!("  {limit}: {value}");
    }
    let report = doctor::examine(&device);
    println!("{report}");
    if let Some(path) = &arguments.json {
        let row = |row: &doctor::Row| {
            serde_json::json!({
                "group": row.group,
                "name": row.name,
                "ok": row.is_ok(),
                "worst": row.outcome.as_ref().ok().filter(|worst| worst.is_finite()),
                "error": row.outcome.as_ref().err(),
                "ms": row.time.as_secs_f64() * 1e3,
            })
        };
        let all = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "device": report.device,
            "limits": device.limits().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            "adapters": adapters,
            "ok": report.is_ok(),
            "rows": report.rows.iter().map(row).collect::<Vec<_>>(),
        });
        let text = serde_json::to_string_pretty(&all)?;
        std::fs::write(path, text).map_err(|error| format!("writing {}: {error}", path.display()))?;
    }
    Ok(report.is_ok())
}
