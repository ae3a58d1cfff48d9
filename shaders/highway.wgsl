// carry[e] = sigmoid(carry[e]);  y[e] = carry[e] x[e] + (1 - carry[e]) h[e]
//
// Grid: one thread an element, workgroups folded into x and y.

struct Params {
  len: u32,
  carry_offset: u32,
  x_offset: u32,
  h_offset: u32,
  y_offset: u32,
}

@group(0) @binding(0) var<storage, read_write> carry: array<f32>; // [.., len, ..]
@group(0) @binding(1) var<storage, read> x: array<f32>;           // [.., len, ..]
@group(0) @binding(2) var<storage, read> h: array<f32>;           // [.., len, ..]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;     // [.., len, ..]
@group(1) @binding(0) var<uniform> params: Params;

// Never exp of an unclamped value; clamp may swallow a NaN, so a NaN is handed through by its bits.
fn is_nan(v: vec4<f32>) -> vec4<bool> {
  return (bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
}

fn lstm_sigmoid(v: vec4<f32>) -> vec4<f32> {
  return select(1.0 / (1.0 + exp(-clamp(v, vec4<f32>(-30.0), vec4<f32>(30.0)))), v, is_nan(v));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.len) {
    let c = lstm_sigmoid(vec4<f32>(carry[params.carry_offset + e])).x;
    carry[params.carry_offset + e] = c;
    y[params.y_offset + e] = c * x[params.x_offset + e] + (1.0 - c) * h[params.h_offset + e];
  }
}
