//! Saving: names checked, values checked, then one pass.

use super::header::{Entry, MAX_HEADER, METADATA};
use super::{Dtype, config, message};
use crate::error::{Result, ensure};
use crate::layers::path;
use crate::options::options;
use crate::parameters::Parameters;
use serde::Serializer;
use serde::ser::SerializeMap;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;

/// How parameters become a file: under which prefix, in which precision.
///
/// ```
/// use everloop::weights::Export;
/// let export = Export::new().with_prefix("encoder").with_f64();
/// assert_eq!((export.prefix.as_str(), export.f64), ("encoder", true));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Export {
    /// Put before every name, with a dot; empty at first.
    pub prefix: String,
    /// Write F64 instead of F32; no at first. F32 rounds to the nearest.
    pub f64: bool,
}

impl Export {
    /// F32 under the names as they are.
    pub fn new() -> Self {
        Self::default()
    }

    options! {
        /// With this prefix: `encoder` makes `encoder.lstm.weight_ih_l0` of `lstm.weight_ih_l0`.
        with_prefix(prefix: impl Into<String>) { prefix: prefix.into() }
        /// In F64, which keeps every bit.
        with_f64() { f64: true }
    }
}

/// A named array that is no parameter of ours: what a [layout](super::layout) reads and writes.
///
/// ```
/// use everloop::weights::{Array, Export, Weights, arrays_to_bytes};
/// # fn main() -> everloop::Result<()> {
/// let mean = Array { name: "mean".into(), shape: vec![2], values: vec![0.5, 1.5] };
/// let file = Weights::from_bytes(&arrays_to_bytes(&[mean], &Export::new().with_prefix("input"))?)?;
/// assert_eq!(file.values("input.mean")?, [0.5, 1.5]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Its name in the file.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f64>,
}

/// Error: a shape that does not fit the values.
pub(super) fn fits(name: &str, shape: &[usize], values: &[f64]) -> Result<()> {
    let count = shape.iter().try_fold(1usize, |n, size| n.checked_mul(*size));
    let wrong = || format!("shape {} does not fit its {} values", message::shape(shape), values.len());
    ensure!(count == Some(values.len()), message::tensor(name, wrong()));
    Ok(())
}

/// A tensor about to be written: name, shape and values.
type Tensor<'a, Name = String> = (Name, &'a [usize], &'a [f64]);

/// A file about to be written.
struct Content<'a> {
    tensors: Vec<Tensor<'a>>,
    metadata: BTreeMap<String, &'a str>,
    f64: bool,
}

/// The bytes of a safetensors file with all parameters, sorted by name. Its metadata is `"format": "pt"`, and the
/// [configuration](super::Weights::config) of each layer that was declared.
///
/// # Errors
///
/// A name that is empty or `__metadata__`, a name that two tensors share, a value that is not finite or that F32 cannot
/// hold.
pub fn to_bytes(parameters: &Parameters, export: &Export) -> Result<Vec<u8>> {
    Content::of_parameters(parameters, export)?.bytes()
}

/// The bytes of a safetensors file with these arrays and the metadata `"format": "pt"`.
///
/// # Errors
///
/// As [`to_bytes`], and a shape that does not fit its values.
pub fn arrays_to_bytes(arrays: &[Array], export: &Export) -> Result<Vec<u8>> {
    Content::of_arrays(arrays, export).bytes()
}

/// Writes all parameters to a safetensors file; the content is [`to_bytes`]'s.
///
/// The file is replaced whole and durably, or not at all: a temporary file (`.everloop-<random>.tmp`, made with O_EXCL in
/// the same folder) is written, synced and renamed, then the folder is synced. On an error it is removed (a killed
/// process can leave it behind), and an existing file keeps its content. An existing file's mode is kept, a new one's is
/// 0666 without the umask. Where `path` is a symbolic link, the link stays and the file it points to is replaced (or made). Other hard
/// links to the old file keep the old content; owner and extended attributes are those of a new file.
///
/// # Errors
///
/// Those of [`to_bytes`]; then nothing was touched. A path that is there and no regular file, and whatever the system
/// refuses.
///
/// ```
/// use everloop::weights::{self, Export, Weights};
/// use everloop::{Parameters, Rng, layers::DenseConfig};
/// # fn main() -> everloop::Result<()> {
/// let mut parameters = Parameters::new();
/// let config = DenseConfig::new(3, 2);
/// config.declare(&mut parameters, "head", &mut Rng::new(1))?;
/// let path = std::env::temp_dir().join(format!("everloop-doc-{}.safetensors", std::process::id()));
/// weights::save(&path, &parameters, &Export::new())?;
/// assert_eq!(Weights::open(&path)?.config::<DenseConfig>("head")?, config);
/// # std::fs::remove_file(path).unwrap();
/// # Ok(()) }
/// ```
#[cfg(not(target_arch = "wasm32"))]
pub fn save(target: impl AsRef<std::path::Path>, parameters: &Parameters, export: &Export) -> Result<()> {
    Content::of_parameters(parameters, export)?.save(target.as_ref())
}

/// Writes these arrays to a safetensors file; the content is [`arrays_to_bytes`]'s, the file is replaced as by [`save`].
///
/// # Errors
///
/// Those of [`arrays_to_bytes`] and [`save`].
#[cfg(not(target_arch = "wasm32"))]
pub fn save_arrays(target: impl AsRef<std::path::Path>, arrays: &[Array], export: &Export) -> Result<()> {
    Content::of_arrays(arrays, export).save(target.as_ref())
}

/// `prefix.name`; a prefix may bring its own separator, as in `rnn/cell/`.
pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.ends_with(['.', '/']) { format!("{prefix}{name}") } else { path(prefix, name) }
}

impl<'a> Content<'a> {
    fn of_parameters(parameters: &'a Parameters, export: &Export) -> Result<Self> {
        let arrays = parameters.iter().map(|p| Ok((&*p.name, &*p.shape, parameters.get(&p.name)?)));
        let mut content = Content::new(arrays.collect::<Result<Vec<_>>>()?, export);
        // what has no name is at the prefix itself
        let place = |name: &str| match name {
            "" => export.prefix.trim_end_matches(['.', '/']).to_string(),
            _ => join(&export.prefix, name),
        };
        let configs = parameters.configs().map(|(kind, name, text)| (config::key(kind, &place(name)), text));
        content.metadata.extend(configs);
        Ok(content)
    }

    fn of_arrays(arrays: &'a [Array], export: &Export) -> Self {
        Content::new(arrays.iter().map(|a| (&*a.name, &*a.shape, &*a.values)).collect(), export)
    }

    fn new(arrays: Vec<Tensor<'a, &str>>, export: &Export) -> Self {
        // an empty name stays empty, whatever the prefix, and is refused
        let named = |name: &str| if name.is_empty() { String::new() } else { join(&export.prefix, name) };
        let mut tensors: Vec<Tensor<'a>> = arrays.into_iter().map(|(n, shape, v)| (named(n), shape, v)).collect();
        tensors.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        Content { tensors, metadata: [("format".to_string(), "pt")].into(), f64: export.f64 }
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write(&self.header()?, &mut bytes).map_err(|e| message::file(e.to_string()))?;
        Ok(bytes)
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn save(&self, target: &std::path::Path) -> Result<()> {
        let header = self.header()?;
        super::file::replace(target, |to| self.write(&header, to))
    }

    /// Checks everything, and makes the header.
    fn header(&self) -> Result<Vec<u8>> {
        let (dtype, width) = if self.f64 { (Dtype::F64, 8) } else { (Dtype::F32, 4) };
        let mut last = None;
        for (name, shape, values) in &self.tensors {
            let wrong = |cause: &str| message::tensor(name, cause);
            ensure!(!name.is_empty(), wrong("an empty name cannot be saved"));
            ensure!(name != METADATA, wrong("is the format's own name, and no tensor can have it"));
            ensure!(last.replace(name) != Some(name), wrong("two tensors would be saved under this name"));
            fits(name, shape, values)?;
            let held = |v: f64| if self.f64 { v.is_finite() } else { (v as f32).is_finite() };
            if let Some((index, value)) = values.iter().enumerate().find(|(_, v)| !held(**v)) {
                return Err(wrong(&format!("element {index} is {value:e}, no finite {}", dtype.name())));
            }
        }
        let mut header = self.json(dtype, width).map_err(|e| message::file(e.to_string()))?;
        // readers that map the file want its data aligned
        header.resize(header.len().next_multiple_of(8), b' ');
        let cause = "the names and shapes do not fit into a header of 100 MB";
        ensure!(header.len() as u64 <= MAX_HEADER, message::file(cause));
        Ok(header)
    }

    fn json(&self, dtype: Dtype, width: u64) -> serde_json::Result<Vec<u8>> {
        let mut json = serde_json::Serializer::new(Vec::new());
        let mut map = json.serialize_map(None)?;
        map.serialize_entry(METADATA, &self.metadata)?;
        let mut at = 0;
        for (name, shape, values) in &self.tensors {
            let end = at + values.len() as u64 * width;
            map.serialize_entry(name, &Entry { dtype, shape: Cow::Borrowed(shape), data_offsets: (at, end) })?;
            at = end;
        }
        map.end()?;
        Ok(json.into_inner())
    }

    fn write(&self, header: &[u8], to: &mut dyn Write) -> std::io::Result<()> {
        to.write_all(&(header.len() as u64).to_le_bytes())?;
        to.write_all(header)?;
        for value in self.tensors.iter().flat_map(|(.., values)| *values) {
            match self.f64 {
                true => to.write_all(&value.to_le_bytes())?,
                false => to.write_all(&(*value as f32).to_le_bytes())?,
            }
        }
        Ok(())
    }
}
