// h[after] = m W_hr^T for one step, as lstm_forward_project, for software adapters.
//
// repeat.x = n, the n-th step worked on; t, before and after follow from the direction. Past a row's length h stays.
//
// 8 rows x 4 outputs a thread in registers, no workgroup memory. H, P and every first element multiples of 4. Grid:
// tiles of outputs (32), then of rows (8), then directions, folded into x and y.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

override has_lengths: bool;
override has_output_clip: bool;

@group(0) @binding(0) var<storage, read> weight_hr: array<vec4<f32>>; // [P, H] of each direction
@group(0) @binding(1) var<storage, read_write> m: array<vec4<f32>>;   // [D, T, B, H]
@group(0) @binding(2) var<storage, read_write> h: array<vec4<f32>>;   // [D, T+1, B, P]
@group(0) @binding(3) var<storage, read> lengths: array<u32>;         // [B]

fn finish(s: Step, row: u32, unit: u32, sum: vec4<f32>) {
  if (row < params.batch && unit < params.outputs) {
    let stride = params.outputs / 4u;
    var v = sum;
    if (has_output_clip) {
      v = vec4<f32>(clipped(v.x, params.output_clip), clipped(v.y, params.output_clip), clipped(v.z, params.output_clip), clipped(v.w, params.output_clip));
    }
    if (has_lengths) {
      if (s.t >= lengths[params.lengths_at + row]) {
        v = h[params.h_at / 4u + (s.before + row) * stride + unit / 4u];
      }
    }
    h[params.h_at / 4u + (s.after + row) * stride + unit / 4u] = v;
  }
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_id) li: vec3<u32>) {
  let tiles = (params.outputs + 31u) / 32u;
  let s = step_of(wg.y * wgs.x + wg.x, tiles * ((params.batch + 7u) / 8u), repeat.x);
  let row = s.tile / tiles * 8u;
  let unit = (s.tile % tiles * 8u + li.x) * 4u;
  let stride = params.hidden / 4u;
  let first = (params.weight_hr_at + s.d * params.weight_hr_stride) / 4u + min(unit, params.outputs - 4u) * stride;
  let now = params.m_at / 4u + s.now * stride;
  let last = params.batch - 1u;
  var s0 = mat4x4<f32>();
  var s1 = mat4x4<f32>();
  for (var q = 0u; q < stride + wg.z; q++) {
    let at = first + q;
    let w = transpose(mat4x4<f32>(weight_hr[at], weight_hr[at + stride], weight_hr[at + 2u * stride], weight_hr[at + 3u * stride]));
    // a column a row
    s0 = mat4x4<f32>(
      madd(s0[0], m[now + min(row, last) * stride + q], w),
      madd(s0[1], m[now + min(row + 1u, last) * stride + q], w),
      madd(s0[2], m[now + min(row + 2u, last) * stride + q], w),
      madd(s0[3], m[now + min(row + 3u, last) * stride + q], w),
    );
    s1 = mat4x4<f32>(
      madd(s1[0], m[now + min(row + 4u, last) * stride + q], w),
      madd(s1[1], m[now + min(row + 5u, last) * stride + q], w),
      madd(s1[2], m[now + min(row + 6u, last) * stride + q], w),
      madd(s1[3], m[now + min(row + 7u, last) * stride + q], w),
    );
  }
  finish(s, row, unit, s0[0]); // F11
  finish(s, row + 1u, unit, s0[1]);
  finish(s, row + 2u, unit, s0[2]);
  finish(s, row + 3u, unit, s0[3]);
  finish(s, row + 4u, unit, s1[0]);
  finish(s, row + 5u, unit, s1[1]);
  finish(s, row + 6u, unit, s1[2]);
  finish(s, row + 7u, unit, s1[3]);
}
