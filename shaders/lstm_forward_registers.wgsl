// One step of the recurrence; gates holds x W_ih^T and all biases on entry and the activated gates on return.
//
//   [i|f|g|o] = gates[t] + h[before] W_hh^T                 (forget_bias is added to f)
//   i, f, o = sigmoid;  g = tanh
//   c[after] = f c[before] + i g;   h[after] = o tanh c[after]
//
// repeat.x = n, the n-th step worked on; t, before and after follow from the direction.
//
// 8 rows x 4 units x 4 gates a thread in registers, no workgroup memory: the fastest shape where barriers
// are dear. A cell without options; H a multiple of 4. Grid: tiles of units (32), then of rows (8), folded into x and y.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

struct Params {
  steps: u32,
  batch: u32,
  hidden: u32,
  outputs: u32,
  reverse: u32,
  options: u32,
  mask_steps: u32,
  forget_bias: f32,
  forget_bias_rest: f32,
  cell_clip: f32,
  cell_clip_rest: f32,
  output_clip: f32,
  output_clip_rest: f32,
  epsilon: f32,
  epsilon_rest: f32,
}

@group(0) @binding(0) var<storage, read> weight_hh: array<vec4<f32>>;   // [4H, H]
@group(0) @binding(1) var<storage, read_write> gates: array<vec4<f32>>; // [T, B, 4H]
@group(0) @binding(2) var<storage, read_write> h: array<vec4<f32>>;     // [T+1, B, H]
@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;     // [T+1, B, H]
@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<uniform> repeat: vec4<u32>;

// Never the built-in tanh (NaN for large arguments on some drivers), never exp of an unclamped value.
// clamp may swallow a NaN, so a NaN is handed through by its bits.
fn is_nan(v: vec4<f32>) -> vec4<bool> {
  return (bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
}

fn lstm_sigmoid(v: vec4<f32>) -> vec4<f32> {
  return select(1.0 / (1.0 + exp(-clamp(v, vec4<f32>(-30.0), vec4<f32>(30.0)))), v, is_nan(v));
}

fn lstm_tanh(v: vec4<f32>) -> vec4<f32> {
  let a = min(abs(v), vec4<f32>(10.0));
  let z = a * a;
  let p = ((((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z - 3.33332819422e-1) * z * a + a;
  let q = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
  return select(sign(v) * select(q, p, a < vec4<f32>(0.625)), v, is_nan(v));
}

fn madd(sum: vec4<f32>, x: vec4<f32>, w: mat4x4<f32>) -> vec4<f32> {
  return fma(vec4<f32>(x.w), w[3], fma(vec4<f32>(x.z), w[2], fma(vec4<f32>(x.y), w[1], fma(vec4<f32>(x.x), w[0], sum))));
}

// sums of one row: a column a gate, a component a unit
fn add(sums: mat4x4<f32>, x: vec4<f32>, i: mat4x4<f32>, f: mat4x4<f32>, g: mat4x4<f32>, o: mat4x4<f32>) -> mat4x4<f32> {
  return mat4x4<f32>(madd(sums[0], x, i), madd(sums[1], x, f), madd(sums[2], x, g), madd(sums[3], x, o));
}

// weights of four units of a gate, four of k: a column a k
fn weights(gate: u32, unit: u32, q: u32) -> mat4x4<f32> {
  let stride = params.hidden / 4u;
  let at = (gate * params.hidden + unit) * stride + q;
  return transpose(mat4x4<f32>(weight_hh[at], weight_hh[at + stride], weight_hh[at + 2u * stride], weight_hh[at + 3u * stride]));
}

fn finish(t: u32, before: u32, after: u32, row: u32, unit: u32, sums: mat4x4<f32>) {
  if (row < params.batch && unit < params.hidden) {
    let stride = params.hidden / 4u;
    let j = unit / 4u;
    let at = (t * params.batch + row) * params.hidden + j;
    let v = sums + mat4x4<f32>(gates[at], gates[at + stride], gates[at + 2u * stride], gates[at + 3u * stride]);
    let i = lstm_sigmoid(v[0]);
    let f = lstm_sigmoid(v[1] + params.forget_bias);
    let g = lstm_tanh(v[2]);
    let o = lstm_sigmoid(v[3]);
    let cell = f * c[(before + row) * stride + j] + i * g;
    gates[at] = i;
    gates[at + stride] = f;
    gates[at + 2u * stride] = g;
    gates[at + 3u * stride] = o;
    c[(after + row) * stride + j] = cell;
    h[(after + row) * stride + j] = o * lstm_tanh(cell);
  }
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_id) li: vec3<u32>) {
  let tile = wg.y * wgs.x + wg.x;
  let tiles = (params.hidden + 31u) / 32u;
  let t = select(repeat.x, params.steps - 1u - repeat.x, params.reverse > 0u);
  let before = select(t, t + 1u, params.reverse > 0u) * params.batch;
  let after = select(t + 1u, t, params.reverse > 0u) * params.batch;
  let row = tile / tiles * 8u;
  let unit = (tile % tiles * 8u + li.x) * 4u;
  let base_unit = min(unit, params.hidden - 4u);
  let stride = params.hidden / 4u;
  let last = params.batch - 1u;
  var s0 = mat4x4<f32>();
  var s1 = mat4x4<f32>();
  var s2 = mat4x4<f32>();
  var s3 = mat4x4<f32>();
  var s4 = mat4x4<f32>();
  var s5 = mat4x4<f32>();
  var s6 = mat4x4<f32>();
  var s7 = mat4x4<f32>();
  for (var q = 0u; q < stride + wg.z; q++) {
    let i = weights(0u, base_unit, q);
    let f = weights(1u, base_unit, q);
    let g = weights(2u, base_unit, q);
    let o = weights(3u, base_unit, q);
    s0 = add(s0, h[(before + min(row, last)) * stride + q], i, f, g, o);
    s1 = add(s1, h[(before + min(row + 1u, last)) * stride + q], i, f, g, o);
    s2 = add(s2, h[(before + min(row + 2u, last)) * stride + q], i, f, g, o);
    s3 = add(s3, h[(before + min(row + 3u, last)) * stride + q], i, f, g, o);
    s4 = add(s4, h[(before + min(row + 4u, last)) * stride + q], i, f, g, o);
    s5 = add(s5, h[(before + min(row + 5u, last)) * stride + q], i, f, g, o);
    s6 = add(s6, h[(before + min(row + 6u, last)) * stride + q], i, f, g, o);
    s7 = add(s7, h[(before + min(row + 7u, last)) * stride + q], i, f, g, o);
  }
  finish(t, before, after, row, unit, s0);
  finish(t, before, after, row + 1u, unit, s1);
  finish(t, before, after, row + 2u, unit, s2);
  finish(t, before, after, row + 3u, unit, s3);
  finish(t, before, after, row + 4u, unit, s4);
  finish(t, before, after, row + 5u, unit, s5);
  finish(t, before, after, row + 6u, unit, s6);
  finish(t, before, after, row + 7u, unit, s7);
}
