//! The sizes of a layer from the shapes of its arrays, by any of the [tables](super::tables).

use super::message;
use super::tables::Part::{self, BiasHh, BiasIh, Norm, Projection, WeightHh, WeightIh};
use super::tables::{Axis, Sizes, Table};
use crate::error::ensure;

/// What does not fit: the place of a row, and the cause.
pub(super) type Misfit = (usize, String);

pub(super) const NORM_OR_BIAS: &str = "a layer norm stands in the place of the biases";
pub(super) const UNEVEN: &str = "is missing, others of its kind are there";

impl Table {
    /// The sizes that arrays of these shapes have; `shape` knows those that are there by the place of their row. Errors:
    /// sizes that do not fit together, a weight that is missing, a part of which only some arrays are there.
    pub fn solve<'a>(&self, shape: impl Fn(usize) -> Option<&'a [usize]>) -> Result<Sizes, Misfit> {
        let there = |place: &usize| shape(*place).is_some();
        let projected = (0..self.rows.len()).any(|n| self.rows[n].parts[0] == Projection && there(&n));
        let mut equations: Vec<(Axis, usize)> = Vec::new();
        // only weights and a projection tell sizes: of all else the shape follows
        for (place, row) in self.rows.iter().enumerate().filter(|(_, row)| row.parts[0].is_matrix()) {
            let found = shape(place).unwrap_or_default();
            let (fits, axes) = (found.len() == row.axes.len(), if self.directed() { "three" } else { "two" });
            let absent = !row.is_weight() && !there(&place);
            ensure!(fits || absent, (place, format!("is missing, or has not {axes} axes")));
            if let ([WeightHh], 4, false, Some([rows, hidden])) =
                (row.parts, row.blocks.len(), projected, row.matrix(found))
            {
                let gates = [(1, "one gate: a simple RNN, not an LSTM"), (3, "three gates: a GRU, not an LSTM")];
                if let Some((_, cause)) = gates.iter().find(|(gates, _)| hidden.checked_mul(*gates) == Some(rows)) {
                    return Err((place, cause.to_string()));
                }
            }
            equations.extend(row.axes.iter().copied().zip(found.iter().copied()));
        }
        let mut known = [1, !self.directed() as usize, 0, 0, 0];
        // I follows from H and P, and these from axes that have nothing else
        for _ in 0..3 {
            for (axis, size) in &equations {
                let axis = if projected { *axis } else { [axis[0], axis[1], axis[2], axis[3] + axis[4], 0] };
                let mut unknown = (0..5).filter(|n| axis[*n] > 0 && known[*n] == 0);
                let (Some(one), None) = (unknown.next(), unknown.next()) else { continue };
                let rest = (0..5).try_fold(*size, |rest, n| rest.checked_sub(axis[n].saturating_mul(known[n])));
                known[one] = rest.filter(|rest| rest % axis[one] == 0).map_or(0, |rest| rest / axis[one]);
            }
        }
        let [_, directions, input, hidden, outputs] = known;
        let sizes = Sizes { directions, input, hidden, outputs: if projected { outputs } else { hidden } };
        let fits = (1..=2).contains(&directions) && [input, hidden, sizes.outputs].iter().all(|size| *size > 0);
        for (place, row) in self.rows.iter().enumerate() {
            let (Some(found), expected) = (shape(place), row.shape(&sizes)) else { continue };
            if found != expected || !fits {
                let (found, expected) = (message::shape(found), message::shape(&expected));
                let cause = match row.parts[0] {
                    Projection => "shape does not fit".into(),
                    WeightIh | WeightHh if hidden == 0 => format!("shape {found} does not fit four gates"),
                    WeightIh | WeightHh => format!("shape {found} does not fit four gates of hidden size {hidden}"),
                    _ => format!("shape is not {expected}"),
                };
                return Err((place, cause));
            }
        }
        self.whole(there).map(|()| sizes)
    }

    /// Whether the arrays of each part are all there or none, and no two parts that exclude each other.
    fn whole(&self, there: impl Fn(&usize) -> bool) -> Result<(), Misfit> {
        let rows = |part: Part| (0..self.rows.len()).filter(move |n| self.rows[*n].parts[0] == part);
        for part in Part::ALL {
            if let (true, Some(missing)) = (rows(part).any(|n| there(&n)), rows(part).find(|n| !there(n))) {
                return Err((missing, UNEVEN.into()));
            }
        }
        let Some(bias) = rows(BiasIh).next() else { return Ok(()) };
        let found = |part: Part| rows(part).next().is_some_and(|place| there(&place));
        match (found(BiasIh), found(BiasHh), found(Norm)) {
            (false, true, _) => Err((bias, UNEVEN.into())),
            (true, _, true) if self.norm_or_bias() => Err((bias, NORM_OR_BIAS.into())),
            _ => Ok(()),
        }
    }
}
