//! Planted errors: each checker of kernels must see a wrong sign, swapped gates, a loop one short, an
//! unwritten output, and a write outside a slot. A checker that stays green here is worth nothing.

mod common;

use bytemuck::{Pod, Zeroable};
use common::{F32, fill_random, gpu};
use everloop::doctor::{self, Case};
use everloop::float::Float;
use everloop::kernel::{AdapterClass, Binding, Kernel, Operand, Operation, Shader};
use everloop::kernels::lstm_backward::LstmBackward;
use everloop::kernels::lstm_forward::LstmForward;
use everloop::run::lockstep;
use everloop::{Device, Error, Parameters, Recorder, Result, Rng, Workspace};
use std::sync::OnceLock;

/// Text replaced in a shader, the error in words, and whether the guard words must see it.
type Plant = (&'static str, &'static str, &'static str);

const FORWARD: [Plant; 5] = [
    ("sign", "+ s.x * g;", "- s.x * g;"),
    ("swapped gates", "let cell = s.y *", "let cell = s.w *"),
    ("loop one short", "q < 16u; q++", "q < 15u; q++"),
    ("unwritten output", "    h[(after + row) * params.hidden + unit] =", "    let unused ="),
    (
        "outside",
        "    c[(after + row) * params.hidden + unit] = cell;",
        "    c[(after + row) * params.hidden + unit] = cell; c[(params.steps + 1u) * params.batch * params.hidden + unit] = 1.0;",
    ),
];

const BACKWARD: [Plant; 5] = [
    ("sign", "dc[e] + dht * o", "dc[e] - dht * o"),
    ("swapped gates", "dgates[at] = dct * g * i", "dgates[at] = dct * f * i"),
    ("loop one short", "q < 16u; q++", "q < 15u; q++"),
    ("unwritten output", "    dc[e] = dct;\n", ""),
    (
        "outside",
        "    dh[e] = dht;",
        "    dh[e] = dht; dh[(params.steps + 1u) * params.batch * params.hidden + unit] = 1.0;",
    ),
];

/// A kernel with plant number `P` in its general shader; the twin is the true one.
macro_rules! planted {
    ($name:ident, $inner:ty, $plants:ident) => {
        #[repr(transparent)]
        #[derive(Debug, Clone, Copy, Pod, Zeroable)]
        struct $name<const P: usize>($inner);

        impl<const P: usize> Kernel for $name<P> {
            const NAME: &'static str = <$inner as Kernel>::NAME;
            const BINDINGS: &'static [Binding] = <$inner as Kernel>::BINDINGS;
            const FIELDS: &'static [&'static str] = <$inner as Kernel>::FIELDS;
            const FLOATS: &'static [&'static str] = <$inner as Kernel>::FLOATS;

            fn shaders() -> &'static [Shader<Self>] {
                static MADE: OnceLock<[&'static str; 5]> = OnceLock::new();
                let sources = MADE.get_or_init(|| {
                    let source = <$inner as Kernel>::shaders().last().unwrap().source;
                    $plants.map(|(what, from, to)| {
                        let broken = source.replace(from, to);
                        assert_ne!(broken, source, "{what}: nothing was planted");
                        &*Box::leak(broken.into_boxed_str())
                    })
                });
                Box::leak(Box::new([Shader {
                    // the name is the key of the pipeline
                    name: Box::leak(format!("{}_planted_{P}", Self::NAME).into_boxed_str()),
                    source: sources[P],
                    suits: |_, _| true,
                    constants: |_| Vec::new(),
                    grid: |k: &Self| Operation::dispatch(&k.0, AdapterClass::Hardware).grid,
                }]))
            }
            fn needs(&self) -> Option<Vec<u128>> {
                Kernel::needs(&self.0)
            }
            fn repeats(&self) -> u32 {
                self.0.repeats()
            }
            fn flops(&self) -> f64 {
                Kernel::flops(&self.0)
            }
            fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
                self.0.twin(operands);
            }
        }
    };
}
planted!(Forward, LstmForward, FORWARD);
planted!(Backward, LstmBackward, BACKWARD);

const SIZES: [usize; 3] = [3, 5, 69];

fn forward<K: Kernel>(kernel: K) -> impl Fn(&mut Recorder<'_>) -> Result<()> {
    let [t, b, h] = SIZES;
    move |rec| {
        let (w, bias) = (rec.input("w", &[4 * h, h])?, rec.input("bias", &[4 * h])?);
        let (gates, hs) = (rec.activation("gates", &[t, b, 4 * h])?, rec.activation("h", &[t + 1, b, h])?);
        let c = rec.activation("c", &[t + 1, b, h])?;
        rec.push(kernel, &[&w, &bias, &gates, &hs, &c])
    }
}

fn backward<K: Kernel>(kernel: K) -> impl Fn(&mut Recorder<'_>) -> Result<()> {
    let [t, b, h] = SIZES;
    move |rec| {
        let (w, gates) = (rec.input("w", &[4 * h, h])?, rec.input("gates", &[t, b, 4 * h])?);
        let (c, dgates) = (rec.input("c", &[t + 1, b, h])?, rec.activation("dgates", &[t, b, 4 * h])?);
        let (dh, dc) = (rec.activation("dh", &[t + 1, b, h])?, rec.activation("dc", &[t + 1, b, h])?);
        rec.push(kernel, &[&w, &gates, &c, &dgates, &dh, &dc])
    }
}

/// Lock-step against the reference, then the guard words.
fn compare(gpu: &Device, record: impl Fn(&mut Recorder<'_>) -> Result<()>) -> Result<()> {
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    record(&mut rec)?;
    let plan = std::sync::Arc::new(rec.finish());
    let mut reference = Workspace::new(&Device::reference(), plan.clone(), &parameters)?;
    let mut other = Workspace::guarded(gpu, plan, &parameters)?;
    fill_random(&mut reference, &mut Rng::new(3), 0.7)?;
    fill_random(&mut other, &mut Rng::new(3), 0.7)?;
    lockstep::run(&mut other, &mut reference, F32)?;
    other.check_guards()
}

fn see(what: Plant, result: Result<()>) {
    match (what.0, result) {
        ("outside", Err(Error::Guard { .. })) => {}
        (name, Err(Error::Divergence { .. })) if name != "outside" => {}
        (name, other) => panic!("the planted error `{name}` was not seen: {other:?}"),
    }
}

#[test]
fn errors_planted_in_lstm_forward_are_caught() {
    let Some(gpu) = gpu() else { return };
    let [steps, batch, hidden] = SIZES.map(|s| s as u32);
    let kernel = LstmForward { steps, batch, hidden, reverse: 0, has_bias: 1, forget_bias: 1.0, forget_bias_rest: 0.0 };
    compare(&gpu, forward(kernel)).unwrap();
    see(FORWARD[0], compare(&gpu, forward(Forward::<0>(kernel))));
    see(FORWARD[1], compare(&gpu, forward(Forward::<1>(kernel))));
    see(FORWARD[2], compare(&gpu, forward(Forward::<2>(kernel))));
    see(FORWARD[3], compare(&gpu, forward(Forward::<3>(kernel))));
    see(FORWARD[4], compare(&gpu, forward(Forward::<4>(kernel))));
}

#[test]
fn errors_planted_in_lstm_backward_are_caught() {
    let Some(gpu) = gpu() else { return };
    let [steps, batch, hidden] = SIZES.map(|s| s as u32);
    let kernel = LstmBackward { steps, batch, hidden, reverse: 1 };
    compare(&gpu, backward(kernel)).unwrap();
    see(BACKWARD[0], compare(&gpu, backward(Backward::<0>(kernel))));
    see(BACKWARD[1], compare(&gpu, backward(Backward::<1>(kernel))));
    see(BACKWARD[2], compare(&gpu, backward(Backward::<2>(kernel))));
    see(BACKWARD[3], compare(&gpu, backward(Backward::<3>(kernel))));
    see(BACKWARD[4], compare(&gpu, backward(Backward::<4>(kernel))));
}

/// The doctor shows red when a kernel is broken, and its report says so.
#[test]
fn the_doctor_sees_a_broken_kernel() {
    let Some(gpu) = gpu() else { return };
    let [steps, batch, hidden] = SIZES.map(|s| s as u32);
    let kernel = LstmForward { steps, batch, hidden, reverse: 0, has_bias: 1, forget_bias: 1.0, forget_bias_rest: 0.0 };
    let good = Case::new("sound", 0.7, forward(kernel));
    let bad = Case::new("broken", 0.7, forward(Forward::<0>(kernel)));
    let report = pollster::block_on(doctor::examine_async(&gpu, &[good, bad]));
    let red: Vec<&str> = report.rows.iter().filter(|row| !row.is_ok()).map(|row| row.name.as_str()).collect();
    assert_eq!(red, ["broken"], "{report}");
    assert!(!report.is_ok() && report.to_string().contains("do not trust"));
    assert!(doctor::examine(&Device::cpu()).is_ok());
}

/// A NaN on either side, or a difference beyond the tolerance, is never within it.
#[test]
fn the_tolerance_sees_what_it_must() {
    let worst = |l: f64, r: f64| F32.worst(&[0.0, l], &[0.0, r]).1;
    assert!(worst(1.0, 1.00001) < 1.0);
    assert!(worst(1.0, 1.001) > 1.0);
    assert!(worst(f64::NAN, 1.0) > 1.0 && worst(1.0, f64::NAN) > 1.0 && worst(f64::NAN, f64::NAN) > 1.0);
    assert!(worst(f64::INFINITY, 1.0) > 1.0 && worst(f64::INFINITY, f64::INFINITY) > 1.0);
}
