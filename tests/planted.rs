//! Planted errors: each checker of kernels must see a wrong sign, swapped gates, a loop one short, an
//! unwritten output, and a write outside a slot. A checker that stays green here is worth nothing.

mod common;

use bytemuck::{Pod, Zeroable};
use common::{F32, fill_random, gpu};
use everloop::doctor::{self, Case};
use everloop::float::Float;
use everloop::kernel::{AdapterClass, Binding, Dispatch, Kernel, Operand, Operation, Shader};
use everloop::kernels::lstm_backward::{self, LstmBackward};
use everloop::kernels::lstm_forward::{self, LstmForward};
use everloop::kernels::recurrence::{LENGTHS, NORM, OUTPUT_CLIP, PROJECTION};
use everloop::plan::Direction;
use everloop::run::lockstep;
use everloop::{Device, Error, Parameters, Recorder, Result, Rng, Workspace};

/// Text replaced in a shader, the error in words, and whether the guard words must see it.
type Plant = (&'static str, &'static str, &'static str);

const FORWARD: [Plant; 8] = [
    ("sign", "+ s.x * masked;", "- s.x * masked;"),
    ("swapped gates", "var cell = f *", "var cell = s.w *"),
    ("loop one short", "q < 16u; q++", "q < 15u; q++"),
    ("unwritten output", "      h[(after + row) * params.outputs + unit] =", "      let unused ="),
    (
        "outside",
        "      c[(after + row) * params.hidden + unit] = cell;",
        "      c[(after + row) * params.hidden + unit] = cell; c[(params.steps + 1u) * params.batch * params.hidden + unit] = 1.0;",
    ),
    // of the stages that a norm and a projection add
    (
        "a mean of the wrong count",
        "/ count + params.epsilon);\n\n  if (mine)",
        "/ (count + 1.0) + params.epsilon);\n\n  if (mine)",
    ),
    ("a length one too long", "if (t >= lengths[row]) {\n        sum", "if (t > lengths[row]) {\n        sum"),
    ("no clip", "sum = select(clamp(sum, -params.output_clip, params.output_clip), sum", "sum = select(sum, sum"),
];

const BACKWARD: [Plant; 8] = [
    ("sign", "dc[e] + dht * o", "dc[e] - dht * o"),
    ("swapped gates", "var d_i = dct * g", "var d_i = dct * f"),
    ("loop one short", "q < 16u; q++", "q < 15u; q++"),
    ("unwritten output", "      dc[e] = dct;\n", ""),
    (
        "outside",
        "      dh[e] = dht;",
        "      dh[e] = dht; dh[(params.steps + 1u) * params.batch * params.outputs + unit] = 1.0;",
    ),
    ("a mean left out", "scale * (d - means.x", "scale * (d"),
    ("a mean left out of the gates", "scale * (gain * dy - mean", "scale * (gain * dy"),
    ("a clip that lets gradients through", "abs(states[e]) >= params.output_clip", "abs(states[e]) >= 1e9"),
];

/// Constants and grid of dispatch number `N` of a kernel.
macro_rules! stage {
    ($n:literal) => {
        (
            |k| Operation::dispatches(&k.0, AdapterClass::Hardware)[$n].constants.clone(),
            |k| Operation::dispatches(&k.0, AdapterClass::Hardware)[$n].grid,
        )
    };
}

/// A kernel with plant number `P` in one of its general shaders; the twin is the true one.
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
                &[]
            }
            fn sequence(&self, _: AdapterClass) -> Vec<&'static Shader<Self>> {
                type Stage<K> = (fn(&K) -> Vec<(&'static str, f64)>, fn(&K) -> [u32; 3]);
                let stages: [Stage<Self>; 4] = [stage!(0), stage!(1), stage!(2), stage!(3)];
                let (what, from, to) = $plants[P];
                let dispatches = Operation::dispatches(&self.0, AdapterClass::Hardware);
                assert!(dispatches.iter().any(|d| d.source.contains(from)), "{what}: nothing was planted");
                let broken = |(d, (constants, grid)): (Dispatch, Stage<Self>)| {
                    &*Box::leak(Box::new(Shader {
                        // the name is the key of the pipeline
                        name: Box::leak(format!("{}_planted_{P}", d.shader).into_boxed_str()),
                        source: Box::leak(d.source.replace(from, to).into_boxed_str()),
                        suits: |_, _| true,
                        constants,
                        grid,
                        binds: Some(Box::leak(d.binds.into_boxed_slice())),
                    }))
                };
                dispatches.into_iter().zip(stages).map(broken).collect()
            }
            fn needs(&self) -> Option<Vec<u128>> {
                Kernel::needs(&self.0)
            }
            fn repeats(&self) -> u32 {
                Kernel::repeats(&self.0)
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

const SIZES: [usize; 4] = [3, 5, 69, 69];
const PROJECTED: [usize; 4] = [3, 5, 33, 69];
const OPTIONS: u32 = LENGTHS | PROJECTION | OUTPUT_CLIP | NORM;

/// Records `lstm_forward` as the kernel that `wrap` makes of it.
fn forward<K: Kernel>(options: u32, wrap: fn(LstmForward) -> K) -> impl Fn(&mut Recorder<'_>) -> Result<()> {
    move |rec| {
        let sizes = if options == 0 { SIZES } else { PROJECTED };
        let all = doctor::recurrence(rec, sizes, Direction::Forward, options, true)?;
        let (kernel, operands) = lstm_forward::step(&all)?;
        rec.push_some(wrap(kernel), &operands)
    }
}

fn backward<K: Kernel>(options: u32, wrap: fn(LstmBackward) -> K) -> impl Fn(&mut Recorder<'_>) -> Result<()> {
    move |rec| {
        let sizes = if options == 0 { SIZES } else { PROJECTED };
        let all = doctor::recurrence(rec, sizes, Direction::Reverse, options, false)?;
        let to = doctor::gradients(rec, &all)?;
        let (kernel, operands) = lstm_backward::step(&all, &to)?;
        rec.push_some(wrap(kernel), &operands)
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
    compare(&gpu, forward(0, |k| k)).unwrap();
    see(FORWARD[0], compare(&gpu, forward(0, Forward::<0>)));
    see(FORWARD[1], compare(&gpu, forward(0, Forward::<1>)));
    see(FORWARD[2], compare(&gpu, forward(0, Forward::<2>)));
    see(FORWARD[3], compare(&gpu, forward(0, Forward::<3>)));
    see(FORWARD[4], compare(&gpu, forward(0, Forward::<4>)));
    compare(&gpu, forward(OPTIONS, |k| k)).unwrap();
    see(FORWARD[5], compare(&gpu, forward(OPTIONS, Forward::<5>)));
    see(FORWARD[6], compare(&gpu, forward(OPTIONS, Forward::<6>)));
    see(FORWARD[7], compare(&gpu, forward(OPTIONS, Forward::<7>)));
}

#[test]
fn errors_planted_in_lstm_backward_are_caught() {
    let Some(gpu) = gpu() else { return };
    compare(&gpu, backward(0, |k| k)).unwrap();
    see(BACKWARD[0], compare(&gpu, backward(0, Backward::<0>)));
    see(BACKWARD[1], compare(&gpu, backward(0, Backward::<1>)));
    see(BACKWARD[2], compare(&gpu, backward(0, Backward::<2>)));
    see(BACKWARD[3], compare(&gpu, backward(0, Backward::<3>)));
    see(BACKWARD[4], compare(&gpu, backward(0, Backward::<4>)));
    compare(&gpu, backward(OPTIONS, |k| k)).unwrap();
    see(BACKWARD[5], compare(&gpu, backward(OPTIONS, Backward::<5>)));
    see(BACKWARD[6], compare(&gpu, backward(OPTIONS, Backward::<6>)));
    see(BACKWARD[7], compare(&gpu, backward(OPTIONS, Backward::<7>)));
}

/// The doctor shows red when a kernel is broken, and its report says so.
#[test]
fn the_doctor_sees_a_broken_kernel() {
    let Some(gpu) = gpu() else { return };
    let good = Case::new("sound", 0.7, forward(0, |k| k));
    let bad = Case::new("broken", 0.7, forward(0, Forward::<0>));
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
