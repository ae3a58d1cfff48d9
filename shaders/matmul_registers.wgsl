// c[m,n] (+)= sum_k a[m,k] b[k,n] + bias[n] + second_bias[n]
//
// 8 x 16 outputs a thread in registers, no workgroup memory: the fastest shape where barriers are dear.
// Needs k, n and all offsets to be multiples of 4, and m too where a is transposed.
// Grid: tiles of n (128 a workgroup), then of m (8), folded into x and y; repeat.x = chunk of k.
//
// Thread x of a workgroup owns the columns 4 * (x + 8 j) .. + 4 for j in 0..4, so that neighbours read side by side.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;       // [m, k], or [k, m] if transposed
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;       // [k, n], or [n, k] if transposed
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;    // [n]
@group(0) @binding(3) var<storage, read> second_bias: array<vec4<f32>>;    // [n]
@group(0) @binding(4) var<storage, read_write> c: array<vec4<f32>>; // [m, n]

override transpose_a: bool;
override transpose_b: bool;

const CHUNK = 32768u;

// four of k for row m
fn a_quad(m: u32, q: u32) -> vec4<f32> {
  return a[(params.a_at + min(m, params.m - 1u) * params.a_row) / 4u + q];
}

// rows m..m+4, four of k each
fn a_block(m: u32, q: u32) -> mat4x4<f32> {
  if (transpose_a) {
    let m4 = min(m, params.m - 4u) / 4u;
    let stride = params.a_column / 4u;
    let base = params.a_at / 4u + 4u * q * stride + m4;
    return transpose(mat4x4<f32>(a[base], a[base + stride], a[base + 2u * stride], a[base + 3u * stride]));
  }
  return mat4x4<f32>(a_quad(m, q), a_quad(m + 1u, q), a_quad(m + 2u, q), a_quad(m + 3u, q));
}

// four of k, columns n..n+4 each
fn b_block(n: u32, q: u32) -> mat4x4<f32> {
  let column = min(n, params.n - 4u);
  if (transpose_b) {
    let stride = params.b_column / 4u;
    let base = params.b_at / 4u + column * stride + q;
    return transpose(mat4x4<f32>(b[base], b[base + stride], b[base + 2u * stride], b[base + 3u * stride]));
  }
  let stride = params.b_row / 4u;
  let base = params.b_at / 4u + 4u * q * stride + column / 4u;
  return mat4x4<f32>(b[base], b[base + stride], b[base + 2u * stride], b[base + 3u * stride]);
}

fn row(sums: mat4x4<f32>, x: vec4<f32>, w0: mat4x4<f32>, w1: mat4x4<f32>, w2: mat4x4<f32>, w3: mat4x4<f32>) -> mat4x4<f32> {
  return mat4x4<f32>(madd(sums[0], x, w0), madd(sums[1], x, w1), madd(sums[2], x, w2), madd(sums[3], x, w3));
}

fn store(m: u32, n: u32, sum: vec4<f32>) {
  if (m < params.m && n < params.n) {
    let e = (params.c_at + m * params.n + n) / 4u;
    var value = sum;
    if (repeat.x > 0u || params.adds > 0u) {
      value += c[e];
    }
    if (repeat.x == 0u && params.biases > 0u) {
      value += bias[(params.bias_at + n) / 4u];
    }
    if (repeat.x == 0u && params.biases > 1u) {
      value += second_bias[(params.second_bias_at + n) / 4u];
    }
    c[e] = value;
  }
}

fn store_row(m: u32, n: u32, sums: mat4x4<f32>) {
  store(m, n, sums[0]);
  store(m, n + 32u, sums[1]);
  store(m, n + 64u, sums[2]);
  store(m, n + 96u, sums[3]);
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_id) li: vec3<u32>) {
  let tile = wg.y * wgs.x + wg.x;
  let tiles = (params.n + 127u) / 128u;
  let m = tile / tiles * 8u;
  let n = tile % tiles * 128u + li.x * 4u;
  var c0 = mat4x4<f32>();
  var c1 = mat4x4<f32>();
  var c2 = mat4x4<f32>();
  var c3 = mat4x4<f32>();
  var c4 = mat4x4<f32>();
  var c5 = mat4x4<f32>();
  var c6 = mat4x4<f32>();
  var c7 = mat4x4<f32>();
  let q_end = min(params.k, (repeat.x + 1u) * CHUNK) / 4u + wg.z;
  for (var q = repeat.x * CHUNK / 4u; q < q_end; q++) {
    let top = a_block(m, q);
    let bottom = a_block(m + 4u, q);
    let w0 = b_block(n, q);
    let w1 = b_block(n + 32u, q);
    let w2 = b_block(n + 64u, q);
    let w3 = b_block(n + 96u, q);
    c0 = row(c0, top[0], w0, w1, w2, w3); // F1, B12
    c1 = row(c1, top[1], w0, w1, w2, w3);
    c2 = row(c2, top[2], w0, w1, w2, w3);
    c3 = row(c3, top[3], w0, w1, w2, w3);
    c4 = row(c4, bottom[0], w0, w1, w2, w3);
    c5 = row(c5, bottom[1], w0, w1, w2, w3);
    c6 = row(c6, bottom[2], w0, w1, w2, w3);
    c7 = row(c7, bottom[3], w0, w1, w2, w3);
  }
  store_row(m, n, c0);
  store_row(m + 1u, n, c1);
  store_row(m + 2u, n, c2);
  store_row(m + 3u, n, c3);
  store_row(m + 4u, n, c4);
  store_row(m + 5u, n, c5);
  store_row(m + 6u, n, c6);
  store_row(m + 7u, n, c7);
}
