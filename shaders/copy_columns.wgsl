// target[r, d] (+)= source[r, s],  r in 0..rows, width columns; offsets hold the first row and column
//
// Row r is step r / batch of batch row r % batch; either side may have the batch first, and steps at and past a
// row's length count as zero.
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
  batch: u32,
  source_batch_first: u32,
  target_batch_first: u32,
  has_lengths: u32,
}

@group(0) @binding(0) var<storage, read> source: array<f32>;        // [rows, source_stride]
@group(0) @binding(1) var<storage, read_write> target_: array<f32>; // [rows, target_stride]
@group(0) @binding(2) var<storage, read> lengths: array<u32>;       // [batch]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.rows * params.width) {
    let row = e / params.width;
    let column = e % params.width;
    let t = row / params.batch;
    let b = row % params.batch;
    let other = b * (params.rows / params.batch) + t;
    let at = params.source_offset + select(row, other, params.source_batch_first > 0u) * params.source_stride + column;
    let to = params.target_offset + select(row, other, params.target_batch_first > 0u) * params.target_stride + column;
    var value = source[at];
    if (params.has_lengths > 0u) {
      if (t >= lengths[b]) {
        value = 0.0;
      }
    }
    if (params.accumulate > 0u) {
      value += target_[to];
    }
    target_[to] = value;
  }
}
