// One step back through time. dh and dc hold what flows in from outside on entry, and the whole gradient on return.
//
//   dh[after] += dgates[t of the step worked on just before] W_hh
//   dct = dc[after] + dh[after] o (1 - tanh^2 c);   dc[after] = dct;   dc[before] += dct f
//   do = dh tanh c o (1-o);  dg = dct i (1-g^2);  di = dct g i (1-i);  df = dct c[before] f (1-f)
//
// repeat.x = n, steps counted from the last one back; n = T only adds the recurrent part to dh of the initial state.
//
// Tile of 8 rows x 8 units, the 4H summed gates in slices of 64 through workgroup memory; a thread owns one
// unit of one row. Any size; tails guarded. Grid: tiles of units, then of rows, folded into x and y.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

struct Params {
  steps: u32,
  batch: u32,
  hidden: u32,
  reverse: u32,
}

@group(0) @binding(0) var<storage, read> weight_hh: array<f32>;    // [4H, H]
@group(0) @binding(1) var<storage, read> gates: array<f32>;        // [T, B, 4H] activated
@group(0) @binding(2) var<storage, read> c: array<f32>;            // [T+1, B, H]
@group(0) @binding(3) var<storage, read_write> dgates: array<f32>; // [T, B, 4H] of the pre-activations
@group(0) @binding(4) var<storage, read_write> dh: array<f32>;     // [T+1, B, H]
@group(0) @binding(5) var<storage, read_write> dc: array<f32>;     // [T+1, B, H]
@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<uniform> repeat: vec4<u32>;

// four of the summed gates in the components; written a whole vector at a time: the components of one are not
// memory of their own
var<workgroup> d_tile: array<vec4<f32>, 136>; // [8 rows][16 + 1]
var<workgroup> w_tile: array<vec4<f32>, 136>; // [8 units][16 + 1]

// Never the built-in tanh (NaN for large arguments on some drivers), never exp of an unclamped value.
// clamp may swallow a NaN, so a NaN is handed through by its bits.
fn is_nan(v: vec4<f32>) -> vec4<bool> {
  return (bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
}

fn lstm_tanh(v: vec4<f32>) -> vec4<f32> {
  let a = min(abs(v), vec4<f32>(10.0));
  let z = a * a;
  let p = ((((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z - 3.33332819422e-1) * z * a + a;
  let q = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
  return select(sign(v) * select(q, p, a < vec4<f32>(0.625)), v, is_nan(v));
}

fn d_at(t: u32, row: u32, k: u32) -> f32 {
  if (row < params.batch && k < 4u * params.hidden) {
    return dgates[(t * params.batch + row) * 4u * params.hidden + k];
  }
  return 0.0;
}

fn w_at(k: u32, unit: u32) -> f32 {
  if (unit < params.hidden && k < 4u * params.hidden) {
    return weight_hh[k * params.hidden + unit];
  }
  return 0.0;
}

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_id) li: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = wg.y * wgs.x + wg.x;
  let tiles = (params.hidden + 7u) / 8u;
  // n-th step from the end; at n = T the "state after" is the initial state
  let n = repeat.x + wg.z;
  let reverse = params.reverse > 0u;
  let after = select(params.steps - n, n, reverse) * params.batch;
  let before = select(params.steps - n - 1u, n + 1u, reverse) * params.batch;
  let t = select(params.steps - n - 1u, n, reverse);
  let t_next = select(params.steps - n, n - 1u, reverse);
  let gate_count = 4u * params.hidden + wg.z;
  let row0 = tile / tiles * 8u;
  let unit0 = tile % tiles * 8u;
  var sum = 0.0;
  if (n > 0u) {
    for (var k0 = 0u; k0 < gate_count; k0 += 64u) {
      workgroupBarrier();
      for (var e = lane; e < 128u; e += 64u) {
        let row = row0 + e / 16u;
        let d_k = k0 + 4u * (e % 16u);
        d_tile[e / 16u * 17u + e % 16u] = vec4<f32>(
          d_at(t_next, row, d_k),
          d_at(t_next, row, d_k + 1u),
          d_at(t_next, row, d_k + 2u),
          d_at(t_next, row, d_k + 3u),
        );
        // neighbouring threads follow the units, which are contiguous in memory
        let unit = unit0 + e % 8u;
        let w_k = k0 + 4u * (e / 8u);
        w_tile[e % 8u * 17u + e / 8u] =
          vec4<f32>(w_at(w_k, unit), w_at(w_k + 1u, unit), w_at(w_k + 2u, unit), w_at(w_k + 3u, unit));
      }
      workgroupBarrier();
      for (var q = 0u; q < 16u; q++) {
        sum += dot(d_tile[li.y * 17u + q], w_tile[li.x * 17u + q]);
      }
    }
  }
  let row = row0 + li.y;
  let unit = unit0 + li.x;
  if (row < params.batch && unit < params.hidden) {
    let e = (after + row) * params.hidden + unit;
    let dht = dh[e] + sum;
    dh[e] = dht;
    if (n < params.steps) {
      let at = (t * params.batch + row) * gate_count + unit;
      let i = gates[at];
      let f = gates[at + params.hidden];
      let g = gates[at + 2u * params.hidden];
      let o = gates[at + 3u * params.hidden];
      let tanh_c = lstm_tanh(vec4<f32>(c[e])).x;
      let e_before = (before + row) * params.hidden + unit;
      let dct = dc[e] + dht * o * (1.0 - tanh_c * tanh_c);
      dc[e] = dct;
      dc[e_before] += dct * f;
      dgates[at] = dct * g * i * (1.0 - i);
      dgates[at + params.hidden] = dct * c[e_before] * f * (1.0 - f);
      dgates[at + 2u * params.hidden] = dct * i * (1.0 - g * g);
      dgates[at + 3u * params.hidden] = dht * tanh_c * o * (1.0 - o);
    }
  }
}
