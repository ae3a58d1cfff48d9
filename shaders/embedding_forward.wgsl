// y[r, e] = table[ids[r], e]
//
// Grid: one thread an element, workgroups folded into x and y.

@group(0) @binding(0) var<storage, read> ids: array<u32>;     // [rows]
@group(0) @binding(1) var<storage, read> table: array<f32>;   // [V, columns]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [rows, columns]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.rows * params.columns) {
    let id = ids[params.ids_at + e / params.columns];
    y[params.y_at + e] = table[params.table_at + id * params.columns + e % params.columns];
  }
}
