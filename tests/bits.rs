//! Training gives the bits that it gave before: a change of structure must not change a number.
//!
//! In f32 the bits depend on the instruction set, so they are written down for those on which they were measured. The
//! reference device calls the platform's `exp` and `tanh`, so there the last digits are left open.

use everloop::layers::*;
use everloop::{Device, Parameters, Recorder, Result, Rng, Store, Workspace, loss, optimizer::SgdConfig};

fn fnv(hash: &mut u64, bits: u64) {
    for byte in bits.to_le_bytes() {
        *hash = (*hash ^ byte as u64).wrapping_mul(0x100_0000_01b3);
    }
}

fn words(device: &Device) -> Result<(u64, u64)> {
    words_model(device).map(hashes)
}

fn words_model(device: &Device) -> Result<Trained> {
    let (rng, mut parameters) = (&mut Rng::new(3), Parameters::new());
    let embedding = EmbeddingConfig::new(60, 32).declare(&mut parameters, "embedding", rng)?;
    let lstm = LstmConfig::new(32, 32).with_layers(2).with_forget_bias(1.0).declare(&mut parameters, "lstm", rng)?;
    let dense = DenseConfig::new(32, 60).declare(&mut parameters, "linear", rng)?;
    let mut rec = Recorder::new(&parameters);
    let ids = rec.tokens("ids", &[5, 8], 60)?;
    let targets = rec.targets("targets", &[8], 60)?;
    let x = embedding.record(&mut rec, &ids)?;
    let h = lstm.record(&mut rec, &x, None)?;
    let logits = dense.record(&mut rec, &h.state[1].h)?;
    let out = loss::softmax_cross_entropy(&mut rec, "loss", &logits, &targets)?;
    rec.backward(&out.loss)?;
    SgdConfig::new(0.7).with_clip_norm(1.0).record(&mut rec)?;
    run(device, rec.finish(), parameters, &out.loss, |workspace, rng| {
        workspace.write_tokens(&ids, &(0..40).map(|_| rng.below(60) as u32).collect::<Vec<_>>())?;
        workspace.write_tokens(&targets, &(0..8).map(|_| rng.below(60) as u32).collect::<Vec<_>>())
    })
}

fn options(device: &Device) -> Result<(u64, u64)> {
    options_model(device).map(hashes)
}

fn options_model(device: &Device) -> Result<Trained> {
    let (rng, mut parameters) = (&mut Rng::new(4), Parameters::new());
    let config = LstmConfig::new(7, 20).with_layers(2).with_dropout(0.3).with_recurrent_dropout(0.2);
    // one mask for all steps would leave most of the generator's numbers unused
    let config = LstmConfig { variational: false, ..config.with_everything() };
    let lstm = config.declare(&mut parameters, "lstm", rng)?;
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[6, 9, 7])?;
    let wanted = rec.input("wanted", &[6, 9, 20])?;
    let lengths = rec.lengths("lengths", 9, 6)?;
    let dropout = Dropout::record(&mut rec, "dropout.step", 7)?;
    let inputs = LstmInputs { lengths: Some(&lengths), dropout: Some(&dropout), ..LstmInputs::default() };
    let made = lstm.record_with(&mut rec, &x, inputs)?;
    let loss = loss::mean_squared_error(&mut rec, "loss", &made.output, &wanted)?;
    rec.backward(&loss)?;
    SgdConfig::new(0.5).record(&mut rec)?;
    run(device, rec.finish(), parameters, &loss, |workspace, rng| {
        workspace.write(&x, &rng.vector(6 * 9 * 7, 1.0))?;
        workspace.write(&wanted, &rng.vector(6 * 9 * 20, 0.5))?;
        workspace.write_lengths(&lengths, &[6, 5, 1, 0, 3, 6, 2, 4, 6])
    })
}

fn run(
    device: &Device,
    plan: everloop::Plan,
    mut parameters: Parameters,
    loss: &everloop::Tensor,
    mut write: impl FnMut(&mut Workspace, &mut Rng) -> Result<()>,
) -> Result<Trained> {
    let mut workspace = Workspace::new(&Store::new(device, &parameters)?, plan)?;
    let (mut losses, mut rng) = (Vec::new(), Rng::new(8));
    for _ in 0..20 {
        write(&mut workspace, &mut rng)?;
        workspace.run()?;
        losses.push(workspace.scalar(loss)?);
    }
    workspace.store().read(&mut parameters)?;
    let mut values = Vec::new();
    parameters.iter().try_for_each(|p| parameters.get(&p.name).map(|all| values.extend_from_slice(all)))?;
    Ok(Trained { losses, values })
}

/// Losses of all steps, and the values of all parameters after the last.
struct Trained {
    losses: Vec<f64>,
    values: Vec<f64>,
}

fn hashes(of: Trained) -> (u64, u64) {
    let hash = |values: &[f64]| {
        let mut hash = 0xcbf2_9ce4_8422_2325;
        values.iter().for_each(|v| fnv(&mut hash, v.to_bits()));
        hash
    };
    (hash(&of.losses), hash(&of.values))
}

/// The last loss, the sum of all parameters and that of their squares, on the reference device.
fn sums(model: fn(&Device) -> Result<Trained>) -> Result<[f64; 3]> {
    let of = model(&Device::reference())?;
    let last = of.losses[of.losses.len() - 1];
    Ok([last, of.values.iter().sum(), of.values.iter().map(|v| v * v).sum()])
}

const WORDS: [f64; 3] = [4.119884334816536, -50.84837854404439, 2094.1956602103796];
const OPTIONS: [f64; 3] = [0.09116615594761547, 419.0968962354211, 574.6715558771994];

/// The instruction set that decides the order of sums, where its bits were measured.
fn measured() -> Option<[(u64, u64); 2]> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if is_x86_feature_detected!("avx512f") {
        return Some([(0x6582_fba5_98e0_b310, 0xd810_21bd_f425_6b2d), (0xc663_23a5_f4ff_a740, 0xffb0_38b1_2a99_9982)]);
    }
    None
}

#[test]
fn losses_and_parameters_keep_their_bits() {
    let device = Device::cpu();
    let found = [words(&device).unwrap(), options(&device).unwrap()];
    assert_eq!(found, [words(&device).unwrap(), options(&device).unwrap()], "two runs");
    match measured() {
        Some(wanted) => assert_eq!(found.map(|(l, p)| [l, p]), wanted.map(|(l, p)| [l, p]), "losses, parameters"),
        None => eprintln!("skipped: no bits were measured on this instruction set"),
    }
}

#[test]
fn the_reference_device_keeps_its_digits() {
    let (words, options) = (sums(words_model).unwrap(), sums(options_model).unwrap());
    for (found, wanted) in [(words, WORDS), (options, OPTIONS)] {
        for (found, wanted) in found.into_iter().zip(wanted) {
            assert!((found - wanted).abs() <= 1e-11 * wanted.abs(), "{found} was {wanted}");
        }
    }
}
