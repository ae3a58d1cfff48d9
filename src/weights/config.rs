//! The configurations of layers, which travel in a file's metadata: the key `everloop.KIND:PATH`, and JSON.

use super::{Weights, message};
use crate::error::{Result, ensure};
use crate::parameters::Config;

/// Before every key.
const OURS: &str = "everloop.";
/// A longer text is no configuration of ours.
const LONGEST: usize = 1 << 16;

/// The key of the configuration of what has this path in the file.
pub(super) fn key(kind: &str, path: &str) -> String {
    format!("{OURS}{kind}:{path}")
}

/// Kind and path of a key of ours.
pub(super) fn parse(key: &str) -> Option<(&str, &str)> {
    key.strip_prefix(OURS)?.split_once(':')
}

impl Weights {
    /// What has a stored configuration: name and kind, such as `("encoder.lstm", "LstmConfig")`, sorted by kind.
    pub fn configs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.metadata().filter_map(|(key, _)| parse(key)).map(|(kind, name)| (name, kind))
    }

    /// The text of a stored configuration.
    pub(super) fn stored(&self, kind: &str, name: &str) -> Option<&str> {
        let (wanted, all) = (key(kind, name), &self.header.metadata);
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
    /// let config = LstmConfig::new(3, 4).with_cell_clip(3.0);
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
        let len = text.len();
        ensure!(len <= LONGEST, refused(format!("has {len} bytes, more than {LONGEST}")));
        let config: C = serde_json::from_str(text).map_err(|error| {
            let error = error.to_string();
            let unknown = error.strip_prefix("unknown field `").and_then(|rest| rest.split_once("`, expected"));
            refused(match unknown {
                // it would change what the model computes
                Some((field, _)) => {
                    format!("has the field `{}`, which this version does not know", message::escape(field))
                }
                None => message::printable(&format!("is no {}: {error}", C::KIND)),
            })
        })?;
        config.check().map_err(|e| refused(message::printable(&e.to_string())))?;
        Ok(config)
    }
}
