// y[e] (+)= x[e] factor[e % factor_len]
//
// Grid: one thread an element, workgroups folded into x and y.

@group(0) @binding(0) var<storage, read> x: array<f32>;       // [len]
@group(0) @binding(1) var<storage, read> factor: array<f32>;  // [factor_len]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [len]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.len) {
    var value = x[params.x_at + e] * factor[params.factor_at + e % params.factor_len];
    if (params.adds > 0u) {
      value += y[params.y_at + e];
    }
    y[params.y_at + e] = value;
  }
}
