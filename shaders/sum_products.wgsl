// sums[j] (+)= sum_r a[r, j] b[r, j],  r in 0..rows, width columns; b counts as 1 where b_stride is 0
//
// 16 columns x 16 interleaved slices of rows a workgroup; the slices are added in order, so the same rows
// always give the same bits. Grid: x over columns; repeat.x = chunk of rows.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

@group(0) @binding(0) var<storage, read> a: array<f32>;          // [rows, a_stride]
@group(0) @binding(1) var<storage, read> b: array<f32>;          // [rows, b_stride]
@group(0) @binding(2) var<storage, read_write> sums: array<f32>; // [width]

const CHUNK = 524288u;

var<workgroup> slices: array<f32, 256>; // [16 slices][16 columns]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let column = wg.x * 16u + lane % 16u;
  let end = min(params.rows, (repeat.x + 1u) * CHUNK) + wg.z;
  let from_a = params.a_at + column;
  let from_b = params.b_at + column;
  var sum = 0.0;
  if (column < params.width) {
    for (var row = repeat.x * CHUNK + lane / 16u; row < end; row += 16u) {
      let factor = select(1.0, b[from_b + row * params.b_stride], params.b_stride > 0u);
      sum = fma(a[from_a + row * params.a_stride], factor, sum);
    }
  }
  slices[lane] = sum;
  workgroupBarrier();
  if (lane < 16u && column < params.width) {
    let to = params.sums_at + column;
    var total = 0.0;
    if (repeat.x > 0u || params.adds > 0u) {
      total = sums[to];
    }
    for (var slice = 0u; slice < 16u; slice++) {
      total += slices[slice * 16u + lane];
    }
    sums[to] = total;
  }
}
