//! Sums, slices and concatenations of tensors, with their backward: the glue of free compositions.

use crate::error::{Error, Result};
use crate::kernels::copy_columns;
use crate::plan::Tensor;
use crate::recorder::Recorder;

/// `y = a + b`, elementwise; the shapes must be equal. A residual connection is this round a layer.
pub fn add(rec: &mut Recorder<'_>, name: &str, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape() != b.shape() {
        return Err(Error::shape("recording a sum", format!("{:?}", a.shape()), b.shape()));
    }
    let y = rec.activation(name, a.shape())?;
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
    let mut shape = lead.to_vec();
    shape.push(parts.iter().map(|p| p.columns()).sum());
    let y = rec.activation(name, &shape)?;
    let mut places = Vec::new();
    let mut at = 0;
    for part in parts {
        copy_columns::record(rec, (part, 0), (&y, at), part.columns(), false)?;
        places.push(((*part).clone(), at));
        at += part.columns();
    }
    let of = y.clone();
    rec.on_backward(move |rec| {
        let Some(dy) = rec.gradient(&of) else { return Ok(()) };
        for (part, at) in &places {
            if let Some((dpart, accumulate)) = rec.contribute(part)? {
                copy_columns::record(rec, (&dy, *at), (&dpart, 0), part.columns(), accumulate)?;
            }
        }
        Ok(())
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
