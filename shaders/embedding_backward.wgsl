// dtable[v, e] (+)= sum of dy[r, e] over the rows r with ids[r] = v
//
// One thread an element of the table adds its rows in order: no atomics, the same bits every time.
// Grid: workgroups folded into x and y; repeat.x = chunk of rows.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

@group(0) @binding(0) var<storage, read> ids: array<u32>;          // [rows]
@group(0) @binding(1) var<storage, read> dy: array<f32>;           // [rows, columns]
@group(0) @binding(2) var<storage, read_write> dtable: array<f32>; // [V, columns]

const CHUNK = 32768u;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let e = (wg.y * wgs.x + wg.x) * 256u + lane;
  if (e < params.vocab_size * params.columns) {
    let token = e / params.columns;
    let first = params.dy_at + e % params.columns;
    let to = params.dtable_at + e;
    let end = min(params.rows, (repeat.x + 1u) * CHUNK) + wg.z;
    var sum = 0.0;
    if (repeat.x > 0u || params.adds > 0u) {
      sum = dtable[to];
    }
    for (var row = repeat.x * CHUNK; row < end; row++) {
      if (ids[params.ids_at + row] == token) {
        sum += dy[first + row * params.columns];
      }
    }
    dtable[to] = sum;
  }
}
