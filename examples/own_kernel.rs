//! A kernel of one's own on top of an LSTM: a ReLU with a ceiling, in WGSL and as a plain loop that it is checked by.
//!
//! A kernel is a word: its parameters, its operands, the dispatches that compute it on a GPU, and a twin that says the
//! same in Rust, straight from the equation. A gradient would be one kernel more, recorded by `Recorder::on_backward`.

use everloop::kernel::{Kernel, Part, Stage, Variant, fold_elements, sized};
use everloop::layers::LstmConfig;
use everloop::{Case, Device, Float, Parameters, Recorder, Result, Rng, Store, Workspace, doctor, wgsl};

everloop::parameters! {
    /// `y[e] = min(max(x[e], 0), ceiling)`
    ClippedRelu {
        /// Elements.
        len: u32,
        /// The largest result.
        ceiling: f64,
    }
}
everloop::operands! { ClippedRelu { x: read, y: write } }

/// The uniform block `params` stands before it: the parameters, and where each operand begins, as `<operand>_at`.
const SHADER: Part = Part {
    name: "clipped_relu",
    source: "
        @group(0) @binding(0) var<storage, read> x: array<f32>;
        @group(0) @binding(1) var<storage, read_write> y: array<f32>;

        @compute @workgroup_size(64)
        fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>) {
          let e = id.y * wgs.x * 64u + id.x;
          if (e < params.len) {
            y[params.y_at + e] = clamp(x[params.x_at + e], 0.0, params.ceiling);
          }
        }",
};

impl Kernel for ClippedRelu {
    const NAME: &'static str = "clipped_relu";

    fn variants() -> &'static [Variant<Self>] {
        &[Variant {
            name: "plain",
            fits: |_, _, _| Ok(()),
            stages: |k| vec![Stage::new(wgsl![SHADER], &["x", "y"], fold_elements(k.len as u64, 64))],
            repeats: |_| 1,
            scratch: |_| Vec::new(),
        }]
    }

    fn needs(&self) -> Option<Sizes> {
        sized(&[self.len]).map(|len| Sizes { x: len, y: len })
    }

    fn flops(&self) -> f64 {
        2.0 * self.len as f64
    }

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        let ceiling = T::of(self.ceiling);
        for (y, x) in s.y.iter_mut().zip(s.x) {
            let positive = if *x > T::ZERO { *x } else { T::ZERO };
            *y = if positive > ceiling { ceiling } else { positive };
        }
    }
}

fn main() -> Result<()> {
    let mut parameters = Parameters::new();
    let lstm = LstmConfig::new(2, 4).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[3, 1, 2])?; // [steps, batch, values]
    let h = lstm.record(&mut rec, &x, None)?.output;
    let y = rec.activation("y", h.shape())?;
    rec.push(ClippedRelu { len: h.len() as u32, ceiling: 0.1 }, Tensors { x: &h, y: &y })?;
    let (device, plan) = (Device::auto(), rec.finish());
    println!("{}", plan.listing(&device)?);

    let mut workspace = Workspace::new(&Store::new(&device, &parameters)?, plan)?;
    workspace.write(&x, &[1.0f32, -1.0, 0.5, 2.0, -2.0, 0.0])?;
    workspace.run()?;
    println!("h = {:.4?}\ny = {:.4?}", workspace.read::<f32>(&h)?, workspace.read::<f32>(&y)?);

    // by itself, held against the twin in f64: what is not written shows, and what is written outside
    let case = Case::new("clipped_relu 1000", 1.0, |rec| {
        let (x, y) = (rec.input("x", &[1000])?, rec.activation("out", &[1000])?);
        rec.push(ClippedRelu { len: 1000, ceiling: 0.3 }, Tensors { x: &x, y: &y })
    });
    let report = pollster::block_on(doctor::examine_async(&device, &[case]));
    for row in report.rows.iter().filter(|row| row.name.starts_with("clipped_relu")) {
        println!("{}: error over tolerance, or what went wrong: {:.4?}", row.name, row.outcome);
    }
    Ok(())
}
