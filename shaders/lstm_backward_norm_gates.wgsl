// The gradients of i, f, g, o of one step through their norms.
//
//   dz = scale (d - mean(d) - x mean(d x)),  d = gain dy      x, scale: the normalised gate and 1 / standard deviation
//
// dy comes from dnormalized, for o from dgates, and is kept in dnormalized. Past a row's length scale is 0.
// repeat.x = n, steps counted from the last one back; n = T has nothing to do.
//
// A workgroup of 64 threads a row; a thread owns units lane, lane + 64, .. Grid: rows of every direction, folded into x and y.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

@group(0) @binding(0) var<storage, read_write> dgates: array<f32>;      // [D, T, B, 4H]
@group(0) @binding(1) var<storage, read> layer_norm: array<f32>;        // gains, shifts: [2, 5, H] of i f g o c
@group(0) @binding(2) var<storage, read> normalized: array<f32>;        // [D, T, B, 5H + 5]
@group(0) @binding(3) var<storage, read_write> dnormalized: array<f32>; // [D, T, B, 5, H]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  // where the grid is folded, the last rows may lie behind the batch: they do the last row's work, and write nothing
  let n = params.steps - 1u - min(repeat.x, params.steps - 1u);
  let s = step_of(wg.y * wgs.x + wg.x, params.batch, n);
  let row = min(s.tile, params.batch - 1u);
  let mine = s.tile < params.batch && repeat.x < params.steps;
  let at = params.dgates_at + (s.now + row) * 4u * params.hidden;
  let kept = params.normalized_at + (s.now + row) * 5u * (params.hidden + 1u);
  let to = params.dnormalized_at + (s.now + row) * 5u * params.hidden;
  let norm = params.layer_norm_at + s.d * params.layer_norm_stride;
  let hidden = params.hidden + wg.z;
  var sum = vec4<f32>();
  var sum_x = vec4<f32>();
  for (var j = lane; j < hidden; j += 64u) {
    let dy = vec4<f32>(dnormalized[to + j], dnormalized[to + hidden + j], dnormalized[to + 2u * hidden + j], dgates[at + 3u * hidden + j]);
    let gain = vec4<f32>(layer_norm[norm + j], layer_norm[norm + hidden + j], layer_norm[norm + 2u * hidden + j], layer_norm[norm + 3u * hidden + j]);
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
      let gain = vec4<f32>(layer_norm[norm + j], layer_norm[norm + hidden + j], layer_norm[norm + 2u * hidden + j], layer_norm[norm + 3u * hidden + j]);
      let x = vec4<f32>(normalized[kept + j], normalized[kept + hidden + j], normalized[kept + 2u * hidden + j], normalized[kept + 3u * hidden + j]);
      let dz = scale * (gain * dy - mean - x * mean_x); // B10
      dnormalized[to + 3u * hidden + j] = dy.w;
      dgates[at + j] = dz.x;
      dgates[at + hidden + j] = dz.y;
      dgates[at + 2u * hidden + j] = dz.z;
      dgates[at + 3u * hidden + j] = dz.w;
    }
  }
}
