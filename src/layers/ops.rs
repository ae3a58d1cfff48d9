//! Sums, slices and concatenations of tensors, with their backward: the glue of free compositions.

use crate::error::{Error, Result, ensure, same_shape};
use crate::kernels::copy_columns::{self, BatchRows};
use crate::kernels::matmul::{self, Matrix};
use crate::kernels::{highway, highway_backward, multiply};
use crate::layers::dense::{contribute_biases, contribute_products};
use crate::recorder::{Recorder, Target};
use crate::tensor::Tensor;

/// `y = a + b`, elementwise; the shapes must be equal. A residual connection is this round a layer.
///
/// Errors: other shapes, a tensor of another plan or of no floats, a name that is taken.
///
/// ```
/// # use everloop::{Device, Parameters, Recorder, Store, Workspace, layers};
/// # fn main() -> everloop::Result<()> {
/// # let parameters = Parameters::new();
/// # let mut rec = Recorder::new(&parameters);
/// let (a, b) = (rec.input("a", &[2])?, rec.input("b", &[2])?);
/// let y = layers::add(&mut rec, "y", &a, &b)?;
/// let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
/// workspace.write(&a, &[1.0f32, 2.0])?;
/// workspace.write(&b, &[10.0f32, 20.0])?;
/// workspace.run()?;
/// assert_eq!(workspace.read::<f32>(&y)?, [11.0, 22.0]);
/// # Ok(()) }
/// ```
pub fn add(rec: &mut Recorder<'_>, name: &str, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    same_shape("recording a sum", a.shape(), b.shape())?;
    rec.attempt(|rec| {
        let y = rec.activation(name, a.shape())?;
        copy_columns::record(rec, a, &Target::replace(&y))?;
        copy_columns::record(rec, b, &Target::add(&y))?;
        let (a, b, of) = (a.clone(), b.clone(), y.clone());
        rec.on_backward(move |rec| {
            let Some(dy) = rec.gradient(&of) else { return Ok(()) };
            rec.add_gradient(&dy, &a)?;
            rec.add_gradient(&dy, &b)
        });
        Ok(y)
    })
}

/// `y = [a | b | ..]` along the last axis; all other axes must be equal. One tensor alone is itself.
///
/// Errors: none, other leading axes, a tensor of another plan or of no floats, a name that is taken.
///
/// ```
/// # use everloop::{Device, Parameters, Recorder, Store, Workspace, layers};
/// # fn main() -> everloop::Result<()> {
/// # let parameters = Parameters::new();
/// # let mut rec = Recorder::new(&parameters);
/// let (a, b) = (rec.input("a", &[2, 1])?, rec.input("b", &[2, 2])?);
/// let y = layers::concatenate(&mut rec, "y", &[&a, &b])?;
/// let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
/// workspace.write(&a, &[1.0f32, 4.0])?;
/// workspace.write(&b, &[2.0f32, 3.0, 5.0, 6.0])?;
/// workspace.run()?;
/// assert_eq!(workspace.read::<f32>(&y)?, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
/// # Ok(()) }
/// ```
pub fn concatenate(rec: &mut Recorder<'_>, name: &str, parts: &[&Tensor]) -> Result<Tensor> {
    let Some(first) = parts.first() else {
        return Err(Error::config("recording a concatenation", "at least one tensor", "none"));
    };
    let lead = &first.shape()[..first.shape().len().saturating_sub(1)];
    if let Some(other) = parts.iter().find(|p| p.shape().split_last().map(|(_, l)| l) != Some(lead)) {
        return Err(Error::shape("recording a concatenation", format!("{lead:?} + [any]"), other.shape()));
    }
    rec.attempt(|rec| concatenate_rows(rec, name, parts, lead, None))
}

/// `[a | b | ..]` with `lead` as its other axes: over rows in another order or with lengths where `rows` says so.
/// One part without that is itself.
pub(super) fn concatenate_rows(
    rec: &mut Recorder<'_>,
    name: &str,
    parts: &[&Tensor],
    lead: &[usize],
    rows: Option<&BatchRows>,
) -> Result<Tensor> {
    if let ([part], None) = (parts, rows) {
        return Ok((*part).clone());
    }
    let columns = parts.iter().map(|p| p.columns()).sum();
    let y = rec.activation(name, &[lead, &[columns]].concat())?;
    let mut places = Vec::new();
    let mut at = 0;
    for part in parts {
        copy_columns::record_columns(rec, (part, 0), (&Target::replace(&y), at), part.columns(), rows)?;
        places.push(((*part).clone(), at));
        at += part.columns();
    }
    let (of, back) = (y.clone(), rows.map(BatchRows::reversed));
    rec.on_backward(move |rec| {
        let Some(dy) = rec.gradient(&of) else { return Ok(()) };
        for (part, at) in &places {
            if let Some(dpart) = rec.contribute(part)? {
                copy_columns::record_columns(rec, (&dy, *at), (&dpart, 0), part.columns(), back.as_ref())?;
            }
        }
        Ok(())
    });
    Ok(y)
}

/// `y = x o factor`, elementwise; the factor is repeated over leading axes that only x has, and gets no gradient.
///
/// Errors: a factor of other than the last axes of x, a tensor of another plan or of no floats, a name that is taken.
///
/// ```
/// # use everloop::{Device, Parameters, Recorder, Store, Workspace, layers};
/// # fn main() -> everloop::Result<()> {
/// # let parameters = Parameters::new();
/// # let mut rec = Recorder::new(&parameters);
/// let (x, mask) = (rec.input("x", &[2, 2])?, rec.input("mask", &[2])?);
/// let y = layers::multiply(&mut rec, "y", &x, &mask)?;
/// let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
/// workspace.write(&x, &[1.0f32, 2.0, 3.0, 4.0])?;
/// workspace.write(&mask, &[0.0f32, 2.0])?;
/// workspace.run()?;
/// assert_eq!(workspace.read::<f32>(&y)?, [0.0, 4.0, 0.0, 8.0]);
/// # Ok(()) }
/// ```
pub fn multiply(rec: &mut Recorder<'_>, name: &str, x: &Tensor, factor: &Tensor) -> Result<Tensor> {
    let wanted = format!("the last axes of {:?}", x.shape());
    ensure!(x.shape().ends_with(factor.shape()), Error::shape("recording a product", wanted, factor.shape()));
    rec.attempt(|rec| {
        let y = rec.activation(name, x.shape())?;
        multiply::record(rec, x, factor, &Target::replace(&y))?;
        let (x, factor, of) = (x.clone(), factor.clone(), y.clone());
        rec.on_backward(move |rec| {
            let Some(dy) = rec.gradient(&of) else { return Ok(()) };
            let Some(dx) = rec.contribute(&x)? else { return Ok(()) };
            multiply::record(rec, &dy, &factor, &dx)
        });
        Ok(y)
    })
}

/// `y = s o x + (1 - s) o h` with `s = sigmoid(x W^T + b)` and the parameters of these names: a highway around the
/// layer that made h of x.
pub(super) fn highway(
    rec: &mut Recorder<'_>,
    name: &str,
    names: &[String; 2],
    x: &Tensor,
    h: &Tensor,
) -> Result<Tensor> {
    let (weight, bias) = (rec.parameter(&names[0])?, rec.parameter(&names[1])?);
    let carry = rec.activation(&format!("{name}.carry"), h.shape())?;
    let y = rec.activation(name, h.shape())?;
    matmul::record(rec, Matrix::plain(x), Matrix::transposed(&weight), &[&bias], &Target::replace(&carry))?;
    highway::record(rec, &carry, x, h, &y)?;
    let (name, x, h, of) = (name.to_string(), x.clone(), h.clone(), y.clone());
    rec.on_backward(move |rec| {
        let Some(dy) = rec.gradient(&of) else { return Ok(()) };
        let dcarry = rec.activation(&format!("{name}.dcarry"), carry.shape())?;
        // the kernel writes all three; where nobody wants one, it goes nowhere
        let (dx, dh) = (rec.contribute(&x)?, rec.contribute(&h)?);
        let unused = |rec: &mut Recorder<'_>, of: &str| {
            rec.activation(&format!("{name}.{of}_unused"), carry.shape()).map(|made| Target::replace(&made))
        };
        let dx = dx.map_or_else(|| unused(rec, "dx"), Ok)?;
        let dh = dh.map_or_else(|| unused(rec, "dh"), Ok)?;
        highway_backward::record(rec, [&carry, &x, &h, &dy, &dcarry], [&dx, &dh])?;
        contribute_products(rec, &dcarry, &x, &weight)?;
        contribute_biases(rec, &format!("{name}.sum_dcarry"), &dcarry, &[&bias])
    });
    Ok(y)
}

/// The shape of x with another number of columns.
pub(super) fn with_columns(x: &Tensor, columns: usize) -> Vec<usize> {
    let lead = x.shape().split_last().map_or(&[][..], |(_, lead)| lead);
    [lead, &[columns]].concat()
}

/// Columns `start..start + width` of the last axis, copied.
///
/// Errors: no columns, or more than there are; a tensor of another plan or of no floats; a name that is taken.
///
/// ```
/// # use everloop::{Device, Parameters, Recorder, Store, Workspace, layers};
/// # fn main() -> everloop::Result<()> {
/// # let parameters = Parameters::new();
/// # let mut rec = Recorder::new(&parameters);
/// let x = rec.input("x", &[2, 3])?;
/// let y = layers::columns(&mut rec, "y", &x, 1, 2)?;
/// let mut workspace = Workspace::new(&Store::new(&Device::cpu(), &parameters)?, rec.finish())?;
/// workspace.write(&x, &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0])?;
/// workspace.run()?;
/// assert_eq!(workspace.read::<f32>(&y)?, [2.0, 3.0, 5.0, 6.0]);
/// # Ok(()) }
/// ```
pub fn columns(rec: &mut Recorder<'_>, name: &str, x: &Tensor, start: usize, width: usize) -> Result<Tensor> {
    if width == 0 || start.checked_add(width).is_none_or(|end| end > x.columns()) {
        let wanted = format!("a range within {} columns", x.columns());
        return Err(Error::config("recording a slice of columns", wanted, format!("{width} columns from {start}")));
    }
    rec.attempt(|rec| {
        let y = rec.activation(name, &with_columns(x, width))?;
        copy_columns::record_columns(rec, (x, start), (&Target::replace(&y), 0), width, None)?;
        let (x, of) = (x.clone(), y.clone());
        rec.on_backward(move |rec| {
            let Some(dy) = rec.gradient(&of) else { return Ok(()) };
            let Some(dx) = rec.contribute(&x)? else { return Ok(()) };
            if !dx.adds {
                rec.fill(&dx.tensor, 0.0)?;
            }
            copy_columns::record_columns(rec, (&dy, 0), (&Target::add(&dx.tensor), start), width, None)
        });
        Ok(y)
    })
}
