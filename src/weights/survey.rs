//! What LSTMs a file holds, guessed from names and shapes.

use super::header::TensorInfo;
use super::layout::{Layout, TEXTBOOK};
use super::{Weights, message};
use crate::layers::{Bias, Join, LstmConfig};
use std::collections::BTreeMap;
use std::fmt;

/// An LSTM found in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// What stands before its tensors' names, with the separator.
    pub prefix: String,
    /// The framework's layout; a forget bias outside is in no file, 1 is assumed.
    pub layout: Layout,
    /// Columns of the input.
    pub input_size: usize,
    /// H of each layer.
    pub hidden_sizes: Vec<usize>,
    /// 1 or 2.
    pub directions: usize,
    /// Whether biases are there.
    pub bias: bool,
    /// How a bidirectional stack of several layers is joined, which its shapes tell.
    pub join: Option<Join>,
    /// Columns of h after a projection (PyTorch's `proj_size`).
    pub projection: Option<usize>,
    /// Whether peephole weights are there.
    pub peepholes: bool,
}

impl Found {
    /// The configuration that would take these weights; `None` where this engine lacks something.
    pub fn config(&self) -> Option<LstmConfig> {
        if self.projection.is_some() || self.peepholes {
            return None;
        }
        let config = LstmConfig::new(self.input_size, 1)
            .with_hidden_sizes(&self.hidden_sizes)
            .with_bias(if self.bias { Bias::Two } else { Bias::None })
            .with_forget_bias(self.layout.forget_bias());
        Some(match self.directions {
            2 => config.with_bidirectional(self.join.unwrap_or(Join::Layers)),
            _ => config,
        })
    }
}

/// What a file holds. Printing it gives the report of `examples/import_report.rs`.
#[derive(Debug, Clone)]
pub struct Survey<'a> {
    /// The LSTMs, by prefix.
    pub lstms: Vec<Found>,
    /// What looks like an LSTM and does not fit together: name and cause.
    pub broken: Vec<(String, String)>,
    weights: &'a Weights,
}

impl Weights {
    /// Looks for LSTMs in all layouts of [`layout`](super::layout).
    pub fn survey(&self) -> Survey<'_> {
        let mut survey = Survey { lstms: Vec::new(), broken: Vec::new(), weights: self };
        let mut groups: BTreeMap<&str, BTreeMap<&str, &TensorInfo>> = BTreeMap::new();
        for tensor in self.tensors() {
            let name = tensor.name();
            let (prefix, leaf) = name.split_at(name.rfind(['.', '/']).map_or(0, |at| at + 1));
            groups.entry(prefix).or_default().insert(leaf.strip_suffix(":0").unwrap_or(leaf), tensor);
        }
        for (prefix, leaves) in &groups {
            let mut group = Group { prefix, leaves, found: Vec::new() };
            match group.look() {
                Ok(()) => survey.lstms.append(&mut group.found),
                Err((name, cause)) => survey.broken.push((name, cause)),
            }
        }
        survey
    }
}

/// The tensors that share a prefix.
struct Group<'a> {
    prefix: &'a str,
    leaves: &'a BTreeMap<&'a str, &'a TensorInfo>,
    found: Vec<Found>,
}

type Broken = (String, String);

impl Group<'_> {
    /// The shape of a tensor that has elements: its sizes are bounded by the file's, so that no product overflows.
    fn shape(&self, leaf: &str) -> Option<&[usize]> {
        self.leaves.get(leaf).map(|t| t.shape()).filter(|shape| !shape.contains(&0))
    }

    fn broken(&self, leaf: &str, cause: impl Into<String>) -> Broken {
        (format!("{}{leaf}", self.prefix), cause.into())
    }

    fn look(&mut self) -> Result<(), Broken> {
        if let Some(leaf) = self.leaves.keys().find(|l| l.starts_with("weight_ih")) {
            return self.pytorch(leaf.starts_with("weight_ih_l"));
        }
        match (self.shape("kernel"), self.shape("recurrent_kernel"), self.shape("bias")) {
            (Some([input, columns]), Some([hidden, also]), bias) if *columns == 4 * hidden && also == columns => {
                let (input, hidden) = (*input, *hidden);
                if bias.is_some_and(|b| b != [4 * hidden]) {
                    return Err(self.broken("bias", format!("shape does not fit hidden size {hidden}")));
                }
                self.push(Layout::Keras, input, hidden, bias.is_some());
            }
            // a dense layer has a kernel too: only names tell
            (Some([rows, columns]), None, bias)
                if self.is_recurrent()
                    && columns % 4 == 0
                    && *rows > columns / 4
                    && bias.is_none_or(|b| b == [*columns]) =>
            {
                let (input, hidden) = (rows - columns / 4, columns / 4);
                self.push(Layout::TensorFlow { forget_bias: 1.0 }, input, hidden, bias.is_some());
            }
            _ => {}
        }
        match (self.shape("W"), self.shape("R"), self.shape("B")) {
            (Some([directions @ 1..=2, rows, input]), Some([also, and, hidden]), bias)
                if rows == and && directions == also && *rows == hidden.saturating_mul(4) =>
            {
                let (directions, input, hidden) = (*directions, *input, *hidden);
                self.push(Layout::Onnx, input, hidden, bias.is_some());
                let peepholes = self.leaves.contains_key("P");
                if let Some(found) = self.found.last_mut() {
                    (found.directions, found.peepholes) = (directions, peepholes);
                }
            }
            (Some([rows, columns]), None, None)
                if rows % 4 == 0 && *columns > rows / 4 && self.shape("b") == Some(&[*rows]) =>
            {
                let (input, hidden) = (columns - rows / 4, rows / 4);
                self.push(Layout::DeepBreathe { forget_bias: 1.0 }, input, hidden, true);
            }
            _ => {}
        }
        if let (Some([hidden, input]), Some([also, and])) = (self.shape(TEXTBOOK[0]), self.shape(TEXTBOOK[4])) {
            let (hidden, input) = (*hidden, *input);
            if hidden != *also || hidden != *and {
                return Err(self.broken(TEXTBOOK[4], format!("shape is not [{hidden}, {hidden}]")));
            }
            if let Some(name) = TEXTBOOK[..8].iter().find(|n| !self.leaves.contains_key(*n)) {
                return Err(self.broken(name, "is missing"));
            }
            self.push(Layout::Textbook { forget_bias: 0.0 }, input, hidden, self.leaves.contains_key(TEXTBOOK[8]));
        }
        Ok(())
    }

    fn is_recurrent(&self) -> bool {
        let prefix = self.prefix.to_ascii_lowercase();
        ["lstm", "rnn", "cell"].iter().any(|word| prefix.contains(word))
    }

    fn push(&mut self, layout: Layout, input_size: usize, hidden: usize, bias: bool) {
        let (prefix, hidden_sizes) = (self.prefix.to_string(), vec![hidden]);
        let (directions, join, projection, peepholes) = (1, None, None, false);
        let found = Found { prefix, layout, input_size, hidden_sizes, directions, bias, join, projection, peepholes };
        self.found.push(found);
    }

    /// A stack: `weight_ih_l0`, `weight_hh_l0`, .. `_reverse`; without numbers an `LSTMCell`.
    fn pytorch(&mut self, stack: bool) -> Result<(), Broken> {
        let leaf = |kind: &str, layer: usize, reverse: bool| match stack {
            true => format!("{kind}_l{layer}{}", if reverse { "_reverse" } else { "" }),
            false => kind.to_string(),
        };
        let layers = match stack {
            true => (0..).take_while(|k| self.leaves.contains_key(leaf("weight_ih", *k, false).as_str())).count(),
            false => 1,
        };
        let directions = 1 + (stack && self.leaves.contains_key("weight_ih_l0_reverse")) as usize;
        let bias = self.leaves.contains_key(leaf("bias_ih", 0, false).as_str());
        let (mut hidden_sizes, mut inputs) = (Vec::new(), Vec::new());
        let (mut outputs, mut projection, mut known) = (Vec::new(), None, 0);
        for layer in 0..layers {
            for reverse in [false, true].into_iter().take(directions) {
                let name = leaf("weight_ih", layer, reverse);
                let Some([rows, input]) = self.shape(&name) else {
                    return Err(self.broken(&name, "is missing, or has not two axes"));
                };
                let name = leaf("weight_hh", layer, reverse);
                let Some([also, columns]) = self.shape(&name) else {
                    return Err(self.broken(&name, "is missing, or has not two axes"));
                };
                let projected = self.shape(&leaf("weight_hr", layer, reverse));
                let hidden = projected.and_then(|s| s.get(1)).unwrap_or(columns);
                if *rows == hidden.saturating_mul(3) {
                    return Err(self.broken(&name, "three gates: a GRU, not an LSTM"));
                }
                if rows == hidden {
                    return Err(self.broken(&name, "one gate: a simple RNN, not an LSTM"));
                }
                if *rows != hidden.saturating_mul(4) || rows != also {
                    let cause = format!("{rows} and {also} gate rows do not fit hidden size {hidden}");
                    return Err(self.broken(&name, cause));
                }
                if projected.is_some_and(|s| s != [*columns, *hidden]) {
                    return Err(self.broken(&leaf("weight_hr", layer, reverse), "shape does not fit"));
                }
                for kind in ["bias_ih", "bias_hh"] {
                    let name = leaf(kind, layer, reverse);
                    match (bias, self.shape(&name)) {
                        (true, Some(shape)) if shape == [*rows] => known += 1,
                        (false, None) => {}
                        (true, None) => return Err(self.broken(&name, "is missing, other biases are there")),
                        _ => return Err(self.broken(&name, format!("shape is not [{rows}]"))),
                    }
                }
                known += 2 + projected.is_some() as usize;
                if !reverse {
                    hidden_sizes.push(*hidden);
                    inputs.push(*input);
                    outputs.push(*columns);
                    projection = projection.or(projected.map(|_| *columns));
                } else if (hidden_sizes.last(), inputs.last()) != (Some(hidden), Some(input)) {
                    return Err(self.broken(&name, "its sizes differ from the forward direction's"));
                }
            }
        }
        let all = self
            .leaves
            .keys()
            .filter(|l| ["weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh"].iter().any(|k| l.starts_with(k)));
        if let Some(extra) = (known != all.clone().count()).then(|| all.clone().next_back()).flatten() {
            return Err(self.broken(extra, format!("layers or directions are missing: {layers} layers are whole")));
        }
        let mut join = None;
        for layer in 1..layers {
            let (input, output) = (inputs[layer], outputs[layer - 1]);
            let this = match input {
                _ if directions == 1 && input == output => continue,
                _ if directions == 2 && input == output.saturating_mul(2) => Join::Layers,
                _ if directions == 2 && input == output => Join::Stacks,
                _ => {
                    let name = leaf("weight_ih", layer, false);
                    return Err(
                        self.broken(&name, format!("{input} columns do not fit the {output} of the layer below"))
                    );
                }
            };
            if join.replace(this).is_some_and(|before| before != this) {
                return Err(self.broken(&leaf("weight_ih", layer, false), "layers are joined in two ways"));
            }
        }
        if let Some(input_size) = inputs.first() {
            let (prefix, layout, peepholes) = (self.prefix.to_string(), Layout::PyTorch, false);
            let input_size = *input_size;
            self.found.push(Found {
                prefix,
                layout,
                input_size,
                hidden_sizes,
                directions,
                bias,
                join,
                projection,
                peepholes,
            });
        }
        Ok(())
    }
}

impl fmt::Display for Survey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensors = self.weights.tensors();
        let bytes: u64 = tensors.iter().map(TensorInfo::bytes).sum();
        let plural = if self.lstms.len() == 1 { "" } else { "s" };
        writeln!(f, "{} tensors, {bytes} bytes of data, {} LSTM{plural}", tensors.len(), self.lstms.len())?;
        for (key, value) in self.weights.metadata().take(8) {
            writeln!(f, "metadata {}: {}", message::escape(key), message::escape(value))?;
        }
        for found in &self.lstms {
            let name = found.prefix.trim_end_matches(['.', '/']);
            let layout = match found.layout {
                Layout::PyTorch => "PyTorch",
                Layout::Keras => "Keras",
                Layout::TensorFlow { .. } => "TensorFlow",
                Layout::Onnx => "ONNX",
                Layout::DeepBreathe { .. } => "Deep-Breathe",
                Layout::Textbook { .. } => "textbook",
            };
            writeln!(f, "LSTM `{}`: {layout} names", message::escape(name))?;
            write!(f, "  layers {}, directions {}", found.hidden_sizes.len(), found.directions)?;
            let hidden = message::shape(&found.hidden_sizes);
            writeln!(f, ", input size {}, hidden sizes {hidden}", found.input_size)?;
            let bias = if found.bias { found.layout.bias_rule() } else { "none" };
            writeln!(f, "  gates {}, bias: {bias}", found.layout.gates())?;
            match (found.directions, found.join) {
                (2, Some(Join::Layers)) => writeln!(f, "  directions joined after every layer")?,
                (2, Some(Join::Stacks)) => writeln!(f, "  directions joined at the end: one stack each")?,
                _ => {}
            }
            if let Some(size) = found.projection {
                writeln!(f, "  projection to {size}: this engine has none")?;
            }
            if found.peepholes {
                writeln!(f, "  peephole weights: this engine has none, and takes the file only where they are zero")?;
            }
            writeln!(f, "  not in the file: batch first, dropout, activations, a forget bias outside the vectors")?;
        }
        for (name, cause) in &self.broken {
            writeln!(f, "no LSTM: `{}`: {cause}", message::escape(name))?;
        }
        writeln!(f, "tensors:")?;
        for tensor in tensors {
            let (name, shape) = (message::escape(tensor.name()), message::shape(tensor.shape()));
            write!(f, "  {name} {shape} {} {} bytes", tensor.dtype().name(), tensor.bytes())?;
            if let Some((index, value, count)) = self.weights.first_non_finite(tensor) {
                write!(f, "; NOT FINITE: {count} values, the first is {value} at element {index}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
