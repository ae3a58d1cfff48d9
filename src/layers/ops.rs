//! Sums, slices and concatenations of tensors, with their backward: the glue of free compositions.

use crate::error::{Error, Result};
use crate::kernels::copy_columns::{self, Rows};
use crate::kernels::{highway, highway_backward, matmul, multiply};
use crate::layers::dense::{contribute_biases, contribute_products};
use crate::plan::Tensor;
use crate::recorder::Recorder;

/// `y = a + b`, elementwise; the shapes must be equal. A residual connection is this round a layer.
pub fn add(rec: &mut Recorder<'_>, name: &str, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape() != b.shape() {
        return Err(Error::shape("recording a sum", format!("{:?}", a.shape()), b.shape()));
    }
    let y = rec.activation(name, a.shape())?;
    rec.note_copy(&y, &[a, b]);
    copy_columns::record(rec, (a, 0), (&y, 0), a.columns(), false)?;
    copy_columns::record(rec, (b, 0), (&y, 0), b.columns(), true)?;
    let (a, b, of) = (a.clone(), b.clone(), y.clone());
    rec.on_backward(move |rec| match rec.gradient(&of) {
        Some(dy) => {
            copy_columns::contribute(rec, &dy, &a)?;
            copy_columns::contribute(rec, &dy, &b)
        }
        None => Ok(()),
    });
    Ok(y)
}

/// `y = [a | b | ..]` along the last axis; all other axes must be equal.
pub fn concatenate(rec: &mut Recorder<'_>, name: &str, parts: &[&Tensor]) -> Result<Tensor> {
    let Some(first) = parts.first() else {
        return Err(Error::config("recording a concatenation", "at least one tensor", "none"));
    };
    let lead = &first.shape()[..first.shape().len().saturating_sub(1)];
    if let Some(other) = parts.iter().find(|p| p.shape().split_last().map(|(_, l)| l) != Some(lead)) {
        return Err(Error::shape("recording a concatenation", format!("{lead:?} + [any]"), other.shape()));
    }
    concatenate_rows(rec, name, parts, lead, None)
}

/// `[a | b | ..]` with `lead` as its other axes: over rows in another order or with lengths where `rows` says so.
/// One part without that is itself.
pub(super) fn concatenate_rows(
    rec: &mut Recorder<'_>,
    name: &str,
    parts: &[&Tensor],
    lead: &[usize],
    rows: Option<&Rows>,
) -> Result<Tensor> {
    if let ([part], None) = (parts, rows) {
        return Ok((*part).clone());
    }
    let mut shape = lead.to_vec();
    shape.push(parts.iter().map(|p| p.columns()).sum());
    let y = rec.activation(name, &shape)?;
    rec.note_copy(&y, parts);
    let mut places = Vec::new();
    let mut at = 0;
    for part in parts {
        copy_columns::record_rows(rec, (part, 0), (&y, at), part.columns(), false, rows)?;
        places.push(((*part).clone(), at));
        at += part.columns();
    }
    let (of, back) = (y.clone(), rows.map(Rows::reversed));
    rec.on_backward(move |rec| {
        let Some(dy) = rec.gradient(&of) else { return Ok(()) };
        for (part, at) in &places {
            if let Some((dpart, accumulate)) = rec.contribute(part)? {
                let width = part.columns();
                copy_columns::record_rows(rec, (&dy, *at), (&dpart, 0), width, accumulate, back.as_ref())?;
            }
        }
        Ok(())
    });
    Ok(y)
}

/// `y = x o factor`, elementwise; the factor is repeated over leading axes that only x has, and gets no gradient.
pub fn multiply(rec: &mut Recorder<'_>, name: &str, x: &Tensor, factor: &Tensor) -> Result<Tensor> {
    if !x.shape().ends_with(factor.shape()) {
        return Err(Error::shape("recording a product", format!("the last axes of {:?}", x.shape()), factor.shape()));
    }
    let y = rec.activation(name, x.shape())?;
    rec.note_copy(&y, &[x]);
    multiply::record(rec, x, factor, (&y, false))?;
    let (x, factor, of) = (x.clone(), factor.clone(), y.clone());
    rec.on_backward(move |rec| {
        let Some(dy) = rec.gradient(&of) else { return Ok(()) };
        let Some((dx, accumulate)) = rec.contribute(&x)? else { return Ok(()) };
        multiply::record(rec, &dy, &factor, (&dx, accumulate))
    });
    Ok(y)
}

/// `y = s o x + (1 - s) o h` with `s = sigmoid(x W^T + b)` and the parameters of these names: a highway around the
/// layer that made h of x.
pub(super) fn highway(
    rec: &mut Recorder<'_>,
    name: &str,
    (weight, bias): (&str, &str),
    x: &Tensor,
    h: &Tensor,
) -> Result<Tensor> {
    let (weight, bias) = (rec.parameter(weight)?, rec.parameter(bias)?);
    let carry = rec.activation(&format!("{name}.carry"), h.shape())?;
    let y = rec.activation(name, h.shape())?;
    matmul::record(rec, (x, false), (&weight, true), &[&bias], (&carry, false))?;
    highway::record(rec, &carry, x, h, &y)?;
    let (name, x, h, of) = (name.to_string(), x.clone(), h.clone(), y.clone());
    rec.on_backward(move |rec| {
        let Some(dy) = rec.gradient(&of) else { return Ok(()) };
        // the layer below made x, so its gradient is always wanted; that of h is the layer's own
        let (dcarry, dx) = (rec.activation(&format!("{name}.dcarry"), carry.shape())?, rec.contribute(&x)?);
        let (Some((dx, dx_adds)), Some((dh, dh_adds))) = (dx, rec.contribute(&h)?) else {
            return Err(Error::config(
                "recording a highway's backward",
                "gradients of both of its ways",
                "one of them",
            ));
        };
        highway_backward::record(rec, &carry, &x, &h, &dy, &dcarry, (&dx, dx_adds), (&dh, dh_adds))?;
        contribute_products(rec, &dcarry, &x, &weight)?;
        contribute_biases(rec, &format!("{name}.sum_dcarry"), &dcarry, &[&bias])
    });
    Ok(y)
}

/// Columns `start..start + width` of the last axis, copied.
pub fn columns(rec: &mut Recorder<'_>, name: &str, x: &Tensor, start: usize, width: usize) -> Result<Tensor> {
    if width == 0 || start.checked_add(width).is_none_or(|end| end > x.columns()) {
        let wanted = format!("a range within {} columns", x.columns());
        return Err(Error::config("recording a slice of columns", wanted, format!("{width} columns from {start}")));
    }
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(width);
    let y = rec.activation(name, &shape)?;
    rec.note_copy(&y, &[x]);
    copy_columns::record(rec, (x, start), (&y, 0), width, false)?;
    let (x, of) = (x.clone(), y.clone());
    rec.on_backward(move |rec| {
        let Some(dy) = rec.gradient(&of) else { return Ok(()) };
        let Some((dx, accumulate)) = rec.contribute(&x)? else { return Ok(()) };
        if !accumulate {
            rec.fill(&dx, 0.0)?;
        }
        copy_columns::record(rec, (&dy, 0), (&dx, start), width, true)
    });
    Ok(y)
}
