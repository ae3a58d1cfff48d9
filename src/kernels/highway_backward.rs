//! `highway_backward`: the gradients of [`highway`](super::highway).
//!
//! ```text
//! dcarry[e] = dy[e] (x[e] - h[e]) carry[e] (1 - carry[e])      of the gate before its sigmoid; e in 0..len
//! dx[e] (+)= dy[e] carry[e]
//! dh[e] (+)= dy[e] (1 - carry[e])
//! ```

use super::prelude::*;
use crate::kernels::{copy_columns, highway};

parameters! {
    /// Parameters of `highway_backward`.
    HighwayBackward {
        /// Elements.
        len: u32,
        /// 1 if dx is added to, not replaced.
        adds_dx: u32,
        /// 1 if dh is added to, not replaced.
        adds_dh: u32,
    }
}
operands! { HighwayBackward { carry: read, x: read, h: read, dy: read, dcarry: write, dx: write, dh: write } }

/// Records the way back over the activated `carry`; writes `dcarry`, and writes or adds to `dx` and `dh`.
pub fn record(rec: &mut Recorder<'_>, [carry, x, h, dy, dcarry]: [&Tensor; 5], [dx, dh]: [&Target; 2]) -> Result<()> {
    same_len("recording the backward of a highway", x, &[carry, h, dy, dcarry, &dx.tensor, &dh.tensor])?;
    let kernel = HighwayBackward { len: x.len() as u32, adds_dx: dx.adds as u32, adds_dh: dh.adds as u32 };
    rec.push(kernel, Tensors { carry, x, h, dy, dcarry, dx: &dx.tensor, dh: &dh.tensor })
}

impl Kernel for HighwayBackward {
    word!("highway_backward", |k| fold_elements(k.len as u64, 256));
    needs!(carry: [len], x: [len], h: [len], dy: [len], dcarry: [len], dx: [len], dh: [len]);
    flops!(8.0, len);

    fn twin<T: Float>(&self, s: Slices<'_, T>) {
        for e in 0..self.len as usize {
            s.dcarry[e] = s.dy[e] * (s.x[e] - s.h[e]) * s.carry[e] * (T::ONE - s.carry[e]);
            let (to_x, to_h) = (s.dy[e] * s.carry[e], s.dy[e] * (T::ONE - s.carry[e]));
            s.dx[e] = if self.adds_dx != 0 { s.dx[e] + to_x } else { to_x };
            s.dh[e] = if self.adds_dh != 0 { s.dh[e] + to_h } else { to_h };
        }
    }
}

/// Behind a `highway`: views, added to and replaced; outputs that hold NaN before.
pub fn cases() -> Vec<Case> {
    let case = |(len, bound): (usize, f64), adds_dx: bool, adds_dh: bool| {
        Case::new(format!("highway_backward {len}, adds {adds_dx} {adds_dh}"), bound, move |rec| {
            let (x, h) = (rec.input("x", &[2, len])?.row(1)?, rec.input("h", &[2, len])?.row(0)?);
            let dy = rec.input("dy", &[2, len])?.row(1)?;
            let carry = rec.activation("carry", &[3, len])?.row(1)?;
            let (y, dcarry) = (rec.activation("y", &[len])?, rec.activation("dcarry", &[2, len])?.row(1)?);
            let dx = Target { tensor: rec.activation("dx", &[2, len])?.row(0)?, adds: adds_dx };
            let dh = Target { tensor: rec.activation("dh", &[2, len])?.row(1)?, adds: adds_dh };
            highway::record(rec, &carry, &x, &h, &y)?;
            record(rec, [&carry, &x, &h, &dy, &dcarry], [&dx, &dh])
        })
    };
    let poisoned = Case::new("highway_backward 33, outputs replaced", 1.0, |rec| {
        let (gate, x) = (rec.input("gate", &[33])?, rec.input("x", &[33])?);
        let mut slot = |name| rec.activation(name, &[33]);
        let (carry, y, dcarry, dx, dh) = (slot("carry")?, slot("y")?, slot("out")?, slot("dx")?, slot("dh")?);
        copy_columns::record(rec, &gate, &Target::replace(&carry))?;
        highway::record(rec, &carry, &x, &gate, &y)?;
        record(rec, [&carry, &x, &gate, &x, &dcarry], [&Target::replace(&dx), &Target::replace(&dh)])
    });
    let adds = [(false, false), (true, false), (false, true), (true, true)];
    let sizes = [(1, 1.0), (3, 1.0), (257, 8.0), (561, 3.0), (70_001, 1.0)];
    let all = sizes.into_iter().flat_map(|size| adds.map(|(dx, dh)| case(size, dx, dh)));
    all.chain([poisoned]).collect()
}
