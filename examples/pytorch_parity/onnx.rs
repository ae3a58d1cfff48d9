//! Nodes of the ONNX operator LSTM: one file with the node's inputs, and its outputs as `expect.Y`, ..

use crate::case::{Case, Outcome, declare};
use crate::manifest::{Fields, array, array_or_zeros, shaped};
use crate::{Result, refused};
use everloop::Device;
use everloop::layers::{Join, LstmConfig};
use everloop::weights::layout::Layout;
use everloop::weights::{Array, Import};
use std::path::Path;

/// May stand in the case or in its `attributes`.
const ATTRIBUTES: &str = "activation_alpha activation_beta activations clip direction hidden_size input_forget layout";

pub fn node(mut fields: Fields, dir: &Path, device: &Device) -> Result<Outcome> {
    let mut node: Fields = fields.take("attributes")?.unwrap_or_default();
    fields.move_to(&mut node, ATTRIBUTES.split(' '));
    fields.only("op", "LSTM")?;
    let (reverse, count) = match node.take::<String>("direction")?.as_deref() {
        None | Some("forward") => (false, 1),
        Some("reverse") => (true, 1),
        Some("bidirectional") => (false, 2),
        Some(other) => return refused(format!("`direction` = {other}")),
    };
    let activations: Vec<String> = node.take("activations")?.unwrap_or_default();
    if !activations.is_empty() && activations.join(" ").to_lowercase() != ["sigmoid tanh tanh"].repeat(count).join(" ")
    {
        return refused(format!("`activations` = {activations:?}"));
    }
    let mut switch = |key: &str| match node.take::<u64>(key)? {
        Some(other @ 2..) => refused(format!("`{key}` = {other}")),
        on => Ok(on == Some(1)),
    };
    let (batch_first, coupled) = (switch("layout")?, switch("input_forget")?);
    let [hidden] = node.sizes(["hidden_size"])?;
    let [input_size, steps, batch] = fields.sizes(["input_size", "T", "B"])?;
    let file = fields.open_listed(dir, "file")?;
    let gates = hidden.saturating_mul(4);
    shaped(&file, "W", &[count, gates, input_size])?;
    shaped(&file, "R", &[count, gates, hidden])?;
    let (lstm, mut parameters) = declare(LstmConfig {
        bidirectional: (count == 2).then_some(Join::Layers),
        reverse,
        peephole: file.get("P").is_some(),
        coupled,
        batch_first,
        ..LstmConfig::new(input_size, hidden)
    })?;
    for direction in lstm.config.directions() {
        file.import_layer(&mut parameters, &lstm, (0, *direction), Layout::Onnx, &Import::new().with_unused())?;
    }
    let (axes, lead) = match batch_first {
        false => ([steps, batch], [count, batch]),
        true => ([batch, steps], [batch, count]),
    };
    let input = array(&file, "X", &[axes[0], axes[1], input_size])?;
    let lengths = fields.lengths("sequence_lens", &file)?;
    let shape = [lead[0], lead[1], hidden];
    let state = |name: &str| -> Result<Array> {
        let state = array_or_zeros(&file, name, &shape)?;
        let values = if batch_first { swap(&state.values, lead) } else { state.values };
        Ok(Array { values, ..state })
    };
    let started = file.get("initial_h").or(file.get("initial_c")).is_some();
    let initial = if started { Some([state("initial_h")?, state("initial_c")?]) } else { None };
    let limits = fields.limits()?;
    // the file tells
    fields.ignore(&["peephole", "has_bias", "has_initial_state"]);
    node.finish(true)?;
    fields.finish(false)?;

    let (mut got, _) = Case { lstm, parameters, input, lengths, initial, factors: None }.run(device)?;
    for array in &mut got {
        let (name, shape, values) = match array.name.as_str() {
            "output" if batch_first => ("Y", vec![batch, steps, count, hidden], std::mem::take(&mut array.values)),
            "output" => {
                let steps_of = array.values.chunks(batch * count * hidden).map(|step| swap(step, [batch, count]));
                ("Y", vec![steps, count, batch, hidden], steps_of.collect::<Vec<_>>().concat())
            }
            state => {
                let values = if batch_first { swap(&array.values, [count, batch]) } else { array.values.clone() };
                (if state == "hn" { "Y_h" } else { "Y_c" }, shape.to_vec(), values)
            }
        };
        *array = Array { name: name.into(), shape, values };
    }
    let inputs = ["X", "W", "R", "B", "P", "sequence_lens", "initial_h", "initial_c"];
    Outcome::new(got, &file, ("expect.", &inputs), |_| Ok(limits))
}

/// `[a, b, ..]` to `[b, a, ..]`.
fn swap(values: &[f64], [a, b]: [usize; 2]) -> Vec<f64> {
    let len = values.len() / (a * b).max(1);
    (0..b).flat_map(|j| (0..a).flat_map(move |i| values[(i * b + j) * len..][..len].iter().copied())).collect()
}
