//! Each kernel by itself at awkward sizes: the CPU's fast form and every variant of every shader against the twin in
//! f64, outputs poisoned where they are not accumulated, guard words behind every slot. What cases cannot say has a
//! test of its own: NaN, bits of masks, ties, long sums.

mod common;

use common::gpu;
use everloop::instruments;
use everloop::instruments::kernels::recurrence::Recurrence;
use everloop::instruments::kernels::*;
use everloop::kernel::{Adapter, AdapterClass};
use everloop::loss::IGNORE;
use everloop::{Device, Error, Parameters, Plan, Recorder, Result, Store, Target, Workspace};
use everloop::{Direction, plan::Directions};
use std::path::Path;
use std::time::Instant;

const CLASSES: [AdapterClass; 2] = [AdapterClass::Software, AdapterClass::Hardware];

/// Devices to hold against the reference: the CPU, and the GPU with the variants for both classes of adapter.
fn devices() -> Vec<(Device, String)> {
    let mut all = vec![(Device::cpu(), "cpu".to_string()), (Device::cpu_f64(), "cpu_f64".into())];
    if let Some(gpu) = gpu() {
        all.extend(CLASSES.map(|class| (gpu.clone().with_shaders_for(class), format!("gpu as {class:?}"))));
    }
    all
}

fn open(device: &Device, parameters: &Parameters, plan: Plan) -> Result<Workspace> {
    Workspace::new(&Store::new(device, parameters)?, plan)
}

/// Every case of every kernel, in every variant that fits somewhere.
#[test]
fn every_case_of_every_kernel_in_every_variant() {
    for kernel in ALL {
        let mut ran: Vec<(&str, usize)> = (kernel.variants)().into_iter().map(|variant| (variant, 0)).collect();
        // a variant that is asked for runs on either class of adapter
        for (device, label) in devices().into_iter().take(3) {
            let variants = if device.is_gpu() { (kernel.variants)() } else { vec![kernel.form] };
            for variant in variants {
                let start = Instant::now();
                let found = pollster::block_on(instruments::check_variant(&device, kernel, variant, true));
                let (count, worst) = found.unwrap_or_else(|e| panic!("{} {variant} on {label}: {e}", kernel.name));
                let seconds = start.elapsed().as_secs_f64();
                println!("{} {variant} on {label}: {count} cases, worst {worst:.4}, {seconds:.1} s", kernel.name);
                assert!(worst <= 1.0, "{} {variant} on {label}: {worst}", kernel.name);
                if device.is_gpu() {
                    ran.iter_mut().filter(|(name, _)| *name == variant).for_each(|(_, all)| *all += count);
                } else {
                    assert!(count > 0, "{} {variant} on {label}: no case", kernel.name);
                }
            }
        }
        if let (Some(_), Some((variant, _))) = (gpu(), ran.iter().find(|(_, count)| *count == 0)) {
            panic!("{} {variant}: no case of it ran on the GPU", kernel.name);
        }
    }
}

/// What is missing around a kernel: cases, a case of every variant, a step of the kernel in every case.
fn missing(kernel: &Description) -> Vec<String> {
    let cases = (kernel.cases)();
    let mut all = Vec::new();
    if cases.is_empty() {
        all.push(format!("{} has no case", kernel.name));
    }
    let mut unfit = (kernel.variants)();
    if unfit.is_empty() {
        all.push(format!("{} has no variant", kernel.name));
    }
    for case in &cases {
        let plan = match instruments::plan_of(case) {
            Ok(plan) => plan,
            Err(error) => {
                all.push(format!("{}, case `{}`: {error}", kernel.name, case.name));
                continue;
            }
        };
        let steps: Vec<_> = plan.steps().iter().filter(|step| step.operation.name() == kernel.name).collect();
        if steps.is_empty() {
            all.push(format!("{}, case `{}`: no step of the kernel", kernel.name, case.name));
        }
        let adapters = CLASSES.map(Adapter::of);
        for (step, adapter) in steps.iter().flat_map(|step| adapters.iter().map(move |adapter| (step, adapter))) {
            unfit.retain(|variant| step.operation.fits(variant, &step.operands, adapter).is_err());
        }
    }
    all.extend(unfit.iter().map(|variant| format!("{} {variant}: fits no case on any class of adapter", kernel.name)));
    all
}

/// The kernels that no document names.
fn undocumented(kernels: &[Description], documents: &[String]) -> Vec<&'static str> {
    let named = |kernel: &&Description| documents.iter().any(|text| text.contains(&format!("`{}`", kernel.name)));
    kernels.iter().filter(|kernel| !named(kernel)).map(|kernel| kernel.name).collect()
}

#[test]
fn every_kernel_has_cases_that_reach_every_variant() {
    let all: Vec<String> = ALL.iter().flat_map(missing).collect();
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn every_kernel_has_a_line_in_the_documents() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|ending| ending == "md"));
    let documents: Vec<String> = files.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    assert_eq!(undocumented(ALL, &documents), Vec::<&str>::new(), "in none of docs/*.md");
    let planted = Description { name: "multipl", ..*of("multiply") };
    assert_eq!(undocumented(&[planted], &documents), ["multipl"], "a name must stand there as a word");
}

fn of(name: &str) -> &'static Description {
    ALL.iter().find(|kernel| kernel.name == name).unwrap()
}

/// The checks above can fail.
#[test]
fn a_kernel_without_cases_or_with_foreign_ones_is_seen() {
    fn broken() -> Vec<everloop::Case> {
        vec![everloop::Case::new("broken", 1.0, |rec| rec.input("x", &[0]).map(|_| ()))]
    }
    let sound = *of("subtract");
    assert_eq!(missing(&sound), Vec::<String>::new());
    for (what, planted, words) in [
        ("no case", Description { cases: Vec::new, ..sound }, "subtract has no case"),
        ("cases of another kernel", Description { cases: scale::cases, ..sound }, "no step of the kernel"),
        ("a case that is refused", Description { cases: broken, ..sound }, "case `broken`"),
        ("a variant for nobody", Description { variants: || vec!["plain", "fast"], ..sound }, "subtract fast: fits no"),
        ("no variant", Description { variants: Vec::new, ..sound }, "has no variant"),
    ] {
        let found = missing(&planted);
        assert!(found.iter().any(|line| line.contains(words)), "{what}: {found:?}");
    }
    // nor does a variant count as run where none of its cases did
    let Some(gpu) = gpu() else { return };
    for cases in [Vec::new, scale::cases] {
        let planted = Description { cases, ..sound };
        assert_eq!(pollster::block_on(instruments::check_variant(&gpu, &planted, "plain", true)).unwrap(), (0, 0.0));
    }
}

/// H = 4 has every variant, H = 5 only the general one.
#[test]
fn a_nan_in_the_weights_reaches_the_output() {
    let run = |device: &Device, hidden: usize| -> Result<()> {
        let parameters = Parameters::new();
        let mut rec = Recorder::new(&parameters);
        let weight = rec.activation("weight_hh", &[4 * hidden, hidden])?;
        let gates = rec.activation("gates", &[1, 1, 1, 4 * hidden])?;
        let h = rec.activation("h", &[1, 2, 1, hidden])?;
        let c = rec.activation("c", &[1, 2, 1, hidden])?;
        rec.fill(&weight, f64::NAN)?;
        [&gates, &h, &c].into_iter().try_for_each(|tensor| rec.fill(tensor, 0.25))?;
        let of = Recurrence::new(Directions::One(Direction::Forward), &[weight], &gates, &h, &c);
        lstm_forward::record(&mut rec, &of)?;
        let mut workspace = open(device, &parameters, rec.finish())?;
        workspace.run()?;
        let last = h.row(0)?.row(1)?.reshape(&[hidden])?;
        assert!(workspace.read::<f64>(&last)?.iter().all(|v| v.is_nan()), "{device} {hidden}");
        assert!(matches!(workspace.scalar(&last.narrow(0, 1)?), Err(Error::NonFinite { .. })));
        Ok(())
    };
    for (device, label) in devices() {
        let variants = if device.is_gpu() { (of("lstm_forward").variants)() } else { vec!["lanes", "twin"] };
        for (variant, hidden) in variants.into_iter().flat_map(|variant| [(variant, 4), (variant, 5)]) {
            let forced = device.clone().with_variant("lstm_forward", variant).unwrap();
            let fits = variant != "per_step_registers" || hidden == 4;
            match run(&forced, hidden) {
                Ok(()) => assert!(fits, "{label} {variant} {hidden}"),
                Err(error) => {
                    assert!(
                        !fits && error.to_string().contains("H 5 is no multiple of 4"),
                        "{label} {variant}: {error}"
                    )
                }
            }
        }
    }
}

#[test]
fn a_nan_in_a_highway_gate_reaches_the_output() {
    for (device, label) in devices() {
        let parameters = Parameters::new();
        let mut rec = Recorder::new(&parameters);
        let (carry, y) = (rec.activation("carry", &[5]).unwrap(), rec.activation("y", &[5]).unwrap());
        let x = rec.input("x", &[5]).unwrap();
        rec.fill(&carry, f64::NAN).unwrap();
        highway::record(&mut rec, &carry, &x, &x, &y).unwrap();
        let mut workspace = open(&device, &parameters, rec.finish()).unwrap();
        workspace.run().unwrap();
        assert!(workspace.read::<f64>(&y).unwrap().iter().all(|v| v.is_nan()), "{label}");
    }
}

/// The same mask on every device, to the bit; another one for another step or key; the share that p asks for.
#[test]
fn dropout_masks_are_equal_everywhere() {
    for (len, p) in [(1usize, 0.5), (3, 0.1), (255, 0.999), (1_000, 0.0), (70_001, 0.3), (70_001, 1.0 - 1e-3)] {
        let masks = |device: &Device| -> Vec<Vec<f32>> {
            let parameters = Parameters::new();
            let mut rec = Recorder::new(&parameters);
            let step = rec.counter("step").unwrap();
            let mut masks = Vec::new();
            for (name, key) in [("a", [1, 2]), ("b", [1, 2]), ("c", [1, 2]), ("d", [2, 2]), ("e", [1, 3])] {
                let mask = rec.activation(name, &[len]).unwrap();
                dropout_mask::record(&mut rec, &step, &mask, key, p).unwrap();
                if name < "c" {
                    count::record(&mut rec, &step).unwrap();
                }
                masks.push(mask);
            }
            let mut workspace = open(device, &parameters, rec.finish()).unwrap();
            assert_eq!(workspace.read_words(&step).unwrap(), [0], "a new workspace");
            workspace.write_count(&step, u32::MAX - 1).unwrap();
            workspace.run().unwrap();
            assert_eq!(workspace.read_words(&step).unwrap(), [0], "it begins anew behind 2^32 - 1");
            masks.iter().map(|mask| workspace.read(mask).unwrap()).collect()
        };
        let wanted = masks(&Device::reference());
        for (device, label) in devices() {
            assert!(masks(&device) == wanted, "{len} {p} {label}");
        }
        let scale = (1.0 / (1.0 - p)) as f32;
        let share = |mask: &[f32]| mask.iter().filter(|v| **v != 0.0).count() as f64 / len as f64;
        for (index, mask) in wanted.iter().enumerate() {
            assert!(mask.iter().all(|v| *v == 0.0 || *v == scale));
            let deviation = (p * (1.0 - p) / len as f64).sqrt();
            assert!((share(mask) - (1.0 - p)).abs() <= 4.5 * deviation, "{len} {p}: {}", share(mask));
            assert!(p == 0.0 || len < 10_000 || wanted[..index].iter().all(|other| other != mask), "{len} {p}");
        }
    }
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    let (step, mask) = (rec.counter("step").unwrap(), rec.activation("mask", &[4]).unwrap());
    for p in [-0.1, 1.0, 2.0, f64::NAN] {
        assert!(dropout_mask::record(&mut rec, &step, &mask, [0, 0], p).is_err(), "{p}");
    }
    let one = rec.activation("one", &[1]).unwrap();
    assert!(dropout_mask::record(&mut rec, &mask, &one, [0, 0], 0.5).is_err(), "a step is one word");
    assert!(dropout_mask::record(&mut rec, &one, &mask, [0, 0], 0.5).is_err(), "a step is no float");
    assert!(count::record(&mut rec, &mask).is_err() && count::record(&mut rec, &one).is_err());
}

/// The first of several largest logits counts, and a batch without any counted target has loss 0 and no gradient.
#[test]
fn ties_and_batches_that_do_not_count() {
    for (device, label) in devices() {
        let parameters = Parameters::new();
        let mut rec = Recorder::new(&parameters);
        let logits = rec.input("logits", &[4, 70]).unwrap();
        rec.want_gradient(&logits).unwrap();
        let targets = rec.targets("targets", &[4], 70).unwrap();
        let out = everloop::loss::softmax_cross_entropy(&mut rec, "loss", &logits, &targets).unwrap();
        rec.backward(&out.loss).unwrap();
        let plan = rec.finish();
        let gradient = plan.tensor("dlogits").unwrap();
        let mut workspace = open(&device, &parameters, plan).unwrap();
        let mut values = vec![0.0f32; 4 * 70];
        // row 0: all equal; row 1: places 2 and 66; row 2: 66 and 69; row 3: only 69
        for place in [70 + 2, 70 + 66, 140 + 66, 140 + 69, 210 + 69] {
            values[place] = 1.0;
        }
        workspace.write(&logits, &values).unwrap();
        for (ids, accuracy) in [([0, 2, 66, 69], 1.0), ([1, 66, 69, 0], 0.0), ([0, IGNORE, IGNORE, 0], 0.5)] {
            workspace.write_tokens(&targets, &ids).unwrap();
            workspace.run().unwrap();
            assert_eq!(workspace.scalar(&out.accuracy).unwrap(), accuracy, "{label}");
        }
        workspace.write_tokens(&targets, &[IGNORE; 4]).unwrap();
        workspace.run().unwrap();
        assert_eq!(workspace.scalar(&out.loss).unwrap(), 0.0);
        assert_eq!(workspace.scalar(&out.counted).unwrap(), 0.0);
        assert!(workspace.read::<f64>(&gradient).unwrap().iter().all(|d| *d == 0.0), "{label}");
    }
}

/// A long sum on the CPU in f32 keeps its digits.
#[test]
fn long_sums_on_the_cpu() {
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    let x = rec.activation("x", &[20_000_000, 1]).unwrap();
    rec.fill(&x, 1.0).unwrap();
    let sums = rec.activation("sums", &[1]).unwrap();
    sum_products::record(&mut rec, (&x, 0), None, &Target::replace(&sums)).unwrap();
    let mut workspace = open(&Device::cpu(), &parameters, rec.finish()).unwrap();
    workspace.run().unwrap();
    assert_eq!(workspace.scalar(&sums).unwrap(), 2e7);
}

#[test]
fn a_factor_that_does_not_divide_is_refused() {
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    let (x, y) = (rec.input("x", &[6]).unwrap(), rec.activation("y", &[6]).unwrap());
    let factor = rec.input("factor", &[4]).unwrap();
    assert!(multiply::record(&mut rec, &x, &factor, &Target::replace(&y)).is_err(), "4 does not divide 6");
    assert!(multiply::record(&mut rec, &x, &factor.narrow(0, 3).unwrap(), &Target::replace(&y)).is_ok());
}
