//! The arrays of every framework as tables, and the two things that walk them: [`Table::solve`] tells the sizes from
//! shapes, [`Row::runs`] says where each element of an array lies in ours.
//!
//! Whoever reads, writes, surveys or reports a layout does it from these rows; gate orders stand nowhere else.

use super::message;
use Part::*;

/// A parameter of one layer and direction, in our layout. Its rows are blocks: one for each gate, for instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// `[4H, I]`
    WeightIh,
    /// `[4H, P]`
    WeightHh,
    /// `[4H]`
    BiasIh,
    /// `[4H]`
    BiasHh,
    /// `[P, H]`
    Projection,
    /// `[3H]`
    Peephole,
    /// `[2, 5H]`
    Norm,
}

/// One layer and direction, with P = H where there is no projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub directions: usize,
    pub input: usize,
    pub hidden: usize,
    pub outputs: usize,
}

impl Part {
    /// In the order of [`PYTORCH`]'s rows.
    pub const ALL: [Part; 7] = [WeightIh, WeightHh, BiasIh, BiasHh, Projection, Peephole, Norm];

    /// Its name, PyTorch's where PyTorch has one.
    pub fn kind(self) -> &'static str {
        PYTORCH[self as usize].names[0]
    }

    /// The letters of its blocks.
    fn letters(self) -> &'static str {
        match self {
            WeightIh | WeightHh | BiasIh | BiasHh => "ifgo",
            Projection => "m",
            Peephole => "ifo",
            Norm => "ifgocifgoc",
        }
    }

    /// How many blocks of rows it has.
    pub fn blocks(self) -> usize {
        self.letters().len()
    }

    /// Rows of one block.
    fn rows(self, sizes: &Sizes) -> usize {
        if self == Projection { sizes.outputs } else { sizes.hidden }
    }

    /// Columns; `None` for a vector.
    fn columns(self, sizes: &Sizes) -> Option<usize> {
        match self {
            WeightIh => Some(sizes.input),
            WeightHh => Some(sizes.outputs),
            Projection => Some(sizes.hidden),
            BiasIh | BiasHh | Peephole | Norm => None,
        }
    }

    /// Our shape.
    pub fn shape(self, sizes: &Sizes) -> Vec<usize> {
        PYTORCH[self as usize].shape(sizes)
    }

    /// Whether sizes are told by arrays that hold it.
    fn tells(self) -> bool {
        matches!(self, WeightIh | WeightHh | Projection)
    }

    /// Whether a layer without it is one with zeros.
    pub fn may_be_zero(self) -> bool {
        matches!(self, BiasIh | BiasHh | Peephole)
    }

    /// Words for messages.
    pub fn words(self) -> &'static str {
        match self {
            WeightIh | WeightHh => "weights",
            BiasIh | BiasHh => "biases",
            Projection => "a projection",
            Peephole => "peepholes",
            Norm => "a layer norm",
        }
    }
}

/// How an array lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `[rows, columns]`, its parts side by side.
    Matrix,
    /// `[columns, rows]`.
    Transposed,
    /// `[rows]`, its parts one behind the other.
    Vector,
    /// `[2, rows / 2]`.
    Halves,
}

/// One array of a layout.
#[derive(Debug)]
pub(super) struct Row {
    /// Its names; the first is the one that is written.
    pub names: &'static [&'static str],
    form: Form,
    /// What of ours it holds.
    pub parts: &'static [Part],
    /// Which blocks of each part, in the array's order.
    pub blocks: &'static [usize],
}

/// The arrays of one layer in a framework.
#[derive(Debug)]
pub(super) struct Table {
    pub name: &'static str,
    /// Letters of the gates, in the framework's order.
    pub gates: &'static str,
    pub rows: &'static [Row],
    /// Whether arrays have an axis for the directions in front.
    pub directed: bool,
    /// Whether a layer norm stands in the place of the biases.
    pub norm_or_bias: bool,
    pub bias_rule: &'static str,
}

const fn row(names: &'static [&'static str], form: Form, parts: &'static [Part], blocks: &'static [usize]) -> Row {
    Row { names, form, parts, blocks }
}

use Form::{Halves, Matrix, Transposed, Vector};

pub(super) const OUTSIDE: &str = "one vector: bias_ih; the forget bias stands outside";
const IFGO: &[usize] = &[0, 1, 2, 3];
const IGFO: &[usize] = &[0, 2, 1, 3];
const IOFG: &[usize] = &[0, 3, 1, 2];
const FIGO: &[usize] = &[1, 0, 2, 3];

static PYTORCH: [Row; 7] = [
    row(&["weight_ih"], Matrix, &[WeightIh], IFGO),
    row(&["weight_hh"], Matrix, &[WeightHh], IFGO),
    row(&["bias_ih"], Vector, &[BiasIh], IFGO),
    row(&["bias_hh"], Vector, &[BiasHh], IFGO),
    row(&["weight_hr"], Matrix, &[Projection], &[0]),
    row(&["weight_peephole"], Vector, &[Peephole], &[0, 1, 2]),
    row(&["layer_norm"], Halves, &[Norm], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
];

pub(super) static TABLES: [Table; 6] = [
    Table {
        name: "PyTorch",
        gates: "i,f,g,o",
        rows: &PYTORCH,
        directed: false,
        norm_or_bias: false,
        bias_rule: "two vectors",
    },
    Table {
        name: "Keras",
        gates: "i,f,c,o",
        rows: &[
            row(&["kernel"], Transposed, &[WeightIh], IFGO),
            row(&["recurrent_kernel"], Transposed, &[WeightHh], IFGO),
            row(&["bias"], Vector, &[BiasIh], IFGO),
        ],
        directed: false,
        norm_or_bias: false,
        bias_rule: "one vector: bias_ih",
    },
    Table {
        name: "TensorFlow",
        gates: "i,j,f,o",
        rows: &[
            row(&["kernel"], Transposed, &[WeightIh, WeightHh], IGFO),
            row(&["bias"], Vector, &[BiasIh], IGFO),
            row(&["projection/kernel"], Transposed, &[Projection], &[0]),
            row(&["w_i_diag"], Vector, &[Peephole], &[0]),
            row(&["w_f_diag"], Vector, &[Peephole], &[1]),
            row(&["w_o_diag"], Vector, &[Peephole], &[2]),
            // of the variables, and as they stand in checkpoints
            row(&["gamma_input", "input/gamma"], Vector, &[Norm], &[0]),
            row(&["gamma_forget", "forget/gamma"], Vector, &[Norm], &[1]),
            row(&["gamma_transform", "transform/gamma"], Vector, &[Norm], &[2]),
            row(&["gamma_output", "output/gamma"], Vector, &[Norm], &[3]),
            row(&["gamma_state", "state/gamma"], Vector, &[Norm], &[4]),
            row(&["beta_input", "input/beta"], Vector, &[Norm], &[5]),
            row(&["beta_forget", "forget/beta"], Vector, &[Norm], &[6]),
            row(&["beta_transform", "transform/beta"], Vector, &[Norm], &[7]),
            row(&["beta_output", "output/beta"], Vector, &[Norm], &[8]),
            row(&["beta_state", "state/beta"], Vector, &[Norm], &[9]),
        ],
        directed: false,
        norm_or_bias: true,
        bias_rule: OUTSIDE,
    },
    Table {
        name: "ONNX",
        gates: "i,o,f,c",
        rows: &[
            row(&["W"], Matrix, &[WeightIh], IOFG),
            row(&["R"], Matrix, &[WeightHh], IOFG),
            row(&["B"], Vector, &[BiasIh, BiasHh], IOFG),
            row(&["P"], Vector, &[Peephole], &[0, 2, 1]),
        ],
        directed: true,
        norm_or_bias: false,
        bias_rule: "two vectors in one array",
    },
    Table {
        name: "Deep-Breathe",
        gates: "f,i,c,o",
        rows: &[
            row(&["W"], Matrix, &[WeightIh, WeightHh], FIGO),
            row(&["b"], Vector, &[BiasIh], FIGO),
            row(&["proj"], Transposed, &[Projection], &[0]),
            row(&["p_i"], Vector, &[Peephole], &[0]),
            row(&["p_f"], Vector, &[Peephole], &[1]),
            row(&["p_o"], Vector, &[Peephole], &[2]),
            row(&["ln_i.gamma"], Vector, &[Norm], &[0]),
            row(&["ln_f.gamma"], Vector, &[Norm], &[1]),
            row(&["ln_g.gamma"], Vector, &[Norm], &[2]),
            row(&["ln_o.gamma"], Vector, &[Norm], &[3]),
            row(&["ln_c.gamma"], Vector, &[Norm], &[4]),
            row(&["ln_i.beta"], Vector, &[Norm], &[5]),
            row(&["ln_f.beta"], Vector, &[Norm], &[6]),
            row(&["ln_g.beta"], Vector, &[Norm], &[7]),
            row(&["ln_o.beta"], Vector, &[Norm], &[8]),
            row(&["ln_c.beta"], Vector, &[Norm], &[9]),
        ],
        directed: false,
        norm_or_bias: true,
        bias_rule: OUTSIDE,
    },
    Table {
        name: "textbook",
        gates: "i,f,o,c",
        rows: &[
            row(&["W_ix"], Matrix, &[WeightIh], &[0]),
            row(&["W_fx"], Matrix, &[WeightIh], &[1]),
            row(&["W_ox"], Matrix, &[WeightIh], &[3]),
            row(&["W_cx"], Matrix, &[WeightIh], &[2]),
            row(&["W_ih"], Matrix, &[WeightHh], &[0]),
            row(&["W_fh"], Matrix, &[WeightHh], &[1]),
            row(&["W_oh"], Matrix, &[WeightHh], &[3]),
            row(&["W_ch"], Matrix, &[WeightHh], &[2]),
            row(&["b_i"], Vector, &[BiasIh], &[0]),
            row(&["b_f"], Vector, &[BiasIh], &[1]),
            row(&["b_o"], Vector, &[BiasIh], &[3]),
            row(&["b_c"], Vector, &[BiasIh], &[2]),
        ],
        directed: false,
        norm_or_bias: false,
        bias_rule: OUTSIDE,
    },
];

/// What does not fit: the place of a row, and the cause.
pub(super) type Misfit = (usize, String);

pub(super) const NORM_OR_BIAS: &str = "a layer norm stands in the place of the biases";

/// Elements that follow each other in a part of ours, and lie `step` apart in the array.
pub(super) struct Run {
    pub part: Part,
    pub ours: std::ops::Range<usize>,
    theirs: usize,
    step: usize,
}

impl Run {
    /// From the array into ours.
    pub fn read(&self, ours: &mut [f64], theirs: &[f64]) {
        let theirs = theirs[self.theirs..].iter().step_by(self.step);
        ours[self.ours.clone()].iter_mut().zip(theirs).for_each(|(to, from)| *to = *from);
    }

    /// From ours into the array.
    pub fn write(&self, ours: &[f64], theirs: &mut [f64]) {
        let theirs = theirs[self.theirs..].iter_mut().step_by(self.step);
        theirs.zip(&ours[self.ours.clone()]).for_each(|(to, from)| *to = *from);
    }
}

impl Row {
    fn is_vector(&self) -> bool {
        matches!(self.form, Vector | Halves)
    }

    /// Rows and columns of one direction. Of a vector a row is a block.
    fn extent(&self, sizes: &Sizes) -> [usize; 2] {
        match self.is_vector() {
            true => [self.parts.len() * self.blocks.len(), sizes.hidden],
            false => {
                let columns = self.parts.iter().filter_map(|p| p.columns(sizes));
                let columns = columns.fold(0usize, |sum, c| sum.saturating_add(c));
                [self.parts[0].rows(sizes).saturating_mul(self.blocks.len()), columns]
            }
        }
    }

    /// The shape, without an axis for directions.
    pub fn shape(&self, sizes: &Sizes) -> Vec<usize> {
        let [rows, columns] = self.extent(sizes);
        match self.form {
            Matrix => vec![rows, columns],
            Transposed => vec![columns, rows],
            Vector => vec![rows.saturating_mul(columns)],
            Halves => vec![2, (rows / 2).saturating_mul(columns)],
        }
    }

    /// Where the elements of one direction lie: this is the one place that knows how arrays and parts correspond.
    pub fn runs(&self, sizes: &Sizes, direction: usize) -> Vec<Run> {
        let [rows, columns] = self.extent(sizes);
        let start = direction * rows * columns;
        // of the part: its first row and column in the array
        let (mut top, mut left, mut runs) = (0, 0, Vec::new());
        for part in self.parts {
            let (lines, len) = match part.columns(sizes) {
                Some(columns) => (part.rows(sizes), columns),
                None => (1, sizes.hidden),
            };
            for (place, block) in self.blocks.iter().enumerate() {
                for line in 0..lines {
                    let (row, ours) = (top + place * lines + line, (block * lines + line) * len);
                    let (theirs, step) = match self.form {
                        Transposed => (start + left * rows + row, rows),
                        _ => (start + row * columns + left, 1),
                    };
                    runs.push(Run { part: *part, ours: ours..ours + len, theirs, step });
                }
            }
            match self.is_vector() {
                true => top += self.blocks.len(),
                false => left += len,
            }
        }
        runs
    }

    /// Each axis of one direction as a sum of sizes: how often it has I, H and P.
    fn axes(&self) -> Vec<[usize; 3]> {
        // shapes are linear in the sizes, so those of units are the factors (but for the 2 of halves, which tell none)
        let unit = |n: usize| {
            self.shape(&Sizes {
                directions: 1,
                input: (n == 0) as usize,
                hidden: (n == 1) as usize,
                outputs: (n == 2) as usize,
            })
        };
        let [input, hidden, outputs] = [0, 1, 2].map(unit);
        (0..input.len()).map(|axis| [input[axis], hidden[axis], outputs[axis]]).collect()
    }

    /// Of the shape of a matrix, the axis of our rows.
    pub fn gate_rows(&self, shape: &[usize]) -> Option<usize> {
        if self.form == Transposed { shape.last().copied() } else { shape.first().copied() }
    }

    /// Whether no layer is without it.
    pub fn is_weight(&self) -> bool {
        matches!(self.parts[0], WeightIh | WeightHh)
    }
}

impl Table {
    pub fn holds(&self, part: Part) -> bool {
        self.rows.iter().any(|row| row.parts.contains(&part))
    }

    pub fn place(&self, name: &str) -> Option<usize> {
        self.rows.iter().position(|row| row.names.contains(&name))
    }

    /// `order[p]` is the place among i, f, g, o of the gate that the framework has at place p.
    pub fn order(&self) -> [usize; 4] {
        let mut order = self.rows.iter().filter(|r| r.parts[0] == WeightIh).flat_map(|r| r.blocks);
        [0; 4].map(|_| order.next().copied().unwrap_or(0))
    }

    /// The shape of a row, with the axis for directions where the table has one.
    pub fn shape(&self, row: &Row, sizes: &Sizes) -> Vec<usize> {
        let mut shape = row.shape(sizes);
        if self.directed {
            shape.insert(0, sizes.directions);
        }
        shape
    }

    /// The order of gates in an array, and how it becomes ours; `None` for a projection.
    pub fn gates(&self, row: &Row) -> Option<String> {
        let part = row.parts[0];
        if part == Projection {
            return None;
        }
        let ours: Vec<char> = part.letters().chars().collect();
        let mut theirs = ours.clone();
        if part.blocks() == 4 {
            self.order().into_iter().zip(self.gates.split(',')).for_each(|(block, letter)| {
                theirs[block] = letter.chars().next().unwrap_or('?');
            });
        }
        // gains and shifts of a layer norm have the same letters
        let blocks = &row.blocks[..row.blocks.len().min(5)];
        let mut sorted = blocks.to_vec();
        sorted.sort_unstable();
        let list = |letters: &[char], blocks: &[usize]| {
            blocks.iter().map(|b| letters[*b].to_string()).collect::<Vec<_>>().join(",")
        };
        let (theirs, ours) = (list(&theirs, blocks), list(&ours, &sorted));
        Some(if theirs == ours { ours } else { format!("{theirs} -> {ours}") })
    }

    /// The sizes that arrays of these shapes have; `shape` knows those that are there by the place of their row. Errors:
    /// sizes that do not fit together, a weight that is missing, a part of which only some arrays are there.
    pub fn solve<'a>(&self, shape: impl Fn(usize) -> Option<&'a [usize]>) -> Result<Sizes, Misfit> {
        let there = |place: &usize| shape(*place).is_some();
        let misfit = |place: usize, cause: String| Err((place, cause));
        let projected = (0..self.rows.len()).any(|n| self.rows[n].parts[0] == Projection && there(&n));
        let telling = |(n, row): &(usize, &Row)| row.parts[0].tells() && (row.is_weight() || there(n));
        let mut equations: Vec<([usize; 3], usize)> = Vec::new();
        let mut directions = None;
        for (place, row) in self.rows.iter().enumerate().filter(telling) {
            let (axes, found) = (row.axes(), shape(place).unwrap_or_default());
            let (lead, found) = found.split_at((self.directed && !found.is_empty()) as usize);
            if axes.len() != found.len() {
                let axes = if self.directed { "three" } else { "two" };
                return misfit(place, format!("is missing, or has not {axes} axes"));
            }
            let lead = lead.first().copied().unwrap_or(1);
            if !(1..=2).contains(&lead) || *directions.get_or_insert(lead) != lead {
                return misfit(place, format!("has {lead} directions"));
            }
            if let ([WeightHh], false, [a, b]) = (row.parts, projected, found) {
                let (rows, hidden) = if row.form == Transposed { (*b, *a) } else { (*a, *b) };
                match row.blocks.len() {
                    4 if rows == hidden => return misfit(place, "one gate: a simple RNN, not an LSTM".into()),
                    4 if hidden.checked_mul(3) == Some(rows) => {
                        return misfit(place, "three gates: a GRU, not an LSTM".into());
                    }
                    _ => {}
                }
            }
            equations.extend(axes.into_iter().zip(found.iter().copied()));
        }
        let mut known = [0usize; 3];
        // I follows from H and P, and these from axes that have nothing else
        for _ in 0..3 {
            for (axis, size) in &equations {
                // without a projection P is H
                let axis = if projected { *axis } else { [axis[0], axis[1] + axis[2], 0] };
                let mut unknown = (0..3).filter(|n| axis[*n] > 0 && known[*n] == 0);
                let (Some(one), None) = (unknown.next(), unknown.next()) else { continue };
                let rest = (0..3).try_fold(*size, |rest, n| rest.checked_sub(axis[n].saturating_mul(known[n])));
                known[one] = rest.filter(|rest| rest % axis[one] == 0).map_or(known[one], |rest| rest / axis[one]);
            }
        }
        let [input, hidden, outputs] = if projected { known } else { [known[0], known[1], known[1]] };
        let sizes = Sizes { directions: directions.unwrap_or(1), input, hidden, outputs };
        for (place, row) in self.rows.iter().enumerate() {
            let Some(found) = shape(place) else { continue };
            let expected = self.shape(row, &sizes);
            if found == expected && known[..2].iter().all(|size| *size > 0) && outputs > 0 {
                continue;
            }
            let found = message::shape(found);
            return misfit(
                place,
                match row.parts[0] {
                    Projection => "shape does not fit".into(),
                    WeightIh | WeightHh if hidden == 0 => format!("shape {found} does not fit four gates"),
                    WeightIh | WeightHh => format!("shape {found} does not fit four gates of hidden size {hidden}"),
                    _ => format!("shape is not {}", message::shape(&expected)),
                },
            );
        }
        self.whole(there).map(|()| sizes)
    }

    /// Whether the arrays of each part are all there or none, and no two parts that exclude each other.
    fn whole(&self, there: impl Fn(&usize) -> bool) -> Result<(), Misfit> {
        let rows = |part: Part| (0..self.rows.len()).filter(move |n| self.rows[*n].parts[0] == part);
        for part in Part::ALL {
            if let (true, Some(missing)) = (rows(part).any(|n| there(&n)), rows(part).find(|n| !there(n))) {
                return Err((missing, "is missing, others of its kind are there".into()));
            }
        }
        let Some(bias) = rows(BiasIh).next() else { return Ok(()) };
        let found = |part: Part| rows(part).next().is_some_and(|place| there(&place));
        match (found(BiasIh), found(BiasHh), found(Norm)) {
            (false, true, _) => Err((bias, "is missing, others of its kind are there".into())),
            (true, _, true) if self.norm_or_bias => Err((bias, NORM_OR_BIAS.into())),
            _ => Ok(()),
        }
    }
}

/// PyTorch's name of a parameter in a stack: `weight_ih_l0_reverse` for the kind `weight_ih`.
pub(super) fn name_in_stack(kind: &str, layer: usize, reverse: bool) -> String {
    format!("{kind}_l{layer}{}", if reverse { REVERSE } else { "" })
}

/// Kind, layer and whether it is the reverse direction, of a name as [`name_in_stack`] makes them.
pub(super) fn kind_in_stack(name: &str) -> Option<(&str, usize, bool)> {
    let (kind, at) = name.rsplit_once("_l")?;
    let (number, reverse) = at.strip_suffix(REVERSE).map_or((at, false), |number| (number, true));
    number.bytes().all(|b| b.is_ascii_digit()).then_some((kind, number.parse().ok()?, reverse))
}

const REVERSE: &str = "_reverse";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_hold_every_block_of_their_parts_once() {
        for table in &TABLES {
            for part in Part::ALL.into_iter().filter(|part| table.holds(*part)) {
                let rows = table.rows.iter().filter(|row| row.parts.contains(&part));
                let mut blocks: Vec<usize> = rows.flat_map(|row| row.blocks).copied().collect();
                blocks.sort_unstable();
                assert!(blocks.into_iter().eq(0..part.blocks()), "{} {part:?}", table.name);
            }
        }
        assert!(Part::ALL.iter().all(|part| PYTORCH[*part as usize].parts == [*part]));
    }

    #[test]
    fn names_in_a_stack_are_read_as_they_are_written() {
        for reverse in [false, true] {
            assert_eq!(kind_in_stack(&name_in_stack("weight_ih", 12, reverse)), Some(("weight_ih", 12, reverse)));
        }
        assert!(
            ["weight_ih", "weight_ih_l", "weight_ih_lx", "weight_ih_l+1", "l0"]
                .iter()
                .all(|n| kind_in_stack(n).is_none())
        );
    }
}
