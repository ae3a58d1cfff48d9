//! All kernels: the list equals the folder `shaders/`, which a test checks.
//!
//! Each module is one word: its equation, its parameters and operands, `record` (checks shapes and appends a step; that
//! of `fill` is [`Recorder::fill`](crate::Recorder::fill)), the twin, the variants, and the cases that tests, doctor and
//! benches run. How they fit together: [`crate::kernel`].

use crate::case::Case;
use crate::kernel::{Field, Kernel};

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

/// What every kernel is written with.
mod prelude {
    pub(super) use crate::case::Case;
    pub(super) use crate::error::{Error, Result, ensure};
    pub(super) use crate::float::Float;
    pub(super) use crate::kernel::*;
    pub(super) use crate::recorder::{Recorder, Target};
    pub(super) use crate::tensor::Tensor;
    pub(super) use crate::{operands, parameters, wgsl};
}
