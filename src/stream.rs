//! Streaming: an LSTM that takes one step at a time and keeps its state on the device between them.

use crate::error::{Error, Result, ensure, same_shape};
use crate::float::Float;
use crate::layers::{Lstm, LstmState};
use crate::recorder::Recorder;
use crate::run::{Counters, Store, Workspace};
use crate::tensor::Tensor;
use crate::weights::{Array, Export, Weights, arrays_to_bytes};
use ndarray::Array2;

/// An LSTM over one or many independent streams: it takes one step at a time and keeps its state on the device between
/// them.
///
/// T steps give what one run over T steps gives: the same bits on the CPU, and within 1e-6 on a GPU.
///
/// ```
/// use everloop::{Device, Parameters, Result, Rng, Store, Stream, layers::LstmConfig};
/// # fn main() -> Result<()> {
/// let mut parameters = Parameters::new();
/// let lstm = LstmConfig::new(3, 8).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
/// let mut stream = Stream::new(&Store::new(&Device::cpu(), &parameters)?, &lstm, 1)?;
/// let first: Vec<f32> = stream.step(&[0.1, 0.2, 0.3])?;
/// let saved = stream.state()?;
/// let second: Vec<f32> = stream.step(&[0.4, 0.5, 0.6])?;
/// stream.set_state(&saved)?;
/// assert_eq!(stream.step::<f32>(&[0.4, 0.5, 0.6])?, second);
/// assert!(first != second);
/// # Ok(()) }
/// ```
///
/// A model of more than an LSTM streams the same way: record it over one step from input slots, and end it with
/// [`LstmOutput::carry`](crate::layers::LstmOutput::carry).
#[derive(Debug)]
pub struct Stream {
    workspace: Workspace,
    x: Tensor,
    output: Tensor,
    states: Vec<LstmState>,
}

/// The state of all streams, on the host.
///
/// ```
/// # use everloop::{Device, Parameters, Result, Rng, Store, Stream, StreamState, layers::LstmConfig};
/// # fn main() -> Result<()> {
/// # let mut parameters = Parameters::new();
/// # let lstm = LstmConfig::new(3, 8).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
/// # let mut stream = Stream::new(&Store::new(&Device::cpu(), &parameters)?, &lstm, 2)?;
/// stream.step::<f32>(&[0.5; 6])?;
/// let state = stream.state()?;
/// assert_eq!(state.layers[0].h.shape(), [2, 8]);
/// let bytes = state.to_bytes()?; // or `save` to a file
/// stream.set_state(&StreamState::from_bytes(&bytes)?)?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct StreamState {
    /// One for each layer.
    pub layers: Vec<LayerState>,
}

/// The state of one layer, a row for each stream.
///
/// [`Stream`] has an example.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerState {
    /// `[B, P]`
    pub h: Array2<f64>,
    /// `[B, H]`
    pub c: Array2<f64>,
}

impl Stream {
    /// `streams` streams that begin with a state of zero. Dropout does not take part.
    ///
    /// Errors: a bidirectional or a reverse LSTM, which need to know the end; those of [`Workspace::new_async`].
    pub async fn new_async(store: &Store, lstm: &Lstm, streams: usize) -> Result<Stream> {
        let config = &lstm.config;
        if config.bidirectional.is_some() || config.reverse {
            let found = if config.reverse { "the reverse one, which needs to know the end" } else { "two" };
            return Err(Error::config("streaming an LSTM", "the forward direction alone", found));
        }
        let mut rec = Recorder::new(store.parameters());
        let lead = if config.batch_first { [streams, 1] } else { [1, streams] };
        let x = rec.input("x", &[lead[0], lead[1], config.input_size])?;
        let mut states = Vec::new();
        for layer in 0..config.layers() {
            let (outputs, hidden) = config.state_sizes(layer);
            let h = rec.state(&format!("state.{layer}.h"), &[streams, outputs])?;
            states.push(LstmState { h, c: rec.state(&format!("state.{layer}.c"), &[streams, hidden])? });
        }
        let made = lstm.record(&mut rec, &x, Some(&states))?;
        made.carry(&mut rec, &states)?;
        let workspace = Workspace::new_async(store, rec.finish()).await?;
        Ok(Stream { workspace, x, output: made.output, states })
    }

    /// What was done so far, and the memory of its own.
    pub fn counters(&self) -> Counters {
        self.workspace.counters()
    }

    /// One step of every stream: from `x [B, I]`, row-major, to the output `[B, P]`.
    ///
    /// Errors: a wrong length, a value that is not finite; the state stays as it was.
    pub async fn step_async<T: Float>(&mut self, x: &[T]) -> Result<Vec<T>> {
        self.workspace.write(&self.x, x)?;
        self.workspace.run_async().await?;
        self.workspace.read_async(&self.output).await
    }

    /// Reads the state. Errors: those of the device.
    pub async fn state_async(&mut self) -> Result<StreamState> {
        let mut layers = Vec::new();
        for LstmState { h, c } in &self.states {
            layers.push(LayerState { h: read(&mut self.workspace, h).await?, c: read(&mut self.workspace, c).await? });
        }
        Ok(StreamState { layers })
    }

    /// Sets the state. Errors: other shapes, a value that is not finite; the state then stays as it was.
    pub fn set_state(&mut self, state: &StreamState) -> Result<()> {
        let doing = "setting the state of a stream";
        let (count, found) = (self.states.len(), state.layers.len());
        ensure!(found == count, Error::config(doing, format!("{count} layers"), found));
        let pairs =
            || self.states.iter().zip(&state.layers).flat_map(|(to, from)| [(&to.h, &from.h), (&to.c, &from.c)]);
        for (to, from) in pairs() {
            same_shape(doing, to.shape(), from.shape())?;
            // as f32, which is what a device may hold
            if let Some(value) = from.iter().find(|v| !(**v as f32).is_finite()) {
                return Err(Error::config(doing, "finite numbers", value));
            }
        }
        pairs().try_for_each(|(to, from)| self.workspace.write_array(to, from.view()))
    }

    /// Sets the state of one stream to zero. Error: no such stream.
    pub fn reset(&mut self, stream: usize) -> Result<()> {
        let rows = self.states.iter().flat_map(|state| [&state.h, &state.c]).map(|tensor| tensor.row(stream));
        rows.into_iter().try_for_each(|row| row.and_then(|row| self.workspace.write(&row, &vec![0.0f32; row.len()])))
    }
}

async fn read(workspace: &mut Workspace, from: &Tensor) -> Result<Array2<f64>> {
    let values = workspace.read_async(from).await?;
    Array2::from_shape_vec((from.rows(), from.columns()), values)
        .map_err(|_| Error::shape("reading the state of a stream", "[B, ..]", from.shape()))
}

blocking! { Stream {
    /// Blocking [`Stream::new_async`]. Errors as there.
    fn new(store: &Store, lstm: &Lstm, streams: usize) -> Result<Stream> = Stream::new_async(store, lstm, streams);
    /// Blocking [`Stream::step_async`]. Errors as there.
    fn step[T: Float](&mut self, x: &[T]) -> Result<Vec<T>> = self.step_async(x);
    /// Blocking [`Stream::state_async`]. Errors as there.
    fn state(&mut self) -> Result<StreamState> = self.state_async();
} }

impl StreamState {
    fn arrays(&self) -> Vec<Array> {
        let array = |kind: &str, layer: usize, values: &Array2<f64>| Array {
            name: format!("{kind}.{layer}"),
            shape: values.shape().to_vec(),
            values: values.iter().copied().collect(),
        };
        let layers = self.layers.iter().enumerate();
        layers.flat_map(|(n, l)| [array("h", n, &l.h), array("c", n, &l.c)]).collect()
    }

    /// The state as safetensors in F64, `h.0 [B, P]`, `c.0 [B, H]` and so on, without loss.
    /// Errors as [`to_bytes`](crate::weights::to_bytes).
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        arrays_to_bytes(&self.arrays(), &Export::new().with_f64())
    }

    /// Reads what [`StreamState::to_bytes`] gave. Errors: those of [`Weights::from_bytes`], a missing array, one that
    /// is not `[B, ..]`.
    pub fn from_bytes(bytes: &[u8]) -> Result<StreamState> {
        StreamState::read(&Weights::from_bytes(bytes)?)
    }

    fn read(weights: &Weights) -> Result<StreamState> {
        let get = |name: String| -> Result<Array2<f64>> {
            let values = weights.values(&name)?;
            let shape = weights.get(&name).map(|tensor| tensor.shape().to_vec()).unwrap_or_default();
            let wrong = || Error::shape(format!("loading `{name}` of a stream's state"), "[B, ..]", &shape);
            let [rows, columns] = shape[..] else { return Err(wrong()) };
            Array2::from_shape_vec((rows, columns), values).map_err(|_| wrong())
        };
        let count = weights.tensors().len().div_ceil(2).max(1);
        let layer = |n: usize| Ok(LayerState { h: get(format!("h.{n}"))?, c: get(format!("c.{n}"))? });
        Ok(StreamState { layers: (0..count).map(layer).collect::<Result<_>>()? })
    }
}

/// Files.
#[cfg(not(target_arch = "wasm32"))]
impl StreamState {
    /// Saves [`StreamState::to_bytes`]. Errors as [`save_arrays`](crate::weights::save_arrays).
    pub fn save(&self, target: impl AsRef<std::path::Path>) -> Result<()> {
        crate::weights::save_arrays(target, &self.arrays(), &Export::new().with_f64())
    }

    /// Loads what [`StreamState::save`] wrote. Errors: those of [`Weights::open`] and [`StreamState::from_bytes`].
    pub fn load(path: impl AsRef<std::path::Path>) -> Result<StreamState> {
        StreamState::read(&Weights::open(path)?)
    }
}
