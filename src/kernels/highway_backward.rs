//! `highway_backward`: the gradients of [`highway`](super::highway).
//!
//! ```text
//! dcarry[e] = dy[e] (x[e] - h[e]) carry[e] (1 - carry[e])      of the gate before its sigmoid; e in 0..len
//! dx[e] (+)= dy[e] carry[e]
//! dh[e] (+)= dy[e] (1 - carry[e])
//! ```

use crate::error::{Error, Result};
use crate::float::Float;
use crate::kernel::{Binding, Kernel, Operand, fold_elements, one_shader, parameters, reads, sized, writes};
use crate::plan::Tensor;
use crate::recorder::Recorder;

parameters! {
    /// Parameters of `highway_backward`.
    HighwayBackward {
        /// Elements.
        len: u32,
        /// First element in carry.
        carry_offset: u32,
        /// First element in x.
        x_offset: u32,
        /// First element in h.
        h_offset: u32,
        /// First element in dy.
        dy_offset: u32,
        /// First element in dcarry.
        dcarry_offset: u32,
        /// First element in dx.
        dx_offset: u32,
        /// First element in dh.
        dh_offset: u32,
        /// 1 to add to dx.
        accumulate_dx: u32,
        /// 1 to add to dh.
        accumulate_dh: u32,
    }
}

/// Records the way back over the activated `carry`; writes `dcarry`, and writes or adds to `dx` and `dh`.
#[allow(clippy::too_many_arguments)]
pub fn record(
    rec: &mut Recorder<'_>,
    carry: &Tensor,
    x: &Tensor,
    h: &Tensor,
    dy: &Tensor,
    dcarry: &Tensor,
    (dx, accumulate_dx): (&Tensor, bool),
    (dh, accumulate_dh): (&Tensor, bool),
) -> Result<()> {
    let operands = [carry, x, h, dy, dcarry, dx, dh];
    if let Some(other) = operands.iter().find(|t| t.len() != x.len()) {
        return Err(Error::shape("recording the backward of a highway", format!("{:?}", x.shape()), other.shape()));
    }
    let kernel = HighwayBackward {
        len: x.len() as u32,
        carry_offset: carry.offset as u32,
        x_offset: x.offset as u32,
        h_offset: h.offset as u32,
        dy_offset: dy.offset as u32,
        dcarry_offset: dcarry.offset as u32,
        dx_offset: dx.offset as u32,
        dh_offset: dh.offset as u32,
        accumulate_dx: accumulate_dx as u32,
        accumulate_dh: accumulate_dh as u32,
    };
    rec.push(kernel, &operands)
}

impl Kernel for HighwayBackward {
    const NAME: &'static str = "highway_backward";
    const BINDINGS: &'static [Binding] =
        &[reads("carry"), reads("x"), reads("h"), reads("dy"), writes("dcarry"), writes("dx"), writes("dh")];
    const FIELDS: &'static [&'static str] = Self::FIELD_NAMES;
    const VIEWS: bool = true;
    one_shader!("highway_backward", |k| fold_elements(k.len as u64, 256));

    fn needs(&self) -> Option<Vec<u128>> {
        let len = sized(&[self.len])?;
        let read = [self.carry_offset, self.x_offset, self.h_offset, self.dy_offset];
        let written = [self.dcarry_offset, self.dx_offset, self.dh_offset];
        Some(read.iter().chain(&written).map(|offset| *offset as u128 + len).collect())
    }

    fn flops(&self) -> f64 {
        8.0 * self.len as f64
    }

    fn twin<T: Float>(&self, operands: &mut [Operand<'_, T>]) {
        let [
            Operand::Read(carry),
            Operand::Read(x),
            Operand::Read(h),
            Operand::Read(dy),
            Operand::Write(dcarry),
            Operand::Write(dx),
            Operand::Write(dh),
        ] = operands
        else {
            unreachable!("bindings of highway_backward")
        };
        let (carry, dy) = (&carry[self.carry_offset as usize..], &dy[self.dy_offset as usize..]);
        let (x, h) = (&x[self.x_offset as usize..], &h[self.h_offset as usize..]);
        let dcarry = &mut dcarry[self.dcarry_offset as usize..];
        let (dx, dh) = (&mut dx[self.dx_offset as usize..], &mut dh[self.dh_offset as usize..]);
        for e in 0..self.len as usize {
            dcarry[e] = dy[e] * (x[e] - h[e]) * carry[e] * (T::ONE - carry[e]);
            let (to_x, to_h) = (dy[e] * carry[e], dy[e] * (T::ONE - carry[e]));
            dx[e] = if self.accumulate_dx != 0 { dx[e] + to_x } else { to_x };
            dh[e] = if self.accumulate_dh != 0 { dh[e] + to_h } else { to_h };
        }
    }
}
