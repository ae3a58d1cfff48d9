//! Time of every kernel by itself, in each variant: `cargo bench --bench kernels -- --device gpu --filter lstm`.
//!
//! Of each kernel the case with the most work in which the variant fits. GFLOP/s and GB/s (every operand once, so a
//! lower bound where one is read again in each time step) stand side by side: what a kernel is bound by is the one
//! that is near the device's best.

use clap::Parser;
use everloop::instruments::kernels::{ALL, Description};
use everloop::instruments::plan_of;
use everloop::plan::{Kind, Step, Storage};
use everloop::{Device, Parameters, Plan, Result, Rng, Store, Workspace};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Times kernels by themselves.
#[derive(Parser)]
struct Arguments {
    /// auto, gpu, cpu, cpu-f64 or part of an adapter's name.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Only kernels and variants whose `kernel variant` contains this word.
    #[arg(long, default_value = "")]
    filter: String,
    /// The same, as cargo hands it on.
    #[arg(hide = true, default_value = "")]
    word: String,
    /// What `cargo bench` says; without it, as `cargo test` runs it, every kernel runs once.
    #[arg(long, hide = true)]
    bench: bool,
    /// One run each.
    #[arg(long)]
    test: bool,
    #[arg(long, hide = true)]
    nocapture: bool,
}

/// The work of a step: floating point operations, and bytes of its operands.
fn work(step: &Step) -> [f64; 2] {
    let elements: usize = step.operands.iter().flatten().map(|view| view.len()).sum();
    [step.operation.flops(), 4.0 * elements as f64]
}

/// The case with the most work in which a variant fits: its name, its plan, and which step.
fn largest(kernel: &Description, variant: &str, is_gpu: bool) -> Result<Option<(String, Plan, usize)>> {
    let mut best: Option<(String, Plan, usize)> = None;
    for case in (kernel.cases)() {
        let plan = plan_of(&case)?;
        let fits = |step: &Step| !is_gpu || step.operation.can(variant, &step.operands).is_ok();
        let steps = plan.steps().iter().enumerate();
        let candidates = steps.filter(|(_, step)| step.operation.name() == kernel.name && fits(step));
        let Some((index, step)) = candidates.max_by(|a, b| work(a.1).partial_cmp(&work(b.1)).unwrap()) else {
            continue;
        };
        if best.as_ref().is_none_or(|(_, plan, at)| work(step) > work(&plan.steps()[*at])) {
            best = Some((case.name, plan, index));
        }
    }
    Ok(best)
}

/// Random values in everything that the caller writes or that steps add to.
fn fill(workspace: &mut Workspace) -> Result<()> {
    let (plan, rng) = (workspace.plan().clone(), &mut Rng::new(3));
    for slot in plan.slots() {
        let tensor = plan.tensor(&slot.name)?;
        let mut words = |most: usize| (0..slot.len()).map(|_| rng.below(most) as u32).collect::<Vec<_>>();
        match slot.kind {
            Kind::Tokens { vocab_size, .. } => workspace.write_tokens(&tensor, &words(vocab_size))?,
            Kind::Lengths { steps } => workspace.write_lengths(&tensor, &words(steps + 1))?,
            Kind::Input | Kind::Activation if slot.storage == Storage::Own => {
                workspace.write(&tensor, &rng.vector(slot.len(), 0.1))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The median time of a step: 10 runs, or as many as fit into 0.2 s; one with `once`.
fn time(device: &Device, plan: Plan, index: usize, once: bool) -> Result<Duration> {
    let mut workspace = Workspace::new(&Store::new(device, &Parameters::new())?, plan)?;
    fill(&mut workspace)?;
    // what the step reads from those before it, and the first run of it, which may be slower
    workspace.run()?;
    workspace.finish()?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.is_empty() || !once && times.len() < 10 && start.elapsed() < Duration::from_millis(200) {
        let start = Instant::now();
        workspace.run_steps(index..index + 1)?;
        workspace.finish()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::parse(&arguments.device)?;
    println!("{device}");
    println!("{:<31}{:<20}{:>12}{:>10}{:>9}  case", "kernel", "variant", "ms", "GFLOP/s", "GB/s");
    let mut found = false;
    for kernel in ALL {
        let mut variants = if device.is_gpu() { (kernel.variants)() } else { vec![kernel.form, "twin"] };
        variants.dedup();
        for variant in variants {
            let label = format!("{} {variant}", kernel.name);
            if !label.contains(&arguments.filter) || !label.contains(&arguments.word) {
                continue;
            }
            found = true;
            let Some((case, plan, index)) = largest(kernel, variant, device.is_gpu())? else {
                println!("{:<31}{variant:<20}{:>12}{:>10}{:>9}  fits no case here", kernel.name, "-", "-", "-");
                continue;
            };
            let [flops, bytes] = work(&plan.steps()[index]);
            let forced = device.clone().with_variant(kernel.name, variant)?;
            let median = time(&forced, plan, index, arguments.test || !arguments.bench)?.as_secs_f64();
            let [gflops, gbytes] = [flops, bytes].map(|amount| amount / median.max(1e-9) / 1e9);
            println!("{:<31}{variant:<20}{:>12.4}{gflops:>10.2}{gbytes:>9.2}  {case}", kernel.name, median * 1e3);
        }
    }
    match found {
        true => Ok(()),
        false => Err(format!("no `kernel variant` contains `{}`", arguments.filter.clone() + &arguments.word).into()),
    }
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
