//! The story example, run as a user runs it.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The example lies next to the folder of this test. `cargo test` builds it first; `cargo test --test story`
/// does not and needs a `cargo build --example story` before.
fn story(arguments: &[&str]) -> Command {
    let test = std::env::current_exe().unwrap();
    let example =
        test.ancestors().nth(2).unwrap().join("examples").join(format!("story{}", std::env::consts::EXE_SUFFIX));
    assert!(example.exists(), "{} is missing: cargo build --example story", example.display());
    let mut command = Command::new(example);
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> (String, String) {
    let output = story(arguments).output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{arguments:?}: {err}");
    (out, err)
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// A failure before any training, whose message has all of `words`.
fn fails(command: &mut Command, words: &[&str]) {
    let output = command.output().unwrap();
    let (out, err) = texts(&output);
    assert!(!output.status.success(), "{command:?} should have failed");
    assert!(out.is_empty() && !err.contains("step 1/") && !err.contains("panicked"), "{command:?}: {out}{err}");
    for word in words {
        assert!(err.contains(word), "{command:?}: no `{word}` in: {err}");
    }
}

/// A file in the folder of this run's temporary files.
fn file(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("story");
    fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

fn text(name: &str, content: impl AsRef<[u8]>) -> String {
    let path = file(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_string()
}

fn metrics(name: &str, arguments: &[&str]) -> Vec<serde_json::Value> {
    let path = file(name);
    run(&[arguments, &["--metrics", path.to_str().unwrap()]].concat());
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn field(lines: &[serde_json::Value], name: &str) -> Vec<f64> {
    lines.iter().map(|line| line[name].as_f64().unwrap()).collect()
}

#[test]
fn the_defaults_learn_the_story() {
    let lines = metrics("defaults.jsonl", &["--device", "cpu"]);
    let last = lines.last().unwrap();
    assert_eq!(last["step"], lines.len());
    for share in ["accuracy", "text_accuracy"] {
        assert!(last[share].as_f64().unwrap() >= 0.95, "{last}");
    }
}

#[test]
fn every_step_is_reported_with_its_numbers() {
    let lines = metrics("steps.jsonl", &["--device", "cpu", "--steps", "13"]);
    assert_eq!(field(&lines, "step"), (1..=13).map(f64::from).collect::<Vec<_>>());
    assert!(field(&lines, "loss").iter().all(|loss| loss.is_finite() && *loss > 0.0));
    assert!(field(&lines, "accuracy").iter().all(|share| (0.0..=1.0).contains(share)));

    let (out, err) = run(&["--device", "cpu", "--steps", "13"]);
    assert!(err.contains("device: CPU (f32) (asked for)"), "{err}");
    assert!(
        err.contains("step 13/13: loss ") && err.contains("words/s") && err.contains("over the whole text"),
        "{err}"
    );
    assert_eq!(out.matches("cue: ").count(), 3);
}

#[test]
fn same_seed_same_bits() {
    let arguments = ["--device", "cpu", "--steps", "60", "--layers", "2", "--temperature", "0.9", "--seed"];
    let with = |name: &str, seed: &str| metrics(name, &[&arguments[..], &[seed]].concat());
    let first = with("seed.jsonl", "7");
    assert_eq!(first, with("again.jsonl", "7"));
    assert_ne!(first, with("other.jsonl", "8"));
    let out = |seed: &str| run(&[&arguments[..], &[seed]].concat()).0;
    assert_eq!(out("7"), out("7"));
    assert_ne!(out("7"), out("8"));
}

#[test]
fn cues_are_continued_in_order() {
    let arguments = ["--device", "cpu", "--temperature", "0", "--steps", "600"];
    let cues = ["--cue", "NELL was", "--cue", "Light ran out over the black", "--cue", "the tide,"];
    let (out, _) = run(&[&arguments[..], &cues].concat());
    let lines: Vec<&str> = out.lines().filter(|line| !line.is_empty()).collect();
    let [a, nell, b, light, c, tide] = lines[..] else { panic!("{out}") };
    assert_eq!([a, b, c], ["cue: Nell was", "cue: Light ran out over the black", "cue: The tide,"]);
    assert!(nell.starts_with("Nell was seven when she carried the moon home"), "{nell}");
    assert!(light.starts_with("Light ran out over the black water. Somewhere far below the hills"), "{light}");
    assert!(tide.starts_with("The tide, "), "{tide}");
}

#[test]
fn a_story_that_was_learned_ends() {
    let (out, _) = run(&["--device", "cpu", "--temperature", "0", "--cue", "wish the moon good night"]);
    assert!(out.ends_with("Wish the moon good night, and go home by its light.\n\n"), "{out}");
}

#[test]
fn texts_of_many_kinds() {
    for (name, content) in [
        ("bom.txt", "\u{feff}one two\r\nthree\r\nfour. Five six!\r\n"),
        ("emoji.txt", "🎉 we danced 😀 all night 👩\u{200d}🚀 until dawn 🎉"),
        ("scripts.txt", "Жил-был кот. 我爱你。 नमस्ते दुनिया। Ο Νείλος έφυγε. שלום עולם"),
        ("window_and_one.txt", "one two three four five six"),
        ("window.txt", "one two three four five"),
    ] {
        let path = text(name, content);
        let (out, err) = run(&["--device", "cpu", "--text", &path, "--steps", "300"]);
        assert_eq!(out.matches("cue: ").count(), 3, "{out}");
        assert!(err.contains("over the whole text: 100.0 %"), "{name}: {err}");
    }
}

#[test]
fn bad_texts_and_cues() {
    let cpu = |arguments: &[&str]| story(&[&["--device", "cpu"], arguments].concat());
    fails(&mut cpu(&["--text", "/no/such/file"]), &["/no/such/file", "reading the text"]);
    fails(&mut cpu(&["--text", &text("empty.txt", "")]), &["empty.txt", "expected words", "none"]);
    fails(&mut cpu(&["--text", &text("marks.txt", " ... !\n—\n")]), &["marks.txt", "expected words", "none"]);
    fails(&mut cpu(&["--text", &text("latin1.txt", b"caf\xe9 au lait")]), &["latin1.txt", "UTF-8", "byte 3"]);
    fails(
        &mut cpu(&["--text", &text("short.txt", "only four words here")]),
        &["short.txt", "--window", "5", "found 4"],
    );
    fails(&mut cpu(&["--cue", "Nell met a dragon"]), &["`met`, `dragon`"]);
    fails(&mut cpu(&["--cue", "Nell was", "--cue", " "]), &["cue", "none"]);
}

#[test]
fn bad_numbers_and_places() {
    for name in ["--window", "--batch", "--hidden-size", "--layers", "--steps"] {
        for value in ["0", "-3", "2.5", "x", "99999999999999999999999"] {
            fails(&mut story(&[name, value]), &[name, value, "at least 1"]);
        }
    }
    for name in ["--learning-rate", "--temperature"] {
        for value in ["-1", "nan", "inf", "-inf", "x", ""] {
            fails(&mut story(&[name, value]), &[name, "finite number"]);
        }
    }
    fails(&mut story(&["--learning-rate", "0"]), &["above 0"]);
    fails(&mut story(&["--seed", "-1"]), &["--seed"]);
    for size in ["--batch", "--hidden-size", "--layers"] {
        fails(&mut story(&["--device", "cpu", size, "18446744073709551615"]), &["sizing the model", size, "MiB"]);
    }
    fails(&mut story(&["--device", "cpu", "--window", "18446744073709551615"]), &["--window"]);
    fails(&mut story(&["--device", "cpu", "--metrics", "/no/such/folder/m"]), &["/no/such/folder/m", "metrics"]);
    let own = text("own.txt", "one two three four five six");
    fails(&mut story(&["--device", "cpu", "--text", &own, "--metrics", &own]), &["metrics"]);
    assert!(fs::read_to_string(own).unwrap().starts_with("one two"));
}

#[test]
fn a_training_that_explodes_says_what_to_do() {
    fails(&mut story(&["--device", "cpu", "--learning-rate", "1e30"]), &["finite loss", "--learning-rate"]);
}

#[test]
fn a_learning_rate_beyond_f32_is_refused() {
    for rate in ["1e300", "1e-60"] {
        fails(&mut story(&["--device", "cpu", "--learning-rate", rate]), &["--learning-rate", "finite number above 0"]);
    }
}

#[test]
fn no_gpu_and_no_such_device() {
    let none = |device: &str| {
        let mut command = story(&["--steps", "2", "--device", device]);
        command.env("VK_DRIVER_FILES", "/nonexistent").env("VK_ICD_FILENAMES", "/nonexistent");
        command
    };
    if cfg!(target_os = "linux") {
        fails(&mut none("gpu"), &["choosing a device", "wanted a GPU"]);
        let (_, err) = texts(&none("auto").output().unwrap());
        let why = if cfg!(feature = "gpu") { "no GPU to use: " } else { "built without" };
        assert!(err.contains(&format!("device: CPU (f32) ({why}")), "{err}");
    }
    fails(&mut none("abacus"), &["`abacus`"]);
    fails(&mut none(""), &["device"]);
}

#[test]
fn auto_takes_no_software_adapter() {
    let Some(gpu) = common::gpu() else { return };
    let (_, err) = run(&["--steps", "2"]);
    let line = err.lines().find(|line| line.starts_with("device: ")).unwrap();
    if gpu.is_software() {
        assert!(line.starts_with("device: CPU (f32) (no GPU to use: ") && line.contains(&gpu.name()), "{line}");
    }
}

#[test]
fn cpu_and_gpu_go_the_same_way() {
    if common::gpu().is_none() {
        return;
    }
    let losses = |device: &str| {
        let lines = metrics(&format!("{device}.jsonl"), &["--device", device, "--steps", "50"]);
        field(&lines, "loss")
    };
    let (cpu, gpu) = (losses("cpu"), losses("gpu"));
    assert_eq!((cpu.len(), gpu.len()), (50, 50));
    for (step, (a, b)) in cpu.iter().zip(&gpu).enumerate() {
        assert!((a - b).abs() <= 1e-3 * a.abs(), "step {}: {a} on the CPU, {b} on the GPU", step + 1);
    }
    assert_eq!(gpu, losses("gpu"), "same seed and device, same bits");
}
