// From dct of one step through the norm of the cell to i, f, g and the cell before.
//
//   du = scale (d - mean(d) - x mean(d x)),  d = gain dct      x, scale: the normalised cell and 1 / standard deviation
//   then lstm_state_back of lstm_cell.wgsl
//
// kept in dnormalized as gradients after gain and shift; lstm_backward_norm_gates does the norms of the gates.
// repeat.x = n, steps counted from the last one back; n = T has nothing to do.
//
// A workgroup of 64 threads a row; a thread owns units lane, lane + 64, .. Grid: rows of every direction, folded into x and y.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

override has_lengths: bool;

@group(0) @binding(0) var<storage, read> gates: array<f32>;             // [D, T, B, 4H] activated
@group(0) @binding(1) var<storage, read> c: array<f32>;                 // [D, T+1, B, H]
@group(0) @binding(2) var<storage, read_write> dc: array<f32>;          // [D, T+1, B, H]
@group(0) @binding(3) var<storage, read> peephole: array<f32>;          // [3, H] to i, f, o
@group(0) @binding(4) var<storage, read> mask: array<f32>;              // [D, T or 1, B, H]
@group(0) @binding(5) var<storage, read> layer_norm: array<f32>;        // gains, shifts: [2, 5, H] of i f g o c
@group(0) @binding(6) var<storage, read> normalized: array<f32>;        // [D, T, B, 5H + 5]
@group(0) @binding(7) var<storage, read_write> dnormalized: array<f32>; // [D, T, B, 5, H]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  // where the grid is folded, the last rows may lie behind the batch: they do the last row's work, and write nothing
  let n = params.steps - 1u - min(repeat.x, params.steps - 1u);
  let s = step_of(wg.y * wgs.x + wg.x, params.batch, n);
  let row = min(s.tile, params.batch - 1u);
  let mine = s.tile < params.batch && repeat.x < params.steps;
  let after = (s.after + row) * params.hidden;
  let before = (s.before + row) * params.hidden;
  let at = params.gates_at + (s.now + row) * 4u * params.hidden;
  let kept = params.normalized_at + (s.now + row) * 5u * (params.hidden + 1u);
  let to = params.dnormalized_at + (s.now + row) * 5u * params.hidden;
  let gain = params.layer_norm_at + s.d * params.layer_norm_stride + 4u * params.hidden;
  let w = params.peephole_at + s.d * params.peephole_stride;
  let hidden = params.hidden + wg.z;
  var ended = false;
  if (has_lengths) {
    // a sigmoid is never 0
    ended = gates[at + 3u * hidden] == 0.0;
  }
  var sums = vec4<f32>();
  for (var j = lane; j < hidden; j += 64u) {
    let d = layer_norm[gain + j] * lstm_clip_back(dc[params.dc_at + after + j], c[params.c_at + after + j]);
    sums += vec4<f32>(d, d * normalized[kept + 4u * hidden + j], 0.0, 0.0);
  }
  let means = total(lane, sums) / f32(params.hidden);
  let scale = normalized[kept + 5u * hidden + 4u];
  if (mine) {
    for (var j = lane; j < hidden; j += 64u) {
      var dct = dc[params.dc_at + after + j];
      if (!ended) {
        dct = lstm_clip_back(dct, c[params.c_at + after + j]);
      }
      let d = layer_norm[gain + j] * dct;
      let du = select(scale * (d - means.x - normalized[kept + 4u * hidden + j] * means.y), dct, ended); // B5
      var masked = 1.0;
      if (has_mask) {
        masked = mask[params.mask_at + (mask_row(s) + row) * hidden + j];
      }
      var peepholes = vec2<f32>();
      if (has_peephole) {
        peepholes = vec2<f32>(peephole[w + j], peephole[w + hidden + j]);
      }
      let ifg = vec3<f32>(gates[at + j], gates[at + hidden + j], gates[at + 2u * hidden + j]);
      let state = lstm_state_back(du, ifg, c[params.c_at + before + j], peepholes, masked);
      dc[params.dc_at + before + j] += state.w;
      dnormalized[to + j] = state.x;
      dnormalized[to + hidden + j] = state.y;
      dnormalized[to + 2u * hidden + j] = state.z;
      dnormalized[to + 4u * hidden + j] = select(dct, 0.0, ended);
    }
  }
}
