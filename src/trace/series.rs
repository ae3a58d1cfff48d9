//! LSTM layers step by step, under the names of the Deep-Breathe series and its equations.
//!
//! The formulas are those of the series' cell, without options; those of the others are in
//! [`docs::lstm`](crate::docs::lstm). With options too, every value is what its name says:
//!
//! ```text
//! projection    h, dHt and dh_next have P columns
//! clip of h     dHt is that of h before the clip
//! dropout       g is before the mask
//! f = 1 - i     dFt is 0: f is no gate of its own
//! layer norm    gradients of gates are those before gain, shift and norm
//! lengths       past the end dHX is 0; dh_next and dc_next are dHt and dCt
//! dc_next       is not formed with a layer norm, peepholes or a clip of c, with which it is more than dCt * ft
//! ```

use crate::error::{Error, Result};
use crate::kernel::Operands;
use crate::kernels::lstm_backward::LstmBackward;
use crate::kernels::lstm_forward::LstmForward;
use crate::kernels::matmul::Matmul;
use crate::kernels::recurrence::{CELL_CLIP, GATES, LENGTHS, NORM, PEEPHOLE, Sequence};
use crate::plan::{Phase, Plan, Rows, Step};
use crate::run::Workspace;
use crate::tensor::Tensor;
use crate::time::Direction;
use ndarray::{Array2, Array3, Axis, Ix2, Ix3, concatenate, s};

/// A name of the literature, its formula, and the numbers `[B, width]`.
pub type Named<'a> = (&'static str, &'static str, &'a Array2<f64>);

/// h and c, or their gradients, each `[B, H]`; with a projection h is `[B, P]`.
///
/// [`SeriesCell`] has an example.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesState {
    /// Hidden state.
    pub h: Array2<f64>,
    /// Cell state.
    pub c: Array2<f64>,
}

/// Gradients of one time step of one LSTM layer, all of the loss with respect to what the name says.
///
/// Gradients of gates are those of the *pre-activations*: the derivative of the activation is in them.
///
/// [`SeriesCell`] has an example.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesGradients {
    /// `dHt [B, H]`: h of this step, from above and from the next step together.
    pub dht: Array2<f64>,
    /// `dOt [B, H]`: output gate.
    pub dot: Array2<f64>,
    /// `dCt [B, H]`: c of this step, through h and through the next c.
    pub dct: Array2<f64>,
    /// `dCproj [B, H]`: candidate g.
    pub dcproj: Array2<f64>,
    /// `dFt [B, H]`: forget gate.
    pub dft: Array2<f64>,
    /// `dIt [B, H]`: input gate.
    pub dit: Array2<f64>,
    /// `dHX [B, I+H]`: x and the h before, through this step's gates.
    pub dhx: Array2<f64>,
    /// `dx [B, I]`: the first I columns of dHX.
    pub dx: Array2<f64>,
    /// `dh_next [B, H]`: the last H columns of dHX, handed to the step worked on before.
    pub dh_next: Array2<f64>,
    /// `dc_next [B, H]`: handed to c of the step worked on before; `None` with a layer norm, peepholes or a clip of
    /// c, where it is more than its formula.
    pub dc_next: Option<Array2<f64>>,
}

impl SeriesGradients {
    /// All of them with name and formula (that of a cell without options), in the order in which they are computed.
    pub fn named(&self) -> Vec<Named<'_>> {
        let mut named = vec![
            ("dHt", "dE/dht from above + dh_next of the step after", &self.dht),
            ("dOt", "dHt * tanh(ct) * ot * (1 - ot)", &self.dot),
            ("dCt", "dHt * ot * (1 - tanh(ct)^2) + dc_next of the step after", &self.dct),
            ("dCproj", "dCt * it * (1 - cproj^2)", &self.dcproj),
            ("dFt", "dCt * ct_prev * ft * (1 - ft)", &self.dft),
            ("dIt", "dCt * cproj * it * (1 - it)", &self.dit),
            ("dHX", "Wf^T dFt + Wi^T dIt + Wc^T dCproj + Wo^T dOt", &self.dhx),
            ("dx", "dHX, columns of x", &self.dx),
            ("dh_next", "dHX, columns of ht_prev", &self.dh_next),
        ];
        named.extend(self.dc_next.iter().map(|dc_next| ("dc_next", "dCt * ft", dc_next)));
        named
    }
}

/// One time step of one LSTM layer and direction. All arrays are `[B, H]`; with a projection h is `[B, P]`.
///
/// [`SeriesCell`] has an example.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesStep {
    /// Time step t.
    pub time: usize,
    /// Forget gate.
    pub f: Array2<f64>,
    /// Input gate.
    pub i: Array2<f64>,
    /// Candidate, "cproj" in the series.
    pub g: Array2<f64>,
    /// Output gate.
    pub o: Array2<f64>,
    /// Cell state after this step.
    pub c: Array2<f64>,
    /// Hidden state after this step.
    pub h: Array2<f64>,
    /// Gradients, where the plan has a backward pass through this layer.
    pub gradients: Option<SeriesGradients>,
}

impl SeriesStep {
    /// The forward values with name and formula (that of a cell without options), in the order in which they are
    /// computed.
    pub fn named(&self) -> [Named<'_>; 6] {
        [
            ("ft", "sigmoid(Wf [x; ht_prev] + bf + forget_bias)", &self.f),
            ("it", "sigmoid(Wi [x; ht_prev] + bi)", &self.i),
            ("cproj", "tanh(Wc [x; ht_prev] + bc)", &self.g),
            ("ot", "sigmoid(Wo [x; ht_prev] + bo)", &self.o),
            ("ct", "ct_prev * ft + cproj * it", &self.c),
            ("ht", "ot * tanh(ct)", &self.h),
        ]
    }
}

/// One LSTM layer and direction under the names of the literature.
///
/// ```
/// # use everloop::{Device, Parameters, Recorder, Rng, Store, Workspace, layers::LstmConfig, loss, trace::run_series};
/// # fn main() -> everloop::Result<()> {
/// # let mut parameters = Parameters::new();
/// # let lstm = LstmConfig::new(3, 5).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
/// # let mut rec = Recorder::new(&parameters);
/// # let (x, wanted) = (rec.input("x", &[4, 2, 3])?, rec.input("wanted", &[4, 2, 5])?);
/// let y = lstm.record(&mut rec, &x, None)?.output;
/// let loss = loss::mean_squared_error(&mut rec, "loss", &y, &wanted)?;
/// rec.backward(&loss)?;
/// let mut workspace = Workspace::new(&Store::new(&Device::cpu_f64(), &parameters)?, rec.finish())?;
/// # workspace.write(&x, &[0.5; 24])?;
/// let cells = run_series(&mut workspace)?;
/// for (name, formula, values) in cells[0].steps[0].named() {
///     println!("{name} = {formula}\n{values}");
/// }
/// assert!(cells[0].initial_gradient_difference().unwrap() < 1e-12);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesCell {
    /// Path of the layer, such as `lstm`.
    pub name: String,
    /// Layer number from 0.
    pub layer: usize,
    /// Direction.
    pub direction: Direction,
    /// State before the first step.
    pub initial: SeriesState,
    /// Its gradient as the device left it, where the plan has a backward pass through this layer.
    pub initial_gradient: Option<SeriesState>,
    /// The steps in the order worked on: step 0 of a reverse layer is time T-1.
    pub steps: Vec<SeriesStep>,
}

impl SeriesCell {
    /// Largest difference between the gradient of the initial state as the device computed it, and
    /// `dh_next`, `dc_next` (where there is one) of the first step as computed here. They are the same by
    /// definition, so more than rounding means that the weights are not those of the run, or that something is wrong.
    pub fn initial_gradient_difference(&self) -> Option<f64> {
        let device = self.initial_gradient.as_ref()?;
        let here = self.steps.first()?.gradients.as_ref()?;
        let of_c = here.dc_next.iter().flat_map(|dc_next| device.c.iter().zip(dc_next));
        let pairs = device.h.iter().zip(&here.dh_next).chain(of_c);
        let difference = |(a, b): (&f64, &f64)| (a - b).abs();
        Some(pairs.map(difference).fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst }))
    }
}

/// Runs forward and backward of a plan, not its update, and reads all LSTM layers; see [`read_series`].
/// Errors: those of the device.
#[cfg(not(target_arch = "wasm32"))]
pub fn run_series(workspace: &mut Workspace) -> Result<Vec<SeriesCell>> {
    pollster::block_on(run_series_async(workspace))
}

/// See [`run_series`]. Errors as there.
pub async fn run_series_async(workspace: &mut Workspace) -> Result<Vec<SeriesCell>> {
    let update = workspace.plan().phase(Phase::Update);
    workspace.run_steps_async(0..update.start).await?;
    read_series_async(workspace).await
}

/// Reads all LSTM layers of a finished run, in the order in which the plan runs them.
///
/// `dHX` is not a slot of any plan: x gets its part for all steps at once, h inside the time loop. So
/// it is formed here in f64 from the device's gate gradients and the weights *as they are now*. Where the plan
/// updates the weights, use [`run_series`], which stops before that. Errors: those of the device.
#[cfg(not(target_arch = "wasm32"))]
pub fn read_series(workspace: &mut Workspace) -> Result<Vec<SeriesCell>> {
    pollster::block_on(read_series_async(workspace))
}

/// See [`read_series`]. Errors as there.
pub async fn read_series_async(workspace: &mut Workspace) -> Result<Vec<SeriesCell>> {
    let plan = workspace.plan().clone();
    let mut cells = Vec::new();
    for step in plan.steps() {
        let Some(kernel) = step.operation.downcast::<LstmForward>() else { continue };
        for d in 0..kernel.0.directions().len() {
            cells.extend(read_cell(workspace, &plan, step, &kernel.0, d).await?);
        }
    }
    Ok(cells)
}

/// Direction `d` of a step of `lstm_forward`, if its slots are those of a layer.
async fn read_cell(
    workspace: &mut Workspace,
    plan: &Plan,
    forward: &Step,
    k: &Sequence,
    d: usize,
) -> Result<Option<SeriesCell>> {
    let Some(of) = LstmForward::tensors(&forward.operands) else { return Ok(None) };
    let Rows::Times(layer) = &plan.slot(of.gates.slot).rows else { return Ok(None) };
    let (direction, gates) = (layer.directions.list()[d], of.gates.row(d)?);
    // what made x W_ih^T, and the way back
    let product = plan.steps().iter().filter(|step| step.operation.downcast::<Matmul>().is_some());
    let product = product.filter_map(|step| Matmul::tensors(&step.operands)).find(|of| *of.c == gates);
    let back = plan.steps().iter().filter(|step| step.operation.downcast::<LstmBackward>().is_some());
    let back = back.filter_map(|step| LstmBackward::tensors(&step.operands)).find(|back| back.gates == of.gates);

    let gates = read_steps(workspace, &gates).await?;
    let (h, c) = (read_steps(workspace, &of.h.row(d)?).await?, read_steps(workspace, &of.c.row(d)?).await?);
    let (steps, hidden) = (gates.len_of(Axis(0)), gates.len_of(Axis(2)) / GATES);
    let row = |of: &Array3<f64>, row: usize| of.index_axis(Axis(0), row).to_owned();
    // columns of the packed gates: i, f, g, o
    let split = |of: &Array3<f64>, t: usize| {
        [0, 1, 2, 3].map(|gate| of.slice(s![t, .., gate * hidden..(gate + 1) * hidden]).to_owned())
    };
    let first = direction.first_row(steps);
    let step = |time: usize| {
        let ([i, f, g, o], after) = (split(&gates, time), direction.row_after(time));
        SeriesStep { time, f, i, g, o, c: row(&c, after), h: row(&h, after), gradients: None }
    };
    let mut out = SeriesCell {
        name: layer.name.to_string(),
        layer: layer.number,
        direction,
        initial: SeriesState { h: row(&h, first), c: row(&c, first) },
        initial_gradient: None,
        steps: (0..steps).map(|n| step(direction.time(n, steps))).collect(),
    };
    let (Some(back), Some(product)) = (back, product) else { return Ok(Some(out)) };
    let dgates = read_steps(workspace, &back.dgates.row(d)?).await?;
    let (dh, dc) = (read_steps(workspace, &back.dh.row(d)?).await?, read_steps(workspace, &back.dc.row(d)?).await?);
    let shape = vec![GATES * k.hidden as usize, k.outputs as usize];
    let offset = of.weight_hh.offset + d * k.weight_hh_stride as usize;
    let weight_hh = read_matrix(workspace, &Tensor { offset, shape, ..of.weight_hh.clone() }).await?;
    let weight_ih = read_matrix(workspace, product.b).await?;
    out.initial_gradient = Some(SeriesState { h: row(&dh, first), c: row(&dc, first) });
    for step in &mut out.steps {
        let (t, after) = (step.time, direction.row_after(step.time));
        let dpre = dgates.index_axis(Axis(0), t);
        let (dx, mut dh_next) = (dpre.dot(&weight_ih), dpre.dot(&weight_hh));
        let dhx = concatenate![Axis(1), dx, dh_next].as_standard_layout().into_owned();
        let (dht, dct, [dit, dft, dcproj, dot]) = (row(&dh, after), row(&dc, after), split(&dgates, t));
        // a row past its end: no sigmoid gives 0
        let ended = |row: &usize| k.has(LENGTHS) && step.o[[*row, 0]] == 0.0;
        for row in (0..dpre.nrows()).filter(ended) {
            dh_next.row_mut(row).assign(&dht.row(row));
        }
        let dc_next = (!k.has(NORM | PEEPHOLE | CELL_CLIP)).then(|| &dct * &step.f);
        step.gradients = Some(SeriesGradients { dht, dot, dct, dcproj, dft, dit, dhx, dx, dh_next, dc_next });
    }
    Ok(Some(out))
}

async fn read_steps(workspace: &mut Workspace, tensor: &Tensor) -> Result<Array3<f64>> {
    let values = workspace.read_array_async::<f64>(tensor).await?.into_dimensionality::<Ix3>();
    values.map_err(|_| Error::shape("reading an LSTM", "[T, B, width]", tensor.shape()))
}

async fn read_matrix(workspace: &mut Workspace, tensor: &Tensor) -> Result<Array2<f64>> {
    let values = workspace.read_array_async::<f64>(tensor).await?.into_dimensionality::<Ix2>();
    values.map_err(|_| Error::shape("reading the weights of an LSTM", "[4H, width]", tensor.shape()))
}
