//! LSTMs on any GPU: training and inference through wgpu, with the whole time loop on the device, and a
//! CPU executor that runs the same recorded program to check it.
//!
//! ```
//! use everloop::layers::LstmConfig;
//! use everloop::optimizer::SgdConfig;
//! use everloop::{Device, Parameters, Recorder, Result, Rng, Store, Workspace, loss};
//!
//! fn main() -> Result<()> {
//!     let mut parameters = Parameters::new();
//!     let lstm = LstmConfig::new(16, 16).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
//!     let mut rec = Recorder::new(&parameters);
//!     let (x, next) = (rec.input("x", &[32, 8, 16])?, rec.input("next", &[32, 8, 16])?); // [steps, batch, values]
//!     let h = lstm.record(&mut rec, &x, None)?.output;
//!     let loss = loss::mean_squared_error(&mut rec, "loss", &h, &next)?;
//!     rec.backward(&loss)?;
//!     SgdConfig::new(5.0).record(&mut rec)?;
//!     let device = Device::auto();
//!     let store = Store::new(&device, &parameters)?;
//!     let mut workspace = Workspace::new(&store, rec.finish())?;
//!     let waves: Vec<f32> = (0..33 * 128).map(|e| 0.7 * ((e / 128) as f32 * 0.3 + (e % 128) as f32).sin()).collect();
//!     workspace.write(&x, &waves[..32 * 128])?;
//!     workspace.write(&next, &waves[128..])?;
//!     for step in 1..=1000 {
//!         workspace.run()?;
//!         if step % 200 == 0 {
//!             println!("step {step}: loss {:.5} on {}", workspace.scalar(&loss)?, device.name());
//!         }
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # The flow
//!
//! ```text
//! config -> parameters -> plan ----\
//!                 \                >- workspace -> run -> results
//!                  `-> store -----/
//! ```
//!
//! | type | what it is |
//! |---|---|
//! | [`LstmConfig`](layers::LstmConfig), [`DenseConfig`](layers::DenseConfig), .. | sizes and options; `declare` adds the parameters to a block and gives the layer |
//! | [`Parameters`] | all values in one flat block, by PyTorch's names |
//! | [`Recorder`] | layers and losses append steps; [`Recorder::backward`] walks them in reverse |
//! | [`Plan`] | the recorded program: slots and steps. Pure data; printing it gives its listing |
//! | [`Device`] | a GPU, or the CPU in f32 or f64 |
//! | [`Store`] | the parameters on one device, shared by any number of workspaces and streams |
//! | [`Workspace`] | a plan's memory on the device of a store; [`Workspace::run`] is one queue submit |
//! | [`Stream`] | an LSTM that takes one step at a time and keeps its state |
//! | [`Tensor`] | a slot of a plan, or some of its rows: what [`Workspace::read`] and [`Workspace::write`] take |
//!
//! Shapes are time first: `[T, B, ..]`. A plan is made for one batch size and number of steps; one store may have many
//! plans. Equations and derivations: [`docs::lstm`]; where each symbol lies: [`docs::reference`].
//!
//! # Features
//!
//! `gpu` (on by default): wgpu with Vulkan, Metal, DX12 and WebGPU. Without it the crate works on the CPU and
//! has no wgpu in its tree.
#![deny(unsafe_code)]
#![warn(missing_docs)]

/// Blocking forms of methods that may wait for a GPU; a browser has none.
macro_rules! blocking {
    ($of:ident { $($(#[$doc:meta])* fn $name:ident $([$($generic:tt)*])? ($($argument:tt)*) -> $result:ty = $call:expr;)* }) => {
        #[cfg(not(target_arch = "wasm32"))]
        impl $of {
            $($(#[$doc])* pub fn $name $(<$($generic)*>)? ($($argument)*) -> $result {
                pollster::block_on($call)
            })*
        }
    };
}

mod case;
mod device;
pub mod doctor;
mod error;
mod float;
#[cfg(feature = "gpu")]
mod gpu;
pub mod kernel;
mod kernels;
pub mod layers;
pub mod loss;
pub mod optimizer;
mod options;
mod parameters;
pub mod plan;
mod recorder;
mod rng;
mod run;
mod stream;
mod tensor;
pub mod text;
mod tile;
mod time;
pub mod trace;
pub mod weights;

pub use case::Case;
pub use device::Device;
pub use error::{Error, Result};
pub use float::{Float, Vectorized};
pub use parameters::{Parameter, Parameters};
pub use plan::Plan;
pub use recorder::{Recorder, Target};
pub use rng::Rng;
pub use run::{Counters, Observer, Store, Workspace, lockstep};
pub use stream::{LayerState, Stream, StreamState};
pub use tensor::{Dtype, Tensor};
pub use time::Direction;

/// What the project's own tests need of the rest. No part of the interface.
#[doc(hidden)]
pub mod instruments {
    pub use crate::doctor::{F32, check, check_variant, plan_of};
    /// The kernels, with their lists and cases.
    pub mod kernels {
        pub use crate::kernels::*;
    }
    pub use crate::recorder::gradient_name;
}

/// The wgpu that [`Device::from_wgpu`] speaks.
#[cfg(feature = "gpu")]
pub use wgpu;

/// The documents of the repository, so that they are built and their links checked with the code.
pub mod docs {
    #[doc = include_str!("../docs/lstm.md")]
    pub mod lstm {}
    #[doc = include_str!("../docs/reference.md")]
    pub mod reference {}
    #[doc = include_str!("../DESIGN.md")]
    pub mod design {}
}

/// The README's examples, so that they are run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
