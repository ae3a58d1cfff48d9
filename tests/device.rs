//! Executors and devices: what a training step costs, limits, losses of the device, deadlines, bad input.

mod common;

use common::gpu;
use everloop::Counters;
use everloop::instruments::kernels::matmul::{self, Matrix};
use everloop::kernel::AdapterClass;
use everloop::layers::{DenseConfig, EmbeddingConfig, Join, LstmConfig};
use everloop::optimizer::SgdConfig;
use everloop::{Device, Error, Parameters, Plan, Recorder, Result, Rng, Store, Target, Workspace, loss};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Embedding, LSTM, dense, cross-entropy over all steps, clipping, SGD.
fn trainer(steps: usize, hidden: usize) -> Result<(Parameters, Arc<Plan>)> {
    let (rng, mut parameters) = (&mut Rng::new(1), Parameters::new());
    let embedding = EmbeddingConfig::new(11, 8).declare(&mut parameters, "embedding", rng)?;
    let lstm = LstmConfig::new(8, hidden).with_layers(2).declare(&mut parameters, "lstm", rng)?;
    let dense = DenseConfig::new(hidden, 11).declare(&mut parameters, "linear", rng)?;
    let mut rec = Recorder::new(&parameters);
    let ids = rec.tokens("ids", &[steps, 3], 11)?;
    let x = embedding.record(&mut rec, &ids)?;
    let y = lstm.record(&mut rec, &x, None)?.output;
    let logits = dense.record(&mut rec, &y)?;
    let targets = rec.targets("targets", &[steps, 3], 11)?;
    let out = loss::softmax_cross_entropy(&mut rec, "loss", &logits, &targets)?;
    rec.backward(&out.loss)?;
    SgdConfig::new(0.5).with_clip_norm(1.0).record(&mut rec)?;
    let plan = Arc::new(rec.finish());
    Ok((parameters, plan))
}

/// An echo: the target of a step is the token before it.
fn write_batch(workspace: &mut Workspace, seed: u64) -> Result<()> {
    let plan = workspace.plan().clone();
    let ids = plan.tensor("ids")?;
    let mut rng = Rng::new(seed);
    let tokens: Vec<u32> = (0..ids.len()).map(|_| rng.below(11) as u32).collect();
    let targets: Vec<u32> = (0..ids.len()).map(|e| if e < 3 { loss::IGNORE } else { tokens[e - 3] }).collect();
    workspace.write_tokens(&ids, &tokens)?;
    workspace.write_tokens(&plan.tensor("targets")?, &targets)
}

fn losses(device: &Device, count: usize) -> Result<Vec<f64>> {
    let (parameters, plan) = trainer(6, 12)?;
    let mut workspace = Workspace::new(&Store::new(device, &parameters)?, plan.clone())?;
    workspace.poison()?;
    let step = |n: usize| -> Result<f64> {
        write_batch(&mut workspace, n as u64 % 4)?;
        workspace.run()?;
        workspace.scalar(&plan.tensor("loss")?)
    };
    (0..count).map(step).collect()
}

#[test]
fn a_training_step_is_one_submit_without_read_back_or_allocation() {
    let Some(gpu) = gpu() else { return };
    let (parameters, plan) = trainer(6, 12).unwrap();
    let store = Store::new(&gpu, &parameters).unwrap();
    let mut workspace = Workspace::new(&store, plan.clone()).unwrap();
    let made = workspace.counters();
    let bytes = made.bytes_allocated + store.bytes();
    assert!(bytes >= plan.bytes(), "{made:?} and {} for a plan of {} bytes", store.bytes(), plan.bytes());
    assert_eq!((made.submits, made.read_backs), (0, 0));
    // one dispatch for each step of the plan, but T for each way forward and T + 1 for each way back, of however many
    // directions
    let recurrent = |word: &str| plan.steps().iter().filter(|s| s.operation.name() == word).count() as u64;
    assert_eq!((recurrent("lstm_forward"), recurrent("lstm_backward")), (2, 2));
    let dispatches = plan.steps().len() as u64 - 4 + 2 * 6 + 2 * 7;
    for _ in 0..3 {
        let before = workspace.counters();
        write_batch(&mut workspace, 0).unwrap();
        workspace.run().unwrap();
        let step = workspace.counters() - before;
        assert_eq!(step, Counters { submits: 1, dispatches, read_backs: 0, bytes_allocated: 0 });
    }
    // reading is the only thing that waits, and it allocates once
    for n in 0..2 {
        let before = workspace.counters();
        workspace.scalar(&plan.tensor("loss").unwrap()).unwrap();
        let read = workspace.counters() - before;
        assert_eq!((read.read_backs, read.bytes_allocated > 0), (1, n == 0));
    }
}

#[test]
fn a_training_step_on_the_cpu_needs_no_more_memory_than_the_first() {
    let (parameters, plan) = trainer(6, 12).unwrap();
    let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters).unwrap(), plan.clone()).unwrap();
    write_batch(&mut workspace, 0).unwrap();
    workspace.run().unwrap();
    let before = workspace.counters();
    workspace.run().unwrap();
    let step = workspace.counters() - before;
    assert_eq!(step, Counters { submits: 0, dispatches: plan.steps().len() as u64, read_backs: 0, bytes_allocated: 0 });
}

#[test]
fn losses_fall_and_agree_between_devices_and_repeat_to_the_bit() {
    let cpu = losses(&Device::cpu(), 20).unwrap();
    assert_eq!(cpu, losses(&Device::cpu(), 20).unwrap(), "the CPU must repeat itself");
    assert!(cpu.iter().all(|l| l.is_finite()));
    let Some(gpu) = gpu() else { return };
    for class in [AdapterClass::Software, AdapterClass::Hardware] {
        let device = gpu.clone().with_shaders_for(class);
        let first = losses(&device, 20).unwrap();
        assert_eq!(first, losses(&device, 20).unwrap(), "the GPU must repeat itself");
        for (n, (a, b)) in cpu.iter().zip(&first).enumerate() {
            assert!((a - b).abs() < 1e-4 * a, "loss {n}: {a} on the CPU, {b} with {class:?} shaders");
        }
    }
}

#[test]
fn a_model_learns_by_heart() {
    for device in [Some(Device::cpu()), gpu()].into_iter().flatten() {
        let all = losses(&device, 1200).unwrap();
        assert!(all[0] > 2.0 && all[1199] < 0.1, "{} then {} on {device}", all[0], all[1199]);
    }
}

#[test]
fn cut_submits_give_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let (parameters, plan) = trainer(9, 16).unwrap();
    let run = |flops: Option<f64>| -> Result<(u64, Vec<f64>)> {
        let mut workspace = Workspace::new(&Store::new(&gpu, &parameters)?, plan.clone())?;
        if let Some(flops) = flops {
            workspace.set_submit_flops(flops)?;
        }
        write_batch(&mut workspace, 1)?;
        workspace.run()?;
        let submits = workspace.counters().submits;
        let mut after = parameters.clone();
        workspace.store().read(&mut after)?;
        Ok((submits, after.block().to_vec()))
    };
    let (one, whole) = run(None).unwrap();
    // a dispatch counts as 5e6 operations at least, and none of these has more
    let (many, cut) = run(Some(10.0 * 5e6)).unwrap();
    let (most, single) = run(Some(1e-9)).unwrap();
    let dispatches = plan.steps().len() as u64 - 4 + 2 * 9 + 2 * 10;
    assert_eq!((one, many, most), (1, dispatches.div_ceil(10), dispatches));
    assert!(whole == cut && whole == single && whole != parameters.block());
    let mut workspace = Workspace::new(&Store::new(&gpu, &parameters).unwrap(), plan.clone()).unwrap();
    assert!(workspace.set_submit_flops(0.0).is_err() && workspace.set_submit_flops(f64::NAN).is_err());
}

#[test]
fn what_does_not_fit_is_said_before_anything_is_allocated() {
    let Some(gpu) = gpu() else { return };
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    // 12 GiB: nothing of it must be touched
    let big = rec.activation("big", &[3 << 30]).unwrap();
    rec.fill(&big, 0.0).unwrap();
    let start = Instant::now();
    match Workspace::new(&Store::new(&gpu, &parameters).unwrap(), rec.finish()) {
        Err(Error::Limit { what, needed, limit }) => {
            assert!(what.contains("big") && needed == 12 << 30 && limit < needed, "{what} {needed} {limit}");
        }
        other => panic!("{other:?}"),
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    let mut rec = Recorder::new(&parameters);
    assert!(matches!(rec.activation("huge", &[1 << 20, 1 << 20]), Err(Error::Shape { .. })));
    assert!(matches!(rec.activation("none", &[3, 0]), Err(Error::Shape { .. })));
}

#[cfg(feature = "gpu")]
use everloop::wgpu;

#[cfg(feature = "gpu")]
fn own_wgpu_device() -> Option<(wgpu::Device, wgpu::Queue)> {
    gpu()?;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).ok()?;
    pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).ok()
}

#[cfg(feature = "gpu")]
#[test]
fn a_device_of_the_application_and_its_loss() {
    let Some((device, queue)) = own_wgpu_device() else { return };
    let (parameters, plan) = trainer(4, 12).unwrap();
    let ours = Device::from_wgpu(device.clone(), queue).unwrap();
    assert!(ours.to_string().contains("given by the application"), "{ours}");
    let mut workspace = Workspace::new(&Store::new(&ours, &parameters).unwrap(), plan.clone()).unwrap();
    write_batch(&mut workspace, 0).unwrap();
    workspace.run().unwrap();
    let loss = plan.tensor("loss").unwrap();
    assert!(workspace.scalar(&loss).unwrap() > 0.0);

    device.destroy();
    let lost = |result: Result<()>| match result {
        Err(Error::DeviceLost { .. }) => {}
        other => panic!("the lost device gave {other:?}"),
    };
    let start = Instant::now();
    lost(workspace.run());
    lost(workspace.scalar(&loss).map(|_| ()));
    lost(workspace.finish());
    lost(write_batch(&mut workspace, 0));
    lost(Store::new(&ours, &parameters).map(|_| ()));
    assert!(start.elapsed() < Duration::from_secs(20), "a lost device must not hang");
}

#[cfg(feature = "gpu")]
#[test]
fn a_deadline_ends_a_wait() {
    let Some((device, queue)) = own_wgpu_device() else { return };
    let ours = Device::from_wgpu(device, queue).unwrap();
    assert!(ours.set_deadline(Duration::ZERO).is_err());
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    let (a, b) = (rec.input("a", &[1024, 1024]).unwrap(), rec.input("b", &[1024, 1024]).unwrap());
    let c = rec.activation("c", &[1024, 1024]).unwrap();
    for _ in 0..8 {
        matmul::record(&mut rec, Matrix::plain(&a), Matrix::plain(&b), &[], &Target::add(&c)).unwrap();
    }
    let mut workspace = Workspace::new(&Store::new(&ours, &parameters).unwrap(), rec.finish()).unwrap();
    ours.set_deadline(Duration::from_millis(1)).unwrap();
    workspace.run().unwrap();
    assert!(matches!(workspace.finish(), Err(Error::Timeout { .. })));
    // let the driver come to its end before the device is dropped
    ours.set_deadline(Duration::from_secs(120)).unwrap();
    workspace.read::<f32>(&c).unwrap();
}

#[test]
fn a_kernel_that_the_driver_refuses_is_an_error() {
    use everloop::Float;
    use everloop::kernel::{Kernel, Part, Stage, Variant};
    everloop::parameters! {
        /// Nothing.
        Refused {}
    }
    everloop::operands! { Refused { y: write } }
    const SOURCE: &str = "@group(0) @binding(0) var<storage, read_write> y: array<f32>;\n@compute @workgroup_size(1)\nfn main() { y[0] = tanh(; }";
    impl Kernel for Refused {
        const NAME: &'static str = "refused";
        fn variants() -> &'static [Variant<Self>] {
            &[Variant {
                name: "plain",
                fits: |_, _, _| Ok(()),
                stages: |_| vec![Stage::new(&[Part { name: "refused", source: SOURCE }], &["y"], [1, 1, 1])],
                repeats: |_| 1,
                scratch: |_| Vec::new(),
            }]
        }
        fn needs(&self) -> Option<Sizes> {
            Some(Sizes { y: 1 })
        }
        fn flops(&self) -> f64 {
            0.0
        }
        fn twin<T: Float>(&self, _: Slices<'_, T>) {}
    }
    let Some(gpu) = gpu() else { return };
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    let y = rec.activation("y", &[1]).unwrap();
    rec.push(Refused {}, Tensors { y: &y }).unwrap();
    match Workspace::new(&Store::new(&gpu, &parameters).unwrap(), rec.finish()) {
        Err(Error::Gpu { doing, .. }) => assert!(doing.contains("refused"), "{doing}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn choosing_a_device() {
    let auto = Device::auto();
    assert!(!auto.is_software(), "auto took a software adapter: {auto}");
    assert!(!auto.reason().is_empty());
    match Device::named("no adapter has this name") {
        Err(Error::NoAdapter { wanted, .. }) => assert!(wanted.contains("no adapter has this name")),
        other => panic!("{other:?}"),
    }
    assert!(Device::parse("").is_err());
    assert_eq!(Device::parse("cpu").unwrap().name(), "CPU (f32)");
    assert_eq!(Device::parse("cpu-f64").unwrap().name(), "CPU (f64)");
    if let Some(gpu) = gpu() {
        let again = Device::named(&gpu.name()[..4].to_uppercase()).unwrap();
        assert_eq!(again.name(), gpu.name());
        assert!(!gpu.driver().is_empty());
        if gpu.is_software() {
            assert!(gpu.to_string().contains("software adapter"), "{gpu}");
        }
    }
}

#[test]
fn bad_data_is_refused_and_nothing_is_lost() {
    for device in [Some(Device::cpu()), Some(Device::cpu_f64()), gpu()].into_iter().flatten() {
        let (parameters, plan) = trainer(4, 12).unwrap();
        let mut workspace = Workspace::new(&Store::new(&device, &parameters).unwrap(), plan.clone()).unwrap();
        write_batch(&mut workspace, 0).unwrap();
        workspace.run_steps(0..plan.steps().len() - 4).unwrap();
        let loss = plan.tensor("loss").unwrap();
        let before = workspace.scalar(&loss).unwrap();
        let (ids, rate) = (plan.tensor("ids").unwrap(), plan.tensor("optimizer.learning_rate").unwrap());
        assert!(matches!(workspace.write_tokens(&ids, &[0; 5]), Err(Error::Value { .. })));
        assert!(matches!(workspace.write_tokens(&ids, &[11; 12]), Err(Error::Token { found: 11, vocab_size: 11, .. })));
        assert!(matches!(workspace.write_tokens(&ids, &[loss::IGNORE; 12]), Err(Error::Token { .. })));
        assert!(matches!(workspace.write_tokens(&rate, &[1]), Err(Error::Value { .. })));
        assert!(matches!(workspace.write(&ids, &[0.0f32; 12]), Err(Error::Value { .. })));
        assert!(matches!(workspace.write(&rate, &[f32::NAN]), Err(Error::NonFinite { .. })));
        assert!(matches!(workspace.write(&rate, &[f64::INFINITY]), Err(Error::NonFinite { .. })));
        assert!(matches!(workspace.write(&rate, &[0.1f32; 2]), Err(Error::Value { .. })));
        assert!(workspace.write_array(&rate, ndarray::array![[0.1f32]].view()).is_err());
        assert!(workspace.read::<f32>(&ids).is_err());
        assert!(workspace.run_steps(0..10_000).is_err());
        assert!(workspace.scalar(&plan.tensor("linear.y").unwrap()).is_err());
        assert!(plan.tensor("no such slot").is_err());
        assert!(Workspace::new(&Store::new(&device, &Parameters::new()).unwrap(), plan.clone()).is_err());
        assert_eq!(workspace.scalar(&loss).unwrap(), before);
    }
}

#[test]
fn bad_recordings_are_refused() {
    let mut parameters = Parameters::new();
    let rng = &mut Rng::new(0);
    let lstm = LstmConfig::new(3, 4).declare(&mut parameters, "lstm", rng).unwrap();
    assert!(LstmConfig::new(3, 4).declare(&mut parameters, "lstm", rng).is_err());
    for config in [
        LstmConfig::new(0, 4),
        LstmConfig::new(3, 0),
        LstmConfig::new(3, 4).with_layers(0),
        LstmConfig::new(3, 4).with_forget_bias(f64::NAN),
    ] {
        assert!(config.declare(&mut parameters, "other", rng).is_err(), "{config:?}");
    }
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[2, 5, 3]).unwrap();
    let wrong = rec.input("wrong", &[2, 5, 4]).unwrap();
    let flat = rec.input("flat", &[2, 3]).unwrap();
    assert!(rec.input("x", &[1]).is_err());
    assert!(lstm.record(&mut rec, &wrong, None).is_err());
    let mut rec = Recorder::new(&parameters);
    let _ = rec.input("flat", &[2, 3]).unwrap();
    assert!(lstm.record(&mut rec, &flat, None).is_err());
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", x.shape()).unwrap();
    assert!(lstm.record(&mut rec, &x, Some(&[])).is_err());
    let out = lstm.record(&mut rec, &x, None).unwrap();
    assert!(rec.stop_gradient(&out.output.row(0).unwrap()).is_err(), "only some rows of a slot");
    assert!(SgdConfig::new(0.1).record(&mut rec).is_err(), "no backward pass yet");
    assert!(rec.backward(&out.output).is_err(), "not a scalar");
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[3]).unwrap();
    rec.want_gradient(&x).unwrap();
    let wanted = rec.input("wanted", &[3]).unwrap();
    let squared = loss::mean_squared_error(&mut rec, "loss", &x, &wanted).unwrap();
    rec.backward(&squared).unwrap();
    assert!(SgdConfig::new(0.1).record(&mut rec).is_err(), "the loss reaches no parameter");
    for sgd in [SgdConfig::new(-1.0), SgdConfig::new(f64::NAN), SgdConfig::new(0.1).with_clip_norm(0.0)] {
        assert!(sgd.validate().is_err());
    }
}

#[test]
fn memory_is_linear_and_time_per_token_flat_in_the_number_of_steps() {
    let sizes: Vec<u64> = [64, 128, 256].map(|t| trainer(t, 16).unwrap().1.bytes()).to_vec();
    assert_eq!(sizes[2] - sizes[1], 2 * (sizes[1] - sizes[0]));
    let per_token = |steps: usize| {
        let (parameters, plan) = trainer(steps, 32).unwrap();
        let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters).unwrap(), plan).unwrap();
        write_batch(&mut workspace, 0).unwrap();
        workspace.run().unwrap();
        let times = (0..5).map(|_| {
            let start = Instant::now();
            workspace.run().unwrap();
            start.elapsed().as_secs_f64()
        });
        times.fold(f64::INFINITY, f64::min) / steps as f64
    };
    // anything quadratic in T would show as 32 times
    let (short, long) = (per_token(128), per_token(4096));
    assert!(long < 3.0 * short, "{short:e} s a token at T = 128, {long:e} at 4,096");
}

#[test]
fn the_listing_names_every_slot_step_and_byte() {
    let (_, plan) = trainer(2, 4).unwrap();
    let text = plan.to_string();
    assert!(text.starts_with(&format!(
        "plan: {} slots, {} steps, {} bytes\n",
        plan.slots().len(),
        plan.steps().len(),
        plan.bytes()
    )));
    assert_eq!(text.lines().count(), 1 + plan.slots().len() + plan.steps().len());
    assert!(text.contains("Activation        lstm.0.h                           [1, 3, 3, 4] 144 bytes\n"), "{text}");
    assert!(text.contains("lstm_forward weight_hh=lstm.weight_hh_l0 gates->lstm.0.gates h->lstm.0.h c->lstm.0.c steps:2 batch:3 hidden:4 outputs:4 directions:1\n"), "{text}");
}

#[test]
fn token_ids_must_fit_what_they_index() {
    let (rng, mut parameters) = (&mut Rng::new(0), Parameters::new());
    let embedding = EmbeddingConfig::new(3, 2).declare(&mut parameters, "embedding", rng).unwrap();
    let mut rec = Recorder::new(&parameters);
    let wide = rec.tokens("wide", &[2], 30).unwrap();
    let fits = rec.tokens("fits", &[2], 3).unwrap();
    let targets = rec.targets("targets", &[2], 3).unwrap();
    let logits = rec.input("logits", &[2, 3]).unwrap();
    let narrow = rec.input("narrow", &[2, 2]).unwrap();
    embedding.record(&mut rec, &fits).unwrap();
    assert!(everloop::layers::one_hot(&mut rec, "one", &wide, 3).is_err());
    assert!(everloop::layers::one_hot(&mut rec, "two", &targets, 3).is_err(), "an ignored id is no vector");
    loss::softmax_cross_entropy(&mut rec, "good", &logits, &targets).unwrap();
    assert!(loss::softmax_cross_entropy(&mut rec, "bad", &narrow, &targets).is_err());
    let mut rec = Recorder::new(&parameters);
    let wide = rec.tokens("wide", &[2], 30).unwrap();
    assert!(embedding.record(&mut rec, &wide).is_err());
}

#[test]
fn tensors_of_another_plan_are_refused() {
    let (parameters, plan) = trainer(2, 4).unwrap();
    let (_, other) = trainer(2, 4).unwrap();
    let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters).unwrap(), plan.clone()).unwrap();
    let foreign = other.tensor("ids").unwrap();
    assert!(workspace.write_tokens(&foreign, &[0; 6]).is_err());
    assert!(workspace.read::<f32>(&other.tensor("loss").unwrap()).is_err());
    assert!(workspace.write(&other.tensor("optimizer.learning_rate").unwrap(), &[0.1]).is_err());
    let mut rec = Recorder::new(&parameters);
    assert!(rec.want_gradient(&foreign).is_err());
    assert!(rec.gradient(&foreign).is_none() && rec.contribute(&foreign).is_err());
    let y = rec.activation("y", &[6]).unwrap();
    assert!(rec.fill(&foreign, 0.0).is_err() && rec.fill(&y, 0.0).is_ok());
}

/// Slots of the caller never stand in for parameters or blocks, whatever their names.
#[test]
fn names_do_not_collide() {
    let (rng, mut parameters) = (&mut Rng::new(0), Parameters::new());
    let dense = DenseConfig::new(2, 2).declare(&mut parameters, "dense", rng).unwrap();
    let mut rec = Recorder::new(&parameters);
    rec.input("dense.weight", &[2, 2]).unwrap();
    let x = rec.input("x", &[1, 2]).unwrap();
    assert!(matches!(dense.record(&mut rec, &x), Err(Error::Name { .. })));
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[1, 2]).unwrap();
    rec.input("parameters", &[parameters.block().len()]).unwrap();
    let y = dense.record(&mut rec, &x).unwrap();
    let squared = loss::mean_squared_error(&mut rec, "loss", &y, &x).unwrap();
    rec.backward(&squared).unwrap();
    assert!(matches!(SgdConfig::new(0.1).record(&mut rec), Err(Error::Name { .. })));
    // a refused name leaves everything as it was
    let mut rec = Recorder::new(&parameters);
    let weight = rec.parameter("dense.weight").unwrap();
    assert!(rec.input("dense.weight", &[7]).is_err());
    assert_eq!(rec.parameter("dense.weight").unwrap(), weight);
    let other = rec.input("other", &[7]).unwrap();
    assert_ne!(rec.parameter("dense.weight").unwrap().slot(), other.slot());
}

/// No kernel's parameters reach outside its slots, and no buffer is written and bound a second time.
#[test]
fn steps_that_would_leave_their_slots_are_refused() {
    use everloop::instruments::kernels::{copy_columns, fill, matmul, matmul::Matmul, subtract, sum_products};
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    let (a, b) = (rec.input("a", &[4, 4]).unwrap(), rec.input("b", &[4, 4]).unwrap());
    let (c, sums) = (rec.activation("c", &[4, 4]).unwrap(), rec.activation("sums", &[4]).unwrap());
    let fits = Matmul { m: 4, n: 4, k: 4, a_row: 4, a_column: 1, b_row: 4, b_column: 1, biases: 0, adds: 0 };
    let of = |c| matmul::Tensors { a: &a, b: &b, bias: None, second_bias: None, c };
    rec.push(fits, of(&c)).unwrap();
    for wrong in [
        Matmul { m: 5, ..fits },
        Matmul { k: 0, ..fits },
        Matmul { a_row: 3 << 30, a_column: u32::MAX, k: u32::MAX, m: 5, n: 1, b_row: 0, ..fits },
        Matmul { b_column: 2, ..fits },
        Matmul { biases: 1, ..fits },
    ] {
        assert!(rec.push(wrong, of(&c)).is_err(), "{wrong:?}");
    }
    let rows = c.narrow(1, 3).unwrap();
    assert!(rec.push(fits, of(&rows)).is_err(), "a view is its elements, not the slot");
    rec.push(Matmul { m: 3, ..fits }, of(&rows)).unwrap();
    for len in [17, u32::MAX, 0] {
        assert!(rec.push(fill::Fill { len, value: 0.0 }, fill::Tensors { result: &c }).is_err());
    }
    let biases = rec.input("biases", &[2, 4]).unwrap();
    for row in [0, 1] {
        let bias = biases.row(row).unwrap();
        let (a, b) = (Matrix::plain(&a), Matrix::plain(&b));
        matmul::record(&mut rec, a, b, &[&bias], &Target::replace(&c)).unwrap();
    }
    sum_products::record(&mut rec, (&a.narrow(1, 2).unwrap(), 0), None, &Target::replace(&sums)).unwrap();
    assert!(sum_products::record(&mut rec, (&a, 1), None, &Target::replace(&sums)).is_err());
    assert!(subtract::record(&mut rec, &a, &c, &c).is_err(), "c is written and bound twice");
    assert!(copy_columns::record_columns(&mut rec, (&a, usize::MAX), (&Target::replace(&c), 0), 1, None).is_err());
    assert!(a.narrow(usize::MAX, 1).is_err());
    assert!(everloop::layers::columns(&mut rec, "columns", &a, usize::MAX, 1).is_err());
}

#[test]
fn parameters_must_be_those_of_the_plan_and_finite() {
    let mut parameters = Parameters::new();
    parameters.declare("a", &[3], vec![1.0; 3]).unwrap();
    let mut others = Parameters::new();
    others.declare("b", &[3], vec![2.0; 3]).unwrap();
    for device in [Some(Device::cpu()), gpu()].into_iter().flatten() {
        let mut rec = Recorder::new(&parameters);
        let a = rec.parameter("a").unwrap();
        let mut workspace = Workspace::new(&Store::new(&device, &parameters).unwrap(), rec.finish()).unwrap();
        assert!(workspace.store().write(&others).is_err());
        assert!(workspace.store().read(&mut others).is_err());
        let mut huge = parameters.clone();
        huge.set("a", &[1e300, 0.0, 0.0]).unwrap();
        assert!(matches!(workspace.store().write(&huge), Err(Error::NonFinite { .. })), "infinite in f32");
        assert!(matches!(workspace.write(&a, &[1e300, 0.0, 0.0]), Err(Error::NonFinite { .. })));
        assert_eq!(workspace.read::<f64>(&a).unwrap(), [1.0; 3]);
    }
}

#[test]
fn absurd_sizes_are_errors() {
    let (rng, mut parameters) = (&mut Rng::new(0), Parameters::new());
    for hidden in [1_000_000, usize::MAX] {
        assert!(LstmConfig::new(1, hidden).declare(&mut parameters, "lstm", rng).is_err());
        assert!(LstmConfig::new(hidden, 1 << 20).declare(&mut parameters, "lstm", rng).is_err());
        assert!(DenseConfig::new(hidden, hidden).declare(&mut parameters, "dense", rng).is_err());
        assert!(EmbeddingConfig::new(hidden, hidden).declare(&mut parameters, "embedding", rng).is_err());
    }
    // 8 PiB: more than any address space
    let mut rec = Recorder::new(&parameters);
    for slot in 0..(1 << 19) {
        rec.activation(&format!("slot {slot}"), &[(1 << 32) - 1]).unwrap();
    }
    assert!(matches!(
        Workspace::new(&Store::new(&Device::cpu(), &parameters).unwrap(), rec.finish()),
        Err(Error::OutOfMemory { .. })
    ));
}

/// What an unread training loop queues up is bounded: the fourth run waits for the first.
#[test]
fn unread_runs_wait_for_earlier_ones() {
    let Some(gpu) = gpu() else { return };
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    let (a, b) = (rec.input("a", &[512, 512]).unwrap(), rec.input("b", &[512, 512]).unwrap());
    let c = rec.activation("c", &[512, 512]).unwrap();
    for _ in 0..4 {
        matmul::record(&mut rec, Matrix::plain(&a), Matrix::plain(&b), &[], &Target::add(&c)).unwrap();
    }
    let mut workspace = Workspace::new(&Store::new(&gpu, &parameters).unwrap(), rec.finish()).unwrap();
    workspace.run().unwrap();
    workspace.finish().unwrap();
    let timed = |workspace: &mut Workspace, runs: usize| {
        let start = Instant::now();
        (0..runs).for_each(|_| workspace.run().unwrap());
        let queued = start.elapsed().as_secs_f64();
        workspace.finish().unwrap();
        (queued, start.elapsed().as_secs_f64())
    };
    let (queued, all) = timed(&mut workspace, 24);
    // 21 of 24 runs are over when the last one is queued; without the wait it would be next to none
    assert!(queued > 0.5 * all, "{queued} s of {all} s");
}

/// Futures of a workspace can be spawned on any executor.
#[test]
fn futures_are_send() {
    fn send<T: Send>(value: T) -> T {
        value
    }
    let (parameters, plan) = trainer(2, 4).unwrap();
    let device = Device::cpu();
    let store = pollster::block_on(send(Store::new_async(&device, &parameters))).unwrap();
    let mut workspace = pollster::block_on(send(Workspace::new_async(&store, plan.clone()))).unwrap();
    pollster::block_on(send(workspace.run_async())).unwrap();
    pollster::block_on(send(workspace.scalar_async(&plan.tensor("loss").unwrap()))).unwrap();
    pollster::block_on(send(workspace.finish_async())).unwrap();
}

#[test]
fn a_batch_larger_than_a_dimension_of_workgroups() {
    for device in [Some(Device::cpu()), gpu()].into_iter().flatten() {
        for class in [AdapterClass::Software, AdapterClass::Hardware] {
            let (rng, mut parameters) = (&mut Rng::new(3), Parameters::new());
            let batch = 530_000;
            let lstm = LstmConfig::new(1, 1).declare(&mut parameters, "lstm", rng).unwrap();
            let mut rec = Recorder::new(&parameters);
            let x = rec.input("x", &[1, batch, 1]).unwrap();
            let h = lstm.record(&mut rec, &x, None).unwrap().output;
            let device = device.clone().with_shaders_for(class);
            let mut workspace = Workspace::new(&Store::new(&device, &parameters).unwrap(), rec.finish()).unwrap();
            let values: Vec<f32> = (0..batch).map(|e| (e % 7) as f32).collect();
            workspace.write(&x, &values).unwrap();
            workspace.run().unwrap();
            let h = workspace.read::<f32>(&h).unwrap();
            assert!((0..batch).all(|e| h[e] == h[e % 7]) && h[0] != h[1], "{device}");
        }
    }
}

/// Both directions of a layer are one dispatch a step: T fewer forward and T + 1 fewer backward than two layers.
#[test]
fn both_directions_run_in_one_dispatch() {
    let Some(gpu) = gpu() else { return };
    let steps = 9;
    let dispatches = |config: LstmConfig| -> (u64, u64) {
        let mut parameters = Parameters::new();
        let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(1)).unwrap();
        let mut rec = Recorder::new(&parameters);
        let x = rec.input("x", &[steps, 2, 3]).unwrap();
        let y = lstm.record(&mut rec, &x, None).unwrap().output;
        let wanted = rec.input("wanted", y.shape()).unwrap();
        let loss = loss::mean_squared_error(&mut rec, "loss", &y, &wanted).unwrap();
        rec.backward(&loss).unwrap();
        let mut workspace = Workspace::new(&Store::new(&gpu, &parameters).unwrap(), rec.finish()).unwrap();
        let count = workspace.plan().steps().len() as u64;
        workspace.run().unwrap();
        (workspace.counters().dispatches, count)
    };
    let loops = 2 * steps as u64 + 1; // T and T + 1
    for config in [LstmConfig::new(3, 5), LstmConfig::new(3, 5).with_bidirectional(Join::Layers)] {
        let (dispatches, steps_of_plan) = dispatches(config);
        assert_eq!(dispatches, steps_of_plan - 2 + loops);
    }
}

/// A variant asked for by name runs, says so, gives the same numbers, and is an error where it fits nowhere.
#[test]
fn variants_can_be_asked_for() {
    let Some(gpu) = gpu() else { return };
    let (parameters, plan) = trainer(6, 12).unwrap();
    let run = |device: &Device| -> Vec<f64> {
        let store = Store::new(device, &parameters).unwrap();
        let mut workspace = Workspace::new(&store, plan.clone()).unwrap();
        write_batch(&mut workspace, 0).unwrap();
        workspace.run().unwrap();
        let mut after = parameters.clone();
        store.read(&mut after).unwrap();
        after.iter().flat_map(|p| after.get(&p.name).unwrap().to_vec()).collect()
    };
    let wanted = run(&Device::cpu());
    for variant in ["per_step", "per_step_registers"] {
        let forced = gpu.clone().with_variant("lstm_forward", variant).unwrap();
        let forced = forced.with_variant("lstm_backward", variant).unwrap();
        let listing = plan.listing(&forced).unwrap();
        assert!(listing.contains(&format!("lstm_forward ({variant}: asked for)")), "{listing}");
        let worst = run(&forced).iter().zip(&wanted).fold(0.0f64, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst < 1e-5, "{variant}: {worst}");
    }
    let (_, odd) = trainer(6, 13).unwrap();
    let listing = odd.listing(&gpu.clone().with_shaders_for(AdapterClass::Software)).unwrap();
    assert!(listing.contains("lstm_forward (per_step: not per_step_registers: H 13 is no multiple of 4)"), "{listing}");
    let forced = gpu.clone().with_variant("lstm_forward", "per_step_registers").unwrap();
    let error = odd.listing(&forced).unwrap_err().to_string();
    assert!(error.contains("`per_step_registers` of `lstm_forward`") && error.contains("H 13"), "{error}");
    for (kernel, variant, names) in [("lstm_foward", "per_step", "lstm_forward"), ("matmul", "tile", "tiles")] {
        let error = gpu.clone().with_variant(kernel, variant).unwrap_err().to_string();
        assert!(error.contains(names), "{error}");
    }
    let twin = Device::cpu().with_variant("lstm_forward", "twin").unwrap();
    assert!(plan.listing(&twin).unwrap().contains("lstm_forward (twin: asked for)"));
}
