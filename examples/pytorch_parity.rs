//! Does this engine compute what PyTorch, ONNX Runtime and Keras compute? Runs a folder of their results and compares.
//!
//! ```text
//! cargo run --release --example pytorch_parity -- --dir tests/fixtures/pytorch
//! cargo run --release --example pytorch_parity -- --dir tests/fixtures/pytorch --precision f64 --out computed
//! cargo run --release --example pytorch_parity -- --dir tests/fixtures/onnx --format onnx --device gpu
//! ```
//!
//! A folder of `pytorch` holds `manifest.json`, `lnlstm_manifest.json` or both; of `onnx` and `keras` `manifest.json`
//! (the formats: `tests/fixtures/*/README.md`). Each case's weights come in through the public import. Of PyTorch's
//! cases the forward pass, the loss and all gradients are compared, of the others the forward pass. The table has the
//! largest error over tolerance of each; above 1, or a NaN, fails. `NAME.out.safetensors` in `--out` has what was
//! computed. Exit code 0 only if every case passed: one with an option that this engine lacks counts as refused.

use clap::{Parser, ValueEnum};
use everloop::layers::{Bias, Join, Lstm, LstmConfig, LstmInputs, LstmState};
use everloop::plan::Direction::{Forward, Reverse};
use everloop::recorder::gradient_name;
use everloop::weights::layout::{Layer, Layout};
use everloop::weights::{Array, Dtype, Export, Import, Weights, save_arrays};
use everloop::{Device, Parameters, Recorder, Result, Rng, Tensor, Workspace, loss};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Runs a folder of other frameworks' results and compares.
#[derive(Parser)]
struct Arguments {
    /// The folder.
    #[arg(long)]
    dir: PathBuf,
    /// Whose results.
    #[arg(long, default_value = "pytorch")]
    format: Format,
    /// Where to run; a software adapter counts as a GPU.
    #[arg(long, default_value = "cpu")]
    device: Place,
    /// f64 is for the CPU.
    #[arg(long, default_value = "f32")]
    precision: Precision,
    /// Write what was computed into this folder.
    #[arg(long, value_name = "OUTDIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Pytorch,
    Onnx,
    Keras,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Place {
    Cpu,
    Gpu,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Precision {
    F32,
    F64,
}

/// Why a case was not compared.
enum Stop {
    Refused(String),
    Error(String),
}

type Outcome<T> = Result<T, Stop>;

impl From<everloop::Error> for Stop {
    fn from(error: everloop::Error) -> Stop {
        Stop::Error(error.to_string())
    }
}

fn error<T>(text: impl Into<String>) -> Outcome<T> {
    Err(Stop::Error(text.into()))
}

fn refused<T>(text: impl Into<String>) -> Outcome<T> {
    Err(Stop::Refused(text.into()))
}

fn main() -> ExitCode {
    match parity(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Stop::Error(text) | Stop::Refused(text)) => {
            eprintln!("error: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all cases passed.
fn parity(arguments: &Arguments) -> Outcome<bool> {
    let device = match (arguments.device, arguments.precision) {
        (Place::Cpu, Precision::F32) => Device::cpu(),
        (Place::Cpu, Precision::F64) => Device::cpu_f64(),
        (Place::Gpu, Precision::F32) => Device::gpu()?,
        (Place::Gpu, Precision::F64) => return error("--precision f64: a GPU computes in f32; take --device cpu"),
    };
    let export = if arguments.precision == Precision::F64 { Export::new().with_f64() } else { Export::new() };
    type Run = fn(&Map<String, Value>, &Path, &Device) -> Outcome<Compared>;
    let manifests: &[(&str, &str, Run)] = match arguments.format {
        Format::Pytorch => &[
            ("manifest.json", "lstm-golden-v1", |case, dir, device| pytorch(case, dir, device, false)),
            ("lnlstm_manifest.json", "lnlstm-golden-v1", |case, dir, device| pytorch(case, dir, device, true)),
        ],
        Format::Onnx => &[("manifest.json", "onnx-node-tests-v1", onnx)],
        Format::Keras => &[("manifest.json", "keras-golden-v1", keras)],
    };
    let dir = &arguments.dir;
    let mut cases = Vec::new();
    for (file, format, run) in manifests.iter().filter(|(file, ..)| dir.join(file).exists()) {
        cases.extend(manifest(&dir.join(file), format)?.into_iter().map(|case| (case, *run)));
    }
    if cases.is_empty() {
        let files: Vec<&str> = manifests.iter().map(|(file, ..)| *file).collect();
        return error(format!("{}: no {} there, or no case in it", dir.display(), files.join(" or ")));
    }
    if let Some(out) = &arguments.out {
        std::fs::create_dir_all(out).or_else(|e| error(format!("creating {}: {e}", out.display())))?;
    }
    println!("device: {device}");
    println!("{:<24} {:>10} {:<20} {:>10} {:<28} verdict", "case", "forward", "worst", "gradient", "worst");
    let (mut names, mut counts) = (HashSet::new(), [0; 4]);
    for (index, (case, run)) in cases.iter().enumerate() {
        let name = case.get("name").and_then(Value::as_str).unwrap_or_default();
        let plain = |c: char| c.is_alphanumeric() || "-_.+ ".contains(c);
        // the name becomes that of a file
        let compared = match !name.is_empty() && !name.starts_with('.') && name.chars().all(plain) {
            false => error(format!("case {index} has no `name` that can be a file's")),
            true if !names.insert(name) => error("the second case of this name"),
            true => run(case, dir, &device),
        };
        let shown: String = name.chars().filter(|c| plain(*c)).collect();
        let row = compared.map(|compared| {
            let saved = arguments
                .out
                .as_ref()
                .map(|out| save_arrays(out.join(format!("{name}.out.safetensors")), &compared.got, &export));
            (compared.judge(), saved.unwrap_or(Ok(())))
        });
        let (which, verdict, columns) = match row {
            Ok(((columns, None), Ok(()))) => (0, "ok".to_string(), columns),
            Ok(((columns, failure), saved)) => {
                let saved = saved.err().map(|e| format!("not saved: {e}"));
                let why: Vec<String> = failure.into_iter().chain(saved).collect();
                (1, format!("FAIL: {}", why.join("; ")), columns)
            }
            Err(Stop::Refused(why)) => (2, format!("refused: {why}"), Default::default()),
            Err(Stop::Error(why)) => (3, format!("error: {why}"), Default::default()),
        };
        counts[which] += 1;
        let [(forward, at), (gradient, of)] = columns.map(|column| match column {
            Some((ratio, tensor)) => (format!("{ratio:.5}"), tensor),
            None => ("-".into(), "-".into()),
        });
        println!("{shown:<24} {forward:>10} {at:<20} {gradient:>10} {of:<28} {verdict}");
    }
    let [ok, failed, refused, errors] = counts;
    println!("{} cases: {ok} ok, {failed} failed, {refused} refused, {errors} errors", cases.len());
    Ok(ok == cases.len())
}

/// The cases of a manifest.
fn manifest(path: &Path, format: &str) -> Outcome<Vec<Map<String, Value>>> {
    let wrong = |why: String| Stop::Error(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let mut all: Value = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    if let Some(found) = all.get("format").filter(|found| *found != format) {
        return Err(wrong(format!("format {found}, expected \"{format}\"; see --format")));
    }
    let Some(Value::Array(cases)) = all.get_mut("cases").map(Value::take) else {
        return Err(wrong("no list `cases`".into()));
    };
    let object = |case| match case {
        Value::Object(case) => Ok(case),
        other => Err(wrong(format!("a case is no object: {other}"))),
    };
    cases.into_iter().map(object).collect()
}

// ---- fields of a case

/// Fields that change nothing here.
const NOTES: &str = "name note comment seed tier tensors params weight_scale input_scale c0_scale loss_f64 \
    torch_f32_cpu_observed ort_vs_numpy_f64_max_abs producer";

/// Refuses, by its name, a field that is not known and asks for something.
fn only(fields: &Map<String, Value>, known: &str) -> Outcome<()> {
    let neutral = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) => false,
    };
    let is_known = |key: &str| {
        key.ends_with("_observed") || [NOTES, known].iter().any(|list| list.split_whitespace().any(|k| k == key))
    };
    match fields.iter().find(|(key, value)| !is_known(key) && !neutral(value)) {
        Some((key, value)) => refused(format!("`{key}` = {value} is not supported")),
        None => Ok(()),
    }
}

/// A field that may be absent or null.
fn field<'a, T>(fields: &'a Map<String, Value>, key: &str, read: fn(&'a Value) -> Option<T>) -> Outcome<Option<T>> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            read(value).map_or_else(|| error(format!("`{key}` = {value} is not understood")), |v| Ok(Some(v)))
        }
    }
}

fn sizes<const N: usize>(fields: &Map<String, Value>, keys: [&str; N]) -> Outcome<[usize; N]> {
    let mut sizes = [0; N];
    for (size, key) in sizes.iter_mut().zip(keys) {
        let found = field(fields, key, Value::as_u64)?.and_then(|found| usize::try_from(found).ok());
        *size = found.map_or_else(|| error(format!("no `{key}`")), Ok)?;
    }
    Ok(sizes)
}

fn flag(fields: &Map<String, Value>, key: &str) -> Outcome<bool> {
    Ok(field(fields, key, Value::as_bool)?.unwrap_or(false))
}

/// Opens the file that a field names, and holds it against the manifest's list of tensors.
fn open(case: &Map<String, Value>, dir: &Path, key: &str, lists: bool) -> Outcome<Weights> {
    let Some(file) = field(case, key, Value::as_str)? else { return error(format!("no file `{key}`")) };
    let weights = Weights::open(dir.join(file)).or_else(|e| error(format!("{file}: {e}")))?;
    for (name, entry) in case.get("tensors").and_then(Value::as_object).into_iter().flatten().filter(|_| lists) {
        let found = weights.get(name).map(|t| serde_json::json!(t.shape()));
        if found.is_none() || found.as_ref() != entry.get(1) {
            let found = found.map_or("nothing".into(), |shape| shape.to_string());
            return error(format!("{file}: the manifest lists `{name}` as {entry}, the file has {found}"));
        }
    }
    Ok(weights)
}

/// How many steps each row has, from the file or else the manifest.
fn lengths(case: &Map<String, Value>, file: &Weights, key: &str, sizes: [usize; 2]) -> Outcome<Option<Vec<u32>>> {
    let listed: Option<Vec<i64>> = field(case, key, |v| v.as_array()?.iter().map(Value::as_i64).collect())?;
    let stored = file.get(key).map(|tensor| {
        let wide = |b: &[u8]| Some(i64::from_le_bytes(b.try_into().ok()?));
        let narrow = |b: &[u8]| Some(i32::from_le_bytes(b.try_into().ok()?) as i64);
        match (tensor.dtype(), file.bytes(tensor)) {
            (Dtype::I64, bytes) => Ok(bytes.chunks_exact(8).filter_map(wide).collect::<Vec<i64>>()),
            (Dtype::I32, bytes) => Ok(bytes.chunks_exact(4).filter_map(narrow).collect()),
            (other, _) => error(format!("`{key}` is {}, expected I64 or I32", other.name())),
        }
    });
    let found = match (listed, stored.transpose()?) {
        (None, None) => return Ok(None),
        (Some(listed), Some(stored)) if listed != stored => {
            return error(format!("`{key}` is {listed:?} in the manifest, {stored:?} in the file"));
        }
        (listed, stored) => stored.or(listed).unwrap_or_default(),
    };
    let [steps, batch] = sizes;
    let fitting = |l: &i64| u32::try_from(*l).ok().filter(|l| *l as usize <= steps);
    match found.iter().map(fitting).collect::<Option<Vec<u32>>>().filter(|l| l.len() == batch) {
        Some(lengths) => Ok(Some(lengths)),
        None => error(format!("`{key}` = {found:?}, expected {batch} lengths of at most {steps}")),
    }
}

/// A tensor that must have this shape. Checked before anything of its size is made.
fn shaped(file: &Weights, name: &str, shape: &[usize]) -> Outcome<()> {
    match file.get(name).map(|tensor| tensor.shape()) {
        Some(found) if found == shape => Ok(()),
        Some(found) => error(format!("`{name}` has shape {found:?}, expected {shape:?}")),
        None => error(format!("no tensor `{name}`")),
    }
}

fn array(file: &Weights, name: &str, shape: &[usize]) -> Outcome<Array> {
    shaped(file, name, shape)?;
    Ok(Array { name: name.into(), shape: shape.to_vec(), values: file.values(name)? })
}

/// As [`array`], `None` where it is not in the file.
fn optional(file: &Weights, name: &str, shape: &[usize]) -> Outcome<Option<Array>> {
    file.get(name).map(|_| array(file, name, shape)).transpose()
}

// ---- comparing

/// `|got - want| <= absolute + of_max * max|want| + relative * |want|`.
#[derive(Clone, Copy)]
struct Tolerance {
    relative: f64,
    absolute: f64,
    of_max: f64,
}

impl Tolerance {
    fn read(fields: &Map<String, Value>) -> Outcome<Tolerance> {
        let number = |key: &str| field(fields, key, |v| v.as_f64().filter(|v| v.is_finite() && *v >= 0.0));
        let [relative, absolute, of_max] = [number("rtol")?, number("atol")?, number("atol_times_tensor_max")?];
        if relative.or(absolute).or(of_max).is_none() {
            return error("no tolerance: `rtol` or `atol`");
        }
        let [relative, absolute, of_max] = [relative, absolute, of_max].map(|number| number.unwrap_or(0.0));
        Ok(Tolerance { relative, absolute, of_max })
    }

    /// The largest error over tolerance, and where. A NaN is infinitely far.
    fn worst(&self, got: &[f64], want: &[f64]) -> (usize, f64) {
        let absolute = self.absolute + self.of_max * want.iter().fold(0.0f64, |max, v| max.max(v.abs()));
        let ratio = |(index, (got, want)): (usize, (&f64, &f64))| {
            let ratio = if got == want { 0.0 } else { (got - want).abs() / (absolute + self.relative * want.abs()) };
            (index, if ratio.is_nan() { f64::INFINITY } else { ratio })
        };
        let ratios = got.iter().zip(want).enumerate().map(ratio);
        ratios.fold((0, 0.0), |worst, here| if here.1 > worst.1 { here } else { worst })
    }
}

/// What a case gave, and what it should have given.
struct Compared {
    got: Vec<Array>,
    want: Vec<(Array, Tolerance)>,
}

/// Worst error over tolerance and its tensor.
type Worst = Option<(f64, String)>;

impl Compared {
    /// Every tensor of the file but the inputs must have been computed.
    fn new(
        got: Vec<Array>,
        file: &Weights,
        prefix: &str,
        inputs: &[&str],
        tolerance: impl Fn(&str) -> Outcome<Tolerance>,
    ) -> Outcome<Compared> {
        let mut want = Vec::new();
        for tensor in file.tensors().iter().filter(|tensor| !inputs.contains(&tensor.name())) {
            let Some(name) = tensor.name().strip_prefix(prefix) else {
                return refused(format!("the tensor `{}` is not supported", tensor.name()));
            };
            let (shape, values) = (tensor.shape().to_vec(), file.values(tensor.name())?);
            want.push((Array { name: name.into(), shape, values }, tolerance(name)?));
        }
        match want.iter().any(|(want, _)| ["output", "Y"].contains(&want.name.as_str())) {
            true => Ok(Compared { got, want }),
            false => error("the file has no output to compare with"),
        }
    }

    /// The worst of the forward pass and of the gradients; and the worst of what failed.
    fn judge(&self) -> ([Worst; 2], Option<String>) {
        let (mut columns, mut failure, mut worst_of_all): ([Worst; 2], _, _) = ([None, None], None, 1.0);
        for (want, tolerance) in &self.want {
            let got = self.got.iter().find(|got| got.name == want.name);
            let (ratio, why) = match got {
                None => (f64::INFINITY, format!("{} was not computed", want.name)),
                Some(got) if got.shape != want.shape => {
                    (f64::INFINITY, format!("{} has shape {:?}, wanted {:?}", want.name, got.shape, want.shape))
                }
                Some(got) => {
                    let (at, ratio) = tolerance.worst(&got.values, &want.values);
                    let value = |array: &Array| array.values.get(at).copied().unwrap_or(f64::NAN);
                    (ratio, format!("{}[{at}] = {:e}, wanted {:e}", want.name, value(got), value(want)))
                }
            };
            if ratio > worst_of_all {
                worst_of_all = ratio;
                failure = Some(why);
            }
            let [forward, gradient] = &mut columns;
            let column = if want.name.starts_with("grad.") { gradient } else { forward };
            if column.as_ref().is_none_or(|(worst, _)| ratio > *worst) {
                *column = Some((ratio, want.name.clone()));
            }
        }
        (columns, failure)
    }
}

// ---- running

/// A case of any format, in the engine's words.
struct Case {
    lstm: Lstm,
    parameters: Parameters,
    /// `[T, B, I]`, batch first `[B, T, I]`, or `[T, I]`.
    input: Array,
    /// h and c to start from: layer by layer, forward before reverse.
    initial: Option<[Vec<f64>; 2]>,
    lengths: Option<Vec<u32>>,
    /// R1, R2, R3 of the loss; none to run forward only.
    factors: Option<[Vec<f64>; 3]>,
}

impl Case {
    /// T and B.
    fn sizes(&self) -> [usize; 2] {
        match (&self.input.shape[..], self.lstm.config.batch_first) {
            ([steps, _], _) => [*steps, 1],
            ([batch, steps, ..], true) | ([steps, batch, ..], false) => [*steps, *batch],
            _ => [0, 0],
        }
    }

    /// Each step of each row: its place in the input and, within the row's length, the place that mirrors it.
    fn places(&self) -> Vec<(usize, Option<usize>)> {
        let [steps, batch] = self.sizes();
        let place = |t: usize, b: usize| if self.lstm.config.batch_first { b * steps + t } else { t * batch + b };
        let length = |b: usize| self.lengths.as_ref().and_then(|l| l.get(b)).map_or(steps, |l| *l as usize);
        let mirror = |t: usize, b: usize| Some(place(length(b).checked_sub(t + 1)?, b));
        (0..steps).flat_map(|t| (0..batch).map(move |b| (t, b))).map(|(t, b)| (place(t, b), mirror(t, b))).collect()
    }

    /// Zeros for what is not finite past the ends, where anything may stand: a workspace takes finite numbers only.
    fn cleaned(&self, values: &[f64]) -> Vec<f64> {
        let (places, mut values) = (self.places(), values.to_vec());
        let columns = values.len() / places.len().max(1);
        for (place, _) in places.into_iter().filter(|(_, mirror)| mirror.is_none()) {
            let beyond = values.iter_mut().skip(place * columns).take(columns);
            beyond.filter(|v| !v.is_finite()).for_each(|v| *v = 0.0);
        }
        values
    }

    /// Each row backwards within its own length.
    fn reversed(&self, values: &[f64]) -> Vec<f64> {
        let (places, mut result) = (self.places(), values.to_vec());
        let columns = values.len() / places.len().max(1);
        for (to, from) in places.into_iter().filter_map(|(to, from)| Some((to, from?))) {
            let row = values.iter().skip(from * columns).take(columns);
            result.iter_mut().skip(to * columns).zip(row).for_each(|(to, from)| *to = *from);
        }
        result
    }

    /// Runs it: `output`, `hn`, `cn`, and with factors `loss`, `grad.input`, `grad.h0`, `grad.c0`, and the gradients
    /// of the parameters.
    fn run(&self, device: &Device) -> Result<(Vec<Array>, Option<Parameters>)> {
        let (config, [steps, batch]) = (&self.lstm.config, self.sizes());
        let count = config.layers() * config.directions().len();
        let lead = [count, batch];
        let lead = if self.input.shape.len() == 2 { &lead[..1] } else { &lead[..] };
        let mut rec = Recorder::new(&self.parameters);
        let x = rec.input("input", &self.input.shape)?;
        let lengths = self.lengths.as_ref().map(|_| rec.tokens("lengths", &[batch], steps + 1)).transpose()?;
        let (h_size, c_size) = config.state_sizes(0);
        let states = |rec: &mut Recorder<'_>, name: &str, columns: usize| -> Result<Vec<Tensor>> {
            let shape = [&lead[1..], &[columns]].concat();
            (0..count).map(|index| rec.input(&format!("{name}_{index}"), &shape)).collect()
        };
        let starts = match self.initial {
            Some(_) => [states(&mut rec, "h0", h_size)?, states(&mut rec, "c0", c_size)?],
            None => Default::default(),
        };
        if self.factors.is_some() {
            [&x].into_iter().chain(starts.iter().flatten()).try_for_each(|input| rec.want_gradient(input))?;
        }
        let [h0, c0] = &starts;
        let initial: Vec<LstmState> =
            h0.iter().zip(c0).map(|(h, c)| LstmState { h: h.clone(), c: c.clone() }).collect();
        let initial = self.initial.as_ref().map(|_| &initial[..]);
        let inputs = LstmInputs { initial, lengths: lengths.as_ref(), ..LstmInputs::default() };
        let out = self.lstm.record_with(&mut rec, &x, inputs)?;
        let (hn, cn): (Vec<Tensor>, Vec<Tensor>) = out.state.into_iter().map(|state| (state.h, state.c)).unzip();
        // the loss is a sum of products, so its gradients at the outputs are the factors
        let seeds = match self.factors {
            Some(_) => [
                vec![rec.input("R1", out.output.shape())?],
                states(&mut rec, "R2", h_size)?,
                states(&mut rec, "R3", c_size)?,
            ],
            None => Default::default(),
        };
        let outputs = [vec![out.output], hn, cn];
        let pairs: Vec<(&Tensor, &Tensor)> = outputs.iter().flatten().zip(seeds.iter().flatten()).collect();
        if !pairs.is_empty() {
            loss::backward_from(&mut rec, &pairs)?;
        }
        let plan = std::sync::Arc::new(rec.finish());
        let mut workspace = Workspace::new(device, plan.clone(), &self.parameters)?;
        // what no step writes shows
        workspace.poison()?;
        workspace.write(&x, &self.cleaned(&self.input.values))?;
        if let (Some(to), Some(lengths)) = (&lengths, &self.lengths) {
            workspace.write_tokens(to, lengths)?;
        }
        let mut factors = self.factors.clone();
        if let Some([first, ..]) = &mut factors {
            *first = self.cleaned(first);
        }
        let written =
            starts.iter().zip(self.initial.iter().flatten()).chain(seeds.iter().zip(factors.iter().flatten()));
        for (tensors, values) in written {
            let part = values.len() / tensors.len().max(1);
            tensors.iter().zip(values.chunks(part.max(1))).try_for_each(|(to, part)| workspace.write(to, part))?;
        }
        workspace.run()?;

        let mut read = |name: &str, shape: &[usize], tensors: &[Tensor]| -> Result<Array> {
            let parts: Vec<Vec<f64>> = tensors.iter().map(|from| workspace.read(from)).collect::<Result<_>>()?;
            Ok(Array { name: name.into(), shape: shape.to_vec(), values: parts.concat() })
        };
        let gradients =
            |of: &[&str]| of.iter().map(|name| plan.tensor(&gradient_name(name))).collect::<Result<Vec<_>>>();
        let [output, hn, cn] = &outputs;
        let (h_shape, c_shape) = ([lead, &[h_size]].concat(), [lead, &[c_size]].concat());
        let output_shape = output.first().map(Tensor::shape).unwrap_or_default();
        let mut got = vec![read("output", output_shape, output)?, read("hn", &h_shape, hn)?, read("cn", &c_shape, cn)?];
        let Some(factors) = factors else { return Ok((got, None)) };
        let products = got.iter().zip(&factors).flat_map(|(got, factors)| got.values.iter().zip(factors));
        let values = vec![products.map(|(value, factor)| value * factor).sum()];
        got.push(Array { name: "loss".into(), shape: vec![1], values });
        got.push(read("grad.input", &self.input.shape, &gradients(&["input"])?)?);
        for (name, shape) in [("h0", &h_shape), ("c0", &c_shape)].into_iter().filter(|_| self.initial.is_some()) {
            let names: Vec<String> = (0..count).map(|index| format!("{name}_{index}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            got.push(read(&format!("grad.{name}"), shape, &gradients(&names)?)?);
        }
        let mut sums = self.parameters.clone();
        for parameter in self.parameters.iter() {
            sums.set(&parameter.name, &read("", &[], &gradients(&[&parameter.name])?)?.values)?;
        }
        Ok((got, Some(sums)))
    }
}

fn declare(config: LstmConfig) -> Outcome<(Lstm, Parameters)> {
    let mut parameters = Parameters::new();
    let lstm = config.declare(&mut parameters, "", &mut Rng::new(0))?;
    Ok((lstm, parameters))
}

// ---- formats

/// nn.LSTM, or with `layer_norm` TensorFlow's LayerNormBasicLSTMCell.
fn pytorch(case: &Map<String, Value>, dir: &Path, device: &Device, layer_norm: bool) -> Outcome<Compared> {
    let more = match layer_norm {
        true => "eps forget_bias",
        false => "num_layers bidirectional proj_size bias batch_first init_state lengths unbatched",
    };
    only(case, &format!("input_size hidden_size T B weights io tolerance {more}"))?;
    let [input_size, hidden, steps] = sizes(case, ["input_size", "hidden_size", "T"])?;
    let (weights, io) = (open(case, dir, "weights", false)?, open(case, dir, "io", true)?);
    let gates = hidden.saturating_mul(4);
    let number = |key: &str| field(case, key, Value::as_f64);
    let forget_bias = number("forget_bias")?.unwrap_or(0.0);
    let config = LstmConfig::new(input_size, hidden);
    let config = if layer_norm {
        shaped(&weights, "kernel", &[input_size.saturating_add(hidden), gates])?;
        let Some(epsilon) = number("eps")? else { return error("no `eps`") };
        config.with_bias(Bias::None).with_layer_norm(epsilon).with_forget_bias(forget_bias)
    } else {
        let [layers] = sizes(case, ["num_layers"])?;
        let proj_size = field(case, "proj_size", Value::as_u64)?.map(|size| size as usize).filter(|size| *size > 0);
        shaped(&weights, "weight_ih_l0", &[gates, input_size])?;
        let last = format!("weight_hh_l{}", layers.saturating_sub(1));
        shaped(&weights, &last, &[gates, proj_size.unwrap_or(hidden)])?;
        LstmConfig {
            proj_size,
            bidirectional: flag(case, "bidirectional")?.then_some(Join::Layers),
            bias: if field(case, "bias", Value::as_bool)? == Some(false) { Bias::None } else { Bias::Two },
            batch_first: flag(case, "batch_first")?,
            ..config.with_layers(layers)
        }
    };
    let (lstm, mut parameters) = declare(config)?;
    let layout = Layout::TensorFlow { forget_bias };
    match layer_norm {
        true => weights.import_layer(&mut parameters, &lstm, (0, Forward), layout, &Import::new())?,
        false => weights.import(&mut parameters, &Import::new())?,
    };
    // an input without a batch has two axes
    let unbatched = flag(case, "unbatched")?;
    let [batch] = if unbatched { [1] } else { sizes(case, ["B"])? };
    let config = &lstm.config;
    let axes = match (unbatched, config.batch_first) {
        (true, _) => vec![steps],
        (false, false) => vec![steps, batch],
        (false, true) => vec![batch, steps],
    };
    let input = array(&io, "input", &[&axes[..], &[input_size]].concat())?;
    let lengths = lengths(case, &io, "lengths", [steps, batch])?;
    if unbatched && lengths.is_some() {
        return refused("`lengths` of an `unbatched` input");
    }
    let count = config.layers() * config.directions().len();
    let lead: Vec<usize> = [count, batch].into_iter().skip(layer_norm as usize).take(2 - unbatched as usize).collect();
    let (h_size, c_size) = config.state_sizes(0);
    let state = |name: &str, columns: usize| optional(&io, name, &[&lead[..], &[columns]].concat());
    let zeros = |columns: usize| vec![0.0; count * batch * columns];
    let given = |found: Option<Array>, columns: usize| found.map_or_else(|| zeros(columns), |array| array.values);
    let initial = match [state("h0", h_size)?, state("c0", c_size)?] {
        [None, None] if flag(case, "init_state")? => return error("no tensor `h0`, and `init_state` is true"),
        [None, None] => None,
        [h, c] => Some([given(h, h_size), given(c, c_size)]),
    };
    let first = optional(&io, "R1", &[&axes[..], &[config.output_size()]].concat())?;
    let first = first.map_or_else(|| vec![0.0; steps * batch * config.output_size()], |array| array.values);
    let factors = [first, given(state("R2", h_size)?, h_size), given(state("R3", c_size)?, c_size)];
    let case_of = Case { lstm, parameters, input, initial, lengths, factors: Some(factors) };
    let (mut got, gradients) = case_of.run(device)?;
    let mut push = |name: &str, shape: &[usize], values: &[f64]| {
        got.push(Array { name: format!("grad.{name}"), shape: shape.to_vec(), values: values.to_vec() });
    };
    let gradients = gradients.unwrap_or_default();
    if layer_norm {
        // as the arrays that the weights came from
        let layer = Layer::from_parameters(&gradients, &case_of.lstm, (0, Forward))?;
        layout.write(&[layer])?.iter().for_each(|array| push(&array.name, &array.shape, &array.values));
        for state in got.iter_mut().filter(|array| ["hn", "cn", "grad.h0", "grad.c0"].contains(&array.name.as_str())) {
            state.shape = [&lead[..], &[hidden]].concat();
        }
    } else {
        for parameter in gradients.iter() {
            push(&parameter.name, &parameter.shape, gradients.get(&parameter.name)?);
        }
    }
    let Some(all) = case.get("tolerance").and_then(Value::as_object) else { return error("no `tolerance`") };
    let tolerance = |kind: &str| match all.get(kind).and_then(Value::as_object) {
        Some(fields) => {
            only(fields, "rtol atol atol_times_tensor_max")?;
            Tolerance::read(fields)
        }
        None => error(format!("no `tolerance` of `{kind}`")),
    };
    Compared::new(got, &io, "", &["input", "h0", "c0", "R1", "R2", "R3", "lengths"], |name| {
        tolerance(match name {
            name if name.starts_with("grad.") => "grad",
            "loss" if all.contains_key("loss") => "loss",
            _ => "forward",
        })
    })
}

/// `[a, b, rest]` to `[b, a, rest]`.
fn swap(values: &[f64], [a, b]: [usize; 2]) -> Vec<f64> {
    let columns = values.len() / (a * b).max(1);
    let block = |i: usize, j: usize| values.iter().skip((i * b + j) * columns).take(columns).copied();
    (0..b).flat_map(|j| (0..a).flat_map(move |i| block(i, j))).collect()
}

/// The ONNX operator LSTM.
fn onnx(case: &Map<String, Value>, dir: &Path, device: &Device) -> Outcome<Compared> {
    let base = "op input_size T B peephole has_bias has_initial_state sequence_lens attributes rtol atol file";
    let attributes = "direction layout hidden_size activations input_forget";
    only(case, &format!("{base} {attributes}"))?;
    // the node's attributes stand in the case or in a map of their own
    let mut node = field(case, "attributes", Value::as_object)?.cloned().unwrap_or_default();
    only(&node, attributes)?;
    for name in attributes.split_whitespace() {
        match (case.get(name), node.get(name)) {
            (Some(a), Some(b)) if a != b => {
                return error(format!("`{name}` is {a} in the case, {b} in its attributes"));
            }
            (Some(value), None) => node.extend([(name.to_string(), value.clone())]),
            _ => {}
        }
    }
    if let Some(op) = field(case, "op", Value::as_str)?.filter(|op| *op != "LSTM") {
        return refused(format!("`op` = {op} is not supported"));
    }
    let direction = field(&node, "direction", Value::as_str)?.unwrap_or("forward");
    let directions = match direction {
        "forward" | "reverse" => 1,
        "bidirectional" => 2,
        other => return refused(format!("`direction` = {other} is not supported")),
    };
    let activations = field(&node, "activations", Value::as_array)?.filter(|list| !list.is_empty());
    if let Some(list) = activations {
        let wanted = ["Sigmoid", "Tanh", "Tanh"].repeat(directions);
        let same = |(found, wanted): (&Value, &&str)| found.as_str().is_some_and(|f| f.eq_ignore_ascii_case(wanted));
        if list.len() != wanted.len() || !list.iter().zip(&wanted).all(same) {
            return refused(format!("`activations` = {} is not supported", Value::from(list.clone())));
        }
    }
    let switch = |key: &str| match field(&node, key, Value::as_u64)?.unwrap_or(0) {
        on @ (0 | 1) => Ok(on == 1),
        other => refused(format!("`{key}` = {other} is not supported")),
    };
    let (batch_first, coupled) = (switch("layout")?, switch("input_forget")?);
    let [input_size, steps, batch] = sizes(case, ["input_size", "T", "B"])?;
    let [hidden] = sizes(&node, ["hidden_size"])?;
    let file = open(case, dir, "file", true)?;
    let rows = hidden.saturating_mul(4);
    shaped(&file, "W", &[directions, rows, input_size])?;
    shaped(&file, "R", &[directions, rows, hidden])?;
    for (key, name) in [("peephole", "P"), ("has_bias", "B")] {
        if flag(case, key)? && file.get(name).is_none() {
            return error(format!("no tensor `{name}`, and `{key}` is true"));
        }
    }
    let config = LstmConfig {
        bidirectional: (directions == 2).then_some(Join::Layers),
        peephole: file.get("P").is_some(),
        coupled,
        batch_first,
        ..LstmConfig::new(input_size, hidden)
    };
    let (lstm, mut parameters) = declare(config)?;
    for direction in [Forward, Reverse].into_iter().take(directions) {
        file.import_layer(&mut parameters, &lstm, (0, direction), Layout::Onnx, &Import::new().with_unused())?;
    }
    let (axes, states) = match batch_first {
        false => ([steps, batch], [directions, batch]),
        true => ([batch, steps], [batch, directions]),
    };
    let input = array(&file, "X", &[&axes[..], &[input_size]].concat())?;
    let state = |name: &str| optional(&file, name, &[&states[..], &[hidden]].concat());
    let initial = match [state("initial_h")?, state("initial_c")?] {
        [None, None] if flag(case, "has_initial_state")? => return error("no tensor `initial_h`"),
        [None, None] => None,
        both => Some(both.map(|found| match found {
            None => vec![0.0; directions * batch * hidden],
            Some(array) if batch_first => swap(&array.values, states),
            Some(array) => array.values,
        })),
    };
    let lengths = lengths(case, &file, "sequence_lens", [steps, batch])?;
    let mut case_of = Case { lstm, parameters, input, initial, lengths, factors: None };
    // a node of the reverse direction alone: rows turned on the way in and on the way out
    if direction == "reverse" {
        case_of.input.values = case_of.reversed(&case_of.input.values);
    }
    let (mut got, _) = case_of.run(device)?;
    for array in &mut got {
        let (name, shape) = match (array.name.as_str(), batch_first) {
            ("output", false) => ("Y", vec![steps, directions, batch, hidden]),
            ("output", true) => ("Y", vec![batch, steps, directions, hidden]),
            ("hn", _) => ("Y_h", [&states[..], &[hidden]].concat()),
            _ => ("Y_c", [&states[..], &[hidden]].concat()),
        };
        let values = std::mem::take(&mut array.values);
        let values = if name == "Y" && direction == "reverse" { case_of.reversed(&values) } else { values };
        let values = match (name, batch_first) {
            ("Y", true) | ("Y_h" | "Y_c", false) => values,
            ("Y", false) => values
                .chunks((batch * directions * hidden).max(1))
                .flat_map(|step| swap(step, [batch, directions]))
                .collect(),
            _ => swap(&values, [directions, batch]),
        };
        *array = Array { name: name.into(), shape, values };
    }
    let inputs = ["X", "W", "R", "B", "P", "sequence_lens", "initial_h", "initial_c"];
    Compared::new(got, &file, "expect.", &inputs, |_| Tolerance::read(case))
}

/// Keras' LSTM layer.
fn keras(case: &Map<String, Value>, dir: &Path, device: &Device) -> Outcome<Compared> {
    // what the layer returns, and its initial bias, change no number here
    let neutral = "return_sequences return_state unit_forget_bias use_bias";
    let base = "input_size hidden_size T B batch_first rtol atol file activation recurrent_activation";
    only(case, &format!("{base} {neutral}"))?;
    for (key, supported) in [("activation", "tanh"), ("recurrent_activation", "sigmoid")] {
        if let Some(found) = field(case, key, Value::as_str)?.filter(|found| *found != supported) {
            return refused(format!("`{key}` = {found} is not supported"));
        }
    }
    let [input_size, hidden, steps, batch] = sizes(case, ["input_size", "hidden_size", "T", "B"])?;
    let file = open(case, dir, "file", true)?;
    let columns = hidden.saturating_mul(4);
    shaped(&file, "kernel", &[input_size, columns])?;
    shaped(&file, "recurrent_kernel", &[hidden, columns])?;
    let batch_first = field(case, "batch_first", Value::as_bool)?.unwrap_or(true);
    let config = LstmConfig::new(input_size, hidden).with_bias(Bias::One);
    let (lstm, mut parameters) = declare(if batch_first { config.with_batch_first() } else { config })?;
    file.import_layer(&mut parameters, &lstm, (0, Forward), Layout::Keras, &Import::new().with_unused())?;
    let axes = if batch_first { [batch, steps] } else { [steps, batch] };
    let input = array(&file, "input", &[&axes[..], &[input_size]].concat())?;
    let case_of = Case { lstm, parameters, input, initial: None, lengths: None, factors: None };
    let (mut got, _) = case_of.run(device)?;
    for state in got.iter_mut().filter(|array| array.name != "output") {
        state.name.truncate(1); // hn, cn to h, c
        state.shape = vec![batch, hidden];
    }
    let inputs = ["input", "kernel", "recurrent_kernel", "bias"];
    let known = ["output", "h", "c"];
    match file.tensors().iter().find(|t| !inputs.contains(&t.name()) && !known.contains(&t.name())) {
        Some(tensor) => refused(format!("the tensor `{}` is not supported", tensor.name())),
        None => Compared::new(got, &file, "", &inputs, |_| Tolerance::read(case)),
    }
}
