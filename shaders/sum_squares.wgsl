// partials[w] = sum of x[e]^2 over the elements of workgroup w, interleaved;  `sum` adds the partials
//
// Grid: x = number of partials.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

@group(0) @binding(0) var<storage, read> x: array<f32>;              // [len]
@group(0) @binding(1) var<storage, read_write> partials: array<f32>; // [partials]

var<workgroup> slices: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  var sum = 0.0;
  for (var e = wg.x * 256u + lane; e < params.len + wg.z; e += params.partials * 256u) {
    let value = x[params.x_at + e];
    sum = fma(value, value, sum);
  }
  slices[lane] = sum;
  workgroupBarrier();
  if (lane == 0u) {
    var total = 0.0;
    for (var i = 0u; i < 256u; i++) {
      total += slices[i];
    }
    partials[params.partials_at + wg.x] = total;
  }
}
