//! The arrays of every framework as tables, and what walks them: [`Row::runs`] says where each element of an array lies
//! in ours, [`Table::solve`] tells the sizes from shapes.
//!
//! Whoever reads, writes, surveys or reports a layout does it from these rows; gate orders stand nowhere else.

use crate::time::Direction;
use Part::{BiasHh, BiasIh, Norm, Peephole, Projection, WeightHh, WeightIh};
use std::sync::LazyLock;

/// A parameter of one layer and direction, in our layout. Its rows are blocks: one for each gate, for instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    WeightIh,
    WeightHh,
    BiasIh,
    BiasHh,
    Projection,
    Peephole,
    Norm,
}

/// A line of a table: names of arrays, which share the blocks (a `|` before another name of the same array); the shape
/// of each, in I, H, P (= H without a projection) and D directions; which parts of ours they hold, matrices side by
/// side, vectors one behind the other; and which blocks of these, in the arrays' order.
type Line = (&'static str, &'static str, &'static [Part], &'static [usize]);

const IFGO: &[usize] = &[0, 1, 2, 3];
const IGFO: &[usize] = &[0, 2, 1, 3];
const IOFG: &[usize] = &[0, 3, 1, 2];
const IFOG: &[usize] = &[0, 1, 3, 2];
const FIGO: &[usize] = &[1, 0, 2, 3];
/// Of peepholes, to i, f, o.
const IFO: &[usize] = &[0, 1, 2];
/// Of a layer norm: gains of i, f, g, o, c, then shifts.
const NORM: &[usize] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
/// As TensorFlow's variables are named, and as they stand in its checkpoints.
const GAMMA_BETA: &str = "gamma_input|input/gamma gamma_forget|forget/gamma gamma_transform|transform/gamma \
    gamma_output|output/gamma gamma_state|state/gamma beta_input|input/beta beta_forget|forget/beta \
    beta_transform|transform/beta beta_output|output/beta beta_state|state/beta";
const LN: &str =
    "ln_i.gamma ln_f.gamma ln_g.gamma ln_o.gamma ln_c.gamma ln_i.beta ln_f.beta ln_g.beta ln_o.beta ln_c.beta";

/// Ours too: a row for each part, in the order of [`Part`].
const PYTORCH: &[Line] = &[
    ("weight_ih", "4H I", &[WeightIh], IFGO),
    ("weight_hh", "4H P", &[WeightHh], IFGO),
    ("bias_ih", "4H", &[BiasIh], IFGO),
    ("bias_hh", "4H", &[BiasHh], IFGO),
    ("weight_hr", "P H", &[Projection], &[0]),
    ("weight_peephole", "3H", &[Peephole], IFO),
    ("layer_norm", "2 5H", &[Norm], NORM),
];
const KERAS: &[Line] = &[
    ("kernel", "I 4H", &[WeightIh], IFGO),
    ("recurrent_kernel", "P 4H", &[WeightHh], IFGO),
    ("bias", "4H", &[BiasIh], IFGO),
];
const TENSORFLOW: &[Line] = &[
    ("kernel", "I+P 4H", &[WeightIh, WeightHh], IGFO),
    ("bias", "4H", &[BiasIh], IGFO),
    ("projection/kernel", "H P", &[Projection], &[0]),
    ("w_i_diag w_f_diag w_o_diag", "H", &[Peephole], IFO),
    (GAMMA_BETA, "H", &[Norm], NORM),
];
const ONNX: &[Line] = &[
    ("W", "D 4H I", &[WeightIh], IOFG),
    ("R", "D 4H P", &[WeightHh], IOFG),
    ("B", "D 8H", &[BiasIh, BiasHh], IOFG),
    ("P", "D 3H", &[Peephole], &[0, 2, 1]),
];
const DEEP_BREATHE: &[Line] = &[
    ("W", "4H I+P", &[WeightIh, WeightHh], FIGO),
    ("b", "4H", &[BiasIh], FIGO),
    ("proj", "H P", &[Projection], &[0]),
    ("p_i p_f p_o", "H", &[Peephole], IFO),
    (LN, "H", &[Norm], NORM),
];
const TEXTBOOK: &[Line] = &[
    ("W_ix W_fx W_ox W_cx", "H I", &[WeightIh], IFOG),
    ("W_ih W_fh W_oh W_ch", "H P", &[WeightHh], IFOG),
    ("b_i b_f b_o b_c", "H", &[BiasIh], IFOG),
];

pub(super) const OUTSIDE: &str = "one vector: bias_ih; the forget bias stands outside";

/// Name, gates in the framework's order and letters, what becomes of the biases, arrays.
pub(super) static TABLES: LazyLock<[Table; 6]> = LazyLock::new(|| {
    [
        Table::new("PyTorch", "i,f,g,o", "two vectors", PYTORCH),
        Table::new("Keras", "i,f,c,o", "one vector: bias_ih", KERAS),
        Table::new("TensorFlow", "i,j,f,o", OUTSIDE, TENSORFLOW),
        Table::new("ONNX", "i,o,f,c", "two vectors in one array", ONNX),
        Table::new("Deep-Breathe", "f,i,c,o", OUTSIDE, DEEP_BREATHE),
        Table::new("textbook", "i,f,o,c", OUTSIDE, TEXTBOOK),
    ]
});

/// The arrays of one layer in a framework.
#[derive(Debug)]
pub(super) struct Table {
    pub name: &'static str,
    pub gates: &'static str,
    pub bias_rule: &'static str,
    pub rows: Vec<Row>,
}

/// One array.
#[derive(Debug)]
pub(super) struct Row {
    /// The first one is written.
    pub names: Vec<&'static str>,
    pub axes: Vec<Axis>,
    pub parts: &'static [Part],
    pub blocks: &'static [usize],
}

/// Of 1, D, I, H and P how often they stand in a sum.
pub(super) type Axis = [usize; 5];

fn axis(text: &str) -> Axis {
    let mut sum = [0; 5];
    for term in text.split('+') {
        let symbol = term.chars().last().and_then(|c| "1DIHP".find(c)).unwrap_or(0);
        sum[symbol] += term.trim_end_matches(['D', 'I', 'H', 'P']).parse().unwrap_or(1);
    }
    sum
}

/// One layer in D directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub directions: usize,
    pub input: usize,
    pub hidden: usize,
    pub outputs: usize,
}

impl Sizes {
    /// Sizes of the file's tensors or of ours, so that only a shape that fits nothing saturates.
    fn sum(&self, axis: &Axis) -> usize {
        let known = [1, self.directions, self.input, self.hidden, self.outputs];
        axis.iter().zip(known).fold(0, |sum: usize, (n, size)| sum.saturating_add(n.saturating_mul(size)))
    }
}

impl Part {
    pub const ALL: [Part; 7] = [WeightIh, WeightHh, BiasIh, BiasHh, Projection, Peephole, Norm];

    fn row(self) -> &'static Row {
        &TABLES[0].rows[self as usize]
    }

    /// Its name, PyTorch's where PyTorch has one.
    pub fn kind(self) -> &'static str {
        self.row().names[0]
    }

    /// Our shape.
    pub fn shape(self, sizes: &Sizes) -> Vec<usize> {
        self.row().shape(sizes)
    }

    /// How many blocks of rows it has.
    pub fn blocks(self) -> usize {
        self.row().blocks.len()
    }

    /// Rows and columns of a block; of a vector it is one row.
    fn block(self, sizes: &Sizes) -> [usize; 2] {
        match self.shape(sizes)[..] {
            [rows, columns] if self.is_matrix() => [rows / self.blocks(), columns],
            _ => [1, sizes.hidden],
        }
    }

    pub fn is_matrix(self) -> bool {
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

/// Elements that follow each other in a part of ours, and lie `step` apart in the array.
pub(super) struct Run {
    pub part: Part,
    ours: std::ops::Range<usize>,
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
    pub fn shape(&self, sizes: &Sizes) -> Vec<usize> {
        self.axes.iter().map(|axis| sizes.sum(axis)).collect()
    }

    /// Whether no layer is without it.
    pub fn is_weight(&self) -> bool {
        matches!(self.parts[0], WeightIh | WeightHh)
    }

    /// Whether our rows are its columns.
    fn is_transposed(&self) -> bool {
        let rows = if self.parts[0] == Projection { "P".to_string() } else { format!("{}H", self.blocks.len()) };
        self.parts[0].is_matrix() && self.axes.last() == Some(&axis(&rows))
    }

    /// The sizes of the axis of our rows and of that of our columns in the shape of a matrix.
    pub fn matrix(&self, shape: &[usize]) -> Option<[usize; 2]> {
        let [.., a, b] = *shape else { return None };
        Some(if self.is_transposed() { [b, a] } else { [a, b] })
    }

    /// Where the elements of one direction lie: the one place that knows how arrays and parts correspond.
    pub fn runs(&self, sizes: &Sizes, direction: usize) -> Vec<Run> {
        let (matrix, transposed) = (self.parts[0].is_matrix(), self.is_transposed());
        let blocks: Vec<[usize; 2]> = self.parts.iter().map(|part| part.block(sizes)).collect();
        let rows = self.blocks.len() * if matrix { blocks[0][0] } else { blocks.len() };
        let columns = if matrix { blocks.iter().map(|[_, len]| len).sum() } else { sizes.hidden };
        let start = direction * rows * columns;
        // the part's first row and column in the array
        let (mut top, mut left, mut runs) = (0, 0, Vec::new());
        for (part, [lines, len]) in self.parts.iter().zip(blocks) {
            for (place, line) in (0..self.blocks.len()).flat_map(|place| (0..lines).map(move |line| (place, line))) {
                let (row, ours) = (top + place * lines + line, (self.blocks[place] * lines + line) * len);
                let (theirs, step) = if transposed { (left * rows + row, rows) } else { (row * columns + left, 1) };
                runs.push(Run { part: *part, ours: ours..ours + len, theirs: start + theirs, step });
            }
            *(if matrix { &mut left } else { &mut top }) += if matrix { len } else { self.blocks.len() };
        }
        runs
    }
}

impl Table {
    fn new(name: &'static str, gates: &'static str, bias_rule: &'static str, lines: &[Line]) -> Table {
        let rows = lines.iter().flat_map(|(names, shape, parts, blocks)| {
            let names: Vec<&str> = names.split_whitespace().collect();
            let blocks = blocks.chunks(blocks.len() / names.len());
            names.into_iter().zip(blocks).map(|(names, blocks)| Row {
                names: names.split('|').collect(),
                axes: shape.split(' ').map(axis).collect(),
                parts,
                blocks,
            })
        });
        Table { name, gates, bias_rule, rows: rows.collect() }
    }

    pub fn holds(&self, part: Part) -> bool {
        self.rows.iter().any(|row| row.parts.contains(&part))
    }

    /// Whether a layer norm stands in the place of the biases.
    pub fn norm_or_bias(&self) -> bool {
        self.holds(Norm) && !self.holds(BiasHh)
    }

    /// Whether arrays have an axis for the directions in front.
    pub fn directed(&self) -> bool {
        self.rows[0].axes[0] == axis("D")
    }

    pub fn place(&self, name: &str) -> Option<usize> {
        self.rows.iter().position(|row| row.names.contains(&name))
    }

    /// `order[p]` is the place among i, f, g, o of the gate that the framework has at place p.
    pub fn order(&self) -> [usize; 4] {
        let mut order = self.rows.iter().filter(|r| r.parts[0] == WeightIh).flat_map(|r| r.blocks);
        [0; 4].map(|_| order.next().copied().unwrap_or(0))
    }

    /// The order of gates in an array, and how it becomes ours; `None` for a projection.
    pub fn gates(&self, row: &Row) -> Option<String> {
        let letters = match row.parts[0] {
            Projection => return None,
            Peephole => "i,f,o",
            Norm => "i,f,g,o,c",
            _ => "i,f,g,o",
        };
        let ours = |block: usize| letters.split(',').nth(block % 5).unwrap_or("?");
        let theirs = |block: usize| match self.order().iter().position(|b| *b == block) {
            Some(place) if letters == "i,f,g,o" => self.gates.split(',').nth(place).unwrap_or("?"),
            _ => ours(block),
        };
        // gains and shifts of a layer norm have the same letters
        let blocks = &row.blocks[..row.blocks.len().min(5)];
        let mut sorted = blocks.to_vec();
        sorted.sort_unstable();
        let theirs: Vec<&str> = blocks.iter().map(|block| theirs(*block)).collect();
        let ours: Vec<&str> = sorted.into_iter().map(ours).collect();
        let (theirs, ours) = (theirs.join(","), ours.join(","));
        Some(if theirs == ours { ours } else { format!("{theirs} -> {ours}") })
    }
}

/// Weight and bias of a highway connection.
pub(crate) const HIGHWAY: [&str; 2] = ["weight_highway", "bias_highway"];

/// PyTorch's name of a parameter in a stack: `weight_ih_l0_reverse` for the kind `weight_ih`.
pub(crate) fn name_in_stack(kind: &str, layer: usize, direction: Direction) -> String {
    format!("{kind}_l{layer}{}", if direction == Direction::Reverse { REVERSE } else { "" })
}

/// Kind, layer and direction of a name as [`name_in_stack`] makes them.
pub(super) fn kind_in_stack(name: &str) -> Option<(&str, usize, Direction)> {
    let (kind, at) = name.rsplit_once("_l")?;
    let (number, direction) =
        at.strip_suffix(REVERSE).map_or((at, Direction::Forward), |number| (number, Direction::Reverse));
    number.bytes().all(|b| b.is_ascii_digit()).then_some((kind, number.parse().ok()?, direction))
}

const REVERSE: &str = "_reverse";

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes { directions: 2, input: 3, hidden: 5, outputs: 7 };

    #[test]
    fn every_element_of_an_array_is_one_of_ours_and_all_of_ours_are_there() {
        for table in &*TABLES {
            let mut ours = vec![Vec::new(); Part::ALL.len()];
            for row in &table.rows {
                let len = row.shape(&SIZES).iter().product::<usize>();
                let mut theirs = vec![0; len];
                for run in (0..if table.directed() { 2 } else { 1 }).flat_map(|d| row.runs(&SIZES, d)) {
                    (0..run.ours.len()).for_each(|n| theirs[run.theirs + n * run.step] += 1);
                    ours[run.part as usize].extend(run.ours);
                }
                assert!(theirs.iter().all(|times| *times == 1), "{} {:?}", table.name, row.names);
            }
            for part in Part::ALL.into_iter().filter(|part| table.holds(*part)) {
                let (mut found, len) = (std::mem::take(&mut ours[part as usize]), part.shape(&SIZES).iter().product());
                found.sort_unstable();
                let times = if table.directed() { 2 } else { 1 };
                assert!(
                    found.into_iter().eq((0..len).flat_map(|n| std::iter::repeat_n(n, times))),
                    "{} {part:?}",
                    table.name
                );
            }
        }
        assert!(Part::ALL.iter().all(|part| part.row().parts == [*part]));
    }

    #[test]
    fn names_in_a_stack_are_read_as_they_are_written() {
        for to in [Direction::Forward, Direction::Reverse] {
            assert_eq!(kind_in_stack(&name_in_stack("weight_ih", 12, to)), Some(("weight_ih", 12, to)));
        }
        let others = ["weight_ih", "weight_ih_l", "weight_ih_lx", "weight_ih_l+1", "l0"];
        assert!(others.iter().all(|name| kind_in_stack(name).is_none()));
    }
}
