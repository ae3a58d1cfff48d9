//! One LSTM layer in one direction: the input product, the recurrence, and the way back.

use super::config::{LstmConfig, ParameterNames};
use crate::error::{Error, Result};
use crate::kernels::lstm_forward::GATES;
use crate::kernels::{copy_columns, lstm_backward, lstm_forward, matmul};
use crate::layers::dense::{contribute_biases, contribute_products};
use crate::layers::path;
use crate::plan::{Cell, Direction, Tensor};
use crate::recorder::Recorder;

/// The state of one layer and direction: h and c, each `[B, H]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LstmState {
    /// Hidden state.
    pub h: Tensor,
    /// Cell state.
    pub c: Tensor,
}

/// Records layer `layer` of the LSTM `name`, with slots below `place`, over `x [T, B, I]`; gives every h, `[T, B, H]`, and the final state.
pub(super) fn record(
    rec: &mut Recorder<'_>,
    (name, place, config): (&str, &str, &LstmConfig),
    (layer, direction): (usize, Direction),
    x: &Tensor,
    initial: Option<&LstmState>,
) -> Result<(Tensor, LstmState)> {
    let hidden = config.hidden_sizes[layer];
    let [steps, batch, _] = sizes(name, x, config.layer_input_size(layer))?;
    let names = ParameterNames::new(name, layer, direction);
    let weight_ih = rec.parameter(&names.weight_ih)?;
    let weight_hh = rec.parameter(&names.weight_hh)?;
    let biases = match config.bias {
        true => Some((rec.parameter(&names.bias_ih)?, rec.parameter(&names.bias_hh)?)),
        false => None,
    };
    let reverse = if direction == Direction::Reverse { ".reverse" } else { "" };
    let place = format!("{place}.{layer}{reverse}");
    let gates = rec.activation(&path(&place, "gates"), &[steps, batch, GATES * hidden])?;
    let h = rec.activation(&path(&place, "h"), &[steps + 1, batch, hidden])?;
    let c = rec.activation(&path(&place, "c"), &[steps + 1, batch, hidden])?;

    // the products of all inputs at once; only the recurrent product stays in the time loop
    let bias_ih = biases.as_ref().map(|(bias_ih, _)| bias_ih);
    matmul::record(rec, (x, false), (&weight_ih, true), bias_ih, (&gates, false))?;
    let first = direction.first_row(steps);
    let (h_first, c_first) = (h.row(first)?, c.row(first)?);
    match initial {
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
                copy_columns::record(rec, (from, 0), (to, 0), hidden, false)?;
            }
        }
    }
    let bias_hh = biases.as_ref().map(|(_, bias_hh)| bias_hh);
    lstm_forward::record(rec, direction, &weight_hh, bias_hh, config.forget_bias, &gates, &h, &c)?;

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
    let state = LstmState { h: h.row(last)?, c: c.row(last)? };
    let output = h.narrow(direction.row_after(0).min(1), steps)?;

    let (x, initial) = (x.clone(), initial.cloned());
    rec.on_backward(move |rec| {
        if rec.gradient(&h).is_none() && rec.gradient(&c).is_none() {
            return Ok(());
        }
        let dh = rec.gradient_in_place(&h)?;
        let dc = rec.gradient_in_place(&c)?;
        let dgates = rec.activation(&path(&place, "dgates"), gates.shape())?;
        lstm_backward::record(rec, direction, &weight_hh, &gates, &c, &dgates, &dh, &dc)?;
        rec.note_cell_gradients(cell, [dgates.clone(), dh.clone(), dc.clone()]);

        contribute_products(rec, &dgates, &x, &weight_ih)?;
        // every h the recurrence read: all rows but the final state's
        let h_before = h.narrow(direction.row_before(0).min(1), steps)?;
        if let Some((dweight, accumulate)) = rec.contribute(&weight_hh)? {
            matmul::record(rec, (&dgates, true), (&h_before, false), None, (&dweight, accumulate))?;
        }
        if let Some((bias_ih, bias_hh)) = &biases {
            contribute_biases(rec, &path(&place, "sum_dgates"), &dgates, &[bias_ih, bias_hh])?;
        }
        if let Some(state) = &initial {
            copy_columns::contribute(rec, &dh.row(first)?, &state.h)?;
            copy_columns::contribute(rec, &dc.row(first)?, &state.c)?;
        }
        Ok(())
    });
    Ok((output, state))
}

/// T, B, I of an input.
fn sizes(name: &str, x: &Tensor, input_size: usize) -> Result<[usize; 3]> {
    match x.shape() {
        [steps, batch, columns] if *columns == input_size => Ok([*steps, *batch, *columns]),
        other => {
            let wanted = format!("[T, B, {input_size}], time first");
            Err(Error::shape(format!("recording the input of the LSTM `{name}`"), wanted, other))
        }
    }
}
