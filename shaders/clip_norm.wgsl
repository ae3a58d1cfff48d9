// gradients[e] *= min(1, max_norm / (norm + 1e-6)): PyTorch's clip_grad_norm_
//
// A norm that is not finite is found by its bits and handed on as NaN: the loss of the next step shows it.
// Grid: one thread an element, workgroups folded into x and y.

struct Params {
  len: u32,
  max_norm: f32,
  max_norm_rest: f32,
}

@group(0) @binding(0) var<storage, read> norm: array<f32>;            // [1]
@group(0) @binding(1) var<storage, read_write> gradients: array<f32>; // [len]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.len) {
    let bits = bitcast<u32>(norm[0]);
    let factor = min(1.0, params.max_norm / (norm[0] + 1e-6));
    if ((bits & 0x7fffffffu) >= 0x7f800000u) {
      gradients[e] = bitcast<f32>(bits | 0x7fc00000u);
    } else {
      gradients[e] *= factor;
    }
  }
}
