//! The contract of a kernel: one word that is a shader, a twin, a parameter block and a name.
//!
//! A kernel is the struct of its parameters, laid out as the shader's uniform block. `impl Kernel`
//! adds the bindings in order, the twin (what it computes, in plain loops), and one or more shaders
//! (how a GPU computes it). [`Operation`] is the same without the type, so that a plan can hold it.

use crate::float::Float;
use std::fmt::Debug;

/// Bytes of a uniform block that a shader may read: sixteen words.
pub const MAX_PARAMETER_BYTES: usize = 64;

/// How a kernel uses one of its slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Floats, read only.
    Read,
    /// Floats, written (and read where the kernel accumulates).
    Write,
    /// Token ids (`u32`), read only.
    Tokens,
}

/// One storage binding of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The variable's name in the shader, and the label in the plan's listing.
    pub name: &'static str,
    /// How it is used.
    pub access: Access,
}

/// A binding that is read.
pub const fn reads(name: &'static str) -> Binding {
    Binding { name, access: Access::Read }
}

/// A binding that is written.
pub const fn writes(name: &'static str) -> Binding {
    Binding { name, access: Access::Write }
}

/// A binding of token ids.
pub const fn tokens(name: &'static str) -> Binding {
    Binding { name, access: Access::Tokens }
}

/// What a twin gets for one binding; where a step leaves a binding out, a slice without elements.
#[derive(Debug)]
pub enum Operand<'a, T> {
    /// For [`Access::Read`].
    Read(&'a [T]),
    /// For [`Access::Write`].
    Write(&'a mut [T]),
    /// For [`Access::Tokens`].
    Tokens(&'a [u32]),
}

/// The elements of its output that a kernel writes: `width` of every `stride` from `start` on, `rows` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First element.
    pub start: usize,
    /// Rows.
    pub rows: usize,
    /// Elements of a row that are written.
    pub width: usize,
    /// Distance of rows.
    pub stride: usize,
}

impl Extent {
    /// `len` elements side by side.
    pub fn contiguous(start: u32, len: u32) -> Extent {
        Extent { start: start as usize, rows: 1, width: len as usize, stride: len as usize }
    }

    /// One past the last element.
    pub fn end(&self) -> usize {
        self.start + self.rows.saturating_sub(1) * self.stride + self.width
    }
}

/// The kind of adapter a shader is chosen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterClass {
    /// A GPU.
    Hardware,
    /// A CPU that plays one (llvmpipe, WARP, SwiftShader): barriers are dear, registers are cheap.
    Software,
}

/// One way to compute a kernel on a GPU.
pub struct Shader<K: 'static> {
    /// File name in `shaders/` without the ending, also the pipeline's label.
    pub name: &'static str,
    /// The WGSL text.
    pub source: &'static str,
    /// Whether it can and should be used for these parameters on this class of adapter.
    pub suits: fn(&K, AdapterClass) -> bool,
    /// Values of the shader's `override` declarations.
    pub constants: fn(&K) -> Vec<(&'static str, f64)>,
    /// Workgroups in x, y, z of one dispatch.
    pub grid: fn(&K) -> [u32; 3],
    /// Which of the kernel's bindings it binds, in order; `None`: all of them. A shader has at most eight.
    pub binds: Option<&'static [usize]>,
}

/// A [`Shader`] chosen for given parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    /// File name in `shaders/` without the ending.
    pub shader: &'static str,
    /// The WGSL text.
    pub source: &'static str,
    /// Values of the shader's `override` declarations.
    pub constants: Vec<(&'static str, f64)>,
    /// Workgroups in x, y, z.
    pub grid: [u32; 3],
    /// Which of the kernel's bindings it binds, in order.
    pub binds: Vec<usize>,
}

/// Memory for the CPU's form of a kernel, which outlives a run.
#[derive(Debug, Default)]
pub struct Scratch<T> {
    /// For anything; holds anything when a step begins.
    pub memory: Vec<T>,
    /// For a copy of the operands in [`Kernel::PACKS`], arranged for speed.
    pub packed: Vec<T>,
    /// Whether `packed` is from an earlier run of this step and the operands are what they were: weights that nobody
    /// trains need to be packed once.
    pub is_packed: bool,
}

/// A kernel: the struct of its parameters with everything that belongs to the word.
pub trait Kernel: bytemuck::Pod + Debug + Send + Sync {
    /// The word.
    const NAME: &'static str;
    /// Storage bindings of group 0, in order.
    const BINDINGS: &'static [Binding];
    /// Names of the parameters, in order; each is a `u32`, or an `f32` where listed in `FLOATS`.
    const FIELDS: &'static [&'static str];
    /// Which fields are `f32`.
    const FLOATS: &'static [&'static str] = &[];

    /// Operands, by their place in `BINDINGS`, of which [`Kernel::execute`] keeps a copy in [`Scratch::packed`].
    const PACKS: &'static [usize] = &[];

    /// Whether operands may be rows of a slot, with their first element among the parameters.
    const VIEWS: bool = false;

    /// The shaders, best first; the last suits everything.
    fn shaders() -> &'static [Shader<Self>];

    /// The shaders that one repeat runs, one after the other: the first of [`Kernel::shaders`] that suits, where a
    /// kernel does not say otherwise.
    fn sequence(&self, class: AdapterClass) -> Vec<&'static Shader<Self>> {
        vec![first_that_suits(Self::shaders(), self, class)]
    }

    /// How often the [sequence](Kernel::sequence) is run: steps of a time loop, or chunks of a long sum. Shaders read
    /// the number of the repeat as `repeat.x`. (An old software driver stops an invocation after 65,535 loop
    /// iterations in total, without a word; chunks keep every loop below that.)
    fn repeats(&self) -> u32 {
        1
    }

    /// How many elements each slot must have at least, in binding order, so that nothing outside is read or
    /// written; checked when a step is recorded. `None` for parameters that make no sense, such as a size of zero.
    fn needs(&self) -> Option<Vec<u128>>;

    /// What it writes of its output, for a kernel with one output that may write a part of it; `None`: everything.
    fn extent(&self) -> Option<Extent> {
        None
    }

    /// Floating point operations of one run, to cut long work into several submits.
    fn flops(&self) -> f64;

    /// What the kernel computes, written from the equation; runs all repeats.
    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]);

    /// The same for speed.
    fn execute<T: Float>(&self, operands: &mut [Operand<'_, T>], _scratch: &mut Scratch<T>) {
        self.twin(operands);
    }
}

/// The best of some shaders for given parameters; the last one suits everything.
pub fn first_that_suits<K>(shaders: &'static [Shader<K>], kernel: &K, class: AdapterClass) -> &'static Shader<K> {
    shaders.iter().find(|s| (s.suits)(kernel, class)).unwrap_or(&shaders[shaders.len() - 1])
}

/// A [`Kernel`] as a step of a plan holds it.
pub trait Operation: Debug + Send + Sync {
    /// The word.
    fn name(&self) -> &'static str;
    /// Storage bindings of group 0, in order.
    fn bindings(&self) -> &'static [Binding];
    /// The uniform block.
    fn bytes(&self) -> &[u8];
    /// Name and value of each parameter.
    fn fields(&self) -> Vec<(&'static str, f64)>;
    /// See [`Kernel::PACKS`].
    fn packs(&self) -> &'static [usize];
    /// See [`Kernel::needs`].
    fn needs(&self) -> Option<Vec<u128>>;
    /// See [`Kernel::extent`].
    fn extent(&self) -> Option<Extent>;
    /// See [`Kernel::flops`].
    fn flops(&self) -> f64;
    /// The dispatches of one repeat on an adapter.
    fn dispatches(&self, class: AdapterClass) -> Vec<Dispatch>;
    /// See [`Kernel::repeats`].
    fn repeats(&self) -> u32;
    /// [`Kernel::twin`] in f64.
    fn twin_f64(&self, operands: &mut [Operand<'_, f64>]);
    /// [`Kernel::execute`] in f32.
    fn execute_f32(&self, operands: &mut [Operand<'_, f32>], scratch: &mut Scratch<f32>);
    /// [`Kernel::execute`] in f64.
    fn execute_f64(&self, operands: &mut [Operand<'_, f64>], scratch: &mut Scratch<f64>);
}

impl<K: Kernel> Operation for K {
    fn name(&self) -> &'static str {
        K::NAME
    }
    fn bindings(&self) -> &'static [Binding] {
        K::BINDINGS
    }
    fn bytes(&self) -> &[u8] {
        bytemuck::bytes_of(self)
    }
    fn fields(&self) -> Vec<(&'static str, f64)> {
        let words = bytemuck::bytes_of(self).chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
        let value = |name: &str, word: u32| match K::FLOATS.contains(&name) {
            true => f32::from_bits(word) as f64,
            false => word as f64,
        };
        K::FIELDS.iter().zip(words).map(|(name, word)| (*name, value(name, word))).collect()
    }
    fn packs(&self) -> &'static [usize] {
        K::PACKS
    }
    fn needs(&self) -> Option<Vec<u128>> {
        Kernel::needs(self)
    }
    fn extent(&self) -> Option<Extent> {
        Kernel::extent(self)
    }
    fn flops(&self) -> f64 {
        Kernel::flops(self)
    }
    fn dispatches(&self, class: AdapterClass) -> Vec<Dispatch> {
        let dispatch = |shader: &Shader<K>| Dispatch {
            shader: shader.name,
            source: shader.source,
            constants: (shader.constants)(self),
            grid: (shader.grid)(self),
            binds: shader.binds.map_or_else(|| (0..K::BINDINGS.len()).collect(), <[usize]>::to_vec),
        };
        self.sequence(class).into_iter().map(dispatch).collect()
    }
    fn repeats(&self) -> u32 {
        Kernel::repeats(self)
    }
    fn twin_f64(&self, operands: &mut [Operand<'_, f64>]) {
        self.twin(operands);
    }
    fn execute_f32(&self, operands: &mut [Operand<'_, f32>], scratch: &mut Scratch<f32>) {
        self.execute(operands, scratch);
    }
    fn execute_f64(&self, operands: &mut [Operand<'_, f64>], scratch: &mut Scratch<f64>) {
        self.execute(operands, scratch);
    }
}

/// The struct of a kernel's parameters: `#[repr(C)]`, words only, with the names of its fields.
macro_rules! parameters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ident),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind),* }
        impl $name {
            /// Names of the fields, in order.
            const FIELD_NAMES: &'static [&'static str] = &[$(stringify!($field)),*];
        }
    };
}
pub(crate) use parameters;

/// `Kernel::shaders` of a kernel with one shader, `shaders/$name.wgsl`.
macro_rules! one_shader {
    ($name:literal, $grid:expr) => {
        fn shaders() -> &'static [$crate::kernel::Shader<Self>] {
            &[$crate::kernel::Shader {
                name: $name,
                source: include_str!(concat!("../../shaders/", $name, ".wgsl")),
                suits: |_, _| true,
                constants: |_| Vec::new(),
                grid: $grid,
                binds: None,
            }]
        }
    };
}
pub(crate) use one_shader;

/// The product of sizes, or `None` if one of them is zero: a building block of [`Kernel::needs`].
pub(crate) fn sized(sizes: &[u32]) -> Option<u128> {
    sizes.iter().try_fold(1, |product, size| (*size > 0).then_some(product * *size as u128))
}

/// A value as the sum of two f32, so that the f64 executor loses nothing of a constant.
pub(crate) fn split(value: f64) -> (f32, f32) {
    let high = value as f32;
    (high, if high.is_finite() { (value - high as f64) as f32 } else { 0.0 })
}

/// A grid of `workgroups` workgroups folded into two dimensions of at most 65,535.
pub(crate) fn fold(workgroups: u64) -> [u32; 3] {
    let x = workgroups.clamp(1, 65_535);
    [x as u32, workgroups.div_ceil(x).max(1) as u32, 1]
}

/// One workgroup for each `size` elements.
pub(crate) fn fold_elements(elements: u64, size: u64) -> [u32; 3] {
    fold(elements.div_ceil(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_grids_cover_everything_within_the_limit() {
        for n in [0u64, 1, 65_535, 65_536, 70_000, 10_000_000] {
            let [x, y, z] = fold(n);
            assert!(x as u64 * y as u64 >= n && x <= 65_535 && y <= 65_535 && z == 1, "{n}");
        }
    }
}
