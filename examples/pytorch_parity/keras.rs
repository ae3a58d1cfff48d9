//! Keras' LSTM layer, alone or in `Bidirectional`: one file with the layer's arrays, its input and its results.

use crate::case::{Case, Outcome, declare};
use crate::manifest::{Fields, array};
use crate::{Result, refused};
use everloop::Device;
use everloop::Direction::{self, Forward, Reverse};
use everloop::layers::{Bias, Join, LstmConfig};
use everloop::weights::Array;
use everloop::weights::layout::Layout;
use std::path::Path;

/// What a tensor is: its direction, by a word in its name (forward without one), and its kind.
fn role(name: &str) -> Option<(Direction, &'static str)> {
    let words: Vec<&str> = name.split(|c: char| !c.is_alphanumeric()).collect();
    let has = |list: &[&str]| words.iter().any(|word| list.contains(word));
    let direction = if has(&["backward", "bwd", "bw", "reverse", "rev"]) { Reverse } else { Forward };
    let kind = ["recurrent", "kernel", "bias", "input", "output", "h", "c"].into_iter().find(|kind| has(&[kind]))?;
    Some((direction, if kind == "recurrent" { "recurrent_kernel" } else { kind }))
}

pub fn layer(mut fields: Fields, dir: &Path, device: &Device) -> Result<Outcome> {
    fields.only("activation", "tanh")?;
    fields.only("recurrent_activation", "sigmoid")?;
    fields.only("merge_mode", "concat")?;
    fields.only("go_backwards", false)?;
    fields.only("return_sequences", true)?;
    // without a mask or a second call they change no result
    fields.ignore(&["return_state", "stateful", "unroll", "implementation", "use_cudnn", "zero_output_for_mask"]);
    fields.ignore(&["trainable", "unit_forget_bias", "use_bias"]);
    let [input_size, hidden, steps, batch] = fields.sizes(["input_size", "hidden_size", "T", "B"])?;
    let bidirectional = fields.flag("bidirectional", false)?;
    let batch_first = fields.flag("batch_first", true)?;
    let file = fields.open_listed(dir, "file")?;
    let limits = fields.limits()?;
    fields.finish(false)?;

    let directions = if bidirectional { &[Forward, Reverse][..] } else { &[Forward] };
    let (mut arrays, mut finals, mut inputs) = ([Vec::new(), Vec::new()], Vec::new(), vec!["input"]);
    for tensor in file.tensors() {
        match role(tensor.name()).filter(|(direction, _)| directions.contains(direction)) {
            Some((_, "input" | "output")) if ["input", "output"].contains(&tensor.name()) => {}
            Some((direction, kind @ ("h" | "c"))) => finals.push((tensor, direction, kind)),
            Some((direction, kind @ ("kernel" | "recurrent_kernel" | "bias"))) => {
                let rows = match kind {
                    "kernel" => Some(input_size),
                    "recurrent_kernel" => Some(hidden),
                    _ => None,
                };
                let shape: Vec<usize> = rows.into_iter().chain([hidden.saturating_mul(4)]).collect();
                let array = array(&file, tensor.name(), &shape)?;
                inputs.push(tensor.name());
                arrays[(direction == Reverse) as usize].push(Array { name: kind.into(), ..array });
            }
            _ => return refused(format!("the tensor `{}`", tensor.name())),
        }
    }
    let axes = if batch_first { [batch, steps] } else { [steps, batch] };
    let input = array(&file, "input", &[axes[0], axes[1], input_size])?;
    let layers = arrays.iter().take(directions.len()).map(|arrays| Layout::Keras.read(arrays));
    let layers: Vec<_> = layers.collect::<everloop::Result<Vec<_>>>()?.concat();
    let (lstm, mut parameters) = declare(LstmConfig {
        bidirectional: bidirectional.then_some(Join::Layers),
        bias: Bias::One,
        batch_first,
        ..LstmConfig::new(input_size, hidden)
    })?;
    for (layer, direction) in layers.iter().zip(directions) {
        layer.store(&mut parameters, &lstm, (0, *direction))?;
    }
    let (mut got, _) = Case { lstm, parameters, input, lengths: None, initial: None, factors: None }.run(device)?;

    let states = [got[1].values.clone(), got[2].values.clone()];
    for state in &mut got[1..] {
        state.name.truncate(1); // hn, cn
        if !bidirectional {
            state.shape.remove(0);
        }
    }
    // as the file has them: of one direction [B, H], or of both [2, B, H] or [B, 2H]
    for (tensor, direction, kind) in finals {
        let both = &states[(kind == "c") as usize];
        let (forward, reverse) = both.split_at(batch * hidden);
        let values = match (tensor.shape(), direction) {
            (shape, _) if shape == [batch, hidden] => if direction == Reverse { reverse } else { forward }.to_vec(),
            (shape, Forward) if bidirectional && shape == [2, batch, hidden] => both.clone(),
            (shape, Forward) if bidirectional && shape == [batch, 2 * hidden] => {
                forward.chunks(hidden).zip(reverse.chunks(hidden)).flat_map(|(f, r)| [f, r].concat()).collect()
            }
            (shape, _) => return refused(format!("the tensor `{}` of shape {shape:?}", tensor.name())),
        };
        got.retain(|array| array.name != tensor.name());
        got.push(Array { name: tensor.name().into(), shape: tensor.shape().to_vec(), values });
    }
    Outcome::new(got, &file, ("", &inputs), |_| Ok(limits))
}
