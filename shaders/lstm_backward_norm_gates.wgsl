// The gradients of i, f, g, o of one step through their norms.
//
//   dz = scale (d - mean(d) - x mean(d x)),  d = gain dy      x, scale: the normalised gate and 1 / standard deviation
//
// dy comes from dnormalized, for o from dgates, and is kept in dnormalized. Past a row's length scale is 0.
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

@group(0) @binding(0) var<storage, read_write> dgates: array<f32>;      // [T, B, 4H]
@group(0) @binding(1) var<storage, read> layer_norm: array<f32>;        // gains, shifts: [2, 5, H] of i f g o c
@group(0) @binding(2) var<storage, read> normalized: array<f32>;        // [T, B, 5H + 5]
@group(0) @binding(3) var<storage, read_write> dnormalized: array<f32>; // [T, B, 5, H]
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
  let t = select(params.steps - n - 1u, n, params.reverse > 0u);
  let at = (t * params.batch + row) * 4u * params.hidden;
  let kept = (t * params.batch + row) * 5u * (params.hidden + 1u);
  let to = (t * params.batch + row) * 5u * params.hidden;
  let hidden = params.hidden + wg.z;
  var sum = vec4<f32>();
  var sum_x = vec4<f32>();
  for (var j = lane; j < hidden; j += 64u) {
    let dy = vec4<f32>(dnormalized[to + j], dnormalized[to + hidden + j], dnormalized[to + 2u * hidden + j], dgates[at + 3u * hidden + j]);
    let gain = vec4<f32>(layer_norm[j], layer_norm[hidden + j], layer_norm[2u * hidden + j], layer_norm[3u * hidden + j]);
    let x = vec4<f32>(normalized[kept + j], normalized[kept + hidden + j], normalized[kept + 2u * hidden + j], normalized[kept + 3u * hidden + j]);
    sum += gain * dy;
    sum_x += gain * dy * x;
  }
  let mean = total(lane, sum) / f32(params.hidden);
  let mean_x = total(lane, sum_x) / f32(params.hidden);
  let scale = vec4<f32>(normalized[kept + 5u * hidden], normalized[kept + 5u * hidden + 1u], normalized[kept + 5u * hidden + 2u], normalized[kept + 5u * hidden + 3u]);
  if (mine) {
    for (var j = lane; j < hidden; j += 64u) {
      let dy = vec4<f32>(dnormalized[to + j], dnormalized[to + hidden + j], dnormalized[to + 2u * hidden + j], dgates[at + 3u * hidden + j]);
      let gain = vec4<f32>(layer_norm[j], layer_norm[hidden + j], layer_norm[2u * hidden + j], layer_norm[3u * hidden + j]);
      let x = vec4<f32>(normalized[kept + j], normalized[kept + hidden + j], normalized[kept + 2u * hidden + j], normalized[kept + 3u * hidden + j]);
      let dz = scale * (gain * dy - mean - x * mean_x);
      dnormalized[to + 3u * hidden + j] = dy.w;
      dgates[at + j] = dz.x;
      dgates[at + hidden + j] = dz.y;
      dgates[at + 2u * hidden + j] = dz.z;
      dgates[at + 3u * hidden + j] = dz.w;
    }
  }
}
