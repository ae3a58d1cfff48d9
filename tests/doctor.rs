//! The example `doctor` as a user runs it: what it prints, the JSON file, the exit code.

mod common;

use common::gpu;
use std::process::{Command, Output};

fn doctor(arguments: &[&str]) -> Command {
    // beside this test's folder: target/release/deps/.. -> target/release/examples
    let folder = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples");
    let mut command = Command::new(folder.join(format!("doctor{}", std::env::consts::EXE_SUFFIX)));
    command.args(arguments);
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_sound_device_gets_exit_code_0_and_a_report() {
    let file = std::env::temp_dir().join(format!("everloop-doctor-{}.json", std::process::id()));
    let device = if gpu().is_some() { "gpu" } else { "cpu" };
    let output = doctor(&["--device", device, "--json", file.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("can be trusted"));
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(json["ok"], true);
    for group in ["kernel", "model", "gradient", "trap"] {
        assert!(json["rows"].as_array().unwrap().iter().any(|row| row["group"] == group && row["ok"] == true));
    }
}

#[test]
fn without_a_driver_it_says_so() {
    let mut command = doctor(&[]);
    command.env("VK_DRIVER_FILES", "/nonexistent").env("VK_ICD_FILENAMES", "/nonexistent");
    if cfg!(any(target_os = "linux", not(feature = "gpu"))) {
        let output = command.output().unwrap();
        assert!(!output.status.success() && text(&output).contains("wanted a GPU"), "{}", text(&output));
    }
    let output = doctor(&["--device", "cpu", "--json", "/nonexistent/folder/file"]).output().unwrap();
    assert!(!output.status.success() && text(&output).contains("writing"), "{}", text(&output));
}
