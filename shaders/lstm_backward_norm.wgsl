// From dct of one step through the norm of the cell to i, f, g and the cell before.
//
//   du = scale (d - mean(d) - x mean(d x)),  d = gain dct      x, scale: the normalised cell and 1 / standard deviation
//   di = du g i (1-i);  df = du c[before] f (1-f);  dg = du i (1-g^2);  dc[before] += du f
//
// kept in dnormalized as gradients after gain and shift; lstm_backward_norm_gates does the norms of the gates.
// repeat.x = n, steps counted from the last one back; n = T has nothing to do.
//
// A workgroup of 64 threads a row; a thread owns units lane, lane + 64, .. Grid: rows, folded into x and y.
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

@group(0) @binding(0) var<storage, read> gates: array<f32>;             // [T, B, 4H] activated
@group(0) @binding(1) var<storage, read> c: array<f32>;                 // [T+1, B, H]
@group(0) @binding(2) var<storage, read_write> dc: array<f32>;          // [T+1, B, H]
@group(0) @binding(3) var<storage, read> peephole: array<f32>;          // [3, H] to i, f, o
@group(0) @binding(4) var<storage, read> mask: array<f32>;              // [T or 1, B, H]
@group(0) @binding(5) var<storage, read> layer_norm: array<f32>;        // gains, shifts: [2, 5, H] of i f g o c
@group(0) @binding(6) var<storage, read> normalized: array<f32>;        // [T, B, 5H + 5]
@group(0) @binding(7) var<storage, read_write> dnormalized: array<f32>; // [T, B, 5, H]
@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<uniform> repeat: vec4<u32>;

var<workgroup> partial: array<vec4<f32>, 64>;

// the sum over all threads, in a fixed order
fn total(lane: u32, value: vec4<f32>) -> vec4<f32> {
  workgroupBarrier();
  partial[lane] = value;
  for (var reach = 32u; reach > 0u; reach /= 2u) {
    workgroupBarrier();
    if (lane < reach) {
      partial[lane] = partial[lane] + partial[lane + reach];
    }
  }
  workgroupBarrier();
  return partial[0];
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  // where the grid is folded, the last rows may lie behind the batch: they do the last row's work, and write nothing
  let tile = wg.y * wgs.x + wg.x;
  let row = min(tile, params.batch - 1u);
  let n = min(repeat.x, params.steps - 1u);
  let mine = tile < params.batch && repeat.x < params.steps;
  let reverse = params.reverse > 0u;
  let t = select(params.steps - n - 1u, n, reverse);
  let after = (select(params.steps - n, n, reverse) * params.batch + row) * params.hidden;
  let before = (select(params.steps - n - 1u, n + 1u, reverse) * params.batch + row) * params.hidden;
  let at = (t * params.batch + row) * 4u * params.hidden;
  let kept = (t * params.batch + row) * 5u * (params.hidden + 1u);
  let to = (t * params.batch + row) * 5u * params.hidden;
  let hidden = params.hidden + wg.z;
  var ended = false;
  if (has_lengths) {
    // a sigmoid is never 0
    ended = gates[at + 3u * hidden] == 0.0;
  }
  var sums = vec4<f32>();
  for (var j = lane; j < hidden; j += 64u) {
    var d = layer_norm[4u * hidden + j] * dc[after + j];
    if (has_cell_clip) {
      if (abs(c[after + j]) >= params.cell_clip) {
        d = 0.0;
      }
    }
    sums += vec4<f32>(d, d * normalized[kept + 4u * hidden + j], 0.0, 0.0);
  }
  let means = total(lane, sums) / f32(params.hidden);
  let scale = normalized[kept + 5u * hidden + 4u];
  if (mine) {
    for (var j = lane; j < hidden; j += 64u) {
      var dct = dc[after + j];
      if (has_cell_clip) {
        if (!ended && abs(c[after + j]) >= params.cell_clip) {
          dct = 0.0;
        }
      }
      let d = layer_norm[4u * hidden + j] * dct;
      let du = select(scale * (d - means.x - normalized[kept + 4u * hidden + j] * means.y), dct, ended);
      let i = gates[at + j];
      let f = gates[at + hidden + j];
      let g = gates[at + 2u * hidden + j];
      let c_before = c[before + j];
      var masked = 1.0;
      if (has_mask) {
        masked = mask[(t % params.mask_steps * params.batch + row) * hidden + j];
      }
      var d_i = du * g * masked * i * (1.0 - i);
      var d_f = du * c_before * f * (1.0 - f);
      if (coupled) {
        d_i = du * (g * masked - c_before) * i * (1.0 - i);
        d_f = 0.0;
      }
      var dc_next = du * f;
      if (has_peephole) {
        dc_next += d_i * peephole[j] + d_f * peephole[hidden + j];
      }
      dc[before + j] += dc_next;
      dnormalized[to + j] = d_i;
      dnormalized[to + hidden + j] = d_f;
      dnormalized[to + 2u * hidden + j] = du * i * masked * (1.0 - g * g);
      dnormalized[to + 4u * hidden + j] = select(dct, 0.0, ended);
    }
  }
}
