//! Says first, where everybody sees it, which adapter the GPU tests of this run use, or that they are skipped.

use everloop::Device;
use std::process::ExitCode;

fn main() -> ExitCode {
    let required = std::env::var("EVERLOOP_REQUIRE_GPU").as_deref() == Ok("1");
    match Device::gpu() {
        Ok(device) => println!("\nGPU tests run on {device}\n"),
        Err(error) if required => {
            println!("\nGPU tests are required and cannot run: {error}\n");
            return ExitCode::FAILURE;
        }
        Err(error) => println!("\nGPU tests are SKIPPED, though they say ok: {error}\n"),
    }
    ExitCode::SUCCESS
}
