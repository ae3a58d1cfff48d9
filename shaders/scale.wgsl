// y[e] (+)= alpha / divisor factor[0] x[e]
//
// Grid: one thread an element, workgroups folded into x and y.

@group(0) @binding(0) var<storage, read> x: array<f32>;       // [len]
@group(0) @binding(1) var<storage, read> factor: array<f32>;  // [1]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [len]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.len) {
    var value = params.alpha / f32(params.divisor) * factor[params.factor_at] * x[params.x_at + e];
    if (params.adds > 0u) {
      value += y[params.y_at + e];
    }
    y[params.y_at + e] = value;
  }
}
