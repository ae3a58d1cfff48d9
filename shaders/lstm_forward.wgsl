// One step of the recurrence; gates holds x W_ih^T + b_ih on entry and the activated gates on return.
//
//   [i|f|g|o] = gates[t] + h[before] W_hh^T + b_hh          (forget_bias is added to f)
//   i, f, o = sigmoid;  g = tanh
//   c[after] = f c[before] + i g;   h[after] = o tanh c[after]
//
// repeat.x = n, the n-th step worked on; t, before and after follow from the direction.
//
// Tile of 8 rows x 8 units, K in slices of 64 through workgroup memory; a thread owns the four gates of
// one unit of one row. Any size; tails guarded. Grid: tiles of units, then of rows, folded into x and y.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

struct Params {
  steps: u32,
  batch: u32,
  hidden: u32,
  reverse: u32,
  has_bias: u32,
  forget_bias: f32,
  forget_bias_rest: f32,
}

@group(0) @binding(0) var<storage, read> weight_hh: array<f32>;   // [4H, H]
@group(0) @binding(1) var<storage, read> bias_hh: array<f32>;     // [4H]
@group(0) @binding(2) var<storage, read_write> gates: array<f32>; // [T, B, 4H]
@group(0) @binding(3) var<storage, read_write> h: array<f32>;     // [T+1, B, H]
@group(0) @binding(4) var<storage, read_write> c: array<f32>;     // [T+1, B, H]
@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<uniform> repeat: vec4<u32>;

// written a whole vector at a time: the components of one are not memory of their own
var<workgroup> h_tile: array<vec4<f32>, 136>; // [8 rows][16 + 1], four of k in the components
var<workgroup> w_tile: array<vec4<f32>, 520>; // [8 units][64 + 1], i f g o in the components

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

fn h_at(before: u32, row: u32, k: u32) -> f32 {
  if (row < params.batch && k < params.hidden) {
    return h[(before + row) * params.hidden + k];
  }
  return 0.0;
}

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_id) li: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = wg.y * wgs.x + wg.x;
  let tiles = (params.hidden + 7u) / 8u;
  let t = select(repeat.x, params.steps - 1u - repeat.x, params.reverse > 0u);
  let before = select(t, t + 1u, params.reverse > 0u) * params.batch;
  let after = select(t + 1u, t, params.reverse > 0u) * params.batch;
  let row0 = tile / tiles * 8u;
  let unit0 = tile % tiles * 8u;
  var sums = vec4<f32>();
  for (var k0 = 0u; k0 < params.hidden + wg.z; k0 += 64u) {
    workgroupBarrier();
    for (var e = lane; e < 128u; e += 64u) {
      let row = row0 + e / 16u;
      let k = k0 + 4u * (e % 16u);
      h_tile[e / 16u * 17u + e % 16u] = vec4<f32>(
        h_at(before, row, k),
        h_at(before, row, k + 1u),
        h_at(before, row, k + 2u),
        h_at(before, row, k + 3u),
      );
    }
    for (var e = lane; e < 512u; e += 64u) {
      let unit = unit0 + e / 64u;
      let k = k0 + e % 64u;
      var w = vec4<f32>();
      if (unit < params.hidden && k < params.hidden) {
        let gate = params.hidden * params.hidden;
        let at = unit * params.hidden + k;
        w = vec4<f32>(weight_hh[at], weight_hh[at + gate], weight_hh[at + 2u * gate], weight_hh[at + 3u * gate]);
      }
      w_tile[e / 64u * 65u + e % 64u] = w;
    }
    workgroupBarrier();
    for (var q = 0u; q < 16u; q++) {
      let x = h_tile[li.y * 17u + q];
      let w = li.x * 65u + 4u * q;
      sums = fma(vec4<f32>(x.x), w_tile[w], sums);
      sums = fma(vec4<f32>(x.y), w_tile[w + 1u], sums);
      sums = fma(vec4<f32>(x.z), w_tile[w + 2u], sums);
      sums = fma(vec4<f32>(x.w), w_tile[w + 3u], sums);
    }
  }
  let row = row0 + li.y;
  let unit = unit0 + li.x;
  if (row < params.batch && unit < params.hidden) {
    let at = (t * params.batch + row) * 4u * params.hidden + unit;
    var v = sums + vec4<f32>(gates[at], gates[at + params.hidden], gates[at + 2u * params.hidden], gates[at + 3u * params.hidden]);
    if (params.has_bias > 0u) {
      v += vec4<f32>(bias_hh[unit], bias_hh[unit + params.hidden], bias_hh[unit + 2u * params.hidden], bias_hh[unit + 3u * params.hidden]);
    }
    v.y += params.forget_bias;
    let s = lstm_sigmoid(v);
    let g = lstm_tanh(v).z;
    let cell = s.y * c[(before + row) * params.hidden + unit] + s.x * g;
    gates[at] = s.x;
    gates[at + params.hidden] = s.y;
    gates[at + 2u * params.hidden] = g;
    gates[at + 3u * params.hidden] = s.w;
    c[(after + row) * params.hidden + unit] = cell;
    h[(after + row) * params.hidden + unit] = s.w * lstm_tanh(vec4<f32>(cell)).x;
  }
}
