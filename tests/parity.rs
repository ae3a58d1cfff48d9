//! The example `pytorch_parity` as a user runs it: what passes, what fails, what is refused, and the files it writes.

mod common;

use common::gpu;
use everloop::weights::{Array, Export, Weights, save_arrays};
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

/// All arrays of a file, those of integers left out.
fn arrays(file: &Path) -> Vec<Array> {
    let weights = Weights::open(file).unwrap();
    let floats = weights.tensors().iter().filter(|tensor| tensor.dtype().is_float());
    let array = |name: &str, shape: &[usize]| Array {
        name: name.into(),
        shape: shape.to_vec(),
        values: weights.values(name).unwrap(),
    };
    floats.map(|tensor| array(tensor.name(), tensor.shape())).collect()
}

fn named<'a>(arrays: &'a mut [Array], name: &str) -> &'a mut Array {
    arrays.iter_mut().find(|array| array.name == name).unwrap()
}

/// A folder with one case of these fields and arrays.
fn made(name: &str, format: &str, fields: Value, arrays: &[Array]) -> PathBuf {
    let folder = empty(name);
    save_arrays(folder.join("case.safetensors"), arrays, &Export::new()).unwrap();
    fs::write(folder.join("manifest.json"), json!({"format": format, "cases": [fields]}).to_string()).unwrap();
    folder
}

/// Runs a folder all of whose cases must pass.
fn passes(folder: &Path, format: &str) {
    let (success, text) = parity(&["--dir", folder.to_str().unwrap(), "--format", format]);
    assert!(success, "{text}");
}

/// All fixtures on one device and precision: every case that the manifests list.
fn all_fixtures(device: &[&str]) {
    for (format, manifests, listed) in [
        ("pytorch", &["manifest.json", "lnlstm_manifest.json"][..], 10),
        ("onnx", &["manifest.json"], 4),
        ("keras", &["manifest.json"], 1),
    ] {
        let folder = fixtures(format);
        let (success, text) = parity(&[&["--dir", folder.to_str().unwrap(), "--format", format], device].concat());
        println!("{text}");
        let mut cases = Vec::new();
        for file in manifests {
            let manifest: Value = serde_json::from_slice(&fs::read(folder.join(file)).unwrap()).unwrap();
            cases.extend(manifest["cases"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap().to_string()));
        }
        assert_eq!(cases.len(), listed);
        // one of the ONNX nodes has an activation that is not there
        let refused = cases.iter().filter(|case| *case == "o15_relu_acts").count();
        for case in &cases {
            let line = text.lines().find(|line| line.starts_with(&format!("{case} "))).unwrap();
            let words: Vec<&str> = line.split_whitespace().collect();
            if case == "o15_relu_acts" {
                assert!(line.contains("refused: `activations`"), "{line}");
                continue;
            }
            assert_eq!(*words.last().unwrap(), "ok", "{device:?}: {line}");
            let ratios = [words[1], words[3]].map(|ratio| ratio.parse::<f64>().ok());
            assert!(ratios[0].is_some_and(|ratio| ratio <= 1.0), "{line}");
            assert_eq!(ratios[1].is_some_and(|ratio| ratio <= 1.0), format == "pytorch", "{line}");
        }
        let ok = listed - refused;
        assert!(text.contains(&format!("{listed} cases: {ok} ok, 0 failed, {refused} refused, 0 errors")), "{text}");
        assert_eq!(success, refused == 0, "{text}");
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

/// Weights that are wrong in the ways an import goes wrong.
#[test]
fn changed_weights_fail() {
    type Plant = fn(&mut Vec<Array>);
    let plants: [(&str, Plant); 3] = [
        ("gates i and f swapped", |all| {
            let values = &mut named(all, "weight_hh_l1_reverse").values;
            let (i, rest) = values.split_at_mut(17 * 17);
            i.swap_with_slice(&mut rest[..17 * 17]);
        }),
        ("a sign", |all| named(all, "bias_hh_l0").values[3 * 17 + 1] *= -1.0),
        ("directions swapped", |all| {
            let values = named(all, "weight_ih_l0").values.clone();
            named(all, "weight_ih_l0_reverse").values = values;
        }),
    ];
    for (name, plant) in plants {
        let folder = one_case("weights", "pytorch", "s03_l2_bi_bf", |_| {});
        let file = folder.join("s03_l2_bi_bf.weights.safetensors");
        let mut all = arrays(&file);
        save_arrays(&file, &all, &Export::new()).unwrap();
        passes(&folder, "pytorch");
        plant(&mut all);
        save_arrays(&file, &all, &Export::new()).unwrap();
        assert!(fails(&folder, "pytorch", "s03").contains("FAIL: "), "{name}");
    }
}

/// Row 1 of s06, which has 7 of 10 steps, without the batch.
#[test]
fn an_input_without_a_batch_may_have_a_length() {
    let folder = one_case("unbatched", "pytorch", "s06_packed_sorted", |case| {
        for (field, value) in [("unbatched", json!(true)), ("lengths", json!([7])), ("tensors", json!({}))] {
            case[field] = value;
        }
    });
    let file = folder.join("s06_packed_sorted.io.safetensors");
    let mut row: Vec<Array> = arrays(&file);
    row.retain(|array| array.shape.len() == 3);
    for array in &mut row {
        let (batch, columns) = (array.shape.remove(1), array.shape[1]);
        array.values = array.values.chunks(columns).skip(1).step_by(batch).flatten().copied().collect();
    }
    assert!(row.iter().any(|array| array.name == "grad.input"));
    save_arrays(&file, &row, &Export::new()).unwrap();
    passes(&folder, "pytorch");
    named(&mut row, "output").values[6 * 8] += 0.01;
    save_arrays(&file, &row, &Export::new()).unwrap();
    assert!(fails(&folder, "pytorch", "s06").contains("FAIL: output[48]"));
}

/// Two directions of Keras out of one: the other one reads the input backwards.
#[test]
fn keras_in_two_directions() {
    let [steps, batch, hidden] = [9, 3, 7];
    let run = |all: &[Array], name: &str, more: Value| {
        let mut fields = json!({"name": "made", "file": "case.safetensors", "T": steps, "B": batch, "input_size": 4,
            "hidden_size": hidden, "rtol": 1e-4, "atol": 1e-5});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        made(name, "keras-golden-v1", fields, all)
    };
    let flip = |array: &mut Array| {
        let columns = array.shape[2];
        let rows = array.values.chunks(steps * columns);
        array.values = rows.flat_map(|row| row.rchunks(columns).flatten().copied()).collect();
    };
    let plain = arrays(&fixtures("keras").join("k01_lstm.safetensors"));
    // what the second direction gives
    let mut back = plain.clone();
    flip(named(&mut back, "input"));
    let folder = run(&back, "keras-backwards", json!({}));
    let out = folder.join("out");
    parity(&["--dir", folder.to_str().unwrap(), "--format", "keras", "--out", out.to_str().unwrap()]);
    let mut back = arrays(&out.join("made.out.safetensors"));
    flip(named(&mut back, "output"));
    let beside = |a: &[f64], b: &[f64]| -> Vec<f64> {
        a.chunks(hidden).zip(b.chunks(hidden)).flat_map(|(a, b)| [a, b].concat()).collect()
    };
    for (forward, backward, states) in [
        ("", "backward_", "both"),
        ("fw.", "bw.", "beside"),
        ("forward/", "reverse/", "marked"),
        ("", "rev_", "swapped"),
    ] {
        let mut all = Vec::new();
        for array in &plain {
            let of_back = back.iter().find(|other| other.name == array.name);
            let values = of_back.map(|other| &other.values);
            let new = |name: String, shape: &[usize], values: Vec<f64>| Array { name, shape: shape.to_vec(), values };
            match (array.name.as_str(), values, states) {
                ("input", ..) => all.push(array.clone()),
                ("output", Some(values), _) => {
                    all.push(new("output".into(), &[batch, steps, 2 * hidden], beside(&array.values, values)));
                }
                (name, Some(values), "both") => {
                    all.push(new(name.into(), &[2, batch, hidden], [&array.values[..], values].concat()));
                }
                (name, Some(values), "beside") => {
                    all.push(new(name.into(), &[batch, 2 * hidden], beside(&array.values, values)));
                }
                (name, Some(values), "swapped") => {
                    all.push(new(name.into(), &[batch, 2 * hidden], beside(values, &array.values)));
                }
                (name, other, _) => {
                    all.push(Array { name: format!("{forward}{name}"), ..array.clone() });
                    let values = other.unwrap_or(&array.values).clone();
                    all.push(Array { name: format!("{backward}{name}"), values, ..array.clone() });
                }
            }
        }
        let folder = run(&all, "keras-both", json!({"bidirectional": true, "merge_mode": "concat"}));
        match states {
            "swapped" => assert!(fails(&folder, "keras", "made").contains("FAIL: ")),
            _ => passes(&folder, "keras"),
        }
        let folder = run(&all, "keras-one", json!({}));
        assert!(fails(&folder, "keras", "made").contains(&format!("refused: the tensor `{backward}")));
    }
    // zeros in place of the bias are no bias
    let mut all = plain.clone();
    named(&mut all, "bias").values.fill(0.0);
    let folder = run(&all, "keras-zeros", json!({}));
    let out = folder.join("out");
    parity(&["--dir", folder.to_str().unwrap(), "--format", "keras", "--out", out.to_str().unwrap()]);
    let mut all = arrays(&out.join("made.out.safetensors"));
    all.extend(
        plain.into_iter().filter(|array| ["input", "kernel", "recurrent_kernel"].contains(&array.name.as_str())),
    );
    passes(&run(&all, "keras-no-bias", json!({"use_bias": false, "unit_forget_bias": true})), "keras");
}

#[test]
fn what_only_tells_about_a_case_is_no_option() {
    let fields = [
        ("note2", json!("rnn")),
        ("reason", json!("because")),
        ("seed", json!(7)),
        ("data_seed", json!(7)),
        ("generator", json!({"name": "gen.py", "numbers": [1, 2]})),
        ("forward_observed", json!(0.5)),
        ("hidden_scale", json!(3.0)),
        ("output_f64", json!(1.5)),
        ("index", json!(4)),
        ("ort_version", json!(1.31)),
        ("err_max_abs_all", json!(1e-7)),
        ("peephole", json!(false)),
        ("clip", json!(0)),
    ];
    for (format, case) in [("pytorch", "s01_basic"), ("onnx", "o06_fwd_lens"), ("keras", "k01_lstm")] {
        let folder = one_case("notes", format, case, |entry| {
            fields.iter().for_each(|(field, value)| entry[*field] = value.clone());
        });
        passes(&folder, format);
    }
    // between layers only
    passes(&one_case("dropout", "pytorch", "s01_basic", |entry| entry["dropout"] = json!(0.5)), "pytorch");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    assert!(fails(&fixtures("onnx"), "onnx", "o15_relu_acts").contains("refused: `activations`"));
    let cases: [(&str, &str, &str, Value); 14] = [
        ("pytorch", "s05_proj_l2", "dropout", json!(0.5)),
        ("pytorch", "s01_basic", "cell_clip", json!(3.0)),
        ("pytorch", "s01_basic", "peephole", json!(true)),
        ("pytorch", "s01_basic", "nonlinearity", json!("relu")),
        ("onnx", "o05_bidir", "clip", json!(3.0)),
        ("onnx", "o05_bidir", "activation_alpha", json!([0.1])),
        ("onnx", "o05_bidir", "op", json!("GRU")),
        ("onnx", "o05_bidir", "custom", json!("text")),
        ("onnx", "o05_bidir", "layout", json!(2)),
        ("keras", "k01_lstm", "recurrent_activation", json!("hard_sigmoid")),
        ("keras", "k01_lstm", "return_sequences", json!(false)),
        ("keras", "k01_lstm", "recurrent_dropout", json!(0.1)),
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
    for (content, word) in
        [("{", "manifest.json"), ("{}", "cases"), (r#"{"cases":[3]}"#, "map"), ("[]", "manifest.json")]
    {
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
