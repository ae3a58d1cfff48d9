//! Directions through time, and the rows of states.

use serde::{Deserialize, Serialize};

/// The direction in which a recurrent layer walks through time.
///
/// ```
/// use everloop::Direction::{Forward, Reverse};
/// // over three steps: times in the order worked on, and the rows of the states behind each
/// assert_eq!([0, 1, 2].map(|n| Reverse.time(n, 3)), [2, 1, 0]);
/// assert_eq!([0, 1, 2].map(|t| (Forward.row_after(t), Reverse.row_after(t))), [(1, 0), (2, 1), (3, 2)]);
/// assert_eq!((Forward.first_row(3), Reverse.first_row(3)), (0, 3));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// From step 0 to the last.
    Forward,
    /// From the last step to 0.
    Reverse,
}

impl Direction {
    /// One of two, by direction.
    pub(crate) fn of<T>(self, forward: T, reverse: T) -> T {
        match self {
            Direction::Forward => forward,
            Direction::Reverse => reverse,
        }
    }

    /// Row of a `[T+1, B, H]` state with the state *after* time `t`: the initial state stands
    /// before row 1 going forward, and behind row T-1 in reverse.
    pub fn row_after(self, t: usize) -> usize {
        self.of(t + 1, t)
    }

    /// Row with the state *before* time `t`.
    pub fn row_before(self, t: usize) -> usize {
        self.of(t, t + 1)
    }

    /// Row with the initial state of a run over `steps`.
    pub fn first_row(self, steps: usize) -> usize {
        self.of(0, steps)
    }

    /// Row with the final state.
    pub fn last_row(self, steps: usize) -> usize {
        steps - self.first_row(steps)
    }

    /// The time of the `n`-th step worked on.
    pub fn time(self, n: usize, steps: usize) -> usize {
        match self {
            Direction::Forward => n,
            Direction::Reverse => steps - 1 - n,
        }
    }

    /// "forward" or "reverse".
    pub fn name(self) -> &'static str {
        self.of("forward", "reverse")
    }
}

/// The directions that lie along the leading axis of a recurrence's slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Directions {
    /// One.
    One(Direction),
    /// Entry 0 forward, entry 1 in reverse.
    Both,
}

impl Directions {
    /// Entry by entry.
    pub fn list(self) -> &'static [Direction] {
        match self {
            Directions::One(Direction::Forward) => &[Direction::Forward],
            Directions::One(Direction::Reverse) => &[Direction::Reverse],
            Directions::Both => &[Direction::Forward, Direction::Reverse],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_states() {
        for direction in [Direction::Forward, Direction::Reverse] {
            assert_eq!(direction.row_before(direction.time(0, 7)), direction.first_row(7));
            assert_eq!(direction.row_after(direction.time(6, 7)), direction.last_row(7));
            for n in 1..7 {
                assert_eq!(direction.row_before(direction.time(n, 7)), direction.row_after(direction.time(n - 1, 7)));
            }
        }
    }
}
