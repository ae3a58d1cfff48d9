//! Kernels at sizes that are awkward on purpose. Tests, doctor and benches run the same cases.

use crate::error::Result;
use crate::recorder::Recorder;

/// A kernel at one size: what [`doctor`](crate::doctor) records, runs on two devices, and compares.
///
/// ```
/// # fn main() -> everloop::Result<()> {
/// let case = everloop::Case::new("fill a view", 1.0, |rec| {
///     let y = rec.activation("y", &[3, 17])?;
///     rec.fill(&y.row(1)?, 0.5)
/// });
/// # #[cfg(not(target_arch = "wasm32"))]
/// let report = pollster::block_on(everloop::doctor::examine_async(&everloop::Device::cpu(), &[case]));
/// assert!(report.is_ok(), "{report}");
/// # Ok(()) }
/// ```
pub struct Case {
    /// The kernel, its sizes and options.
    pub name: String,
    /// Inputs are drawn from +-bound.
    pub bound: f64,
    /// One of many small ones that are for the project's own tests.
    pub(crate) is_thorough: bool,
    pub(crate) record: Record,
}

type Record = Box<dyn Fn(&mut Recorder<'_>) -> Result<()>>;

impl Case {
    /// A case; an error of `record` is a finding. Slots that steps write are filled at random too; if one is called `out`, all of them hold NaN instead.
    pub fn new(
        name: impl Into<String>,
        bound: f64,
        record: impl Fn(&mut Recorder<'_>) -> Result<()> + 'static,
    ) -> Case {
        Case { name: name.into(), bound, is_thorough: false, record: Box::new(record) }
    }

    /// For the project's own tests: one of too many for a user's patience.
    pub(crate) fn thorough(self) -> Case {
        Case { is_thorough: true, ..self }
    }
}
