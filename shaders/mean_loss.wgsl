// counted = sum_r rows[r].z;  loss = sum_r rows[r].x / counted;  accuracy = sum_r rows[r].y / counted;  0 if nothing is counted
//
// One workgroup; interleaved slices added in order.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

struct Params {
  rows: u32,
}

@group(0) @binding(0) var<storage, read> row_losses: array<f32>;     // [rows, 3]
@group(0) @binding(1) var<storage, read_write> loss: array<f32>;     // [1]
@group(0) @binding(2) var<storage, read_write> accuracy: array<f32>; // [1]
@group(0) @binding(3) var<storage, read_write> counted: array<f32>;  // [1]
@group(1) @binding(0) var<uniform> params: Params;

var<workgroup> slices: array<vec3<f32>, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  var sum = vec3<f32>();
  for (var row = lane; row < params.rows + wg.z; row += 256u) {
    sum += vec3<f32>(row_losses[3u * row], row_losses[3u * row + 1u], row_losses[3u * row + 2u]);
  }
  slices[lane] = sum;
  workgroupBarrier();
  if (lane == 0u) {
    var total = vec3<f32>();
    for (var i = 0u; i < 256u; i++) {
      total += slices[i];
    }
    let count = max(total.z, 1.0);
    loss[0] = total.x / count;
    accuracy[0] = total.y / count;
    counted[0] = total.z;
  }
}
