//! What LSTMs a file holds: by names and shapes, and by the configuration that our own files store.

use super::config;
use super::header::TensorInfo;
use super::layout::Layout;
use super::solve::UNEVEN;
use super::tables::{HIGHWAY, Part, Row, Table, kind_in_stack, name_in_stack};
use super::{Config, Weights, message};
use crate::error::ensure;
use crate::layers::{Bias, Connection, Join, LstmConfig};
use crate::time::Direction::{self, Forward, Reverse};
use std::collections::BTreeMap;
use std::fmt;

/// An LSTM found in a file.
///
/// [`Survey`] has an example.
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
    /// The configuration that the file stores for these weights, where it fits them.
    pub stored: Option<LstmConfig>,
}

/// TensorFlow's, which is in no file.
const EPSILON: f64 = 1e-12;

impl Found {
    /// The configuration that takes these weights: the stored one, or else what names and shapes tell; `None` where this
    /// engine has no such LSTM. What they do not tell (clips, dropout, ..) is off then, and the epsilon of a layer
    /// norm is TensorFlow's 1e-12.
    pub fn config(&self) -> Option<LstmConfig> {
        self.stored.clone().or_else(|| Some(self.guess()).filter(|config| config.validate().is_ok()))
    }

    fn guess(&self) -> LstmConfig {
        LstmConfig {
            hidden_sizes: self.hidden_sizes.clone(),
            proj_size: self.projection,
            bidirectional: (self.directions == 2).then(|| self.join.unwrap_or(Join::Layers)),
            bias: self.bias,
            forget_bias: self.layout.forget_bias(),
            peephole: self.peepholes,
            layer_norm: self.layer_norm.then_some(EPSILON),
            connection: if self.highway { Connection::Highway } else { Connection::Plain },
            ..LstmConfig::new(self.input_size, 1)
        }
    }

    /// Columns of h of the first layer.
    fn outputs(&self) -> usize {
        self.projection.unwrap_or(self.hidden_sizes[0])
    }

    /// Whether a configuration has the options that names and shapes tell.
    fn fits(&self, config: &LstmConfig) -> bool {
        let stack = config.layers() > 1;
        let ours = (self.input_size, &self.hidden_sizes, self.directions, self.bias, self.projection);
        let sizes = (config.input_size, &config.hidden_sizes, config.directions().len(), config.bias, config.proj_size);
        let options = (config.peephole, config.layer_norm.is_some(), stack && config.connection == Connection::Highway);
        ours == sizes
            && (self.peepholes, self.layer_norm, self.highway) == options
            && self.join == config.bidirectional.filter(|_| stack)
    }
}

/// What a file holds. Printing it gives the report of `examples/import_report.rs`.
///
/// ```
/// use everloop::weights::{self, Export, Weights};
/// use everloop::{Parameters, Rng, layers::LstmConfig};
/// # fn main() -> everloop::Result<()> {
/// let mut parameters = Parameters::new();
/// let config = LstmConfig::new(3, 4).with_layers(2).with_cell_clip(3.0);
/// config.declare(&mut parameters, "encoder", &mut Rng::new(1))?;
/// let file = Weights::from_bytes(&weights::to_bytes(&parameters, &Export::new())?)?;
/// let survey = file.survey();
/// assert_eq!((survey.lstms[0].prefix.as_str(), survey.lstms[0].config()), ("encoder.", Some(config)));
/// # Ok(()) }
/// ```
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
            let group = Group { prefix, leaves, groups: &groups };
            match group.look() {
                Ok(found) => survey.lstms.extend(found),
                Err(broken) => survey.broken.push(broken),
            }
        }
        for found in survey.lstms.iter_mut() {
            found.stored = self.config_of(found).and_then(Result::ok);
        }
        survey
    }

    /// The stored configuration of an LSTM under our names, or why it is not taken; `None` where there is none.
    fn config_of(&self, found: &Found) -> Option<Result<LstmConfig, String>> {
        let name = found.prefix.trim_end_matches(['.', '/']);
        self.stored(LstmConfig::KIND, name).filter(|_| found.layout == Layout::PyTorch)?;
        let config = self.config::<LstmConfig>(name).map_err(|e| e.to_string());
        let misfit = || format!("config of `{}`: does not fit the weights", message::escape(name));
        Some(config.and_then(|config| if found.fits(&config) { Ok(config) } else { Err(misfit()) }))
    }
}

type Leaves<'a> = BTreeMap<&'a str, &'a TensorInfo>;

/// The tensors that share a prefix.
struct Group<'a> {
    prefix: &'a str,
    leaves: &'a Leaves<'a>,
    groups: &'a BTreeMap<&'a str, Leaves<'a>>,
}

type Broken = (String, String);

impl Group<'_> {
    /// Of the group, or of one that lies in it (`projection/kernel`).
    fn get(&self, leaf: &str) -> Option<&TensorInfo> {
        match leaf.rfind(['.', '/']) {
            None => self.leaves.get(leaf).copied(),
            Some(at) => self.groups.get(&*format!("{}{}", self.prefix, &leaf[..at + 1]))?.get(&leaf[at + 1..]).copied(),
        }
    }

    /// The name of a row's array that is there, or else the first.
    fn name(&self, row: &Row) -> &'static str {
        row.names.iter().find(|name| self.get(name).is_some()).unwrap_or(&row.names[0])
    }

    fn broken(&self, leaf: &str, cause: impl Into<String>) -> Broken {
        (format!("{}{leaf}", self.prefix), cause.into())
    }

    /// One layer and direction of a layout whose arrays are named so; an error has the place of its row too. A tensor
    /// without elements is no weight: the sizes of the others are bounded by the file's, so that no product overflows.
    fn solve(&self, layout: Layout, name: impl Fn(&Row) -> String) -> Result<Found, (usize, Broken)> {
        let table = layout.table();
        let arrays: Vec<Option<&TensorInfo>> = table.rows.iter().map(|row| self.get(&name(row))).collect();
        let empty = |n: usize| table.rows[n].is_weight() && arrays[n].is_some_and(|t| t.shape().contains(&0));
        let sizes = table.solve(|n| arrays[n].filter(|_| !empty(n)).map(|tensor| tensor.shape()));
        let sizes = sizes.map_err(|(place, cause)| (place, self.broken(&name(&table.rows[place]), cause)))?;
        let has = |part| table.rows.iter().zip(&arrays).any(|(row, a)| a.is_some() && row.parts.contains(&part));
        Ok(Found {
            prefix: self.prefix.to_string(),
            layout,
            input_size: sizes.input,
            hidden_sizes: vec![sizes.hidden],
            directions: sizes.directions,
            bias: match (has(Part::BiasIh), has(Part::BiasHh)) {
                (_, true) => Bias::Two,
                (true, false) => Bias::One,
                (false, false) => Bias::None,
            },
            join: None,
            projection: has(Part::Projection).then_some(sizes.outputs),
            peepholes: has(Part::Peephole),
            layer_norm: has(Part::Norm),
            highway: false,
            stored: None,
        })
    }

    fn look(&self) -> Result<Vec<Found>, Broken> {
        let named = |row: &Row| self.name(row).to_string();
        if let Some(leaf) = self.leaves.keys().find(|l| l.starts_with("weight_ih")) {
            // PyTorch's LSTM, or its `LSTMCell`
            return match leaf.starts_with("weight_ih_l") {
                true => Ok(vec![self.stack()?]),
                false => Ok(vec![self.solve(Layout::PyTorch, named).map_err(|(_, broken)| broken)?]),
            };
        }
        let mut all = Vec::new();
        for layout in [
            Layout::Keras,
            Layout::TensorFlow { forget_bias: 1.0 },
            Layout::Onnx,
            Layout::DeepBreathe { forget_bias: 1.0 },
            Layout::Textbook { forget_bias: 0.0 },
        ] {
            let table = layout.table();
            // weights of these names can be anything's, but for the textbook's; with a wrong bias beside weights that fit
            // it is an LSTM that is broken
            let textbook = matches!(layout, Layout::Textbook { .. });
            let is_lstm = |place: usize| match table.rows[place].is_weight() {
                true => textbook && self.get("W_ix").and(self.get("W_ih")).is_some(),
                false => self.is_told(table),
            };
            match self.solve(layout, named) {
                Ok(found) if self.is_told(table) => all.push(found),
                Err((place, broken)) if is_lstm(place) => return Err(broken),
                _ => {}
            }
        }
        Ok(all)
    }

    /// Whether weights that fit a table are those of an LSTM. Of one matrix alone only names and biases tell: a dense
    /// layer has a kernel too, and anything can be called W.
    fn is_told(&self, table: &Table) -> bool {
        let [weight, next, ..] = &table.rows[..] else { return false };
        if weight.parts.len() == 1 {
            return true;
        }
        let shape = |row: &Row| self.get(self.name(row)).map(TensorInfo::shape);
        let first = |row: &&Row| matches!(row.parts[0], Part::Peephole | Part::Norm) && row.blocks == [0];
        let sign = table.rows.iter().filter(first).any(|row| shape(row).is_some());
        let (gates, bias) = (shape(weight).and_then(|shape| Some(weight.matrix(shape)?[0])), shape(next));
        let fits = bias.is_some() && bias == gates.as_ref().map(std::slice::from_ref);
        match weight.names[0] {
            "kernel" if self.get("recurrent_kernel").is_some() || self.is_projection() => false,
            "kernel" => sign || self.is_recurrent() && (fits || bias.is_none()),
            _ => sign || fits,
        }
    }

    fn is_recurrent(&self) -> bool {
        let prefix = self.prefix.to_ascii_lowercase();
        ["lstm", "rnn", "cell"].iter().any(|word| prefix.contains(word))
    }

    /// Whether the group's kernel is `projection/kernel [H, P]` of a cell.
    fn is_projection(&self) -> bool {
        let above = self.prefix.strip_suffix("projection/").and_then(|above| self.groups.get(above)?.get("kernel"));
        let rows = above.and_then(|kernel| kernel.shape().last().copied());
        let hidden = self.get("kernel").and_then(|kernel| kernel.shape().first()?.checked_mul(4));
        rows.is_some() && rows == hidden
    }

    /// A stack: `weight_ih_l0`, `weight_hh_l0`, .. `_reverse`.
    fn stack(&self) -> Result<Found, Broken> {
        let table = Layout::PyTorch.table();
        let is_there = |kind: &str, layer: usize, to: Direction| self.get(&name_in_stack(kind, layer, to)).is_some();
        let layers = (0..).take_while(|k| is_there("weight_ih", *k, Forward)).count();
        let directions = 1 + is_there("weight_ih", 0, Reverse) as usize;
        let highway = is_there(HIGHWAY[0], 1, Forward);
        let (mut solved, mut known) = (Vec::<Found>::new(), 0);
        for (layer, to) in (0..layers).flat_map(|k| [(k, Forward), (k, Reverse)].into_iter().take(directions)) {
            let (reverse, name) = (to == Reverse, |kind: &str| name_in_stack(kind, layer, to));
            let this = self.solve(Layout::PyTorch, |row| name(row.names[0])).map_err(|(_, broken)| broken)?;
            for kind in table.rows.iter().map(|row| row.names[0]) {
                let (first, there) = (is_there(kind, 0, Forward), is_there(kind, layer, to));
                ensure!(first == there, self.broken(&name(kind), uneven(there)));
                known += there as usize;
            }
            // of numbers of elements that are in the file
            let (input, below) = (this.input_size, solved.len().checked_sub(directions).map(|n| &solved[n]));
            let joined = reverse && below.is_some_and(|below| input == 2 * below.outputs());
            let wanted = highway && layer > 0 && !joined;
            for (kind, shape) in HIGHWAY.into_iter().zip([&[input, input][..], &[input]]) {
                let (name, found) = (name(kind), self.get(&name(kind)).map(TensorInfo::shape));
                ensure!(wanted == found.is_some(), self.broken(&name, uneven(found.is_some())));
                let fits = found.is_none_or(|found| found == shape);
                ensure!(fits, self.broken(&name, format!("shape is not {}", message::shape(shape))));
                known += found.is_some() as usize;
            }
            let alike = !reverse || solved.last().is_none_or(|forward| *forward == this);
            ensure!(alike, self.broken(&name("weight_ih"), "its sizes differ from the forward direction's"));
            let alike = solved.first().is_none_or(|first| first.projection == this.projection);
            ensure!(alike, self.broken(&name("weight_hr"), "layers have projections of different sizes"));
            solved.push(this);
        }
        let is_ours = |kind: &str| table.place(kind).is_some() || HIGHWAY.contains(&kind);
        let all = self.leaves.keys().filter(|leaf| kind_in_stack(leaf).is_some_and(|(kind, ..)| is_ours(kind)));
        if let Some(extra) = (known != all.clone().count()).then(|| all.clone().next_back()).flatten() {
            return Err(self.broken(extra, format!("layers or directions are missing: {layers} layers are whole")));
        }
        let forward: Vec<&Found> = solved.iter().step_by(directions).collect();
        let mut join = None;
        for (layer, pair) in forward.windows(2).enumerate() {
            let (input, output) = (pair[1].input_size, pair[0].outputs());
            let name = name_in_stack("weight_ih", layer + 1, Forward);
            let layers = directions == 2 && input == 2 * output;
            let fits = layers || input == output;
            ensure!(fits, self.broken(&name, format!("{input} columns do not fit the {output} of the layer below")));
            let this = (directions == 2).then_some(if layers { Join::Layers } else { Join::Stacks });
            let before = std::mem::replace(&mut join, this);
            ensure!(before.is_none() || before == this, self.broken(&name, "layers are joined in two ways"));
        }
        let Some(first) = forward.first() else { return Err(self.broken("weight_ih_l0", "is missing")) };
        let hidden_sizes = forward.iter().flat_map(|layer| layer.hidden_sizes.clone()).collect();
        Ok(Found { hidden_sizes, directions, join, highway, ..(*first).clone() })
    }
}

/// What is wrong with an array that only some layers have.
fn uneven(there: bool) -> &'static str {
    if there { "is there, others of its kind are missing" } else { UNEVEN }
}

impl fmt::Display for Survey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensors = self.weights.tensors();
        let bytes: u64 = tensors.iter().map(TensorInfo::bytes).sum();
        let plural = if self.lstms.len() == 1 { "" } else { "s" };
        writeln!(f, "{} tensors, {bytes} bytes of data, {} LSTM{plural}", tensors.len(), self.lstms.len())?;
        for (key, value) in self.weights.metadata().filter(|(key, _)| config::parse(key).is_none()).take(8) {
            writeln!(f, "metadata {}: {}", message::escape(key), message::escape(value))?;
        }
        for found in &self.lstms {
            let name = message::escape(found.prefix.trim_end_matches(['.', '/']));
            writeln!(f, "LSTM `{name}`: {} names", found.layout.table().name)?;
            write!(f, "  layers {}, directions {}", found.hidden_sizes.len(), found.directions)?;
            let hidden = message::shape(&found.hidden_sizes);
            writeln!(f, ", input size {}, hidden sizes {hidden}", found.input_size)?;
            let bias = match (found.bias, found.layout) {
                (Bias::None, _) => "none",
                (Bias::One, Layout::PyTorch) => "one vector",
                _ => found.layout.bias_rule(),
            };
            writeln!(f, "  gates {}, bias: {bias}", found.layout.gates())?;
            let projection = format!("projection to {}", found.projection.unwrap_or(0));
            for (there, line) in [
                (found.join == Some(Join::Layers), "directions joined after every layer"),
                (found.join == Some(Join::Stacks), "directions joined at the end: one stack each"),
                (found.projection.is_some(), &projection),
                (found.peepholes, "peephole weights to i, f, o"),
                (found.layer_norm, "layer norm of each gate and the cell"),
                (found.highway, "highway connections between layers"),
                (found.config().is_none(), "this engine has no LSTM of these sizes"),
            ] {
                if there {
                    writeln!(f, "  {line}")?;
                }
            }
            match &found.stored {
                Some(config) => writeln!(f, "  stored with it: {}", config.untold())?,
                None => {
                    if let Some(Err(cause)) = self.weights.config_of(found) {
                        writeln!(f, "  not taken: {cause}")?;
                    }
                    if found.layer_norm {
                        writeln!(f, "  the layer norm's epsilon is in no file, {EPSILON:e} is assumed")?;
                    }
                    writeln!(f, "  not in the file: {}", LstmConfig::UNTOLD)?;
                }
            }
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
