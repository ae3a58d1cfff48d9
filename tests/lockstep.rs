//! Whole models, CPU against GPU: after every step of the plan every slot it wrote must agree. 500 random
//! forms of LSTM with any of its options, sizes up to H 300, B 40, T 60. `EVERLOOP_CASES=5000` runs more of them.

mod common;

use common::{F32, Model, gpu};
use everloop::kernel::AdapterClass;
use everloop::lockstep;
use everloop::{Device, Result, Rng, Store, Workspace};

/// A value within rounding of a clip's limit takes either branch: a model with a clip is drawn again, once.
fn compare(model: &Model, seed: u64, device: &Device, against: &Device) -> Result<f64> {
    match compare_once(model, seed, device, against) {
        Err(_) if model.clips() => compare_once(model, seed + 1_000_000, device, against),
        result => result,
    }
}

fn compare_once(model: &Model, seed: u64, device: &Device, against: &Device) -> Result<f64> {
    let (parameters, plan) = model.record(&mut Rng::new(seed))?;
    let plan = std::sync::Arc::new(plan);
    let mut left = Workspace::guarded(&Store::new(device, &parameters)?, plan.clone())?;
    let mut right = Workspace::new(&Store::new(against, &parameters)?, plan)?;
    for workspace in [&mut left, &mut right] {
        workspace.poison()?;
        model.write(workspace, &mut Rng::new(seed + 1))?;
    }
    let worst = lockstep::run(&mut left, &mut right, F32)?;
    left.check_guards()?;
    Ok(worst)
}

fn cases(default: usize) -> usize {
    std::env::var("EVERLOOP_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[test]
fn random_models_agree_on_cpu_and_gpu() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(2026);
    for case in 0..cases(500) {
        // sizes up to the largest in one case of eight, smaller ones in the others
        let [hidden, batch, steps] = if case % 8 == 0 { [300, 40, 60] } else { [40, 9, 12] };
        let model = Model::random(&mut rng, hidden, batch, steps);
        let class = if case / 4 % 2 == 0 { AdapterClass::Software } else { AdapterClass::Hardware };
        let device = gpu.clone().with_shaders_for(class);
        compare(&model, case as u64, &device, &Device::cpu())
            .unwrap_or_else(|e| panic!("case {case}, {class:?} shaders: {e}\n{model:?}"));
    }
}

#[test]
fn random_models_agree_on_the_fast_cpu_and_the_reference() {
    let mut rng = Rng::new(7);
    for case in 0..cases(60) {
        let model = Model::random(&mut rng, 70, 9, 9);
        for device in [Device::cpu(), Device::cpu_f64()] {
            compare(&model, case as u64, &device, &Device::reference())
                .unwrap_or_else(|e| panic!("case {case} on {device}: {e}\n{model:?}"));
        }
    }
}

#[test]
fn two_different_plans_are_not_compared() {
    let mut rng = Rng::new(1);
    let (a, b) = (Model::random(&mut rng, 5, 3, 3), Model::random(&mut rng, 6, 3, 3));
    let ((pa, plan_a), (pb, plan_b)) = (a.record(&mut rng).unwrap(), b.record(&mut rng).unwrap());
    let mut left = Workspace::new(&Store::new(&Device::cpu(), &pa).unwrap(), plan_a).unwrap();
    let mut right = Workspace::new(&Store::new(&Device::cpu(), &pb).unwrap(), plan_b).unwrap();
    assert!(lockstep::run(&mut left, &mut right, F32).is_err());
}

/// What no executor writes is the same NaN on both sides: it must show in the end all the same.
#[test]
fn rows_that_nobody_writes_are_seen() {
    let parameters = everloop::Parameters::new();
    let mut rec = everloop::Recorder::new(&parameters);
    let out = rec.activation("out", &[3, 2]).unwrap();
    rec.fill(&out.narrow(0, 2).unwrap(), 1.0).unwrap();
    let plan = std::sync::Arc::new(rec.finish());
    let mut left = Workspace::new(&Store::new(&Device::cpu(), &parameters).unwrap(), plan.clone()).unwrap();
    let mut right = Workspace::new(&Store::new(&Device::reference(), &parameters).unwrap(), plan).unwrap();
    left.poison().unwrap();
    right.poison().unwrap();
    let seen = lockstep::run(&mut left, &mut right, F32);
    assert!(matches!(seen, Err(everloop::Error::NonFinite { index: 4, .. })), "{seen:?}");
}

#[test]
fn a_nan_on_one_side_is_a_difference() {
    let parameters = everloop::Parameters::new();
    let mut rec = everloop::Recorder::new(&parameters);
    let out = rec.activation("out", &[2]).unwrap();
    rec.fill(&out.narrow(0, 1).unwrap(), 1.0).unwrap();
    let plan = std::sync::Arc::new(rec.finish());
    for poisoned in [0, 1] {
        let mut both =
            [(); 2].map(|()| Workspace::new(&Store::new(&Device::cpu(), &parameters).unwrap(), plan.clone()).unwrap());
        both[poisoned].poison().unwrap();
        let [mut left, mut right] = both;
        let seen = lockstep::run(&mut left, &mut right, F32);
        assert!(matches!(seen, Err(everloop::Error::Divergence { index: 1, .. })), "{seen:?}");
    }
}
