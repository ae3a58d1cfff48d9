//! Slots of a recurrence for cases, and the sizes and options that both kernels are held to.

use super::*;
use crate::case::Case;
use crate::kernels::copy_columns;
use crate::kernels::lstm_backward::Gradients;
use crate::recorder::Target;

/// Slots over T, B, H, P with some options: what `lstm_forward` writes is to be written, or is an input of
/// `lstm_backward`.
pub fn recurrence(
    rec: &mut Recorder<'_>,
    [steps, batch, hidden, outputs]: [usize; 4],
    directions: Directions,
    options: u32,
    forward: bool,
) -> Result<Recurrence> {
    let has = |option: u32| options & option != 0;
    let count = directions.list().len();
    let state = |rec: &mut Recorder<'_>, name: &str, shape: &[usize]| match forward {
        true => rec.activation(name, shape),
        false => rec.input(name, shape),
    };
    // one weight behind the other, with a gap that must not be read
    let weight = |rec: &mut Recorder<'_>, name: &str, shape: &[usize]| -> Result<Vec<Tensor>> {
        let len = shape.iter().product::<usize>();
        let all = rec.input(name, &[count, len + 4])?;
        (0..count).map(|d| all.row(d)?.narrow(0, len)?.reshape(shape)).collect()
    };
    let weight_hh = weight(rec, "weight_hh", &[4 * hidden, outputs])?;
    let gates = match forward || !has(LENGTHS) {
        true => state(rec, "gates", &[count, steps, batch, GATES * hidden])?,
        false => gates_with_ends(rec, &[count, steps, batch, GATES * hidden])?,
    };
    let h = state(rec, "h", &[count, steps + 1, batch, outputs])?;
    let c = state(rec, "c", &[count, steps + 1, batch, hidden])?;
    let mut all = Recurrence::new(directions, &weight_hh, &gates, &h, &c);
    all.options = CellOptions {
        forget_bias: 0.5,
        coupled: has(COUPLED),
        cell_clip: has(CELL_CLIP).then_some(0.4),
        output_clip: has(OUTPUT_CLIP).then_some(0.3),
        epsilon: if has(NORM) { 1e-3 } else { 0.0 },
    };
    all.lengths = has(LENGTHS).then(|| rec.lengths("lengths", batch, steps)).transpose()?;
    all.peephole = has(PEEPHOLE).then(|| weight(rec, "peephole", &[3 * hidden])).transpose()?;
    let shape = if has(COUPLED) { vec![count, batch, hidden] } else { vec![count, steps, batch, hidden] };
    all.mask = has(MASK).then(|| rec.input("mask", &shape)).transpose()?;
    if has(PROJECTION) {
        let weight_hr = weight(rec, "weight_hr", &[outputs, hidden])?;
        all.projection = Some(Projection { weight_hr, m: state(rec, "m", &[count, steps, batch, hidden])? });
    }
    if has(NORM) {
        let weight = weight(rec, "layer_norm", &[2, NORMS * hidden])?;
        let normalized = state(rec, "normalized", &[count, steps, batch, NORMS * hidden + NORMS])?;
        all.norm = Some(Norm { weight, normalized });
    }
    Ok(all)
}

/// Gates as `lstm_forward` leaves them: of four rows the second has one step, the fourth none.
fn gates_with_ends(rec: &mut Recorder<'_>, shape: &[usize; 4]) -> Result<Tensor> {
    let [count, steps, batch, width] = *shape;
    let (drawn, gates) = (rec.input("drawn_gates", shape)?, rec.activation("gates", shape)?);
    copy_columns::record(rec, &drawn, &Target::replace(&gates))?;
    for (d, b) in (0..count).flat_map(|d| (0..batch).map(move |b| (d, b))) {
        for t in [steps, 1, steps, 0][b % 4]..steps {
            let row = gates.row(d)?.row(t)?.row(b)?.reshape(&[GATES, width / GATES])?;
            rec.fill(&row, 0.0)?;
            rec.fill(&row.row(1)?, 1.0)?;
        }
    }
    Ok(gates)
}

/// Slots for the gradients of a [`recurrence`].
pub fn gradients(rec: &mut Recorder<'_>, of: &Recurrence) -> Result<Gradients> {
    let shape = [&of.gates.shape()[..3], &[NORMS * of.c.columns()]].concat();
    Ok(Gradients {
        dgates: rec.activation("dgates", of.gates.shape())?,
        dh: rec.activation("dh", of.h.shape())?,
        dc: rec.activation("dc", of.c.shape())?,
        dnormalized: of.norm.as_ref().map(|_| rec.activation("dnormalized", &shape)).transpose()?,
    })
}

/// Every direction at plain sizes, some options at awkward ones, and every set of options at small ones.
pub(crate) fn all(
    kernel: &str,
    bound: f64,
    record: fn(&mut Recorder<'_>, [usize; 4], Directions, u32) -> Result<()>,
) -> Vec<Case> {
    const WAYS: [Directions; 3] =
        [Directions::One(Direction::Forward), Directions::One(Direction::Reverse), Directions::Both];
    let case = |[t, b, h, p]: [usize; 4], way: Directions, options: u32| {
        let name = format!("{kernel} T {t} B {b} H {h} P {p} {way:?} options {options:#04x}");
        Case::new(name, bound, move |rec| record(rec, [t, b, h, p], way, options))
    };
    let plain = [(1, 1, 1), (2, 1, 3), (4, 3, 17), (3, 8, 32), (3, 9, 33), (2, 7, 64)].into_iter();
    let plain = plain.chain([(2, 33, 65), (1, 2, 68), (3, 1, 128), (2, 17, 36), (40, 2, 4)]);
    let plain = plain.map(|(steps, batch, hidden)| ([steps, batch, hidden, hidden], 0));
    let some = [
        ([3, 5, 6, 6], LENGTHS),
        ([2, 9, 17, 17], PEEPHOLE | MASK),
        ([2, 3, 70, 70], COUPLED | CELL_CLIP | LENGTHS),
        ([3, 9, 33, 5], PROJECTION),
        ([2, 9, 36, 68], PROJECTION | OUTPUT_CLIP | LENGTHS),
        ([2, 3, 5, 70], PROJECTION | OUTPUT_CLIP | LENGTHS),
        ([3, 4, 1, 1], NORM),
        ([2, 9, 68, 68], LENGTHS | PEEPHOLE | MASK | CELL_CLIP),
        ([2, 3, 65, 65], NORM | LENGTHS | PEEPHOLE | CELL_CLIP),
        ([2, 9, 64, 33], NORM | PROJECTION | MASK | COUPLED),
        ([2, 3, 19, 7], LENGTHS | PEEPHOLE | MASK | CELL_CLIP | PROJECTION | OUTPUT_CLIP | NORM),
    ];
    let awkward = plain.chain(some).flat_map(|(sizes, options)| WAYS.map(|way| case(sizes, way, options)));
    let sets = (0..=u8::MAX as u32).filter(|set| set & OUTPUT_CLIP == 0 || set & PROJECTION != 0);
    let small = sets.flat_map(|set| {
        let outputs = if set & PROJECTION != 0 { [3, 4] } else { [5, 8] };
        let way = WAYS[set.count_ones() as usize % 3];
        [case([3, 2, 5, outputs[0]], way, set).thorough(), case([3, 2, 8, outputs[1]], way, set).thorough()]
    });
    awkward.chain(small).collect()
}
