//! Weights in and out: safetensors under PyTorch's names, and the layouts of other frameworks.
//!
//! | | |
//! |---|---|
//! | [`Weights`] | a file that has been read and checked: tensors by name |
//! | [`Weights::import`] | fills declared [`Parameters`] by PyTorch's names, under any prefix |
//! | [`ImportReport`] | what was matched, unused or missing; printing it gives a table |
//! | [`Weights::config`] | with which sizes and options a layer was declared, in a file of ours |
//! | [`Weights::survey`] | what LSTMs a file holds, by the stored configuration, or guessed from names and shapes |
//! | [`save`], [`save_arrays`], [`to_bytes`] | a file that `torch.load_state_dict(strict=True)` takes |
//! | [`layout`] | gate orders, bias rules and other parts of Keras, TensorFlow, ONNX, Deep-Breathe, and the textbook's arrays |
//! | [`textbook`] | an LSTM's parameters by the textbook's names |
//!
//! ```
//! use everloop::weights::{self, Export, Import, Weights};
//! use everloop::{Parameters, Rng, layers::LstmConfig};
//! # fn main() -> everloop::Result<()> {
//! let mut parameters = Parameters::new();
//! LstmConfig::new(3, 4).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
//! let bytes = weights::to_bytes(&parameters, &Export::new().with_prefix("encoder"))?;
//! let file = Weights::from_bytes(&bytes)?; // Weights::open reads a file
//! assert_eq!(file.get("encoder.lstm.weight_ih_l0").unwrap().shape(), [16, 3]);
//! let report = file.import(&mut parameters, &Import::new().with_prefix("encoder"))?;
//! assert!(report.is_complete());
//! # Ok(()) }
//! ```
//!
//! # What is refused
//!
//! A file is untrusted. Only regular files are read; the header's length is checked against the file before anything
//! is allocated; the header is strict JSON, without unknown fields, and every name stands once; the tensors cover the
//! data without holes or overlaps, and no shape overflows. What loads is what the reference parser (the crate
//! `safetensors`) reads; some of what that accepts is refused here: duplicate names, unknown fields, blanks before the
//! header's brace, entries of more than 4 KiB, and headers of so many almost empty tensors, or of texts with escapes so
//! long, that reading them would need more than 1 MiB above the file's size. Reading allocates at most the file's size
//! and 1 MiB.
//!
//! # Fuzzing
//!
//! `fuzz/fuzz_targets/weights.rs` holds the loader against the reference parser with libFuzzer, from the files in
//! `fuzz/corpus/weights`. It needs a C++ compiler, and no nightly Rust:
//!
//! ```sh
//! cd fuzz && mkdir -p found
//! RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
//!     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
//!     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1" \
//!     cargo run --release --target x86_64-unknown-linux-gnu --bin weights -- \
//!     found corpus/weights -max_total_time=60 -max_len=4096 -rss_limit_mb=512
//! ```
//!
//! New inputs go into the first folder.

mod config;
mod dtype;
#[cfg(not(target_arch = "wasm32"))]
mod file;
mod header;
mod import;
mod layer;
pub mod layout;
mod message;
mod report;
mod solve;
mod survey;
pub(crate) mod tables;
pub mod textbook;
mod write;

pub use crate::parameters::Config;
pub use dtype::Dtype;
pub use header::TensorInfo;
pub use import::Import;
pub use report::{ImportReport, Line, Status};
pub use survey::{Found, Survey};
pub use write::{Array, Export, arrays_to_bytes, to_bytes};
#[cfg(not(target_arch = "wasm32"))]
pub use write::{save, save_arrays};

#[cfg(doc)]
use crate::Parameters;
use crate::error::{Result, ensure};
use header::Header;

/// A safetensors file in memory, checked.
///
/// ```
/// use everloop::weights::Weights;
/// # fn main() -> everloop::Result<()> {
/// let header = br#"{"w":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#;
/// let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &[0x00, 0x3c, 0x00, 0xc0]].concat();
/// let file = Weights::from_bytes(&bytes)?;
/// assert_eq!((file.tensors()[0].name(), file.values("w")?), ("w", vec![1.0, -2.0]));
/// assert!(Weights::from_bytes(&bytes[1..]).is_err());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Weights {
    header: Header,
    data: Vec<u8>,
}

impl Weights {
    /// Checks the bytes of a file.
    ///
    /// # Errors
    ///
    /// See [what is refused](self#what-is-refused).
    pub fn from_bytes(bytes: &[u8]) -> Result<Weights> {
        let (first, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| too_short(bytes.len() as u64))?;
        let len = header::length(*first, bytes.len() as u64)?;
        // `length` has compared it with the bytes that are there
        let (header, data) = rest.split_at(len as usize);
        let header = header::parse(header, data.len() as u64)?;
        Ok(Weights { header, data: data.to_vec() })
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// Not a regular file (a folder, pipe or device is never opened), cannot be read, or
    /// [refused](self#what-is-refused).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<Weights> {
        let (header, data) = file::read(path.as_ref())?;
        Ok(Weights { header, data })
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.place(name).map(|index| &self.header.tensors[index])
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.header.tensors.binary_search_by(|t| t.name().cmp(name)).ok()
    }

    /// The file's `__metadata__`: pairs of key and text, sorted.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        self.header.metadata.iter().map(|(key, value)| (&**key, &**value))
    }

    /// The little-endian bytes of a tensor of this file.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        self.data.get(tensor.start as usize..tensor.end as usize).unwrap_or_default()
    }

    /// The values of a tensor, row-major; F16, BF16, F32 and F64 convert exactly, NaN and infinities as they are.
    ///
    /// # Errors
    ///
    /// No tensor of this name, or of another type.
    pub fn values(&self, name: &str) -> Result<Vec<f64>> {
        let tensor = self.get(name).ok_or_else(|| message::tensor(name, "is not in the file"))?;
        ensure!(tensor.dtype().is_float(), message::tensor(name, not_a_float(tensor.dtype())));
        Ok(self.floats(tensor).collect())
    }

    fn floats(&self, tensor: &TensorInfo) -> impl Iterator<Item = f64> + '_ {
        tensor.dtype().values(self.bytes(tensor))
    }

    /// Position and value of the first NaN or infinity, and how many there are; `None` where all are finite.
    pub fn first_non_finite(&self, tensor: &TensorInfo) -> Option<(usize, f64, usize)> {
        let mut found = self.floats(tensor).enumerate().filter(|(_, v)| !v.is_finite());
        let (index, value) = found.next()?;
        Some((index, value, 1 + found.count()))
    }
}

fn too_short(len: u64) -> crate::Error {
    message::file(format!("{len} bytes are too few: the header's length alone takes 8"))
}

fn not_a_float(dtype: Dtype) -> String {
    format!("is {}; F16, BF16, F32 and F64 can be weights", dtype.name())
}
