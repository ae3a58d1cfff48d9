//! LSTM layers: one direction (`layer`), stacks of them in one or two directions (`stack`).

mod config;
mod dropout;
mod init;
mod layer;
mod stack;

pub use config::{Bias, Connection, Join, LstmConfig};
pub use dropout::Dropout;
pub use init::{Fill, Init};
pub use layer::LstmState;
pub use stack::{Lstm, LstmInputs, LstmOutput};
