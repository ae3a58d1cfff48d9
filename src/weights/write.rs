//! Saving: names checked, values checked, then one pass.

use super::message;
use crate::error::Result;
use crate::layers::path;
use crate::parameters::Parameters;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write;

/// How parameters become a file: under which prefix, in which precision.
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

    /// With this prefix: `encoder` makes `encoder.lstm.weight_ih_l0` of `lstm.weight_ih_l0`.
    pub fn with_prefix(self, prefix: impl Into<String>) -> Self {
        Export { prefix: prefix.into(), ..self }
    }

    /// In F64, which keeps every bit.
    pub fn with_f64(self) -> Self {
        Export { f64: true, ..self }
    }
}

/// A named array that is no parameter of ours: what a [layout](super::layout) reads and writes.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Its name in the file.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f64>,
}

/// A tensor about to be written.
struct Entry<'a> {
    name: String,
    shape: &'a [usize],
    values: &'a [f64],
}

impl<'a> Entry<'a> {
    /// An empty name stays empty, whatever the prefix, and is refused.
    fn new(prefix: &str, name: &str, shape: &'a [usize], values: &'a [f64]) -> Self {
        let name = if name.is_empty() { String::new() } else { join(prefix, name) };
        Entry { name, shape, values }
    }
}

/// The bytes of a safetensors file with all parameters, sorted by name, with the metadata `{"format":"pt"}`.
///
/// Errors: a name that is empty or `__metadata__`, a name that two tensors share, a value that is not finite or that
/// F32 cannot hold.
pub fn to_bytes(parameters: &Parameters, export: &Export) -> Result<Vec<u8>> {
    bytes(entries(parameters, &export.prefix)?, export.f64)
}

/// The bytes of a safetensors file with these arrays; `prefix` and errors as in [`to_bytes`], and a shape that does
/// not fit its values.
pub fn arrays_to_bytes(arrays: &[Array], export: &Export) -> Result<Vec<u8>> {
    bytes(array_entries(arrays, &export.prefix), export.f64)
}

fn bytes(entries: Vec<Entry<'_>>, f64: bool) -> Result<Vec<u8>> {
    let (header, entries) = prepare(entries, f64)?;
    let mut bytes = Vec::new();
    write(&header, &entries, f64, &mut bytes).map_err(|e| message::file(e.to_string()))?;
    Ok(bytes)
}

/// Writes all parameters to a safetensors file. The content is [`to_bytes`]'s, and so are the errors; then nothing
/// was touched.
///
/// The file is replaced whole and durably, or not at all: a temporary file (`.everloop-<process>-<number>.tmp`, made
/// with O_EXCL in the same folder) is written, synced and renamed, then the folder is synced. On an error it is
/// removed (a killed process can leave it behind), and an existing file keeps its content. An existing file's mode is kept, a new one's is 0666 without the
/// umask. Where `path` is a symbolic link, the link stays and the file it points to is replaced (or made). Other hard
/// links to the old file keep the old content; owner and extended attributes are those of a new file. A path that
/// is there and no regular file is refused.
#[cfg(not(target_arch = "wasm32"))]
pub fn save(target: impl AsRef<std::path::Path>, parameters: &Parameters, export: &Export) -> Result<()> {
    save_entries(target.as_ref(), entries(parameters, &export.prefix)?, export.f64)
}

/// Writes these arrays to a safetensors file; content and errors are [`arrays_to_bytes`]'s, the file is replaced as by
/// [`save`].
#[cfg(not(target_arch = "wasm32"))]
pub fn save_arrays(target: impl AsRef<std::path::Path>, arrays: &[Array], export: &Export) -> Result<()> {
    save_entries(target.as_ref(), array_entries(arrays, &export.prefix), export.f64)
}

#[cfg(not(target_arch = "wasm32"))]
fn save_entries(target: &std::path::Path, entries: Vec<Entry<'_>>, f64: bool) -> Result<()> {
    let (header, entries) = prepare(entries, f64)?;
    super::file::replace(target, |to| write(&header, &entries, f64, to))
}

fn entries<'a>(parameters: &'a Parameters, prefix: &str) -> Result<Vec<Entry<'a>>> {
    parameters.iter().map(|p| Ok(Entry::new(prefix, &p.name, &p.shape, parameters.get(&p.name)?))).collect()
}

fn array_entries<'a>(arrays: &'a [Array], prefix: &str) -> Vec<Entry<'a>> {
    arrays.iter().map(|a| Entry::new(prefix, &a.name, &a.shape, &a.values)).collect()
}

/// `prefix.name`; a prefix may bring its own separator, as in `rnn/cell/`.
pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.ends_with(['.', '/']) { format!("{prefix}{name}") } else { path(prefix, name) }
}

/// Checks everything, and makes the header and the order of the data.
fn prepare(mut entries: Vec<Entry<'_>>, f64: bool) -> Result<(Vec<u8>, Vec<Entry<'_>>)> {
    let width = if f64 { 8 } else { 4 };
    let mut names = HashSet::new();
    for Entry { name, shape, values } in &entries {
        if name.is_empty() {
            return Err(message::tensor(name, "an empty name cannot be saved"));
        }
        if name == "__metadata__" {
            return Err(message::tensor(name, "is the format's own name, and no tensor can have it"));
        }
        if !names.insert(name.as_str()) {
            return Err(message::tensor(name, "two tensors would be saved under this name"));
        }
        if shape.iter().try_fold(1usize, |n, size| n.checked_mul(*size)) != Some(values.len()) {
            let shape = message::shape(shape);
            return Err(message::tensor(name, format!("shape {shape} does not fit its {} values", values.len())));
        }
        let held = |v: f64| if f64 { v.is_finite() } else { (v as f32).is_finite() };
        if let Some((index, value)) = values.iter().enumerate().find(|(_, v)| !held(**v)) {
            let dtype = if f64 { "F64" } else { "F32" };
            return Err(message::tensor(name, format!("element {index} is {value:e}, no finite {dtype}")));
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut at = 0;
    for Entry { name, shape, values } in &entries {
        let end = at + values.len() * width;
        let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
        text.push_str(",\"");
        quote(&mut text, name);
        let (dtype, shape) = (width * 8, shape.join(","));
        let _ = write!(text, r#"":{{"dtype":"F{dtype}","shape":[{shape}],"data_offsets":[{at},{end}]}}"#);
        at = end;
    }
    text.push('}');
    // readers that map the file want its data aligned
    while text.len() % 8 != 0 {
        text.push(' ');
    }
    if text.len() as u64 > super::header::MAX_HEADER {
        return Err(message::file("the names and shapes do not fit into a header of 100 MB"));
    }
    Ok((text.into_bytes(), entries))
}

fn quote(text: &mut String, name: &str) {
    for c in name.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\0'..='\x1f' => {
                let _ = write!(text, "\\u{:04x}", c as u32);
            }
            _ => text.push(c),
        }
    }
}

fn write(header: &[u8], entries: &[Entry<'_>], f64: bool, to: &mut dyn Write) -> std::io::Result<()> {
    to.write_all(&(header.len() as u64).to_le_bytes())?;
    to.write_all(header)?;
    for value in entries.iter().flat_map(|e| e.values) {
        match f64 {
            true => to.write_all(&value.to_le_bytes())?,
            false => to.write_all(&(*value as f32).to_le_bytes())?,
        }
    }
    Ok(())
}
