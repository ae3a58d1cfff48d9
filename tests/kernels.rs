//! Each kernel by itself at awkward sizes: the CPU's fast form and every shader against the twin in f64,
//! outputs poisoned where they are not accumulated, guard words behind every slot.

mod common;

use common::gpu;
use everloop::doctor::{self, Case};
use everloop::kernel::AdapterClass;
use everloop::kernels::recurrence::{OUTPUT_CLIP, PROJECTION, Recurrence};
use everloop::kernels::*;
use everloop::plan::Direction;
use everloop::{Device, Parameters, Recorder, Result, Workspace};

/// Devices to hold against the reference: the CPU, and the GPU with the shaders of both classes.
fn devices() -> Vec<(Device, AdapterClass)> {
    let mut all = vec![(Device::cpu(), AdapterClass::Hardware), (Device::cpu_f64(), AdapterClass::Hardware)];
    if let Some(gpu) = gpu() {
        for class in [AdapterClass::Software, AdapterClass::Hardware] {
            all.push((gpu.clone().with_shaders_for(class), class));
        }
    }
    all
}

fn check(what: &str, bound: f64, record: impl Fn(&mut Recorder<'_>) -> Result<()> + 'static) {
    let case = Case::new(what, bound, record);
    for (device, class) in devices() {
        pollster::block_on(doctor::check(&device, &case))
            .unwrap_or_else(|e| panic!("{what} on {device} with {class:?} shaders: {e}"));
    }
}

/// The sizes that users' machines are examined with.
#[test]
fn every_case_of_the_doctor() {
    for case in doctor::cases() {
        for (device, class) in devices() {
            pollster::block_on(doctor::check(&device, &case))
                .unwrap_or_else(|e| panic!("{} on {device} with {class:?} shaders: {e}", case.name));
        }
    }
}

#[test]
fn matmul_in_every_transposition() {
    let sizes =
        [(1, 1, 1), (3, 5, 7), (8, 16, 4), (9, 132, 20), (33, 65, 17), (64, 64, 64), (70, 4, 129), (1, 256, 64)];
    for (m, n, k) in sizes {
        for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
            for (bias, accumulate) in [(false, false), (true, false), (false, true), (true, true)] {
                check(&format!("matmul {m} {n} {k} {ta} {tb} {bias} {accumulate}"), 1.0, move |rec| {
                    let a = rec.input("a", &if ta { [k, m] } else { [m, k] })?;
                    let b = rec.input("b", &if tb { [n, k] } else { [k, n] })?;
                    let bias = if bias { Some(rec.input("bias", &[n])?) } else { None };
                    let second = if bias.is_some() && ta { Some(rec.input("second_bias", &[n])?) } else { None };
                    let c = rec.activation(if accumulate { "c" } else { "out" }, &[m, n])?;
                    let biases: Vec<_> = bias.iter().chain(&second).collect();
                    matmul::record(rec, (&a, ta), (&b, tb), &biases, (&c, accumulate))
                });
            }
        }
    }
}

#[test]
fn matmul_of_views_and_of_long_sums() {
    for k in [4usize, 5] {
        check("matmul of rows", 1.0, move |rec| {
            let a = rec.input("a", &[7, k])?.narrow(2, 4)?;
            let b = rec.input("b", &[3, 8, k])?.row(1)?;
            let c = rec.activation("c", &[6, 8])?.narrow(1, 4)?;
            matmul::record(rec, (&a, false), (&b, true), &[], (&c, false))
        });
    }
    // two chunks of the sum: past 65,535 loop iterations of one invocation
    for (rows, bound) in [(70_000, 0.05), (70_001, 0.05)] {
        check("matmul over many rows", bound, move |rec| {
            let a = rec.input("a", &[rows, 4])?;
            let b = rec.input("b", &[rows, 8])?;
            let c = rec.activation("out", &[4, 8])?;
            matmul::record(rec, (&a, true), (&b, false), &[], (&c, false))
        });
    }
}

/// (steps, batch, hidden)
const RECURRENT: [[usize; 3]; 11] = [
    [1, 1, 1],
    [2, 1, 3],
    [4, 3, 17],
    [3, 8, 32],
    [3, 9, 33],
    [2, 7, 64],
    [2, 33, 65],
    [1, 2, 68],
    [3, 1, 128],
    [2, 17, 36],
    [40, 2, 4],
];

#[test]
fn lstm_forward_at_awkward_sizes() {
    for [steps, batch, hidden] in RECURRENT {
        for direction in [Direction::Forward, Direction::Reverse] {
            check(&format!("lstm_forward {steps} {batch} {hidden} {direction:?}"), 1.0, move |rec| {
                let of = doctor::recurrence(rec, [steps, batch, hidden, hidden], direction, 0, true)?;
                lstm_forward::record(rec, &of)
            });
        }
    }
}

#[test]
fn lstm_backward_at_awkward_sizes() {
    for [steps, batch, hidden] in RECURRENT {
        for direction in [Direction::Forward, Direction::Reverse] {
            // gates are drawn from [-0.5, 0.5): not probabilities, but the equations hold for any numbers
            check(&format!("lstm_backward {steps} {batch} {hidden} {direction:?}"), 0.5, move |rec| {
                let of = doctor::recurrence(rec, [steps, batch, hidden, hidden], direction, 0, false)?;
                let to = doctor::gradients(rec, &of)?;
                lstm_backward::record(rec, &of, &to)
            });
        }
    }
}

/// Every set of options, one after the other: a wrong branch shows in the kernel that has it.
#[test]
fn every_combination_of_options() {
    for options in 0..256u32 {
        if options & OUTPUT_CLIP != 0 && options & PROJECTION == 0 {
            continue;
        }
        let outputs = if options & PROJECTION != 0 { 3 } else { 5 };
        let direction = if options.count_ones() % 2 == 0 { Direction::Forward } else { Direction::Reverse };
        check(&format!("lstm_forward options {options}"), 1.0, move |rec| {
            let of = doctor::recurrence(rec, [3, 2, 5, outputs], direction, options, true)?;
            lstm_forward::record(rec, &of)
        });
        check(&format!("lstm_backward options {options}"), 0.5, move |rec| {
            let of = doctor::recurrence(rec, [3, 2, 5, outputs], direction, options, false)?;
            let to = doctor::gradients(rec, &of)?;
            lstm_backward::record(rec, &of, &to)
        });
    }
}

#[test]
fn activations_saturate_without_nan() {
    check("lstm_forward with huge pre-activations", 1e4, move |rec| {
        let weight = rec.input("weight_hh", &[16, 4])?;
        let gates = rec.activation("gates", &[3, 2, 16])?;
        let h = rec.activation("h", &[4, 2, 4])?;
        let c = rec.activation("c", &[4, 2, 4])?;
        rec.fill(&h, 0.5)?;
        rec.fill(&c, 30.0)?;
        lstm_forward::record(rec, &Recurrence::new(Direction::Forward, &weight, &gates, &h, &c))
    });
}

#[test]
fn a_nan_in_the_weights_reaches_the_output() {
    for (device, class) in devices() {
        for hidden in [4usize, 5] {
            let parameters = Parameters::new();
            let mut rec = Recorder::new(&parameters);
            let weight = rec.activation("weight_hh", &[4 * hidden, hidden]).unwrap();
            let gates = rec.activation("gates", &[1, 1, 4 * hidden]).unwrap();
            let h = rec.activation("h", &[2, 1, hidden]).unwrap();
            let c = rec.activation("c", &[2, 1, hidden]).unwrap();
            rec.fill(&weight, f32::NAN).unwrap();
            for t in [&gates, &h, &c] {
                rec.fill(t, 0.25).unwrap();
            }
            let of = Recurrence::new(Direction::Forward, &weight, &gates, &h, &c);
            lstm_forward::record(&mut rec, &of).unwrap();
            let mut workspace = Workspace::new(&device, rec.finish(), &parameters).unwrap();
            workspace.run().unwrap();
            let last = h.row(1).unwrap();
            assert!(workspace.read::<f64>(&last).unwrap().iter().all(|v| v.is_nan()), "{device} {class:?} {hidden}");
            let one = last.reshape(&[hidden]).unwrap().narrow(0, 1).unwrap();
            assert!(matches!(workspace.scalar(&one), Err(everloop::Error::NonFinite { .. })));
        }
    }
}

#[test]
fn sums_over_rows() {
    for (rows, columns) in [(1, 1), (5, 3), (17, 33), (300, 16), (600_001, 1)] {
        for accumulate in [false, true] {
            check(&format!("sum_rows {rows} {columns}"), 0.02, move |rec| {
                let x = rec.input("x", &[rows, columns])?;
                let sums = rec.activation(if accumulate { "sums" } else { "out" }, &[columns])?;
                sum_rows::record(rec, &x, &sums, accumulate)
            });
        }
    }
}

/// 600,001 rows are two dispatches.
#[test]
fn sums_over_rows_of_products() {
    for (rows, width, bound) in
        [(1, 1, 1.0), (5, 3, 1.0), (17, 33, 0.3), (300, 16, 0.3), (65_537, 65, 0.1), (600_001, 1, 0.05)]
    {
        for accumulate in [false, true] {
            check(&format!("sum_products {rows} {width}"), bound, move |rec| {
                let a = rec.input("a", &[rows + 2, width])?.narrow(1, rows)?;
                let b = rec.input("b", &[1, rows, width + 4])?;
                let sums = rec.activation(if accumulate { "sums" } else { "out" }, &[width])?;
                sum_products::record(rec, (&a, 0), (&b, 4), (&sums, 0), width, accumulate)
            });
        }
    }
    check("sum_products of some columns into a part", 1.0, move |rec| {
        let (a, b) = (rec.input("a", &[2, 9, 7])?.row(1)?, rec.input("b", &[9, 5])?);
        let sums = rec.activation("sums", &[3, 8])?.row(1)?;
        sum_products::record(rec, (&a, 2), (&b, 0), (&sums, 4), 4, false)
    });
}

#[test]
fn products_of_elements() {
    for (len, times) in [(1, 1), (3, 1), (1, 5), (17, 33), (257, 300)] {
        for accumulate in [false, true] {
            check(&format!("multiply {times} x {len}"), 1.0, move |rec| {
                let (x, factor) = (rec.input("x", &[times, len])?, rec.input("factor", &[len])?);
                let y = rec.activation(if accumulate { "y" } else { "out" }, &[times, len])?;
                multiply::record(rec, &x, &factor, (&y, accumulate))
            });
            check(&format!("multiply {times} x {len}, views"), 1.0, move |rec| {
                let x = rec.input("x", &[times + 2, len])?.narrow(2, times)?;
                let factor = rec.input("factor", &[3, len])?.row(1)?;
                let y = rec.activation("y", &[times + 2, len])?.narrow(1, times)?;
                multiply::record(rec, &x, &factor, (&y, accumulate))
            });
        }
    }
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    let (x, y) = (rec.input("x", &[6]).unwrap(), rec.activation("y", &[6]).unwrap());
    let factor = rec.input("factor", &[4]).unwrap();
    assert!(multiply::record(&mut rec, &x, &factor, (&y, false)).is_err(), "4 does not divide 6");
}

#[test]
fn highways_and_their_backward() {
    for (len, bound) in [(1, 1.0), (3, 1.0), (257, 8.0), (70_001, 1.0)] {
        for (to_x, to_h) in [(false, false), (true, false), (false, true), (true, true)] {
            check(&format!("highway {len} {to_x} {to_h}"), bound, move |rec| {
                let [x, h, dy] = ["x", "h", "dy"].map(|name| rec.input(name, &[len]));
                let (x, h, dy) = (x?, h?, dy?);
                let [carry, y, dcarry] = ["carry", "y", "dcarry"].map(|name| rec.activation(name, &[len]));
                let (carry, y, dcarry) = (carry?, y?, dcarry?);
                let (dx, dh) = (rec.activation("dx", &[len])?, rec.activation("dh", &[len])?);
                highway::record(rec, &carry, &x, &h, &y)?;
                highway_backward::record(rec, &carry, &x, &h, &dy, &dcarry, (&dx, to_x), (&dh, to_h))
            });
        }
    }
    check("highway with huge pre-activations", 1e4, move |rec| {
        let (x, h) = (rec.input("x", &[257])?, rec.input("h", &[257])?);
        let (carry, y) = (rec.activation("carry", &[257])?, rec.activation("y", &[257])?);
        highway::record(rec, &carry, &x, &h, &y)
    });
    check("highway, outputs poisoned", 1.0, move |rec| {
        let (gate, x) = (rec.input("gate", &[33])?, rec.input("x", &[33])?);
        let [out, y, dcarry, dx, dh] = ["out", "y", "dcarry", "dx", "dh"].map(|name| rec.activation(name, &[33]));
        let (carry, y, dcarry, dx, dh) = (out?, y?, dcarry?, dx?, dh?);
        copy_columns::record(rec, (&gate, 0), (&carry, 0), 33, false)?;
        highway::record(rec, &carry, &x, &gate, &y)?;
        highway_backward::record(rec, &carry, &x, &gate, &x, &dcarry, (&dx, false), (&dh, false))
    });
}

#[test]
fn a_nan_in_a_highway_gate_reaches_the_output() {
    for (device, class) in devices() {
        let parameters = Parameters::new();
        let mut rec = Recorder::new(&parameters);
        let (carry, y) = (rec.activation("carry", &[5]).unwrap(), rec.activation("y", &[5]).unwrap());
        let x = rec.input("x", &[5]).unwrap();
        rec.fill(&carry, f32::NAN).unwrap();
        highway::record(&mut rec, &carry, &x, &x, &y).unwrap();
        let mut workspace = Workspace::new(&device, rec.finish(), &parameters).unwrap();
        workspace.run().unwrap();
        assert!(workspace.read::<f64>(&y).unwrap().iter().all(|v| v.is_nan()), "{device} {class:?}");
    }
}

/// The same mask on every device, to the bit; another one for another step or key; the share that p asks for.
#[test]
fn dropout_masks_are_equal_everywhere() {
    for (len, p) in [(1usize, 0.5), (3, 0.1), (255, 0.999), (1_000, 0.0), (70_001, 0.3), (70_001, 1.0 - 1e-3)] {
        let masks = |device: &Device| -> Vec<Vec<f32>> {
            let parameters = Parameters::new();
            let mut rec = Recorder::new(&parameters);
            let step = rec.input_with("step", &[1_048_574.0, 4095.0]).unwrap();
            let mut masks = Vec::new();
            for (name, key) in [("a", [1, 2]), ("b", [1, 2]), ("c", [1, 2]), ("d", [2, 2]), ("e", [1, 3])] {
                let mask = rec.activation(name, &[len]).unwrap();
                dropout_mask::record(&mut rec, &step, &mask, key, p).unwrap();
                if name < "c" {
                    count::record(&mut rec, &step).unwrap();
                }
                masks.push(mask);
            }
            let mut workspace = Workspace::new(device, rec.finish(), &parameters).unwrap();
            workspace.run().unwrap();
            // the high part is now 4096: 2^20 * 2^12 wraps to 0
            assert_eq!(workspace.read::<f64>(&step).unwrap(), [0.0, 4096.0]);
            masks.iter().map(|mask| workspace.read(mask).unwrap()).collect()
        };
        let wanted = masks(&Device::reference());
        for (device, class) in devices() {
            assert!(masks(&device) == wanted, "{len} {p} {device} {class:?}");
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
    let (step, mask) = (rec.input("step", &[2]).unwrap(), rec.activation("mask", &[4]).unwrap());
    for p in [-0.1, 1.0, 2.0, f64::NAN] {
        assert!(dropout_mask::record(&mut rec, &step, &mask, [0, 0], p).is_err(), "{p}");
    }
    assert!(dropout_mask::record(&mut rec, &mask, &step, [0, 0], 0.5).is_err(), "a step is two floats");
    assert!(count::record(&mut rec, &mask).is_err());
}

#[test]
fn embeddings_and_one_hot() {
    for (rows, vocab, columns) in [(1, 1, 1), (7, 3, 5), (64, 300, 17), (40_000, 2, 1)] {
        check("embedding_forward", 1.0, move |rec| {
            let (ids, table) = (rec.tokens("ids", &[rows], vocab)?, rec.input("table", &[vocab, columns])?);
            let y = rec.activation("out", &[rows, columns])?;
            embedding_forward::record(rec, &ids, &table, &y)
        });
        for accumulate in [false, true] {
            check("embedding_backward", 0.02, move |rec| {
                let (ids, dy) = (rec.tokens("ids", &[rows], vocab)?, rec.input("dy", &[rows, columns])?);
                let dtable = rec.activation(if accumulate { "dtable" } else { "out" }, &[vocab, columns])?;
                embedding_backward::record(rec, &ids, &dy, &dtable, accumulate)
            });
        }
        check("one_hot", 1.0, move |rec| {
            let ids = rec.tokens("ids", &[rows], vocab)?;
            let y = rec.activation("out", &[rows, vocab])?;
            one_hot::record(rec, &ids, &y)
        });
    }
}

#[test]
fn cross_entropy() {
    for (rows, classes, bound) in [(1, 1, 1.0), (3, 2, 1.0), (5, 63, 1.0), (2, 64, 100.0), (9, 65, 1e4), (70, 300, 5.0)]
    {
        check(&format!("softmax_cross_entropy {rows} {classes}"), bound, move |rec| {
            let logits = rec.input("logits", &[rows, classes])?;
            let targets = rec.targets("targets", &[rows], classes)?;
            let out = everloop::loss::softmax_cross_entropy(rec, "loss.out", &logits, &targets)?;
            rec.want_gradient(&logits)?;
            rec.backward(&out.loss)
        });
    }
}

#[test]
fn squared_error_norm_clip_and_descent() {
    for len in [1usize, 3, 255, 5_000, 70_000] {
        check(&format!("mean_squared_error of {len}"), 1.0, move |rec| {
            let x = rec.input("x", &[len])?;
            rec.want_gradient(&x)?;
            let wanted = rec.input("wanted", &[len])?;
            let loss = everloop::loss::mean_squared_error(rec, "out", &x, &wanted)?;
            rec.backward(&loss)
        });
        for max_norm in [1e-3, 1e6] {
            check(&format!("clip_norm of {len}"), 1.0, move |rec| {
                let partials = rec.activation("partials", &[sum_squares::parts(len)])?;
                let (norm, g) = (rec.activation("norm", &[1])?, rec.activation("g", &[len])?);
                let (rate, w) = (rec.input("rate", &[1])?, rec.activation("w", &[len])?);
                sum_squares::record(rec, &g, &partials)?;
                sum::record(rec, &partials, &norm, 1, true)?;
                clip_norm::record(rec, &norm, &g, max_norm)?;
                sgd::record(rec, &rate, &g, &w)
            });
        }
    }
}

#[test]
fn copies_of_columns() {
    for (rows, from, to, width) in [(1, 1, 1, 1), (5, 7, 9, 3), (300, 16, 48, 16)] {
        for accumulate in [false, true] {
            check("copy_columns", 1.0, move |rec| {
                let x = rec.input("x", &[rows, from])?;
                let y = rec.activation("y", &[rows, to])?;
                copy_columns::record(rec, (&x, from - width), (&y, to - width), width, accumulate)
            });
        }
    }
}

/// A grid folded into two dimensions, past 65,535 workgroups.
#[test]
fn more_elements_than_one_dimension_of_workgroups() {
    check("fill of 17 million", 1.0, move |rec| {
        let out = rec.activation("out", &[17_000_003])?;
        rec.fill(&out, 2.5)
    });
}

/// The first of several largest logits counts, and a batch without any counted target has loss 0 and no gradient.
#[test]
fn ties_and_batches_that_do_not_count() {
    use everloop::loss::IGNORE;
    for (device, class) in devices() {
        let parameters = Parameters::new();
        let mut rec = Recorder::new(&parameters);
        let logits = rec.input("logits", &[4, 70]).unwrap();
        rec.want_gradient(&logits).unwrap();
        let targets = rec.targets("targets", &[4], 70).unwrap();
        let out = everloop::loss::softmax_cross_entropy(&mut rec, "loss", &logits, &targets).unwrap();
        rec.backward(&out.loss).unwrap();
        let plan = rec.finish();
        let gradient = plan.tensor("dlogits").unwrap();
        let mut workspace = Workspace::new(&device, plan, &parameters).unwrap();
        let mut values = vec![0.0f32; 4 * 70];
        // row 0: all equal; row 1: places 2 and 66; row 2: 66 and 69; row 3: only 69
        for place in [70 + 2, 70 + 66, 140 + 66, 140 + 69, 210 + 69] {
            values[place] = 1.0;
        }
        workspace.write(&logits, &values).unwrap();
        for (ids, accuracy) in [([0, 2, 66, 69], 1.0), ([1, 66, 69, 0], 0.0), ([0, IGNORE, IGNORE, 0], 0.5)] {
            workspace.write_tokens(&targets, &ids).unwrap();
            workspace.run().unwrap();
            assert_eq!(workspace.scalar(&out.accuracy).unwrap(), accuracy, "{device} {class:?}");
        }
        workspace.write_tokens(&targets, &[IGNORE; 4]).unwrap();
        workspace.run().unwrap();
        assert_eq!(workspace.scalar(&out.loss).unwrap(), 0.0);
        assert_eq!(workspace.scalar(&out.counted).unwrap(), 0.0);
        assert!(workspace.read::<f64>(&gradient).unwrap().iter().all(|d| *d == 0.0), "{device} {class:?}");
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
    sum_rows::record(&mut rec, &x, &sums, false).unwrap();
    let mut workspace = Workspace::new(&Device::cpu(), rec.finish(), &parameters).unwrap();
    workspace.run().unwrap();
    assert_eq!(workspace.scalar(&sums).unwrap(), 2e7);
}
