// carry[e] = sigmoid(carry[e]);  y[e] = carry[e] x[e] + (1 - carry[e]) h[e]
//
// Grid: one thread an element, workgroups folded into x and y.

@group(0) @binding(0) var<storage, read_write> carry: array<f32>; // [len]
@group(0) @binding(1) var<storage, read> x: array<f32>;           // [len]
@group(0) @binding(2) var<storage, read> h: array<f32>;           // [len]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;     // [len]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.len) {
    let c = lstm_sigmoid(carry[params.carry_at + e]);
    carry[params.carry_at + e] = c;
    y[params.y_at + e] = c * x[params.x_at + e] + (1.0 - c) * h[params.h_at + e];
  }
}
