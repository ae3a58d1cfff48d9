// step[0] += 1;  where that makes 2^20: step[0] = 0, step[1] += 1
//
// Grid: one thread.

struct Params {
  carry: u32,
}

@group(0) @binding(0) var<storage, read_write> step: array<f32>; // [2]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(1)
fn main() {
  let low = step[0] + 1.0;
  if (low >= f32(params.carry)) {
    step[0] = low - f32(params.carry);
    step[1] += 1.0;
  } else {
    step[0] = low;
  }
}
