//! Learns a short text word by word, and then continues cues the way the text would.
//!
//! ```text
//! cargo run --release --example story
//! cargo run --release --example story -- --text my.txt --cue "once upon a" --temperature 0
//! ```
//!
//! The model reads a window of words and names the next one: embedding, LSTM layers, a dense layer on the
//! final h, softmax. One plan holds a whole training step; its forward part alone also measures the accuracy
//! over the text. Another plan, over one step of one row, names the next word from the same weights: both are
//! workspaces of one store.
//!
//! One token stands for the silence on both sides of the text: it fills windows that reach beyond the first
//! word (so a cue may be shorter than the window), and a continuation that arrives at it has ended.

use clap::Parser;
use everloop::layers::{Dense, DenseConfig, Embedding, EmbeddingConfig, Lstm, LstmConfig, LstmState};
use everloop::loss::{self, CrossEntropy, IGNORE};
use everloop::optimizer::SgdConfig;
use everloop::plan::Phase;
use everloop::text::{Vocabulary, is_word, tokens};
use everloop::{Device, Parameters, Recorder, Rng, Store, Tensor, Workspace};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const STORY: &str = include_str!("data/the-borrowed-moon.txt");
/// Tokens of a continuation that does not end by itself.
const CONTINUATION: usize = 60;
/// Words in each cue of our own.
const CUE: usize = 3;
/// The largest norm of all gradients together.
const CLIP_NORM: f64 = 1.0;
/// This share of the windows is shortened at random during the first half of the training: that is where
/// the model learns short cues. The second half has only what the text determines.
const SHORTENED: f64 = 0.25;
/// A model of more memory is more likely a slip than a wish, and no error from the allocator would be as clear.
const MOST_MIB: f64 = 4096.0;

/// Learns a text word by word and continues cues.
#[derive(Parser)]
struct Arguments {
    /// A UTF-8 text to learn in place of the story that comes with the project.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Words to continue; may be given several times. Without it, three cues from the text.
    #[arg(long, value_name = "WORDS")]
    cue: Vec<String>,
    /// Words the model sees of what came before.
    #[arg(long, default_value_t = 5, value_parser = size, allow_hyphen_values = true)]
    window: usize,
    /// Windows in a training step.
    #[arg(long, default_value_t = 32, value_parser = size, allow_hyphen_values = true)]
    batch: usize,
    /// Units of each LSTM layer, and columns of the embedding.
    #[arg(long, default_value_t = 128, value_parser = size, allow_hyphen_values = true)]
    hidden_size: usize,
    /// LSTM layers.
    #[arg(long, default_value_t = 1, value_parser = size, allow_hyphen_values = true)]
    layers: usize,
    /// Learning rate at the start; it falls to a tenth over the training.
    #[arg(long, default_value_t = 1.0, value_parser = positive, allow_hyphen_values = true)]
    learning_rate: f64,
    /// Training steps. [default: 25 times over the text, but 1000 to 4000]
    #[arg(long, value_parser = size, allow_hyphen_values = true)]
    steps: Option<usize>,
    /// 0 always takes the likeliest word, 1 draws from the model's probabilities.
    #[arg(long, default_value_t = 0.5, value_parser = not_negative, allow_hyphen_values = true)]
    temperature: f64,
    /// Seed of all that is random.
    #[arg(long, default_value_t = 1, allow_hyphen_values = true)]
    seed: u64,
    /// auto, cpu, gpu, cpu-f64 or part of an adapter's name.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Write one JSON object for each step to this file.
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

fn size(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or("expected a whole number of at least 1".into())
}

fn positive(text: &str) -> std::result::Result<f64, String> {
    // as f32, in which the device has it
    let fits = |x: &f64| (*x as f32).is_finite() && *x as f32 > 0.0;
    text.parse().ok().filter(fits).ok_or("expected a finite number above 0 (in f32)".into())
}

fn not_negative(text: &str) -> std::result::Result<f64, String> {
    text.parse()
        .ok()
        .filter(|x: &f64| x.is_finite() && *x >= 0.0)
        .ok_or("expected a finite number of at least 0".into())
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    // all that can be wrong with the input is found before any training
    let story = match &arguments.text {
        Some(path) => read(path, arguments.window)?,
        None => Story::new(STORY, arguments.window)?,
    };
    let cues = match arguments.cue.is_empty() {
        true => story.own_cues(),
        false => arguments.cue.iter().map(|cue| story.cue(cue)).collect::<Result<_>>()?,
    };
    // the same file under any of its names
    let real = |path: &Option<PathBuf>| path.as_ref().and_then(|path| path.canonicalize().ok());
    if real(&arguments.metrics).is_some_and(|metrics| Some(metrics) == real(&arguments.text)) {
        return Err("creating the metrics file: expected a file of its own, found the text".into());
    }
    let device = Device::parse(&arguments.device)?;
    let mut metrics = Metrics::create(arguments.metrics.as_deref())?;
    let mut model = Model::new(arguments, &story, &device)?;
    eprintln!("device: {device}");
    eprintln!("text: {} words and marks, {} of them different", story.ids.len(), story.vocabulary.len());

    train(arguments, &story, &mut model, &mut metrics)?;
    write_continuations(arguments, &story, &mut model, &cues)
}

fn read(path: &Path, window: usize) -> Result<Story> {
    let read = || {
        let bytes = fs::read(path)?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            format!("expected UTF-8, found something else at byte {at}")
        })?;
        Story::new(&text, window)
    };
    read().map_err(|error| format!("reading the text {}: {error}", path.display()).into())
}

/// A text as token ids.
struct Story {
    vocabulary: Vocabulary,
    ids: Vec<u32>,
    window: usize,
}

impl Story {
    fn new(text: &str, window: usize) -> Result<Story> {
        let vocabulary = Vocabulary::of(text);
        let ids = vocabulary.encode(text)?;
        if !tokens(text).any(is_word) {
            return Err(format!("expected words, found none in {} bytes", text.len()).into());
        }
        if ids.len() < window {
            let found = ids.len();
            return Err(format!(
                "expected at least as many words and marks as a window has, {window}, found {found}; \
                 take a longer text or a smaller --window"
            )
            .into());
        }
        Ok(Story { vocabulary, ids, window })
    }

    /// The token on both sides of the text.
    fn silence(&self) -> u32 {
        self.vocabulary.len() as u32
    }

    /// The last words of `words`, with silence before them where they do not fill the window.
    fn window_of(&self, words: &[u32]) -> Vec<u32> {
        let words = &words[words.len().saturating_sub(self.window)..];
        let mut window = vec![self.silence(); self.window - words.len()];
        window.extend(words);
        window
    }

    /// Every word but the first is to be named, and so is the end.
    fn examples(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.ids.len()
    }

    /// The words before position `at`, at most `length` of them, and the one that stands there.
    fn example(&self, at: usize, length: usize) -> (Vec<u32>, u32) {
        let words = &self.ids[at.saturating_sub(length)..at];
        (self.window_of(words), self.ids.get(at).copied().unwrap_or(self.silence()))
    }

    fn cue(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.vocabulary.encode(text).map_err(|error| format!("reading the cue {text:?}: {error}"))?;
        match ids.is_empty() {
            true => Err(format!("reading the cue {text:?}: expected words of the text, found none").into()),
            false => Ok(ids),
        }
    }

    /// The first words of three sentences: at the beginning, after a third and after two thirds of the text.
    fn own_cues(&self) -> Vec<Vec<u32>> {
        let is = |at: usize, wanted: fn(&str) -> bool| self.vocabulary.word(self.ids[at]).is_some_and(wanted);
        let starts =
            |at: &usize| *at == 0 || is(*at, is_word) && is(*at - 1, |mark| matches!(mark, "." | "!" | "?" | "。"));
        let len = self.ids.len();
        let cue = |from: usize| {
            let start = (from..len).find(starts).unwrap_or(from);
            self.ids[start..len.min(start + CUE)].to_vec()
        };
        (0..3).map(|third| cue(len * third / 3)).collect()
    }
}

/// The plan of a training step in its workspace, and the plan that names words.
struct Model {
    workspace: Workspace,
    generator: Generator,
    /// `[T, B]`.
    ids: Tensor,
    /// `[B]`.
    targets: Tensor,
    learning_rate: Tensor,
    entropy: CrossEntropy,
    /// Steps of the plan before the backward pass.
    forward: usize,
}

impl Model {
    fn new(arguments: &Arguments, story: &Story, device: &Device) -> Result<Model> {
        let &Arguments { window, batch, hidden_size, layers, .. } = arguments;
        let vocab_size = story.vocabulary.len() + 1;
        check_memory(arguments, vocab_size)?;
        let (mut parameters, mut rng) = (Parameters::new(), Rng::new(arguments.seed));
        let embedding =
            EmbeddingConfig::new(vocab_size, hidden_size).declare(&mut parameters, "embedding", &mut rng)?;
        let lstm = LstmConfig::new(hidden_size, hidden_size).with_layers(layers).with_forget_bias(1.0);
        let lstm = lstm.declare(&mut parameters, "lstm", &mut rng)?;
        let dense = DenseConfig::new(hidden_size, vocab_size).declare(&mut parameters, "dense", &mut rng)?;

        let mut rec = Recorder::new(&parameters);
        let ids = rec.tokens("ids", &[window, batch], vocab_size)?;
        let targets = rec.targets("targets", &[batch], vocab_size)?;
        let x = embedding.record(&mut rec, &ids)?;
        let output = lstm.record(&mut rec, &x, None)?;
        let logits = dense.record(&mut rec, &output.state[layers - 1].h)?;
        let entropy = loss::softmax_cross_entropy(&mut rec, "loss", &logits, &targets)?;
        rec.backward(&entropy.loss)?;
        let sgd = SgdConfig::new(arguments.learning_rate).with_clip_norm(CLIP_NORM);
        let learning_rate = sgd.record(&mut rec)?.learning_rate;
        let plan = rec.finish();
        let forward = plan.phase(Phase::Forward).end;
        let store = Store::new(device, &parameters)?;
        let generator = Generator::new(&store, &parameters, &embedding, &lstm, &dense)?;
        let workspace = Workspace::new(&store, plan)?;
        Ok(Model { workspace, generator, ids, targets, learning_rate, entropy, forward })
    }

    fn batch(&self) -> usize {
        self.targets.len()
    }

    /// Puts windows and the words after them into the batch; rows without one do not count.
    fn show(&mut self, examples: &[(Vec<u32>, u32)]) -> Result<()> {
        let mut ids = vec![0; self.ids.len()];
        let mut targets = vec![IGNORE; self.batch()];
        for (row, (window, target)) in examples.iter().enumerate() {
            targets[row] = *target;
            for (t, id) in window.iter().enumerate() {
                ids[t * self.batch() + row] = *id;
            }
        }
        self.workspace.write_tokens(&self.ids, &ids)?;
        self.workspace.write_tokens(&self.targets, &targets)?;
        Ok(())
    }

    /// Loss and accuracy of the batch just run.
    fn measure(&mut self) -> Result<(f64, f64)> {
        let loss = self.workspace.scalar(&self.entropy.loss).map_err(diverged)?;
        Ok((loss, self.workspace.scalar(&self.entropy.accuracy)?))
    }

    /// Share of right next words over the whole text.
    fn text_accuracy(&mut self, story: &Story) -> Result<f64> {
        let all: Vec<usize> = story.examples().collect();
        let mut right = 0.0;
        for chunk in all.chunks(self.batch()) {
            self.show(&chunk.iter().map(|at| story.example(*at, story.window)).collect::<Vec<_>>())?;
            self.workspace.run_steps(0..self.forward)?;
            right += self.measure()?.1 * chunk.len() as f64;
        }
        Ok(right / all.len() as f64)
    }
}

/// One step of one row, from the weights as they are now.
struct Generator {
    workspace: Workspace,
    /// `[1, 1]`.
    id: Tensor,
    /// `[1, H]` of each layer: where the step starts from, and what it leaves for the next.
    states: Vec<LstmState>,
    /// `[1, V]`.
    logits: Tensor,
}

impl Generator {
    fn new(
        store: &Store,
        parameters: &Parameters,
        embedding: &Embedding,
        lstm: &Lstm,
        dense: &Dense,
    ) -> Result<Generator> {
        let mut rec = Recorder::new(parameters);
        let id = rec.tokens("id", &[1, 1], embedding.config.vocab_size)?;
        let mut states = Vec::new();
        for (layer, hidden) in lstm.config.hidden_sizes.iter().enumerate() {
            let h = rec.state(&format!("state.{layer}.h"), &[1, *hidden])?;
            states.push(LstmState { h, c: rec.state(&format!("state.{layer}.c"), &[1, *hidden])? });
        }
        let x = embedding.record(&mut rec, &id)?;
        let output = lstm.record(&mut rec, &x, Some(&states))?;
        output.carry(&mut rec, &states)?;
        let logits = dense.record(&mut rec, &output.state[states.len() - 1].h)?;
        Ok(Generator { workspace: Workspace::new(store, rec.finish())?, id, states, logits })
    }

    /// Logits of the word after these: the window, word by word from an empty memory, as in the training.
    fn next_word(&mut self, window: &[u32]) -> Result<Vec<f64>> {
        for tensor in self.states.iter().flat_map(|state| [&state.h, &state.c]) {
            self.workspace.write(tensor, &vec![0.0f32; tensor.len()])?;
        }
        for word in window {
            self.workspace.write_tokens(&self.id, &[*word])?;
            self.workspace.run()?;
        }
        Ok(self.workspace.read(&self.logits)?)
    }
}

/// Says no to a model that is too large before anything of its size is allocated.
fn check_memory(arguments: &Arguments, vocab_size: usize) -> Result<()> {
    let &Arguments { window, batch, hidden_size, layers, .. } = arguments;
    let [vocab, window, batch, hidden, layers] = [vocab_size, window, batch, hidden_size, layers].map(|n| n as f64);
    // every tensor is rounded up to a whole 256 bytes, and a layer has four
    let parameters = vocab * (2.0 * hidden + 1.0) + layers * (8.0 * hidden * (hidden + 1.0)).max(256.0);
    // gates, h and c of each layer, embedding, logits and probabilities, all with gradients
    let activations = batch * (2.0 * window * hidden * (6.0 * layers + 1.0) + 4.0 * vocab);
    // f64 on the host, twice while they are made; f32 values and gradients on the device
    let mib = (24.0 * parameters + 4.0 * activations) / 1048576.0;
    match mib <= MOST_MIB {
        true => Ok(()),
        false => Err(format!(
            "sizing the model: expected at most {MOST_MIB} MiB, found {mib:.0} MiB; \
             lower --hidden-size, --layers, --batch or --window, or take a text with fewer different words"
        )
        .into()),
    }
}

fn diverged(error: everloop::Error) -> Box<dyn Error> {
    match error {
        everloop::Error::NonFinite { .. } => {
            format!("training: expected a finite loss, found another ({error}); lower --learning-rate").into()
        }
        other => other.into(),
    }
}

/// Positions of a text in random order, each once before any comes again.
struct Shuffled {
    positions: Vec<usize>,
    drawn: usize,
    rng: Rng,
}

impl Shuffled {
    fn next(&mut self) -> usize {
        let left = self.positions.len() - self.drawn;
        let pick = self.drawn + self.rng.below(left);
        self.positions.swap(self.drawn, pick);
        let position = self.positions[self.drawn];
        self.drawn = (self.drawn + 1) % self.positions.len();
        position
    }
}

fn train(arguments: &Arguments, story: &Story, model: &mut Model, metrics: &mut Metrics) -> Result<()> {
    let &Arguments { window, batch, learning_rate, .. } = arguments;
    let steps = arguments.steps.unwrap_or((25 * story.ids.len() / batch).clamp(1000, 4000));
    let mut order = Shuffled { positions: story.examples().collect(), drawn: 0, rng: Rng::new(!arguments.seed) };
    let progress = Progress::new(steps, batch * window);
    for step in 1..=steps {
        let shortened = if step <= steps / 2 { SHORTENED } else { 0.0 };
        let mut example = |_| {
            let at = order.next();
            let short = order.rng.uniform() < shortened;
            story.example(at, if short { 1 + order.rng.below(window) } else { window })
        };
        let examples: Vec<_> = (0..batch).map(&mut example).collect();
        model.show(&examples)?;
        let rate = learning_rate * (1.0 - 0.9 * (step - 1) as f64 / steps as f64);
        model.workspace.write(&model.learning_rate, &[rate])?;
        model.workspace.run()?;

        // reading makes the host wait for the device, so it is not done at every step unless asked for
        if metrics.wanted() || step.is_multiple_of(steps.div_ceil(100)) || step == steps {
            let (loss, accuracy) = model.measure()?;
            progress.report(step, loss, accuracy);
            if step < steps {
                metrics.write(json!({ "step": step, "loss": loss, "accuracy": accuracy }))?;
            } else {
                progress.finish();
                let text_accuracy = model.text_accuracy(story)?;
                eprintln!("next words right over the whole text: {:.1} %", 100.0 * text_accuracy);
                let last = json!({ "step": step, "loss": loss, "accuracy": accuracy, "text_accuracy": text_accuracy });
                metrics.write(last)?;
            }
        }
    }
    metrics.flush()
}

/// A bar on a terminal, else a line for every tenth of the way.
struct Progress {
    bar: Option<ProgressBar>,
    steps: usize,
    words_per_step: usize,
    started: Instant,
}

impl Progress {
    fn new(steps: usize, words_per_step: usize) -> Progress {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {eta} left");
            ProgressBar::new(steps as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Progress { bar, steps, words_per_step, started: Instant::now() }
    }

    fn report(&self, step: usize, loss: f64, accuracy: f64) {
        let speed = step as f64 * self.words_per_step as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        let message = format!("loss {loss:.4}, accuracy {:.1} %, {speed:.0} words/s", 100.0 * accuracy);
        match &self.bar {
            Some(bar) => {
                bar.set_position(step as u64);
                bar.set_message(message);
            }
            None if step.is_multiple_of(self.steps.div_ceil(10)) || step == self.steps => {
                eprintln!("step {step}/{}: {message}", self.steps);
            }
            None => {}
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// JSON lines in a file, if one was asked for.
struct Metrics(Option<(PathBuf, BufWriter<File>)>);

impl Metrics {
    fn create(path: Option<&Path>) -> Result<Metrics> {
        let Some(path) = path else { return Ok(Metrics(None)) };
        let file =
            File::create(path).map_err(|error| format!("creating the metrics file {}: {error}", path.display()))?;
        Ok(Metrics(Some((path.to_path_buf(), BufWriter::new(file)))))
    }

    fn wanted(&self) -> bool {
        self.0.is_some()
    }

    fn write(&mut self, line: serde_json::Value) -> Result<()> {
        self.with_file(|file| writeln!(file, "{line}"))
    }

    fn flush(&mut self) -> Result<()> {
        self.with_file(|file| file.flush())
    }

    fn with_file(&mut self, work: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
        let Some((path, file)) = &mut self.0 else { return Ok(()) };
        work(file).map_err(|error| format!("writing the metrics file {}: {error}", path.display()).into())
    }
}

fn write_continuations(arguments: &Arguments, story: &Story, model: &mut Model, cues: &[Vec<u32>]) -> Result<()> {
    let mut out = io::stdout().lock();
    for (number, cue) in cues.iter().enumerate() {
        // a stream for each cue: what one becomes does not depend on the others
        let mut rng = Rng::new(Rng::new(arguments.seed ^ ((number as u64 + 1) << 32)).bits());
        let mut words = cue.clone();
        let ended = loop {
            let next = choose(&model.generator.next_word(&story.window_of(&words))?, arguments.temperature, &mut rng);
            if next == story.silence() || words.len() >= cue.len() + CONTINUATION {
                break next == story.silence();
            }
            words.push(next);
        };
        let text = story.vocabulary.decode(&words)?;
        let (cue, rest) = (story.vocabulary.decode(cue)?, if ended { "" } else { " …" });
        writeln!(out, "cue: {cue}\n{text}{rest}\n").map_err(|error| format!("writing the continuation: {error}"))?;
    }
    Ok(())
}

/// Draws from the softmax of `logits / temperature`; temperature 0 takes the first largest.
fn choose(logits: &[f64], temperature: f64, rng: &mut Rng) -> u32 {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let best = logits.iter().position(|v| *v == most).unwrap_or(0);
    if temperature == 0.0 {
        return best as u32;
    }
    let weights: Vec<f64> = logits.iter().map(|v| ((v - most) / temperature).exp()).collect();
    let mut left = rng.uniform() * weights.iter().sum::<f64>();
    let drawn = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    drawn.unwrap_or(best) as u32
}
