// gradients[e] *= min(1, max_norm / (norm + 1e-6)): PyTorch's clip_grad_norm_
//
// A norm that is not finite is found by its bits and handed on as NaN: the loss of the next step shows it.
// Grid: one thread an element, workgroups folded into x and y.

@group(0) @binding(0) var<storage, read> norm: array<f32>;            // [1]
@group(0) @binding(1) var<storage, read_write> gradients: array<f32>; // [len]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.len) {
    let bits = bitcast<u32>(norm[params.norm_at]);
    let factor = min(1.0, params.max_norm / (norm[params.norm_at] + 1e-6)); // O2
    if ((bits & 0x7fffffffu) >= 0x7f800000u) {
      gradients[params.gradients_at + e] = bitcast<f32>(bits | 0x7fc00000u);
    } else {
      gradients[params.gradients_at + e] *= factor;
    }
  }
}
