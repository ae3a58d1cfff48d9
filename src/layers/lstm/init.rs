//! Initial values of an LSTM's parameters.

use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::weights::tables::{Part, Sizes};
use serde::{Deserialize, Serialize};

/// How a matrix is filled.
///
/// [`Init`] has an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Fill {
    /// Uniform in +-1/sqrt(H), as PyTorch's `nn.LSTM`.
    #[default]
    Uniform,
    /// Uniform in +-sqrt(6 / (rows + columns)) (Glorot and Bengio 2010), over the four gates together as in Keras.
    Glorot,
    /// Orthonormal columns (Saxe et al. 2014), over the four gates together as in Keras: the matrix keeps lengths.
    Orthogonal,
}

/// Initial values of an LSTM's parameters; PyTorch's at first.
///
/// ```
/// use everloop::layers::{Fill, Init, LstmConfig};
/// use everloop::{Parameters, Rng};
/// # fn main() -> everloop::Result<()> {
/// let mut parameters = Parameters::new();
/// let init = Init { input: Fill::Glorot, recurrent: Fill::Orthogonal, forget_bias: Some(1.0) };
/// LstmConfig::new(3, 2).with_init(init).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
/// assert_eq!(parameters.get("lstm.bias_ih_l0")?, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Init {
    /// `weight_ih` and `weight_hr`. With [`Fill::Uniform`] the biases are as in PyTorch, otherwise 0 as in Keras.
    pub input: Fill,
    /// `weight_hh`.
    pub recurrent: Fill,
    /// Sum of the biases of every forget gate, of all layers and directions. (The option `forget_bias` of the
    /// configuration is a constant beside the biases; this one is trained.)
    pub forget_bias: Option<f64>,
}

/// PyTorch's bound of uniform values.
pub(super) fn bound(hidden: usize) -> f64 {
    1.0 / (hidden as f64).sqrt()
}

impl Init {
    /// Keras: Glorot for the inputs, orthogonal for the recurrent part, biases 0 but for the forget gate's 1.
    pub fn keras() -> Self {
        Init { input: Fill::Glorot, recurrent: Fill::Orthogonal, forget_bias: Some(1.0) }
    }

    pub(super) fn validate(&self, has_bias: bool) -> Result<()> {
        match self.forget_bias {
            Some(value) if !value.is_finite() => {
                Err(Error::config("the initial forget bias of an LSTM", "a finite number", value))
            }
            Some(_) if !has_bias => Err(Error::config("the initial forget bias of an LSTM", "a bias vector", "none")),
            _ => Ok(()),
        }
    }

    /// The values of a part of one layer and direction.
    pub(super) fn values(&self, rng: &mut Rng, part: Part, sizes: &Sizes) -> Vec<f64> {
        let (shape, hidden) = (part.shape(sizes), sizes.hidden);
        let (rows, columns) = (shape[0], shape[1..].iter().product());
        match part {
            Part::WeightIh | Part::Projection => fill(self.input, rng, rows, columns, hidden),
            Part::WeightHh => fill(self.recurrent, rng, rows, columns, hidden),
            Part::BiasIh | Part::BiasHh => {
                let drawn = self.input == Fill::Uniform;
                let mut values = if drawn { rng.vector(rows, bound(hidden)) } else { vec![0.0; rows] };
                if let Some(sum) = self.forget_bias {
                    values[hidden..2 * hidden].fill(if part == Part::BiasIh { sum } else { 0.0 });
                }
                values
            }
            Part::Peephole => rng.vector(rows, bound(hidden)),
            // gains, then shifts
            Part::Norm => [vec![1.0; columns], vec![0.0; columns]].concat(),
        }
    }
}

fn fill(how: Fill, rng: &mut Rng, rows: usize, columns: usize, hidden: usize) -> Vec<f64> {
    match how {
        Fill::Uniform => rng.vector(rows * columns, bound(hidden)),
        Fill::Glorot => rng.vector(rows * columns, (6.0 / (rows + columns) as f64).sqrt()),
        // of a wide matrix the rows are orthonormal
        Fill::Orthogonal if rows < columns => {
            let tall = orthogonal(rng, columns, rows);
            (0..rows * columns).map(|e| tall[e % columns * rows + e / columns]).collect()
        }
        Fill::Orthogonal => orthogonal(rng, rows, columns),
    }
}

/// Random orthonormal columns, `rows >= columns`: Gram-Schmidt over normal random vectors, each twice against rounding.
fn orthogonal(rng: &mut Rng, rows: usize, columns: usize) -> Vec<f64> {
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(columns);
    while basis.len() < columns {
        let mut v: Vec<f64> = (0..rows).map(|_| rng.normal()).collect();
        for _ in 0..2 {
            for b in &basis {
                let along: f64 = v.iter().zip(b).map(|(v, b)| v * b).sum();
                v.iter_mut().zip(b).for_each(|(v, b)| *v -= along * b);
            }
        }
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        // a vector that lay within the others is drawn again
        if norm > 1e-6 {
            basis.push(v.into_iter().map(|v| v / norm).collect());
        }
    }
    (0..rows * columns).map(|e| basis[e % columns][e / columns]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(input: usize, hidden: usize) -> Sizes {
        Sizes { directions: 1, input, hidden, outputs: hidden }
    }

    #[test]
    fn orthogonal_columns_and_rows() {
        for (rows, columns) in [(20, 5), (4, 1), (3, 7)] {
            let m = fill(Fill::Orthogonal, &mut Rng::new(3), rows, columns, 5);
            let at = |r: usize, c: usize| m[r * columns + c];
            let short = rows.min(columns);
            for (a, b) in (0..short).flat_map(|a| (0..short).map(move |b| (a, b))) {
                let product: f64 = match rows < columns {
                    true => (0..columns).map(|k| at(a, k) * at(b, k)).sum(),
                    false => (0..rows).map(|k| at(k, a) * at(k, b)).sum(),
                };
                assert!((product - (a == b) as u8 as f64).abs() < 1e-12, "{rows}x{columns}: {a} {b} {product}");
            }
        }
    }

    #[test]
    fn glorot_stays_within_its_bound_and_fills_it() {
        let values = Init::keras().values(&mut Rng::new(1), Part::WeightIh, &sizes(10, 16));
        let (bound, most) = ((6.0f64 / 74.0).sqrt(), values.iter().fold(0.0f64, |most, v| most.max(v.abs())));
        assert!(most <= bound && most > 0.95 * bound);
        let variance = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
        assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.15);
    }

    #[test]
    fn the_forget_biases_sum_to_what_was_asked() {
        let init = Init { forget_bias: Some(1.5), ..Init::default() };
        let first = init.values(&mut Rng::new(1), Part::BiasIh, &sizes(1, 3));
        let second = init.values(&mut Rng::new(2), Part::BiasHh, &sizes(1, 3));
        for j in 0..12 {
            assert_eq!(first[j] + second[j] == 1.5, (3..6).contains(&j));
        }
        assert!(init.validate(false).is_err());
    }
}
