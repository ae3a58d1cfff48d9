// y[r, j] = scale a(differences[r, j]), the second of two stages
//
// Grid: one thread an element, workgroups folded into x and y.

override squashed: bool;

@group(0) @binding(0) var<storage, read_write> differences: array<f32>; // [rows, columns]
@group(0) @binding(1) var<storage, read_write> y: array<f32>;           // [rows, columns]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 64u + lane;
  if (e < params.rows * params.columns) {
    let d = differences[e];
    y[params.y_at + e] = params.scale * select(d, lstm_tanh(d), squashed);
  }
}
