// step[0] += 1
//
// Grid: one thread.

@group(0) @binding(0) var<storage, read_write> step: array<u32>; // [1]

@compute @workgroup_size(1)
fn main() {
  step[params.step_at] += 1u;
}
