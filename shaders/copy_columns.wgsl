// result[r, j] (+)= source[r, j],  r in 0..rows, j in 0..width
//
// Row r is step r / batch of batch row r % batch; either side may have the batch first, and steps at and past a
// row's length count as zero.
//
// Grid: one thread an element, workgroups folded into x and y.

@group(0) @binding(0) var<storage, read> source: array<f32>;        // [rows, source_stride]
@group(0) @binding(1) var<storage, read_write> result: array<f32>; // [rows, result_stride]
@group(0) @binding(2) var<storage, read> lengths: array<u32>;       // [batch]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.rows * params.width) {
    let row = e / params.width;
    let column = e % params.width;
    let t = row / params.batch;
    let b = row % params.batch;
    let other = b * (params.rows / params.batch) + t;
    let at = params.source_at + select(row, other, params.source_batch_first > 0u) * params.source_stride + column;
    let to = params.result_at + select(row, other, params.result_batch_first > 0u) * params.result_stride + column;
    var value = source[at];
    if (params.has_lengths > 0u) {
      if (t >= lengths[params.lengths_at + b]) {
        value = 0.0;
      }
    }
    if (params.adds > 0u) {
      value += result[to];
    }
    result[to] = value;
  }
}
