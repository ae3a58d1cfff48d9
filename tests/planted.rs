//! Planted errors: each checker of kernels must see a wrong sign, swapped gates, a loop one short, an unwritten
//! output, and a write outside a slot, in every variant. A checker that stays green here is worth nothing.

mod common;

use common::{F32, gpu};
use everloop::Float;
use everloop::doctor;
use everloop::instruments::check;
use everloop::instruments::kernels::lstm_backward::{self, LstmBackward};
use everloop::instruments::kernels::lstm_forward::{self, LstmForward};
use everloop::instruments::kernels::recurrence::{LENGTHS, MASK, NORM, OUTPUT_CLIP, PEEPHOLE, PROJECTION, cases};
use everloop::instruments::kernels::subtract::{self, Subtract};
use everloop::kernel::{AdapterClass, Binding, Field, Fields, Kernel, Operand, Operands, Part, Stage, Variant};
use everloop::{Case, Device, Error, Parameters, Recorder, Result, Store, Tensor, Workspace};
use everloop::{Direction, plan::Directions};

/// An error: what it is, the options of the cell that show it, and the text that is replaced in the shaders of each
/// variant, `per_step_registers` and `per_step`.
struct Plant {
    what: &'static str,
    options: u32,
    texts: [[&'static str; 2]; 2],
}

/// The same text in both variants.
const fn both(what: &'static str, options: u32, from: &'static str, to: &'static str) -> Plant {
    Plant { what, options, texts: [[from, to], [from, to]] }
}

const fn each(what: &'static str, options: u32, registers: [&'static str; 2], plain: [&'static str; 2]) -> Plant {
    Plant { what, options, texts: [registers, plain] }
}

const ALL: u32 = LENGTHS | PEEPHOLE | MASK | PROJECTION | OUTPUT_CLIP | NORM;

const FORWARD: [Plant; 10] = [
    // in lstm_cell.wgsl
    both("sign", 0, "f * c_before + i * masked", "f * c_before - i * masked"),
    both("swapped gates", 0, "return vec4<f32>(i, f, g, f *", "return vec4<f32>(f, i, g, f *"),
    both(
        "a peephole of another gate",
        PEEPHOLE,
        "v += vec3<f32>(w * c_before, 0.0)",
        "v += vec3<f32>(w.yx * c_before, 0.0)",
    ),
    // in the product around it
    each(
        "loop one short",
        0,
        ["q < stride + wg.z; q++", "q + 1u < stride + wg.z; q++"],
        ["q < 16u; q++", "q < 15u; q++"],
    ),
    each(
        "unwritten output",
        0,
        ["        h[params.h_at / 4u + (s.after + row) * stride + j] =", "        result ="],
        ["        h[params.h_at + (s.after + row) * params.outputs + unit] =", "        result ="],
    ),
    each(
        "outside",
        0,
        [
            "      c[params.c_at / 4u + (s.after + row) * stride + j] = c_after;",
            "      c[params.c_at / 4u + (s.after + row) * stride + j] = c_after;
             c[params.directions * (params.steps + 1u) * params.batch * stride + j] = vec4<f32>(1.0);",
        ],
        [
            "      c[params.c_at + (s.after + row) * params.hidden + unit] = cell;",
            "      c[params.c_at + (s.after + row) * params.hidden + unit] = cell;
             c[params.directions * (params.steps + 1u) * params.batch * params.hidden + unit] = 1.0;",
        ],
    ),
    both("a length one too long", LENGTHS, "if (s.t >= lengths[", "if (s.t > lengths["),
    // in the stages that a norm and a projection add
    both("a mean of the wrong count", ALL, ".x / count + params.epsilon);", ".x / (count + 1.0) + params.epsilon);"),
    both("a length one too long, normed", ALL, "ended = s.t >= lengths[", "ended = s.t > lengths["),
    each(
        "no clip",
        ALL,
        ["if (has_output_clip) {\n      v =", "if (has_output_clip && params.output_clip < 0.0) {\n      v ="],
        ["sum = clipped(sum, params.output_clip);", "sum += 0.0;"],
    ),
];

const BACKWARD: [Plant; 10] = [
    // in lstm_cell.wgsl
    both("sign", 0, "var dct = dc + dm * o", "var dct = dc - dm * o"),
    both("swapped gates", 0, "return vec4<f32>(dy_i, dy_f, dy_g", "return vec4<f32>(dy_f, dy_i, dy_g"),
    both("a peephole left out", PEEPHOLE, "dct += dy_o * w_o;", "dct += 0.0 * w_o;"),
    // in the product around it
    each("loop one short", 0, ["q < width; q++", "q + 1u < width; q++"], ["q < 16u; q++", "q < 15u; q++"]),
    each(
        "unwritten output",
        0,
        ["        dgates[to + quads] = d[1];\n", ""],
        ["        dgates[to + hidden] = state.y;\n", ""],
    ),
    each(
        "outside",
        0,
        [
            "      dh[params.dh_at / 4u + e] = dht;",
            "      dh[params.dh_at / 4u + e] = dht;
             dh[params.directions * (params.steps + 1u) * params.batch * stride + j] = vec4<f32>(1.0);",
        ],
        [
            "      dh[params.dh_at + e] = dht;",
            "      dh[params.dh_at + e] = dht;
             dh[params.directions * (params.steps + 1u) * params.batch * params.outputs + unit] = 1.0;",
        ],
    ),
    both("a row that ended goes on", LENGTHS, "== 0.0;\n    }\n    var dht", "== 2.0;\n    }\n    var dht"),
    // in the stages that a norm and a projection add
    both("a mean left out", ALL, "scale * (d - means.x", "scale * (d"),
    both("a mean left out of the gates", ALL, "scale * (gain * dy - mean -", "scale * (gain * dy -"),
    each(
        "a clip that lets gradients through",
        ALL,
        ["abs(v) >= params.output_clip", "abs(v) >= 1e9"],
        ["abs(states[states_at + e]) >= params.output_clip", "abs(states[states_at + e]) >= 1e9"],
    ),
];

/// The stages with a text replaced in the files that have it.
fn plant(stages: Vec<Stage>, what: &str, [from, to]: [&str; 2]) -> Vec<Stage> {
    let sources: Vec<&str> = stages.iter().flat_map(|stage| stage.parts).map(|part| part.source).collect();
    assert!(sources.iter().any(|source| source.contains(from)), "{what}: nothing was planted");
    let broken = |part: &Part| Part { source: part.source.replace(from, to).leak(), ..*part };
    let replace = |stage: Stage| Stage { parts: stage.parts.iter().map(broken).collect::<Vec<_>>().leak(), ..stage };
    stages.into_iter().map(replace).collect()
}

/// Plant number `P` in variant number `V` of a kernel; name, operands and twin are the true ones.
macro_rules! planted {
    ($name:ident, $module:ident, $inner:ident, $plants:ident) => {
        #[derive(Debug)]
        struct $name<const P: usize, const V: usize>($inner);

        impl<const P: usize, const V: usize> Fields for $name<P, V> {
            const FIELDS: &'static [Field] = <$inner as Fields>::FIELDS;
            fn values(&self) -> Vec<f64> {
                self.0.values()
            }
        }

        impl<const P: usize, const V: usize> Operands for $name<P, V> {
            const BINDINGS: &'static [Binding] = <$inner as Operands>::BINDINGS;
            type Tensors<'a> = $module::Tensors<'a>;
            type Slices<'a, T: Float> = $module::Slices<'a, T>;
            type Sizes = $module::Sizes;
            fn list<'a>(tensors: &Self::Tensors<'a>) -> Vec<Option<&'a Tensor>> {
                $inner::list(tensors)
            }
            fn tensors<'a>(list: &'a [Option<Tensor>]) -> Option<Self::Tensors<'a>> {
                <$inner as Operands>::tensors(list)
            }
            fn slices<T: Float>(list: Vec<Operand<'_, T>>) -> Self::Slices<'_, T> {
                $inner::slices(list)
            }
            fn sizes(sizes: &Self::Sizes) -> Vec<u128> {
                $inner::sizes(sizes)
            }
        }

        impl<const P: usize, const V: usize> Kernel for $name<P, V> {
            const NAME: &'static str = $inner::NAME;
            fn variants() -> &'static [Variant<Self>] {
                &[Variant {
                    name: "planted",
                    fits: |k, of, adapter| ($inner::variants()[V].fits)(&k.0, of, adapter),
                    stages: |k| {
                        let Plant { what, texts, .. } = &$plants[P];
                        plant(($inner::variants()[V].stages)(&k.0), what, texts[V])
                    },
                    repeats: |k| ($inner::variants()[V].repeats)(&k.0),
                    scratch: |k| ($inner::variants()[V].scratch)(&k.0),
                }]
            }
            fn needs(&self) -> Option<Self::Sizes> {
                Kernel::needs(&self.0)
            }
            fn flops(&self) -> f64 {
                Kernel::flops(&self.0)
            }
            fn twin<T: Float>(&self, slices: Self::Slices<'_, T>) {
                self.0.twin(slices);
            }
        }
    };
}
planted!(Forward, lstm_forward, LstmForward, FORWARD);
planted!(Backward, lstm_backward, LstmBackward, BACKWARD);

/// T, B, H, P that every variant takes, with tails in each tile; lengths of B rows end everywhere.
fn sizes(options: u32) -> [usize; 4] {
    if options & PROJECTION == 0 { [3, 9, 68, 68] } else { [3, 9, 36, 68] }
}

/// `lstm_forward` as the kernel that `wrap` makes of it.
fn forward<K>(options: u32, wrap: fn(LstmForward) -> K) -> Case
where
    K: for<'a> Kernel<Tensors<'a> = lstm_forward::Tensors<'a>>,
{
    Case::new("lstm_forward", 0.7, move |rec| {
        let of = cases::recurrence(rec, sizes(options), Directions::One(Direction::Forward), options, true)?;
        lstm_forward::record_as(rec, &of, wrap)
    })
}

/// `lstm_backward` as the kernel that `wrap` makes of it.
fn backward<K>(options: u32, wrap: fn(LstmBackward) -> K) -> Case
where
    K: for<'a> Kernel<Tensors<'a> = lstm_backward::Tensors<'a>>,
{
    Case::new("lstm_backward", 0.7, move |rec| {
        let of = cases::recurrence(rec, sizes(options), Directions::Both, options, false)?;
        let to = cases::gradients(rec, &of)?;
        lstm_backward::record_as(rec, &of, &to, wrap)
    })
}

fn see(what: &str, variant: usize, result: Result<f64>) {
    match result {
        Err(Error::Guard { .. }) if what == "outside" => {}
        Err(Error::Divergence { .. }) if what != "outside" => {}
        other => panic!("the planted error `{what}` was not seen in variant {variant}: {other:?}"),
    }
}

/// Every plant in both variants, and that each case is good without one.
macro_rules! every_plant {
    ($record:ident, $planted:ident, $plants:ident, [$($p:literal)*]) => {
        let Some(gpu) = gpu() else { return };
        assert_eq!([$($p),*].len(), $plants.len());
        let gpu = gpu.with_shaders_for(AdapterClass::Software);
        let check = |case: &Case| pollster::block_on(check(&gpu, case));
        for options in $plants.iter().map(|plant| plant.options).collect::<std::collections::BTreeSet<_>>() {
            let worst = check(&$record(options, |kernel| kernel)).unwrap();
            assert!(worst <= 1.0, "{options}: {worst}");
        }
        $(
            let Plant { what, options, .. } = &$plants[$p];
            see(what, 0, check(&$record(*options, $planted::<$p, 0>)));
            see(what, 1, check(&$record(*options, $planted::<$p, 1>)));
        )*
    };
}

#[test]
fn errors_planted_in_lstm_forward_are_caught() {
    assert_eq!(LstmForward::variants().iter().map(|v| v.name).collect::<Vec<_>>(), ["per_step_registers", "per_step"]);
    every_plant!(forward, Forward, FORWARD, [0 1 2 3 4 5 6 7 8 9]);
}

#[test]
fn errors_planted_in_lstm_backward_are_caught() {
    assert_eq!(LstmBackward::variants().iter().map(|v| v.name).collect::<Vec<_>>(), ["per_step_registers", "per_step"]);
    every_plant!(backward, Backward, BACKWARD, [0 1 2 3 4 5 6 7 8 9]);
}

const SUM: [Plant; 1] = [both("a sum", 0, "x[params.x_at + e] - y", "x[params.x_at + e] + y")];
planted!(Sum, subtract, Subtract, SUM);

/// What a pipeline is made of tells it from others, not the name of its kernel.
#[test]
fn two_kernels_of_one_name_run_their_own_shaders() {
    let Some(gpu) = gpu() else { return };
    let run = || -> Result<[f64; 3]> {
        let parameters = Parameters::new();
        let mut rec = Recorder::new(&parameters);
        let (x, y) = (rec.input("x", &[1])?, rec.input("y", &[1])?);
        let mut results = Vec::new();
        for name in ["first", "sum", "last"] {
            let difference = &rec.activation(name, &[1])?;
            let (kernel, operands) = (Subtract { len: 1 }, subtract::Tensors { x: &x, y: &y, difference });
            match name {
                "sum" => rec.push(Sum::<0, 0>(kernel), operands)?,
                _ => rec.push(kernel, operands)?,
            }
            results.push(difference.clone());
        }
        let plan = rec.finish();
        assert!(plan.steps().iter().all(|step| step.operation.name() == "subtract"));
        let mut workspace = Workspace::new(&Store::new(&gpu, &parameters)?, plan)?;
        workspace.write(&x, &[5.0])?;
        workspace.write(&y, &[3.0])?;
        workspace.run()?;
        Ok([workspace.scalar(&results[0])?, workspace.scalar(&results[1])?, workspace.scalar(&results[2])?])
    };
    assert_eq!(run().unwrap(), [2.0, 8.0, 2.0]);
    // also where the pipelines are there already
    assert_eq!(run().unwrap(), [2.0, 8.0, 2.0]);
}

/// The doctor shows red when a kernel is broken, and its report says so.
#[test]
fn the_doctor_sees_a_broken_kernel() {
    let Some(gpu) = gpu() else { return };
    let (mut good, mut bad) = (forward(0, |kernel| kernel), forward(0, Forward::<0, 1>));
    (good.name, bad.name) = ("sound".into(), "broken".into());
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
