// sums[j] (+)= sum_r x[r, j]
//
// 16 columns x 16 interleaved slices of rows a workgroup; the slices are added in order, so the same rows
// always give the same bits. Grid: x over columns; repeat.x = chunk of rows.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

@group(0) @binding(0) var<storage, read> x: array<f32>;          // [rows, columns]
@group(0) @binding(1) var<storage, read_write> sums: array<f32>; // [columns]

const CHUNK = 524288u;

var<workgroup> slices: array<f32, 256>; // [16 slices][16 columns]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let column = wg.x * 16u + lane % 16u;
  let end = min(params.rows, (repeat.x + 1u) * CHUNK) + wg.z;
  var sum = 0.0;
  if (column < params.columns) {
    for (var row = repeat.x * CHUNK + lane / 16u; row < end; row += 16u) {
      sum += x[params.x_at + row * params.columns + column];
    }
  }
  slices[lane] = sum;
  workgroupBarrier();
  if (lane < 16u && column < params.columns) {
    var total = 0.0;
    if (repeat.x > 0u || params.adds > 0u) {
      total = sums[params.sums_at + column];
    }
    for (var slice = 0u; slice < 16u; slice++) {
      total += slices[slice * 16u + lane];
    }
    sums[params.sums_at + column] = total;
  }
}
