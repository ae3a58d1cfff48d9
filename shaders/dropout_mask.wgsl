// mask[e] = 0 if word(e) < threshold, else scale;  word(e) = first word of threefry(key, (e, step))
//
// Threefry-2x32 with 20 rounds (Salmon et al. 2011).
// Grid: one thread an element, workgroups folded into x and y.

@group(0) @binding(0) var<storage, read> step: array<u32>;       // [1]
@group(0) @binding(1) var<storage, read_write> mask: array<f32>; // [len]

fn mix(x: vec2<u32>, turn: u32) -> vec2<u32> {
  let sum = x.x + x.y;
  return vec2<u32>(sum, ((x.y << turn) | (x.y >> (32u - turn))) ^ sum);
}

fn threefry(key: vec2<u32>, counter: vec2<u32>) -> vec2<u32> {
  let third = 0x1bd11bdau ^ key.x ^ key.y;
  var x = counter + key;
  x = mix(mix(mix(mix(x, 13u), 15u), 26u), 6u) + vec2<u32>(key.y, third + 1u);
  x = mix(mix(mix(mix(x, 17u), 29u), 16u), 24u) + vec2<u32>(third, key.x + 2u);
  x = mix(mix(mix(mix(x, 13u), 15u), 26u), 6u) + vec2<u32>(key.x, key.y + 3u);
  x = mix(mix(mix(mix(x, 17u), 29u), 16u), 24u) + vec2<u32>(key.y, third + 4u);
  x = mix(mix(mix(mix(x, 13u), 15u), 26u), 6u) + vec2<u32>(third, key.x + 5u);
  return x;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.len) {
    let counter = vec2<u32>(e, step[params.step_at]);
    let word = threefry(vec2<u32>(params.key_low, params.key_high), counter).x;
    mask[params.mask_at + e] = select(params.scale, 0.0, word < params.threshold);
  }
}
