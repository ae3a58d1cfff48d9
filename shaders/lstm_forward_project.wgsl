// h[after] = m W_hr^T for one step, kept within output_clip where that is on.
//
// repeat.x = n, the n-th step worked on; t, before and after follow from the direction. Past a row's length h stays.
//
// Tile of 8 rows x 8 outputs, K in slices of 64 through workgroup memory. Any size; tails guarded. Grid: tiles of
// outputs, then of rows, folded into x and y.
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
override has_output_clip: bool = false;

@group(0) @binding(0) var<storage, read> weight_hr: array<f32>; // [P, H]
@group(0) @binding(1) var<storage, read_write> m: array<f32>;   // [T, B, H]
@group(0) @binding(2) var<storage, read_write> h: array<f32>;   // [T+1, B, P]
@group(0) @binding(3) var<storage, read> lengths: array<u32>;   // [B]
@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<uniform> repeat: vec4<u32>;

// four of k in the components; written a whole vector at a time: the components of one are not memory of their own
var<workgroup> m_tile: array<vec4<f32>, 136>; // [8 rows][16 + 1]
var<workgroup> w_tile: array<vec4<f32>, 136>; // [8 outputs][16 + 1]

// Never the built-in tanh (NaN for large arguments on some drivers), never exp of an unclamped value.
// clamp may swallow a NaN, so a NaN is handed through by its bits.
fn is_nan(v: vec4<f32>) -> vec4<bool> {
  return (bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
}

fn m_at(t: u32, row: u32, k: u32) -> f32 {
  if (row < params.batch && k < params.hidden) {
    return m[(t * params.batch + row) * params.hidden + k];
  }
  return 0.0;
}

fn w_at(unit: u32, k: u32) -> f32 {
  if (unit < params.outputs && k < params.hidden) {
    return weight_hr[unit * params.hidden + k];
  }
  return 0.0;
}

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_id) li: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = wg.y * wgs.x + wg.x;
  let tiles = (params.outputs + 7u) / 8u;
  let t = select(repeat.x, params.steps - 1u - repeat.x, params.reverse > 0u);
  let before = select(t, t + 1u, params.reverse > 0u) * params.batch;
  let after = select(t + 1u, t, params.reverse > 0u) * params.batch;
  let row0 = tile / tiles * 8u;
  let unit0 = tile % tiles * 8u;
  var sum = 0.0;
  for (var k0 = 0u; k0 < params.hidden + wg.z; k0 += 64u) {
    workgroupBarrier();
    for (var e = lane; e < 128u; e += 64u) {
      let k = k0 + 4u * (e % 16u);
      let row = row0 + e / 16u;
      let unit = unit0 + e / 16u;
      m_tile[e / 16u * 17u + e % 16u] = vec4<f32>(m_at(t, row, k), m_at(t, row, k + 1u), m_at(t, row, k + 2u), m_at(t, row, k + 3u));
      w_tile[e / 16u * 17u + e % 16u] = vec4<f32>(w_at(unit, k), w_at(unit, k + 1u), w_at(unit, k + 2u), w_at(unit, k + 3u));
    }
    workgroupBarrier();
    for (var q = 0u; q < 16u; q++) {
      sum += dot(m_tile[li.y * 17u + q], w_tile[li.x * 17u + q]);
    }
  }
  let row = row0 + li.y;
  let unit = unit0 + li.x;
  if (row < params.batch && unit < params.outputs) {
    if (has_output_clip) {
      sum = select(clamp(sum, -params.output_clip, params.output_clip), sum, is_nan(vec4<f32>(sum)).x);
    }
    if (has_lengths) {
      if (t >= lengths[row]) {
        sum = h[(before + row) * params.outputs + unit];
      }
    }
    h[(after + row) * params.outputs + unit] = sum;
  }
}
