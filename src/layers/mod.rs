//! Layers: each declares its parameters once, and records itself into as many plans as needed.

mod dense;
mod embedding;
pub mod lstm;
mod ops;

pub use dense::{Dense, DenseConfig};
pub use embedding::{Embedding, EmbeddingConfig, one_hot};
pub use lstm::{Bias, Connection, Dropout, Fill, Init, Join, Lstm, LstmConfig, LstmInputs, LstmOutput, LstmState};
pub use ops::{add, columns, concatenate, multiply};

use crate::error::{Error, Result, ensure};
use crate::parameters::Config;

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

/// `prefix.last`, or `last` where the prefix is empty.
pub(crate) fn path(prefix: &str, last: &str) -> String {
    if prefix.is_empty() { last.to_string() } else { format!("{prefix}.{last}") }
}

/// Error: sizes whose product is 2^31 or more, before anything of that size is allocated.
pub(crate) fn check_count(what: &str, sizes: &[usize]) -> Result<()> {
    let count = sizes.iter().try_fold(1usize, |n, s| n.checked_mul(*s));
    let few = count.is_some_and(|n| n < 1 << 31);
    ensure!(few, Error::config(what, "fewer than 2^31 values", format!("sizes {sizes:?}")));
    Ok(())
}

pub(crate) fn check_size(what: &str, size: usize) -> Result<()> {
    ensure!(size > 0, Error::config(what, "at least 1", 0));
    Ok(())
}
