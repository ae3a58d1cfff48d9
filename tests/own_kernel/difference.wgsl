// differences[r, j] = x[r, j] - base[j], the first of two stages
//
// Grid: one workgroup a row.

@group(0) @binding(0) var<storage, read> x: array<f32>;                 // [rows, columns]
@group(0) @binding(1) var<storage, read> base: array<f32>;              // [columns]
@group(0) @binding(2) var<storage, read_write> differences: array<f32>; // [rows, columns]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = wg.y * wgs.x + wg.x;
  if (row < params.rows) {
    for (var j = lane; j < params.columns; j += 64u) {
      differences[row * params.columns + j] = x[params.x_at + row * params.columns + j] - base[params.base_at + j];
    }
  }
}
