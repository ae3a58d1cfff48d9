// total[0] = sum_e x[e] / divisor, or the square root of that
//
// One workgroup; interleaved slices added in order.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

@group(0) @binding(0) var<storage, read> x: array<f32>;           // [len]
@group(0) @binding(1) var<storage, read_write> total: array<f32>; // [1]

var<workgroup> slices: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  var part = 0.0;
  for (var e = lane; e < params.len + wg.z; e += 256u) {
    part += x[params.x_at + e];
  }
  slices[lane] = part;
  workgroupBarrier();
  if (lane == 0u) {
    var all = 0.0;
    for (var i = 0u; i < 256u; i++) {
      all += slices[i];
    }
    all /= f32(params.divisor);
    if (params.root > 0u) {
      all = sqrt(all); // O1
    }
    total[params.total_at] = all;
  }
}
