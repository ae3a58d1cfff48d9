// h[after] = m W_hr^T for one step, kept within output_clip where that is on.
//
// repeat.x = n, the n-th step worked on; t, before and after follow from the direction. Past a row's length h stays.
//
// Tile of 8 rows x 8 outputs, K in slices of 64 through workgroup memory. Any size; tails guarded. Grid: tiles of
// outputs, then of rows, then directions, folded into x and y.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

override has_lengths: bool;
override has_output_clip: bool;

@group(0) @binding(0) var<storage, read> weight_hr: array<f32>; // [P, H] of each direction
@group(0) @binding(1) var<storage, read_write> m: array<f32>;   // [D, T, B, H]
@group(0) @binding(2) var<storage, read_write> h: array<f32>;   // [D, T+1, B, P]
@group(0) @binding(3) var<storage, read> lengths: array<u32>;   // [B]

// four of k in the components; written a whole vector at a time: the components of one are not memory of their own
var<workgroup> m_tile: array<vec4<f32>, 136>; // [8 rows][16 + 1]
var<workgroup> w_tile: array<vec4<f32>, 136>; // [8 outputs][16 + 1]

fn m_at(now: u32, row: u32, k: u32) -> f32 {
  if (row < params.batch && k < params.hidden) {
    return m[params.m_at + (now + row) * params.hidden + k];
  }
  return 0.0;
}

fn w_at(d: u32, unit: u32, k: u32) -> f32 {
  if (unit < params.outputs && k < params.hidden) {
    return weight_hr[params.weight_hr_at + d * params.weight_hr_stride + unit * params.hidden + k];
  }
  return 0.0;
}

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_id) li: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tiles = (params.outputs + 7u) / 8u;
  let s = step_of(wg.y * wgs.x + wg.x, tiles * ((params.batch + 7u) / 8u), repeat.x);
  let row0 = s.tile / tiles * 8u;
  let unit0 = s.tile % tiles * 8u;
  var sum = 0.0;
  for (var k0 = 0u; k0 < params.hidden + wg.z; k0 += 64u) {
    workgroupBarrier();
    for (var e = lane; e < 128u; e += 64u) {
      let k = k0 + 4u * (e % 16u);
      let row = row0 + e / 16u;
      let unit = unit0 + e / 16u;
      m_tile[e / 16u * 17u + e % 16u] = vec4<f32>(m_at(s.now, row, k), m_at(s.now, row, k + 1u), m_at(s.now, row, k + 2u), m_at(s.now, row, k + 3u));
      w_tile[e / 16u * 17u + e % 16u] = vec4<f32>(w_at(s.d, unit, k), w_at(s.d, unit, k + 1u), w_at(s.d, unit, k + 2u), w_at(s.d, unit, k + 3u));
    }
    workgroupBarrier();
    for (var q = 0u; q < 16u; q++) {
      sum += dot(m_tile[li.y * 17u + q], w_tile[li.x * 17u + q]); // F11
    }
  }
  let row = row0 + li.y;
  let unit = unit0 + li.x;
  if (row < params.batch && unit < params.outputs) {
    if (has_output_clip) {
      sum = clipped(sum, params.output_clip);
    }
    if (has_lengths) {
      if (s.t >= lengths[params.lengths_at + row]) {
        sum = h[params.h_at + (s.before + row) * params.outputs + unit];
      }
    }
    h[params.h_at + (s.after + row) * params.outputs + unit] = sum;
  }
}
