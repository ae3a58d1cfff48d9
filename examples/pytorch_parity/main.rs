//! Does this engine compute what PyTorch, ONNX Runtime and Keras compute? Runs a folder of their results and compares.
//!
//! ```text
//! cargo run --release --example pytorch_parity -- --dir tests/fixtures/pytorch
//! cargo run --release --example pytorch_parity -- --dir tests/fixtures/pytorch --precision f64 --out computed
//! cargo run --release --example pytorch_parity -- --dir tests/fixtures/onnx --format onnx --device gpu
//! ```
//!
//! A folder of `pytorch` holds `manifest.json`, `lnlstm_manifest.json` or both; of `onnx` and `keras` `manifest.json`
//! (the formats: `tests/fixtures/*/README.md`). Each case's weights come in through the public import. Of PyTorch's
//! cases the forward pass, the loss and all gradients are compared, of the others the forward pass. The table has the
//! largest error over tolerance of each; above 1, or a NaN, fails. `NAME.out.safetensors` in `--out` has what was
//! computed. Exit code 0 only if every case passed: one with an option that this engine lacks counts as refused.
//!
//! ```text
//! manifest.rs                        fields of a case, its files
//! pytorch.rs, onnx.rs, keras.rs      a case of a framework -> a Case -> an Outcome
//! case.rs                            Case: one recorded run; Outcome: what it gave against what it should have given
//! ```

mod case;
mod keras;
mod manifest;
mod onnx;
mod pytorch;

use case::Outcome;
use clap::Parser;
use everloop::Device;
use everloop::weights::{Export, save_arrays};
use manifest::Fields;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Runs a folder of other frameworks' results and compares.
#[derive(Parser)]
struct Arguments {
    /// The folder.
    #[arg(long)]
    dir: PathBuf,
    /// Whose results.
    #[arg(long, default_value = "pytorch", value_parser = ["pytorch", "onnx", "keras"])]
    format: String,
    /// Where to run; a software adapter counts as a GPU.
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "gpu"])]
    device: String,
    /// f64 is for the CPU.
    #[arg(long, default_value = "f32", value_parser = ["f32", "f64"])]
    precision: String,
    /// Write what was computed into this folder.
    #[arg(long, value_name = "OUTDIR")]
    out: Option<PathBuf>,
}

/// Why a case was not compared.
enum Stop {
    Refused(String),
    Error(String),
}

type Result<T> = std::result::Result<T, Stop>;

impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Error(error.to_string())
    }
}

fn error<T>(text: impl Into<String>) -> Result<T> {
    Err(Stop::Error(text.into()))
}

fn refused<T>(what: impl std::fmt::Display) -> Result<T> {
    Err(Stop::Refused(format!("{what} is not supported")))
}

/// Runs a case of a folder.
type Run = fn(Fields, &Path, &Device) -> Result<Outcome>;

fn main() -> ExitCode {
    match parity(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Stop::Error(text) | Stop::Refused(text)) => {
            eprintln!("error: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all cases passed.
fn parity(arguments: &Arguments) -> Result<bool> {
    let device = match (arguments.device.as_str(), arguments.precision.as_str()) {
        ("gpu", "f64") => return error("--precision f64: a GPU computes in f32; take --device cpu"),
        ("gpu", _) => Device::gpu()?,
        (_, "f64") => Device::cpu_f64(),
        _ => Device::cpu(),
    };
    let manifests: &[(&str, &str, Run)] = match arguments.format.as_str() {
        "onnx" => &[("manifest.json", "onnx-node-tests-v1", onnx::node)],
        "keras" => &[("manifest.json", "keras-golden-v1", keras::layer)],
        _ => &[
            ("manifest.json", "lstm-golden-v1", pytorch::lstm),
            ("lnlstm_manifest.json", "lnlstm-golden-v1", pytorch::layer_norm),
        ],
    };
    let dir = &arguments.dir;
    let mut cases = Vec::new();
    for (file, format, run) in manifests.iter().filter(|(file, ..)| dir.join(file).exists()) {
        cases.extend(manifest::read(&dir.join(file), format)?.into_iter().map(|fields| (fields, *run)));
    }
    if cases.is_empty() {
        let files: Vec<&str> = manifests.iter().map(|(file, ..)| *file).collect();
        return error(format!("{}: no {} there, or no case in it", dir.display(), files.join(" or ")));
    }
    if let Some(out) = &arguments.out {
        std::fs::create_dir_all(out)?;
    }
    println!("device: {device}");
    println!("{:<24} {:>10} {:<20} {:>10} {:<28} verdict", "case", "forward", "worst", "gradient", "worst");
    let export = Export { f64: arguments.precision == "f64", ..Export::new() };
    let (mut names, mut counts) = (HashSet::new(), [0; 4]);
    for (mut fields, run) in cases {
        let name: String = fields.take("name").ok().flatten().unwrap_or_default();
        let outcome = match is_file_name(&name) && names.insert(name.clone()) {
            true => run(fields, dir, &device),
            false => error("`name` cannot be a file's, or is that of another case"),
        };
        let (kind, verdict, worst) = match outcome {
            Ok(Outcome { got, worst, failure }) => {
                let path = arguments.out.as_ref().map(|out| out.join(format!("{name}.out.safetensors")));
                let saved = path.map_or(Ok(()), |path| save_arrays(path, &got, &export));
                match failure.or(saved.err().map(|e| format!("not saved: {e}"))) {
                    None => (0, "ok".into(), worst),
                    Some(why) => (1, format!("FAIL: {why}"), worst),
                }
            }
            Err(Stop::Refused(why)) => (2, format!("refused: {why}"), [None, None]),
            Err(Stop::Error(why)) => (3, format!("error: {why}"), [None, None]),
        };
        counts[kind] += 1;
        let [(forward, at), (gradient, of)] =
            worst.map(|w| w.map_or(("-".into(), "-".into()), |(ratio, tensor)| (format!("{ratio:.5}"), tensor)));
        println!("{:<24} {forward:>10} {at:<20} {gradient:>10} {of:<28} {verdict}", name.escape_debug().to_string());
    }
    let [ok, failed, refused, errors] = counts;
    let all: usize = counts.iter().sum();
    println!("{all} cases: {ok} ok, {failed} failed, {refused} refused, {errors} errors");
    Ok(ok == all)
}

/// Whether a case's name can be that of a file.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && name.chars().all(|c| c.is_alphanumeric() || "-_.+ ".contains(c))
}
