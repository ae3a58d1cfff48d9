// One step back through time. dh and dc hold what flows in from outside on entry, and the whole gradient on return.
//
//   dh[after] += dgates[t of the step worked on just before] W_hh
//   dct = dc[after] + dh[after] o (1 - tanh^2 c);   dc[after] = dct;   dc[before] += dct f
//   do = dh tanh c o (1-o);  dg = dct i (1-g^2);  di = dct g i (1-i);  df = dct c[before] f (1-f)
//
// repeat.x = n, steps counted from the last one back; n = T only adds the recurrent part to dh of the initial state.
//
// 8 rows x 8 units a thread in registers, no workgroup memory: the fastest shape where barriers are dear.
// A cell without options; H a multiple of 4. Grid: tiles of units (64), then of rows (8), folded into x and y.
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

@group(0) @binding(0) var<storage, read> weight_hh: array<vec4<f32>>;    // [4H, H]
@group(0) @binding(1) var<storage, read> gates: array<vec4<f32>>;        // [T, B, 4H] activated
@group(0) @binding(2) var<storage, read> c: array<vec4<f32>>;            // [T+1, B, H]
@group(0) @binding(3) var<storage, read_write> dgates: array<vec4<f32>>; // [T, B, 4H] of the pre-activations
@group(0) @binding(4) var<storage, read_write> dh: array<vec4<f32>>;     // [T+1, B, H]
@group(0) @binding(5) var<storage, read_write> dc: array<vec4<f32>>;     // [T+1, B, H]
@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<uniform> repeat: vec4<u32>;

// Never the built-in tanh (NaN for large arguments on some drivers), never exp of an unclamped value.
// clamp may swallow a NaN, so a NaN is handed through by its bits.
fn is_nan(v: vec4<f32>) -> vec4<bool> {
  return (bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
}

fn lstm_tanh(v: vec4<f32>) -> vec4<f32> {
  let a = min(abs(v), vec4<f32>(10.0));
  let z = a * a;
  let p = ((((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z - 3.33332819422e-1) * z * a + a;
  let q = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
  return select(sign(v) * select(q, p, a < vec4<f32>(0.625)), v, is_nan(v));
}

fn madd(sum: vec4<f32>, x: vec4<f32>, w: mat4x4<f32>) -> vec4<f32> {
  return fma(vec4<f32>(x.w), w[3], fma(vec4<f32>(x.z), w[2], fma(vec4<f32>(x.y), w[1], fma(vec4<f32>(x.x), w[0], sum))));
}

// four of the summed gates, four units each
fn weights(k: u32, j: u32) -> mat4x4<f32> {
  let stride = params.hidden / 4u;
  let at = k * stride + j;
  return mat4x4<f32>(weight_hh[at], weight_hh[at + stride], weight_hh[at + 2u * stride], weight_hh[at + 3u * stride]);
}

fn finish(n: u32, t: u32, before: u32, after: u32, row: u32, j: u32, sum: vec4<f32>) {
  let stride = params.hidden / 4u;
  if (row < params.batch && j < stride) {
    let e = (after + row) * stride + j;
    let dht = dh[e] + sum;
    dh[e] = dht;
    if (n < params.steps) {
      let at = (t * params.batch + row) * params.hidden + j;
      let i = gates[at];
      let f = gates[at + stride];
      let g = gates[at + 2u * stride];
      let o = gates[at + 3u * stride];
      let tanh_c = lstm_tanh(c[e]);
      let e_before = (before + row) * stride + j;
      let dct = dc[e] + dht * o * (1.0 - tanh_c * tanh_c);
      dc[e] = dct;
      dc[e_before] += dct * f;
      dgates[at] = dct * g * i * (1.0 - i);
      dgates[at + stride] = dct * c[e_before] * f * (1.0 - f);
      dgates[at + 2u * stride] = dct * i * (1.0 - g * g);
      dgates[at + 3u * stride] = dht * tanh_c * o * (1.0 - o);
    }
  }
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_id) li: vec3<u32>) {
  let tile = wg.y * wgs.x + wg.x;
  let tiles = (params.hidden + 63u) / 64u;
  let n = repeat.x + wg.z;
  let reverse = params.reverse > 0u;
  let after = select(params.steps - n, n, reverse) * params.batch;
  let before = select(params.steps - n - 1u, n + 1u, reverse) * params.batch;
  let t = select(params.steps - n - 1u, n, reverse);
  let t_next = select(params.steps - n, n - 1u, reverse);
  let row = tile / tiles * 8u;
  let j = tile % tiles * 16u + li.x;
  let last = params.hidden / 4u - 1u;
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
  if (n > 0u) {
    let base = t_next * params.batch;
    for (var q = 0u; q < params.hidden + wg.z; q++) {
      let w0 = weights(4u * q, j0);
      let w1 = weights(4u * q, j1);
      let x0 = dgates[(base + min(row, last_row)) * params.hidden + q];
      let x1 = dgates[(base + min(row + 1u, last_row)) * params.hidden + q];
      let x2 = dgates[(base + min(row + 2u, last_row)) * params.hidden + q];
      let x3 = dgates[(base + min(row + 3u, last_row)) * params.hidden + q];
      let x4 = dgates[(base + min(row + 4u, last_row)) * params.hidden + q];
      let x5 = dgates[(base + min(row + 5u, last_row)) * params.hidden + q];
      let x6 = dgates[(base + min(row + 6u, last_row)) * params.hidden + q];
      let x7 = dgates[(base + min(row + 7u, last_row)) * params.hidden + q];
      s0 = mat2x4<f32>(madd(s0[0], x0, w0), madd(s0[1], x0, w1));
      s1 = mat2x4<f32>(madd(s1[0], x1, w0), madd(s1[1], x1, w1));
      s2 = mat2x4<f32>(madd(s2[0], x2, w0), madd(s2[1], x2, w1));
      s3 = mat2x4<f32>(madd(s3[0], x3, w0), madd(s3[1], x3, w1));
      s4 = mat2x4<f32>(madd(s4[0], x4, w0), madd(s4[1], x4, w1));
      s5 = mat2x4<f32>(madd(s5[0], x5, w0), madd(s5[1], x5, w1));
      s6 = mat2x4<f32>(madd(s6[0], x6, w0), madd(s6[1], x6, w1));
      s7 = mat2x4<f32>(madd(s7[0], x7, w0), madd(s7[1], x7, w1));
    }
  }
  finish(n, t, before, after, row, j, s0[0]);
  finish(n, t, before, after, row, j + 8u, s0[1]);
  finish(n, t, before, after, row + 1u, j, s1[0]);
  finish(n, t, before, after, row + 1u, j + 8u, s1[1]);
  finish(n, t, before, after, row + 2u, j, s2[0]);
  finish(n, t, before, after, row + 2u, j + 8u, s2[1]);
  finish(n, t, before, after, row + 3u, j, s3[0]);
  finish(n, t, before, after, row + 3u, j + 8u, s3[1]);
  finish(n, t, before, after, row + 4u, j, s4[0]);
  finish(n, t, before, after, row + 4u, j + 8u, s4[1]);
  finish(n, t, before, after, row + 5u, j, s5[0]);
  finish(n, t, before, after, row + 5u, j + 8u, s5[1]);
  finish(n, t, before, after, row + 6u, j, s6[0]);
  finish(n, t, before, after, row + 6u, j + 8u, s6[1]);
  finish(n, t, before, after, row + 7u, j, s7[0]);
  finish(n, t, before, after, row + 7u, j + 8u, s7[1]);
}
