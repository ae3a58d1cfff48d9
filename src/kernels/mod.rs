//! All kernels: the list equals the folder `shaders/`, which a test checks.
//!
//! Each module is one word: its equation, its parameters, `record` (shape checks, appends a step; that of
//! `fill` is [`Recorder::fill`](crate::Recorder::fill)), the
//! twin, and the names of its shaders. How they fit together: [`crate::kernel`].

pub mod clip_norm;
pub mod copy_columns;
pub mod count;
pub mod dropout_mask;
pub mod embedding_backward;
pub mod embedding_forward;
pub mod fill;
pub mod highway;
pub mod highway_backward;
pub mod lstm_backward;
pub mod lstm_forward;
pub mod matmul;
pub mod mean_loss;
pub mod multiply;
pub mod one_hot;
pub mod recurrence;
pub mod scale;
pub mod sgd;
pub mod softmax_cross_entropy;
pub mod softmax_cross_entropy_backward;
pub mod subtract;
pub mod sum;
pub mod sum_products;
pub mod sum_rows;
pub mod sum_squares;

use crate::kernel::{Binding, Kernel, Shader};

/// A kernel without its parameters: what can be checked about it without a plan.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// The word.
    pub name: &'static str,
    /// Storage bindings of group 0, in order.
    pub bindings: &'static [Binding],
    /// Names of the uniform's fields, one word each.
    pub fields: &'static [&'static str],
    /// Which of them are `f32`.
    pub floats: &'static [&'static str],
    /// Each shader.
    pub shaders: fn() -> Vec<ShaderFile>,
}

/// A shader without the kernel's parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShaderFile {
    /// File name in `shaders/` without the ending.
    pub name: &'static str,
    /// The WGSL text.
    pub source: &'static str,
    /// What it binds, in order.
    pub bindings: Vec<Binding>,
}

const fn describe<K: Kernel>() -> Description {
    Description {
        name: K::NAME,
        bindings: K::BINDINGS,
        fields: K::FIELDS,
        floats: K::FLOATS,
        shaders: || {
            let bindings = |s: &Shader<K>| match s.binds {
                Some(binds) => binds.iter().map(|at| K::BINDINGS[*at]).collect(),
                None => K::BINDINGS.to_vec(),
            };
            let file = |s: &Shader<K>| ShaderFile { name: s.name, source: s.source, bindings: bindings(s) };
            K::shaders().iter().map(file).collect()
        },
    }
}

/// Every kernel of the crate.
pub const ALL: &[Description] = &[
    describe::<clip_norm::ClipNorm>(),
    describe::<copy_columns::CopyColumns>(),
    describe::<count::Count>(),
    describe::<dropout_mask::DropoutMask>(),
    describe::<embedding_backward::EmbeddingBackward>(),
    describe::<embedding_forward::EmbeddingForward>(),
    describe::<fill::Fill>(),
    describe::<highway::Highway>(),
    describe::<highway_backward::HighwayBackward>(),
    describe::<lstm_backward::LstmBackward>(),
    describe::<lstm_forward::LstmForward>(),
    describe::<matmul::Matmul>(),
    describe::<mean_loss::MeanLoss>(),
    describe::<multiply::Multiply>(),
    describe::<one_hot::OneHot>(),
    describe::<scale::Scale>(),
    describe::<sgd::Sgd>(),
    describe::<softmax_cross_entropy::SoftmaxCrossEntropy>(),
    describe::<softmax_cross_entropy_backward::SoftmaxCrossEntropyBackward>(),
    describe::<subtract::Subtract>(),
    describe::<sum::Sum>(),
    describe::<sum_products::SumProducts>(),
    describe::<sum_rows::SumRows>(),
    describe::<sum_squares::SumSquares>(),
];
