// difference[e] = x[e] - y[e]
//
// Grid: one thread an element, workgroups folded into x and y.

@group(0) @binding(0) var<storage, read> x: array<f32>;                // [len]
@group(0) @binding(1) var<storage, read> y: array<f32>;                // [len]
@group(0) @binding(2) var<storage, read_write> difference: array<f32>; // [len]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.len) {
    difference[params.difference_at + e] = x[params.x_at + e] - y[params.y_at + e];
  }
}
