//! LSTM layers: one direction (`layer`), stacks of them in one or two directions (`stack`).

mod config;
mod layer;
mod stack;

pub use config::{Join, LstmConfig};
pub use layer::LstmState;
pub use stack::{Lstm, LstmOutput};
