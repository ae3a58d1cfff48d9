// One step of the recurrence; gates holds x W_ih^T and all biases on entry and the activated gates on return.
//
//   [i|f|g|o] = gates[t] + h[before] W_hh^T
//   i, f, o = sigmoid;  g = tanh                    (forget_bias is added to f; peepholes, coupling: kernels/recurrence.rs)
//   c[after] = f c[before] + i g;   h[after] = o tanh c[after], or m with a projection
//
// With a layer norm only the first line; lstm_forward_norm does the rest.
// repeat.x = n, the n-th step worked on; t, before and after follow from the direction.
//
// Tile of 8 rows x 8 units, K in slices of 64 through workgroup memory; a thread owns the four gates of
// one unit of one row. Any size; tails guarded. Grid: tiles of units, then of rows, folded into x and y.
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

override has_lengths: bool = false;
override has_peephole: bool = false;
override has_mask: bool = false;
override coupled: bool = false;
override has_cell_clip: bool = false;
override projected: bool = false;
override normed: bool = false;

@group(0) @binding(0) var<storage, read> weight_hh: array<f32>;   // [4H, P]
@group(0) @binding(1) var<storage, read_write> gates: array<f32>; // [T, B, 4H]
@group(0) @binding(2) var<storage, read_write> h: array<f32>;     // [T+1, B, P]
@group(0) @binding(3) var<storage, read_write> c: array<f32>;     // [T+1, B, H]
@group(0) @binding(4) var<storage, read> lengths: array<u32>;     // [B]
@group(0) @binding(5) var<storage, read> peephole: array<f32>;    // [3, H] to i, f, o
@group(0) @binding(6) var<storage, read> mask: array<f32>;        // [T or 1, B, H]
@group(0) @binding(7) var<storage, read_write> m: array<f32>;     // [T, B, H]
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
  if (row < params.batch && k < params.outputs) {
    return h[(before + row) * params.outputs + k];
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
  for (var k0 = 0u; k0 < params.outputs + wg.z; k0 += 64u) {
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
      if (unit < params.hidden && k < params.outputs) {
        let gate = params.hidden * params.outputs;
        let at = unit * params.outputs + k;
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
    if (!normed) {
      let c_before = c[(before + row) * params.hidden + unit];
      v.y += params.forget_bias;
      if (has_peephole) {
        v.x += peephole[unit] * c_before;
        v.y += peephole[params.hidden + unit] * c_before;
      }
      let s = lstm_sigmoid(v);
      let f = select(s.y, 1.0 - s.x, coupled);
      let g = lstm_tanh(v).z;
      var masked = g;
      if (has_mask) {
        masked *= mask[(t % params.mask_steps * params.batch + row) * params.hidden + unit];
      }
      var cell = f * c_before + s.x * masked;
      if (has_cell_clip) {
        cell = select(clamp(cell, -params.cell_clip, params.cell_clip), cell, is_nan(vec4<f32>(cell)).x);
      }
      var o = s.w;
      if (has_peephole) {
        o = lstm_sigmoid(vec4<f32>(v.w + peephole[2u * params.hidden + unit] * cell)).x;
      }
      v = vec4<f32>(s.x, f, g, o);
      var output = o * lstm_tanh(vec4<f32>(cell)).x;
      if (has_lengths) {
        if (t >= lengths[row]) {
          v = vec4<f32>(0.0, 1.0, 0.0, 0.0);
          cell = c_before;
          output = 0.0;
          if (!projected) {
            output = h[(before + row) * params.outputs + unit];
          }
        }
      }
      c[(after + row) * params.hidden + unit] = cell;
      if (projected) {
        m[(t * params.batch + row) * params.hidden + unit] = output;
      } else {
        h[(after + row) * params.outputs + unit] = output;
      }
    }
    gates[at] = v.x;
    gates[at + params.hidden] = v.y;
    gates[at + 2u * params.hidden] = v.z;
    gates[at + 3u * params.hidden] = v.w;
  }
}
