//! An LSTM's parameters by the textbook's names, to look at and to set: `W_fx` instead of a block of rows of
//! `weight_ih_l0`.
//!
//! The gradient of an array is the same [part] of the gradient of the [parameter] that holds it:
//!
//! ```
//! use everloop::weights::textbook;
//! use everloop::{Device, Direction, Parameters, Recorder, Rng, Store, Workspace, layers::LstmConfig, loss};
//! # fn main() -> everloop::Result<()> {
//! let mut parameters = Parameters::new();
//! let lstm = LstmConfig::new(3, 2).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
//! let at = (0, Direction::Forward);
//! textbook::set(&mut parameters, &lstm, at, "b_f", &[1.0, 1.0])?;
//! assert_eq!(parameters.get("lstm.bias_ih_l0")?[2..4], textbook::get(&parameters, &lstm, at, "b_f")?);
//!
//! let mut rec = Recorder::new(&parameters);
//! let (x, target) = (rec.input("x", &[4, 1, 3])?, rec.input("target", &[4, 1, 2])?);
//! let y = lstm.record(&mut rec, &x, None)?.output;
//! let loss = loss::mean_squared_error(&mut rec, "loss", &y, &target)?;
//! rec.backward(&loss)?;
//! let weight = rec.parameter(&textbook::parameter(&lstm, at, "W_fx")?)?;
//! let gradient = rec.gradient(&weight).expect("it is trained");
//! let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
//! workspace.write(&x, &[0.5; 12])?;
//! workspace.write(&target, &[0.25; 8])?;
//! workspace.run()?;
//! let gradient = textbook::part(&lstm, at, "W_fx", &workspace.read::<f64>(&gradient)?)?; // [H, I]
//! assert_eq!(gradient.len(), 6);
//! # Ok(()) }
//! ```

use super::layer::{check_finite, parameter as name_of, sum};
use super::layout::Layout;
use super::message;
use super::tables::Part;
use crate::error::{Result, ensure};
use crate::layers::Lstm;
use crate::parameters::Parameters;
use crate::time::Direction;

/// The textbook's arrays: input weights, recurrent weights, biases.
pub const TEXTBOOK: [&str; 12] =
    ["W_ix", "W_fx", "W_ox", "W_cx", "W_ih", "W_fh", "W_oh", "W_ch", "b_i", "b_f", "b_o", "b_c"];

/// What this module knows beside the [textbook's arrays](TEXTBOOK), where an LSTM has it: the projection `[P, H]` (h
/// from the cell's output m), the peepholes `[H]`, gains and shifts of a layer norm `[H]` (g the candidate, c the new
/// cell).
pub const PARTS: [&str; 14] = [
    "W_hm", "W_ic", "W_fc", "W_oc", "gamma_i", "gamma_f", "gamma_g", "gamma_o", "gamma_c", "beta_i", "beta_f",
    "beta_g", "beta_o", "beta_c",
];

/// The values of one of the [textbook's arrays](TEXTBOOK), or of the other [`PARTS`] of an LSTM, row-major. With a
/// projection `W_ih`, .. are `[H, P]`. A bias is the sum of PyTorch's two, without the model's `forget_bias`.
///
/// # Errors
///
/// An unknown name, no such layer, an LSTM without this part.
pub fn get(parameters: &Parameters, lstm: &Lstm, at: (usize, Direction), name: &str) -> Result<Vec<f64>> {
    let (held, block) = place(name)?;
    let mut values = block_of(held, block, parameters.get(&name_of(lstm, at, held))?).to_vec();
    if let Some(second) = second(lstm, at, held) {
        let second = block_of(held, block, parameters.get(&second)?);
        values.iter_mut().zip(second).for_each(|(a, b)| *a = sum(*a, *b));
    }
    Ok(values)
}

/// Sets one of the textbook's arrays, or of the other [`PARTS`]. A bias goes into `bias_ih`, and its part of `bias_hh`
/// becomes 0.
///
/// # Errors
///
/// As [`get`], a wrong number of values, a value that is not finite; nothing is set then.
pub fn set(parameters: &mut Parameters, lstm: &Lstm, at: (usize, Direction), name: &str, values: &[f64]) -> Result<()> {
    let (held, block) = place(name)?;
    let first = name_of(lstm, at, held);
    let expected = block_of(held, block, parameters.get(&first)?).len();
    let count = values.len();
    ensure!(count == expected, message::tensor(name, format!("{count} values, expected {expected}")));
    check_finite(name, values)?;
    let zeros = vec![0.0; expected];
    for (parameter, values) in [(Some(first), values), (second(lstm, at, held), &zeros[..])] {
        let Some(parameter) = parameter else { continue };
        let mut all = parameters.get(&parameter)?.to_vec();
        all[block * expected..(block + 1) * expected].copy_from_slice(values);
        parameters.set(&parameter, &all)?;
    }
    Ok(())
}

/// The name of the parameter that holds an array; for a bias that of `bias_ih`, and both of PyTorch's have the gradient
/// of their sum.
///
/// # Errors
///
/// An unknown name. Whether the LSTM has this layer and part is told by who looks the parameter up.
pub fn parameter(lstm: &Lstm, at: (usize, Direction), name: &str) -> Result<String> {
    Ok(name_of(lstm, at, place(name)?.0))
}

/// The elements of an array among all `values` of its [parameter], or of the parameter's gradient, row-major.
///
/// # Errors
///
/// An unknown name, an LSTM without this part, another number of values than the parameter has.
pub fn part(lstm: &Lstm, at: (usize, Direction), name: &str, values: &[f64]) -> Result<Vec<f64>> {
    let (held, block) = place(name)?;
    let len = held.shape(&lstm.config.sizes(at.0)).iter().product::<usize>();
    if !lstm.config.has(held) || values.is_empty() || values.len() != len {
        let parameter = name_of(lstm, at, held);
        let cause = format!("{} values are not those of `{}`", values.len(), message::escape(&parameter));
        return Err(message::tensor(name, cause));
    }
    Ok(block_of(held, block, values).to_vec())
}

/// Which block of which part an array is.
fn place(name: &str) -> Result<(Part, usize)> {
    let rows = &Layout::Textbook { forget_bias: 0.0 }.table().rows;
    if let Some(row) = rows.iter().find(|row| row.names.contains(&name)) {
        return Ok((row.parts[0], row.blocks[0]));
    }
    match PARTS.iter().position(|part| *part == name) {
        Some(0) => Ok((Part::Projection, 0)),
        Some(n @ 1..4) => Ok((Part::Peephole, n - 1)),
        Some(n) => Ok((Part::Norm, n - 4)),
        None => {
            let cause = format!("expected one of {} {}", TEXTBOOK.join(" "), PARTS.join(" "));
            Err(message::tensor(name, cause))
        }
    }
}

fn block_of(part: Part, block: usize, values: &[f64]) -> &[f64] {
    let len = values.len() / part.blocks();
    &values[block * len..(block + 1) * len]
}

/// The parameter that is added to the first one.
fn second(lstm: &Lstm, at: (usize, Direction), part: Part) -> Option<String> {
    let two = part == Part::BiasIh && lstm.config.has(Part::BiasHh);
    two.then(|| name_of(lstm, at, Part::BiasHh))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_names() {
        let layout = Layout::Textbook { forget_bias: 0.0 };
        assert_eq!(layout.names(), TEXTBOOK);
        assert!(TEXTBOOK.iter().chain(&PARTS).all(|name| place(name).is_ok()));
    }
}
