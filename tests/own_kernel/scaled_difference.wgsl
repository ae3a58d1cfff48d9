// y[r, j] = scale a(x[r, j] - base[j]),  a = tanh where squashed, else nothing
//
// Grid: one thread an element, workgroups folded into x and y.

override squashed: bool;

@group(0) @binding(0) var<storage, read> x: array<f32>;       // [rows, columns]
@group(0) @binding(1) var<storage, read> base: array<f32>;    // [columns]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [rows, columns]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 64u + lane;
  if (e < params.rows * params.columns) {
    let d = x[params.x_at + e] - base[params.base_at + e % params.columns];
    y[params.y_at + e] = params.scale * select(d, lstm_tanh(d), squashed);
  }
}
