//! The fields of a manifest's cases, and the files they name.

use crate::{Result, Stop, error, refused};
use everloop::weights::{Array, Dtype, Weights};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The fields of a case that nobody has taken yet.
#[derive(Deserialize, Default)]
pub struct Fields(Map<String, Value>);

/// The cases of a manifest.
pub fn read(path: &Path, format: &str) -> Result<Vec<Fields>> {
    #[derive(Deserialize)]
    struct Manifest {
        format: Option<String>,
        cases: Vec<Fields>,
    }
    let wrong = |why: String| Stop::Error(format!("{}: {why}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    match manifest.format.filter(|found| found != format) {
        Some(found) => Err(wrong(format!("format \"{found}\", expected \"{format}\"; see --format"))),
        None => Ok(manifest.cases),
    }
}

impl Fields {
    /// Takes a field; null is none.
    pub fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        match self.0.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(&value).map(Some).or_else(|e| error(format!("`{key}` = {value}: {e}"))),
        }
    }

    pub fn need<T: DeserializeOwned>(&mut self, key: &str) -> Result<T> {
        self.take(key)?.map_or_else(|| error(format!("no `{key}`")), Ok)
    }

    pub fn sizes<const N: usize>(&mut self, keys: [&str; N]) -> Result<[usize; N]> {
        let mut sizes = [0; N];
        sizes.iter_mut().zip(keys).try_for_each(|(size, key)| self.need(key).map(|found| *size = found))?;
        Ok(sizes)
    }

    pub fn flag(&mut self, key: &str, otherwise: bool) -> Result<bool> {
        Ok(self.take(key)?.unwrap_or(otherwise))
    }

    /// Takes fields that change no result.
    pub fn ignore(&mut self, keys: &[&str]) {
        self.0.retain(|key, _| !keys.contains(&key.as_str()));
    }

    /// Takes a field that can have one value only.
    pub fn only(&mut self, key: &str, supported: impl Into<Value>) -> Result<()> {
        let supported = supported.into();
        match self.take::<Value>(key)?.filter(|found| *found != supported) {
            Some(found) => refused(format!("`{key}` = {found}")),
            None => Ok(()),
        }
    }

    /// Moves fields to `other`, where it does not have them.
    pub fn move_to<'a>(&mut self, other: &mut Fields, keys: impl Iterator<Item = &'a str>) {
        for key in keys {
            if let Some(value) = self.0.remove(key) {
                other.0.entry(key).or_insert(value);
            }
        }
    }

    /// Refuses what nobody took, if it is on: of a node's attributes anything, of a case flags and numbers. Text and
    /// lists tell about a case, and so do some numbers.
    pub fn finish(self, attributes: bool) -> Result<()> {
        let option = |key: &str, value: &Value| match value {
            Value::Bool(_) | Value::Number(_) => {
                let told = ["seed", "_observed", "_scale", "_f64"].iter().any(|end| key.ends_with(end));
                !told && !["id", "index"].contains(&key) && !key.contains("_max_abs") && !key.starts_with("ort_")
            }
            _ => key.contains("activation") || key.contains("linearity"),
        };
        let off = [json!(null), json!(false), json!(0), json!(0.0), json!(""), json!([]), json!({})];
        match self.0.iter().find(|(key, value)| !off.contains(value) && (attributes || option(key, value))) {
            Some((key, value)) => refused(format!("`{key}` = {value}")),
            None => Ok(()),
        }
    }

    /// Opens the file that a field names.
    pub fn open(&mut self, dir: &Path, key: &str) -> Result<Weights> {
        let file: String = self.need(key)?;
        Weights::open(dir.join(&file)).or_else(|e| error(format!("{file}: {e}")))
    }

    /// Opens the file that a field names; it must have the tensors that the manifest lists.
    pub fn open_listed(&mut self, dir: &Path, key: &str) -> Result<Weights> {
        let file = self.open(dir, key)?;
        let listed: Map<String, Value> = self.take("tensors")?.unwrap_or_default();
        match listed.keys().find(|name| file.get(name).is_none()) {
            Some(name) => error(format!("no tensor `{name}`, which the manifest lists")),
            None => Ok(file),
        }
    }

    /// How many steps each row has, from the file or else the manifest.
    pub fn lengths(&mut self, key: &str, file: &Weights) -> Result<Option<Vec<u32>>> {
        let listed = self.take(key)?;
        let Some(tensor) = file.get(key) else { return Ok(listed) };
        let width = match tensor.dtype() {
            Dtype::I32 => 4,
            Dtype::I64 => 8,
            other => return error(format!("`{key}` is {}, expected I32 or I64", other.name())),
        };
        // little-endian; negative or too large becomes the largest, which no run takes
        let number =
            |bytes: &[u8]| bytes.iter().rev().try_fold(0u32, |n, b| n.checked_mul(256)?.checked_add(*b as u32));
        let stored = file.bytes(tensor).chunks_exact(width).map(|bytes| number(bytes).unwrap_or(u32::MAX)).collect();
        match listed.filter(|listed| *listed != stored) {
            Some(listed) => error(format!("`{key}` is {listed:?} in the manifest, {stored:?} in the file")),
            None => Ok(Some(stored)),
        }
    }

    pub fn limits(&mut self) -> Result<Limits> {
        let [relative, absolute, of_max] = ["rtol", "atol", "atol_times_tensor_max"].map(|key| self.take::<f64>(key));
        let all = [relative?, absolute?, of_max?];
        match all.iter().any(Option::is_some) && all.iter().flatten().all(|limit| *limit >= 0.0) {
            true => Ok(all.map(Option::unwrap_or_default)),
            false => error("no tolerance: `rtol` or `atol`, at least 0"),
        }
    }
}

/// rtol, atol, atol_times_tensor_max: `|got - want| <= atol + atol_times_tensor_max * max|want| + rtol * |want|`.
pub type Limits = [f64; 3];

/// A tensor that must have this shape.
pub fn array(file: &Weights, name: &str, shape: &[usize]) -> Result<Array> {
    shaped(file, name, shape)?;
    Ok(Array { name: name.into(), shape: shape.to_vec(), values: file.values(name)? })
}

/// As [`array`], without the values: before anything is made that has a size of the manifest.
pub fn shaped(file: &Weights, name: &str, shape: &[usize]) -> Result<()> {
    match file.get(name).map(|tensor| tensor.shape()) {
        Some(found) if found == shape => Ok(()),
        Some(found) => error(format!("`{name}` has shape {found:?}, expected {shape:?}")),
        None => error(format!("no tensor `{name}`")),
    }
}

/// As [`array`], zeros where the file has none.
pub fn array_or_zeros(file: &Weights, name: &str, shape: &[usize]) -> Result<Array> {
    match file.get(name) {
        Some(_) => array(file, name, shape),
        None => Ok(Array { name: name.into(), shape: shape.to_vec(), values: vec![0.0; shape.iter().product()] }),
    }
}
