//! All kernels: the list equals the folder `shaders/`, which a test checks.
//!
//! Each module is one word: its equation, its parameters and operands, `record` (checks shapes and appends a step; that
//! of `fill` is [`Recorder::fill`](crate::Recorder::fill)), the twin, the variants, and the cases that tests, doctor and
//! benches run. How they fit together: [`crate::kernel`].

use crate::case::Case;
use crate::error::{Error, Result};
use crate::kernel::{Adapter, AdapterClass, Field, Kernel};
use crate::recorder::{Recorder, Target};
use crate::tensor::Tensor;

/// What can be said of a kernel without its parameters.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// The word.
    pub name: &'static str,
    /// Names of the variants, best first.
    pub variants: fn() -> Vec<&'static str>,
    /// The CPU's form.
    pub form: &'static str,
    /// The parameters.
    pub fields: &'static [Field],
    /// Sizes that are awkward on purpose, with each option.
    pub cases: fn() -> Vec<Case>,
}

const fn describe<K: Kernel>(cases: fn() -> Vec<Case>) -> Description {
    Description {
        name: K::NAME,
        variants: || K::variants().iter().map(|variant| variant.name).collect(),
        form: K::FORM,
        fields: K::FIELDS,
        cases,
    }
}

/// `Kernel::NAME` and `Kernel::variants` of a kernel with one variant, `plain`: one file that is called like the kernel.
macro_rules! word {
    ($name:literal $(, $grid_and_repeats:expr)+) => {
        const NAME: &'static str = $name;
        plain!([$name] $(, $grid_and_repeats)+);
    };
}

/// `Kernel::variants` without scratch, all repeated equally often: when each fits, and its stages.
macro_rules! variants {
    ($repeats:expr, $($name:literal: $fits:expr => $stages:expr),*) => {
        fn variants() -> &'static [Variant<Self>] {
            &[$(Variant {
                name: $name,
                fits: $fits,
                stages: $stages,
                repeats: $repeats,
                scratch: |_| Vec::new(),
            }),*]
        }
    };
}

/// `Kernel::needs`: of each operand the product of some parameters, 1 without any; then what must not be zero either.
macro_rules! needs {
    ($($operand:ident: [$($size:tt),*]),* $(; $above_zero:ident)?) => {
        fn needs(&self) -> Option<Sizes> {
            $(sized(&[self.$above_zero])?;)?
            Some(Sizes { $($operand: sized(&[$(needs!(@size self $size)),*])?),* })
        }
    };
    (@size $of:ident $size:literal) => { $size };
    (@size $of:ident $size:ident) => { $of.$size };
}

/// `Kernel::flops`: so many for each of a product of parameters.
macro_rules! flops {
    ($each:literal $(, $size:ident)*) => {
        fn flops(&self) -> f64 {
            $each $(* self.$size as f64)*
        }
    };
}

/// The modules, and the list of them.
macro_rules! kernels {
    ($($module:ident: $kernel:ident),* $(,)?) => {
        $(pub mod $module;)*
        /// Every kernel of the crate.
        pub const ALL: &[Description] = &[$(describe::<$module::$kernel>($module::cases)),*];
    };
}

kernels! {
    clip_norm: ClipNorm,
    copy_columns: CopyColumns,
    count: Count,
    dropout_mask: DropoutMask,
    embedding_backward: EmbeddingBackward,
    embedding_forward: EmbeddingForward,
    fill: Fill,
    highway: Highway,
    highway_backward: HighwayBackward,
    lstm_backward: LstmBackward,
    lstm_forward: LstmForward,
    matmul: Matmul,
    mean_loss: MeanLoss,
    multiply: Multiply,
    one_hot: OneHot,
    scale: Scale,
    sgd: Sgd,
    softmax_cross_entropy: SoftmaxCrossEntropy,
    softmax_cross_entropy_backward: SoftmaxCrossEntropyBackward,
    subtract: Subtract,
    sum: Sum,
    sum_products: SumProducts,
    sum_squares: SumSquares,
}

pub mod recurrence;

/// Error: one of these tensors has not as many elements as `like`.
fn same_len(doing: &str, like: &Tensor, all: &[&Tensor]) -> Result<()> {
    match all.iter().find(|tensor| tensor.len() != like.len()) {
        None => Ok(()),
        Some(other) => Err(Error::shape(doing, format!("{:?}", like.shape()), other.shape())),
    }
}

/// Whether an adapter should run a variant with large sums in registers, and `fits` says that it can.
fn for_software(adapter: &Adapter, fits: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    match adapter.class {
        AdapterClass::Software => fits(),
        AdapterClass::Hardware => Err("for software adapters, where barriers are dear".into()),
    }
}

/// Whether sizes and the first elements of views are multiples of four, so that a shader can load vectors of four.
fn multiples_of_four(
    sizes: impl IntoIterator<Item = (&'static str, u32)>,
    views: &[Option<&Tensor>],
) -> Result<(), String> {
    let offsets = views.iter().flatten().map(|view| ("a first element,", view.offset as u32));
    match sizes.into_iter().chain(offsets).find(|(_, size)| size % 4 != 0) {
        None => Ok(()),
        Some((what, size)) => Err(format!("{what} {size} is no multiple of 4")),
    }
}

/// What a case writes: a slot `out`, or the second row of a slot `name` if it adds to what is there.
fn output(rec: &mut Recorder<'_>, name: &str, shape: &[usize], adds: bool) -> Result<Target> {
    let tensor = match adds {
        true => rec.activation(name, &[&[2], shape].concat())?.row(1)?,
        false => rec.activation("out", shape)?,
    };
    Ok(Target { tensor, adds })
}

/// Rows behind a first one in a slot `out`, of which nothing may be read or written: that one is filled before.
fn behind_a_row(rec: &mut Recorder<'_>, rows: usize, columns: usize) -> Result<Tensor> {
    let out = rec.activation("out", &[rows + 1, columns])?;
    rec.fill(&out.row(0)?, 0.5)?;
    out.narrow(1, rows)
}

/// Pairs of what a case may be, each with the second and without.
fn with_and_without<S: Copy>(sizes: impl IntoIterator<Item = S>, case: impl Fn(S, bool) -> Case) -> Vec<Case> {
    sizes.into_iter().flat_map(|size| [false, true].map(|adds| case(size, adds))).collect()
}

/// What every kernel is written with.
mod prelude {
    pub(super) use super::{behind_a_row, for_software, multiples_of_four, output, same_len, with_and_without};
    pub(super) use crate::case::Case;
    pub(super) use crate::error::{Error, Result, ensure};
    pub(super) use crate::float::Float;
    pub(super) use crate::kernel::*;
    pub(super) use crate::recorder::{Recorder, Target};
    pub(super) use crate::tensor::Tensor;
    pub(super) use crate::{operands, parameters, wgsl};
}
