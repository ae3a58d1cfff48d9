//! Two executors side by side: after each step of the plan, every slot it wrote must agree.

use super::Workspace;
use crate::error::{Error, Result, ensure};
use crate::parameters::check_finite;
use crate::tensor::{Dtype, SlotId, Tensor};

/// How far two values may lie apart: `absolute + relative * |right|`.
///
/// ```
/// # use everloop::lockstep::{self, Tolerance};
/// # use everloop::{Device, Parameters, Recorder, Rng, Store, Workspace, layers::LstmConfig};
/// # fn main() -> everloop::Result<()> {
/// # let mut parameters = Parameters::new();
/// # let lstm = LstmConfig::new(3, 5).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
/// # let mut rec = Recorder::new(&parameters);
/// # let x = rec.input("x", &[4, 2, 3])?;
/// # lstm.record(&mut rec, &x, None)?;
/// let plan = std::sync::Arc::new(rec.finish());
/// let mut left = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, plan.clone())?;
/// let mut right = Workspace::new(&Store::new(&Device::reference(), &parameters)?, plan)?;
/// let worst = lockstep::run(&mut left, &mut right, Tolerance { absolute: 1e-6, relative: 1e-5 })?;
/// assert!(worst <= 1.0);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Part that does not depend on the value.
    pub absolute: f64,
    /// Part in proportion to the second value.
    pub relative: f64,
}

impl Tolerance {
    /// The largest difference over tolerance, and where; a NaN on either side is infinitely far.
    pub fn worst(&self, left: &[f64], right: &[f64]) -> (usize, f64) {
        let ratio = |(index, (l, r)): (usize, (&f64, &f64))| {
            let ratio = (l - r).abs() / (self.absolute + self.relative * r.abs());
            (index, if ratio.is_nan() { f64::INFINITY } else { ratio })
        };
        let ratios = left.iter().zip(right).enumerate().map(ratio);
        ratios.fold((0, 0.0), |worst, here| if here.1 > worst.1 { here } else { worst })
    }
}

/// Runs two workspaces of one plan step by step and compares all that each step wrote.
///
/// Returns the largest difference over tolerance. Errors: [`Error::Divergence`] at the first slot that differs,
/// [`Error::NonFinite`] if a slot that the plan writes is not finite in the end. Until then a NaN on both sides
/// is what [`Workspace::poison`] left in rows that a later step writes.
#[cfg(not(target_arch = "wasm32"))]
pub fn run(left: &mut Workspace, right: &mut Workspace, tolerance: Tolerance) -> Result<f64> {
    pollster::block_on(run_async(left, right, tolerance))
}

/// See [`run`]. Errors as there.
pub async fn run_async(left: &mut Workspace, right: &mut Workspace, tolerance: Tolerance) -> Result<f64> {
    let plan = left.plan().clone();
    ensure!(plan.id == right.plan().id, Error::config("comparing two runs", "two workspaces of one plan", "two plans"));
    let mut worst: f64 = 0.0;
    for (index, step) in plan.steps().iter().enumerate() {
        left.run_steps_async(index..index + 1).await?;
        right.run_steps_async(index..index + 1).await?;
        for SlotId(id) in step.written().map(|view| view.slot) {
            let (slot, tensor) = (&plan.slots()[id], plan.whole(SlotId(id)));
            let (l, r) = (read(left, &tensor, slot.dtype).await?, read(right, &tensor, slot.dtype).await?);
            let written = |(l, r): (&f64, &f64)| if l.is_nan() && r.is_nan() { (0.0, 0.0) } else { (*l, *r) };
            let (known_l, known_r): (Vec<f64>, Vec<f64>) = l.iter().zip(&r).map(written).unzip();
            let (element, ratio) = tolerance.worst(&known_l, &known_r);
            worst = worst.max(ratio);
            if ratio > 1.0 {
                return Err(Error::Divergence {
                    step: index,
                    kernel: step.operation.name(),
                    slot: slot.name.clone(),
                    index: element,
                    left: l[element],
                    right: r[element],
                    tolerance: tolerance.absolute + tolerance.relative * r[element].abs(),
                });
            }
        }
    }
    for id in plan.steps().iter().flat_map(|step| step.written()).map(|view| view.slot) {
        let values = read(left, &plan.whole(id), plan.slot(id).dtype).await?;
        check_finite(&plan.slot(id).name, values.into_iter())?;
    }
    Ok(worst)
}

async fn read(workspace: &mut Workspace, from: &Tensor, dtype: Dtype) -> Result<Vec<f64>> {
    match dtype {
        Dtype::F32 => workspace.read_async(from).await,
        Dtype::U32 => Ok(workspace.read_words_async(from).await?.into_iter().map(f64::from).collect()),
    }
}
