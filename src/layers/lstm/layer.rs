//! One LSTM layer in one direction: the input product, the recurrence, and the way back.

use super::config::{Bias, LstmConfig, ParameterNames};
use crate::error::{Error, Result};
use crate::kernels::lstm_backward::Gradients;
use crate::kernels::recurrence::{CellOptions, GATES, NORMS, Norm, Projection, Recurrence};
use crate::kernels::{copy_columns, lstm_backward, lstm_forward, matmul, sum_products, sum_rows};
use crate::layers::dense::{contribute_biases, contribute_products};
use crate::layers::path;
use crate::plan::{Cell, Direction, Tensor};
use crate::recorder::Recorder;

/// The state of one layer and direction.
#[derive(Debug, Clone, PartialEq)]
pub struct LstmState {
    /// Hidden state, `[B, P]` (P = H without a projection), or `[P]` of an input without a batch.
    pub h: Tensor,
    /// Cell state, `[B, H]`, or `[H]`.
    pub c: Tensor,
}

/// What one layer and direction reads beside its parameters.
pub(super) struct Inputs<'a> {
    /// `[T, B, I]`
    pub x: &'a Tensor,
    /// `[B, P]` and `[B, H]`; zeros where there is none.
    pub initial: Option<LstmState>,
    /// `[B]`
    pub lengths: Option<&'a Tensor>,
    /// `[T, B, H]` or `[B, H]`
    pub mask: Option<Tensor>,
}

/// What it gives.
pub(super) struct Outputs {
    /// Every h, `[T, B, P]`; past a row's length its last one.
    pub h: Tensor,
    /// Every c, `[T, B, H]`; past a row's length its last one.
    pub c: Tensor,
    /// The final state.
    pub last: LstmState,
}

/// The path of the slots of a layer and direction.
pub(super) fn slots(name: &str, layer: usize, direction: Direction) -> String {
    format!("{name}.{layer}{}", if direction == Direction::Reverse { ".reverse" } else { "" })
}

/// Records layer `layer` of the LSTM `name`, with slots below `place`.
pub(super) fn record(
    rec: &mut Recorder<'_>,
    (name, place, config): (&str, &str, &LstmConfig),
    (layer, direction): (usize, Direction),
    inputs: Inputs<'_>,
) -> Result<Outputs> {
    let Inputs { x, initial, lengths, mask } = inputs;
    let (outputs, hidden) = config.state_sizes(layer);
    let (steps, batch) = (x.shape()[0], x.shape()[1]);
    let names = ParameterNames::new(name, layer, direction);
    let weight_ih = rec.parameter(&names.weight_ih)?;
    let weight_hh = rec.parameter(&names.weight_hh)?;
    let biases = match config.bias {
        Bias::None => Vec::new(),
        Bias::One => vec![rec.parameter(&names.bias_ih)?],
        Bias::Two => vec![rec.parameter(&names.bias_ih)?, rec.parameter(&names.bias_hh)?],
    };
    let place = slots(place, layer, direction);
    let slot = |kind: &str| path(&place, kind);
    let gates = rec.activation(&slot("gates"), &[steps, batch, GATES * hidden])?;
    let h = rec.activation(&slot("h"), &[steps + 1, batch, outputs])?;
    let c = rec.activation(&slot("c"), &[steps + 1, batch, hidden])?;
    let projection = match config.proj_size {
        Some(_) => Some(Projection {
            weight_hr: rec.parameter(&names.weight_hr)?,
            m: rec.activation(&slot("m"), &[steps, batch, hidden])?,
        }),
        None => None,
    };
    let norm = match config.layer_norm {
        Some(_) => Some(Norm {
            weight: rec.parameter(&names.layer_norm)?,
            normalized: rec.activation(&slot("normalized"), &[steps, batch, NORMS * hidden + NORMS])?,
        }),
        None => None,
    };
    let recurrence = Recurrence {
        direction,
        options: CellOptions {
            forget_bias: config.forget_bias,
            coupled: config.coupled,
            cell_clip: config.cell_clip,
            output_clip: config.proj_clip,
            epsilon: config.layer_norm.unwrap_or(0.0),
        },
        lengths: lengths.cloned(),
        peephole: if config.peephole { Some(rec.parameter(&names.weight_peephole)?) } else { None },
        mask,
        projection,
        norm,
        ..Recurrence::new(direction, &weight_hh, &gates, &h, &c)
    };

    // the products of all inputs at once; only the recurrent product stays in the time loop
    matmul::record(rec, (x, false), (&weight_ih, true), &biases.iter().collect::<Vec<_>>(), (&gates, false))?;
    let first = direction.first_row(steps);
    let (h_first, c_first) = (h.row(first)?, c.row(first)?);
    match &initial {
        None => {
            rec.fill(&h_first, 0.0)?;
            rec.fill(&c_first, 0.0)?;
        }
        Some(state) => {
            for (from, to) in [(&state.h, &h_first), (&state.c, &c_first)] {
                if from.shape() != to.shape() {
                    let doing = format!("recording the initial state of `{place}`");
                    return Err(Error::shape(doing, format!("{:?}", to.shape()), from.shape()));
                }
                copy_columns::record(rec, (from, 0), (to, 0), to.columns(), false)?;
            }
        }
    }
    lstm_forward::record(rec, &recurrence)?;

    let cell = rec.note_cell(Cell {
        name: name.to_string(),
        layer,
        direction,
        x: x.clone(),
        gates: gates.clone(),
        h: h.clone(),
        c: c.clone(),
        weight_ih: weight_ih.clone(),
        weight_hh: weight_hh.clone(),
        gradients: None,
    });
    let last = direction.last_row(steps);
    let after = direction.row_after(0).min(1);
    let result = Outputs {
        h: h.narrow(after, steps)?,
        c: c.narrow(after, steps)?,
        last: LstmState { h: h.row(last)?, c: c.row(last)? },
    };

    let x = x.clone();
    rec.on_backward(move |rec| {
        if rec.gradient(&h).is_none() && rec.gradient(&c).is_none() {
            return Ok(());
        }
        let slot = |kind: &str| path(&place, kind);
        let to = Gradients {
            dh: rec.gradient_in_place(&h)?,
            dc: rec.gradient_in_place(&c)?,
            dgates: rec.activation(&slot("dgates"), gates.shape())?,
            dnormalized: match recurrence.norm {
                Some(_) => Some(rec.activation(&slot("dnormalized"), &[steps, batch, NORMS * hidden])?),
                None => None,
            },
        };
        lstm_backward::record(rec, &recurrence, &to)?;
        rec.note_cell_gradients(cell, [to.dgates.clone(), to.dh.clone(), to.dc.clone()]);

        contribute_products(rec, &to.dgates, &x, &weight_ih)?;
        // every h and c the recurrence read: all rows but the final state's; and all but the initial state's
        let before = direction.row_before(0).min(1);
        if let Some((dweight, accumulate)) = rec.contribute(&weight_hh)? {
            let h_before = h.narrow(before, steps)?;
            matmul::record(rec, (&to.dgates, true), (&h_before, false), &[], (&dweight, accumulate))?;
        }
        contribute_biases(rec, &slot("sum_dgates"), &to.dgates, &biases.iter().collect::<Vec<_>>())?;
        if let Some(Projection { weight_hr, m }) = &recurrence.projection
            && let Some((dweight, accumulate)) = rec.contribute(weight_hr)?
        {
            let dh_after = to.dh.narrow(after, steps)?;
            matmul::record(rec, (&dh_after, true), (m, false), &[], (&dweight, accumulate))?;
        }
        // of the pre-activations after gain and shift
        let dcell = to.dnormalized.as_ref().unwrap_or(&to.dgates);
        if let Some(peephole) = &recurrence.peephole
            && let Some((dweight, accumulate)) = rec.contribute(peephole)?
        {
            for (part, (gate, row)) in [(0, before), (1, before), (3, after)].into_iter().enumerate() {
                let c = c.narrow(row, steps)?;
                let to = (&dweight, part * hidden);
                sum_products::record(rec, (dcell, gate * hidden), (&c, 0), to, hidden, accumulate)?;
            }
        }
        if let (Some(Norm { weight, normalized }), Some(dnormalized)) = (&recurrence.norm, &to.dnormalized)
            && let Some((dweight, accumulate)) = rec.contribute(weight)?
        {
            let width = NORMS * hidden;
            sum_products::record(rec, (dnormalized, 0), (normalized, 0), (&dweight, 0), width, accumulate)?;
            let sums = rec.activation(&slot("sum_dnormalized"), &[width])?;
            sum_rows::record(rec, dnormalized, &sums, false)?;
            copy_columns::record(rec, (&sums, 0), (&dweight.row(1)?, 0), width, accumulate)?;
        }
        if let Some(state) = &initial {
            copy_columns::contribute(rec, &to.dh.row(first)?, &state.h)?;
            copy_columns::contribute(rec, &to.dc.row(first)?, &state.c)?;
        }
        Ok(())
    });
    Ok(result)
}
