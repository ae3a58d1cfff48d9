//! Every message of the crate on one page: what we were doing, what we wanted, what we found.

/// What can go wrong. Nothing that a caller passes, and no file, panics: it ends here.
///
/// The variants follow the flow: a wrong description ([`Error::Config`], [`Error::Shape`],
/// [`Error::Name`]), wrong data ([`Error::Value`], [`Error::NonFinite`], [`Error::Token`]), and a
/// device that cannot or does not do the work (all others).
///
/// ```
/// use everloop::layers::LstmConfig;
/// use everloop::{Error, Parameters, Rng};
/// let error = LstmConfig::new(0, 4).declare(&mut Parameters::new(), "lstm", &mut Rng::new(1)).unwrap_err();
/// assert!(matches!(&error, Error::Config { found, .. } if found == "0"));
/// println!("{error}"); // what was wrong, what would be right
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration or hyper-parameter outside its range.
    #[error("{what}: expected {expected}, found {found}")]
    Config {
        /// The field or argument.
        what: String,
        /// The range that is allowed.
        expected: String,
        /// The value given.
        found: String,
    },

    /// Shapes that do not fit together.
    #[error("{doing}: expected shape {expected}, found {found}")]
    Shape {
        /// The operation being recorded or run.
        doing: String,
        /// The shape or relation wanted.
        expected: String,
        /// The shape found.
        found: String,
    },

    /// A parameter or slot name that is unknown, or taken already.
    #[error("{doing}: the name `{name}` {problem}")]
    Name {
        /// The operation.
        doing: &'static str,
        /// The name as given.
        name: String,
        /// "is not known", "is taken already".
        problem: &'static str,
    },

    /// Data of the wrong length or kind for its slot.
    #[error("writing `{slot}`: expected {expected}, found {found}")]
    Value {
        /// The slot that was to be written.
        slot: String,
        /// Length or kind wanted.
        expected: String,
        /// Length or kind found.
        found: String,
    },

    /// A NaN or an infinity where only finite numbers make sense.
    #[error("{what}: element {index} is {value}; every number must be finite")]
    NonFinite {
        /// The tensor.
        what: String,
        /// Position of the first such element, counted in row-major order.
        index: usize,
        /// "NaN", "inf" or "-inf".
        value: f64,
    },

    /// A token id outside the vocabulary.
    #[error("writing `{slot}`: token {found} at position {index} is outside the vocabulary of {vocab_size}")]
    Token {
        /// The slot that was to be written.
        slot: String,
        /// Position of the token.
        index: usize,
        /// The id found.
        found: u32,
        /// Ids must be below this.
        vocab_size: usize,
    },

    /// A weights file, or a tensor of one, that is refused. The message is one printable line of fewer than 300
    /// characters, whatever the file holds.
    #[error("{what}: {cause}")]
    Weights {
        /// The tensor, or the file.
        what: String,
        /// Why it is refused.
        cause: String,
    },

    /// No adapter of the kind asked for.
    #[error("choosing a device: wanted {wanted}, found {found}")]
    NoAdapter {
        /// What was asked for.
        wanted: String,
        /// The adapters of this machine, or "no adapter".
        found: String,
    },

    /// A plan that needs more than the device offers. Nothing was allocated.
    #[error("{what} needs {needed}, the limit of this device is {limit}")]
    Limit {
        /// The slot, dispatch or block.
        what: String,
        /// Bytes or units needed.
        needed: u64,
        /// Bytes or units available.
        limit: u64,
    },

    /// The device has no memory left.
    #[error("{doing}: the device is out of memory")]
    OutOfMemory {
        /// What was being created.
        doing: String,
    },

    /// The device is gone (unplugged, reset, destroyed). Make a new [`Device`](crate::Device).
    #[error("{doing}: the device is lost: {reason}")]
    DeviceLost {
        /// What was going on.
        doing: String,
        /// The driver's words.
        reason: String,
    },

    /// The device did not answer before the deadline.
    #[error("{doing}: no answer from the device within {seconds} s")]
    Timeout {
        /// What we waited for.
        doing: String,
        /// The deadline in seconds.
        seconds: f64,
    },

    /// The driver or the validation layer refused something.
    #[error("{doing}: {message}")]
    Gpu {
        /// What was being done.
        doing: String,
        /// The driver's words.
        message: String,
    },

    /// Two executors of one plan disagree; see [`lockstep`](crate::lockstep).
    #[error(
        "step {step} ({kernel}) of the plan: slot `{slot}` differs at element {index}: {left} against {right}, tolerance {tolerance:e}"
    )]
    Divergence {
        /// Index of the step in the plan.
        step: usize,
        /// Its kernel.
        kernel: &'static str,
        /// First slot that differs.
        slot: String,
        /// First element that differs, row-major.
        index: usize,
        /// Value on the first executor.
        left: f64,
        /// Value on the second executor.
        right: f64,
        /// The tolerance at this element.
        tolerance: f64,
    },

    /// A kernel wrote outside its output.
    #[error("slot `{slot}`: a guard word behind it was overwritten")]
    Guard {
        /// The slot whose guard is broken.
        slot: String,
    },
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Leaves the function with an error unless something holds.
macro_rules! ensure {
    ($holds:expr, $error:expr) => {
        if !$holds {
            return Err($error);
        }
    };
}

pub(crate) use ensure;

/// Error: another shape than wanted.
pub(crate) fn same_shape(doing: impl Into<String>, wanted: &[usize], found: &[usize]) -> Result<()> {
    ensure!(wanted == found, Error::shape(doing, format!("{wanted:?}"), found));
    Ok(())
}

impl Error {
    pub(crate) fn name(doing: &'static str, name: &str, problem: &'static str) -> Self {
        Error::Name { doing, name: name.to_string(), problem }
    }

    pub(crate) fn value(slot: &str, expected: impl Into<String>, found: impl ToString) -> Self {
        Error::Value { slot: slot.to_string(), expected: expected.into(), found: found.to_string() }
    }

    pub(crate) fn config(what: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        Error::Config { what: what.into(), expected: expected.into(), found: found.to_string() }
    }

    pub(crate) fn shape(doing: impl Into<String>, expected: impl Into<String>, found: &[usize]) -> Self {
        Error::Shape { doing: doing.into(), expected: expected.into(), found: format!("{found:?}") }
    }
}
