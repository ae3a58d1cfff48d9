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

use super::prelude::*;
use crate::float::Vectorized;
use crate::tile;
use rayon::prelude::*;
use std::ops::Range;

parameters! {
    /// Parameters of `matmul`. Element (m, k) of a lies at `m a_row + k a_column`; b likewise.
    Matmul {
        /// Rows of c.
        m: u32,
        /// Columns of c.
        n: u32,
        /// The summed size.
        k: u32,
        /// Distance of rows of a.
        a_row: u32,
        /// Distance of columns of a.
        a_column: u32,
        /// Distance of rows of b.
        b_row: u32,
        /// Distance of columns of b.
        b_column: u32,
        /// How many of the biases are added: 0, 1 or 2.
        biases: u32,
        /// 1 if c is added to, not replaced.
        adds: u32,
    }
}
operands! { Matmul { a: read, b: read, bias: [read], second_bias: [read], c: write } }

/// Terms of the sum in one dispatch, `CHUNK` in the shaders.
const CHUNK: u32 = 32_768;

/// What the shaders bind.
const ALL: [&str; 5] = ["a", "b", "bias", "second_bias", "c"];

/// A tensor as the matrix that all its axes but the last flatten to.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    tensor: &'a Tensor,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    /// As it is stored.
    pub fn plain(tensor: &'a Tensor) -> Matrix<'a> {
        Matrix { tensor, transposed: false }
    }

    /// Rows for columns.
    pub fn transposed(tensor: &'a Tensor) -> Matrix<'a> {
        Matrix { tensor, transposed: true }
    }

    /// Rows and columns, and the distance of each.
    fn layout(&self) -> ([usize; 2], [u32; 2]) {
        let (rows, columns) = (self.tensor.rows(), self.tensor.columns());
        if self.transposed { ([columns, rows], [1, columns as u32]) } else { ([rows, columns], [columns as u32, 1]) }
    }
}

/// Records `c (+)= a b + biases`, two biases at most.
pub fn record(rec: &mut Recorder<'_>, a: Matrix<'_>, b: Matrix<'_>, biases: &[&Tensor], c: &Target) -> Result<()> {
    let (([m, k], [a_row, a_column]), ([b_k, n], [b_row, b_column])) = (a.layout(), b.layout());
    let wanted = format!("{k} values to sum over, as in {:?}", a.tensor.shape());
    ensure!(b_k == k, Error::shape("recording a matrix product", wanted, b.tensor.shape()));
    let (doing, wanted) = ("recording the result of a matrix product", format!("[{m}, {n}]"));
    ensure!(c.tensor.len() == m * n, Error::shape(doing, wanted, c.tensor.shape()));
    ensure!(biases.len() <= 2, Error::config("recording the biases of a matrix product", "two at most", biases.len()));
    let wrong = |bias: &Tensor| Error::shape("recording the bias of a matrix product", format!("[{n}]"), bias.shape());
    biases.iter().try_for_each(|bias| if bias.len() == n { Ok(()) } else { Err(wrong(bias)) })?;
    let [m, n, k] = [m, n, k].map(|size| size as u32);
    let (count, adds) = (biases.len() as u32, c.adds as u32);
    let kernel = Matmul { m, n, k, a_row, a_column, b_row, b_column, biases: count, adds };
    let (bias, second_bias) = (biases.first().copied(), biases.get(1).copied());
    rec.push(kernel, Tensors { a: a.tensor, b: b.tensor, bias, second_bias, c: &c.tensor })
}

impl Matmul {
    /// A matrix with one row or column has both strides 1; either reading of it is right.
    fn transposed(&self) -> (bool, bool) {
        (self.a_column != 1, self.b_column != 1)
    }

    /// Whether every vector of four that `matmul_registers` loads lies on a multiple of four.
    fn in_quads(&self, of: &Tensors<'_>) -> Result<(), String> {
        let (a, b) = self.transposed();
        let (a_rows, a_stride) = if a { (self.m, self.a_column) } else { (0, self.a_row) };
        let b_stride = if b { self.b_column } else { self.b_row };
        let strides = [a_stride, b_stride].map(|stride| ("a distance,", stride));
        let sizes = [self.n, self.k, a_rows].map(|size| ("a size,", size));
        multiples_of_four(sizes.into_iter().chain(strides), &Self::list(of))
    }
}

impl Kernel for Matmul {
    const NAME: &'static str = "matmul";
    const FORM: &'static str = "rows_or_gemm";
    const PACKS: &'static [&'static str] = &["b"];

    variants! { |k| k.k.div_ceil(CHUNK),
        "registers": |k, of, adapter| for_software(adapter, || k.in_quads(of)) => |k| {
            let (a, b) = k.transposed();
            let grid = fold(k.n.div_ceil(128) as u64 * k.m.div_ceil(8) as u64);
            let stage = Stage::new(wgsl!["shared/madd", "matmul_registers"], &ALL, grid);
            vec![stage.with_constants(&[("transpose_a", a), ("transpose_b", b)])]
        },
        "tiles": |_, _, _| Ok(()) => |k| {
            let grid = fold(k.n.div_ceil(64) as u64 * k.m.div_ceil(64) as u64);
            vec![Stage::new(wgsl!["matmul"], &ALL, grid)]
        }
    }

    fn needs(&self) -> Option<Sizes> {
        let reach = |rows: u32, row: u32, columns: u32, column: u32| {
            (rows - 1) as u128 * row as u128 + (columns - 1) as u128 * column as u128 + 1
        };
        let c = sized(&[self.m, self.n, self.k])? / self.k as u128;
        let bias = |count: u32| if self.biases > count { self.n as u128 } else { 0 };
        Some(Sizes {
            a: reach(self.m, self.a_row, self.k, self.a_column),
            b: reach(self.k, self.b_row, self.n, self.b_column),
            bias: bias(0),
            second_bias: bias(1),
            c,
        })
    }

    fn packing(&self) -> Vec<u32> {
        vec![self.n, self.k, self.b_row, self.b_column]
    }

    flops!(2.0, m, n, k);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        for m in 0..self.m {
            for n in 0..self.n {
                let mut sum = T::ZERO;
                for k in 0..self.k {
                    let a = s.a[(m * self.a_row + k * self.a_column) as usize];
                    sum += a * s.b[(k * self.b_row + n * self.b_column) as usize];
                }
                let c = &mut s.c[(m * self.n + n) as usize];
                let before = if self.adds != 0 { *c } else { T::ZERO };
                *c = before + sum; // F1, B12
                for bias in [s.bias, s.second_bias].iter().take(self.biases as usize) {
                    *c += bias[n as usize];
                }
            }
        }
    }

    fn execute<T: Float>(&self, s: Slices<'_, T>, scratch: &mut Scratch<T>) {
        let (m, n, k) = (self.m as usize, self.n as usize, self.k as usize);
        let c = &mut s.c[..m * n];
        let mut read_c = self.adds != 0;
        let biases = [s.bias, s.second_bias];
        let biases = &biases[..self.biases as usize];
        if self.a_column == 1 && self.b_row == 1 && (self.a_row == self.k || self.m == 1) {
            return self.by_rows(&s.a[..m * k], s.b, biases, c, scratch);
        }
        for bias in biases {
            for row in c.chunks_exact_mut(n) {
                let add = |c: &mut T, b: &T| *c = if read_c { *c + *b } else { *b };
                row.iter_mut().zip(*bias).for_each(|(c, b)| add(c, b));
            }
            read_c = true;
        }
        let strides = [self.a_row, self.a_column, self.b_row, self.b_column].map(|s| s as usize);
        product([m, n, k], s.a, s.b, c, strides, read_c);
    }
}

impl Matmul {
    /// The form `x W^T`: one row of c at a time from one row of x, in one order of summation whatever else is in
    /// the batch. So a step of a stream gives the bits that a run over the whole sequence gives.
    fn by_rows<T: Float>(&self, x: &[T], w: &[T], biases: &[&[T]], c: &mut [T], scratch: &mut Scratch<T>) {
        let (m, n, k) = (self.m as usize, self.n as usize, self.k as usize);
        let width = 4 * tile::lanes::<T>();
        let len = n.next_multiple_of(width) * k;
        let packed = tile::packed(scratch, len, |panels| {
            tile::pack_rows(panels, width, k, n, |row| &w[row * self.b_column as usize..]);
        });
        let (panels, read_c) = (tile::from_line(&packed, len), self.adds != 0);
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
        if tasks == 1 {
            return task(((x, free), c));
        }
        x.par_chunks(rows * k).zip(free.par_chunks_mut(some * k)).zip(c.par_chunks_mut(rows * n)).for_each(task);
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

/// Every transposition, with and without biases and a sum; views; sums beyond 65,535 terms.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let sizes =
        [(1, 1, 1), (3, 5, 7), (8, 16, 4), (9, 132, 20), (33, 65, 17), (64, 64, 64), (70, 4, 129), (1, 256, 64)];
    for (m, n, k) in sizes {
        for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
            for (bias, adds) in [(false, false), (true, false), (false, true), (true, true)] {
                all.push(Case::new(format!("matmul {m} {n} {k} {ta} {tb} {bias} {adds}"), 1.0, move |rec| {
                    let a = rec.input("a", &if ta { [k, m] } else { [m, k] })?;
                    let b = rec.input("b", &if tb { [n, k] } else { [k, n] })?;
                    let names = &["bias", "second_bias"][..if bias { 1 + ta as usize } else { 0 }];
                    let biases = names.iter().map(|name| rec.input(name, &[n])).collect::<Result<Vec<_>>>()?;
                    let tensor = rec.activation(if adds { "c" } else { "out" }, &[m, n])?;
                    let (a, b) = (Matrix { tensor: &a, transposed: ta }, Matrix { tensor: &b, transposed: tb });
                    record(rec, a, b, &biases.iter().collect::<Vec<_>>(), &Target { tensor, adds })
                }));
            }
        }
    }
    for k in [4, 5] {
        all.push(Case::new(format!("matmul of rows {k}"), 1.0, move |rec| {
            let a = rec.input("a", &[7, k])?.narrow(2, 4)?;
            let b = rec.input("b", &[3, 8, k])?.row(1)?;
            let bias = rec.input("bias", &[3, 8])?.row(2)?;
            let c = rec.activation("c", &[6, 8])?.narrow(1, 4)?;
            record(rec, Matrix::plain(&a), Matrix::transposed(&b), &[&bias], &Target::replace(&c))
        }));
    }
    for rows in [70_000, 70_001] {
        all.push(Case::new(format!("matmul over {rows} rows"), 0.05, move |rec| {
            let (a, b) = (rec.input("a", &[rows, 4])?, rec.input("b", &[rows, 8])?);
            let c = rec.activation("out", &[4, 8])?;
            record(rec, Matrix::transposed(&a), Matrix::plain(&b), &[], &Target::replace(&c))
        }));
    }
    all
}
