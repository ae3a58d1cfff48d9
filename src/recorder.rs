//! Recording a plan: layers append steps, and each forward step leaves its backward on a tape.

use crate::error::{Error, Result, ensure};
use crate::kernel::{Access, Kernel, MAX_WORDS, Operation};
use crate::kernels::fill::{self, Fill};
use crate::parameters::Parameters;
use crate::plan::{Kind, Phase, Plan, Rows, Slot, Step, Storage};
use crate::tensor::{Dtype, PlanId, SlotId, Tensor};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

type Backward = Rc<dyn Fn(&mut Recorder<'_>) -> Result<()>>;

/// Writes a [`Plan`]: layers append steps, and each forward step leaves its backward on a tape.
///
/// [`Recorder::backward`] walks the tape in reverse, so any composition of layers gets its backward
/// by itself. A gradient is written by the first consumer and added to by the others; where only
/// part of a slot has a consumer, a visible `fill` step clears it first. What nobody can train is left out: the
/// gradient of a slot is wanted where a parameter that is not frozen, or an input that asks for it, went into it.
///
/// What is refused leaves the recorder as it was: [`Recorder::attempt`].
///
/// ```
/// use everloop::{Parameters, Recorder, layers, loss};
/// # fn main() -> everloop::Result<()> {
/// let mut parameters = Parameters::new();
/// parameters.declare("w", &[3], vec![0.1, 0.2, 0.3])?;
/// let mut rec = Recorder::new(&parameters);
/// let (w, x, wanted) = (rec.parameter("w")?, rec.input("x", &[3])?, rec.input("wanted", &[3])?);
/// let y = layers::add(&mut rec, "y", &w, &x)?;
/// let loss = loss::mean_squared_error(&mut rec, "loss", &y, &wanted)?;
/// rec.backward(&loss)?;
/// assert_eq!(rec.gradient(&w).unwrap().shape(), [3]);
/// assert!(rec.gradient(&x).is_none(), "nobody asked for it");
/// println!("{}", rec.finish());
/// # Ok(()) }
/// ```
pub struct Recorder<'p> {
    parameters: &'p Parameters,
    plan: Plan,
    by_name: HashMap<String, SlotId>,
    state: State,
}

/// What is recorded beside the plan.
#[derive(Clone, Default)]
struct State {
    phase: Phase,
    tape: Vec<Backward>,
    instances: HashMap<String, usize>,
    /// Paths whose parameters are not trained.
    frozen: Vec<String>,
    /// Per slot.
    gradients: Vec<GradientOf>,
}

/// The gradient of a slot.
#[derive(Clone, Copy, Default)]
struct GradientOf {
    /// What somebody said of it.
    asked: Option<bool>,
    /// From the backward pass on: whether something behind it is trained.
    wanted: bool,
    /// Where it is.
    slot: Option<SlotId>,
}

/// Where a contribution to a gradient goes.
///
/// ```
/// # let mut parameters = everloop::Parameters::new();
/// # parameters.declare("w", &[2], vec![1.0, 2.0])?;
/// let mut rec = everloop::Recorder::new(&parameters);
/// let w = rec.parameter("w")?;
/// let y = everloop::layers::add(&mut rec, "y", &w, &w)?;
/// let of = w.clone();
/// // a penalty: 0.5 flows into w beside what the loss gives
/// rec.on_backward(move |rec| match rec.contribute(&of)? {
///     Some(target) if !target.adds => rec.fill(&target.tensor, 0.5),
///     _ => Ok(()),
/// });
/// # let _ = y;
/// # Ok::<(), everloop::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The gradient, of the shape of what it is the gradient of.
    pub tensor: Tensor,
    /// Whether the contribution is added to what is there; else it replaces it.
    pub adds: bool,
}

impl Target {
    /// A tensor that is replaced.
    pub fn replace(tensor: &Tensor) -> Target {
        Target { tensor: tensor.clone(), adds: false }
    }

    /// A tensor that is added to.
    pub fn add(tensor: &Tensor) -> Target {
        Target { tensor: tensor.clone(), adds: true }
    }
}

impl<'p> Recorder<'p> {
    /// Starts a plan over these parameters.
    pub fn new(parameters: &'p Parameters) -> Self {
        Recorder {
            parameters,
            plan: Plan {
                id: PlanId::next(),
                block_len: parameters.block_len(),
                layout: parameters.layout(),
                ..Plan::default()
            },
            by_name: HashMap::new(),
            state: State::default(),
        }
    }

    /// The parameters the plan is recorded over.
    pub fn parameters(&self) -> &'p Parameters {
        self.parameters
    }

    /// Records all of something or nothing: where `record` ends in an error, slots, steps, names and the tape are what
    /// they were before. Everything of this crate that records is such an attempt.
    ///
    /// Error: that of `record`.
    pub fn attempt<R>(&mut self, record: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let (before, trains) = (self.state.clone(), self.plan.trains);
        let [slots, steps, initial] = [self.plan.slots.len(), self.plan.steps.len(), self.plan.initial.len()];
        let result = record(self);
        if result.is_err() {
            self.plan.slots.truncate(slots);
            self.plan.steps.truncate(steps);
            self.plan.initial.truncate(initial);
            self.by_name.retain(|_, id| id.0 < slots);
            (self.state, self.plan.trains) = (before, trains);
        }
        result
    }

    /// An input of floats. It gets no gradient unless [`Recorder::want_gradient`] asks for one.
    ///
    /// Errors, here and wherever a slot is made: a size of zero, 2^32 elements or more, a name that is taken.
    pub fn input(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.slot(name, shape, Kind::Input)
    }

    /// An input of token ids below `vocab_size`. Errors as [`Recorder::input`].
    pub fn tokens(&mut self, name: &str, shape: &[usize], vocab_size: usize) -> Result<Tensor> {
        self.slot(name, shape, Kind::Tokens { vocab_size, ignorable: false })
    }

    /// An input of target ids below `vocab_size`, where [`IGNORE`](crate::loss::IGNORE) takes a row out of the loss.
    /// Errors as [`Recorder::input`].
    pub fn targets(&mut self, name: &str, shape: &[usize], vocab_size: usize) -> Result<Tensor> {
        self.slot(name, shape, Kind::Tokens { vocab_size, ignorable: true })
    }

    /// An input `[batch]` of the number of steps that each batch row has, 0 to `steps`. Errors as [`Recorder::input`].
    pub fn lengths(&mut self, name: &str, batch: usize, steps: usize) -> Result<Tensor> {
        self.slot(name, &[batch], Kind::Lengths { steps })
    }

    /// Floats that go on from run to run, zero in a new workspace: a state that
    /// [`LstmOutput::carry`](crate::layers::LstmOutput::carry) writes, say. Errors as [`Recorder::input`].
    pub fn state(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.slot(name, shape, Kind::State)
    }

    /// A state with these values in a new workspace, such as a learning rate. Errors as [`Recorder::input`].
    pub fn state_with(&mut self, name: &str, values: &[f64]) -> Result<Tensor> {
        let tensor = self.state(name, &[values.len()])?;
        self.plan.initial.push((tensor.clone(), values.to_vec()));
        Ok(tensor)
    }

    /// A count `[1]` that goes on from run to run, 0 in a new workspace. Errors as [`Recorder::input`].
    pub fn counter(&mut self, name: &str) -> Result<Tensor> {
        self.any_slot(name, &[1], Dtype::U32, Kind::State, Storage::Own)
    }

    /// A parameter of the block. Error: its name is not known.
    pub fn parameter(&mut self, name: &str) -> Result<Tensor> {
        let entry = self.parameters.entry(name)?;
        self.stored(name, &entry.shape, Kind::Parameter, Storage::Parameters(entry.range.start))
    }

    /// The block of all parameters, or of all their gradients, as one row.
    pub(crate) fn block(&mut self, gradients: bool) -> Result<Tensor> {
        let (name, kind, storage) = match gradients {
            false => ("parameters", Kind::Parameter, Storage::Parameters(0)),
            true => ("gradients", Kind::ParameterGradient, Storage::Gradients(0)),
        };
        self.stored(name, &[self.plan.block_len], kind, storage)
    }

    /// The slot of this name, shape and place among the parameters or their gradients; a new one where there is none.
    fn stored(&mut self, name: &str, shape: &[usize], kind: Kind, storage: Storage) -> Result<Tensor> {
        let found = self.by_name.get(name).filter(|id| self.plan.slot(**id).storage == storage);
        match found.map(|id| self.plan.whole(*id)).filter(|found| found.shape == shape) {
            Some(found) => Ok(found),
            None => self.any_slot(name, shape, Dtype::F32, kind, storage),
        }
    }

    /// One view from the first element of the first tensor to the last of the last one, and the distance of their
    /// first elements: how a kernel binds one weight for each direction. They must lie one behind the other in one
    /// slot, or in the block of parameters.
    pub(crate) fn span(&mut self, tensors: &[&Tensor]) -> Result<(Tensor, usize)> {
        let [first, .., last] = tensors else { return Ok((tensors[0].clone(), 0)) };
        let doing = "recording a weight of several directions";
        tensors.iter().try_for_each(|tensor| self.plan.check(doing, tensor))?;
        let places: Vec<_> = tensors.iter().map(|t| (self.plan.slot(t.slot).storage, t)).collect();
        let starts: Vec<usize> = match places[..] {
            _ if tensors.iter().all(|t| t.slot == first.slot) => tensors.iter().map(|t| t.offset).collect(),
            _ => places
                .iter()
                .filter_map(|(s, t)| if let Storage::Parameters(at) = s { Some(at + t.offset) } else { None })
                .collect(),
        };
        let ordered = starts.len() == tensors.len() && starts.is_sorted_by(|a, b| a + first.len() <= *b);
        let fits = ordered && tensors.iter().all(|t| t.shape == first.shape);
        let wanted = "equal shapes, one behind the other in one slot or in the block of parameters";
        ensure!(fits, Error::config(doing, wanted, format!("starts {starts:?} of {} tensors", tensors.len())));
        let whole = if last.slot == first.slot { self.plan.whole(first.slot) } else { self.block(false)? };
        let shape = vec![starts[starts.len() - 1] + last.len() - starts[0]];
        Ok((Tensor { offset: starts[0], shape, ..whole }, starts[1] - starts[0]))
    }

    /// A slot that a step of the plan will fill. Errors as [`Recorder::input`].
    pub fn activation(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.activation_rows(name, shape, Rows::Whole)
    }

    /// An activation that says what its leading axes are.
    pub(crate) fn activation_rows(&mut self, name: &str, shape: &[usize], rows: Rows) -> Result<Tensor> {
        let kind = if self.state.phase == Phase::Forward { Kind::Activation } else { Kind::Gradient };
        let made = self.slot(name, shape, kind)?;
        self.plan.slots[made.slot.0].rows = rows;
        Ok(made)
    }

    /// Asks for the gradient of an input; [`Recorder::gradient`] gives it behind the backward pass.
    /// Errors: only some rows of a slot, a tensor of another plan.
    pub fn want_gradient(&mut self, tensor: &Tensor) -> Result<()> {
        self.ask(tensor, true)
    }

    /// Takes back the wish for the gradient of a whole slot: nothing behind it is trained through it, whoever uses it.
    /// Errors as [`Recorder::want_gradient`].
    pub fn stop_gradient(&mut self, tensor: &Tensor) -> Result<()> {
        self.ask(tensor, false)
    }

    fn ask(&mut self, tensor: &Tensor, wanted: bool) -> Result<()> {
        let doing = "asking for a gradient, or for none";
        self.plan.check(doing, tensor)?;
        let whole = tensor.len() == self.plan.slot(tensor.slot).len();
        ensure!(whole, Error::config(doing, "a whole slot", "some of its rows"));
        let of = &mut self.state.gradients[tensor.slot.0];
        (of.asked, of.wanted) = (Some(wanted), wanted);
        Ok(())
    }

    /// The same values, through which no gradient flows; other uses of the tensor keep theirs. Any tensor will do, some
    /// rows of a slot too. Error: a tensor of another plan.
    ///
    /// ```
    /// # use everloop::{Parameters, Recorder, layers, loss};
    /// # fn main() -> everloop::Result<()> {
    /// # let mut parameters = Parameters::new();
    /// # parameters.declare("w", &[2, 3], vec![0.5; 6])?;
    /// # let mut rec = Recorder::new(&parameters);
    /// let w = rec.parameter("w")?;
    /// let held = rec.detach(&w.row(0)?)?;
    /// let y = layers::add(&mut rec, "y", &held, &w.row(1)?)?; // trains row 1 only
    /// # let wanted = rec.input("wanted", &[3])?;
    /// # let loss = loss::mean_squared_error(&mut rec, "loss", &y, &wanted)?;
    /// # rec.backward(&loss)?;
    /// # Ok(()) }
    /// ```
    pub fn detach(&self, tensor: &Tensor) -> Result<Tensor> {
        self.plan.check("detaching a tensor", tensor)?;
        Ok(Tensor { detached: true, ..tensor.clone() })
    }

    /// Parameters at this path and below it are not trained, and no step is recorded for what only they would need.
    /// Error: no parameter lies there.
    pub fn freeze(&mut self, path: &str) -> Result<()> {
        let some = self.parameters.iter().any(|parameter| lies_at(&parameter.name, path));
        ensure!(some, Error::name("freezing parameters", path, "is the path of none"));
        self.state.frozen.push(path.to_string());
        Ok(())
    }

    /// From here on: which slots have something behind them that is trained.
    fn find_wanted(&mut self) {
        let trained = |slot: &Slot| {
            slot.kind == Kind::Parameter && !self.state.frozen.iter().any(|path| lies_at(&slot.name, path))
        };
        let is_block = |slot: &Slot| slot.storage == Storage::Parameters(0) && slot.name == "parameters";
        let slots = self.plan.slots.iter().zip(&self.state.gradients);
        let mut wanted: Vec<bool> =
            slots.map(|(slot, of)| of.asked.unwrap_or(trained(slot) && !is_block(slot))).collect();
        for step in &self.plan.steps {
            // a view of the block of parameters stands for those that lie in it
            let reaches = |view: &Tensor| {
                let within = |(slot, wanted): (&Slot, &bool)| match slot.storage {
                    Storage::Parameters(at) => {
                        *wanted && at < view.offset + view.len() && view.offset < at + slot.len()
                    }
                    _ => false,
                };
                match is_block(self.plan.slot(view.slot)) {
                    true => self.plan.slots.iter().zip(&wanted).any(within),
                    false => wanted[view.slot.0],
                }
            };
            if step.operands.iter().flatten().any(|view| !view.detached && reaches(view)) {
                for SlotId(id) in step.written().map(|view| view.slot) {
                    // not so an input or a state that is written for the next run
                    let asked = self.state.gradients[id].asked;
                    wanted[id] |= self.plan.slots[id].kind == Kind::Activation && asked != Some(false);
                }
            }
        }
        self.state.gradients.iter_mut().zip(wanted).for_each(|(of, wanted)| of.wanted = wanted);
    }

    /// A path for the slots of a layer: `path` the first time, `path#2` the second, and so on. So a layer can
    /// be recorded several times, which shares its parameters.
    pub fn instance(&mut self, path: &str) -> String {
        match self.count(path) {
            0 => path.to_string(),
            count => format!("{path}#{}", count + 1),
        }
    }

    /// How often this was asked before with the same path.
    pub(crate) fn count(&mut self, path: &str) -> usize {
        let count = self.state.instances.entry(path.to_string()).or_insert(0);
        *count += 1;
        *count - 1
    }

    /// Error: ids that may reach `vocab_size` or beyond, or be [`IGNORE`](crate::loss::IGNORE) where that is not `ignorable`.
    pub(crate) fn check_ids(&self, doing: &str, ids: &Tensor, vocab_size: usize, ignorable: bool) -> Result<()> {
        let fits = |kind| match kind {
            Kind::Tokens { vocab_size: most, ignorable: may } => most <= vocab_size && (ignorable || !may),
            _ => false,
        };
        let wanted = format!("{} below {vocab_size}", if ignorable { "token ids or targets" } else { "token ids" });
        self.check_kind(doing, ids, fits, wanted)
    }

    /// Error: no lengths `[batch]` of at most `steps`.
    pub(crate) fn check_lengths(&self, doing: &str, lengths: &Tensor, batch: usize, steps: usize) -> Result<()> {
        let fits = |kind| matches!(kind, Kind::Lengths { steps: most } if most <= steps) && lengths.len() == batch;
        self.check_kind(doing, lengths, fits, format!("`lengths` of {batch} rows, at most {steps} each"))
    }

    /// Error: not a whole input or state of floats of this plan.
    pub(crate) fn check_target(&self, doing: &str, tensor: &Tensor) -> Result<()> {
        let whole = |id: SlotId| tensor.len() == self.plan.slot(id).len() && self.plan.slot(id).dtype == Dtype::F32;
        let fits = |kind| matches!(kind, Kind::Input | Kind::State) && whole(tensor.slot);
        self.check_kind(doing, tensor, fits, "a whole slot of `state` or `input`".into())
    }

    fn check_kind(&self, doing: &str, tensor: &Tensor, fits: impl Fn(Kind) -> bool, wanted: String) -> Result<()> {
        self.plan.check(doing, tensor)?;
        let slot = self.plan.slot(tensor.slot);
        let found = || format!("`{}` {:?}, {}", slot.name, tensor.shape, slot.kind);
        ensure!(fits(slot.kind), Error::config(doing, wanted, found()));
        Ok(())
    }

    fn slot(&mut self, name: &str, shape: &[usize], kind: Kind) -> Result<Tensor> {
        let words = matches!(kind, Kind::Tokens { .. } | Kind::Lengths { .. });
        self.any_slot(name, shape, if words { Dtype::U32 } else { Dtype::F32 }, kind, Storage::Own)
    }

    fn any_slot(&mut self, name: &str, shape: &[usize], dtype: Dtype, kind: Kind, storage: Storage) -> Result<Tensor> {
        let wrong = |wanted: &str| Error::shape(format!("recording slot `{name}`"), wanted, shape);
        ensure!(!shape.contains(&0), wrong("no size of zero"));
        // kernels index with u32
        let count = shape.iter().try_fold(1u32, |n, s| n.checked_mul(u32::try_from(*s).ok()?));
        ensure!(count.is_some(), wrong("fewer than 2^32 elements"));
        let taken = self.by_name.contains_key(name);
        ensure!(!taken, Error::name("recording a slot", name, "is taken already"));
        let id = SlotId(self.plan.slots.len());
        self.by_name.insert(name.to_string(), id);
        let (name, shape) = (name.to_string(), shape.to_vec());
        self.plan.slots.push(Slot { name, shape, dtype, kind, storage, rows: Rows::Whole });
        self.state.gradients.push(GradientOf::default());
        Ok(self.plan.whole(id))
    }

    /// Appends a step. Errors: an operand of another type, or with fewer elements than [`Kernel::needs`] says,
    /// parameters that make no sense, or a buffer both written and bound a second time (no GPU API allows that).
    pub fn push<K: Kernel>(&mut self, kernel: K, operands: K::Tensors<'_>) -> Result<()> {
        let doing = || format!("recording a step of `{}`", K::NAME);
        let wrong = |wanted: &str, found: &dyn std::fmt::Display| Error::config(doing(), wanted, found);
        let operands = K::list(&operands);
        let words = K::FIELDS.len() + K::BINDINGS.len();
        ensure!(words <= MAX_WORDS, wrong(&format!("at most {MAX_WORDS} parameters and operands"), &words));
        let present = || K::BINDINGS.iter().zip(&operands).filter_map(|(b, o)| o.map(|o| (b, o)));
        let buffer = |id: SlotId| match self.plan.slot(id).storage {
            Storage::Own => (0, id.0),
            Storage::Parameters(_) => (1, 0),
            Storage::Gradients(_) => (2, 0),
        };
        for (binding, operand) in present() {
            self.plan.check(&doing(), operand)?;
            let slot = self.plan.slot(operand.slot);
            let wanted = || format!("{:?} for `{}`", binding.dtype, binding.name);
            let found = || format!("`{}`, a slot of {}", slot.name, slot.kind);
            ensure!(slot.dtype == binding.dtype, wrong(&wanted(), &found()));
            let same = present().filter(|(_, o)| buffer(o.slot) == buffer(operand.slot)).count();
            let once = binding.access != Access::Write || same == 1;
            ensure!(once, wrong("a buffer that is written to be bound once", &slot.name));
        }
        let needs = Operation::needs(&kernel);
        let needs = needs.ok_or_else(|| wrong("sizes above zero", &format!("{kernel:?}")))?;
        for ((binding, operand), need) in K::BINDINGS.iter().zip(&operands).zip(needs) {
            let named = |o: &Tensor| format!("`{}` {:?}", self.plan.slot(o.slot).name, o.shape);
            let wanted = || format!("at least {need} elements for `{}`", binding.name);
            let enough = need <= operand.map_or(0, Tensor::len) as u128;
            ensure!(enough, wrong(&wanted(), &operand.map_or("none".into(), named)));
        }
        let operands = operands.into_iter().map(Option::<&Tensor>::cloned).collect();
        self.plan.steps.push(Step { operation: Arc::new(kernel), operands, phase: self.state.phase });
        Ok(())
    }

    /// Leaves the backward of what was just recorded on the tape. An error of `record` is one of
    /// [`Recorder::backward`], which may call it again.
    pub fn on_backward(&mut self, record: impl Fn(&mut Recorder<'_>) -> Result<()> + 'static) {
        if self.state.phase == Phase::Forward {
            self.state.tape.push(Rc::new(record));
        }
    }

    /// The gradient that has flowed into a tensor so far, if any: behind [`Recorder::backward`] all of it.
    pub fn gradient(&self, of: &Tensor) -> Option<Tensor> {
        self.plan.check("", of).ok()?;
        self.state.gradients[of.slot.0].slot.map(|slot| Tensor { slot, ..of.clone() })
    }

    /// Where to write a contribution to the gradient of a tensor. `None` when nobody wants it.
    /// Errors: a tensor of another plan, a name for the gradient that is taken.
    pub fn contribute(&mut self, of: &Tensor) -> Result<Option<Target>> {
        self.plan.check("recording a gradient", of)?;
        if of.detached || !self.state.gradients[of.slot.0].wanted {
            return Ok(None);
        }
        if let Some(tensor) = self.gradient(of) {
            return Ok(Some(Target { tensor, adds: true }));
        }
        let slot = self.plan.slot(of.slot).clone();
        let storage = match slot.storage {
            Storage::Parameters(at) => Storage::Gradients(at),
            _ => Storage::Own,
        };
        let kind = if slot.kind == Kind::Parameter { Kind::ParameterGradient } else { Kind::Gradient };
        let whole = self.any_slot(&gradient_name(&slot.name), &slot.shape, Dtype::F32, kind, storage)?;
        self.plan.slots[whole.slot.0].rows = slot.rows.clone();
        self.plan.trains |= kind == Kind::ParameterGradient;
        self.state.gradients[of.slot.0].slot = Some(whole.slot);
        let partial = of.len() != slot.len();
        if partial {
            self.fill(&whole, 0.0)?;
        }
        Ok(Some(Target { tensor: Tensor { slot: whole.slot, ..of.clone() }, adds: partial }))
    }

    /// Records the contribution of a finished gradient to that of `of`, if anybody wants that.
    /// Errors: other sizes, and those of [`Recorder::contribute`].
    pub fn add_gradient(&mut self, gradient: &Tensor, of: &Tensor) -> Result<()> {
        let wrong = || Error::shape("recording a gradient", format!("{:?}", of.shape()), gradient.shape());
        ensure!(gradient.len() == of.len(), wrong());
        match self.contribute(of)? {
            Some(target) => crate::kernels::copy_columns::record(self, gradient, &target),
            None => Ok(()),
        }
    }

    /// The gradient of a whole slot, cleared if nothing has flowed into it: for kernels that update it in place.
    /// Errors as [`Recorder::want_gradient`].
    pub fn gradient_in_place(&mut self, of: &Tensor) -> Result<Tensor> {
        self.want_gradient(of)?;
        let refused = || Error::config("recording a gradient in place", "a tensor with a gradient", "a detached one");
        let target = self.contribute(of)?.ok_or_else(refused)?;
        if !target.adds {
            self.fill(&target.tensor, 0.0)?;
        }
        Ok(target.tensor)
    }

    /// Sets every element of a tensor. Errors as [`Recorder::push`].
    pub fn fill(&mut self, target: &Tensor, value: f64) -> Result<()> {
        self.push(Fill { len: target.len() as u32, value }, fill::Tensors { result: target })
    }

    /// Records the backward pass of a scalar loss. Layers recorded after it run, but nothing is trained through them.
    /// Errors: more than one element, a second backward pass in a plan.
    pub fn backward(&mut self, loss: &Tensor) -> Result<()> {
        ensure!(loss.len() == 1, Error::shape("recording the backward pass", "a loss of one element", loss.shape()));
        self.walk_tape(|rec| match rec.contribute(loss)? {
            Some(seed) => rec.fill(&seed.tensor, 1.0),
            None => Ok(()),
        })
    }

    /// Records the backward pass from given gradients, one for each output: PyTorch's `backward(gradient=..)`.
    /// The gradients are usually inputs. Errors: other sizes, a second backward pass in a plan.
    pub fn backward_from(&mut self, outputs: &[(&Tensor, &Tensor)]) -> Result<()> {
        self.walk_tape(|rec| outputs.iter().try_for_each(|(output, gradient)| rec.add_gradient(gradient, output)))
    }

    fn walk_tape(&mut self, seed: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.attempt(|rec| {
            let refused =
                || Error::config("recording the backward pass", "one backward pass in a plan", "a second one");
            ensure!(rec.state.phase == Phase::Forward, refused());
            rec.state.phase = Phase::Backward;
            rec.find_wanted();
            seed(rec)?;
            std::mem::take(&mut rec.state.tape).into_iter().rev().try_for_each(|record| record(rec))
        })
    }

    /// Steps recorded from here on belong to the update of the parameters.
    pub(crate) fn begin_update(&mut self) -> Result<()> {
        let wrong = |wanted: &str, found: &str| Error::config("recording the update", wanted, found);
        let back = self.state.phase != Phase::Forward;
        ensure!(back, wrong("gradients to update with", "no backward pass recorded"));
        ensure!(self.plan.trains, wrong("a gradient of some parameter", "a loss that reaches none"));
        self.state.phase = Phase::Update;
        Ok(())
    }

    /// The finished plan.
    pub fn finish(self) -> Plan {
        self.plan
    }
}

fn lies_at(name: &str, path: &str) -> bool {
    name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || path.is_empty())
}

/// The name of a gradient: a `d` before the last part of the path. `lstm.0.h` -> `lstm.0.dh`.
pub fn gradient_name(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((path, last)) => format!("{path}.d{last}"),
        None => format!("d{name}"),
    }
}
