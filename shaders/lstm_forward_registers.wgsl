// One step of the recurrence, as lstm_forward, for software adapters.
//
//   [i|f|g|o] = gates[t] + h[before] W_hh^T         then the cell's rule: lstm_cell.wgsl
//
// With a layer norm only the first line; lstm_forward_norm does the rest.
// repeat.x = n, the n-th step worked on; t, before and after follow from the direction.
//
// 8 rows x 4 units x 4 gates a thread in registers, no workgroup memory: the fastest shape where barriers
// are dear. H, P and every first element multiples of 4. Grid: tiles of units (32), then of rows (8), then directions.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

override has_lengths: bool;
override projected: bool;
override normed: bool;

@group(0) @binding(0) var<storage, read> weight_hh: array<vec4<f32>>;   // [4H, P] of each direction
@group(0) @binding(1) var<storage, read_write> gates: array<vec4<f32>>; // [D, T, B, 4H]
@group(0) @binding(2) var<storage, read_write> h: array<vec4<f32>>;     // [D, T+1, B, P]
@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;     // [D, T+1, B, H]
@group(0) @binding(4) var<storage, read> lengths: array<u32>;           // [B]
@group(0) @binding(5) var<storage, read> peephole: array<vec4<f32>>;    // [3, H] to i, f, o, of each direction
@group(0) @binding(6) var<storage, read> mask: array<vec4<f32>>;        // [D, T or 1, B, H]
@group(0) @binding(7) var<storage, read_write> m: array<vec4<f32>>;     // [D, T, B, H]

// sums of one row: a column a gate, a component a unit
fn add(sums: mat4x4<f32>, x: vec4<f32>, i: mat4x4<f32>, f: mat4x4<f32>, g: mat4x4<f32>, o: mat4x4<f32>) -> mat4x4<f32> {
  return mat4x4<f32>(madd(sums[0], x, i), madd(sums[1], x, f), madd(sums[2], x, g), madd(sums[3], x, o));
}

// weights of four units of a gate, four of k: a column a k
fn weights(first: u32, gate: u32, unit: u32, q: u32) -> mat4x4<f32> {
  let stride = params.outputs / 4u;
  let at = first + (gate * params.hidden + unit) * stride + q;
  return transpose(mat4x4<f32>(weight_hh[at], weight_hh[at + stride], weight_hh[at + 2u * stride], weight_hh[at + 3u * stride]));
}

// one unit: i f g o of y become activated; c and m
fn cell(y: ptr<function, vec4<f32>>, c_before: f32, w: vec3<f32>, scale: f32) -> vec2<f32> {
  let v = *y;
  let state = lstm_state(v.xyz, c_before, w.xy, scale);
  let c_after = lstm_clip(state.w); // F8
  let output = lstm_output(v.w, c_after, w.z);
  *y = vec4<f32>(state.xyz, output.x);
  return vec2<f32>(c_after, output.y);
}

fn finish(s: Step, row: u32, unit: u32, sums: mat4x4<f32>) {
  if (row < params.batch && unit < params.hidden) {
    let stride = params.hidden / 4u;
    let j = unit / 4u;
    let at = params.gates_at / 4u + (s.now + row) * params.hidden + j;
    var v = sums + mat4x4<f32>(gates[at], gates[at + stride], gates[at + 2u * stride], gates[at + 3u * stride]); // F2
    if (!normed) {
      let c_before = c[params.c_at / 4u + (s.before + row) * stride + j];
      var w = mat3x4<f32>();
      if (has_peephole) {
        let p = (params.peephole_at + s.d * params.peephole_stride) / 4u + j;
        w = mat3x4<f32>(peephole[p], peephole[p + stride], peephole[p + 2u * stride]);
      }
      var scale = vec4<f32>(1.0);
      if (has_mask) {
        scale = mask[params.mask_at / 4u + (mask_row(s) + row) * stride + j];
      }
      let y = transpose(v);
      let weights = transpose(w);
      var y0 = y[0];
      var y1 = y[1];
      var y2 = y[2];
      var y3 = y[3];
      let u0 = cell(&y0, c_before.x, weights[0], scale.x);
      let u1 = cell(&y1, c_before.y, weights[1], scale.y);
      let u2 = cell(&y2, c_before.z, weights[2], scale.z);
      let u3 = cell(&y3, c_before.w, weights[3], scale.w);
      v = transpose(mat4x4<f32>(y0, y1, y2, y3));
      var c_after = vec4<f32>(u0.x, u1.x, u2.x, u3.x);
      var result = vec4<f32>(u0.y, u1.y, u2.y, u3.y);
      if (has_lengths) {
        if (s.t >= lengths[params.lengths_at + row]) {
          v = mat4x4<f32>(vec4<f32>(), vec4<f32>(1.0), vec4<f32>(), vec4<f32>()); // F12
          c_after = c_before;
          result = vec4<f32>();
          if (!projected) {
            result = h[params.h_at / 4u + (s.before + row) * stride + j];
          }
        }
      }
      c[params.c_at / 4u + (s.after + row) * stride + j] = c_after;
      if (projected) {
        m[params.m_at / 4u + (s.now + row) * stride + j] = result;
      } else {
        h[params.h_at / 4u + (s.after + row) * stride + j] = result;
      }
    }
    gates[at] = v[0];
    gates[at + stride] = v[1];
    gates[at + 2u * stride] = v[2];
    gates[at + 3u * stride] = v[3];
  }
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_id) li: vec3<u32>) {
  let tiles = (params.hidden + 31u) / 32u;
  let s = step_of(wg.y * wgs.x + wg.x, tiles * ((params.batch + 7u) / 8u), repeat.x);
  let row = s.tile / tiles * 8u;
  let unit = (s.tile % tiles * 8u + li.x) * 4u;
  let base = min(unit, params.hidden - 4u);
  let stride = params.outputs / 4u;
  let first = (params.weight_hh_at + s.d * params.weight_hh_stride) / 4u;
  let before = params.h_at / 4u + s.before * stride;
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
    let i = weights(first, 0u, base, q);
    let f = weights(first, 1u, base, q);
    let g = weights(first, 2u, base, q);
    let o = weights(first, 3u, base, q);
    s0 = add(s0, h[before + min(row, last) * stride + q], i, f, g, o);
    s1 = add(s1, h[before + min(row + 1u, last) * stride + q], i, f, g, o);
    s2 = add(s2, h[before + min(row + 2u, last) * stride + q], i, f, g, o);
    s3 = add(s3, h[before + min(row + 3u, last) * stride + q], i, f, g, o);
    s4 = add(s4, h[before + min(row + 4u, last) * stride + q], i, f, g, o);
    s5 = add(s5, h[before + min(row + 5u, last) * stride + q], i, f, g, o);
    s6 = add(s6, h[before + min(row + 6u, last) * stride + q], i, f, g, o);
    s7 = add(s7, h[before + min(row + 7u, last) * stride + q], i, f, g, o);
  }
  // a loop keeps one copy of the cell's rule: drivers compile what is written out eight times for a second and more
  var sums = array<mat4x4<f32>, 8>(s0, s1, s2, s3, s4, s5, s6, s7);
  for (var e = 0u; e < 8u + wg.z; e++) {
    finish(s, row + e, unit, sums[e]);
  }
}
