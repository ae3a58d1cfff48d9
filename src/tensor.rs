//! Views: which elements of which slot, under which shape.

use crate::error::{Error, Result, ensure};
use std::sync::atomic::{AtomicU64, Ordering};

/// The type of a slot's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// Floats: f32 on a GPU, f32 or f64 on the CPU.
    F32,
    /// Token ids, lengths, counts.
    U32,
}

/// Tells plans apart, so that a tensor of one is not taken for a tensor of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub(crate) struct PlanId(u64);

impl PlanId {
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        PlanId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Index of a slot in its plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub(crate) usize);

/// A slot, or contiguous leading-axis rows of one, with a shape.
///
/// ```
/// # fn main() -> everloop::Result<()> {
/// let parameters = everloop::Parameters::new();
/// let mut rec = everloop::Recorder::new(&parameters);
/// let h = rec.input("h", &[5, 2, 3])?; // [T+1, B, H]
/// let after = h.narrow(1, 4)?; // all but the first state
/// assert_eq!(after.shape(), [4, 2, 3]);
/// assert_eq!(h.row(4)?.shape(), [2, 3]);
/// assert_eq!(after.reshape(&[8, 3])?.rows(), 8);
/// assert!(h.row(5).is_err());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub(crate) plan: PlanId,
    pub(crate) slot: SlotId,
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    /// Whether gradients end here; see [`Recorder::detach`](crate::Recorder::detach).
    pub(crate) detached: bool,
}

impl Tensor {
    /// Row-major shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of the last axis.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all axes but the last.
    pub fn rows(&self) -> usize {
        self.len() / self.columns().max(1)
    }

    /// The slot it lies in.
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// The same elements under another shape. Error: another number of elements.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        let count = shape.iter().try_fold(1usize, |n, s| n.checked_mul(*s));
        let wanted = || format!("{} elements as in {:?}", self.len(), self.shape);
        ensure!(count == Some(self.len()), Error::shape("reshaping", wanted(), shape));
        Ok(Tensor { shape: shape.to_vec(), ..self.clone() })
    }

    /// Entries `start..start + count` of the leading axis. Error: none, or more than there are.
    pub fn narrow(&self, start: usize, count: usize) -> Result<Tensor> {
        let lead = self.shape.first().copied().unwrap_or(0);
        let within = count > 0 && start.checked_add(count).is_some_and(|end| end <= lead);
        let wanted = || format!("{count} entries (at least one) from {start} on the leading axis");
        ensure!(within, Error::shape("taking rows", wanted(), &self.shape));
        let mut shape = self.shape.clone();
        shape[0] = count;
        Ok(Tensor { offset: self.offset + start * (self.len() / lead), shape, ..self.clone() })
    }

    /// Entry `index` of the leading axis, without that axis. Error: no such entry.
    pub fn row(&self, index: usize) -> Result<Tensor> {
        self.narrow(index, 1)?.reshape(&self.shape[1..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_of_rows() {
        let t = Tensor { plan: PlanId(1), slot: SlotId(0), offset: 0, shape: vec![5, 2, 3], detached: false };
        let rows = t.narrow(1, 4).unwrap();
        assert_eq!((rows.offset, rows.shape()), (6, &[4, 2, 3][..]));
        assert_eq!(t.row(4).unwrap(), Tensor { offset: 24, shape: vec![2, 3], ..t.clone() });
        assert!(t.narrow(3, 3).is_err() && t.narrow(0, 0).is_err() && t.reshape(&[29]).is_err());
        assert!(t.reshape(&[usize::MAX, 2]).is_err());
    }
}
