// y[r, v] = 1 if ids[r] = v, else 0
//
// Grid: one thread an element, workgroups folded into x and y.

@group(0) @binding(0) var<storage, read> ids: array<u32>;     // [rows]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [rows, V]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.rows * params.columns) {
    y[params.y_at + e] = select(0.0, 1.0, ids[params.ids_at + e / params.columns] == e % params.columns);
  }
}
