//! One LSTM layer, in one direction or in two: the input products, the recurrence, and the way back.

use super::config::LstmConfig;
use crate::error::{Result, same_shape};
use crate::kernels::lstm_backward::Gradients;
use crate::kernels::matmul::Matrix;
use crate::kernels::recurrence::{GATES, NORMS, Norm, Projection, Recurrence};
use crate::kernels::{copy_columns, lstm_backward, lstm_forward, matmul, sum_products};
use crate::layers::dense::{contribute_biases, contribute_products};
use crate::layers::path;
use crate::plan::{Layer, Rows};
use crate::recorder::{Recorder, Target};
use crate::tensor::Tensor;
use crate::time::Direction;
use crate::weights::tables::{Part, name_in_stack};

/// The state of one layer and direction.
///
/// ```
/// # use everloop::{Parameters, Recorder, Rng, layers::{LstmConfig, LstmState}};
/// # fn main() -> everloop::Result<()> {
/// # let mut parameters = Parameters::new();
/// # let lstm = LstmConfig::new(3, 5).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
/// # let mut rec = Recorder::new(&parameters);
/// # let x = rec.input("x", &[4, 2, 3])?;
/// // starts where the run before ended
/// let state = LstmState { h: rec.state("h", &[2, 5])?, c: rec.state("c", &[2, 5])? };
/// let states = [state];
/// lstm.record(&mut rec, &x, Some(&states))?.carry(&mut rec, &states)?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LstmState {
    /// Hidden state, `[B, P]` (P = H without a projection), or `[P]` of an input without a batch.
    pub h: Tensor,
    /// Cell state, `[B, H]`, or `[H]`.
    pub c: Tensor,
}

/// Which layer of which LSTM.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    /// Prefix of the parameters.
    pub name: &'a str,
    /// Prefix of the slots.
    pub place: &'a str,
    pub config: &'a LstmConfig,
    pub layer: usize,
}

/// What a layer reads beside its parameters.
pub(super) struct Inputs<'a> {
    /// For each direction `[T, B, I]`.
    pub x: &'a [Tensor],
    /// For each direction `[B, P]` and `[B, H]`; zeros where there is none.
    pub initial: Option<Vec<LstmState>>,
    /// `[B]`
    pub lengths: Option<&'a Tensor>,
    /// `[D, T, B, H]` or `[D, B, H]`
    pub mask: Option<Tensor>,
}

/// What it gives for a direction.
pub(super) struct Outputs {
    /// Every h, `[T, B, P]`; past a row's length its last one.
    pub h: Tensor,
    /// Every c, `[T, B, H]`; past a row's length its last one.
    pub c: Tensor,
    /// The final state.
    pub last: LstmState,
}

impl At<'_> {
    /// A slot of the layer, or of what is one direction's.
    pub fn slot(&self, direction: Direction, kind: &str) -> String {
        format!("{}.{}{}.{kind}", self.place, self.layer, direction.of("", ".reverse"))
    }

    /// A parameter of the layer.
    pub fn parameter(&self, direction: Direction, kind: &str) -> String {
        path(self.name, &name_in_stack(kind, self.layer, direction))
    }
}

/// Records a layer; what it gives for each direction.
pub(super) fn record(rec: &mut Recorder<'_>, at: At<'_>, inputs: Inputs<'_>) -> Result<Vec<Outputs>> {
    let At { config, layer, .. } = at;
    let Inputs { x, initial, lengths, mask } = inputs;
    let (outputs, hidden) = config.state_sizes(layer);
    let (steps, batch) = (x[0].shape()[0], x[0].shape()[1]);
    let (ways, directions) = (config.ways(), config.directions());
    let mut weights = |part: Part| -> Result<Option<Vec<Tensor>>> {
        let all = || directions.iter().map(|d| rec.parameter(&at.parameter(*d, part.kind()))).collect();
        config.has(part).then(all).transpose()
    };
    let weight_ih = weights(Part::WeightIh)?.unwrap_or_default();
    let weight_hh = weights(Part::WeightHh)?.unwrap_or_default();
    let (bias_ih, bias_hh) = (weights(Part::BiasIh)?, weights(Part::BiasHh)?);
    let (weight_hr, layer_norm) = (weights(Part::Projection)?, weights(Part::Norm)?);
    let peephole = weights(Part::Peephole)?;
    let biases: Vec<Vec<Tensor>> =
        (0..directions.len()).map(|d| bias_ih.iter().chain(&bias_hh).map(|all| all[d].clone()).collect()).collect();

    let slot = |kind: &str| format!("{}.{layer}.{kind}", at.place);
    let tag = Layer { name: at.name.into(), number: layer, directions: ways };
    let (times, states) = (Rows::Times(tag.clone()), Rows::States(tag));
    let lead = [directions.len(), steps, batch];
    let of = |width: usize| [&lead[..], &[width]].concat();
    let state = |width: usize| [directions.len(), steps + 1, batch, width];
    let gates = rec.activation_rows(&slot("gates"), &of(GATES * hidden), times.clone())?;
    let h = rec.activation_rows(&slot("h"), &state(outputs), states.clone())?;
    let c = rec.activation_rows(&slot("c"), &state(hidden), states)?;
    let mut wide = |kind: &str, width: usize| rec.activation_rows(&slot(kind), &of(width), times.clone());
    let projection = weight_hr.map(|weight_hr| Ok(Projection { weight_hr, m: wide("m", hidden)? })).transpose()?;
    let norm = |weight| Ok(Norm { weight, normalized: wide("normalized", NORMS * hidden + NORMS)? });
    let norm = layer_norm.map(norm).transpose()?;
    let recurrence = Recurrence {
        options: config.cell(),
        lengths: lengths.cloned(),
        peephole,
        mask,
        projection,
        norm,
        ..Recurrence::new(ways, &weight_hh, &gates, &h, &c)
    };

    for (d, direction) in directions.iter().enumerate() {
        // F1: the products of all inputs at once; only the recurrent product stays in the time loop
        let (x, weight) = (Matrix::plain(&x[d]), Matrix::transposed(&weight_ih[d]));
        let biases: Vec<_> = biases[d].iter().collect();
        matmul::record(rec, x, weight, &biases, &Target::replace(&gates.row(d)?))?;
        let first = direction.first_row(steps);
        for (to, from) in [(&h, initial.as_ref().map(|all| &all[d].h)), (&c, initial.as_ref().map(|all| &all[d].c))] {
            let to = to.row(d)?.row(first)?;
            let Some(from) = from else {
                rec.fill(&to, 0.0)?;
                continue;
            };
            same_shape(format!("recording the initial state of `{}.{layer}`", at.place), to.shape(), from.shape())?;
            copy_columns::record(rec, from, &Target::replace(&to))?;
        }
    }
    lstm_forward::record(rec, &recurrence)?;

    let of_direction = |d: usize| -> Result<Outputs> {
        let (after, last) = (directions[d].row_after(0), directions[d].last_row(steps));
        let (h, c) = (h.row(d)?, c.row(d)?);
        let last = LstmState { h: h.row(last)?, c: c.row(last)? };
        Ok(Outputs { h: h.narrow(after, steps)?, c: c.narrow(after, steps)?, last })
    };
    let made = (0..directions.len()).map(of_direction).collect::<Result<Vec<_>>>()?;

    let (x, sums) = (x.to_vec(), |kind: &str| directions.iter().map(|d| at.slot(*d, kind)).collect::<Vec<_>>());
    let (sum_dgates, sum_dnormalized) = (sums("sum_dgates"), sums("sum_dnormalized"));
    let (dgates, dnormalized, of_norms) = (slot("dgates"), slot("dnormalized"), of(NORMS * hidden));
    rec.on_backward(move |rec| {
        if rec.gradient(&h).is_none() && rec.gradient(&c).is_none() {
            return Ok(());
        }
        let norm = recurrence.norm.as_ref();
        let to = Gradients {
            dh: rec.gradient_in_place(&h)?,
            dc: rec.gradient_in_place(&c)?,
            dgates: rec.activation_rows(&dgates, gates.shape(), times.clone())?,
            dnormalized: norm.map(|_| rec.activation_rows(&dnormalized, &of_norms, times.clone())).transpose()?,
        };
        lstm_backward::record(rec, &recurrence, &to)?;
        for (d, direction) in directions.iter().enumerate().rev() {
            // B12: every h and c the recurrence read are all rows but the final state's; and all but the initial state's
            let (before, after) = (direction.row_before(0), direction.row_after(0));
            let (h, c, dh, dgates) = (h.row(d)?, c.row(d)?, to.dh.row(d)?, to.dgates.row(d)?);
            contribute_products(rec, &dgates, &x[d], &weight_ih[d])?;
            if let Some(dweight) = rec.contribute(&weight_hh[d])? {
                let h_before = h.narrow(before, steps)?;
                matmul::record(rec, Matrix::transposed(&dgates), Matrix::plain(&h_before), &[], &dweight)?;
            }
            contribute_biases(rec, &sum_dgates[d], &dgates, &biases[d].iter().collect::<Vec<_>>())?;
            if let Some(Projection { weight_hr, m }) = &recurrence.projection
                && let Some(dweight) = rec.contribute(&weight_hr[d])?
            {
                let (dh_after, m) = (dh.narrow(after, steps)?, m.row(d)?);
                matmul::record(rec, Matrix::transposed(&dh_after), Matrix::plain(&m), &[], &dweight)?;
            }
            let dnormalized = to.dnormalized.as_ref().map(|all| all.row(d)).transpose()?;
            // of the pre-activations after gain and shift
            let dy = dnormalized.as_ref().unwrap_or(&dgates);
            if let Some(peephole) = &recurrence.peephole
                && let Some(Target { tensor, adds }) = rec.contribute(&peephole[d])?
            {
                for (part, (gate, row)) in [(0, before), (1, before), (3, after)].into_iter().enumerate() {
                    let to = Target { tensor: tensor.narrow(part * hidden, hidden)?, adds };
                    sum_products::record(rec, (dy, gate * hidden), Some((&c.narrow(row, steps)?, 0)), &to)?;
                }
            }
            if let (Some(Norm { weight, normalized }), Some(dnormalized)) = (&recurrence.norm, &dnormalized)
                && let Some(Target { tensor, adds }) = rec.contribute(&weight[d])?
            {
                let gains = Target { tensor: tensor.row(0)?, adds };
                sum_products::record(rec, (dnormalized, 0), Some((&normalized.row(d)?, 0)), &gains)?;
                let sums = rec.activation(&sum_dnormalized[d], &[NORMS * hidden])?;
                sum_products::record(rec, (dnormalized, 0), None, &Target::replace(&sums))?;
                copy_columns::record(rec, &sums, &Target { tensor: tensor.row(1)?, adds })?;
            }
            if let Some(state) = &initial {
                let first = direction.first_row(steps);
                rec.add_gradient(&dh.row(first)?, &state[d].h)?;
                rec.add_gradient(&to.dc.row(d)?.row(first)?, &state[d].c)?;
            }
        }
        Ok(())
    });
    Ok(made)
}
