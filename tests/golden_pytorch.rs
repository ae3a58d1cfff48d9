//! PyTorch's training run t01, at its tolerance. The cases of nn.LSTM are compared in `parity.rs`.

mod common;

use common::gpu;
use everloop::layers::{DenseConfig, EmbeddingConfig, LstmConfig};
use everloop::lockstep::Tolerance;
use everloop::optimizer::SgdConfig;
use everloop::{Device, Parameters, Plan, Recorder, Result, Rng, Store, Tensor, Workspace, loss};
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
        let mut workspace = Workspace::new(&Store::new(&device, &parameters).unwrap(), plan.clone()).unwrap();
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
                workspace.store().read(&mut now).unwrap();
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
                    let slot = plan.tensor(&everloop::instruments::gradient_name(name)).unwrap();
                    let got = workspace.read::<f64>(&slot).unwrap();
                    let tight = Tolerance { absolute: 1e-6, relative: 1e-4 };
                    check(format!("grad0.{name}"), &got, &io[&format!("grad0.{name}")].1, tight);
                }
            }
        }
        workspace.store().read(&mut now).unwrap();
        for name in weights.keys() {
            check(format!("final.{name}"), now.get(name).unwrap(), &io[&format!("final.{name}")].1, absolute(moved));
        }
    }
}
