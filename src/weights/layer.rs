//! One layer in our layout, out of parameters and into them.

use super::message;
use super::tables::{Part, Sizes, name_in_stack};
use crate::error::{Result, ensure};
use crate::layers::{Bias, Lstm, path};
use crate::parameters::Parameters;
use crate::time::Direction;

/// One layer and direction in our layout: rows i, f, g, o.
///
/// ```
/// use everloop::weights::layout::Layer;
/// use everloop::{Direction, Parameters, Rng, layers::LstmConfig};
/// # fn main() -> everloop::Result<()> {
/// let mut parameters = Parameters::new();
/// let lstm = LstmConfig::new(3, 2).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
/// let at = (0, Direction::Forward);
/// let layer = Layer { weight_ih: vec![0.5; 24], ..Layer::zeros(3, 2) };
/// layer.store(&mut parameters, &lstm, at)?;
/// assert_eq!(parameters.get("lstm.weight_ih_l0")?, [0.5; 24]);
/// assert_eq!(Layer::from_parameters(&parameters, &lstm, at)?.weight_hh, [0.0; 16]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// I.
    pub input_size: usize,
    /// H.
    pub hidden_size: usize,
    /// `[4H, I]`, row-major.
    pub weight_ih: Vec<f64>,
    /// `[4H, P]`; P = H without a projection.
    pub weight_hh: Vec<f64>,
    /// `bias_ih` and `bias_hh`, each `[4H]`.
    pub bias: Option<[Vec<f64>; 2]>,
    /// P and `[P, H]`.
    pub projection: Option<(usize, Vec<f64>)>,
    /// `[3H]`: to i, f, o.
    pub peephole: Option<Vec<f64>>,
    /// `[2, 5H]`: gains of i, f, g, o and the new cell, then shifts.
    pub layer_norm: Option<Vec<f64>>,
    /// What the model adds to the forget gate on top of the biases.
    pub forget_bias: f64,
}

impl Layer {
    /// All weights zero, no biases.
    pub fn zeros(input_size: usize, hidden_size: usize) -> Layer {
        let sizes = Sizes { directions: 1, input: input_size, hidden: hidden_size, outputs: hidden_size };
        Layer::sized(&sizes, false)
    }

    /// The layer `layer` of `lstm` out of its parameters.
    ///
    /// # Errors
    ///
    /// No such layer or direction among the parameters.
    pub fn from_parameters(parameters: &Parameters, lstm: &Lstm, at: (usize, Direction)) -> Result<Layer> {
        let mut found = Layer::sized(&lstm.config.sizes(at.0), lstm.config.proj_size.is_some());
        found.forget_bias = lstm.config.forget_bias;
        for part in Part::ALL.into_iter().filter(|part| lstm.config.has(*part)) {
            *found.part_mut(part) = parameters.get(&parameter(lstm, at, part))?.to_vec();
        }
        Ok(found)
    }

    /// Sets the parameters of the layer `layer` of `lstm`. What this layer's forget bias has above `lstm`'s goes into
    /// `bias_ih`, or with a layer norm into its shift. For an LSTM with one bias vector both are added; biases and
    /// peepholes that the layer lacks become 0.
    ///
    /// # Errors
    ///
    /// Other sizes, biases or peepholes that are not 0 for an LSTM without, a projection or a layer norm that only one
    /// of both has, a value that is not finite. On an error nothing is set.
    pub fn store(&self, parameters: &mut Parameters, lstm: &Lstm, at: (usize, Direction)) -> Result<()> {
        let sizes = self.check()?;
        let mut moved = self.clone();
        moved.move_forget_bias(lstm.config.forget_bias);
        if lstm.config.bias == Bias::One {
            moved.add_biases();
        }
        let mut all = Vec::new();
        for part in Part::ALL {
            let (name, words, needed) = (parameter(lstm, at, part), part.words(), !part.may_be_zero());
            let mismatch = match (lstm.config.has(part), moved.part(part)) {
                (true, None) if needed => format!("with {words}, the layer has none"),
                (false, Some(_)) if needed => format!("without {words}, the layer has one"),
                (false, Some(values)) if values.iter().any(|v| *v != 0.0) => {
                    format!("without {words}, the layer has some")
                }
                (true, _) => {
                    all.push((name, part.shape(&sizes), std::mem::take(moved.part_mut(part))));
                    continue;
                }
                (false, _) => continue,
            };
            return Err(message::tensor(&name, format!("the LSTM was declared {mismatch}")));
        }
        for (name, shape, values) in &all {
            let declared = &parameters.entry(name)?.shape;
            let wrong =
                || format!("is declared as {}, the layer has {}", message::shape(declared), message::shape(shape));
            ensure!(declared == shape, message::tensor(name, wrong()));
            check_finite(name, values)?;
        }
        all.iter().try_for_each(|(name, _, values)| parameters.set(name, values))
    }

    /// P, columns of h: H without a projection.
    pub fn output_size(&self) -> usize {
        self.projection.as_ref().map_or(self.hidden_size, |(outputs, _)| *outputs)
    }

    /// Zeros, with a projection where told.
    pub(super) fn sized(sizes: &Sizes, projected: bool) -> Layer {
        let zeros = |part: Part| vec![0.0; len(part, sizes)];
        Layer {
            input_size: sizes.input,
            hidden_size: sizes.hidden,
            weight_ih: zeros(Part::WeightIh),
            weight_hh: zeros(Part::WeightHh),
            bias: None,
            projection: projected.then(|| (sizes.outputs, zeros(Part::Projection))),
            peephole: None,
            layer_norm: None,
            forget_bias: 0.0,
        }
    }

    pub(super) fn part(&self, part: Part) -> Option<&[f64]> {
        match part {
            Part::WeightIh => Some(&self.weight_ih),
            Part::WeightHh => Some(&self.weight_hh),
            Part::BiasIh => self.bias.as_ref().map(|[ih, _]| &ih[..]),
            Part::BiasHh => self.bias.as_ref().map(|[_, hh]| &hh[..]),
            Part::Projection => self.projection.as_ref().map(|(_, values)| &values[..]),
            Part::Peephole => self.peephole.as_deref(),
            Part::Norm => self.layer_norm.as_deref(),
        }
    }

    /// Zeros at first where the layer lacks it.
    pub(super) fn part_mut(&mut self, part: Part) -> &mut Vec<f64> {
        let sizes = self.sizes();
        let zeros = || vec![0.0; len(part, &sizes)];
        match part {
            Part::WeightIh => &mut self.weight_ih,
            Part::WeightHh => &mut self.weight_hh,
            Part::BiasIh => &mut self.bias.get_or_insert_with(|| [zeros(), zeros()])[0],
            Part::BiasHh => &mut self.bias.get_or_insert_with(|| [zeros(), zeros()])[1],
            Part::Projection => &mut self.projection.get_or_insert_with(|| (sizes.outputs, zeros())).1,
            Part::Peephole => self.peephole.get_or_insert_with(zeros),
            Part::Norm => self.layer_norm.get_or_insert_with(zeros),
        }
    }

    pub(super) fn sizes(&self) -> Sizes {
        let (input, hidden, outputs) = (self.input_size, self.hidden_size, self.output_size());
        Sizes { directions: 1, input, hidden, outputs }
    }

    /// Error: lengths that do not fit the sizes, a size of zero.
    pub(super) fn check(&self) -> Result<Sizes> {
        let sizes = self.sizes();
        let fits = |part: Part| self.part(part).is_none_or(|values| values.len() == len(part, &sizes));
        let Sizes { input, hidden, outputs, .. } = sizes;
        let good = Part::ALL.into_iter().all(fits) && [input, hidden, outputs].iter().all(|size| *size > 0);
        let cause = || format!("its lengths do not fit the sizes I = {input}, H = {hidden}, P = {outputs}");
        ensure!(good, message::tensor("layer", cause()));
        Ok(sizes)
    }

    /// Makes `outside` the forget bias, and moves the difference into the biases, or into the shift of the forget
    /// gate's norm.
    pub(super) fn move_forget_bias(&mut self, outside: f64) {
        let (difference, hidden) = (self.forget_bias - outside, self.hidden_size);
        self.forget_bias = outside;
        let (part, block) = if self.layer_norm.is_some() { (Part::Norm, 6) } else { (Part::BiasIh, 1) };
        if difference != 0.0 {
            self.part_mut(part)[block * hidden..(block + 1) * hidden].iter_mut().for_each(|b| *b += difference);
        }
    }

    /// Makes `bias_ih` the sum of both, and `bias_hh` 0.
    pub(super) fn add_biases(&mut self) {
        if let Some([ih, hh]) = &mut self.bias {
            ih.iter_mut().zip(hh).for_each(|(ih, hh)| *ih = sum(*ih, std::mem::take(hh)));
        }
    }
}

/// Values of a part.
fn len(part: Part, sizes: &Sizes) -> usize {
    part.shape(sizes).into_iter().fold(1, usize::saturating_mul)
}

/// The name of the parameter that holds a part of one layer and direction.
pub(super) fn parameter(lstm: &Lstm, (layer, direction): (usize, Direction), part: Part) -> String {
    path(&lstm.name, &name_in_stack(part.kind(), layer, direction))
}

/// Not `a + b` where b is zero: -0 stays -0.
pub(super) fn sum(a: f64, b: f64) -> f64 {
    if b == 0.0 { a } else { a + b }
}

pub(super) fn check_finite(name: &str, values: &[f64]) -> Result<()> {
    match values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some((index, value)) => Err(message::tensor(name, format!("element {index} is {value}"))),
    }
}
