//! The configurations of layers, which travel in a file's metadata: the key `everloop.KIND:PATH`, and JSON.

use super::write::join;
use super::{Weights, message};
use crate::error::Result;
use crate::layers::{DenseConfig, EmbeddingConfig, LstmConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Before every key.
const OURS: &str = "everloop.";
/// A longer text is no configuration of ours.
const LONGEST: usize = 1 << 16;

/// A configuration that files hold; see [`Weights::config`].
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

macro_rules! configs {
    ($($config:ident),*) => {
        $(impl Config for $config {
            const KIND: &'static str = stringify!($config);

            fn check(&self) -> Result<()> {
                self.validate()
            }
        })*
    };
}

configs!(LstmConfig, DenseConfig, EmbeddingConfig);

/// The key of the configuration of what was declared as `name`, below `prefix` in the file.
pub(super) fn key(kind: &str, prefix: &str, name: &str) -> String {
    let path = if name.is_empty() { prefix.trim_end_matches(['.', '/']).to_string() } else { join(prefix, name) };
    format!("{OURS}{kind}:{path}")
}

/// Kind and path of a key of ours.
fn parse(key: &str) -> Option<(&str, &str)> {
    key.strip_prefix(OURS)?.split_once(':')
}

/// Whether a pair of the metadata is a configuration.
pub(super) fn is_config(key: &str) -> bool {
    parse(key).is_some()
}

impl Weights {
    /// What has a stored configuration: name and kind, such as `("encoder.lstm", "LstmConfig")`, sorted by kind.
    pub fn configs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.metadata().filter_map(|(key, _)| parse(key)).map(|(kind, name)| (name, kind))
    }

    /// The text of a stored configuration.
    pub(super) fn stored(&self, kind: &str, name: &str) -> Option<&str> {
        let (wanted, all) = (key(kind, "", name), &self.header.metadata);
        all.binary_search_by(|(key, _)| (**key).cmp(&wanted)).ok().map(|index| &*all[index].1)
    }

    /// The configuration with which the layer `name` was declared when this file was written, every number with the
    /// same bits. [`save`](super::save) and [`to_bytes`](super::to_bytes) store it, under the export's prefix.
    ///
    /// # Errors
    ///
    /// None of this kind is stored under this name; a stored one that is not JSON of this kind, has a field that this
    /// version does not know, or is refused by its own `validate`.
    ///
    /// ```
    /// use everloop::layers::LstmConfig;
    /// use everloop::weights::{self, Export, Import, Weights};
    /// use everloop::{Parameters, Rng};
    /// # fn main() -> everloop::Result<()> {
    /// let mut parameters = Parameters::new();
    /// let config = LstmConfig::new(3, 4).with_coupled_gates().with_cell_clip(3.0);
    /// config.declare(&mut parameters, "lstm", &mut Rng::new(1))?;
    /// let bytes = weights::to_bytes(&parameters, &Export::new())?;
    ///
    /// let file = Weights::from_bytes(&bytes)?;
    /// let mut parameters = Parameters::new();
    /// let lstm = file.config::<LstmConfig>("lstm")?.declare(&mut parameters, "lstm", &mut Rng::new(1))?;
    /// file.import(&mut parameters, &Import::new())?;
    /// assert_eq!(lstm.config, config);
    /// # Ok(()) }
    /// ```
    pub fn config<C: Config>(&self, name: &str) -> Result<C> {
        let refused = |cause: String| message::config(name, cause);
        let Some(text) = self.stored(C::KIND, name) else {
            let other = self.configs().find(|(found, _)| *found == name);
            return Err(refused(match other {
                Some((_, kind)) => format!("is a {}, not a {}", message::escape(kind), C::KIND),
                None => format!("the file stores no {} under this name", C::KIND),
            }));
        };
        if text.len() > LONGEST {
            return Err(refused(format!("has {} bytes, more than {LONGEST}", text.len())));
        }
        let broken = |e: serde_json::Error| refused(message::printable(&format!("is no {}: {e}", C::KIND)));
        let config: C = serde_json::from_str(text).map_err(broken)?;
        // an option that is not known here would change what the model computes
        let (stored, known) =
            (serde_json::from_str(text).map_err(broken)?, serde_json::to_value(&config).map_err(broken)?);
        if let Some(field) = unknown(&stored, &known) {
            return Err(refused(format!(
                "has the field `{}`, which this version does not know",
                message::escape(field)
            )));
        }
        config.check().map_err(|e| refused(message::printable(&e.to_string())))?;
        Ok(config)
    }
}

/// The first field of `stored` that `known` has not.
fn unknown<'a>(stored: &'a serde_json::Value, known: &serde_json::Value) -> Option<&'a str> {
    let (stored, known) = (stored.as_object()?, known.as_object()?);
    stored.iter().find_map(|(field, value)| match known.get(field) {
        None => Some(field.as_str()),
        Some(known) => unknown(value, known),
    })
}
