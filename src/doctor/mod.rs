//! Proof on the user's own machine: can this device be trusted?
//!
//! [`examine`] runs every variant of every kernel against its twin in f64, whole models in lock-step, gradients
//! against central differences, and the traps that GPUs are known for. Each row of the [`Report`] has a
//! verdict, the worst error as a share of what is tolerated, and a time. The example `doctor` prints it.
//!
//! ```
//! let report = everloop::doctor::examine(&everloop::Device::cpu());
//! assert!(report.is_ok(), "{report}");
//! ```

mod models;

use crate::case::Case;
use crate::device::Device;
use crate::error::{Error, Result, ensure};
use crate::kernel::AdapterClass;
use crate::kernels::recurrence::Recurrence;
use crate::kernels::*;
use crate::parameters::Parameters;
use crate::plan::Plan;
use crate::recorder::Recorder;
use crate::run::lockstep::Tolerance;
use crate::run::{Store, Workspace};
use crate::time::{Direction, Directions};
use models::{agree, check_gradients, check_model, forms};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What f32 may differ from f64 over sums of some thousand terms.
pub const F32: Tolerance = Tolerance { absolute: 2e-5, relative: 1e-4 };

/// One finding.
#[derive(Debug, Clone)]
pub struct Row {
    /// "kernel", "model", "gradient" or "trap".
    pub group: &'static str,
    /// What was examined.
    pub name: String,
    /// The worst error as a share of what is tolerated, or what went wrong.
    pub outcome: Result<f64, String>,
    /// How long it took.
    pub time: Duration,
}

impl Row {
    /// Waits for an outcome, and takes the time.
    async fn of(group: &'static str, name: String, outcome: impl Future<Output = Result<f64>>) -> Row {
        let start = Instant::now();
        let outcome = outcome.await.map_err(|e| e.to_string());
        Row { group, name, outcome, time: start.elapsed() }
    }

    /// Whether the error is within what is tolerated.
    pub fn is_ok(&self) -> bool {
        self.outcome.as_ref().is_ok_and(|worst| *worst <= 1.0)
    }
}

/// All findings about a device; printing it gives a table.
///
/// ```
/// # let report = everloop::doctor::examine(&everloop::Device::cpu());
/// for row in report.rows.iter().filter(|row| !row.is_ok()) {
///     println!("{} {}: {:?}", row.group, row.name, row.outcome);
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Report {
    /// The device, as it prints itself.
    pub device: String,
    /// The findings in order.
    pub rows: Vec<Row>,
}

impl Report {
    /// Whether every row is good: this device can be trusted.
    pub fn is_ok(&self) -> bool {
        self.rows.iter().all(Row::is_ok)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.device)?;
        let width = self.rows.iter().map(|r| r.name.len()).max().unwrap_or(0);
        for row in &self.rows {
            let (verdict, text) = match &row.outcome {
                Ok(worst) => (if row.is_ok() { "ok" } else { "BAD" }, format!("{worst:.4}")),
                Err(message) => ("BAD", message.clone()),
            };
            let ms = row.time.as_secs_f64() * 1e3;
            writeln!(f, "{verdict:<4}{:<9} {:<width$} {ms:>8.1} ms  {text}", row.group, row.name)?;
        }
        let bad = self.rows.iter().filter(|r| !r.is_ok()).count();
        match bad {
            0 => write!(f, "all {} rows are good: this device can be trusted", self.rows.len()),
            _ => write!(f, "{bad} of {} rows are BAD: do not trust this device", self.rows.len()),
        }
    }
}

/// The traps: large arguments, loops beyond 65,535 iterations, tiny numbers, grids beyond 65,535 workgroups.
fn traps() -> Vec<Case> {
    let long = |name: &str, kernel: &str, size: &str| {
        let all = ALL.iter().filter(|known| known.name == kernel).flat_map(|known| (known.cases)());
        let of_size = |mut case: Case| {
            let found = case.name.contains(size);
            case.name = name.into();
            found.then_some(case)
        };
        all.filter_map(of_size).next()
    };
    let mut all = vec![
        Case::new("pre-activations up to 10,000", 1e4, |rec| {
            let weight = rec.input("weight", &[16, 4])?;
            let gates = rec.activation("gates", &[1, 3, 2, 16])?;
            let (h, c) = (rec.activation("h", &[1, 4, 2, 4])?, rec.activation("c", &[1, 4, 2, 4])?);
            rec.fill(&h, 0.5)?;
            rec.fill(&c, 30.0)?;
            lstm_forward::record(rec, &Recurrence::new(Directions::One(Direction::Forward), &[weight], &gates, &h, &c))
        }),
        Case::new("denormal numbers make no NaN", 1e-39, |rec| {
            let (x, y) = (rec.input("x", &[64])?, rec.input("y", &[64])?);
            let out = rec.activation("out", &[64])?;
            subtract::record(rec, &x, &y, &out)
        }),
    ];
    all.extend(long("a sum over 70,001 terms", "matmul", "70001"));
    all.extend(long("600,001 rows", "sum_products", "600001"));
    all.extend(long("17 million elements", "fill", "17000003"));
    all
}

/// The plan of a case.
pub fn plan_of(case: &Case) -> Result<Plan> {
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    (case.record)(&mut rec)?;
    Ok(rec.finish())
}

/// Runs a case on a device, guarded and poisoned, in lock-step with the twins in f64; the worst error over tolerance.
pub async fn check(device: &Device, case: &Case) -> Result<f64> {
    let plan = Arc::new(plan_of(case)?);
    let poisoned = plan.slots().iter().any(|s| s.name.split('.').any(|part| part == "out"));
    agree(device, &Parameters::new(), &plan, (case.bound, true), poisoned).await
}

/// Runs the cases of a kernel in which a variant fits; how many there were, and the worst error over tolerance.
pub async fn check_variant(
    device: &Device,
    kernel: &Description,
    variant: &'static str,
    thorough: bool,
) -> Result<(usize, f64)> {
    let forced = device.clone().with_variant(kernel.name, variant)?;
    let (mut count, mut worst) = (0, 0.0f64);
    for case in (kernel.cases)().iter().filter(|case| thorough || !case.is_thorough) {
        let plan = plan_of(case)?;
        let mut steps = plan.steps().iter().filter(|step| step.operation.name() == kernel.name);
        if !device.is_gpu() || steps.any(|step| step.operation.can(variant, &step.operands).is_ok()) {
            let found = check(&forced, case).await;
            worst = worst.max(found.map_err(|e| Error::config(format!("{}, {variant}", case.name), "no error", e))?);
            count += 1;
        }
    }
    Ok((count, worst))
}

/// A NaN in the weights must reach the output, in every unit.
async fn check_nan(device: &Device) -> Result<f64> {
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    let weight = rec.activation("weight", &[16, 4])?;
    let gates = rec.activation("gates", &[1, 1, 1, 16])?;
    let (h, c) = (rec.activation("h", &[1, 2, 1, 4])?, rec.activation("c", &[1, 2, 1, 4])?);
    rec.fill(&weight, f64::NAN)?;
    for tensor in [&gates, &h, &c] {
        rec.fill(tensor, 0.25)?;
    }
    lstm_forward::record(&mut rec, &Recurrence::new(Directions::One(Direction::Forward), &[weight], &gates, &h, &c))?;
    let mut workspace = Workspace::new_async(&Store::new_async(device, &parameters).await?, rec.finish()).await?;
    workspace.run_async().await?;
    let found = workspace.read_async::<f64>(&h.row(0)?.row(1)?).await?;
    let what = "h of NaN weights, which must be NaN".to_string();
    match found.into_iter().enumerate().find(|(_, v)| !v.is_nan()) {
        None => Ok(0.0),
        Some((index, value)) => Err(Error::NonFinite { what, index, value }),
    }
}

/// Examines a device; see the [module](self). `extra` are cases of your own, for kernels that everloop does not know.
pub async fn examine_async(device: &Device, extra: &[Case]) -> Report {
    let mut rows = Vec::new();
    let classes: &[AdapterClass] = match device.is_gpu() {
        true => &[AdapterClass::Hardware, AdapterClass::Software],
        false => &[AdapterClass::Hardware],
    };
    for kernel in ALL {
        let variants = if device.is_gpu() { (kernel.variants)() } else { vec![kernel.form] };
        for variant in variants {
            let outcome = async {
                let (count, worst) = check_variant(device, kernel, variant, false).await?;
                ensure!(count > 0, Error::config("cases of a variant", "at least one", "none"));
                Ok(worst)
            };
            rows.push(Row::of("kernel", format!("{} {variant}", kernel.name), outcome).await);
        }
    }
    for class in classes {
        let device = device.clone().with_shaders_for(*class);
        let shaders = if device.is_gpu() { format!(", as on {class:?}").to_lowercase() } else { String::new() };
        for form in forms() {
            let name = format!("{}{shaders}", form.name);
            rows.push(Row::of("model", name.clone(), check_model(&device, &form)).await);
            rows.push(Row::of("gradient", name, check_gradients(&device, &form)).await);
        }
        for case in traps() {
            rows.push(Row::of("trap", format!("{}{shaders}", case.name), check(&device, &case)).await);
        }
        rows.push(Row::of("trap", format!("NaN in the weights{shaders}"), check_nan(&device)).await);
    }
    for case in extra {
        rows.push(Row::of("kernel", case.name.clone(), check(device, case)).await);
    }
    Report { device: device.to_string(), rows }
}

/// Blocking [`examine_async`] of everything that everloop knows.
#[cfg(not(target_arch = "wasm32"))]
pub fn examine(device: &Device) -> Report {
    pollster::block_on(examine_async(device, &[]))
}
