//! PyTorch takes what we save: `load_state_dict(strict=True)`, and the same outputs in f64. The other half is
//! `tests/strict_load.py`, run with `python3` or `$EVERLOOP_PYTHON`; skipped where that or torch is missing.

use everloop::layers::{Bias, Join, LstmConfig, LstmState};
use everloop::weights::{Array, Export, Import, Weights, save, save_arrays};
use everloop::{Device, Parameters, Recorder, Result, Rng, Store, Tensor, Workspace};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the script says of two files and whether it is content; `None` where it cannot run.
fn script(file: &Path, expected: &Path) -> Option<(bool, String)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/strict_load.py");
    let python = std::env::var("EVERLOOP_PYTHON").unwrap_or_else(|_| "python3".into());
    let Ok(output) = Command::new(&python).arg(script).args([file, expected]).output() else {
        println!("skipped: {python} cannot be run here");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if text.contains("skipped:") {
        println!("{}", text.trim());
        return None;
    }
    Some((output.status.success(), text))
}

/// An LSTM declared as `name` and saved below `prefix`; its files of weights, and of inputs with our outputs.
fn saved(test: &str, prefix: &str, name: &str, config: &LstmConfig, f64: bool) -> Result<[PathBuf; 2]> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("strict_load").join(test);
    std::fs::create_dir_all(&folder).unwrap();
    let files = ["weights.safetensors", "expected.safetensors"].map(|file| folder.join(file));
    let (mut parameters, mut rng) = (Parameters::new(), Rng::new(7));
    let lstm = config.declare(&mut parameters, name, &mut rng)?;
    let export = Export { f64, ..Export::new().with_prefix(prefix) };
    save(&files[0], &parameters, &export)?;
    // the values as the file has them
    Weights::open(&files[0])?.import(&mut parameters, &Import::new().with_prefix(prefix))?;

    let (steps, batch, (h_size, c_size)) = (5, 3, config.state_sizes(0));
    let count = config.layers() * config.directions().len();
    let mut rec = Recorder::new(&parameters);
    let mut inputs = Vec::new();
    let shapes = [[steps, batch, config.input_size], [count, batch, h_size], [count, batch, c_size]];
    for (name, shape) in ["input", "h0", "c0"].into_iter().zip(shapes) {
        let values = (0..shape.iter().product()).map(|_| 2.0 * rng.uniform() - 1.0).collect();
        inputs.push((rec.input(name, &shape)?, Array { name: name.into(), shape: shape.to_vec(), values }));
    }
    let [x, h0, c0] = [0, 1, 2].map(|index| inputs[index].0.clone());
    let state = |index| Ok(LstmState { h: h0.row(index)?, c: c0.row(index)? });
    let out = lstm.record(&mut rec, &x, Some(&(0..count).map(state).collect::<Result<Vec<_>>>()?))?;
    let mut workspace = Workspace::new(&Store::new(&Device::cpu_f64(), &parameters)?, rec.finish())?;
    inputs.iter().try_for_each(|(slot, array)| workspace.write(slot, &array.values))?;
    workspace.run()?;
    let mut read = |name: &str, shape: [usize; 3], from: &[&Tensor]| -> Result<Array> {
        let parts: Vec<Vec<f64>> = from.iter().map(|tensor| workspace.read(tensor)).collect::<Result<_>>()?;
        Ok(Array { name: name.into(), shape: shape.to_vec(), values: parts.concat() })
    };
    let mut arrays = vec![
        read("output", [steps, batch, config.output_size()], &[&out.output])?,
        read("hn", shapes[1], &out.state.iter().map(|state| &state.h).collect::<Vec<_>>())?,
        read("cn", shapes[2], &out.state.iter().map(|state| &state.c).collect::<Vec<_>>())?,
    ];
    arrays.extend(inputs.into_iter().map(|(_, array)| array));
    save_arrays(&files[1], &arrays, &Export::new().with_f64())?;
    Ok(files)
}

#[test]
fn pytorch_loads_strictly_and_computes_the_same() {
    let bi = |config: LstmConfig| config.with_bidirectional(Join::Layers);
    let cases = [
        ("one", "", "", LstmConfig::new(3, 4)),
        ("two", "", "lstm", bi(LstmConfig::new(5, 7).with_layers(2))),
        ("three", "encoder", "lstm", bi(LstmConfig::new(4, 33).with_layers(3))),
        ("projection", "encoder.lstm", "", bi(LstmConfig::new(6, 12).with_layers(2).with_projection(5))),
        ("no_bias", "encoder", "lstm", LstmConfig::new(2, 9).with_layers(3).with_bias(Bias::None)),
    ];
    for (index, (test, prefix, name, config)) in cases.into_iter().enumerate() {
        let f64 = index % 2 == 1;
        let [file, expected] = saved(test, prefix, name, &config, f64).unwrap();
        let Some((success, text)) = script(&file, &expected) else { return };
        assert!(success && text.contains("All keys matched") && text.contains("ok"), "{test}: {text}");
        println!("{test}, {}: {}", if f64 { "F64" } else { "F32" }, text.trim().replace('\n', "; "));
    }
}

/// The check can fail.
#[test]
fn differences_are_reported() {
    let config = LstmConfig::new(3, 4).with_layers(2).with_bidirectional(Join::Layers);
    let [file, expected] = saved("planted", "encoder", "lstm", &config, true).unwrap();
    let arrays = |file: &Path| -> Vec<Array> {
        let weights = Weights::open(file).unwrap();
        let array = |name: &str| Array {
            name: name.into(),
            shape: weights.get(name).unwrap().shape().to_vec(),
            values: weights.values(name).unwrap(),
        };
        weights.tensors().iter().map(|tensor| array(tensor.name())).collect()
    };
    let fails = |file: &Path, expected: &Path, word: &str| {
        if let Some((success, text)) = script(file, expected) {
            assert!(!success && text.contains(word), "{word}: {text}");
        }
    };
    let planted = file.with_file_name("planted.safetensors");
    let plant = |arrays: &[Array]| save_arrays(&planted, arrays, &Export::new().with_f64()).unwrap();
    for name in ["output", "hn", "cn"] {
        let mut arrays = arrays(&expected);
        arrays.iter_mut().find(|array| array.name == name).unwrap().values[3] += 1e-9;
        plant(&arrays);
        fails(&file, &planted, &format!("FAIL: {name} differs"));
    }
    let weights = arrays(&file);
    let mut wrong = weights.clone();
    wrong.iter_mut().find(|array| array.name.ends_with("weight_hh_l1_reverse")).unwrap().values[5] += 1e-6;
    plant(&wrong);
    fails(&planted, &expected, "FAIL: output differs");
    for missing in ["bias_hh_l0", "weight_hh_l1_reverse"] {
        plant(&weights.iter().filter(|array| !array.name.ends_with(missing)).cloned().collect::<Vec<_>>());
        fails(&planted, &expected, &format!("Missing key(s) in state_dict: \"encoder.lstm.{missing}\""));
    }
    let extra = Array { name: "encoder.lstm.weight_hh_l2".into(), ..weights[0].clone() };
    plant(&[&weights[..], &[extra]].concat());
    fails(&planted, &expected, "Unexpected key(s)");
}
