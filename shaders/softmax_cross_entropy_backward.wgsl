// dlogits[r, v] (+)= dloss / counted (p[r, v] - [v = target_r]);  0 in rows whose target is IGNORE
//
// Grid: one thread an element, workgroups folded into x and y.

@group(0) @binding(0) var<storage, read> probabilities: array<f32>; // [rows, V]
@group(0) @binding(1) var<storage, read> targets: array<u32>;       // [rows]
@group(0) @binding(2) var<storage, read> counted: array<f32>;       // [1]
@group(0) @binding(3) var<storage, read> dloss: array<f32>;         // [1]
@group(0) @binding(4) var<storage, read_write> dlogits: array<f32>; // [rows, V]

const IGNORE = 0xffffffffu;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.rows * params.columns) {
    let target_ = targets[params.targets_at + e / params.columns];
    var value = 0.0;
    if (target_ != IGNORE) {
      let p = probabilities[params.probabilities_at + e];
      let factor = dloss[params.dloss_at] / counted[params.counted_at];
      value = (p - select(0.0, 1.0, target_ == e % params.columns)) * factor;
    }
    if (params.adds > 0u) {
      value += dlogits[params.dlogits_at + e];
    }
    dlogits[params.dlogits_at + e] = value;
  }
}
