//! One run of an LSTM, and the comparison of its results.

use crate::manifest::{Limits, array};
use crate::{error, refused};
use everloop::instruments::gradient_name;
use everloop::layers::{Lstm, LstmConfig, LstmInputs, LstmState};
use everloop::lockstep::Tolerance;
use everloop::weights::{Array, TensorInfo, Weights};
use everloop::{Device, Parameters, Recorder, Result, Rng, Store, Tensor, Workspace};
use std::sync::Arc;

/// A case of any format, in the engine's words.
pub struct Case {
    pub lstm: Lstm,
    pub parameters: Parameters,
    /// `[T, B, I]`, batch first `[B, T, I]`, or `[T, I]`.
    pub input: Array,
    pub lengths: Option<Vec<u32>>,
    /// h and c to start from, layer by layer, forward before reverse.
    pub initial: Option<[Array; 2]>,
    /// What `output`, `hn` and `cn` are multiplied by in the loss; none to run forward only.
    pub factors: Option<[Array; 3]>,
}

pub fn declare(config: LstmConfig) -> Result<(Lstm, Parameters)> {
    let mut parameters = Parameters::new();
    let lstm = config.declare(&mut parameters, "", &mut Rng::new(0))?;
    Ok((lstm, parameters))
}

impl Case {
    /// Gives `output`, `hn`, `cn`, and with factors `loss`, the gradients of the inputs as `grad.NAME`, and those of the
    /// parameters.
    pub fn run<'a>(&'a self, device: &Device) -> Result<(Vec<Array>, Parameters)> {
        let config = &self.lstm.config;
        let (steps, batch) = match (&self.input.shape[..], config.batch_first) {
            ([batch, steps, _], true) | ([steps, batch, _], false) => (*steps, Some(*batch)),
            (shape, _) => (shape.first().copied().unwrap_or(0), None),
        };
        let count = config.layers() * config.directions().len();
        let (h_size, c_size) = config.state_sizes(0);
        let state_shapes =
            [h_size, c_size].map(|size| [count].into_iter().chain(batch).chain([size]).collect::<Vec<_>>());
        let rows = |of: &Tensor| (0..count).map(|index| of.row(index)).collect::<Result<Vec<_>>>();

        let mut rec = Recorder::new(&self.parameters);
        let mut inputs: Vec<(Tensor, &'a Array)> = Vec::new();
        let mut input = |rec: &mut Recorder<'_>, array: &'a Array, shape: &[usize]| -> Result<Tensor> {
            let slot = rec.input(&array.name, shape)?;
            inputs.push((slot.clone(), array));
            Ok(slot)
        };
        let x = input(&mut rec, &self.input, &self.input.shape)?;
        let lengths = match &self.lengths {
            Some(_) => Some(rec.lengths("lengths", batch.unwrap_or(1), steps)?),
            None => None,
        };
        let (mut wanted, mut initial) = (vec![x.clone()], None);
        if let Some([h0, c0]) = &self.initial {
            let (h0, c0) = (input(&mut rec, h0, &state_shapes[0])?, input(&mut rec, c0, &state_shapes[1])?);
            let states = rows(&h0)?.into_iter().zip(rows(&c0)?).map(|(h, c)| LstmState { h, c });
            initial = Some(states.collect::<Vec<_>>());
            wanted.extend([h0, c0]);
        }
        if self.factors.is_some() {
            wanted.iter().try_for_each(|slot| rec.want_gradient(slot))?;
        }
        let given = LstmInputs { initial: initial.as_deref(), lengths: lengths.as_ref(), ..LstmInputs::default() };
        let out = self.lstm.record_with(&mut rec, &x, given)?;
        let (hn, cn): (Vec<Tensor>, Vec<Tensor>) = out.state.into_iter().map(|state| (state.h, state.c)).unzip();
        let shapes = [out.output.shape().to_vec(), state_shapes[0].clone(), state_shapes[1].clone()];
        let outputs = [vec![out.output], hn, cn];
        if let Some([of_output, of_hn, of_cn]) = &self.factors {
            // the loss is a sum of products, so its gradients at the outputs are the factors
            let mut seeds = vec![input(&mut rec, of_output, &shapes[0])?];
            seeds.extend(rows(&input(&mut rec, of_hn, &shapes[1])?)?);
            seeds.extend(rows(&input(&mut rec, of_cn, &shapes[2])?)?);
            rec.backward_from(&outputs.iter().flatten().zip(&seeds).collect::<Vec<_>>())?;
        }

        let plan = Arc::new(rec.finish());
        let mut workspace = Workspace::new(&Store::new(device, &self.parameters)?, plan.clone())?;
        // what no step writes shows
        workspace.poison()?;
        for (slot, array) in &inputs {
            workspace.write(slot, &self.without_padding(array, slot == &x || array.name == "R1"))?;
        }
        if let (Some(slot), Some(lengths)) = (&lengths, &self.lengths) {
            workspace.write_lengths(slot, lengths)?;
        }
        workspace.run()?;

        let mut got = Vec::new();
        for (name, (shape, parts)) in ["output", "hn", "cn"].into_iter().zip(shapes.into_iter().zip(&outputs)) {
            let parts: Vec<Vec<f64>> = parts.iter().map(|part| workspace.read(part)).collect::<Result<_>>()?;
            got.push(Array { name: name.into(), shape, values: parts.concat() });
        }
        let mut gradients = self.parameters.clone();
        if let Some(factors) = &self.factors {
            let products = got.iter().zip(factors).flat_map(|(got, factor)| got.values.iter().zip(&factor.values));
            // past the ends a factor may be anything
            let values = vec![products.filter(|(got, _)| **got != 0.0).map(|(got, factor)| got * factor).sum()];
            got.push(Array { name: "loss".into(), shape: vec![1], values });
            let mut gradient = |name: &str| workspace.read::<f64>(&plan.tensor(&gradient_name(name))?);
            for (slot, array) in inputs.iter().take(wanted.len()) {
                let (name, shape) = (format!("grad.{}", array.name), slot.shape().to_vec());
                got.push(Array { name, shape, values: gradient(&array.name)? });
            }
            for parameter in self.parameters.iter() {
                gradients.set(&parameter.name, &gradient(&parameter.name)?)?;
            }
        }
        Ok((got, gradients))
    }
}

impl Case {
    /// The values of an array; of one over time with 0 past the ends, where anything may stand, because a workspace
    /// takes finite numbers only.
    fn without_padding(&self, array: &Array, over_time: bool) -> Vec<f64> {
        let mut values = array.values.clone();
        if let (true, Some(lengths), [lead @ .., columns]) = (over_time, &self.lengths, &array.shape[..]) {
            for (row, values) in values.chunks_mut((*columns).max(1)).enumerate() {
                let (t, b) = match (lead, self.lstm.config.batch_first) {
                    ([_, steps], true) => (row % steps, row / steps),
                    ([_, batch], false) => (row / batch, row % batch),
                    _ => (row, 0),
                };
                if lengths.get(b).is_some_and(|length| t >= *length as usize) {
                    values.fill(0.0);
                }
            }
        }
        values
    }
}

/// What a case gave, compared with what it should have given.
pub struct Outcome {
    pub got: Vec<Array>,
    /// Of the forward pass and of the gradients: the largest error over tolerance, and its tensor.
    pub worst: [Option<(f64, String)>; 2],
    /// The value that is worst, if it is beyond its tolerance.
    pub failure: Option<String>,
}

impl Outcome {
    /// Every tensor of the file but the inputs must have been computed; it stands there with `prefix` before its name.
    pub fn new(
        got: Vec<Array>,
        file: &Weights,
        (prefix, inputs): (&str, &[&str]),
        limits: impl Fn(&str) -> crate::Result<Limits>,
    ) -> crate::Result<Outcome> {
        let (mut worst, mut failure, mut beyond): ([Option<(f64, String)>; 2], _, _) = ([None, None], None, 1.0);
        for tensor in file.tensors().iter().map(TensorInfo::name).filter(|name| !inputs.contains(name)) {
            let name = tensor.strip_prefix(prefix);
            let Some(Array { name, shape, values }) = got.iter().find(|array| Some(array.name.as_str()) == name) else {
                return refused(format!("the tensor `{tensor}`"));
            };
            let want = array(file, tensor, shape)?.values;
            let [relative, absolute, of_max] = limits(name)?;
            let max = want.iter().fold(0.0f64, |max, v| max.max(v.abs()));
            // two zeros agree under any limit
            let tolerance = Tolerance { absolute: absolute + of_max * max + f64::MIN_POSITIVE, relative };
            let (at, ratio) = tolerance.worst(values, &want);
            if ratio > beyond {
                beyond = ratio;
                failure = Some(format!("{name}[{at}] = {:e}, wanted {:e}", values[at], want[at]));
            }
            let column = &mut worst[name.starts_with("grad.") as usize];
            if column.as_ref().is_none_or(|(worst, _)| ratio > *worst) {
                *column = Some((ratio, name.clone()));
            }
        }
        match worst[0] {
            Some(_) => Ok(Outcome { got, worst, failure }),
            None => error("the file has no output to compare with"),
        }
    }
}
