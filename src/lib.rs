//! everloop
#![deny(unsafe_code)]
pub mod device;
pub mod error;
pub mod float;
#[cfg(feature = "gpu")]
mod gpu;
pub mod kernel;
pub mod kernels;
pub mod layers;
pub mod loss;
pub mod optimizer;
pub mod parameters;
pub mod plan;
pub mod recorder;
mod rng;
pub mod run;
pub mod text;
mod tile;
pub mod trace;
pub use device::{Device, Precision};
pub use error::{Error, Result};
pub use parameters::Parameters;
pub use plan::{Plan, Tensor};
pub use recorder::Recorder;
pub use rng::Rng;
pub use run::Workspace;
