// c[m,n] (+)= sum_k a[m,k] b[k,n] + bias[n] + second_bias[n]
//
// a and b are read through row and column strides, so all four transpositions are one kernel.
// Tile of 64 x 64 in workgroup memory, 16 deep; 4 x 4 outputs a thread; tails guarded.
// Grid: tiles of n, then of m, folded into x and y; repeat.x = chunk of k.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

@group(0) @binding(0) var<storage, read> a: array<f32>;       // [m, k]
@group(0) @binding(1) var<storage, read> b: array<f32>;       // [k, n]
@group(0) @binding(2) var<storage, read> bias: array<f32>;    // [n]
@group(0) @binding(3) var<storage, read> second_bias: array<f32>;    // [n]
@group(0) @binding(4) var<storage, read_write> c: array<f32>; // [m, n]

const CHUNK = 32768u;

// written a whole vector at a time: the components of one are not memory of their own
var<workgroup> a_tile: array<vec4<f32>, 256>; // [16 of k][64 of m]
var<workgroup> b_tile: array<vec4<f32>, 256>; // [16 of k][64 of n]

fn a_at(m: u32, k: u32, k_end: u32) -> f32 {
  if (m < params.m && k < k_end) {
    return a[params.a_at + m * params.a_row + k * params.a_column];
  }
  return 0.0;
}

fn a_quad(m: u32, k: u32, k_end: u32) -> vec4<f32> {
  return vec4<f32>(a_at(m, k, k_end), a_at(m + 1u, k, k_end), a_at(m + 2u, k, k_end), a_at(m + 3u, k, k_end));
}

fn b_at(n: u32, k: u32, k_end: u32) -> f32 {
  if (n < params.n && k < k_end) {
    return b[params.b_at + k * params.b_row + n * params.b_column];
  }
  return 0.0;
}

fn b_quad(n: u32, k: u32, k_end: u32) -> vec4<f32> {
  return vec4<f32>(b_at(n, k, k_end), b_at(n + 1u, k, k_end), b_at(n + 2u, k, k_end), b_at(n + 3u, k, k_end));
}

fn store(m: u32, n: u32, sum: f32) {
  if (m < params.m && n < params.n) {
    let e = params.c_at + m * params.n + n;
    var value = sum;
    if (repeat.x > 0u || params.adds > 0u) {
      value += c[e];
    }
    if (repeat.x == 0u && params.biases > 0u) {
      value += bias[params.bias_at + n];
    }
    if (repeat.x == 0u && params.biases > 1u) {
      value += second_bias[params.second_bias_at + n];
    }
    c[e] = value;
  }
}

fn store_row(m: u32, n: u32, sums: vec4<f32>) {
  store(m, n, sums.x);
  store(m, n + 1u, sums.y);
  store(m, n + 2u, sums.z);
  store(m, n + 3u, sums.w);
}

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_id) li: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = wg.y * wgs.x + wg.x;
  let tiles = (params.n + 63u) / 64u;
  let m0 = tile / tiles * 64u;
  let n0 = tile % tiles * 64u;
  let k_end = min(params.k, (repeat.x + 1u) * CHUNK) + wg.z;
  var c0 = vec4<f32>();
  var c1 = vec4<f32>();
  var c2 = vec4<f32>();
  var c3 = vec4<f32>();
  for (var k0 = repeat.x * CHUNK; k0 < k_end; k0 += 16u) {
    workgroupBarrier();
    // a thread loads four of m and four of n for one k each; neighbours follow the axis that is contiguous in memory
    let a_k = select(lane / 16u, lane % 16u, params.a_column == 1u);
    let a_m = select(lane % 16u, lane / 16u, params.a_column == 1u);
    a_tile[a_k * 16u + a_m] = a_quad(m0 + 4u * a_m, k0 + a_k, k_end);
    let b_k = select(lane % 16u, lane / 16u, params.b_column == 1u);
    let b_n = select(lane / 16u, lane % 16u, params.b_column == 1u);
    b_tile[b_k * 16u + b_n] = b_quad(n0 + 4u * b_n, k0 + b_k, k_end);
    workgroupBarrier();
    for (var kk = 0u; kk < 16u; kk++) {
      let x = a_tile[kk * 16u + li.y];
      let w = b_tile[kk * 16u + li.x];
      c0 = fma(vec4<f32>(x.x), w, c0); // F1, B12
      c1 = fma(vec4<f32>(x.y), w, c1);
      c2 = fma(vec4<f32>(x.z), w, c2);
      c3 = fma(vec4<f32>(x.w), w, c3);
    }
  }
  let m = m0 + li.y * 4u;
  let n = n0 + li.x * 4u;
  store_row(m, n, c0);
  store_row(m + 1u, n, c1);
  store_row(m + 2u, n, c2);
  store_row(m + 3u, n, c3);
}
