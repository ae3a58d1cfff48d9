// One step of one direction of a recurrence, and where its rows begin, counted over all directions and batch rows.
struct Step {
  d: u32,      // direction: entry of the leading axis
  tile: u32,   // of this direction's tiles
  t: u32,      // time
  now: u32,    // row of time t in [D, T, B]
  before: u32, // row of the state before it in [D, T+1, B]
  after: u32,  // row of the state after it
}

// The n-th step worked on; n = T has only a state before it. Where the grid is folded, the last tiles may lie behind
// the last direction: their rows lie behind the batch.
fn step_of(tile: u32, tiles: u32, n: u32) -> Step {
  let d = min(tile / tiles, params.directions - 1u);
  let reverse = ((params.reverse + d) & 1u) == 1u;
  let t = select(n, params.steps - 1u - n, reverse);
  let states = d * (params.steps + 1u);
  let before = (states + select(n, params.steps - n, reverse)) * params.batch;
  let after = (states + select(n + 1u, params.steps - 1u - n, reverse)) * params.batch;
  return Step(d, tile - d * tiles, t, (d * params.steps + t) * params.batch, before, after);
}

// row of the mask [D, T or 1, B, H]
fn mask_row(s: Step) -> u32 {
  return (s.d * params.mask_steps + s.t % params.mask_steps) * params.batch;
}
