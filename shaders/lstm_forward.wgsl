// One step of the recurrence; gates holds x W_ih^T and all biases on entry and the activated gates on return.
//
//   [i|f|g|o] = gates[t] + h[before] W_hh^T         then the cell's rule: lstm_cell.wgsl
//
// With a layer norm only the first line; lstm_forward_norm does the rest.
// repeat.x = n, the n-th step worked on; t, before and after follow from the direction.
//
// Tile of 8 rows x 8 units, K in slices of 64 through workgroup memory; a thread owns the four gates of
// one unit of one row. Any size; tails guarded. Grid: tiles of units, then of rows, then directions, folded.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

override has_lengths: bool;
override projected: bool;
override normed: bool;

@group(0) @binding(0) var<storage, read> weight_hh: array<f32>;   // [4H, P] of each direction
@group(0) @binding(1) var<storage, read_write> gates: array<f32>; // [D, T, B, 4H]
@group(0) @binding(2) var<storage, read_write> h: array<f32>;     // [D, T+1, B, P]
@group(0) @binding(3) var<storage, read_write> c: array<f32>;     // [D, T+1, B, H]
@group(0) @binding(4) var<storage, read> lengths: array<u32>;     // [B]
@group(0) @binding(5) var<storage, read> peephole: array<f32>;    // [3, H] to i, f, o, of each direction
@group(0) @binding(6) var<storage, read> mask: array<f32>;        // [D, T or 1, B, H]
@group(0) @binding(7) var<storage, read_write> m: array<f32>;     // [D, T, B, H]

// written a whole vector at a time: the components of one are not memory of their own
var<workgroup> h_tile: array<vec4<f32>, 136>; // [8 rows][16 + 1], four of k in the components
var<workgroup> w_tile: array<vec4<f32>, 520>; // [8 units][64 + 1], i f g o in the components

fn h_quad(before: u32, row: u32, k: u32) -> vec4<f32> {
  var v = vec4<f32>();
  if (row < params.batch) {
    let at = params.h_at + (before + row) * params.outputs + k;
    let left = params.outputs - min(k, params.outputs);
    v.x = select(0.0, h[at], left > 0u);
    v.y = select(0.0, h[at + 1u], left > 1u);
    v.z = select(0.0, h[at + 2u], left > 2u);
    v.w = select(0.0, h[at + 3u], left > 3u);
  }
  return v;
}

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_id) li: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tiles = (params.hidden + 7u) / 8u;
  let s = step_of(wg.y * wgs.x + wg.x, tiles * ((params.batch + 7u) / 8u), repeat.x);
  let row0 = s.tile / tiles * 8u;
  let unit0 = s.tile % tiles * 8u;
  var sums = vec4<f32>();
  for (var k0 = 0u; k0 < params.outputs + wg.z; k0 += 64u) {
    workgroupBarrier();
    for (var e = lane; e < 128u; e += 64u) {
      h_tile[e / 16u * 17u + e % 16u] = h_quad(s.before, row0 + e / 16u, k0 + 4u * (e % 16u));
    }
    for (var e = lane; e < 512u; e += 64u) {
      let unit = unit0 + e / 64u;
      let k = k0 + e % 64u;
      var w = vec4<f32>();
      if (unit < params.hidden && k < params.outputs) {
        let gate = params.hidden * params.outputs;
        let at = params.weight_hh_at + s.d * params.weight_hh_stride + unit * params.outputs + k;
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
    let at = params.gates_at + (s.now + row) * 4u * params.hidden + unit;
    var v = sums + vec4<f32>(gates[at], gates[at + params.hidden], gates[at + 2u * params.hidden], gates[at + 3u * params.hidden]); // F2
    if (!normed) {
      let c_before = c[params.c_at + (s.before + row) * params.hidden + unit];
      var w = vec3<f32>();
      if (has_peephole) {
        let p = params.peephole_at + s.d * params.peephole_stride + unit;
        w = vec3<f32>(peephole[p], peephole[p + params.hidden], peephole[p + 2u * params.hidden]);
      }
      var scale = 1.0;
      if (has_mask) {
        scale = mask[params.mask_at + (mask_row(s) + row) * params.hidden + unit];
      }
      let state = lstm_state(v.xyz, c_before, w.xy, scale);
      var cell = lstm_clip(state.w); // F8
      let output = lstm_output(v.w, cell, w.z);
      v = vec4<f32>(state.xyz, output.x);
      var result = output.y;
      if (has_lengths) {
        if (s.t >= lengths[params.lengths_at + row]) {
          v = vec4<f32>(0.0, 1.0, 0.0, 0.0); // F12
          cell = c_before;
          result = 0.0;
          if (!projected) {
            result = h[params.h_at + (s.before + row) * params.outputs + unit];
          }
        }
      }
      c[params.c_at + (s.after + row) * params.hidden + unit] = cell;
      if (projected) {
        m[params.m_at + (s.now + row) * params.hidden + unit] = result;
      } else {
        h[params.h_at + (s.after + row) * params.outputs + unit] = result;
      }
    }
    gates[at] = v.x;
    gates[at + params.hidden] = v.y;
    gates[at + 2u * params.hidden] = v.z;
    gates[at + 3u * params.hidden] = v.w;
  }
}
