//! The worked example of the Deep-Breathe series (<https://github.com/slowbreathing/Deep-Breathe>): one
//! training window through an LSTM, every intermediate of every time step, forward and back, next to its formula.
//!
//! ```text
//! cargo run --release --example trace                        in the series' names
//! cargo run --release --example trace -- --device gpu        the same on the GPU
//! cargo run --release --example trace -- --all               every slot that every step of the plan wrote
//! cargo run --release --example trace -- --json --values     the same as JSON lines, with all values
//! ```
//!
//! A text of 11 words, a window of 3 of them as one-hot vectors, 5 hidden units, softmax over 10 words: which
//! word comes next? All weights and biases of the LSTM are 0.1; those of the output layer are as published.

use clap::Parser;
use everloop::instruments::gradient_name;
use everloop::layers::{DenseConfig, LstmConfig, one_hot};
use everloop::loss::{CrossEntropy, softmax_cross_entropy};
use everloop::trace::{Detail, Named, Trace, read_series};
use everloop::{Device, Parameters, Recorder, Rng, Store, Tensor, Workspace};
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

const VOCABULARY: [&str; 10] = ["a", "ago", "consider", "council", "general", "had", "long", "mice", "the", "to"];
const TEXT: [u32; 11] = [6, 1, 8, 7, 5, 0, 4, 3, 9, 2, 8];
/// The window starts at this word of the text.
const OFFSET: usize = 2;
const WINDOW: usize = 3;
const HIDDEN: usize = 5;
const WEIGHT: f64 = 0.1;
const FORGET_BIAS: f64 = 1.0;

/// Published weights of the output layer, `[hidden, words]`.
const DENSE_WEIGHT: [[f64; 10]; HIDDEN] = [
    [
        -0.09588283,
        -2.2044923,
        -0.74828255,
        0.14180686,
        -0.32083616,
        -0.9444244,
        0.06826905,
        -0.9728962,
        -0.18506959,
        1.0618515,
    ],
    [
        1.156649,
        3.2738173,
        -1.2556943,
        -0.9079511,
        -0.82127047,
        -1.1448543,
        -0.60807484,
        -0.5885713,
        1.0378786,
        -0.7088431,
    ],
    [
        1.006477,
        0.28033388,
        -0.1804534,
        0.8093307,
        -0.36991575,
        0.29115433,
        -0.01028167,
        -0.7357091,
        0.92254084,
        -0.10753923,
    ],
    [
        0.19266959,
        0.6108299,
        2.2495654,
        1.5288974,
        1.0172302,
        1.1311738,
        0.2666629,
        -0.30611828,
        -0.01412263,
        0.44799015,
    ],
    [
        0.19266959,
        0.6108299,
        2.2495654,
        1.5288974,
        1.0172302,
        1.1311738,
        0.2666629,
        -0.30611828,
        -0.01412263,
        0.44799015,
    ],
];
/// Published biases of the output layer.
const DENSE_BIAS: [f64; 10] = [
    0.1458478,
    -0.3660951,
    -2.1647317,
    -1.9633691,
    -0.24532059,
    0.14005205,
    -1.0961286,
    -0.43737876,
    0.7028531,
    -1.8481724,
];

/// Prints every intermediate of one LSTM training window.
#[derive(Parser)]
struct Arguments {
    /// auto, gpu, cpu, cpu-f64 or part of an adapter's name.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print every slot that every step of the plan wrote, in place of the series' names.
    #[arg(long)]
    all: bool,
    /// As --all, one JSON object on a line for each.
    #[arg(long)]
    json: bool,
    /// Print all values: of every slot with --all and --json, else of the gradients of the weights.
    #[arg(long)]
    values: bool,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let result = trace(&Arguments::parse(), &mut out).and_then(|()| Ok(out.flush()?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // whoever reads has seen enough
        Err(error) if error.downcast_ref().is_some_and(|e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn trace(arguments: &Arguments, out: &mut impl Write) -> Result<(), Failure> {
    let device = Device::parse(&arguments.device)?;
    let mut example = Example::new(&device)?;
    let detail = if arguments.values { Detail::Values } else { Detail::Statistics };
    if arguments.json || arguments.all {
        let mut trace = Trace::new(detail);
        example.workspace.run_observed(&mut trace)?;
        match arguments.json {
            true => trace.write_json_lines(out)?,
            false => trace.write_text(out)?,
        }
        return Ok(());
    }
    example.workspace.run()?;
    writeln!(out, "device   {device}")?;
    example.print_forward(out)?;
    example.print_backward(out)?;
    example.print_weight_gradients(out, arguments.values)
}

/// The recorded example with its inputs.
struct Example {
    workspace: Workspace,
    logits: Tensor,
    loss: CrossEntropy,
}

impl Example {
    fn new(device: &Device) -> everloop::Result<Example> {
        let words = VOCABULARY.len();
        let (mut parameters, mut rng) = (Parameters::new(), Rng::new(0));
        let config = LstmConfig::new(words, HIDDEN).with_forget_bias(FORGET_BIAS);
        let lstm = config.declare(&mut parameters, "lstm", &mut rng)?;
        let dense = DenseConfig::new(HIDDEN, words).declare(&mut parameters, "dense", &mut rng)?;
        // the series has one bias; its second stays 0
        for (name, value) in [("weight_ih", WEIGHT), ("weight_hh", WEIGHT), ("bias_ih", WEIGHT), ("bias_hh", 0.0)]
            .map(|(n, v)| (format!("lstm.{n}_l0"), v))
        {
            let len = parameters.get(&name)?.len();
            parameters.set(&name, &vec![value; len])?;
        }
        let transposed: Vec<f64> = (0..words).flat_map(|word| DENSE_WEIGHT.map(|row| row[word])).collect();
        parameters.set("dense.weight", &transposed)?;
        parameters.set("dense.bias", &DENSE_BIAS)?;

        let mut rec = Recorder::new(&parameters);
        let ids = rec.tokens("words", &[WINDOW, 1], words)?;
        let target = rec.targets("target", &[1], words)?;
        let x = one_hot(&mut rec, "x", &ids, words)?;
        rec.want_gradient(&x)?;
        let output = lstm.record(&mut rec, &x, None)?.output;
        let logits = dense.record(&mut rec, &output.row(WINDOW - 1)?)?;
        let loss = softmax_cross_entropy(&mut rec, "loss", &logits, &target)?;
        rec.backward(&loss.loss)?;
        let mut workspace = Workspace::new(&Store::new(device, &parameters)?, rec.finish())?;
        workspace.write_tokens(&ids, &TEXT[OFFSET..OFFSET + WINDOW])?;
        workspace.write_tokens(&target, &TEXT[OFFSET + WINDOW..][..1])?;
        Ok(Example { workspace, logits, loss })
    }

    fn print_forward(&mut self, out: &mut impl Write) -> Result<(), Failure> {
        let word = |at: usize| VOCABULARY[TEXT[at] as usize];
        let text: Vec<&str> = (0..TEXT.len()).map(word).collect();
        let window: Vec<&str> = (OFFSET..OFFSET + WINDOW).map(word).collect();
        writeln!(out, "text     {}", text.join(" "))?;
        writeln!(out, "window   {} -> {}", window.join(" "), word(OFFSET + WINDOW))?;
        writeln!(out, "words    {}", VOCABULARY.join(" "))?;
        let cells = read_series(&mut self.workspace)?;
        for step in cells.iter().flat_map(|cell| &cell.steps) {
            writeln!(out, "\nforward, step {}: x is \"{}\"", step.time, window[step.time])?;
            print_named(out, &step.named())?;
        }
        let target = TEXT[OFFSET + WINDOW];
        let logits = self.workspace.read::<f64>(&self.logits)?;
        let softmax = self.workspace.read::<f64>(&self.loss.probabilities)?;
        let loss = self.workspace.scalar(&self.loss.loss)?;
        let dlogits = self.read(&gradient_name("dense.y"))?;
        writeln!(out, "\noutput: the target is \"{}\", word {target}", word(OFFSET + WINDOW))?;
        print_line(out, "logits", "ht Wy + by", &logits)?;
        print_line(out, "softmax", "p = exp(logits) / sum of exp(logits)", &softmax)?;
        print_line(out, "loss", "E = -ln p[target]", &[loss])?;
        print_line(out, "dlogits", "p - onehot(target)", &dlogits)?;
        Ok(())
    }

    fn print_backward(&mut self, out: &mut impl Write) -> Result<(), Failure> {
        for cell in read_series(&mut self.workspace)? {
            for step in cell.steps.iter().rev() {
                let Some(gradients) = &step.gradients else { continue };
                writeln!(out, "\nbackward, step {}", step.time)?;
                // dx and dh_next follow and are all of dHX
                let named = gradients.named().into_iter().map(|(name, formula, values)| match name {
                    "dHX" => print_line(out, name, &format!("{formula}  {:?}, in two parts:", values.shape()), &[]),
                    _ => print_named(out, &[(name, formula, values)]),
                });
                named.collect::<io::Result<()>>()?;
            }
        }
        Ok(())
    }

    fn print_weight_gradients(&mut self, out: &mut impl Write, values: bool) -> Result<(), Failure> {
        writeln!(out, "\ngradients of the weights, sums over all steps")?;
        let (weight_ih, weight_hh) = (self.read("lstm.dweight_ih_l0")?, self.read("lstm.dweight_hh_l0")?);
        let bias = self.read("lstm.dbias_ih_l0")?;
        let words = VOCABULARY.len();
        // packed i, f, g, o; shown in the order of the series
        for (letter, gate) in [("f", 1), ("i", 0), ("c", 2), ("o", 3)] {
            let rows = gate * HIDDEN..(gate + 1) * HIDDEN;
            let row =
                |u: usize| [&weight_ih[u * words..(u + 1) * words], &weight_hh[u * HIDDEN..(u + 1) * HIDDEN]].concat();
            let matrix: Vec<Vec<f64>> = rows.clone().map(row).collect();
            let name = if letter == "c" { "Cproj".into() } else { format!("{}t", letter.to_uppercase()) };
            print_matrix(out, &format!("dW{letter}"), &format!("sum of d{name} [x; ht_prev]^T"), &matrix, values)?;
            print_line(out, &format!("db{letter}"), &format!("sum of d{name}"), &bias[rows])?;
        }
        let dense = self.read("dense.dweight")?;
        let matrix: Vec<Vec<f64>> =
            (0..HIDDEN).map(|j| (0..words).map(|word| dense[word * HIDDEN + j]).collect()).collect();
        print_matrix(out, "dWy", "ht^T dlogits", &matrix, values)?;
        let dbias = self.read("dense.dbias")?;
        print_line(out, "dby", "dlogits", &dbias)?;
        Ok(())
    }

    fn read(&mut self, slot: &str) -> everloop::Result<Vec<f64>> {
        let tensor = self.workspace.plan().tensor(slot)?;
        self.workspace.read(&tensor)
    }
}

fn print_named(out: &mut impl Write, all: &[Named<'_>]) -> io::Result<()> {
    all.iter().try_for_each(|(name, formula, values)| {
        print_line(out, name, formula, &values.iter().copied().collect::<Vec<_>>())
    })
}

/// Name, formula, and the values, five to a line.
fn print_line(out: &mut impl Write, name: &str, formula: &str, values: &[f64]) -> io::Result<()> {
    let format = |chunk: &[f64]| chunk.iter().map(|v| format!("{v:>12.8}")).collect::<Vec<_>>().join(" ");
    let mut lines = values.chunks(5).map(format);
    let first = lines.next().unwrap_or_default();
    writeln!(out, "{}", format!("  {name:<8} {formula:<60} {first}").trim_end())?;
    lines.try_for_each(|line| writeln!(out, "{:72}{line}", ""))
}

/// Name, formula, shape and norm of a matrix, with all its rows if wanted.
fn print_matrix(out: &mut impl Write, name: &str, formula: &str, rows: &[Vec<f64>], values: bool) -> io::Result<()> {
    let norm = rows.iter().flatten().map(|v| v * v).sum::<f64>().sqrt();
    let columns = rows.first().map_or(0, Vec::len);
    let shape = format!("{formula}  [{}, {columns}]", rows.len());
    writeln!(out, "  {name:<8} {shape:<60} norm {norm:.8}")?;
    for row in rows.iter().filter(|_| values) {
        let row: Vec<String> = row.iter().map(|v| format!("{v:>11.8}")).collect();
        writeln!(out, "    {}", row.join(" "))?;
    }
    Ok(())
}
