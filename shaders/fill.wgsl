// result[e] = value,  e in 0..len
//
// Grid: one thread an element, workgroups folded into x and y.

@group(0) @binding(0) var<storage, read_write> result: array<f32>; // [len]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.len) {
    result[params.result_at + e] = params.value;
  }
}
