// counted = sum_r rows[r].z;  loss = sum_r rows[r].x / counted;  accuracy = sum_r rows[r].y / counted;  0 if nothing is counted
//
// One workgroup; interleaved slices added in order.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

@group(0) @binding(0) var<storage, read> row_losses: array<f32>;     // [rows, 3]
@group(0) @binding(1) var<storage, read_write> loss: array<f32>;     // [1]
@group(0) @binding(2) var<storage, read_write> accuracy: array<f32>; // [1]
@group(0) @binding(3) var<storage, read_write> counted: array<f32>;  // [1]

var<workgroup> slices: array<vec3<f32>, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  var sum = vec3<f32>();
  for (var row = lane; row < params.rows + wg.z; row += 256u) {
    let at = params.row_losses_at + 3u * row;
    sum += vec3<f32>(row_losses[at], row_losses[at + 1u], row_losses[at + 2u]);
  }
  slices[lane] = sum;
  workgroupBarrier();
  if (lane == 0u) {
    var total = vec3<f32>();
    for (var i = 0u; i < 256u; i++) {
      total += slices[i];
    }
    let count = max(total.z, 1.0);
    loss[params.loss_at] = total.x / count;
    accuracy[params.accuracy_at] = total.y / count;
    counted[params.counted_at] = total.z;
  }
}
