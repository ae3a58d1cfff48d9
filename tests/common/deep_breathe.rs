//! The Deep-Breathe fixtures: reading them, their layout and ours, and the comparison of a whole run.
//!
//! ```text
//! theirs   W [4H, I+H]          blocks of rows f, i, g, o     columns x, then h       one b [4H]
//! ours     weight_ih [4H, I]    blocks of rows i, f, g, o     weight_hh [4H, H]       bias_ih, bias_hh [4H]
//! theirs   p_f, p_i, p_o [H]                                  ours   weight_peephole [3H]       i, f, o
//! theirs   ln_f.gamma, ln_f.beta, .. [H]                      ours   layer_norm [2, 5H]         i, f, g, o, c
//! theirs   proj [H, P], dense.W [inputs, classes]             ours   weight_hr, weight: transposed
//! theirs   sequences [B, T, ..], or [T, ..] for batch 1       ours   [T, B, ..]
//! ```

use everloop::Direction;
use everloop::instruments::gradient_name;
use everloop::layers::{Bias, DenseConfig, Join, LstmConfig, LstmInputs, LstmOutput, LstmState, concatenate, one_hot};
use everloop::lockstep::Tolerance;
use everloop::optimizer::SgdConfig;
use everloop::trace::{SeriesCell, run_series};
use everloop::{Device, Parameters, Plan, Recorder, Result, Rng, Store, Tensor, Workspace, loss};
use serde_json::Value;

const GATES: usize = 4;

/// A tensor of a fixture, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

impl Array {
    pub fn new(shape: &[usize], data: Vec<f64>) -> Array {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "{shape:?}");
        Array { shape: shape.to_vec(), data }
    }

    pub fn parse(value: &Value) -> Array {
        match value {
            Value::Object(fields) => Array::new(&sizes(&fields["shape"]), numbers(&fields["data"])),
            Value::Array(_) => {
                let data = numbers(value);
                Array::new(&[data.len()], data)
            }
            number => Array::new(&[], vec![number.as_f64().expect("a tensor, a list or a number")]),
        }
    }

    fn columns(&self) -> usize {
        *self.shape.last().expect("a shape")
    }

    /// `[m, n]` -> `[n, m]`.
    fn transposed(&self) -> Array {
        let [m, n] = self.shape[..] else { panic!("a matrix, not {:?}", self.shape) };
        let data = (0..n).flat_map(|j| (0..m).map(move |i| (i, j))).map(|(i, j)| self.data[i * n + j]).collect();
        Array::new(&[n, m], data)
    }

    /// `[a, b, ..]` -> `[b, a, ..]`: batch-major and time-major.
    fn axes_swapped(&self) -> Array {
        let (a, b) = (self.shape[0], self.shape[1]);
        let len = self.data.len() / (a * b);
        let block = |(i, j): (usize, usize)| self.data[(i * b + j) * len..][..len].iter().copied();
        let data = (0..b).flat_map(|j| (0..a).map(move |i| (i, j))).flat_map(block).collect();
        let mut shape = self.shape.clone();
        shape.swap(0, 1);
        Array::new(&shape, data)
    }
}

pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|n| n.as_f64().expect("a number")).collect()
}

pub fn sizes(value: &Value) -> Vec<usize> {
    numbers(value).into_iter().map(|n| n as usize).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|n| n as u32).collect()
}

pub fn load(name: &str) -> Value {
    let path = format!("{}/tests/fixtures/deep-breathe/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Where each block of our gates i, f, g, o stands in theirs.
pub type GateOrder = [usize; GATES];

/// Theirs is f, i, g, o.
pub const THEIRS: GateOrder = [1, 0, 2, 3];

/// Blocks of rows of theirs in our order, or, with the inverse order, of ours in theirs.
fn permute_gates(of: &Array, order: GateOrder) -> Array {
    let block = of.data.len() / GATES;
    let data = order.iter().flat_map(|gate| of.data[gate * block..(gate + 1) * block].iter().copied()).collect();
    Array::new(&of.shape, data)
}

fn inverse(order: GateOrder) -> GateOrder {
    let mut inverse = [0; GATES];
    order.iter().enumerate().for_each(|(at, gate)| inverse[*gate] = at);
    inverse
}

/// Theirs `W [4H, I+P]` -> `weight_ih [4H, I]`, `weight_hh [4H, P]`.
pub fn split_kernel(kernel: &Array, inputs: usize, order: GateOrder) -> [Array; 2] {
    let (rows, columns) = (kernel.shape[0], kernel.columns());
    let ours = permute_gates(kernel, order);
    let part = |from: usize, to: usize| {
        let data = ours.data.chunks(columns).flat_map(|row| row[from..to].iter().copied()).collect();
        Array::new(&[rows, to - from], data)
    };
    [part(0, inputs), part(inputs, columns)]
}

/// The inverse of [`split_kernel`].
pub fn join_kernel([weight_ih, weight_hh]: [&Array; 2], order: GateOrder) -> Array {
    let rows = weight_ih.data.chunks(weight_ih.columns()).zip(weight_hh.data.chunks(weight_hh.columns()));
    let data = rows.flat_map(|(x, h)| x.iter().chain(h).copied()).collect();
    let joined = Array::new(&[weight_ih.shape[0], weight_ih.columns() + weight_hh.columns()], data);
    permute_gates(&joined, inverse(order))
}

/// Which of our vectors has theirs `p_f` or `ln_f.gamma`, and which H of its values that is.
fn vector_part(theirs: &str) -> (&'static str, usize) {
    let found = match theirs.split(['_', '.']).collect::<Vec<_>>()[..] {
        ["p", gate] => "ifo".find(gate).map(|at| ("weight_peephole", at)),
        ["ln", gate, "gamma"] => "ifgoc".find(gate).map(|at| ("layer_norm", at)),
        ["ln", gate, "beta"] => "ifgoc".find(gate).map(|at| ("layer_norm", 5 + at)),
        _ => None,
    };
    found.unwrap_or_else(|| panic!("unknown parameter {theirs}"))
}

/// How far a device may be from the reference, as the fixtures' README says.
#[derive(Debug, Clone, Copy)]
pub struct Tolerances {
    pub outputs: Tolerance,
    pub losses: f64,
    /// Weights after up to 20 updates, and after more.
    pub weights: [f64; 2],
}

pub const F64: Tolerances =
    Tolerances { outputs: Tolerance { absolute: 1e-11, relative: 0.0 }, losses: 1e-10, weights: [1e-10, 1e-10] };
pub const F32: Tolerances =
    Tolerances { outputs: Tolerance { absolute: 2e-6, relative: 1e-5 }, losses: 1e-5, weights: [2e-6, 2e-5] };

/// What was compared, and what was too far away.
#[derive(Debug, Default)]
pub struct Report {
    pub names: Vec<String>,
    pub numbers: usize,
    /// Largest difference over tolerance, and its name.
    pub worst: (f64, String),
    /// Name and description.
    pub failures: Vec<(String, String)>,
}

impl Report {
    pub fn compare(&mut self, name: &str, tolerance: Tolerance, ours: &Array, theirs: &Array) {
        self.names.push(name.to_string());
        self.numbers += theirs.data.len();
        // a batch of one has no axis in theirs
        let squeezed = |shape: &[usize]| shape.iter().copied().filter(|n| *n != 1).collect::<Vec<_>>();
        if squeezed(&ours.shape) != squeezed(&theirs.shape) {
            self.fail(name, format!("shape {:?}, theirs {:?}", ours.shape, theirs.shape));
            return;
        }
        let (at, ratio) = tolerance.worst(&ours.data, &theirs.data);
        if ratio > self.worst.0 {
            self.worst = (ratio, name.to_string());
        }
        if ratio > 1.0 {
            self.fail(
                name,
                format!("element {at}: {:e}, theirs {:e}, {ratio:.3} x tolerance", ours.data[at], theirs.data[at]),
            );
        }
    }

    /// Where theirs is exactly 0, so must ours be: past the end of a row nothing is rounded.
    pub fn compare_zeros(&mut self, name: &str, ours: &Array, theirs: &Array) {
        let zeros = theirs.data.iter().zip(&ours.data).filter(|(theirs, _)| **theirs == 0.0);
        let wrong = zeros.filter(|(_, ours)| **ours != 0.0).count();
        if wrong > 0 {
            self.fail(name, format!("{wrong} values are not exactly 0, as theirs are"));
        }
    }

    pub fn fail(&mut self, name: &str, what: String) {
        self.failures.push((name.to_string(), what));
    }

    pub fn failed(&self, name: &str) -> bool {
        self.failures.iter().any(|(n, _)| n == name)
    }

    /// Panics with all failures.
    pub fn assert_passed(&self, title: &str) {
        assert!(self.numbers > 0, "{title}: nothing was compared");
        let lines: Vec<String> = self.failures.iter().map(|(name, what)| format!("  {name}: {what}")).collect();
        assert!(lines.is_empty(), "{title}: {} of {} differ\n{}", lines.len(), self.names.len(), lines.join("\n"));
        eprintln!("{title}: {} numbers, worst {:.3} x tolerance ({})", self.numbers, self.worst.0, self.worst.1);
    }
}

/// One layer and direction, with its names in both worlds.
struct Names {
    /// `fw.0`
    theirs: String,
    /// `_l0`
    suffix: String,
    layer: usize,
    direction: Direction,
}

impl Names {
    /// `lstm.weight_ih_l0`
    fn ours(&self, kind: &str) -> String {
        format!("lstm.{kind}{}", self.suffix)
    }

    /// Sets those of our parameters that are theirs called `part`.
    fn set(&self, parameters: &mut Parameters, part: &str, theirs: &Array, order: GateOrder) -> Result<()> {
        match part {
            "W" => {
                let inputs = parameters.entry(&self.ours("weight_ih"))?.shape[1];
                let [weight_ih, weight_hh] = split_kernel(theirs, inputs, order);
                parameters.set(&self.ours("weight_ih"), &weight_ih.data)?;
                parameters.set(&self.ours("weight_hh"), &weight_hh.data)
            }
            "b" => {
                parameters.set(&self.ours("bias_ih"), &permute_gates(theirs, order).data)?;
                parameters.set(&self.ours("bias_hh"), &vec![0.0; theirs.data.len()])
            }
            "proj" => parameters.set(&self.ours("weight_hr"), &theirs.transposed().data),
            _ => {
                let (kind, at) = vector_part(part);
                let mut values = parameters.get(&self.ours(kind))?.to_vec();
                let hidden = theirs.data.len();
                values[at * hidden..][..hidden].copy_from_slice(&theirs.data);
                parameters.set(&self.ours(kind), &values)
            }
        }
    }
}

/// The one that `key`, `fw.0.W`, belongs to, and the rest, `W`.
fn split_key<'a, 'k>(names: &'a [Names], key: &'k str) -> (&'a Names, &'k str) {
    let found = names.iter().find_map(|of| Some((of, key.strip_prefix(&of.theirs)?.strip_prefix('.')?)));
    found.unwrap_or_else(|| panic!("unknown parameter {key}"))
}

/// A fixture as a model of this crate.
pub struct Model {
    fixture: Value,
    order: GateOrder,
    lstm: LstmConfig,
    layers: Vec<Names>,
    parameters: Parameters,
    plan: Plan,
    x: Tensor,
    /// Token ids, where x is one-hot.
    ids: Option<Tensor>,
    targets: Tensor,
    lengths: Option<Tensor>,
    mask: Option<Tensor>,
    initial: Vec<LstmState>,
    output: LstmOutput,
    logits: Tensor,
    made: loss::CrossEntropy,
}

impl Model {
    /// Records forward and backward, and the update where `trains`.
    pub fn new(fixture: &Value, order: GateOrder, trains: bool) -> Result<Model> {
        let config = &fixture["config"];
        let size = |name: &str| config[name].as_u64().unwrap_or_else(|| panic!("config.{name}")) as usize;
        let (batch, steps, input, hidden, layers) =
            (size("batch"), size("seq"), size("input_size"), size("hidden"), size("layers"));
        let both = config["bidirectional"].as_bool().expect("config.bidirectional");
        let number = |name: &str| config.get(name).and_then(Value::as_f64);
        let mut lstm = LstmConfig {
            proj_size: number("num_proj").map(|size| size as usize),
            peephole: config.get("peephole").is_some(),
            cell_clip: number("cell_clip"),
            proj_clip: number("proj_clip"),
            layer_norm: number("layer_norm_eps"),
            ..LstmConfig::new(input, hidden).with_layers(layers)
        };
        lstm = lstm.with_forget_bias(number("forget_bias").expect("config.forget_bias"));
        if lstm.layer_norm.is_some() {
            lstm = lstm.with_bias(Bias::None);
        }
        if both {
            lstm = lstm.with_bidirectional(Join::Stacks);
        }
        let mut names = Vec::new();
        for layer in 0..layers {
            for direction in lstm.directions() {
                let (theirs, suffix) = match direction {
                    Direction::Forward => ("fw", ""),
                    Direction::Reverse => ("bw", "_reverse"),
                };
                let (theirs, suffix) = (format!("{theirs}.{layer}"), format!("_l{layer}{suffix}"));
                names.push(Names { theirs, suffix, layer, direction: *direction });
            }
        }

        let params = &fixture["params"];
        let classes = Array::parse(&params["dense.b"]).data.len();
        let (mut parameters, mut rng) = (Parameters::new(), Rng::new(0));
        let lstm = lstm.declare(&mut parameters, "lstm", &mut rng)?;
        let dense = DenseConfig::new(lstm.config.output_size(), classes).declare(&mut parameters, "dense", &mut rng)?;
        for (key, theirs) in params.as_object().expect("params") {
            let theirs = Array::parse(theirs);
            match key.as_str() {
                "dense.W" => parameters.set("dense.weight", &theirs.transposed().data)?,
                "dense.b" => parameters.set("dense.bias", &theirs.data)?,
                _ => {
                    let (names, part) = split_key(&names, key);
                    names.set(&mut parameters, part, &theirs, order)?;
                }
            }
        }

        let mut rec = Recorder::new(&parameters);
        if trains && lstm.config.bias == Bias::Two {
            // both biases would move, and the sum of them, theirs, twice as far
            for names in &names {
                let bias_hh = rec.parameter(&names.ours("bias_hh"))?;
                rec.stop_gradient(&bias_hh)?;
            }
        }
        let (x, ids) = match fixture["inputs"].get("x") {
            Some(_) => (rec.input("x", &[steps, batch, input])?, None),
            None => {
                let ids = rec.tokens("ids", &[steps, batch], input)?;
                (one_hot(&mut rec, "x", &ids, input)?, Some(ids))
            }
        };
        rec.want_gradient(&x)?;
        let mut initial = Vec::new();
        if fixture["inputs"].get("initial_state").is_some() {
            for Names { theirs, layer, .. } in &names {
                let (h, c) = (format!("initial.{theirs}.h"), format!("initial.{theirs}.c"));
                let (outputs, hidden) = lstm.config.state_sizes(*layer);
                let (h, c) = (rec.input(&h, &[batch, outputs])?, rec.input(&c, &[batch, hidden])?);
                rec.want_gradient(&h)?;
                rec.want_gradient(&c)?;
                initial.push(LstmState { h, c });
            }
        }
        let lengths = match fixture["inputs"].get("lengths") {
            Some(_) => Some(rec.lengths("lengths", batch, steps)?),
            None => None,
        };
        let mask = match fixture["inputs"].get("dropout_mask") {
            Some(_) => Some(rec.input("mask", &[steps, batch, hidden])?),
            None => None,
        };
        let inputs = LstmInputs {
            initial: if initial.is_empty() { None } else { Some(&initial) },
            lengths: lengths.as_ref(),
            masks: mask.as_ref().map(std::slice::from_ref),
            ..LstmInputs::default()
        };
        let output = lstm.record_with(&mut rec, &x, inputs)?;
        let readout = match config["readout"].as_str().expect("config.readout") {
            "fw_out[T-1]" | "concat(fw_out[T-1], bw_out[T-1])" => output.output.row(steps - 1)?,
            "concat(fw_out[t], bw_out[t]) at every t" => output.output.clone(),
            "concat(fw_final_h, bw_final_h)" => {
                let last: Vec<&Tensor> = output.state.iter().map(|state| &state.h).collect();
                concatenate(&mut rec, "final_h", &last)?
            }
            other => panic!("unknown readout {other}"),
        };
        let logits = dense.record(&mut rec, &readout)?;
        let rows = &logits.shape()[..logits.shape().len() - 1];
        let targets = rec.targets("targets", rows, classes)?;
        let made = loss::softmax_cross_entropy(&mut rec, "loss", &logits, &targets)?;
        rec.backward(&made.loss)?;
        if trains {
            SgdConfig::new(config["learning_rate"].as_f64().expect("config.learning_rate")).record(&mut rec)?;
        }
        let plan = rec.finish();
        let (fixture, layers, lstm) = (fixture.clone(), names, lstm.config);
        Ok(Model {
            fixture,
            order,
            lstm,
            layers,
            parameters,
            plan,
            x,
            ids,
            targets,
            lengths,
            mask,
            initial,
            output,
            logits,
            made,
        })
    }

    /// A workspace with poisoned memory and the fixture's inputs.
    fn workspace(&self, device: &Device) -> Result<Workspace> {
        let mut workspace = Workspace::new(&Store::new(device, &self.parameters)?, self.plan.clone())?;
        let inputs = &self.fixture["inputs"];
        match &self.ids {
            Some(ids) => self.write_window(&mut workspace, ids, &self::ids(&inputs["x_ids"]["data"]), self.target())?,
            None => {
                workspace.write(&self.x, &Array::parse(&inputs["x"]).axes_swapped().data)?;
                workspace.write_tokens(&self.targets, &self.targets_of_rows())?;
            }
        }
        if let Some(lengths) = &self.lengths {
            workspace.write_lengths(lengths, &ids(&inputs["lengths"]))?;
        }
        if let Some((slot, mask)) = self.mask.as_ref().zip(self.mask_values()) {
            workspace.write(slot, &mask.data)?;
        }
        for (names, state) in self.layers.iter().zip(&self.initial) {
            let values =
                |part: &str| Array::parse(&inputs["initial_state"][format!("{}.{part}", names.theirs).as_str()]);
            workspace.write(&state.h, &values("h0").data)?;
            workspace.write(&state.c, &values("c0").data)?;
        }
        workspace.poison()?;
        Ok(workspace)
    }

    /// One for each batch row, or one for each step and batch row, where those past a row's length do not count.
    fn targets_of_rows(&self) -> Vec<u32> {
        let inputs = &self.fixture["inputs"];
        let targets = Array::parse(&inputs["targets"]);
        let Some(lengths) = inputs.get("lengths").map(sizes) else { return ids(&inputs["targets"]["data"]) };
        let targets = targets.axes_swapped();
        let counts = |at: usize| at / lengths.len() < lengths[at % lengths.len()];
        let target = |(at, id): (usize, &f64)| if counts(at) { *id as u32 } else { loss::IGNORE };
        targets.data.iter().enumerate().map(target).collect()
    }

    /// What g is multiplied by, `[T, B, H]`.
    fn mask_values(&self) -> Option<Array> {
        let mask = Array::parse(self.fixture["inputs"].get("dropout_mask")?);
        let keep = self.fixture["config"]["dropout_keep_prob"].as_f64().expect("config.dropout_keep_prob");
        Some(Array::new(&mask.shape, mask.data.iter().map(|kept| kept / keep).collect()))
    }

    fn target(&self) -> u32 {
        self.fixture["inputs"]["target"].as_u64().expect("inputs.target") as u32
    }

    fn write_window(&self, workspace: &mut Workspace, ids: &Tensor, window: &[u32], target: u32) -> Result<()> {
        workspace.write_tokens(ids, window)?;
        workspace.write_tokens(&self.targets, &[target])
    }

    /// One run of forward and backward against `expected`, every key of it.
    pub fn check_run(&self, device: &Device, tolerances: Tolerances) -> Result<Report> {
        let mut workspace = self.workspace(device)?;
        let cells = run_series(&mut workspace)?;
        let mut report = Report::default();
        let outputs = tolerances.outputs;
        let keys = self.fixture["expected"].as_object().expect("expected").iter();
        for (key, theirs) in keys {
            match key.as_str() {
                "logits" => {
                    let ours = read(&mut workspace, &self.logits)?;
                    report.compare(key, outputs, &ours, &time_major(theirs));
                }
                "probs" => {
                    let ours = read(&mut workspace, &self.made.probabilities)?;
                    report.compare(key, outputs, &ours, &Array::parse(theirs));
                }
                "loss" => {
                    let ours = read(&mut workspace, &self.made.loss)?;
                    report.compare(key, outputs, &ours, &Array::parse(theirs));
                }
                "fw_out" | "bw_out" | "outputs" => {
                    let ours = self.sequence(&mut workspace, key)?;
                    let theirs = time_major(theirs);
                    report.compare(key, outputs, &ours, &theirs);
                    report.compare_zeros(key, &ours, &theirs);
                }
                "final_state" => self.check_final_state(&mut workspace, theirs, outputs, &mut report)?,
                "cells" => self.check_cells(&cells, theirs, outputs, &mut report),
                "bptt" => self.check_gradients(&cells, theirs, outputs, &mut report),
                "grads" => self.check_weight_gradients(&mut workspace, theirs, outputs, &mut report)?,
                "grads_input" => self.check_input_gradients(&mut workspace, &cells, theirs, outputs, &mut report)?,
                other => report.fail(other, "is not compared".into()),
            }
        }
        for cell in &cells {
            let name = format!("initial_gradient.{}.{:?}", cell.layer, cell.direction);
            let ours = Array::new(&[], vec![cell.initial_gradient_difference().unwrap_or(f64::NAN)]);
            report.compare(&name, outputs, &ours, &Array::new(&[], vec![0.0]));
        }
        Ok(report)
    }

    /// `[T, B, H]` of one direction, or `[T, B, D H]` of both, in time order.
    fn sequence(&self, workspace: &mut Workspace, key: &str) -> Result<Array> {
        let output = read(workspace, &self.output.output)?;
        let hidden = self.fixture["config"]["hidden"].as_u64().expect("config.hidden") as usize;
        let columns = match key {
            "fw_out" => 0..hidden,
            "bw_out" => hidden..2 * hidden,
            _ => 0..output.columns(),
        };
        let mut shape = output.shape.clone();
        shape[2] = columns.len();
        let rows = output.data.chunks(output.columns());
        Ok(Array::new(&shape, rows.flat_map(|row| row[columns.clone()].iter().copied()).collect()))
    }

    fn check_final_state(
        &self,
        workspace: &mut Workspace,
        all: &Value,
        within: Tolerance,
        report: &mut Report,
    ) -> Result<()> {
        for (key, theirs) in all.as_object().expect("final_state") {
            let place = self.layers.iter().zip(&self.output.state).find_map(|(names, state)| match key {
                key if *key == format!("{}.h", names.theirs) => Some(&state.h),
                key if *key == format!("{}.c", names.theirs) => Some(&state.c),
                _ => None,
            });
            match place {
                Some(state) => {
                    let ours = read(workspace, state)?;
                    report.compare(&format!("final_state.{key}"), within, &ours, &Array::parse(theirs));
                }
                None => report.fail(key, "is not compared".into()),
            }
        }
        Ok(())
    }

    /// Calls `compare` for every value of `all["fw.0.step1"]` with the cell and the number of the step; every step of
    /// every cell must be there.
    fn each_step(
        &self,
        cells: &[SeriesCell],
        all: &Value,
        report: &mut Report,
        mut compare: impl FnMut(&mut Report, &SeriesCell, usize, &str, &str, &Value),
    ) {
        let all = all.as_object().expect("values by step");
        let ours: usize = cells.iter().map(|cell| cell.steps.len()).sum();
        if ours != all.len() {
            report.fail("steps", format!("{ours} of all cells, theirs {}", all.len()));
        }
        for (key, values) in all {
            let found = self.layers.iter().find_map(|names| {
                // one cell alone has no name
                let alone = if self.layers.len() == 1 { key.strip_prefix("step") } else { None };
                let step = key.strip_prefix(&format!("{}.step", names.theirs)).or(alone)?.parse::<usize>().ok()?;
                let cell = cells.iter().find(|c| (c.layer, c.direction) == (names.layer, names.direction))?;
                (step < cell.steps.len()).then_some((cell, step))
            });
            match found {
                None => report.fail(key, "is no step of ours".into()),
                Some((cell, step)) => {
                    for (name, theirs) in values.as_object().expect("values of a step") {
                        compare(report, cell, step, &format!("{key}.{name}"), name, theirs);
                    }
                }
            }
        }
    }

    fn check_cells(&self, cells: &[SeriesCell], all: &Value, within: Tolerance, report: &mut Report) {
        let mask = self.mask_values();
        self.each_step(cells, all, report, |report, cell, step, path, name, theirs| {
            let step = &cell.steps[step];
            if let ("g", Some(mask)) = (name, &mask) {
                // theirs is what went into c
                let mut masked = of_ndarray(&step.g);
                let mask = &mask.data[step.time * masked.data.len()..];
                masked.data.iter_mut().zip(mask).for_each(|(g, mask)| *g *= mask);
                return report.compare(path, within, &masked, &Array::parse(theirs));
            }
            let ours = match name {
                "f" => &step.f,
                "i" => &step.i,
                "g" => &step.g,
                "o" => &step.o,
                "c" => &step.c,
                "h" => &step.h,
                _ => return report.fail(path, "is not compared".into()),
            };
            report.compare(path, within, &of_ndarray(ours), &Array::parse(theirs));
        });
    }

    fn check_gradients(&self, cells: &[SeriesCell], all: &Value, within: Tolerance, report: &mut Report) {
        self.each_step(cells, all, report, |report, cell, step, path, name, theirs| {
            let Some(of) = &cell.steps[step].gradients else { return report.fail(path, "was not computed".into()) };
            let ours = match name {
                "dht" => &of.dht,
                "dot" => &of.dot,
                "dct" => &of.dct,
                "dcproj" => &of.dcproj,
                "dft" => &of.dft,
                "dit" => &of.dit,
                "dhx" => &of.dhx,
                "dh_next" => &of.dh_next,
                "dc_next" => of.dc_next.as_ref().expect("a cell without options"),
                _ => return report.fail(path, "is not compared".into()),
            };
            report.compare(path, within, &of_ndarray(ours), &Array::parse(theirs));
        });
    }

    fn check_weight_gradients(
        &self,
        workspace: &mut Workspace,
        all: &Value,
        within: Tolerance,
        report: &mut Report,
    ) -> Result<()> {
        let mut read_gradient = |name: &str| read(workspace, &self.plan.tensor(&gradient_name(name))?);
        for (key, theirs) in all.as_object().expect("grads") {
            let ours = self.in_their_layout(key, &mut read_gradient)?;
            report.compare(&format!("grads.{key}"), within, &ours, &Array::parse(theirs));
        }
        // the two biases are added, so their gradients are the same
        for names in self.layers.iter().filter(|_| self.lstm.bias == Bias::Two) {
            let key = format!("{}.b", names.theirs);
            let ours = permute_gates(&read_gradient(&names.ours("bias_hh"))?, inverse(self.order));
            report.compare(&format!("grads.{key} of bias_hh"), within, &ours, &Array::parse(&all[key.as_str()]));
        }
        Ok(())
    }

    /// The parameter that they call `key`, or its gradient, from the parts that `ours` gives by our name.
    fn in_their_layout(&self, key: &str, ours: &mut dyn FnMut(&str) -> Result<Array>) -> Result<Array> {
        match key {
            "dense.W" => return Ok(ours("dense.weight")?.transposed()),
            "dense.b" => return ours("dense.bias"),
            _ => {}
        }
        let (names, part) = split_key(&self.layers, key);
        match part {
            "W" => {
                let (weight_ih, weight_hh) = (ours(&names.ours("weight_ih"))?, ours(&names.ours("weight_hh"))?);
                Ok(join_kernel([&weight_ih, &weight_hh], self.order))
            }
            "b" => Ok(permute_gates(&ours(&names.ours("bias_ih"))?, inverse(self.order))),
            "proj" => Ok(ours(&names.ours("weight_hr"))?.transposed()),
            _ => {
                let (kind, at) = vector_part(part);
                let hidden = self.lstm.hidden_sizes[names.layer];
                Ok(Array::new(&[hidden], ours(&names.ours(kind))?.data[at * hidden..][..hidden].to_vec()))
            }
        }
    }

    fn check_input_gradients(
        &self,
        workspace: &mut Workspace,
        cells: &[SeriesCell],
        all: &Value,
        within: Tolerance,
        report: &mut Report,
    ) -> Result<()> {
        for (key, theirs) in all.as_object().expect("grads_input") {
            if key == "x" {
                let (ours, theirs) = (read(workspace, &self.plan.tensor("dx")?)?, time_major(theirs));
                report.compare("grads_input.x", within, &ours, &theirs);
                report.compare_zeros("grads_input.x", &ours, &theirs);
                continue;
            }
            let theirs = Array::parse(theirs);
            let index = self.layers.iter().position(|names| key.starts_with(&names.theirs));
            let names = &self.layers[index.unwrap_or_else(|| panic!("unknown input {key}"))];
            let is_h = key.ends_with("h0");
            // with no initial state given, the plan keeps the gradient of it all the same
            let ours = match self.initial.is_empty() {
                true => {
                    let cell = cells.iter().find(|c| (c.layer, c.direction) == (names.layer, names.direction));
                    let state =
                        cell.and_then(|c| c.initial_gradient.as_ref()).expect("a gradient of the initial state");
                    of_ndarray(if is_h { &state.h } else { &state.c })
                }
                false => {
                    let part = if is_h { "dh" } else { "dc" };
                    read(workspace, &self.plan.tensor(&format!("initial.{}.{part}", names.theirs))?)?
                }
            };
            report.compare(&format!("grads_input.{key}"), within, &ours, &theirs);
        }
        Ok(())
    }

    /// All updates of `training`: every loss, the predictions, and the weights wherever they are given.
    pub fn check_training(&self, device: &Device, tolerances: Tolerances) -> Result<Report> {
        let mut workspace = self.workspace(device)?;
        let training = &self.fixture["training"];
        let text = self.fixture["inputs"].get("token_ids").map(ids);
        let offsets = training.get("offsets").map(sizes);
        let expected = numbers(&training["losses"]);
        let (mut losses, mut hits) = (Vec::new(), Vec::new());
        let mut report = Report::default();
        for update in 0..training["steps"].as_u64().expect("training.steps") as usize {
            if let (Some(slot), Some(text), Some(offsets)) = (&self.ids, &text, &offsets) {
                let (from, to) = (offsets[update], offsets[update] + slot.len());
                let target = ids(&training["targets"])[update];
                assert_eq!(text[to], target, "the word after the window");
                self.write_window(&mut workspace, slot, &text[from..to], target)?;
            }
            workspace.poison()?;
            workspace.run()?;
            losses.push(workspace.scalar(&self.made.loss)?);
            if let Some(predictions) = training.get("predictions").map(sizes) {
                let logits = workspace.read::<f64>(&self.logits)?;
                // the first of the largest, as the accuracy counts
                let best = (1..logits.len()).fold(0, |best, at| if logits[at] > logits[best] { at } else { best });
                if best != predictions[update] {
                    report
                        .fail("predictions", format!("update {update}: class {best}, theirs {}", predictions[update]));
                }
                hits.push(workspace.scalar(&self.made.accuracy)?);
            }
            if let Some(all) = training["params_after"].get((update + 1).to_string()) {
                let mut now = self.parameters.clone();
                workspace.store().read(&mut now)?;
                let mut ours = |name: &str| Ok(Array::new(&now.entry(name)?.shape, now.get(name)?.to_vec()));
                let absolute = tolerances.weights[(update + 1 > 20) as usize];
                for (key, theirs) in all.as_object().expect("parameters") {
                    let name = format!("params_after.{}.{key}", update + 1);
                    let ours = self.in_their_layout(key, &mut ours)?;
                    report.compare(&name, Tolerance { absolute, relative: 0.0 }, &ours, &Array::parse(theirs));
                }
            }
        }
        let within = Tolerance { absolute: tolerances.losses, relative: 0.0 };
        let count = losses.len();
        report.compare(
            "losses",
            within,
            &Array::new(&[count], losses.clone()),
            &Array::new(&[expected.len()], expected),
        );
        for entry in training.get("report_every_100").and_then(Value::as_array).into_iter().flatten() {
            let to = entry["iter"].as_u64().expect("iter") as usize;
            let mean = |of: &[f64]| of[to - 100..to].iter().sum::<f64>() / 100.0;
            let ours = Array::new(&[2], vec![mean(&losses), 100.0 * mean(&hits)]);
            let theirs = ["average_loss", "average_accuracy_pct"].map(|name| entry[name].as_f64().expect(name));
            // printed with 6 decimals
            let within = Tolerance { absolute: tolerances.losses + 5e-7, relative: 0.0 };
            report.compare(&format!("report.{to}"), within, &ours, &Array::new(&[2], theirs.to_vec()));
        }
        Ok(report)
    }
}

/// A sequence of theirs, `[B, T, ..]`, or `[T, ..]` for batch 1; what has no third axis is left as it is.
fn time_major(theirs: &Value) -> Array {
    let theirs = Array::parse(theirs);
    if theirs.shape.len() == 3 { theirs.axes_swapped() } else { theirs }
}

pub fn read(workspace: &mut Workspace, tensor: &Tensor) -> Result<Array> {
    Ok(Array::new(tensor.shape(), workspace.read::<f64>(tensor)?))
}

pub fn of_ndarray(array: &ndarray::Array2<f64>) -> Array {
    Array::new(array.shape(), array.iter().copied().collect())
}
