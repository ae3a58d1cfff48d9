// One step back through time, as lstm_backward, for software adapters. dh and dc hold what flows in from outside on
// entry, and the whole gradient on return.
//
//   dh[after] += dgates[t of the step worked on just before] W_hh
//   then the cell's rule: lstm_output_back and lstm_state_back of lstm_cell.wgsl
//
// Two stages with a projection: first dh alone, then from_h: dh[after] W_hr in place of dh in the cell. With a layer
// norm the cell ends at dct and do; lstm_backward_norm does the rest.
// repeat.x = n, steps counted from the last one back; n = T only adds the recurrent part to dh of the initial state.
//
// 8 rows x 8 units a thread in registers, no workgroup memory: the fastest shape where barriers are dear.
// H, P and every first element multiples of 4. Grid: tiles of units (64), then of rows (8), then directions, folded.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

override from_h: bool;
override cell: bool;
override has_lengths: bool;
override has_output_clip: bool;
override normed: bool;

@group(0) @binding(0) var<storage, read> weight: array<vec4<f32>>;       // weight_hh [4H, P], or from_h weight_hr [P, H], of each direction
@group(0) @binding(1) var<storage, read> gates: array<vec4<f32>>;        // [D, T, B, 4H] activated
@group(0) @binding(2) var<storage, read> states: array<vec4<f32>>;       // c [D, T+1, B, H]; h [D, T+1, B, P] where the cell comes later
@group(0) @binding(3) var<storage, read_write> dgates: array<vec4<f32>>; // [D, T, B, 4H] of the pre-activations
@group(0) @binding(4) var<storage, read_write> dh: array<vec4<f32>>;     // [D, T+1, B, P]
@group(0) @binding(5) var<storage, read_write> dc: array<vec4<f32>>;     // [D, T+1, B, H]
@group(0) @binding(6) var<storage, read> peephole: array<vec4<f32>>;     // [3, H] to i, f, o, of each direction
@group(0) @binding(7) var<storage, read> mask: array<vec4<f32>>;         // [D, T or 1, B, H]

// four of the summed values, four units each
fn weights(first: u32, k: u32, j: u32, stride: u32) -> mat4x4<f32> {
  let at = first + k * stride + j;
  return mat4x4<f32>(weight[at], weight[at + stride], weight[at + 2u * stride], weight[at + 3u * stride]);
}

// four of the summed values of one row
fn summed(at: u32) -> vec4<f32> {
  if (from_h) {
    return dh[at];
  }
  return dgates[at];
}

fn output_clip_back(d: f32, v: f32) -> f32 {
  return select(d, 0.0, abs(v) >= params.output_clip);
}

fn finish(n: u32, s: Step, after: u32, row: u32, j: u32, stride: u32, sum: vec4<f32>) {
  if (row < params.batch && j < stride) {
    let quads = params.hidden / 4u;
    let at = params.gates_at / 4u + (s.now + row) * params.hidden + j;
    let e = (after + row) * stride + j;
    let e_before = (s.before + row) * stride + j;
    let states_at = select(params.h_at, params.c_at, cell) / 4u;
    let is_step = n < params.steps;
    var ended = false;
    if (has_lengths && is_step) {
      // a sigmoid is never 0
      ended = gates[params.gates_at / 4u + (s.now + row) * params.hidden + 3u * quads].x == 0.0;
    }
    var dht = sum;
    if (!from_h) {
      dht += dh[params.dh_at / 4u + e];
      if (ended) {
        dh[params.dh_at / 4u + e_before] += dht; // B11
      } else if (has_output_clip && is_step) {
        let v = states[states_at + e];
        dht = vec4<f32>(output_clip_back(dht.x, v.x), output_clip_back(dht.y, v.y), output_clip_back(dht.z, v.z), output_clip_back(dht.w, v.w));
      }
      dh[params.dh_at / 4u + e] = dht;
    }
    if (cell && is_step) {
      let c_after = states[states_at + e];
      let o = gates[at + 3u * quads];
      var w = mat3x4<f32>();
      if (has_peephole) {
        let p = (params.peephole_at + s.d * params.peephole_stride) / 4u + j;
        w = mat3x4<f32>(peephole[p], peephole[p + quads], peephole[p + 2u * quads]);
      }
      let before = dc[params.dc_at / 4u + e];
      let o0 = lstm_output_back(dht.x, o.x, c_after.x, before.x, w[2].x);
      let o1 = lstm_output_back(dht.y, o.y, c_after.y, before.y, w[2].y);
      let o2 = lstm_output_back(dht.z, o.z, c_after.z, before.z, w[2].z);
      let o3 = lstm_output_back(dht.w, o.w, c_after.w, before.w, w[2].w);
      let to = params.dgates_at / 4u + (s.now + row) * params.hidden + j;
      dc[params.dc_at / 4u + e] = vec4<f32>(o0.y, o1.y, o2.y, o3.y);
      dgates[to + 3u * quads] = vec4<f32>(o0.x, o1.x, o2.x, o3.x);
      if (!normed) {
        var du = vec4<f32>(o0.y, o1.y, o2.y, o3.y);
        if (!ended) {
          du = vec4<f32>(lstm_clip_back(du.x, c_after.x), lstm_clip_back(du.y, c_after.y), lstm_clip_back(du.z, c_after.z), lstm_clip_back(du.w, c_after.w)); // B5
        }
        var scale = vec4<f32>(1.0);
        if (has_mask) {
          scale = mask[params.mask_at / 4u + (mask_row(s) + row) * quads + j];
        }
        let ifg = transpose(mat3x4<f32>(gates[at], gates[at + quads], gates[at + 2u * quads]));
        let c_before = states[states_at + e_before];
        let d = transpose(mat4x4<f32>(
          lstm_state_back(du.x, ifg[0], c_before.x, vec2<f32>(w[0].x, w[1].x), scale.x),
          lstm_state_back(du.y, ifg[1], c_before.y, vec2<f32>(w[0].y, w[1].y), scale.y),
          lstm_state_back(du.z, ifg[2], c_before.z, vec2<f32>(w[0].z, w[1].z), scale.z),
          lstm_state_back(du.w, ifg[3], c_before.w, vec2<f32>(w[0].w, w[1].w), scale.w),
        ));
        dc[params.dc_at / 4u + e_before] += d[3];
        dgates[to] = d[0];
        dgates[to + quads] = d[1];
        dgates[to + 2u * quads] = d[2];
      }
    }
  }
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_id) li: vec3<u32>) {
  // n-th step from the end; at n = T the "state after" is the initial state
  let n = repeat.x + wg.z;
  let width = select(params.hidden, params.outputs / 4u, from_h) + wg.z;
  let stride = select(params.outputs, params.hidden, from_h) / 4u + wg.z;
  let tiles = (stride + 15u) / 16u;
  let all = tiles * ((params.batch + 7u) / 8u);
  let tile = wg.y * wgs.x + wg.x;
  let s = step_of(tile, all, params.steps - 1u - min(n, params.steps - 1u));
  let after = select(s.after, s.before, n == params.steps);
  let row = s.tile / tiles * 8u;
  let j = s.tile % tiles * 16u + li.x;
  let last = stride - 1u;
  let last_row = params.batch - 1u;
  let j0 = min(j, last);
  let j1 = min(j + 8u, last);
  var s0 = mat2x4<f32>();
  var s1 = mat2x4<f32>();
  var s2 = mat2x4<f32>();
  var s3 = mat2x4<f32>();
  var s4 = mat2x4<f32>();
  var s5 = mat2x4<f32>();
  var s6 = mat2x4<f32>();
  var s7 = mat2x4<f32>();
  if (n > 0u || from_h) {
    let first = select(params.weight_hh_at + s.d * params.weight_hh_stride, params.weight_hr_at + s.d * params.weight_hr_stride, from_h) / 4u;
    // the rows of dgates that are summed over, or of dh
    let source = select(params.dgates_at / 4u + step_of(tile, all, params.steps - n).now * width, params.dh_at / 4u + after * width, from_h);
    for (var q = 0u; q < width; q++) {
      let w0 = weights(first, 4u * q, j0, stride);
      let w1 = weights(first, 4u * q, j1, stride);
      let x0 = summed(source + min(row, last_row) * width + q);
      let x1 = summed(source + min(row + 1u, last_row) * width + q);
      let x2 = summed(source + min(row + 2u, last_row) * width + q);
      let x3 = summed(source + min(row + 3u, last_row) * width + q);
      let x4 = summed(source + min(row + 4u, last_row) * width + q);
      let x5 = summed(source + min(row + 5u, last_row) * width + q);
      let x6 = summed(source + min(row + 6u, last_row) * width + q);
      let x7 = summed(source + min(row + 7u, last_row) * width + q);
      s0 = mat2x4<f32>(madd(s0[0], x0, w0), madd(s0[1], x0, w1)); // B1, B2
      s1 = mat2x4<f32>(madd(s1[0], x1, w0), madd(s1[1], x1, w1));
      s2 = mat2x4<f32>(madd(s2[0], x2, w0), madd(s2[1], x2, w1));
      s3 = mat2x4<f32>(madd(s3[0], x3, w0), madd(s3[1], x3, w1));
      s4 = mat2x4<f32>(madd(s4[0], x4, w0), madd(s4[1], x4, w1));
      s5 = mat2x4<f32>(madd(s5[0], x5, w0), madd(s5[1], x5, w1));
      s6 = mat2x4<f32>(madd(s6[0], x6, w0), madd(s6[1], x6, w1));
      s7 = mat2x4<f32>(madd(s7[0], x7, w0), madd(s7[1], x7, w1));
    }
  }
  // a loop keeps one copy of the cell's rule: drivers compile what is written out sixteen times for a second and more
  var sums = array<vec4<f32>, 16>(s0[0], s0[1], s1[0], s1[1], s2[0], s2[1], s3[0], s3[1], s4[0], s4[1], s5[0], s5[1], s6[0], s6[1], s7[0], s7[1]);
  for (var e = 0u; e < 16u + wg.z; e++) {
    finish(n, s, after, row + e / 2u, j + e % 2u * 8u, stride, sums[e]);
  }
}
