// dx[r, j] (+)= d[r, j], or with to_base  dbase[j] (+)= - sum_r d[r, j]
// d[r, j] = scale dy[r, j],  where squashed times 1 - tanh^2 = 1 - (y[r, j] / scale)^2
//
// Grid: one thread an element of the result, workgroups folded into x and y.

override squashed: bool;

@group(0) @binding(0) var<storage, read> y: array<f32>;            // [rows, columns]
@group(0) @binding(1) var<storage, read> dy: array<f32>;           // [rows, columns]
@group(0) @binding(2) var<storage, read_write> result: array<f32>; // as x, or as base

fn d_at(e: u32) -> f32 {
  let tanh_d = y[params.y_at + e] / params.scale;
  return params.scale * dy[params.dy_at + e] * select(1.0, 1.0 - tanh_d * tanh_d, squashed);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 64u + lane;
  if (e < select(params.rows, 1u, params.to_base > 0u) * params.columns) {
    var sum = 0.0;
    if (params.to_base > 0u) {
      for (var row = 0u; row < params.rows; row++) {
        sum -= d_at(row * params.columns + e);
      }
    } else {
      sum = d_at(e);
    }
    if (params.adds > 0u) {
      sum += result[params.result_at + e];
    }
    result[params.result_at + e] = sum;
  }
}
