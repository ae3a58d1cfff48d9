// parameters[e] -= learning_rate gradients[e]
//
// Grid: one thread an element, workgroups folded into x and y.

@group(0) @binding(0) var<storage, read> learning_rate: array<f32>;    // [1]
@group(0) @binding(1) var<storage, read> gradients: array<f32>;        // [len]
@group(0) @binding(2) var<storage, read_write> parameters: array<f32>; // [len]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.len) {
    let rate = learning_rate[params.learning_rate_at];
    parameters[params.parameters_at + e] -= rate * gradients[params.gradients_at + e]; // O3
  }
}
