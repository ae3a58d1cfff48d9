//! What LSTMs a file holds, guessed from names and shapes.

use super::header::TensorInfo;
use super::layout::{Layout, TEXTBOOK};
use super::{Weights, message};
use crate::kernels::recurrence::NORMS;
use crate::layers::{Bias, Connection, Join, LstmConfig};
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
    /// The bias vectors that are there.
    pub bias: Bias,
    /// How a bidirectional stack of several layers is joined, which its shapes tell.
    pub join: Option<Join>,
    /// Columns of h after a projection (PyTorch's `proj_size`).
    pub projection: Option<usize>,
    /// Whether peephole weights are there.
    pub peepholes: bool,
    /// Whether gains and shifts of a layer norm are there.
    pub layer_norm: bool,
    /// Whether weights of [`Connection::Highway`] are there.
    pub highway: bool,
}

/// TensorFlow's, which is in no file.
const EPSILON: f64 = 1e-12;

impl Found {
    /// The configuration that would take these weights; `None` where this engine has no such LSTM. What is in no file
    /// (clips, coupled gates, ..) is off, and the epsilon of a layer norm is TensorFlow's 1e-12.
    pub fn config(&self) -> Option<LstmConfig> {
        let config = LstmConfig {
            hidden_sizes: self.hidden_sizes.clone(),
            proj_size: self.projection,
            bidirectional: (self.directions == 2).then(|| self.join.unwrap_or(Join::Layers)),
            bias: self.bias,
            forget_bias: self.layout.forget_bias(),
            peephole: self.peepholes,
            layer_norm: self.layer_norm.then_some(EPSILON),
            connection: if self.highway { Connection::Highway } else { Connection::Plain },
            ..LstmConfig::new(self.input_size, 1)
        };
        config.validate().is_ok().then_some(config)
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
        let mut groups: BTreeMap<&str, Leaves<'_>> = BTreeMap::new();
        for tensor in self.tensors() {
            let name = tensor.name();
            let (prefix, leaf) = name.split_at(name.rfind(['.', '/']).map_or(0, |at| at + 1));
            groups.entry(prefix).or_default().insert(leaf.strip_suffix(":0").unwrap_or(leaf), tensor);
        }
        for (prefix, leaves) in &groups {
            let mut group = Group { prefix, leaves, groups: &groups, found: Vec::new() };
            match group.look() {
                Ok(()) => survey.lstms.append(&mut group.found),
                Err((name, cause)) => survey.broken.push((name, cause)),
            }
        }
        survey
    }
}

type Leaves<'a> = BTreeMap<&'a str, &'a TensorInfo>;

/// The tensors that share a prefix.
struct Group<'a> {
    prefix: &'a str,
    leaves: &'a Leaves<'a>,
    groups: &'a BTreeMap<&'a str, Leaves<'a>>,
    found: Vec<Found>,
}

type Broken = (String, String);

/// Beginnings of the names of a stack, beside `layer_norm`.
const KINDS: [&str; 8] =
    ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peephole", "weight_highway", "bias_highway"];

impl Group<'_> {
    /// The shape of a tensor that has elements: its sizes are bounded by the file's, so that no product overflows.
    fn shape(&self, leaf: &str) -> Option<&[usize]> {
        self.get(leaf).map(|t| t.shape()).filter(|shape| !shape.contains(&0))
    }

    /// Of the group, or of one that lies in it (`projection/kernel`).
    fn get(&self, leaf: &str) -> Option<&TensorInfo> {
        match leaf.rfind(['.', '/']) {
            None => self.leaves.get(leaf).copied(),
            Some(at) => self.groups.get(&*format!("{}{}", self.prefix, &leaf[..at + 1]))?.get(&leaf[at + 1..]).copied(),
        }
    }

    /// Whether a part of a layout's [`parts`](Layout::parts) is there: its arrays, each of this shape, or none.
    fn part(&self, layout: Layout, part: usize, shape: &[usize]) -> Result<bool, Broken> {
        let first = layout.names().len() - layout.parts()[part..].iter().map(|p| p.len()).sum::<usize>();
        let arrays = layout.parts()[part].iter().enumerate().map(|(n, name)| {
            let other = layout.alias(first + n).filter(|other| self.get(other).is_some());
            other.unwrap_or(name)
        });
        let arrays: Vec<&str> = arrays.collect();
        if !arrays.iter().any(|name| self.get(name).is_some()) {
            return Ok(false);
        }
        match arrays.iter().find(|name| self.shape(name) != Some(shape)) {
            None => Ok(true),
            Some(name) if self.get(name).is_none() => {
                Err(self.broken(name, "is missing, others of its kind are there"))
            }
            Some(name) => Err(self.broken(name, format!("shape is not {}", message::shape(shape)))),
        }
    }

    /// The cells of TensorFlow and Deep-Breathe: one matrix of `rows` and `columns`.
    fn cell(&mut self, layout: Layout, [rows, columns]: [usize; 2]) -> Result<(), Broken> {
        let bias = layout.names()[1];
        let hidden = rows / 4;
        let (there, fits) = (self.get(bias).is_some(), self.shape(bias) == Some(&[rows][..]));
        // a dense layer has a kernel too, and anything can be called W: only names and biases tell
        let signs = ["w_i_diag", "gamma_input", "input/gamma", "p_i", "ln_i.gamma"];
        let parts = signs.iter().any(|sign| self.get(sign).is_some());
        let told = match layout {
            Layout::TensorFlow { .. } => self.is_recurrent() && (fits || !there),
            _ => fits,
        };
        if !(told || parts) || rows % 4 != 0 {
            return Ok(());
        }
        let projection = match self.shape(layout.parts()[0][0]) {
            Some([also, outputs]) if *also == hidden => Some(*outputs),
            Some(_) => return Err(self.broken(layout.parts()[0][0], format!("shape is not [{hidden}, P]"))),
            None => None,
        };
        let (peepholes, layer_norm) = (self.part(layout, 1, &[hidden])?, self.part(layout, 2, &[hidden])?);
        let outputs = projection.unwrap_or(hidden);
        if columns <= outputs {
            return Ok(());
        }
        if there && (layer_norm || !fits) {
            let cause =
                if layer_norm { "a layer norm stands in the place of the biases" } else { "shape does not fit" };
            return Err(self.broken(bias, cause));
        }
        self.push(layout, columns - outputs, hidden, if there { Bias::One } else { Bias::None });
        if let Some(found) = self.found.last_mut() {
            (found.projection, found.peepholes, found.layer_norm) = (projection, peepholes, layer_norm);
        }
        Ok(())
    }

    /// Whether this is `projection/kernel` of a cell.
    fn is_projection(&self, [hidden, _]: [usize; 2]) -> bool {
        let above = self.prefix.strip_suffix("projection/").and_then(|above| self.groups.get(above)?.get("kernel"));
        above.is_some_and(|kernel| kernel.shape().last() == hidden.checked_mul(4).as_ref())
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
                let bias = if bias.is_some() { Bias::One } else { Bias::None };
                self.push(Layout::Keras, input, hidden, bias);
            }
            (Some([columns, rows]), None, _) if !self.is_projection([*columns, *rows]) => {
                self.cell(Layout::TensorFlow { forget_bias: 1.0 }, [*rows, *columns])?;
            }
            _ => {}
        }
        match (self.shape("W"), self.shape("R"), self.shape("B")) {
            (Some([directions @ 1..=2, rows, input]), Some([also, and, hidden]), bias)
                if rows == and && directions == also && *rows == hidden.saturating_mul(4) =>
            {
                let (directions, input, hidden) = (*directions, *input, *hidden);
                let bias = if bias.is_some() { Bias::Two } else { Bias::None };
                let peepholes = self.part(Layout::Onnx, 1, &[directions, 3 * hidden])?;
                self.push(Layout::Onnx, input, hidden, bias);
                if let Some(found) = self.found.last_mut() {
                    (found.directions, found.peepholes) = (directions, peepholes);
                }
            }
            (Some([rows, columns]), None, None) => {
                self.cell(Layout::DeepBreathe { forget_bias: 1.0 }, [*rows, *columns])?;
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
            let bias = if self.leaves.contains_key(TEXTBOOK[8]) { Bias::One } else { Bias::None };
            self.push(Layout::Textbook { forget_bias: 0.0 }, input, hidden, bias);
        }
        Ok(())
    }

    fn is_recurrent(&self) -> bool {
        let prefix = self.prefix.to_ascii_lowercase();
        ["lstm", "rnn", "cell"].iter().any(|word| prefix.contains(word))
    }

    fn push(&mut self, layout: Layout, input_size: usize, hidden: usize, bias: Bias) {
        self.found.push(Found {
            prefix: self.prefix.to_string(),
            layout,
            input_size,
            hidden_sizes: vec![hidden],
            directions: 1,
            bias,
            join: None,
            projection: None,
            peepholes: false,
            layer_norm: false,
            highway: false,
        });
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
        let there = |kind: &str, layer: usize| self.leaves.contains_key(leaf(kind, layer, false).as_str());
        let bias = match (there("bias_ih", 0), there("bias_hh", 0)) {
            (false, false) => Bias::None,
            (true, false) => Bias::One,
            (_, true) => Bias::Two,
        };
        let (peepholes, layer_norm) = (there("weight_peephole", 0), there("layer_norm", 0));
        let highway = there("weight_highway", 1);
        let (mut hidden_sizes, mut inputs) = (Vec::new(), Vec::new());
        let (mut outputs, mut projection, mut known) = (Vec::<usize>::new(), None, 0);
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
                let joined = reverse && layer > 0 && *input == outputs[layer - 1].saturating_mul(2);
                let highway = highway && layer > 0 && !joined;
                // of numbers of elements that are in the file
                for (wanted, kind, shape) in [
                    (bias != Bias::None, "bias_ih", &[*rows][..]),
                    (bias == Bias::Two, "bias_hh", &[*rows]),
                    (peepholes, "weight_peephole", &[3 * hidden]),
                    (layer_norm, "layer_norm", &[2, NORMS * hidden]),
                    (highway, "weight_highway", &[*input, *input]),
                    (highway, "bias_highway", &[*input]),
                ] {
                    let name = leaf(kind, layer, reverse);
                    match (wanted, self.shape(&name)) {
                        (true, Some(found)) if found == shape => known += 1,
                        (false, None) => {}
                        (true, None) => return Err(self.broken(&name, "is missing, others of its kind are there")),
                        (true, _) => return Err(self.broken(&name, format!("shape is not {}", message::shape(shape)))),
                        (false, _) => return Err(self.broken(&name, "is there, others of its kind are missing")),
                    }
                }
                known += 2 + projected.is_some() as usize;
                if !reverse {
                    hidden_sizes.push(*hidden);
                    inputs.push(*input);
                    outputs.push(*columns);
                    let this = projected.map(|_| *columns);
                    if layer > 0 && this != projection {
                        return Err(self.broken(&name, "layers have projections of different sizes, or only some have"));
                    }
                    projection = this;
                } else if (hidden_sizes.last(), inputs.last()) != (Some(hidden), Some(input))
                    || (outputs.last(), projection) != (Some(columns), projected.map(|_| *columns))
                {
                    return Err(self.broken(&name, "its sizes differ from the forward direction's"));
                }
            }
        }
        let numbered = |rest: &str| rest.trim_start_matches("_l").starts_with(|c: char| c.is_ascii_digit());
        let all = self.leaves.keys().filter(|leaf| {
            let norm = leaf.strip_prefix("layer_norm").is_some_and(|rest| rest.is_empty() || numbered(rest));
            norm || KINDS.iter().any(|kind| leaf.starts_with(kind))
        });
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
            let (prefix, layout, input_size) = (self.prefix.to_string(), Layout::PyTorch, *input_size);
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
                layer_norm,
                highway,
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
            let bias = match (found.bias, found.layout) {
                (Bias::None, _) => "none",
                (Bias::One, Layout::PyTorch) => "one vector",
                _ => found.layout.bias_rule(),
            };
            writeln!(f, "  gates {}, bias: {bias}", found.layout.gates())?;
            match (found.directions, found.join) {
                (2, Some(Join::Layers)) => writeln!(f, "  directions joined after every layer")?,
                (2, Some(Join::Stacks)) => writeln!(f, "  directions joined at the end: one stack each")?,
                _ => {}
            }
            if let Some(size) = found.projection {
                writeln!(f, "  projection to {size}")?;
            }
            if found.peepholes {
                writeln!(f, "  peephole weights to i, f, o")?;
            }
            if found.layer_norm {
                writeln!(
                    f,
                    "  layer norm of each gate and the cell; its epsilon is in no file, {EPSILON:e} is assumed"
                )?;
            }
            if found.highway {
                writeln!(f, "  highway connections between layers")?;
            }
            if found.config().is_none() {
                writeln!(f, "  this engine has no LSTM of these sizes")?;
            }
            write!(
                f,
                "  not in the file: batch first, dropout, activations, coupled gates, clips, residual connections,"
            )?;
            writeln!(f, " a forget bias outside the vectors")?;
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
