// target[r, d] (+)= source[r, s],  r in 0..rows, width columns; offsets hold the first row and column
//
// Grid: one thread an element, workgroups folded into x and y.

struct Params {
  rows: u32,
  width: u32,
  source_offset: u32,
  source_stride: u32,
  target_offset: u32,
  target_stride: u32,
  accumulate: u32,
}

@group(0) @binding(0) var<storage, read> source: array<f32>;        // [rows, source_stride]
@group(0) @binding(1) var<storage, read_write> target_: array<f32>; // [rows, target_stride]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.rows * params.width) {
    let row = e / params.width;
    let column = e % params.width;
    let to = params.target_offset + row * params.target_stride + column;
    var value = source[params.source_offset + row * params.source_stride + column];
    if (params.accumulate > 0u) {
      value += target_[to];
    }
    target_[to] = value;
  }
}
