//! PyTorch's numbers: nn.LSTM cases s01-s04, s08, s09 and the training run t01, at the tolerance of each case.

mod common;

use common::gpu;
use everloop::layers::{DenseConfig, EmbeddingConfig, Join, Lstm, LstmConfig, LstmState};
use everloop::optimizer::SgdConfig;
use everloop::plan::Direction;
use everloop::run::lockstep::Tolerance;
use everloop::{Device, Parameters, Plan, Recorder, Result, Rng, Tensor, Workspace, loss};
use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::BTreeMap;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pytorch");

type Arrays = BTreeMap<String, (Vec<usize>, Vec<f64>)>;

fn load(file: &str) -> Arrays {
    let bytes = std::fs::read(format!("{FOLDER}/{file}")).unwrap();
    let read = |view: safetensors::tensor::TensorView<'_>| {
        let data = view.data();
        let values = match view.dtype() {
            safetensors::Dtype::F32 => {
                data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64).collect()
            }
            safetensors::Dtype::F64 => {
                data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            safetensors::Dtype::I64 => {
                data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect()
            }
            other => panic!("{file}: {other:?}"),
        };
        (view.shape().to_vec(), values)
    };
    SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter().map(|(name, view)| (name, read(view))).collect()
}

fn manifest(file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/{file}")).unwrap()).unwrap()
}

fn tolerance(value: &Value) -> Tolerance {
    Tolerance { absolute: value["atol"].as_f64().unwrap(), relative: value["rtol"].as_f64().unwrap() }
}

fn devices() -> Vec<Device> {
    [Some(Device::cpu_f64()), Some(Device::cpu()), gpu()].into_iter().flatten().collect()
}

/// `[B, T, ..]` to `[T, B, ..]` and back.
fn swap(shape: &[usize], values: &[f64]) -> Vec<f64> {
    let array = ndarray::ArrayView3::from_shape((shape[0], shape[1], shape[2]), values).unwrap();
    array.permuted_axes([1, 0, 2]).iter().copied().collect()
}

struct Case {
    spec: Value,
    io: Arrays,
    weights: Arrays,
    lstm: Lstm,
    parameters: Parameters,
}

impl Case {
    fn new(spec: &Value) -> Result<Case> {
        let size = |key: &str| spec[key].as_u64().unwrap() as usize;
        let io = load(spec["io"].as_str().unwrap());
        let weights = load(spec["weights"].as_str().unwrap());
        let mut config = LstmConfig::new(size("input_size"), size("hidden_size"))
            .with_layers(size("num_layers"))
            .with_bias(spec["bias"].as_bool().unwrap());
        if spec["bidirectional"].as_bool().unwrap() {
            config = config.with_bidirectional(Join::Layers);
        }
        let mut parameters = Parameters::new();
        let lstm = config.declare(&mut parameters, "", &mut Rng::new(0))?;
        for (name, (_, values)) in &weights {
            parameters.set(name, values)?;
        }
        assert_eq!(parameters.iter().count(), weights.len());
        Ok(Case { spec: spec.clone(), io, weights, lstm, parameters })
    }

    fn batch_first(&self) -> bool {
        self.spec["batch_first"].as_bool().unwrap()
    }

    /// A tensor of the io file, time first.
    fn time_first(&self, name: &str) -> Vec<f64> {
        let (shape, values) = &self.io[name];
        if self.batch_first() { swap(shape, values) } else { values.clone() }
    }

    /// Runs forward and backward on a device; the worst error over tolerance, or the first tensor beyond it.
    fn compare(&self, device: &Device) -> Result<f64, String> {
        self.compare_with(device, |_| {})
    }

    fn compare_with(&self, device: &Device, spoil: impl Fn(&mut Parameters)) -> Result<f64, String> {
        let got = self.run(device, spoil).map_err(|e| e.to_string())?;
        let mut worst = 0.0f64;
        for (name, got) in &got {
            let kind = if name.starts_with("grad.") { "grad" } else { "forward" };
            let want = match name.as_str() {
                "output" | "grad.input" => self.time_first(name),
                _ => self.io[name].1.clone(),
            };
            if got.len() != want.len() {
                return Err(format!("{name}: {} values, wanted {}", got.len(), want.len()));
            }
            let (at, ratio) = tolerance(&self.spec["tolerance"][kind]).worst(got, &want);
            if ratio > 1.0 {
                return Err(format!(
                    "{name}[{at}] = {}, wanted {} ({ratio:.1} times the tolerance)",
                    got[at], want[at]
                ));
            }
            worst = worst.max(ratio);
        }
        let listed = self.io.keys().filter(|k| k.starts_with("grad.") || ["output", "hn", "cn"].contains(&k.as_str()));
        match listed.clone().find(|k| !got.contains_key(*k)) {
            Some(missing) => Err(format!("{missing} was not computed")),
            None => Ok(worst),
        }
    }

    fn run(&self, device: &Device, spoil: impl Fn(&mut Parameters)) -> Result<BTreeMap<String, Vec<f64>>> {
        let config = &self.lstm.config;
        let [steps, batch] = ["T", "B"].map(|key| self.spec[key].as_u64().unwrap() as usize);
        let mut rec = Recorder::new(&self.parameters);
        let x = rec.input("input", &[steps, batch, config.input_size])?;
        rec.want_gradient(&x)?;
        let mut states = Vec::new();
        let mut seeds: Vec<(Tensor, Tensor)> = Vec::new();
        for index in 0..config.layers() * config.directions().len() {
            let mut input = |name: String| -> Result<Tensor> {
                let tensor = rec.input(&name, &[batch, config.hidden_sizes[0]])?;
                rec.want_gradient(&tensor)?;
                Ok(tensor)
            };
            states.push(LstmState { h: input(format!("h0.{index}"))?, c: input(format!("c0.{index}"))? });
        }
        let initial = self.io.contains_key("h0").then_some(&states[..]);
        let out = self.lstm.record(&mut rec, &x, initial)?;
        let seed = rec.input("R1", out.output.shape())?;
        seeds.push((out.output.clone(), seed));
        for (index, state) in out.state.iter().enumerate() {
            for (name, tensor) in [("R2", &state.h), ("R3", &state.c)] {
                let seed = rec.input(&format!("{name}.{index}"), tensor.shape())?;
                seeds.push((tensor.clone(), seed));
            }
        }
        let pairs: Vec<(&Tensor, &Tensor)> = seeds.iter().map(|(a, b)| (a, b)).collect();
        loss::backward_from(&mut rec, &pairs)?;
        let plan = std::sync::Arc::new(rec.finish());
        let mut parameters = self.parameters.clone();
        spoil(&mut parameters);
        let mut workspace = Workspace::new(device, plan.clone(), &parameters)?;
        workspace.poison()?;
        workspace.write(&x, &self.time_first("input"))?;
        workspace.write(&plan.tensor("R1")?, &self.time_first("R1"))?;
        let part = batch * config.hidden_sizes[0];
        for (index, state) in states.iter().enumerate() {
            let range = index * part..(index + 1) * part;
            for (name, to) in [("h0", &state.h), ("c0", &state.c)] {
                if let Some((_, values)) = self.io.get(name) {
                    workspace.write(to, &values[range.clone()])?;
                }
            }
            for name in ["R2", "R3"] {
                workspace.write(&plan.tensor(&format!("{name}.{index}"))?, &self.io[name].1[range.clone()])?;
            }
        }
        workspace.run()?;
        let mut got = BTreeMap::new();
        got.insert("output".to_string(), workspace.read(&out.output)?);
        got.insert("grad.input".to_string(), workspace.read(&plan.tensor("dinput")?)?);
        let mut gather = |workspace: &mut Workspace, name: &str, tensors: Vec<Tensor>| -> Result<()> {
            let mut all = Vec::new();
            for tensor in &tensors {
                all.extend(workspace.read::<f64>(tensor)?);
            }
            got.insert(name.to_string(), all);
            Ok(())
        };
        gather(&mut workspace, "hn", out.state.iter().map(|s| s.h.clone()).collect())?;
        gather(&mut workspace, "cn", out.state.iter().map(|s| s.c.clone()).collect())?;
        if initial.is_some() {
            for name in ["h0", "c0"] {
                let named = |index: usize| plan.tensor(&format!("{name}.d{index}"));
                let tensors = (0..states.len()).map(named).collect::<Result<Vec<_>>>()?;
                gather(&mut workspace, &format!("grad.{name}"), tensors)?;
            }
        }
        for name in self.weights.keys() {
            gather(&mut workspace, &format!("grad.{name}"), vec![plan.tensor(&format!("d{name}"))?])?;
        }
        Ok(got)
    }
}

fn cases() -> Vec<Case> {
    let names = ["s01", "s02", "s03", "s04", "s08", "s09"];
    let manifest = manifest("manifest.json");
    let all = manifest["cases"].as_array().unwrap();
    let chosen = all.iter().filter(|c| names.iter().any(|n| c["name"].as_str().unwrap().starts_with(n)));
    let cases: Vec<_> = chosen.map(|c| Case::new(c).unwrap()).collect();
    assert_eq!(cases.len(), names.len());
    cases
}

#[test]
fn lstm_cases_match_on_every_device() {
    let mut wrong = Vec::new();
    for device in devices() {
        for case in cases() {
            let name = case.spec["name"].as_str().unwrap();
            match case.compare(&device) {
                Ok(worst) => println!("{name:<16} {worst:.4} of the tolerance on {}", device.name()),
                Err(message) => wrong.push(format!("{name} on {device}: {message}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn planted_errors_are_caught() {
    let case = &cases()[2]; // s03: two layers, two directions, initial state
    let hidden = case.lstm.config.hidden_sizes[0];
    case.compare(&Device::cpu()).unwrap();
    let swap_gates = |parameters: &mut Parameters| {
        let mut values = parameters.get("weight_hh_l1_reverse").unwrap().to_vec();
        let (i, f) = values.split_at_mut(hidden * hidden);
        i.swap_with_slice(&mut f[..hidden * hidden]);
        parameters.set("weight_hh_l1_reverse", &values).unwrap();
    };
    let flip = |parameters: &mut Parameters| {
        let mut values = parameters.get("bias_hh_l0").unwrap().to_vec();
        values[3 * hidden + 1] = -values[3 * hidden + 1];
        parameters.set("bias_hh_l0", &values).unwrap();
    };
    let swap_directions = |parameters: &mut Parameters| {
        let values = parameters.get("weight_ih_l0").unwrap().to_vec();
        parameters.set("weight_ih_l0_reverse", &values).unwrap();
    };
    type Plant<'a> = (&'a str, &'a dyn Fn(&mut Parameters));
    let plants: [Plant<'_>; 3] =
        [("gates i and f swapped", &swap_gates), ("a sign", &flip), ("directions swapped", &swap_directions)];
    for (name, plant) in plants {
        assert!(case.compare_with(&Device::cpu(), plant).is_err(), "{name} was not seen");
    }
    let mut short = Case::new(&case.spec).unwrap();
    short.io.get_mut("grad.c0").unwrap().1[5] *= -1.0;
    assert!(short.compare(&Device::cpu()).unwrap_err().starts_with("grad.c0[5]"));
}

/// t01: embedding, two layers, linear, mean cross-entropy over B T, clipping over all parameters, SGD.
#[test]
fn training_run_with_clipping() {
    let manifest = manifest("train_manifest.json");
    let spec = &manifest["cases"][0];
    assert_eq!(spec["name"], "t01_sgd_clip");
    let (io, weights) = (load(spec["io"].as_str().unwrap()), load(spec["weights"].as_str().unwrap()));
    let size = |key: &str| spec[key].as_u64().unwrap() as usize;
    let [batch, steps, vocab, hidden] = ["B", "T", "vocab", "hidden_size"].map(size);
    let embedding_dim = size("embedding_dim");
    let mut parameters = Parameters::new();
    let rng = &mut Rng::new(0);
    let embedding = EmbeddingConfig::new(vocab, embedding_dim).declare(&mut parameters, "embedding", rng).unwrap();
    let lstm = LstmConfig::new(embedding_dim, hidden).with_layers(size("num_layers"));
    let lstm = lstm.declare(&mut parameters, "lstm", rng).unwrap();
    let linear = DenseConfig::new(hidden, vocab).declare(&mut parameters, "linear", rng).unwrap();
    for (name, (_, values)) in &weights {
        parameters.set(name, values).unwrap();
    }
    let record = || -> Result<(Plan, Tensor)> {
        let mut rec = Recorder::new(&parameters);
        let ids = rec.tokens("x", &[steps, batch], vocab)?;
        let x = embedding.record(&mut rec, &ids)?;
        let y = lstm.record(&mut rec, &x, None)?.output;
        let logits = linear.record(&mut rec, &y)?;
        let targets = rec.targets("y", &[steps, batch], vocab)?;
        let out = loss::softmax_cross_entropy(&mut rec, "loss", &logits, &targets)?;
        rec.backward(&out.loss)?;
        let sgd = SgdConfig::new(spec["optimizer_args"]["lr"].as_f64().unwrap());
        let update = sgd.with_clip_norm(spec["clip_grad_norm"].as_f64().unwrap()).record(&mut rec)?;
        Ok((rec.finish(), update.norm.unwrap()))
    };
    let (plan, norm) = record().unwrap();
    let plan = std::sync::Arc::new(plan);
    // ids of step n, [B, T] to [T, B]
    let ids = |name: &str, n: usize| -> Vec<u32> {
        let all = &io[name].1[n * batch * steps..(n + 1) * batch * steps];
        (0..steps * batch).map(|e| all[e % batch * steps + e / batch] as u32).collect()
    };
    let floats =
        |key: &str| -> Vec<f64> { spec[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect() };
    let (losses, norms) = (floats("losses_f64"), floats("grad_norms_f64"));
    for device in devices() {
        let mut workspace = Workspace::new(&device, plan.clone(), &parameters).unwrap();
        workspace.poison().unwrap();
        let check = |what: String, got: &[f64], want: &[f64], tolerance: Tolerance| {
            let (at, ratio) = tolerance.worst(got, want);
            assert!(
                got.len() == want.len() && ratio <= 1.0,
                "{what}[{at}] on {device}: {} against {}",
                got[at],
                want[at]
            );
        };
        let relative = |key: &str| tolerance(&spec["tolerance"][key]);
        let absolute = |value: f64| Tolerance { absolute: value, relative: 0.0 };
        let moved = spec["tolerance"]["final_weights"]["max_abs"].as_f64().unwrap();
        let mut now = parameters.clone();
        for n in 0..losses.len() {
            if n == spec["snapshot_before_step"].as_u64().unwrap() as usize {
                workspace.read_parameters(&mut now).unwrap();
                for name in weights.keys() {
                    check(
                        format!("snap.{name}"),
                        now.get(name).unwrap(),
                        &io[&format!("snap.{name}")].1,
                        absolute(moved),
                    );
                }
            }
            workspace.write_tokens(&plan.tensor("x").unwrap(), &ids("x", n)).unwrap();
            workspace.write_tokens(&plan.tensor("y").unwrap(), &ids("y", n)).unwrap();
            workspace.run().unwrap();
            let loss = workspace.scalar(&plan.tensor("loss").unwrap()).unwrap();
            check(format!("loss of step {n}"), &[loss], &losses[n..=n], relative("losses"));
            let norm = workspace.scalar(&norm).unwrap();
            check(format!("norm of step {n}"), &[norm], &norms[n..=n], relative("grad_norms"));
            if n == 0 {
                // the slots hold the clipped gradients by now; the factor is 1 where the norm is below the limit
                assert!(norm < spec["clip_grad_norm"].as_f64().unwrap());
                for name in weights.keys() {
                    let slot = plan.tensor(&everloop::recorder::gradient_name(name)).unwrap();
                    let got = workspace.read::<f64>(&slot).unwrap();
                    let tight = Tolerance { absolute: 1e-6, relative: 1e-4 };
                    check(format!("grad0.{name}"), &got, &io[&format!("grad0.{name}")].1, tight);
                }
            }
        }
        workspace.read_parameters(&mut now).unwrap();
        for name in weights.keys() {
            check(format!("final.{name}"), now.get(name).unwrap(), &io[&format!("final.{name}")].1, absolute(moved));
        }
    }
}

#[test]
fn directions_are_in_pytorchs_order() {
    let case = &cases()[2];
    assert_eq!(case.lstm.config.directions(), [Direction::Forward, Direction::Reverse]);
}
