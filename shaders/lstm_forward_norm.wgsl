// The cell of one step from pre-activations in gates, each gate and the new cell normalised over its units.
//
//   y = gain norm(z) + shift;  i, f, o = sigmoid, g = tanh    (forget_bias is added to f; other options: kernels/recurrence.rs)
//   c[after] = gain norm(f c[before] + i g) + shift;          output = o tanh c[after]
//   norm(z) = (z - mean) / sqrt(variance + epsilon), kept in normalized with 1 / sqrt(variance + epsilon) behind it
//
// repeat.x = n, the n-th step worked on. A workgroup of 64 threads a row; a thread owns units lane, lane + 64, ..
// Grid: rows, folded into x and y. `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel
// anew for every value.

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
override projected: bool = false;

@group(0) @binding(0) var<storage, read_write> gates: array<f32>;      // [T, B, 4H]
@group(0) @binding(1) var<storage, read_write> c: array<f32>;          // [T+1, B, H]
@group(0) @binding(2) var<storage, read_write> output: array<f32>;     // h [T+1, B, H], or m [T, B, H] with a projection
@group(0) @binding(3) var<storage, read> lengths: array<u32>;          // [B]
@group(0) @binding(4) var<storage, read> peephole: array<f32>;         // [3, H] to i, f, o
@group(0) @binding(5) var<storage, read> mask: array<f32>;             // [T or 1, B, H]
@group(0) @binding(6) var<storage, read> layer_norm: array<f32>;       // gains, shifts: [2, 5, H] of i f g o c
@group(0) @binding(7) var<storage, read_write> normalized: array<f32>; // [T, B, 5H + 5]
@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<uniform> repeat: vec4<u32>;

var<workgroup> partial: array<vec4<f32>, 64>;

// Never the built-in tanh (NaN for large arguments on some drivers), never exp of an unclamped value.
// clamp may swallow a NaN, so a NaN is handed through by its bits.
fn is_nan(v: vec4<f32>) -> vec4<bool> {
  return (bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
}

fn lstm_sigmoid(v: vec4<f32>) -> vec4<f32> {
  return select(1.0 / (1.0 + exp(-clamp(v, vec4<f32>(-30.0), vec4<f32>(30.0)))), v, is_nan(v));
}

fn lstm_tanh(v: vec4<f32>) -> vec4<f32> {
  let a = min(abs(v), vec4<f32>(10.0));
  let z = a * a;
  let p = ((((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z - 3.33332819422e-1) * z * a + a;
  let q = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
  return select(sign(v) * select(q, p, a < vec4<f32>(0.625)), v, is_nan(v));
}

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
  let mine = tile < params.batch;
  let t = select(repeat.x, params.steps - 1u - repeat.x, params.reverse > 0u);
  let before = (select(t, t + 1u, params.reverse > 0u) * params.batch + row) * params.hidden;
  let after = (select(t + 1u, t, params.reverse > 0u) * params.batch + row) * params.hidden;
  let at = (t * params.batch + row) * 4u * params.hidden;
  let kept = (t * params.batch + row) * 5u * (params.hidden + 1u);
  let hidden = params.hidden + wg.z;
  var ended = false;
  if (has_lengths) {
    ended = t >= lengths[row];
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
    let gain = vec4<f32>(layer_norm[j], layer_norm[hidden + j], layer_norm[2u * hidden + j], layer_norm[3u * hidden + j]);
    let shift = vec4<f32>(layer_norm[5u * hidden + j], layer_norm[6u * hidden + j], layer_norm[7u * hidden + j], layer_norm[8u * hidden + j]);
    var y = gain * x + shift;
    let c_before = c[before + j];
    y.y += params.forget_bias;
    if (has_peephole) {
      y.x += peephole[j] * c_before;
      y.y += peephole[hidden + j] * c_before;
    }
    let s = lstm_sigmoid(y);
    let f = select(s.y, 1.0 - s.x, coupled);
    let g = lstm_tanh(y).z;
    var masked = g;
    if (has_mask) {
      masked *= mask[(t % params.mask_steps * params.batch + row) * params.hidden + j];
    }
    let cell = f * c_before + s.x * masked;
    cells += cell;
    if (mine) {
      normalized[kept + j] = x.x;
      normalized[kept + hidden + j] = x.y;
      normalized[kept + 2u * hidden + j] = x.z;
      normalized[kept + 3u * hidden + j] = x.w;
      gates[at + j] = select(s.x, 0.0, ended);
      gates[at + hidden + j] = select(f, 1.0, ended);
      gates[at + 2u * hidden + j] = select(g, 0.0, ended);
      gates[at + 3u * hidden + j] = y.w;
      c[after + j] = cell;
    }
  }
  let mean_c = total(lane, vec4<f32>(cells)).x / count;
  var squares = 0.0;
  for (var j = lane; j < hidden; j += 64u) {
    let d = c[after + j] - mean_c;
    squares += d * d;
  }
  let scale_c = 1.0 / sqrt(total(lane, vec4<f32>(squares)).x / count + params.epsilon);

  if (mine) {
    for (var j = lane; j < hidden; j += 64u) {
      let x = select((c[after + j] - mean_c) * scale_c, 0.0, ended);
      var cell = layer_norm[4u * hidden + j] * x + layer_norm[9u * hidden + j];
      if (has_cell_clip) {
        cell = select(clamp(cell, -params.cell_clip, params.cell_clip), cell, is_nan(vec4<f32>(cell)).x);
      }
      var y = gates[at + 3u * hidden + j];
      if (has_peephole) {
        y += peephole[2u * hidden + j] * cell;
      }
      let o = lstm_sigmoid(vec4<f32>(y)).x;
      var result = o * lstm_tanh(vec4<f32>(cell)).x;
      if (ended) {
        cell = c[before + j];
        result = 0.0;
        if (!projected) {
          result = output[before + j];
        }
      }
      normalized[kept + 4u * hidden + j] = x;
      gates[at + 3u * hidden + j] = select(o, 0.0, ended);
      c[after + j] = cell;
      if (projected) {
        output[(t * params.batch + row) * hidden + j] = result;
      } else {
        output[after + j] = result;
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
