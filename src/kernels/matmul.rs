//! `matmul`: the matrix product, in all four transpositions, with bias and accumulation.
//!
//! ```text
//! c[m,n] (+)= sum_k op(a)[m,k] op(b)[k,n] + bias[n] + second_bias[n]
//! ```
//!
//! | transpose_a | transpose_b | a stored | b stored | used for |
//! |---|---|---|---|---|
//! | no | yes | `[m,k]` | `[n,k]` | `x W^T + b`: PyTorch's weight layout |
//! | no | no | `[m,k]` | `[k,n]` | `dx = dy W` |
//! | yes | no | `[k,m]` | `[k,n]` | `dW = dy^T x` |
//! | yes | yes | `[k,m]` | `[n,k]` | for completeness |

use crate::error::{Error, Result};
use crate::float::{Float, Vectorized};
use crate::kernel::{
    AdapterClass, Binding, Extent, Kernel, Operand, Scratch, Shader, fold, parameters, reads, sized, writes,
};
use crate::plan::Tensor;
use crate::recorder::Recorder;
use crate::tile;
use rayon::prelude::*;
use std::ops::Range;

parameters! {
    /// Parameters of `matmul`. Element (m, k) of a lies at `a_offset + m a_row + k a_column`; b likewise.
    Matmul {
        /// Rows of c.
        m: u32,
        /// Columns of c.
        n: u32,
        /// The summed size.
        k: u32,
        /// First element of a in its slot.
        a_offset: u32,
        /// Distance of rows of a.
        a_row: u32,
        /// Distance of columns of a.
        a_column: u32,
        /// First element of b in its slot.
        b_offset: u32,
        /// Distance of rows of b.
        b_row: u32,
        /// Distance of columns of b.
        b_column: u32,
        /// First element of c in its slot.
        c_offset: u32,
        /// How many of the biases are added: 0, 1 or 2.
        biases: u32,
        /// 1 if c is added to, not replaced.
        accumulate: u32,
    }
}

/// Terms of the sum in one dispatch, `CHUNK` in the shaders.
const CHUNK: u32 = 32_768;

/// Records `c (+)= op(a) op(b) + biases` (two at most) over the matrices that all axes but the last of each tensor flatten to.
pub fn record(
    rec: &mut Recorder<'_>,
    (a, transpose_a): (&Tensor, bool),
    (b, transpose_b): (&Tensor, bool),
    biases: &[&Tensor],
    (c, accumulate): (&Tensor, bool),
) -> Result<()> {
    let (m, k) = if transpose_a { (a.columns(), a.rows()) } else { (a.rows(), a.columns()) };
    let (b_k, n) = if transpose_b { (b.columns(), b.rows()) } else { (b.rows(), b.columns()) };
    if b_k != k {
        let wanted = format!("{k} values to sum over, as in {:?}", a.shape());
        return Err(Error::shape("recording a matrix product", wanted, b.shape()));
    }
    if c.len() != m * n {
        return Err(Error::shape("recording the result of a matrix product", format!("[{m}, {n}]"), c.shape()));
    }
    if biases.len() > 2 {
        return Err(Error::config("recording the biases of a matrix product", "two at most", biases.len()));
    }
    if let Some(bias) = biases.iter().find(|bias| bias.len() != n || bias.offset != 0) {
        let wanted = format!("[{n}] from the start of its slot");
        return Err(Error::shape("recording the bias of a matrix product", wanted, bias.shape()));
    }
    let strides = |t: &Tensor, transposed: bool| match transposed {
        true => (1, t.columns() as u32),
        false => (t.columns() as u32, 1),
    };
    let ((a_row, a_column), (b_row, b_column)) = (strides(a, transpose_a), strides(b, transpose_b));
    let kernel = Matmul {
        m: m as u32,
        n: n as u32,
        k: k as u32,
        a_offset: a.offset as u32,
        a_row,
        a_column,
        b_offset: b.offset as u32,
        b_row,
        b_column,
        c_offset: c.offset as u32,
        biases: biases.len() as u32,
        accumulate: accumulate as u32,
    };
    rec.push_some(kernel, &[Some(a), Some(b), biases.first().copied(), biases.get(1).copied(), Some(c)])
}

impl Matmul {
    /// A matrix with one row or column has both strides 1; either reading of it is right.
    fn transposed(&self) -> (bool, bool) {
        (self.a_column != 1, self.b_column != 1)
    }

    /// Whether every vector of four that `matmul_registers` loads lies on a multiple of four.
    fn in_quads(&self) -> bool {
        let strides = match self.transposed() {
            (false, false) => [self.a_row, self.b_row],
            (false, true) => [self.a_row, self.b_column],
            (true, false) => [self.a_column, self.b_row],
            (true, true) => [self.a_column, self.b_column],
        };
        let a_rows = if self.a_column != 1 { self.m } else { 0 };
        let all = [self.n, self.k, self.a_offset, self.b_offset, self.c_offset, a_rows, strides[0], strides[1]];
        all.iter().all(|size| size % 4 == 0)
    }
}

impl Kernel for Matmul {
    const NAME: &'static str = "matmul";
    const BINDINGS: &'static [Binding] = &[reads("a"), reads("b"), reads("bias"), reads("second_bias"), writes("c")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    const VIEWS: bool = true;
    const PACKS: &'static [usize] = &[1];

    fn shaders() -> &'static [Shader<Self>] {
        &[
            Shader {
                name: "matmul_registers",
                source: include_str!("../../shaders/matmul_registers.wgsl"),
                suits: |k, class| class == AdapterClass::Software && k.in_quads(),
                constants: |k| {
                    let (a, b) = k.transposed();
                    vec![("transpose_a", a as u32 as f64), ("transpose_b", b as u32 as f64)]
                },
                grid: |k| fold(k.n.div_ceil(128) as u64 * k.m.div_ceil(8) as u64),
                binds: None,
            },
            Shader {
                name: "matmul",
                source: include_str!("../../shaders/matmul.wgsl"),
                suits: |_, _| true,
                constants: |_| Vec::new(),
                grid: |k| fold(k.n.div_ceil(64) as u64 * k.m.div_ceil(64) as u64),
                binds: None,
            },
        ]
    }

    fn repeats(&self) -> u32 {
        self.k.div_ceil(CHUNK)
    }

    fn needs(&self) -> Option<Vec<u128>> {
        let reach = |offset: u32, rows: u32, row: u32, columns: u32, column: u32| {
            offset as u128 + (rows - 1) as u128 * row as u128 + (columns - 1) as u128 * column as u128 + 1
        };
        let size = sized(&[self.m, self.n, self.k])? / self.k as u128;
        Some(vec![
            reach(self.a_offset, self.m, self.a_row, self.k, self.a_column),
            reach(self.b_offset, self.k, self.b_row, self.n, self.b_column),
            if self.biases > 0 { self.n as u128 } else { 0 },
            if self.biases > 1 { self.n as u128 } else { 0 },
            self.c_offset as u128 + size,
        ])
    }

    fn extent(&self) -> Option<Extent> {
        Some(Extent::contiguous(self.c_offset, self.m * self.n))
    }

    fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [Operand::Read(a), Operand::Read(b), Operand::Read(first), Operand::Read(second), Operand::Write(c)] =
            operands
        else {
            unreachable!("bindings of matmul")
        };
        for m in 0..self.m {
            for n in 0..self.n {
                let mut sum = T::ZERO;
                for k in 0..self.k {
                    let a = a[(self.a_offset + m * self.a_row + k * self.a_column) as usize];
                    sum += a * b[(self.b_offset + k * self.b_row + n * self.b_column) as usize];
                }
                let c = &mut c[(self.c_offset + m * self.n + n) as usize];
                let before = if self.accumulate != 0 { *c } else { T::ZERO };
                *c = before + sum;
                for bias in [&*first, &*second].iter().take(self.biases as usize) {
                    *c += bias[n as usize];
                }
            }
        }
    }

    fn execute<T: Float>(&self, operands: &mut [Operand<'_, T>], scratch: &mut Scratch<T>) {
        let [Operand::Read(a), Operand::Read(b), Operand::Read(first), Operand::Read(second), Operand::Write(c)] =
            operands
        else {
            unreachable!("bindings of matmul")
        };
        let (m, n, k) = (self.m as usize, self.n as usize, self.k as usize);
        let c = &mut c[self.c_offset as usize..][..m * n];
        let mut read_c = self.accumulate != 0;
        let biases = [&first[..], &second[..]].map(|bias| bias.get(..n).unwrap_or_default());
        let biases = &biases[..self.biases as usize];
        if self.a_column == 1 && self.b_row == 1 && (self.a_row == self.k || self.m == 1) {
            let (x, w) = (&a[self.a_offset as usize..][..m * k], &b[self.b_offset as usize..]);
            return self.by_rows(x, w, biases, c, scratch);
        }
        for bias in biases {
            for row in c.chunks_exact_mut(n) {
                let add = |c: &mut T, b: &T| *c = if read_c { *c + *b } else { *b };
                row.iter_mut().zip(*bias).for_each(|(c, b)| add(c, b));
            }
            read_c = true;
        }
        let strides = [self.a_row, self.a_column, self.b_row, self.b_column].map(|s| s as usize);
        product([m, n, k], &a[self.a_offset as usize..], &b[self.b_offset as usize..], c, strides, read_c);
    }
}

impl Matmul {
    /// The form `x W^T`: one row of c at a time from one row of x, in one order of summation whatever else is in
    /// the batch. So a step of a stream gives the bits that a run over the whole sequence gives.
    fn by_rows<T: Float>(&self, x: &[T], w: &[T], biases: &[&[T]], c: &mut [T], scratch: &mut Scratch<T>) {
        let (m, n, k) = (self.m as usize, self.n as usize, self.k as usize);
        let width = 4 * tile::lanes::<T>();
        let panels = tile::aligned(&mut scratch.packed, n.next_multiple_of(width) * k);
        if !scratch.is_packed {
            tile::pack_rows(panels, width, k, n, |row| &w[row * self.b_column as usize..]);
        }
        let (panels, read_c) = (&*panels, self.accumulate != 0);
        // some tasks a thread where there is work for them; at a time, each takes rows that stay in its cache
        let tasks = if m * n * k > 1 << 18 { 4 * rayon::current_num_threads() } else { 1 };
        let rows = m.div_ceil(tasks);
        let some = rows.min(96);
        let free = tile::aligned(&mut scratch.memory, tasks * some * k);
        let task = |((x, free), c): ((&[T], &mut [T]), &mut [T])| {
            for (x, c) in x.chunks(some * k).zip(c.chunks_mut(some * n)) {
                let free = &mut free[..x.len()];
                T::vectorize(RowsOf { n, k, x, free, panels, biases, c, read_c });
            }
        };
        match tasks {
            1 => task(((x, free), c)),
            _ => {
                x.par_chunks(rows * k).zip(free.par_chunks_mut(some * k)).zip(c.par_chunks_mut(rows * n)).for_each(task)
            }
        }
    }
}

/// Some rows of a product `x W^T`.
struct RowsOf<'a, T> {
    n: usize,
    k: usize,
    x: &'a [T],
    /// For x, interleaved.
    free: &'a mut [T],
    /// W as `[panel][k][4 N]`.
    panels: &'a [T],
    biases: &'a [&'a [T]],
    c: &'a mut [T],
    read_c: bool,
}

impl<T: Float> Vectorized for RowsOf<'_, T> {
    #[inline(always)]
    fn run<const N: usize, const R: usize, const FMA: bool>(mut self) {
        tile::interleave(self.x, self.k, R, self.free);
        for p in 0..self.n.div_ceil(4 * N) {
            for rows in tile::blocks(self.x.len() / self.k, R) {
                tile::with_rows!(rows.len(), self.block::<N, FMA>(p, rows.clone()));
            }
        }
    }
}

impl<T: Float> RowsOf<'_, T> {
    #[inline(always)]
    fn block<const N: usize, const R: usize, const FMA: bool>(&mut self, p: usize, rows: Range<usize>) {
        let panel = &self.panels[p * self.k * 4 * N..][..self.k * 4 * N];
        let sums = tile::multiply::<T, N, R, FMA>(&self.free[rows.start * self.k..rows.end * self.k], panel);
        for v in 0..4 {
            let column = (p * 4 + v) * N;
            if column >= self.n {
                break;
            }
            let valid = self.n - column;
            let mut bias = [T::ZERO; N];
            for values in self.biases {
                let values: [T; N] = tile::load(&values[column..], valid);
                for lane in 0..N {
                    bias[lane] += values[lane];
                }
            }
            for r in 0..R {
                let c = &mut self.c[(rows.start + r) * self.n + column..];
                let before: [T; N] = if self.read_c { tile::load(c, valid) } else { [T::ZERO; N] };
                let mut sum = sums[r][v];
                for lane in 0..N {
                    sum[lane] += bias[lane] + before[lane];
                }
                tile::store(&sum, c, valid);
            }
        }
    }
}

/// `c = (read_c ? c : 0) + a b` by the `gemm` crate: the one place of the crate with `unsafe`.
#[allow(unsafe_code)]
fn product<T: Float>([m, n, k]: [usize; 3], a: &[T], b: &[T], c: &mut [T], strides: [usize; 4], read_c: bool) {
    let [a_row, a_column, b_row, b_column] = strides;
    // sizes and strides are below 2^32 each: no product or sum of them overflows u128
    let last = |rows: usize, row: usize, columns: usize, column: usize| {
        (rows as u128 - 1) * row as u128 + (columns as u128 - 1) * column as u128
    };
    assert!(m > 0 && n > 0 && k > 0, "a matrix product without elements");
    assert!(last(m, a_row, k, a_column) < a.len() as u128, "a of a matrix product is too short");
    assert!(last(k, b_row, n, b_column) < b.len() as u128, "b of a matrix product is too short");
    assert!(m as u128 * n as u128 <= c.len() as u128, "c of a matrix product is too short");
    // below this a second thread costs more than it brings
    let parallelism = if m * n * k > 1 << 18 { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    let [a_row, a_column, b_row, b_column] = strides.map(|s| s as isize);
    // SAFETY: the last element that each pointer and its strides reach lies inside its slice, as asserted above.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            read_c,
            a.as_ptr(),
            a_column,
            a_row,
            b.as_ptr(),
            b_column,
            b_row,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            parallelism,
        );
    }
}
