//! Parameters by name: all values in one flat block, so that norm, clip and optimizer are passes over it.

use crate::error::{Error, Result, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::ops::Range;

/// Every tensor starts on a multiple of this many floats: 256 bytes, the storage offset alignment that
/// every WebGPU device accepts.
pub const ALIGNMENT: usize = 64;

/// The configuration of what was declared, which files hold too; [`Weights::config`](crate::weights::Weights::config)
/// has an example.
pub trait Config: Serialize + DeserializeOwned {
    /// Its kind in a file: the type's name.
    const KIND: &'static str;

    /// Checks sizes and options.
    ///
    /// # Errors
    ///
    /// What the type's own `validate` refuses.
    fn check(&self) -> Result<()>;
}

/// One parameter of a [`Parameters`] block.
///
/// ```
/// use everloop::{Parameters, Rng, layers::DenseConfig};
/// # fn main() -> everloop::Result<()> {
/// let mut parameters = Parameters::new();
/// DenseConfig::new(3, 2).declare(&mut parameters, "head", &mut Rng::new(1))?;
/// let weight = parameters.entry("head.weight")?;
/// assert_eq!((weight.shape.as_slice(), weight.range.clone()), (&[2, 3][..], 0..6));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its name, PyTorch's where PyTorch has one.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where it lies in the block, in floats.
    pub range: Range<usize>,
}

/// The parameters of a model on the host: names, shapes, and values in one flat block.
///
/// Values are `f64` here so that nothing is lost on the way to either precision.
///
/// ```
/// # fn main() -> everloop::Result<()> {
/// let mut parameters = everloop::Parameters::new();
/// parameters.declare("linear.bias", &[3], vec![0.5, 0.0, -0.5])?;
/// assert_eq!(parameters.get("linear.bias")?, [0.5, 0.0, -0.5]);
/// assert_eq!(parameters.count(), 3);
/// # Ok(()) }
/// ```
///
/// Two are equal when names, shapes and values are; the configurations that layers leave here for
/// [files](crate::weights::Weights::config) do not count.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    entries: Vec<Parameter>,
    by_name: HashMap<String, usize>,
    values: Vec<f64>,
    /// By kind and path, as JSON.
    configs: BTreeMap<(&'static str, String), String>,
}

impl PartialEq for Parameters {
    fn eq(&self, other: &Parameters) -> bool {
        self.entries == other.entries && self.values == other.values
    }
}

impl Parameters {
    /// An empty block.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a parameter. Errors: a name that is taken, a shape with a zero, a wrong number of values, a non-finite value.
    pub fn declare(&mut self, name: impl Into<String>, shape: &[usize], values: Vec<f64>) -> Result<()> {
        let name = name.into();
        let taken = self.by_name.contains_key(&name);
        ensure!(!taken, Error::name("declaring a parameter", &name, "is taken already"));
        let len = shape.iter().product::<usize>();
        let some = len > 0 && !shape.is_empty();
        ensure!(some, Error::shape(format!("declaring parameter `{name}`"), "no size of zero", shape));
        check_values(&name, len, &values)?;
        let start = self.values.len();
        self.values.extend(values);
        self.values.resize((start + len).next_multiple_of(ALIGNMENT), 0.0);
        self.by_name.insert(name.clone(), self.entries.len());
        self.entries.push(Parameter { name, shape: shape.to_vec(), range: start..start + len });
        Ok(())
    }

    /// The values of a parameter, row-major.
    ///
    /// # Errors
    ///
    /// No parameter has this name.
    pub fn get(&self, name: &str) -> Result<&[f64]> {
        Ok(&self.values[self.entry(name)?.range.clone()])
    }

    /// Replaces the values of a parameter.
    ///
    /// # Errors
    ///
    /// No parameter has this name, or these are not as many finite numbers as it has.
    pub fn set(&mut self, name: &str, values: &[f64]) -> Result<()> {
        let range = self.entry(name)?.range.clone();
        check_values(name, range.len(), values)?;
        self.values[range].copy_from_slice(values);
        Ok(())
    }

    /// Name, shape and place of a parameter.
    ///
    /// # Errors
    ///
    /// No parameter has this name.
    pub fn entry(&self, name: &str) -> Result<&Parameter> {
        let unknown = || Error::name("looking up a parameter", name, "is not known");
        self.by_name.get(name).map(|index| &self.entries[*index]).ok_or_else(unknown)
    }

    /// All parameters in the order of declaration.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.entries.iter()
    }

    /// The number of parameters, padding not counted.
    pub fn count(&self) -> usize {
        self.entries.iter().map(|e| e.range.len()).sum()
    }

    /// Keeps the configuration of what was declared as `name`, for the files that these parameters are saved to.
    pub(crate) fn note_config<C: Config>(&mut self, name: &str, config: &C) -> Result<()> {
        let text = serde_json::to_string(config).map_err(|e| Error::config(C::KIND, "what JSON can hold", e))?;
        self.configs.insert((C::KIND, name.to_string()), text);
        Ok(())
    }

    /// Kind, path and JSON of each configuration.
    pub(crate) fn configs(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.configs.iter().map(|((kind, name), text)| (*kind, &**name, &**text))
    }

    /// Tells blocks of different names, shapes or places apart.
    pub(crate) fn layout(&self) -> u64 {
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        for entry in &self.entries {
            (&entry.name, &entry.shape, entry.range.start).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Floats of the whole block with its padding.
    pub(crate) fn block_len(&self) -> usize {
        self.entries.last().map_or(0, |last| last.range.end.next_multiple_of(ALIGNMENT))
    }

    /// Names and shapes without values: what it takes to record a plan.
    pub(crate) fn without_values(&self) -> Parameters {
        Parameters { values: Vec::new(), ..self.clone() }
    }

    /// The whole block with its padding, for upload.
    pub fn block(&self) -> &[f64] {
        &self.values
    }

    pub(crate) fn block_mut(&mut self) -> &mut [f64] {
        &mut self.values
    }
}

fn check_values(name: &str, len: usize, values: &[f64]) -> Result<()> {
    ensure!(values.len() == len, Error::value(name, format!("{len} values"), values.len()));
    check_finite(name, values.iter().copied())
}

pub(crate) fn check_finite(what: &str, values: impl Iterator<Item = f64>) -> Result<()> {
    match values.enumerate().find(|(_, v)| !v.is_finite()) {
        Some((index, value)) => Err(Error::NonFinite { what: what.to_string(), index, value }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_start_aligned_and_padding_is_zero() {
        let mut p = Parameters::new();
        p.declare("a", &[3], vec![1.0; 3]).unwrap();
        p.declare("b", &[65], vec![2.0; 65]).unwrap();
        assert_eq!(p.entry("b").unwrap().range, 64..129);
        assert_eq!(p.block().len(), 192);
        assert_eq!(p.block().iter().sum::<f64>(), 133.0);
        assert_eq!(p.count(), 68);
    }

    #[test]
    fn bad_declarations_are_refused() {
        let mut p = Parameters::new();
        p.declare("a", &[1], vec![1.0]).unwrap();
        assert!(matches!(p.declare("a", &[1], vec![1.0]), Err(Error::Name { .. })));
        assert!(matches!(p.declare("b", &[0], vec![]), Err(Error::Shape { .. })));
        assert!(matches!(p.declare("b", &[2], vec![1.0]), Err(Error::Value { .. })));
        assert!(matches!(p.declare("b", &[2], vec![1.0, f64::NAN]), Err(Error::NonFinite { index: 1, .. })));
        assert!(matches!(p.get("c"), Err(Error::Name { .. })));
    }
}
