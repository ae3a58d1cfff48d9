//! The example `pytorch_parity` as a user runs it: what passes, what fails, what is refused, and the files it writes.

mod common;

use common::gpu;
use everloop::weights::Weights;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The example lies beside this test's folder. `cargo test` builds it first; `cargo test --test parity` does not and
/// needs a `cargo build --example pytorch_parity` before.
fn parity(arguments: &[&str]) -> (bool, String) {
    let folder = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples");
    let example = folder.join(format!("pytorch_parity{}", std::env::consts::EXE_SUFFIX));
    assert!(example.exists(), "{} is missing: cargo build --example pytorch_parity", example.display());
    let output = Command::new(example).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("panicked"), "{arguments:?}: {text}");
    (output.status.success(), text)
}

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// An empty folder among this run's temporary files.
fn empty(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("parity").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// A folder with the files of one case, its entry in the manifest changed by `edit`.
fn one_case(name: &str, from: &str, case: &str, edit: impl Fn(&mut Value)) -> PathBuf {
    let (folder, from) = (empty(name), fixtures(from));
    let mut manifest: Value = serde_json::from_slice(&fs::read(from.join("manifest.json")).unwrap()).unwrap();
    let cases = manifest["cases"].as_array_mut().unwrap();
    cases.retain(|entry| entry["name"] == case);
    edit(&mut cases[0]);
    fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    for file in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        if file.file_name().to_str().unwrap().starts_with(case) {
            fs::write(folder.join(file.file_name()), fs::read(file.path()).unwrap()).unwrap();
        }
    }
    folder
}

/// Runs a folder that must not pass, and gives the line of `case`.
fn fails(folder: &Path, format: &str, case: &str) -> String {
    let (success, text) = parity(&["--dir", folder.to_str().unwrap(), "--format", format]);
    assert!(!success, "{text}");
    text.lines().find(|line| line.starts_with(case)).unwrap_or_else(|| panic!("{text}")).to_string()
}

/// All fixtures on one device and precision.
fn all_fixtures(device: &[&str]) {
    for (format, counts) in [
        ("pytorch", "10 cases: 10 ok, 0 failed, 0 refused, 0 errors"),
        ("onnx", "4 cases: 3 ok, 0 failed, 1 refused, 0 errors"),
        ("keras", "1 cases: 1 ok, 0 failed, 0 refused, 0 errors"),
    ] {
        let folder = fixtures(format);
        let (success, text) = parity(&[&["--dir", folder.to_str().unwrap(), "--format", format], device].concat());
        assert!(text.contains(counts), "{device:?}: {text}");
        // one of the ONNX nodes has an activation that is not there
        assert_eq!(success, format != "onnx", "{text}");
    }
}

#[test]
fn the_fixtures_pass_on_the_cpu() {
    all_fixtures(&["--device", "cpu"]);
    all_fixtures(&["--precision", "f64"]);
}

#[test]
fn the_fixtures_pass_on_the_gpu() {
    if gpu().is_some() {
        all_fixtures(&["--device", "gpu"]);
    }
}

#[test]
fn what_was_computed_is_written_under_the_same_names() {
    for (format, precision) in [("pytorch", "f32"), ("pytorch", "f64"), ("onnx", "f32"), ("keras", "f32")] {
        let (from, out) = (fixtures(format), empty(&format!("written-{format}-{precision}")).join("new/folder"));
        let (dir, to) = (from.to_str().unwrap(), out.to_str().unwrap());
        parity(&["--dir", dir, "--format", format, "--precision", precision, "--out", to]);
        let (case, file) = match format {
            "pytorch" => ("s07_packed_unsorted_bi", "s07_packed_unsorted_bi.io.safetensors"),
            "onnx" => ("o05_bidir", "o05_bidir.safetensors"),
            _ => ("k01_lstm", "k01_lstm.safetensors"),
        };
        let want = Weights::open(from.join(file)).unwrap();
        let got = Weights::open(out.join(format!("{case}.out.safetensors"))).unwrap();
        for tensor in got.tensors() {
            let name = if format == "onnx" { format!("expect.{}", tensor.name()) } else { tensor.name().into() };
            assert_eq!(want.get(&name).unwrap().shape(), tensor.shape(), "{name}");
            assert_eq!(tensor.dtype().name().to_lowercase(), precision);
            for (got, want) in got.values(tensor.name()).unwrap().iter().zip(want.values(&name).unwrap()) {
                assert!((got - want).abs() <= 1e-5 + 1e-4 * want.abs(), "{name}: {got}, wanted {want}");
            }
        }
        let computed =
            |name: &str| name == "loss" || name.starts_with("grad.") || ["output", "hn", "cn"].contains(&name);
        let wanted = want.tensors().iter().filter(|tensor| match format {
            "pytorch" => computed(tensor.name()),
            "onnx" => tensor.name().starts_with("expect."),
            _ => ["output", "h", "c"].contains(&tensor.name()),
        });
        assert_eq!(wanted.count(), got.tensors().len());
    }
}

#[test]
fn a_changed_expectation_fails() {
    for (tensor, column) in [("output", "forward"), ("grad.c0", "gradient"), ("cn", "forward"), ("loss", "forward")] {
        let folder = one_case("changed", "pytorch", "s03_l2_bi_bf", |_| {});
        let file = folder.join("s03_l2_bi_bf.io.safetensors");
        let weights = Weights::open(&file).unwrap();
        let value = *weights.values(tensor).unwrap().last().unwrap() as f32;
        let mut bytes = fs::read(&file).unwrap();
        // the tensor's last value, found in the file through its place in memory
        let end = weights.bytes(weights.get(tensor).unwrap()).as_ptr_range().end as usize;
        let ends = weights.tensors().iter().map(|t| weights.bytes(t).as_ptr_range().end as usize).max().unwrap();
        let at = bytes.len() - (ends - end) - 4;
        assert_eq!(bytes[at..at + 4], value.to_le_bytes());
        bytes[at..at + 4].copy_from_slice(&(value + 0.01).to_le_bytes());
        fs::write(&file, &bytes).unwrap();
        let line = fails(&folder, "pytorch", "s03");
        assert!(line.contains(&format!("FAIL: {tensor}[")), "{column} of {tensor}: {line}");
        // a NaN fails too, and the file of what was computed is there all the same
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(&file, &bytes).unwrap();
        let out = folder.join("out");
        let (success, text) = parity(&["--dir", folder.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        assert!(!success && text.contains(&format!("FAIL: {tensor}[")), "{text}");
        Weights::open(out.join("s03_l2_bi_bf.out.safetensors")).unwrap();
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    assert!(fails(&fixtures("onnx"), "onnx", "o15_relu_acts").contains("refused: `activations`"));
    let cases: [(&str, &str, &str, Value); 9] = [
        ("pytorch", "s01_basic", "dropout", json!(0.5)),
        ("pytorch", "s01_basic", "peephole", json!(true)),
        ("pytorch", "s01_basic", "nonlinearity", json!("relu")),
        ("onnx", "o05_bidir", "clip", json!(3.0)),
        ("onnx", "o05_bidir", "activation_alpha", json!([0.1])),
        ("onnx", "o05_bidir", "op", json!("GRU")),
        ("keras", "k01_lstm", "bidirectional", json!(true)),
        ("keras", "k01_lstm", "activation", json!("relu")),
        ("keras", "k01_lstm", "go_backwards", json!(true)),
    ];
    for (format, case, option, value) in cases {
        let folder = one_case("option", format, case, |entry| {
            let attribute = format == "onnx" && option != "op";
            let fields = if attribute { &mut entry["attributes"] } else { entry };
            fields[option] = value.clone();
        });
        let line = fails(&folder, format, case);
        assert!(line.contains("refused: ") && line.contains(&format!("`{option}`")), "{line}");
    }
}

#[test]
fn a_broken_case_does_not_stop_the_others() {
    let edits: [(&str, Value, &str); 6] = [
        ("io", json!("nothing.safetensors"), "nothing.safetensors"),
        ("hidden_size", json!(1_000_000_000u64), "weight_ih_l0"),
        ("num_layers", json!(3_000_000_000u64), "weight_hh_l2999999999"),
        ("T", json!(6), "input"),
        ("lengths", json!([5, 6]), "lengths"),
        ("tolerance", json!({}), "tolerance"),
    ];
    for (field, value, word) in edits {
        let folder = one_case("broken", "pytorch", "s01_basic", |entry| entry[field] = value.clone());
        let path = folder.join("manifest.json");
        let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let broken = &manifest["cases"][0];
        let sound = one_case("sound", "pytorch", "s01_basic", |entry| entry["name"] = json!("sound"));
        let sound: Value = serde_json::from_slice(&fs::read(sound.join("manifest.json")).unwrap()).unwrap();
        manifest["cases"] = json!([broken, sound["cases"][0]]);
        fs::write(&path, manifest.to_string()).unwrap();
        let line = fails(&folder, "pytorch", "s01");
        assert!(line.contains("error: ") && line.contains(word), "{line}");
        assert!(fails(&folder, "pytorch", "sound").trim_end().ends_with(" ok"));
    }
}

#[test]
fn wrong_folders_and_arguments() {
    let empty = empty("empty");
    let says = |folder: &Path, more: &[&str], word: &str| {
        let (success, text) = parity(&[&["--dir", folder.to_str().unwrap()], more].concat());
        assert!(!success && text.contains(word), "{text}");
    };
    says(&empty, &[], "manifest.json");
    says(&fixtures("keras"), &[], "keras-golden-v1");
    for (content, word) in [("{", "manifest.json"), ("{}", "cases"), (r#"{"cases":[3]}"#, "case"), ("[]", "cases")] {
        fs::write(empty.join("manifest.json"), content).unwrap();
        says(&empty, &[], word);
    }
    fs::write(empty.join("manifest.json"), r#"{"cases":[{"name":"../up"},{}]}"#).unwrap();
    says(&empty, &[], "2 errors");
    says(&fixtures("pytorch"), &["--device", "gpu", "--precision", "f64"], "f64");
    if cfg!(not(feature = "gpu")) {
        says(&fixtures("pytorch"), &["--device", "gpu"], "wanted a GPU");
    }
}
