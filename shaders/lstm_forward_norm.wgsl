// The cell of one step from pre-activations in gates, each gate and the new cell normalised over its units.
//
//   y = gain norm(z) + shift, then the cell's rule: lstm_cell.wgsl
//   c[after] = gain norm(f c[before] + i g) + shift;          output = o tanh c[after]
//   norm(z) = (z - mean) / sqrt(variance + epsilon), kept in normalized with 1 / sqrt(variance + epsilon) behind it
//
// repeat.x = n, the n-th step worked on. A workgroup of 64 threads a row; a thread owns units lane, lane + 64, ..
// Grid: rows of every direction, folded into x and y. `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel
// anew for every value.

override has_lengths: bool;
override projected: bool;

@group(0) @binding(0) var<storage, read_write> gates: array<f32>;      // [D, T, B, 4H]
@group(0) @binding(1) var<storage, read_write> c: array<f32>;          // [D, T+1, B, H]
@group(0) @binding(2) var<storage, read_write> output: array<f32>;     // h [D, T+1, B, H], or m [D, T, B, H] with a projection
@group(0) @binding(3) var<storage, read> lengths: array<u32>;          // [B]
@group(0) @binding(4) var<storage, read> peephole: array<f32>;         // [3, H] to i, f, o
@group(0) @binding(5) var<storage, read> mask: array<f32>;             // [D, T or 1, B, H]
@group(0) @binding(6) var<storage, read> layer_norm: array<f32>;       // gains, shifts: [2, 5, H] of i f g o c
@group(0) @binding(7) var<storage, read_write> normalized: array<f32>; // [D, T, B, 5H + 5]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  // where the grid is folded, the last rows may lie behind the batch: they do the last row's work, and write nothing
  let s = step_of(wg.y * wgs.x + wg.x, params.batch, repeat.x);
  let row = min(s.tile, params.batch - 1u);
  let mine = s.tile < params.batch;
  let before = (s.before + row) * params.hidden;
  let after = (s.after + row) * params.hidden;
  let at = params.gates_at + (s.now + row) * 4u * params.hidden;
  let kept = params.normalized_at + (s.now + row) * 5u * (params.hidden + 1u);
  let norm = params.layer_norm_at + s.d * params.layer_norm_stride;
  let w = params.peephole_at + s.d * params.peephole_stride;
  let hidden = params.hidden + wg.z;
  var ended = false;
  if (has_lengths) {
    ended = s.t >= lengths[params.lengths_at + row];
  }
  let count = f32(params.hidden);

  var sum = vec4<f32>();
  for (var j = lane; j < hidden; j += 64u) {
    sum += vec4<f32>(gates[at + j], gates[at + hidden + j], gates[at + 2u * hidden + j], gates[at + 3u * hidden + j]);
  }
  let mean = total(lane, sum) / count;
  sum = vec4<f32>();
  for (var j = lane; j < hidden; j += 64u) {
    let d = vec4<f32>(gates[at + j], gates[at + hidden + j], gates[at + 2u * hidden + j], gates[at + 3u * hidden + j]) - mean;
    sum += d * d;
  }
  let scale = 1.0 / sqrt(total(lane, sum) / count + params.epsilon);

  // i, f, g, the pre-activation of o, and the cell before its norm
  var cells = 0.0;
  for (var j = lane; j < hidden; j += 64u) {
    let z = vec4<f32>(gates[at + j], gates[at + hidden + j], gates[at + 2u * hidden + j], gates[at + 3u * hidden + j]);
    let x = select((z - mean) * scale, vec4<f32>(), ended);
    let g = norm + j;
    let gain = vec4<f32>(layer_norm[g], layer_norm[g + hidden], layer_norm[g + 2u * hidden], layer_norm[g + 3u * hidden]);
    let b = g + 5u * hidden;
    let shift = vec4<f32>(layer_norm[b], layer_norm[b + hidden], layer_norm[b + 2u * hidden], layer_norm[b + 3u * hidden]);
    let y = gain * x + shift; // F3
    var peepholes = vec2<f32>();
    if (has_peephole) {
      peepholes = vec2<f32>(peephole[w + j], peephole[w + hidden + j]);
    }
    var kept_share = 1.0;
    if (has_mask) {
      kept_share = mask[params.mask_at + (mask_row(s) + row) * hidden + j];
    }
    let state = lstm_state(y.xyz, c[params.c_at + before + j], peepholes, kept_share);
    cells += state.w;
    if (mine) {
      normalized[kept + j] = x.x;
      normalized[kept + hidden + j] = x.y;
      normalized[kept + 2u * hidden + j] = x.z;
      normalized[kept + 3u * hidden + j] = x.w;
      gates[at + j] = select(state.x, 0.0, ended);
      gates[at + hidden + j] = select(state.y, 1.0, ended);
      gates[at + 2u * hidden + j] = select(state.z, 0.0, ended);
      gates[at + 3u * hidden + j] = y.w;
      c[params.c_at + after + j] = state.w;
    }
  }
  let mean_c = total(lane, vec4<f32>(cells)).x / count;
  var squares = 0.0;
  for (var j = lane; j < hidden; j += 64u) {
    let d = c[params.c_at + after + j] - mean_c;
    squares += d * d;
  }
  let scale_c = 1.0 / sqrt(total(lane, vec4<f32>(squares)).x / count + params.epsilon);

  if (mine) {
    for (var j = lane; j < hidden; j += 64u) {
      let x = select((c[params.c_at + after + j] - mean_c) * scale_c, 0.0, ended);
      var cell = lstm_clip(layer_norm[norm + 4u * hidden + j] * x + layer_norm[norm + 9u * hidden + j]); // F8
      var w_o = 0.0;
      if (has_peephole) {
        w_o = peephole[w + 2u * hidden + j];
      }
      let made = lstm_output(gates[at + 3u * hidden + j], cell, w_o);
      var result = made.y;
      if (ended) {
        cell = c[params.c_at + before + j]; // F12
        result = 0.0;
        if (!projected) {
          result = output[params.h_at + before + j];
        }
      }
      normalized[kept + 4u * hidden + j] = x;
      gates[at + 3u * hidden + j] = select(made.x, 0.0, ended);
      c[params.c_at + after + j] = cell;
      if (projected) {
        output[params.m_at + (s.now + row) * hidden + j] = result;
      } else {
        output[params.h_at + after + j] = result;
      }
    }
    if (lane == 0u) {
      normalized[kept + 5u * hidden] = select(scale.x, 0.0, ended);
      normalized[kept + 5u * hidden + 1u] = select(scale.y, 0.0, ended);
      normalized[kept + 5u * hidden + 2u] = select(scale.z, 0.0, ended);
      normalized[kept + 5u * hidden + 3u] = select(scale.w, 0.0, ended);
      normalized[kept + 5u * hidden + 4u] = select(scale_c, 0.0, ended);
    }
  }
}
