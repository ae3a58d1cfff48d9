// One step back through time. dh and dc hold what flows in from outside on entry, and the whole gradient on return.
//
//   dh[after] += dgates[t of the step worked on just before] W_hh
//   dct = dc[after] + dh[after] o (1 - tanh^2 c);   dc[after] = dct;   dc[before] += dct f
//   do = dh tanh c o (1-o);  dg = dct i (1-g^2);  di = dct g i (1-i);  df = dct c[before] f (1-f)
//
// Two stages with a projection: first dh alone, then from_h: dh[after] W_hr in place of dh in the cell. With a layer
// norm the cell ends at dct and do; lstm_backward_norm does the rest. Options: kernels/lstm_backward.rs.
// repeat.x = n, steps counted from the last one back; n = T only adds the recurrent part to dh of the initial state.
//
// Tile of 8 rows x 8 units, the summed gates in slices of 64 through workgroup memory; a thread owns one
// unit of one row. Any size; tails guarded. Grid: tiles of units, then of rows, folded into x and y.
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

override from_h: bool = false;
override cell: bool = false;
override has_lengths: bool = false;
override has_peephole: bool = false;
override has_mask: bool = false;
override coupled: bool = false;
override has_cell_clip: bool = false;
override has_output_clip: bool = false;
override normed: bool = false;

@group(0) @binding(0) var<storage, read> weight: array<f32>;       // weight_hh [4H, P], or from_h weight_hr [P, H]
@group(0) @binding(1) var<storage, read> gates: array<f32>;        // [T, B, 4H] activated
@group(0) @binding(2) var<storage, read> states: array<f32>;       // c [T+1, B, H]; h [T+1, B, P] where the cell comes later
@group(0) @binding(3) var<storage, read_write> dgates: array<f32>; // [T, B, 4H] of the pre-activations
@group(0) @binding(4) var<storage, read_write> dh: array<f32>;     // [T+1, B, P]
@group(0) @binding(5) var<storage, read_write> dc: array<f32>;     // [T+1, B, H]
@group(0) @binding(6) var<storage, read> peephole: array<f32>;     // [3, H] to i, f, o
@group(0) @binding(7) var<storage, read> mask: array<f32>;         // [T or 1, B, H]
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

fn d_at(step: u32, row: u32, k: u32, width: u32) -> f32 {
  if (row < params.batch && k < width) {
    if (from_h) {
      return dh[(step + row) * width + k];
    }
    return dgates[(step + row) * width + k];
  }
  return 0.0;
}

fn w_at(k: u32, unit: u32, width: u32, units: u32) -> f32 {
  if (unit < units && k < width) {
    return weight[k * units + unit];
  }
  return 0.0;
}

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_id) li: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = wg.y * wgs.x + wg.x;
  // n-th step from the end; at n = T the "state after" is the initial state
  let n = repeat.x + wg.z;
  let reverse = params.reverse > 0u;
  let after = select(params.steps - n, n, reverse) * params.batch;
  let before = select(params.steps - n - 1u, n + 1u, reverse) * params.batch;
  let t = select(params.steps - n - 1u, n, reverse);
  // the step of dgates that is summed over, or of dh
  let source = select(select(params.steps - n, n - 1u, reverse) * params.batch, after, from_h);
  let width = select(4u * params.hidden, params.outputs, from_h) + wg.z;
  let units = select(params.outputs, params.hidden, from_h) + wg.z;
  let tiles = (units + 7u) / 8u;
  let row0 = tile / tiles * 8u;
  let unit0 = tile % tiles * 8u;
  var sum = 0.0;
  if (n > 0u || from_h) {
    for (var k0 = 0u; k0 < width; k0 += 64u) {
      workgroupBarrier();
      for (var e = lane; e < 128u; e += 64u) {
        let row = row0 + e / 16u;
        let d_k = k0 + 4u * (e % 16u);
        d_tile[e / 16u * 17u + e % 16u] = vec4<f32>(
          d_at(source, row, d_k, width),
          d_at(source, row, d_k + 1u, width),
          d_at(source, row, d_k + 2u, width),
          d_at(source, row, d_k + 3u, width),
        );
        // neighbouring threads follow the units, which are contiguous in memory
        let unit = unit0 + e % 8u;
        let w_k = k0 + 4u * (e / 8u);
        w_tile[e % 8u * 17u + e / 8u] = vec4<f32>(
          w_at(w_k, unit, width, units),
          w_at(w_k + 1u, unit, width, units),
          w_at(w_k + 2u, unit, width, units),
          w_at(w_k + 3u, unit, width, units),
        );
      }
      workgroupBarrier();
      for (var q = 0u; q < 16u; q++) {
        sum += dot(d_tile[li.y * 17u + q], w_tile[li.x * 17u + q]);
      }
    }
  }
  let row = row0 + li.y;
  let unit = unit0 + li.x;
  if (row < params.batch && unit < units) {
    let hidden = params.hidden + wg.z;
    let at = (t * params.batch + row) * 4u * hidden + unit;
    let e = (after + row) * units + unit;
    let e_before = (before + row) * units + unit;
    var ended = false;
    if (has_lengths && n < params.steps) {
      // a sigmoid is never 0
      ended = gates[(t * params.batch + row) * 4u * hidden + 3u * hidden] == 0.0;
    }
    var dht = sum;
    if (!from_h) {
      dht += dh[e];
      if (ended) {
        dh[e_before] += dht;
      } else if (has_output_clip && n < params.steps) {
        if (abs(states[e]) >= params.output_clip) {
          dht = 0.0;
        }
      }
      dh[e] = dht;
    }
    if (cell && n < params.steps) {
      let o = gates[at + 3u * hidden];
      let tanh_c = lstm_tanh(vec4<f32>(states[e])).x;
      let d_o = dht * tanh_c * o * (1.0 - o);
      var dct = dc[e] + dht * o * (1.0 - tanh_c * tanh_c);
      if (has_peephole) {
        dct += d_o * peephole[2u * hidden + unit];
      }
      dc[e] = dct;
      dgates[at + 3u * hidden] = d_o;
      if (!normed) {
        if (has_cell_clip) {
          if (!ended && abs(states[e]) >= params.cell_clip) {
            dct = 0.0;
          }
        }
        let i = gates[at];
        let f = gates[at + hidden];
        let g = gates[at + 2u * hidden];
        let c_before = states[e_before];
        var scale = 1.0;
        if (has_mask) {
          scale = mask[(t % params.mask_steps * params.batch + row) * hidden + unit];
        }
        var d_i = dct * g * scale * i * (1.0 - i);
        var d_f = dct * c_before * f * (1.0 - f);
        if (coupled) {
          d_i = dct * (g * scale - c_before) * i * (1.0 - i);
          d_f = 0.0;
        }
        var dc_next = dct * f;
        if (has_peephole) {
          dc_next += d_i * peephole[unit] + d_f * peephole[hidden + unit];
        }
        dc[e_before] += dc_next;
        dgates[at] = d_i;
        dgates[at + hidden] = d_f;
        dgates[at + 2u * hidden] = dct * i * scale * (1.0 - g * g);
      }
    }
  }
}
