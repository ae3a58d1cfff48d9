//! LSTM layers step by step, under the names of the Deep-Breathe series and its equations.
//!
//! The formulas are those of the series' cell, without options; those of the others are in
//! [`kernels::recurrence`](crate::kernels::recurrence). With options too, every value is what its name says:
//!
//! ```text
//! projection    h, dHt and dh_next have P columns
//! clip of h     dHt is that of h before the clip
//! dropout       g is before the mask
//! coupled       dFt is 0: f is no gate of its own
//! layer norm    gradients of gates are those before gain, shift and norm
//! lengths       past the end dHX is 0; dh_next and dc_next are dHt and dCt
//! dc_next       is not formed with a layer norm, peepholes or a clip of c, with which it is more than dCt * ft
//! ```

use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::kernels::lstm_backward::LstmBackward;
use crate::kernels::recurrence::{CELL_CLIP, GATES, LENGTHS, NORM, PEEPHOLE};
use crate::plan::{Cell, Direction, Phase, Plan, Step, Tensor};
use crate::run::Workspace;
use ndarray::{Array2, Array3, Axis, Ix2, Ix3, s};

/// A name of the literature, its formula, and the numbers `[B, width]`.
pub type Named<'a> = (&'static str, &'static str, &'a Array2<f64>);

/// h and c, or their gradients, each `[B, H]`; with a projection h is `[B, P]`.
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
#[cfg(not(target_arch = "wasm32"))]
pub fn run_series(workspace: &mut Workspace) -> Result<Vec<SeriesCell>> {
    pollster::block_on(run_series_async(workspace))
}

/// See [`run_series`].
pub async fn run_series_async(workspace: &mut Workspace) -> Result<Vec<SeriesCell>> {
    let update = workspace.plan().phase(Phase::Update);
    workspace.run_steps_async(0..update.start).await?;
    read_series_async(workspace).await
}

/// Reads all LSTM layers of a finished run, in the order in which the plan runs them.
///
/// `dHX` is not a slot of any plan: x gets its part for all steps at once, h inside the time loop. So
/// it is formed here in f64 from the device's gate gradients and the weights *as they are now*. Where the plan
/// updates the weights, use [`run_series`], which stops before that.
#[cfg(not(target_arch = "wasm32"))]
pub fn read_series(workspace: &mut Workspace) -> Result<Vec<SeriesCell>> {
    pollster::block_on(read_series_async(workspace))
}

/// See [`read_series`].
pub async fn read_series_async(workspace: &mut Workspace) -> Result<Vec<SeriesCell>> {
    let plan = workspace.plan().clone();
    let mut cells = Vec::with_capacity(plan.cells().len());
    for cell in plan.cells() {
        cells.push(read_cell(workspace, cell, options(&plan, cell)).await?);
    }
    Ok(cells)
}

/// The options of a cell, from the step that goes back through it: [`LENGTHS`], ..
fn options(plan: &Plan, cell: &Cell) -> u32 {
    let Some([dgates, ..]) = &cell.gradients else { return 0 };
    let back = |step: &&Step| step.operation.name() == LstmBackward::NAME && step.written().any(|id| id == dgates.slot);
    let fields = plan.steps().iter().find(back).map(|step| step.operation.fields());
    let options = fields.into_iter().flatten().find(|(name, _)| *name == "options");
    options.map_or(0, |(_, value)| value as u32)
}

async fn read_cell(workspace: &mut Workspace, cell: &Cell, options: u32) -> Result<SeriesCell> {
    let gates = read_steps(workspace, &cell.gates).await?;
    let (h, c) = (read_steps(workspace, &cell.h).await?, read_steps(workspace, &cell.c).await?);
    let (steps, hidden) = (gates.len_of(Axis(0)), gates.len_of(Axis(2)) / GATES);
    let row = |of: &Array3<f64>, row: usize| of.index_axis(Axis(0), row).to_owned();
    // columns of the packed gates: i, f, g, o
    let gate =
        |of: &Array3<f64>, t: usize, gate: usize| of.slice(s![t, .., gate * hidden..(gate + 1) * hidden]).to_owned();
    let first = cell.direction.first_row(steps);
    let mut out = SeriesCell {
        name: cell.name.clone(),
        layer: cell.layer,
        direction: cell.direction,
        initial: SeriesState { h: row(&h, first), c: row(&c, first) },
        initial_gradient: None,
        steps: Vec::with_capacity(steps),
    };
    for t in (0..steps).map(|n| cell.direction.time(n, steps)) {
        let after = cell.direction.row_after(t);
        out.steps.push(SeriesStep {
            time: t,
            i: gate(&gates, t, 0),
            f: gate(&gates, t, 1),
            g: gate(&gates, t, 2),
            o: gate(&gates, t, 3),
            c: row(&c, after),
            h: row(&h, after),
            gradients: None,
        });
    }
    let Some([dgates, dh, dc]) = &cell.gradients else { return Ok(out) };
    let dgates = read_steps(workspace, dgates).await?;
    let (dh, dc) = (read_steps(workspace, dh).await?, read_steps(workspace, dc).await?);
    let (weight_ih, weight_hh) =
        (read_matrix(workspace, &cell.weight_ih).await?, read_matrix(workspace, &cell.weight_hh).await?);
    out.initial_gradient = Some(SeriesState { h: row(&dh, first), c: row(&dc, first) });
    for step in &mut out.steps {
        let (t, after) = (step.time, cell.direction.row_after(step.time));
        let dpre = dgates.index_axis(Axis(0), t);
        let (dx, mut dh_next) = (dpre.dot(&weight_ih), dpre.dot(&weight_hh));
        let mut dhx = Array2::zeros((dpre.nrows(), dx.ncols() + dh_next.ncols()));
        dhx.slice_mut(s![.., ..dx.ncols()]).assign(&dx);
        dhx.slice_mut(s![.., dx.ncols()..]).assign(&dh_next);
        let (dht, dct) = (row(&dh, after), row(&dc, after));
        // a row past its end: no sigmoid gives 0
        for row in (0..dpre.nrows()).filter(|row| options & LENGTHS != 0 && step.o[[*row, 0]] == 0.0) {
            dh_next.row_mut(row).assign(&dht.row(row));
        }
        step.gradients = Some(SeriesGradients {
            dht,
            dit: gate(&dgates, t, 0),
            dft: gate(&dgates, t, 1),
            dcproj: gate(&dgates, t, 2),
            dot: gate(&dgates, t, 3),
            dc_next: (options & (NORM | PEEPHOLE | CELL_CLIP) == 0).then(|| &dct * &step.f),
            dct,
            dhx,
            dx,
            dh_next,
        });
    }
    Ok(out)
}

async fn read_steps(workspace: &mut Workspace, tensor: &Tensor) -> Result<Array3<f64>> {
    let values = workspace.read_array_async::<f64>(tensor).await?.into_dimensionality::<Ix3>();
    values.map_err(|_| Error::shape("reading an LSTM", "[T, B, width]", tensor.shape()))
}

async fn read_matrix(workspace: &mut Workspace, tensor: &Tensor) -> Result<Array2<f64>> {
    let values = workspace.read_array_async::<f64>(tensor).await?.into_dimensionality::<Ix2>();
    values.map_err(|_| Error::shape("reading the weights of an LSTM", "[4H, width]", tensor.shape()))
}
