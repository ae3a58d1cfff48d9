//! Cases of PyTorch: `NAME.weights.safetensors`, and `NAME.io.safetensors` with inputs, results and gradients.

use crate::case::{Case, Outcome, declare};
use crate::manifest::{Fields, array, array_or_zeros, shaped};
use crate::{Result, error};
use everloop::Direction::Forward;
use everloop::layers::{Bias, Join, Lstm, LstmConfig};
use everloop::weights::layout::{Layer, Layout};
use everloop::weights::{Array, Import};
use everloop::{Device, Parameters};
use std::collections::HashMap;
use std::path::Path;

/// nn.LSTM.
pub fn lstm(mut fields: Fields, dir: &Path, device: &Device) -> Result<Outcome> {
    let [input_size, hidden, layers] = fields.sizes(["input_size", "hidden_size", "num_layers"])?;
    let proj_size = fields.take("proj_size")?.filter(|size| *size > 0);
    let weights = fields.open(dir, "weights")?;
    let gates = hidden.saturating_mul(4);
    shaped(&weights, "weight_ih_l0", &[gates, input_size])?;
    shaped(&weights, &format!("weight_hh_l{}", layers.saturating_sub(1)), &[gates, proj_size.unwrap_or(hidden)])?;
    if layers == 1 {
        // it works between layers
        fields.ignore(&["dropout"]);
    }
    let (lstm, mut parameters) = declare(LstmConfig {
        proj_size,
        bidirectional: fields.flag("bidirectional", false)?.then_some(Join::Layers),
        bias: if fields.flag("bias", true)? { Bias::Two } else { Bias::None },
        batch_first: fields.flag("batch_first", false)?,
        ..LstmConfig::new(input_size, hidden).with_layers(layers)
    })?;
    weights.import(&mut parameters, &Import::new())?;
    compare(fields, dir, device, (lstm, parameters), None)
}

/// TensorFlow's LayerNormBasicLSTMCell. Its states have no axis of layers, its gradients are those of its own arrays.
pub fn layer_norm(mut fields: Fields, dir: &Path, device: &Device) -> Result<Outcome> {
    let [input_size, hidden] = fields.sizes(["input_size", "hidden_size"])?;
    let (epsilon, forget_bias) = (fields.need("eps")?, fields.take("forget_bias")?.unwrap_or(0.0));
    let weights = fields.open(dir, "weights")?;
    shaped(&weights, "kernel", &[input_size.saturating_add(hidden), hidden.saturating_mul(4)])?;
    let config = LstmConfig::new(input_size, hidden).with_bias(Bias::None).with_forget_bias(forget_bias);
    let (lstm, mut parameters) = declare(config.with_layer_norm(epsilon))?;
    let layout = Layout::TensorFlow { forget_bias };
    weights.import_layer(&mut parameters, &lstm, (0, Forward), layout, &Import::new())?;
    compare(fields, dir, device, (lstm, parameters), Some(layout))
}

/// Fills in the tensors of the io file, runs the case, and compares; with a layout, for a layer of TensorFlow's.
fn compare(
    mut fields: Fields,
    dir: &Path,
    device: &Device,
    (lstm, parameters): (Lstm, Parameters),
    layout: Option<Layout>,
) -> Result<Outcome> {
    let io = fields.open_listed(dir, "io")?;
    let config = &lstm.config;
    let [steps, batch] = fields.sizes(["T", "B"])?;
    let directions = config.layers() * config.directions().len();
    // without the columns: the axes of the input and the output, and those of the states
    let (axes, lead) = match (layout, fields.flag("unbatched", false)?, config.batch_first) {
        (Some(_), ..) => (vec![steps, batch], vec![batch]),
        (None, true, _) => (vec![steps], vec![directions]),
        (None, false, true) => (vec![batch, steps], vec![directions, batch]),
        (None, false, false) => (vec![steps, batch], vec![directions, batch]),
    };
    let shape = |axes: &[usize], columns: usize| [axes, &[columns]].concat();
    let (h_size, c_size) = config.state_sizes(0);
    let (h, c) = (shape(&lead, h_size), shape(&lead, c_size));
    let output = shape(&axes, config.output_size());
    let input = array(&io, "input", &shape(&axes, config.input_size))?;
    let of = |name: &str, shape: &[usize]| array_or_zeros(&io, name, shape);
    let factors = Some([of("R1", &output)?, of("R2", &h)?, of("R3", &c)?]);
    fields.ignore(&["init_state"]); // the file tells
    let started = io.get("h0").or(io.get("c0")).is_some();
    let initial = if started { Some([of("h0", &h)?, of("c0", &c)?]) } else { None };
    let lengths = fields.lengths("lengths", &io)?;
    let mut limits = HashMap::new();
    for (kind, mut of_kind) in fields.need::<HashMap<String, Fields>>("tolerance")? {
        limits.insert(kind, of_kind.limits()?);
    }
    fields.finish(false)?;
    let case = Case { lstm, parameters, input, lengths, initial, factors };
    let (mut got, gradients) = case.run(device)?;
    let of_weights = match layout {
        Some(layout) => layout.write(&[Layer::from_parameters(&gradients, &case.lstm, (0, Forward))?])?,
        None => {
            let array = |name: &String, shape: &[usize]| -> Result<Array> {
                Ok(Array { name: name.clone(), shape: shape.to_vec(), values: gradients.get(name)?.to_vec() })
            };
            gradients.iter().map(|p| array(&p.name, &p.shape)).collect::<Result<_>>()?
        }
    };
    got.extend(of_weights.into_iter().map(|array| Array { name: format!("grad.{}", array.name), ..array }));
    for state in got.iter_mut().filter(|array| ["hn", "cn", "grad.h0", "grad.c0"].contains(&array.name.as_str())) {
        state.shape.splice(..state.shape.len() - 1, lead.clone());
    }
    Outcome::new(got, &io, ("", &["input", "h0", "c0", "R1", "R2", "R3", "lengths"]), |name| {
        let kind = match name {
            "loss" if limits.contains_key("loss") => "loss",
            name if name.starts_with("grad.") => "grad",
            _ => "forward",
        };
        limits.get(kind).copied().map_or_else(|| error(format!("no `tolerance` of `{kind}`")), Ok)
    })
}
