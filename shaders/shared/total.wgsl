var<workgroup> partial: array<vec4<f32>, 64>;

// the sum over the 64 threads of a workgroup, in a fixed order
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
