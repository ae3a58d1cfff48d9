//! Recording a plan: layers append steps, and each forward step leaves its backward on a tape.
//!
//! [`Recorder::backward`] walks the tape in reverse, so any composition of layers gets its backward
//! by itself. A gradient is written by the first consumer and accumulated by the others; where only
//! part of a slot has a consumer, a visible `fill` step clears it first.

use crate::error::{Error, Result};
use crate::kernel::{Access, Kernel, MAX_PARAMETER_BYTES};
use crate::kernels::fill::Fill;
use crate::parameters::Parameters;
use crate::plan::{Cell, Kind, Phase, Plan, PlanId, Slot, SlotId, Step, Storage, Tensor};
use std::collections::HashMap;
use std::sync::Arc;

type Backward = Box<dyn FnOnce(&mut Recorder<'_>) -> Result<()>>;

/// Writes a [`Plan`]; see the [module](self).
pub struct Recorder<'p> {
    parameters: &'p Parameters,
    plan: Plan,
    by_name: HashMap<String, SlotId>,
    instances: HashMap<String, usize>,
    tape: Vec<Backward>,
    phase: Phase,
    /// Per slot: does anything want its gradient, and has anything flowed into it yet.
    wanted: Vec<bool>,
    gradient: Vec<Option<SlotId>>,
    /// What is made of other slots alone, and these: its gradient is wanted if one of theirs is.
    copies: HashMap<SlotId, Vec<SlotId>>,
}

impl<'p> Recorder<'p> {
    /// Starts a plan over these parameters.
    pub fn new(parameters: &'p Parameters) -> Self {
        Recorder {
            parameters,
            plan: Plan {
                id: PlanId::next(),
                block_len: parameters.block().len(),
                layout: parameters.layout(),
                ..Plan::default()
            },
            by_name: HashMap::new(),
            instances: HashMap::new(),
            tape: Vec::new(),
            phase: Phase::Forward,
            wanted: Vec::new(),
            gradient: Vec::new(),
            copies: HashMap::new(),
        }
    }

    /// The parameters the plan is recorded over.
    pub fn parameters(&self) -> &'p Parameters {
        self.parameters
    }

    /// An input of floats. It gets no gradient unless [`Recorder::want_gradient`] asks for one.
    pub fn input(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.slot(name, shape, Kind::Input, Storage::Own, false)
    }

    /// An input that has these values in a new workspace, such as a learning rate.
    pub fn input_with(&mut self, name: &str, values: &[f64]) -> Result<Tensor> {
        let tensor = self.input(name, &[values.len()])?;
        self.plan.initial.push((tensor.clone(), values.to_vec()));
        Ok(tensor)
    }

    /// An input of token ids below `vocab_size`.
    pub fn tokens(&mut self, name: &str, shape: &[usize], vocab_size: usize) -> Result<Tensor> {
        self.slot(name, shape, Kind::Tokens { vocab_size, ignorable: false }, Storage::Own, false)
    }

    /// An input of target ids below `vocab_size`, where [`IGNORE`](crate::loss::IGNORE) takes a row out of the loss.
    pub fn targets(&mut self, name: &str, shape: &[usize], vocab_size: usize) -> Result<Tensor> {
        self.slot(name, shape, Kind::Tokens { vocab_size, ignorable: true }, Storage::Own, false)
    }

    /// A parameter of the block.
    pub fn parameter(&mut self, name: &str) -> Result<Tensor> {
        let entry = self.parameters.entry(name)?.clone();
        let storage = Storage::Parameters(entry.range.start);
        if let Some(id) = self.by_name.get(name).filter(|id| self.plan.slot(**id).storage == storage) {
            return Ok(self.plan.whole(*id));
        }
        self.slot(name, &entry.shape, Kind::Parameter, storage, true)
    }

    /// The block of all parameters, or of all their gradients, as one row.
    pub(crate) fn block(&mut self, gradients: bool) -> Result<Tensor> {
        let (name, kind, storage) = match gradients {
            false => ("parameters", Kind::Parameter, Storage::Parameters(0)),
            true => ("gradients", Kind::ParameterGradient, Storage::Gradients(0)),
        };
        let shape = vec![self.plan.block_len];
        let id = self.by_name.get(name).filter(|id| self.plan.slot(**id).storage == storage);
        match id.filter(|id| self.plan.slot(**id).shape == shape) {
            Some(id) => Ok(self.plan.whole(*id)),
            None => self.slot(name, &shape, kind, storage, false),
        }
    }

    /// A slot that a step of the plan will fill.
    pub fn activation(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let kind = if self.phase == Phase::Forward { Kind::Activation } else { Kind::Gradient };
        self.slot(name, shape, kind, Storage::Own, self.phase == Phase::Forward)
    }

    /// Asks for the gradient of an input; it is the slot named by [`gradient_name`].
    /// Errors: only some rows of a slot, a tensor of another plan.
    pub fn want_gradient(&mut self, tensor: &Tensor) -> Result<()> {
        self.set_wanted(tensor, true)
    }

    /// Takes back the wish for a gradient: nothing behind this slot can be trained through it.
    /// Errors as [`Recorder::want_gradient`].
    pub fn stop_gradient(&mut self, tensor: &Tensor) -> Result<()> {
        self.set_wanted(tensor, false)
    }

    fn set_wanted(&mut self, tensor: &Tensor, wanted: bool) -> Result<()> {
        let doing = "asking for a gradient, or for none";
        self.plan.check(doing, tensor)?;
        if tensor.len() != self.plan.slot(tensor.slot).len() {
            return Err(Error::config(doing, "a whole slot", "some of its rows"));
        }
        self.wanted[tensor.slot.0] = wanted;
        self.copies.remove(&tensor.slot);
        Ok(())
    }

    /// Says that `copy` is made of `parts` alone: unless somebody asks for it, its gradient is wanted for theirs only.
    pub(crate) fn note_copy(&mut self, copy: &Tensor, parts: &[&Tensor]) {
        self.copies.insert(copy.slot, parts.iter().map(|part| part.slot).collect());
    }

    fn wants(&self, slot: SlotId) -> bool {
        self.wanted[slot.0] && self.copies.get(&slot).is_none_or(|parts| parts.iter().any(|part| self.wants(*part)))
    }

    /// A path for the slots of a layer: `path` the first time, `path#2` the second, and so on. So a layer can
    /// be recorded several times, which shares its parameters.
    pub fn instance(&mut self, path: &str) -> String {
        let count = self.instances.entry(path.to_string()).or_insert(0);
        *count += 1;
        if *count == 1 { path.to_string() } else { format!("{path}#{count}") }
    }

    /// Error: ids that may reach `vocab_size` or beyond, or be [`IGNORE`](crate::loss::IGNORE) where that is not `ignorable`.
    pub(crate) fn check_ids(&self, doing: &str, ids: &Tensor, vocab_size: usize, ignorable: bool) -> Result<()> {
        self.plan.check(doing, ids)?;
        let slot = self.plan.slot(ids.slot);
        match slot.kind {
            Kind::Tokens { vocab_size: ids, ignorable: may } if ids <= vocab_size && (ignorable || !may) => Ok(()),
            Kind::Tokens { ignorable: true, .. } if !ignorable => {
                Err(Error::config(doing, "a slot of `tokens`", format!("`{}`, a slot of `targets`", slot.name)))
            }
            Kind::Tokens { vocab_size: ids, .. } => {
                let found = format!("`{}` with a vocabulary of {ids}", slot.name);
                Err(Error::config(doing, format!("ids below {vocab_size}"), found))
            }
            _ => Err(Error::config(doing, "token ids", format!("`{}`, a slot of floats", slot.name))),
        }
    }

    /// Error: not a whole input of floats of this plan.
    pub(crate) fn check_input(&self, doing: &str, tensor: &Tensor) -> Result<()> {
        self.plan.check(doing, tensor)?;
        let slot = self.plan.slot(tensor.slot);
        match slot.kind == Kind::Input && tensor.len() == slot.len() {
            true => Ok(()),
            false => Err(Error::config(doing, "a whole slot of `input`", format!("`{}`, {:?}", slot.name, slot.kind))),
        }
    }

    fn slot(&mut self, name: &str, shape: &[usize], kind: Kind, storage: Storage, wanted: bool) -> Result<Tensor> {
        if shape.contains(&0) {
            return Err(Error::shape(format!("recording slot `{name}`"), "no size of zero", shape));
        }
        // kernels index with u32
        if shape.iter().try_fold(1u32, |n, s| u32::try_from(*s).ok().and_then(|s| n.checked_mul(s))).is_none() {
            return Err(Error::shape(format!("recording slot `{name}`"), "fewer than 2^32 elements", shape));
        }
        if self.by_name.contains_key(name) {
            let problem = "is taken already";
            return Err(Error::Name { doing: "recording a slot", name: name.to_string(), problem });
        }
        let id = SlotId(self.plan.slots.len());
        self.by_name.insert(name.to_string(), id);
        self.plan.slots.push(Slot { name: name.to_string(), shape: shape.to_vec(), kind, storage });
        self.wanted.push(wanted);
        self.gradient.push(None);
        Ok(self.plan.whole(id))
    }

    /// Appends a step. Errors: wrong number or kind of operands, parameters that reach outside a slot
    /// ([`Kernel::needs`]), or a buffer both written and bound a second time (no GPU API allows that).
    pub fn push<K: Kernel>(&mut self, kernel: K, operands: &[&Tensor]) -> Result<()> {
        self.push_some(kernel, &operands.iter().copied().map(Some).collect::<Vec<_>>())
    }

    /// As [`Recorder::push`], with `None` for a binding that these parameters leave out.
    pub fn push_some<K: Kernel>(&mut self, kernel: K, operands: &[Option<&Tensor>]) -> Result<()> {
        let doing = || format!("recording a step of `{}`", K::NAME);
        if operands.len() != K::BINDINGS.len() {
            return Err(Error::config(doing(), format!("{} operands", K::BINDINGS.len()), operands.len()));
        }
        if size_of::<K>() > MAX_PARAMETER_BYTES {
            return Err(Error::config(doing(), format!("at most {MAX_PARAMETER_BYTES} bytes"), size_of::<K>()));
        }
        let present = || K::BINDINGS.iter().zip(operands).filter_map(|(b, o)| o.map(|o| (b, o)));
        for (binding, operand) in present() {
            self.plan.check(&doing(), operand)?;
            let slot = self.plan.slot(operand.slot);
            if matches!(slot.kind, Kind::Tokens { .. }) != (binding.access == Access::Tokens) {
                let found = format!("slot `{}` of kind {:?}", slot.name, slot.kind);
                return Err(Error::config(doing(), format!("{:?} for `{}`", binding.access, binding.name), found));
            }
            let buffer = |id: SlotId| match self.plan.slot(id).storage {
                Storage::Own => (0, id.0),
                Storage::Parameters(_) => (1, 0),
                Storage::Gradients(_) => (2, 0),
            };
            if !K::VIEWS && operand.len() != slot.len() {
                return Err(Error::config(doing(), format!("a whole slot for `{}`", binding.name), "some of its rows"));
            }
            let same = present().filter(|(_, o)| buffer(o.slot) == buffer(operand.slot)).count();
            if binding.access == Access::Write && same > 1 {
                return Err(Error::config(doing(), "a buffer that is written to be bound once", &slot.name));
            }
        }
        let Some(needs) = kernel.needs() else {
            return Err(Error::config(doing(), "sizes above zero", format!("{kernel:?}")));
        };
        for ((binding, operand), need) in K::BINDINGS.iter().zip(operands).zip(needs) {
            let slot = operand.map(|operand| self.plan.slot(operand.slot));
            if need > slot.map_or(0, Slot::len) as u128 {
                let found = slot.map_or("none".into(), |slot| format!("`{}` with {}", slot.name, slot.len()));
                return Err(Error::config(doing(), format!("at least {need} elements for `{}`", binding.name), found));
            }
        }
        let operands = operands.iter().map(|o| o.map(|o| o.slot)).collect();
        self.plan.steps.push(Step { operation: Arc::new(kernel), operands, phase: self.phase });
        Ok(())
    }

    /// Leaves the backward of what was just recorded on the tape.
    pub fn on_backward(&mut self, record: impl FnOnce(&mut Recorder<'_>) -> Result<()> + 'static) {
        if self.phase == Phase::Forward {
            self.tape.push(Box::new(record));
        }
    }

    /// The gradient that has flowed into a tensor so far, if any.
    pub fn gradient(&self, of: &Tensor) -> Option<Tensor> {
        self.plan.check("", of).ok()?;
        self.gradient[of.slot.0].map(|slot| Tensor { slot, ..of.clone() })
    }

    /// Where to write a contribution to the gradient of a tensor, and whether to accumulate.
    /// `None` when nobody wants it.
    pub fn contribute(&mut self, of: &Tensor) -> Result<Option<(Tensor, bool)>> {
        self.plan.check("recording a gradient", of)?;
        if !self.wants(of.slot) {
            return Ok(None);
        }
        if let Some(gradient) = self.gradient(of) {
            return Ok(Some((gradient, true)));
        }
        let slot = self.plan.slot(of.slot).clone();
        let storage = match slot.storage {
            Storage::Parameters(at) => Storage::Gradients(at),
            _ => Storage::Own,
        };
        let kind = if slot.kind == Kind::Parameter { Kind::ParameterGradient } else { Kind::Gradient };
        let whole = self.slot(&gradient_name(&slot.name), &slot.shape, kind, storage, false)?;
        self.plan.trains |= kind == Kind::ParameterGradient;
        self.gradient[of.slot.0] = Some(whole.slot);
        let partial = of.len() != slot.len();
        if partial {
            self.fill(&whole, 0.0)?;
        }
        Ok(Some((Tensor { slot: whole.slot, ..of.clone() }, partial)))
    }

    /// The gradient of a whole slot, cleared if nothing has flowed into it: for kernels that update it in place.
    pub fn gradient_in_place(&mut self, of: &Tensor) -> Result<Tensor> {
        self.want_gradient(of)?;
        match self.contribute(of)? {
            Some((gradient, true)) => Ok(gradient),
            Some((gradient, false)) => self.fill(&gradient, 0.0).map(|()| gradient),
            None => unreachable!("wanted above"),
        }
    }

    /// Sets every element of a tensor.
    pub fn fill(&mut self, target: &Tensor, value: f32) -> Result<()> {
        self.push(Fill { len: target.len() as u32, offset: target.offset as u32, value }, &[target])
    }

    /// Records the backward pass of a scalar loss. Layers recorded after it run, but nothing is trained through them.
    pub fn backward(&mut self, loss: &Tensor) -> Result<()> {
        if loss.len() != 1 {
            return Err(Error::shape("recording the backward pass", "a loss of one element", loss.shape()));
        }
        self.begin_backward()?;
        let seed = self.contribute(loss)?;
        if let Some((seed, _)) = seed {
            self.fill(&seed, 1.0)?;
        }
        self.walk_tape()
    }

    pub(crate) fn begin_backward(&mut self) -> Result<()> {
        if self.phase != Phase::Forward {
            return Err(Error::config("recording the backward pass", "one backward pass in a plan", "a second one"));
        }
        self.phase = Phase::Backward;
        Ok(())
    }

    pub(crate) fn walk_tape(&mut self) -> Result<()> {
        for record in std::mem::take(&mut self.tape).into_iter().rev() {
            record(self)?;
        }
        Ok(())
    }

    /// Steps recorded from here on belong to the update of the parameters.
    pub(crate) fn begin_update(&mut self) -> Result<()> {
        if self.phase == Phase::Forward {
            let found = "no backward pass recorded";
            return Err(Error::config("recording the update", "gradients to update with", found));
        }
        if !self.plan.trains {
            let found = "a loss that reaches none";
            return Err(Error::config("recording the update", "a gradient of some parameter", found));
        }
        self.phase = Phase::Update;
        Ok(())
    }

    pub(crate) fn note_cell(&mut self, cell: Cell) -> usize {
        self.plan.cells.push(cell);
        self.plan.cells.len() - 1
    }

    pub(crate) fn note_cell_gradients(&mut self, index: usize, gradients: [Tensor; 3]) {
        self.plan.cells[index].gradients = Some(gradients);
    }

    /// The finished plan.
    pub fn finish(self) -> Plan {
        self.plan
    }
}

/// The name of a gradient: a `d` before the last part of the path. `lstm.0.h` -> `lstm.0.dh`.
pub fn gradient_name(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((path, last)) => format!("{path}.d{last}"),
        None => format!("d{name}"),
    }
}
