// dcarry[e] = dy[e] (x[e] - h[e]) carry[e] (1 - carry[e]);  dx[e] (+)= dy[e] carry[e];  dh[e] (+)= dy[e] (1 - carry[e])
//
// Grid: one thread an element, workgroups folded into x and y.

@group(0) @binding(0) var<storage, read> carry: array<f32>;        // [len]
@group(0) @binding(1) var<storage, read> x: array<f32>;            // [len]
@group(0) @binding(2) var<storage, read> h: array<f32>;            // [len]
@group(0) @binding(3) var<storage, read> dy: array<f32>;           // [len]
@group(0) @binding(4) var<storage, read_write> dcarry: array<f32>; // [len]
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;     // [len]
@group(0) @binding(6) var<storage, read_write> dh: array<f32>;     // [len]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.len) {
    let c = carry[params.carry_at + e];
    let d = dy[params.dy_at + e];
    var to_x = d * c;
    var to_h = d * (1.0 - c);
    dcarry[params.dcarry_at + e] = to_h * c * (x[params.x_at + e] - h[params.h_at + e]);
    if (params.adds_dx > 0u) {
      to_x += dx[params.dx_at + e];
    }
    if (params.adds_dh > 0u) {
      to_h += dh[params.dh_at + e];
    }
    dx[params.dx_at + e] = to_x;
    dh[params.dh_at + e] = to_h;
  }
}
