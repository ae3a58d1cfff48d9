//! What a weights file holds: `cargo run --release --example import_report -- FILE`.
//!
//! Prints the LSTMs (layers, directions, sizes, options guessed from shapes) and every tensor, and exits 0; or says in
//! one line why the file is refused, and exits 1.

use everloop::weights::Weights;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(file), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: import_report FILE.safetensors");
        return ExitCode::from(2);
    };
    match Weights::open(&file) {
        Ok(weights) => {
            // a reader that has seen enough (`| head`) is no failure
            let _ = write!(std::io::stdout().lock(), "{}", weights.survey());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("refused: {file:?}: {error}");
            ExitCode::FAILURE
        }
    }
}
