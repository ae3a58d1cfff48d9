//! The contract of a kernel: one word that is a name, a block of parameters, a list of operands, a twin, and one or
//! more [variants](Variant), the ways in which a GPU computes it.
//!
//! * [`parameters!`](crate::parameters) makes the struct: `u32` and `f64` fields. The shader sees them as
//!   `params.field`, an `f64` as the nearest `f32`.
//! * [`operands!`](crate::operands) lists the operands once. From the list come the storage bindings, the struct of
//!   tensors that a step is recorded with, the struct of slices that the twin gets, and the struct of sizes that
//!   [`Kernel::needs`] fills. An operand is a view: the twin gets exactly its elements, and a shader finds its first
//!   element at `params.<operand>_at`.
//! * [`wgsl!`](crate::wgsl) names the files of a shader. WGSL's module scope has no order, so files one after the other
//!   are one module.
//!
//! [`Operation`] is a kernel without its type, so that a plan can hold it.
//!
//! `tests/own_kernel.rs` adds a kernel from outside, with two variants; the docs of [`Kernel`] show a small one.

use crate::float::Float;
use crate::tensor::{Dtype, Tensor};
use std::any::Any;
use std::fmt::{Debug, Write as _};
use std::sync::Arc;

/// Words of a uniform block that a shader may read.
pub const MAX_WORDS: usize = 64;

/// How a kernel uses one of its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    Read,
    /// Written (and read where the kernel adds to it).
    Write,
}

/// One storage binding of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The variable's name in the shader, and the label in the plan's listing.
    pub name: &'static str,
    /// How it is used.
    pub access: Access,
    /// What its elements are.
    pub dtype: Dtype,
    /// Whether a step may leave it out.
    pub optional: bool,
}

/// One parameter of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its name in Rust and in the shader.
    pub name: &'static str,
    /// Whether it is a float.
    pub real: bool,
}

/// The parameters of a kernel; made by [`parameters!`](crate::parameters).
pub trait Fields {
    /// In order.
    const FIELDS: &'static [Field];
    /// The exact values, in order.
    fn values(&self) -> Vec<f64>;
}

/// The operands of a kernel; made by [`operands!`](crate::operands).
pub trait Operands: Sized + 'static {
    /// Storage bindings in order.
    const BINDINGS: &'static [Binding];
    /// A tensor for each operand, by name.
    type Tensors<'a>;
    /// What the twin gets for each operand, by name.
    type Slices<'a, T: Float>;
    /// A number of elements for each operand, by name.
    type Sizes;
    /// In binding order.
    fn list<'a>(tensors: &Self::Tensors<'a>) -> Vec<Option<&'a Tensor>>;
    /// From binding order.
    fn tensors<'a>(list: &'a [Option<Tensor>]) -> Option<Self::Tensors<'a>>;
    /// From binding order.
    fn slices<T: Float>(list: Vec<Operand<'_, T>>) -> Self::Slices<'_, T>;
    /// In binding order.
    fn sizes(sizes: &Self::Sizes) -> Vec<u128>;
}

/// The elements of one operand; of one that a step leaves out, none.
#[derive(Debug)]
pub enum Operand<'a, T> {
    /// Floats, read only.
    Read(&'a [T]),
    /// Floats.
    Write(&'a mut [T]),
    /// Words, read only.
    ReadWords(&'a [u32]),
    /// Words.
    WriteWords(&'a mut [u32]),
}

/// The elements of its output that a kernel writes: `width` of every `stride` from `start` on, `rows` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First element, counted from the view's first.
    pub start: usize,
    /// Rows.
    pub rows: usize,
    /// Elements of a row that are written.
    pub width: usize,
    /// Distance of rows.
    pub stride: usize,
}

/// The kind of adapter a variant is chosen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterClass {
    /// A GPU.
    Hardware,
    /// A CPU that plays one (llvmpipe, WARP, SwiftShader): barriers are dear, registers are cheap.
    Software,
}

/// What a variant may know of the adapter it would run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Adapter {
    /// Its kind.
    pub class: AdapterClass,
}

impl Adapter {
    /// An adapter of a kind.
    pub fn of(class: AdapterClass) -> Adapter {
        Adapter { class }
    }
}

/// A file of WGSL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its path below `shaders/` without the ending.
    pub name: &'static str,
    /// Its text.
    pub source: &'static str,
}

/// `lstm_sigmoid` and `lstm_tanh` for shaders of other crates: right for every argument on every driver.
pub const ACTIVATION: Part =
    Part { name: "shared/activation", source: include_str!("../shaders/shared/activation.wgsl") };

/// One dispatch of a variant.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// The files it is put together from; the last one's name is the stage's.
    pub parts: &'static [Part],
    /// What it binds in group 0, in order: names of operands or of the variant's scratch. At most eight, which is what
    /// every WebGPU device has.
    pub operands: Vec<&'static str>,
    /// Values of the `override` declarations. They have no default in WGSL, so one that is forgotten is an error.
    pub constants: Vec<(&'static str, f64)>,
    /// Workgroups in x, y, z.
    pub grid: [u32; 3],
}

impl Stage {
    /// A stage without constants.
    pub fn new(parts: &'static [Part], operands: &[&'static str], grid: [u32; 3]) -> Stage {
        Stage { parts, operands: operands.to_vec(), constants: Vec::new(), grid }
    }

    /// With these constants; a bool is 0 or 1.
    pub fn with_constants(self, constants: &[(&'static str, bool)]) -> Stage {
        Stage { constants: constants.iter().map(|(name, value)| (*name, *value as u32 as f64)).collect(), ..self }
    }

    /// The last part's name.
    pub fn name(&self) -> &'static str {
        self.parts.last().map_or("", |part| part.name)
    }
}

/// One way to compute a kernel on a GPU. Every variant has the same twin and the same cases.
pub struct Variant<K: Kernel> {
    /// The name that listing, bench, doctor and [`Device::with_variant`](crate::Device::with_variant) use.
    pub name: &'static str,
    /// Whether it can and should be used; else why not. The reason goes into the listing.
    pub fits: for<'a> fn(&K, &K::Tensors<'a>, &Adapter) -> Result<(), String>,
    /// The dispatches that one repeat runs, one after the other. Dispatches are the only barrier between workgroups.
    pub stages: fn(&K) -> Vec<Stage>,
    /// How often the stages are run: T for a dispatch per time step, the number of chunks of a long sum, 1 for a loop
    /// inside the shader. Shaders read the number of the repeat as `repeat.x`. (An old software driver stops an
    /// invocation after 65,535 loop iterations in total, without a word; chunks keep every loop below that.)
    pub repeats: fn(&K) -> u32,
    /// Buffers of its own, by name, with their number of words: packed weights, partial sums, flags.
    pub scratch: fn(&K) -> Vec<(&'static str, u64)>,
}

/// Memory for the CPU's form of a kernel.
#[derive(Debug, Default)]
pub struct Scratch<T> {
    /// For anything; holds anything when a step begins.
    pub memory: Vec<T>,
    /// For a copy of the operands in [`Kernel::PACKS`], arranged for speed.
    pub packed: Arc<Vec<T>>,
    /// Whether `packed` holds it already: weights that nobody trains are packed once for all plans of a store.
    pub is_packed: bool,
}

/// A kernel: the struct of its parameters with everything that belongs to the word.
///
/// A kernel of your own, with the macros [`parameters!`](crate::parameters) and [`operands!`](crate::operands):
///
/// ```
/// use everloop::kernel::{Adapter, Kernel, Part, Stage, Variant, fold_elements};
/// use everloop::{Device, Float, Parameters, Recorder, Result, Store, Workspace, operands, parameters};
///
/// parameters! {
///     /// `y[e] = slope x[e]` where x is negative, else `x[e]`
///     LeakyRelu {
///         /// Elements.
///         len: u32,
///         /// Slope on the left.
///         slope: f64,
///     }
/// }
/// operands! { LeakyRelu { x: read, y: write } }
///
/// const SHADER: Part = Part {
///     name: "leaky_relu",
///     source: "
///         @group(0) @binding(0) var<storage, read> x: array<f32>;
///         @group(0) @binding(1) var<storage, read_write> y: array<f32>;
///         @compute @workgroup_size(256)
///         fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
///           let e = (wg.y * wgs.x + wg.x) * 256u + lane;
///           if (e < params.len) {
///             let v = x[params.x_at + e];
///             y[params.y_at + e] = select(params.slope * v, v, v >= 0.0);
///           }
///         }",
/// };
///
/// impl Kernel for LeakyRelu {
///     const NAME: &'static str = "leaky_relu";
///     fn variants() -> &'static [Variant<Self>] {
///         &[Variant {
///             name: "plain",
///             fits: |_, _, _| Ok(()),
///             stages: |k| vec![Stage::new(&[SHADER], &["x", "y"], fold_elements(k.len as u64, 256))],
///             repeats: |_| 1,
///             scratch: |_| Vec::new(),
///         }]
///     }
///     fn needs(&self) -> Option<Sizes> {
///         Some(Sizes { x: self.len as u128, y: self.len as u128 })
///     }
///     fn flops(&self) -> f64 {
///         self.len as f64
///     }
///     fn twin<T: Float>(&self, s: Slices<'_, T>) {
///         for (y, x) in s.y.iter_mut().zip(s.x) {
///             *y = if *x >= T::ZERO { *x } else { T::of(self.slope) * *x };
///         }
///     }
/// }
///
/// fn main() -> Result<()> {
///     let parameters = Parameters::new();
///     let mut rec = Recorder::new(&parameters);
///     let (x, y) = (rec.input("x", &[3])?, rec.activation("y", &[3])?);
///     rec.push(LeakyRelu { len: 3, slope: 0.5 }, Tensors { x: &x, y: &y })?;
///     let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
///     workspace.write(&x, &[1.0f32, -1.0, -4.0])?;
///     workspace.run()?;
///     assert_eq!(workspace.read::<f32>(&y)?, [1.0, -0.5, -2.0]);
///     Ok(())
/// }
/// ```
pub trait Kernel: Fields + Operands + Debug + Send + Sync + 'static {
    /// The word.
    const NAME: &'static str;

    /// Name of the CPU's form in [`Kernel::execute`].
    const FORM: &'static str = "twin";

    /// Operands of which [`Kernel::execute`] keeps a copy in [`Scratch::packed`].
    const PACKS: &'static [&'static str] = &[];

    /// The ways to compute it on a GPU, best first; the last fits everything.
    fn variants() -> &'static [Variant<Self>];

    /// How many elements each operand must have, so that nothing outside is read or written; checked when a step is
    /// recorded. `None` for parameters that make no sense, such as a size of zero.
    fn needs(&self) -> Option<Self::Sizes>;

    /// What it writes of its output, for a kernel with one output that may write a part of it; `None`: everything.
    fn extent(&self) -> Option<Extent> {
        None
    }

    /// What the packed copy depends on beside the operands packed.
    fn packing(&self) -> Vec<u32> {
        Vec::new()
    }

    /// Floating point operations of one run, to cut long work into several submits.
    fn flops(&self) -> f64;

    /// What the kernel computes, written from the equation.
    fn twin<T: Float>(&self, slices: Self::Slices<'_, T>);

    /// The same for speed.
    fn execute<T: Float>(&self, slices: Self::Slices<'_, T>, _scratch: &mut Scratch<T>) {
        self.twin(slices);
    }
}

/// A dispatch of a chosen variant.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    /// The stage.
    pub name: &'static str,
    /// The WGSL text: the uniform block, then all parts.
    pub source: String,
    /// Values of the `override` declarations.
    pub constants: Vec<(&'static str, f64)>,
    /// Workgroups in x, y, z.
    pub grid: [u32; 3],
    /// What it binds, in order.
    pub binds: Vec<Bind>,
}

/// What stands behind a binding of a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bind {
    /// An operand, by its place in the kernel's bindings.
    Operand(usize),
    /// A buffer of the variant's scratch, by its place.
    Scratch(usize),
}

/// A [`Kernel`] as a step of a plan holds it.
pub trait Operation: Any + Debug + Send + Sync {
    /// The word.
    fn name(&self) -> &'static str;
    /// Storage bindings in order.
    fn bindings(&self) -> &'static [Binding];
    /// The uniform block of a step with these operands: the fields, then the first element of each operand.
    fn words(&self, operands: &[Option<Tensor>]) -> Vec<u32>;
    /// Name and value of each parameter.
    fn fields(&self) -> Vec<(&'static str, f64)>;
    /// Places of the operands in [`Kernel::PACKS`].
    fn packs(&self) -> Vec<usize>;
    /// See [`Kernel::packing`].
    fn packing(&self) -> Vec<u32>;
    /// See [`Kernel::needs`].
    fn needs(&self) -> Option<Vec<u128>>;
    /// See [`Kernel::extent`].
    fn extent(&self) -> Option<Extent>;
    /// See [`Kernel::flops`].
    fn flops(&self) -> f64;
    /// See [`Kernel::FORM`].
    fn form(&self) -> &'static str;
    /// Names of all variants, best first.
    fn variants(&self) -> Vec<&'static str>;
    /// Whether a variant fits on an adapter; else why not.
    fn fits(&self, variant: &str, operands: &[Option<Tensor>], adapter: &Adapter) -> Result<(), String>;
    /// The dispatches of one repeat of a variant.
    fn dispatches(&self, variant: &str) -> Vec<Dispatch>;
    /// See [`Variant::repeats`].
    fn repeats(&self, variant: &str) -> u32;
    /// See [`Variant::scratch`].
    fn scratch(&self, variant: &str) -> Vec<(&'static str, u64)>;
    /// [`Kernel::twin`] or [`Kernel::execute`] in f32.
    fn run_f32(&self, operands: Vec<Operand<'_, f32>>, scratch: &mut Scratch<f32>, twin: bool);
    /// [`Kernel::twin`] or [`Kernel::execute`] in f64.
    fn run_f64(&self, operands: Vec<Operand<'_, f64>>, scratch: &mut Scratch<f64>, twin: bool);
}

impl dyn Operation {
    /// The kernel itself, if it is of this type.
    pub fn downcast<K: Kernel>(&self) -> Option<&K> {
        (self as &dyn Any).downcast_ref()
    }

    /// The variant that runs, and why: the one wanted where it fits, else the first that does.
    ///
    /// Error: the reasons, where none fits.
    pub fn choose(
        &self,
        operands: &[Option<Tensor>],
        adapter: &Adapter,
        wanted: Option<&'static str>,
    ) -> Result<(&'static str, String), String> {
        let mut why = Vec::new();
        if let Some(variant) = wanted {
            match self.can(variant, operands) {
                Ok(()) => return Ok((variant, "asked for".into())),
                Err(reason) => why.push(format!("not {variant}: {reason}")),
            }
        }
        for variant in self.variants() {
            match self.fits(variant, operands, adapter) {
                Ok(()) => return Ok((variant, why.join("; "))),
                Err(reason) => why.push(format!("not {variant}: {reason}")),
            }
        }
        Err(why.join("; "))
    }

    /// Whether a variant fits on some kind of adapter: what it is made for is no matter where it is asked for.
    pub fn can(&self, variant: &str, operands: &[Option<Tensor>]) -> Result<(), String> {
        let classes = [AdapterClass::Hardware, AdapterClass::Software];
        let [first, second] = classes.map(|class| self.fits(variant, operands, &Adapter::of(class)));
        first.or(second)
    }
}

fn variant<K: Kernel>(name: &str) -> Option<&'static Variant<K>> {
    K::variants().iter().find(|variant| variant.name == name)
}

impl<K: Kernel> Operation for K {
    fn name(&self) -> &'static str {
        K::NAME
    }
    fn bindings(&self) -> &'static [Binding] {
        K::BINDINGS
    }
    fn words(&self, operands: &[Option<Tensor>]) -> Vec<u32> {
        let fields = K::FIELDS.iter().zip(self.values());
        let fields = fields.map(|(field, v)| if field.real { (v as f32).to_bits() } else { v as u32 });
        fields.chain(operands.iter().map(|of| of.as_ref().map_or(0, |tensor| tensor.offset as u32))).collect()
    }
    fn fields(&self) -> Vec<(&'static str, f64)> {
        K::FIELDS.iter().map(|field| field.name).zip(self.values()).collect()
    }
    fn packs(&self) -> Vec<usize> {
        K::PACKS.iter().filter_map(|name| K::BINDINGS.iter().position(|binding| binding.name == *name)).collect()
    }
    fn packing(&self) -> Vec<u32> {
        Kernel::packing(self)
    }
    fn needs(&self) -> Option<Vec<u128>> {
        Kernel::needs(self).map(|sizes| K::sizes(&sizes))
    }
    fn extent(&self) -> Option<Extent> {
        Kernel::extent(self)
    }
    fn flops(&self) -> f64 {
        Kernel::flops(self)
    }
    fn form(&self) -> &'static str {
        K::FORM
    }
    fn variants(&self) -> Vec<&'static str> {
        K::variants().iter().map(|variant| variant.name).collect()
    }
    fn fits(&self, name: &str, operands: &[Option<Tensor>], adapter: &Adapter) -> Result<(), String> {
        match (variant::<K>(name), K::tensors(operands)) {
            (Some(variant), Some(tensors)) => (variant.fits)(self, &tensors, adapter),
            _ => Err("not known".into()),
        }
    }
    fn dispatches(&self, name: &str) -> Vec<Dispatch> {
        let Some(variant) = variant::<K>(name) else { return Vec::new() };
        let scratch = (variant.scratch)(self);
        let bind = |name: &&'static str| {
            let operand = K::BINDINGS.iter().position(|binding| binding.name == *name).map(Bind::Operand);
            let found = operand.or_else(|| scratch.iter().position(|(own, _)| own == name).map(Bind::Scratch));
            found.unwrap_or_else(|| panic!("`{}` has no operand and no scratch of the name `{name}`", K::NAME))
        };
        let stages = (variant.stages)(self).into_iter();
        let dispatch = |stage: Stage| Dispatch {
            name: stage.name(),
            source: uniforms::<K>() + &stage.parts.iter().map(|part| part.source).collect::<Vec<_>>().join("\n"),
            binds: stage.operands.iter().map(bind).collect(),
            constants: stage.constants,
            grid: stage.grid,
        };
        stages.map(dispatch).collect()
    }
    fn repeats(&self, name: &str) -> u32 {
        variant::<K>(name).map_or(0, |variant| (variant.repeats)(self))
    }
    fn scratch(&self, name: &str) -> Vec<(&'static str, u64)> {
        variant::<K>(name).map_or_else(Vec::new, |variant| (variant.scratch)(self))
    }
    fn run_f32(&self, operands: Vec<Operand<'_, f32>>, scratch: &mut Scratch<f32>, twin: bool) {
        let slices = K::slices(operands);
        if twin { self.twin(slices) } else { self.execute(slices, scratch) }
    }
    fn run_f64(&self, operands: Vec<Operand<'_, f64>>, scratch: &mut Scratch<f64>, twin: bool) {
        let slices = K::slices(operands);
        if twin { self.twin(slices) } else { self.execute(slices, scratch) }
    }
}

/// The declarations of group 1: what [`Operation::words`] holds, and the number of the repeat.
fn uniforms<K: Kernel>() -> String {
    let mut text = String::from("struct Params {\n");
    for field in K::FIELDS {
        let _ = writeln!(text, "  {}: {},", field.name, if field.real { "f32" } else { "u32" });
    }
    for binding in K::BINDINGS {
        let _ = writeln!(text, "  {}_at: u32,", binding.name);
    }
    text.push_str("}\n@group(1) @binding(0) var<uniform> params: Params;\n");
    text.push_str("@group(1) @binding(1) var<uniform> repeat: vec4<u32>;\n");
    text
}

/// The struct of a kernel's parameters: fields of `u32`, or of `f64` where they are real numbers.
#[macro_export]
macro_rules! parameters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind),* }
        impl $crate::kernel::Fields for $name {
            const FIELDS: &'static [$crate::kernel::Field] = &[
                $($crate::kernel::Field { name: stringify!($field), real: $crate::parameters!(@real $kind) }),*
            ];
            fn values(&self) -> Vec<f64> {
                vec![$(self.$field as f64),*]
            }
        }
    };
    (@real u32) => { false };
    (@real f64) => { true };
}

/// The operands of a kernel: `name: mode`, where a mode is `read`, `write` (floats), `read_words` or `write_words`
/// (`u32`), in brackets where a step may leave the operand out.
///
/// Makes the structs `Tensors` (what [`Recorder::push`](crate::Recorder::push) takes), `Slices` (what the twin gets)
/// and `Sizes` (what `needs` gives) beside it, so it stands once in a module.
#[macro_export]
macro_rules! operands {
    ($kernel:ident { $($name:ident : $mode:tt),* $(,)? }) => {
        /// The tensors of a step.
        #[allow(missing_docs)]
        #[derive(Debug, Clone, Copy)]
        pub struct Tensors<'a> { $(pub $name: $crate::operands!(@tensor 'a $mode)),* }
        /// The elements that the twin gets.
        #[allow(missing_docs, missing_debug_implementations)]
        pub struct Slices<'a, T> {
            $(pub $name: $crate::operands!(@slice 'a T $mode),)*
            pub float: std::marker::PhantomData<T>,
        }
        /// Numbers of elements.
        #[allow(missing_docs)]
        #[derive(Debug, Clone, Copy)]
        pub struct Sizes { $(pub $name: u128),* }
        #[allow(dead_code)]
        impl Sizes {
            /// That of each operand by name.
            pub fn of(size: impl Fn(&str) -> u128) -> Sizes {
                Sizes { $($name: size(stringify!($name))),* }
            }
        }
        impl $crate::kernel::Operands for $kernel {
            const BINDINGS: &'static [$crate::kernel::Binding] = &[$($crate::operands!(@binding $name $mode)),*];
            type Tensors<'a> = Tensors<'a>;
            type Slices<'a, T: $crate::Float> = Slices<'a, T>;
            type Sizes = Sizes;
            fn list<'a>(tensors: &Self::Tensors<'a>) -> Vec<Option<&'a $crate::Tensor>> {
                vec![$($crate::operands!(@option (tensors.$name) $mode)),*]
            }
            fn tensors<'a>(list: &'a [Option<$crate::Tensor>]) -> Option<Self::Tensors<'a>> {
                let mut list = list.iter().map(Option::as_ref);
                Some(Tensors { $($name: $crate::operands!(@given (list.next()?) $mode)),* })
            }
            fn slices<T: $crate::Float>(list: Vec<$crate::kernel::Operand<'_, T>>) -> Slices<'_, T> {
                let mut list = list.into_iter();
                Slices { $($name: $crate::operands!(@take (list.next()) $mode),)* float: std::marker::PhantomData }
            }
            fn sizes(sizes: &Sizes) -> Vec<u128> {
                vec![$(sizes.$name),*]
            }
        }
    };
    (@tensor $a:lifetime [$mode:ident]) => { Option<&$a $crate::Tensor> };
    (@tensor $a:lifetime $mode:ident) => { &$a $crate::Tensor };
    (@slice $a:lifetime $t:ident [$mode:ident]) => { $crate::operands!(@slice $a $t $mode) };
    (@slice $a:lifetime $t:ident read) => { &$a [$t] };
    (@slice $a:lifetime $t:ident write) => { &$a mut [$t] };
    (@slice $a:lifetime $t:ident read_words) => { &$a [u32] };
    (@slice $a:lifetime $t:ident write_words) => { &$a mut [u32] };
    (@option ($of:expr) [$mode:ident]) => { $of };
    (@option ($of:expr) $mode:ident) => { Some($of) };
    (@given ($of:expr) [$mode:ident]) => { $of };
    (@given ($of:expr) $mode:ident) => { $of? };
    (@binding $name:ident [$mode:ident]) => {
        $crate::kernel::Binding { optional: true, ..$crate::operands!(@binding $name $mode) }
    };
    (@binding $name:ident read) => { $crate::operands!(@binding $name Read F32) };
    (@binding $name:ident write) => { $crate::operands!(@binding $name Write F32) };
    (@binding $name:ident read_words) => { $crate::operands!(@binding $name Read U32) };
    (@binding $name:ident write_words) => { $crate::operands!(@binding $name Write U32) };
    (@binding $name:ident $access:ident $dtype:ident) => {
        $crate::kernel::Binding {
            name: stringify!($name),
            access: $crate::kernel::Access::$access,
            dtype: $crate::Dtype::$dtype,
            optional: false,
        }
    };
    (@take ($of:expr) [$mode:ident]) => { $crate::operands!(@take ($of) $mode) };
    (@take ($of:expr) read) => { $crate::operands!(@take ($of) as Read) };
    (@take ($of:expr) write) => { $crate::operands!(@take ($of) as Write) };
    (@take ($of:expr) read_words) => { $crate::operands!(@take ($of) as ReadWords) };
    (@take ($of:expr) write_words) => { $crate::operands!(@take ($of) as WriteWords) };
    (@take ($of:expr) as $kind:ident) => {
        match $of {
            Some($crate::kernel::Operand::$kind(slice)) => slice,
            _ => unreachable!("executors hand operands over as the bindings say"),
        }
    };
}

/// Files below the crate's `shaders/`, by path without the ending, and constants of type [`Part`](crate::kernel::Part)
/// by name, that together are one shader: `wgsl![ACTIVATION, "leaky_relu"]`.
#[macro_export]
macro_rules! wgsl {
    (@part $name:literal) => {
        $crate::kernel::Part {
            name: $name,
            source: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name, ".wgsl")),
        }
    };
    (@part $part:ident) => { $part };
    ($($part:tt),* $(,)?) => { &[$($crate::wgsl!(@part $part)),*] };
}

/// `Kernel::variants` of a kernel with one variant, `plain`, that binds all operands; `repeats` where it says so.
macro_rules! plain {
    ([$($part:literal),*], $grid:expr) => { $crate::kernel::plain!([$($part),*], $grid, |_| 1); };
    ([$($part:literal),*], $grid:expr, $repeats:expr) => {
        fn variants() -> &'static [$crate::kernel::Variant<Self>] {
            &[$crate::kernel::Variant {
                name: "plain",
                fits: |_, _, _| Ok(()),
                stages: |k| {
                    let names: Vec<_> = <Self as $crate::kernel::Operands>::BINDINGS.iter().map(|b| b.name).collect();
                    let grid: fn(&Self) -> [u32; 3] = $grid;
                    vec![$crate::kernel::Stage::new($crate::wgsl![$($part),*], &names, grid(k))]
                },
                repeats: $repeats,
                scratch: |_| Vec::new(),
            }]
        }
    };
}
pub(crate) use plain;

/// The product of sizes, or `None` if one of them is zero: a building block of [`Kernel::needs`].
pub fn sized(sizes: &[u32]) -> Option<u128> {
    sizes.iter().try_fold(1, |product, size| (*size > 0).then_some(product * *size as u128))
}

/// A grid of `workgroups` workgroups folded into two dimensions of at most 65,535.
pub fn fold(workgroups: u64) -> [u32; 3] {
    let x = workgroups.clamp(1, 65_535);
    [x as u32, workgroups.div_ceil(x).max(1) as u32, 1]
}

/// One workgroup for each `size` elements, folded.
pub fn fold_elements(elements: u64, size: u64) -> [u32; 3] {
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
