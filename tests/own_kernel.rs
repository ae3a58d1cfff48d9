//! A kernel of another crate, through the documented door only: `scaled_difference` with an option, two variants, its
//! own backward, and an LSTM's output among its operands.
//!
//! A crate of its own would put its shaders into its folder `shaders/` and name them with `everloop::wgsl!`.

mod common;

use common::gpu;
use everloop::kernel::{ACTIVATION, Kernel, Part, Stage, Variant, fold, fold_elements, sized};
use everloop::layers::LstmConfig;
use everloop::{Case, Device, Error, Float, Parameters, Plan, Recorder, Result, Rng, Store, Tensor, Workspace, wgsl};
use everloop::{doctor, loss};

macro_rules! part {
    ($name:literal) => {
        Part { name: $name, source: include_str!(concat!("own_kernel/", $name, ".wgsl")) }
    };
}

/// `y[r, j] = scale a(x[r, j] - base[j])` with a = tanh where `squashed`.
mod forward {
    use super::*;

    everloop::parameters! {
        /// Parameters of `scaled_difference`.
        ScaledDifference {
            /// Rows of x.
            rows: u32,
            /// Columns of x.
            columns: u32,
            /// 1 where the difference goes through tanh.
            squashed: u32,
            /// Factor of the result.
            scale: f64,
        }
    }
    everloop::operands! { ScaledDifference { x: read, base: read, y: write } }

    const WHOLE: Part = part!("scaled_difference");
    const DIFFERENCE: Part = part!("difference");
    const SCALED: Part = part!("scaled");

    impl Kernel for ScaledDifference {
        const NAME: &'static str = "scaled_difference";

        fn variants() -> &'static [Variant<Self>] {
            &[
                Variant {
                    name: "two_stages",
                    fits: |k, _, _| match k.rows {
                        1 => Err("there is one row only".into()),
                        _ => Ok(()),
                    },
                    stages: |k| {
                        let elements = k.rows as u64 * k.columns as u64;
                        let last =
                            Stage::new(wgsl![ACTIVATION, SCALED], &["differences", "y"], fold_elements(elements, 64));
                        vec![
                            Stage::new(wgsl![DIFFERENCE], &["x", "base", "differences"], fold(k.rows as u64)),
                            last.with_constants(&[("squashed", k.squashed != 0)]),
                        ]
                    },
                    repeats: |_| 1,
                    scratch: |k| vec![("differences", k.rows as u64 * k.columns as u64)],
                },
                Variant {
                    name: "one_stage",
                    fits: |_, _, _| Ok(()),
                    stages: |k| {
                        let grid = fold_elements(k.rows as u64 * k.columns as u64, 64);
                        let stage = Stage::new(wgsl![ACTIVATION, WHOLE], &["x", "base", "y"], grid);
                        vec![stage.with_constants(&[("squashed", k.squashed != 0)])]
                    },
                    repeats: |_| 1,
                    scratch: |_| Vec::new(),
                },
            ]
        }

        fn needs(&self) -> Option<Sizes> {
            let all = sized(&[self.rows, self.columns])?;
            Some(Sizes { x: all, base: self.columns as u128, y: all })
        }

        fn flops(&self) -> f64 {
            2.0 * self.rows as f64 * self.columns as f64
        }

        fn twin<T: Float>(&self, s: Slices<'_, T>) {
            for (e, (y, x)) in s.y.iter_mut().zip(s.x).enumerate() {
                let d = *x - s.base[e % self.columns as usize];
                *y = T::of(self.scale) * if self.squashed != 0 { d.tanh() } else { d };
            }
        }
    }
}

/// To x, or with `to_base` to base, which every row reads.
mod backward {
    use super::*;

    everloop::parameters! {
        /// Parameters of `scaled_difference_backward`.
        ScaledDifferenceBackward {
            /// Rows of x.
            rows: u32,
            /// Columns of x.
            columns: u32,
            /// 1 where the difference went through tanh.
            squashed: u32,
            /// 1 for the gradient of base.
            to_base: u32,
            /// 1 if the result is added to, not replaced.
            adds: u32,
            /// Factor of y.
            scale: f64,
        }
    }
    everloop::operands! { ScaledDifferenceBackward { y: read, dy: read, result: write } }

    const PART: Part = part!("scaled_difference_backward");

    impl Kernel for ScaledDifferenceBackward {
        const NAME: &'static str = "scaled_difference_backward";

        fn variants() -> &'static [Variant<Self>] {
            &[Variant {
                name: "plain",
                fits: |_, _, _| Ok(()),
                stages: |k| {
                    let grid = fold_elements(k.results() as u64, 64);
                    let stage = Stage::new(wgsl![PART], &["y", "dy", "result"], grid);
                    vec![stage.with_constants(&[("squashed", k.squashed != 0)])]
                },
                repeats: |_| 1,
                scratch: |_| Vec::new(),
            }]
        }

        fn needs(&self) -> Option<Sizes> {
            let all = sized(&[self.rows, self.columns])?;
            Some(Sizes { y: all, dy: all, result: self.results() })
        }

        fn flops(&self) -> f64 {
            4.0 * self.rows as f64 * self.columns as f64
        }

        fn twin<T: Float>(&self, s: Slices<'_, T>) {
            let (columns, scale) = (self.columns as usize, T::of(self.scale));
            if self.adds == 0 {
                s.result.fill(T::ZERO);
            }
            for (e, (y, dy)) in s.y.iter().zip(s.dy).enumerate() {
                let tanh_d = *y / scale;
                let d = scale * *dy * if self.squashed != 0 { T::ONE - tanh_d * tanh_d } else { T::ONE };
                match self.to_base {
                    0 => s.result[e] += d,
                    _ => s.result[e % columns] += -d,
                }
            }
        }
    }

    impl ScaledDifferenceBackward {
        fn results(&self) -> u128 {
            (if self.to_base != 0 { 1 } else { self.rows as u128 }) * self.columns as u128
        }
    }
}

use backward::ScaledDifferenceBackward;
use forward::ScaledDifference;

/// Records `y = scale a(x - base)`, base under every row of x, and leaves its backward on the tape.
fn scaled_difference(
    rec: &mut Recorder<'_>,
    name: &str,
    [x, base]: [&Tensor; 2],
    squashed: bool,
    scale: f64,
) -> Result<Tensor> {
    rec.attempt(|rec| {
        let y = rec.activation(name, x.shape())?;
        let (columns, squashed) = (base.len() as u32, squashed as u32);
        if !x.len().is_multiple_of(base.len()) {
            let (expected, found) = (format!("rows of {columns}"), format!("{:?}", x.shape()));
            return Err(Error::Shape { doing: format!("recording `{name}`"), expected, found });
        }
        let rows = x.len() as u32 / columns;
        rec.push(ScaledDifference { rows, columns, squashed, scale }, forward::Tensors { x, base, y: &y })?;
        let (of, x, base) = (y.clone(), x.clone(), base.clone());
        rec.on_backward(move |rec| {
            let Some(dy) = rec.gradient(&of) else { return Ok(()) };
            for (tensor, to_base) in [(&x, 0), (&base, 1)] {
                if let Some(to) = rec.contribute(tensor)? {
                    let adds = to.adds as u32;
                    let kernel = ScaledDifferenceBackward { rows, columns, squashed, to_base, adds, scale };
                    rec.push(kernel, backward::Tensors { y: &of, dy: &dy, result: &to.tensor })?;
                }
            }
            Ok(())
        });
        Ok(y)
    })
}

/// Rows and columns around the 64 threads of a workgroup, views, with and without tanh; backward to both operands.
fn cases() -> Vec<Case> {
    let case = |rows: usize, columns: usize, squashed: bool| {
        Case::new(format!("scaled_difference {rows} {columns} {squashed}"), 1.0, move |rec| {
            let x = rec.input("x", &[rows + 2, columns])?;
            let base = rec.input("base", &[3, columns])?;
            [&x, &base].into_iter().try_for_each(|tensor| rec.want_gradient(tensor))?;
            let views = [&x.narrow(1, rows)?, &base.row(1)?];
            let y = scaled_difference(rec, "out", views, squashed, 1.5)?;
            let dy = rec.input("dy", &[rows, columns])?;
            rec.backward_from(&[(&y, &dy)])
        })
    };
    let sizes = [(1, 1), (1, 65), (2, 3), (7, 64), (300, 5), (33, 129)].into_iter();
    sizes.flat_map(|(rows, columns)| [case(rows, columns, false), case(rows, columns, true)]).collect()
}

#[test]
fn the_doctor_holds_it_against_its_twin() {
    let examine = |device: &Device| {
        let report = pollster::block_on(doctor::examine_async(device, &cases()));
        let own: Vec<_> = report.rows.iter().filter(|row| row.name.starts_with("scaled_difference")).collect();
        assert_eq!(own.len(), cases().len());
        assert!(report.is_ok(), "{report}");
    };
    examine(&Device::cpu());
    if let Some(gpu) = gpu() {
        examine(&gpu);
    }
}

/// An LSTM; how every output differs from the last one, and all but the first from the first; a mean squared error.
struct Model {
    parameters: Parameters,
    plan: Plan,
    x: Tensor,
    loss: Tensor,
    results: Vec<Tensor>,
    gradients: Vec<Tensor>,
}

fn model() -> Result<Model> {
    let (steps, batch, hidden) = (5, 2, 3);
    let mut parameters = Parameters::new();
    let lstm = LstmConfig::new(4, hidden).declare(&mut parameters, "lstm", &mut Rng::new(3))?;
    parameters.declare("base", &[2, hidden], Rng::new(4).vector(2 * hidden, 0.3))?;
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[steps, batch, 4])?;
    let h = lstm.record(&mut rec, &x, None)?.output;
    let base = rec.parameter("base")?.row(1)?;
    // of views of one slot, of one of them twice, and of a row of a parameter under every row
    let last = scaled_difference(&mut rec, "last", [&h, &h.row(steps - 1)?], true, 0.8)?;
    let first = scaled_difference(&mut rec, "first", [&h.narrow(1, steps - 1)?, &h.row(0)?], false, -1.5)?;
    let moved = scaled_difference(&mut rec, "moved", [&last, &base], true, 2.0)?;
    let wanted = rec.input("wanted", moved.shape())?;
    let error = loss::mean_squared_error(&mut rec, "error", &moved, &wanted)?;
    let zero = rec.input("zero", first.shape())?;
    let other = loss::mean_squared_error(&mut rec, "other", &first, &zero)?;
    let loss = everloop::layers::add(&mut rec, "loss", &error, &other)?;
    rec.backward(&loss)?;
    let names: Vec<String> = parameters.iter().map(|parameter| parameter.name.to_string()).collect();
    let mut gradients = Vec::new();
    for name in names {
        let parameter = rec.parameter(&name)?;
        gradients.extend(rec.gradient(&parameter));
    }
    assert_eq!(gradients.len(), parameters.iter().count());
    Ok(Model { plan: rec.finish(), parameters, x, loss, results: vec![last, first, moved], gradients })
}

impl Model {
    fn open(&self, device: &Device) -> Result<(Store, Workspace)> {
        let store = Store::new(device, &self.parameters)?;
        let mut workspace = Workspace::new(&store, self.plan.clone())?;
        workspace.write(&self.x, &Rng::new(5).vector(self.x.len(), 1.0))?;
        let wanted = self.plan.tensor("wanted")?;
        workspace.write(&wanted, &Rng::new(6).vector(wanted.len(), 1.0))?;
        Ok((store, workspace))
    }

    /// Results, then gradients.
    fn run(&self, device: &Device) -> Result<Vec<f64>> {
        let (_store, mut workspace) = self.open(device)?;
        workspace.run()?;
        let mut all = Vec::new();
        for tensor in self.results.iter().chain(&self.gradients) {
            all.extend(workspace.read::<f64>(tensor)?);
        }
        Ok(all)
    }
}

fn assert_close(left: &[f64], right: &[f64], tolerance: f64, what: &str) {
    assert_eq!(left.len(), right.len());
    for (index, (l, r)) in left.iter().zip(right).enumerate() {
        assert!((l - r).abs() <= tolerance * (1.0 + r.abs()), "{what}: {l} and {r} at {index}");
    }
}

#[test]
fn gradients_are_those_of_central_differences() {
    let model = model().unwrap();
    let (store, mut workspace) = model.open(&Device::cpu_f64()).unwrap();
    workspace.run().unwrap();
    let mut found = Vec::new();
    for gradient in &model.gradients {
        found.extend(workspace.read::<f64>(gradient).unwrap());
    }
    let mut differences = Vec::new();
    let names: Vec<String> = model.parameters.iter().map(|parameter| parameter.name.to_string()).collect();
    for name in names {
        let values = model.parameters.get(&name).unwrap();
        for at in 0..values.len() {
            let [up, down] = [1e-5, -1e-5].map(|step| {
                let (mut moved, mut parameters) = (values.to_vec(), model.parameters.clone());
                moved[at] += step;
                parameters.set(&name, &moved).unwrap();
                store.write(&parameters).unwrap();
                workspace.run().unwrap();
                workspace.scalar(&model.loss).unwrap()
            });
            differences.push((up - down) / 2e-5);
        }
    }
    assert!(found.iter().filter(|d| d.abs() > 1e-3).count() > found.len() / 2, "{found:?}");
    assert_close(&found, &differences, 1e-8, "gradients and central differences");
}

/// The device's own choice, and each variant by force, beside the same model in f64.
#[test]
fn an_lstm_beneath_it_on_every_device_in_every_variant() {
    let model = model().unwrap();
    let exact = model.run(&Device::cpu_f64()).unwrap();
    let mut devices = vec![Device::cpu(), Device::cpu().with_variant_of::<ScaledDifference>("twin").unwrap()];
    if let Some(gpu) = gpu() {
        let listing = |device: &Device| model.plan.listing(device).unwrap();
        assert!(listing(&gpu).contains("scaled_difference (two_stages)"), "{}", listing(&gpu));
        let forced = ["two_stages", "one_stage"].map(|v| gpu.clone().with_variant_of::<ScaledDifference>(v).unwrap());
        assert!(listing(&forced[1]).contains("scaled_difference (one_stage: asked for)"), "{}", listing(&forced[1]));
        devices.push(gpu);
        devices.extend(forced);
    }
    for device in devices {
        assert_close(&model.run(&device).unwrap(), &exact, 2e-5, &device.to_string());
    }
}

/// A variant that does not fit gives its reason, in the listing of a plan, or as an error where it was asked for.
#[test]
fn a_variant_that_does_not_fit_says_why() {
    let error = Device::cpu().with_variant_of::<ScaledDifference>("one_stage").unwrap_err().to_string();
    assert!(error.contains("scaled_difference") && error.contains("expected twin"), "{error}");
    let Some(gpu) = gpu() else { return };
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    let (x, base) = (rec.input("x", &[1, 4]).unwrap(), rec.input("base", &[4]).unwrap());
    scaled_difference(&mut rec, "y", [&x, &base], false, 1.0).unwrap();
    let plan = rec.finish();
    let listing = plan.listing(&gpu).unwrap();
    assert!(listing.contains("(one_stage: not two_stages: there is one row only)"), "{listing}");
    let forced = gpu.with_variant_of::<ScaledDifference>("two_stages").unwrap();
    let error = Workspace::new(&Store::new(&forced, &parameters).unwrap(), plan).unwrap_err().to_string();
    assert!(error.contains("there is one row only"), "{error}");
}

#[test]
fn a_refused_push_leaves_the_recorder_usable() {
    let parameters = Parameters::new();
    let mut rec = Recorder::new(&parameters);
    let (x, base) = (rec.input("x", &[2, 3]).unwrap(), rec.input("base", &[3]).unwrap());
    let ids = rec.tokens("ids", &[3], 5).unwrap();
    let other = Parameters::new();
    let foreign = Recorder::new(&other).input("x", &[3]).unwrap();
    let [twice, short] = [x.row(0).unwrap(), base.narrow(0, 2).unwrap()];
    for (what, operands) in
        [("words", [&x, &ids]), ("another plan's", [&x, &foreign]), ("2 does not divide 3", [&twice, &short])]
    {
        assert!(scaled_difference(&mut rec, "y", operands, true, 1.0).is_err(), "{what}");
    }
    // sizes that the kernel itself refuses, and a slot read and written
    let kernel = |rows: u32| ScaledDifference { rows, columns: 3, squashed: 0, scale: 2.0 };
    let y = rec.activation("y", &[2, 3]).unwrap();
    for rows in [0, 3, u32::MAX] {
        assert!(rec.push(kernel(rows), forward::Tensors { x: &x, base: &base, y: &y }).is_err(), "{rows} rows");
    }
    assert!(rec.push(kernel(2), forward::Tensors { x: &y, base: &base, y: &y }).is_err(), "read and written");
    rec.push(kernel(2), forward::Tensors { x: &x, base: &base, y: &y }).unwrap();
    let plan = rec.finish();
    assert_eq!((plan.steps().len(), plan.slots().len()), (1, 4), "{plan}");
    let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters).unwrap(), plan).unwrap();
    workspace.write(&x, &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    workspace.write(&base, &[1.0f32, 1.0, 5.0]).unwrap();
    workspace.run().unwrap();
    assert_eq!(workspace.read::<f32>(&y).unwrap(), [0.0, 2.0, -4.0, 6.0, 8.0, 2.0]);
}
