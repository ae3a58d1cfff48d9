// One step back through time. dh and dc hold what flows in from outside on entry, and the whole gradient on return.
//
//   dh[after] += dgates[t of the step worked on just before] W_hh
//   then the cell's rule: lstm_output_back and lstm_state_back of lstm_cell.wgsl
//
// Two stages with a projection: first dh alone, then from_h: dh[after] W_hr in place of dh in the cell. With a layer
// norm the cell ends at dct and do; lstm_backward_norm does the rest. 
// repeat.x = n, steps counted from the last one back; n = T only adds the recurrent part to dh of the initial state.
//
// Tile of 8 rows x 8 units, the summed gates in slices of 64 through workgroup memory; a thread owns one
// unit of one row. Any size; tails guarded. Grid: tiles of units, then of rows, then directions, folded.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

override from_h: bool;
override cell: bool;
override has_lengths: bool;
override has_output_clip: bool;
override normed: bool;

@group(0) @binding(0) var<storage, read> weight: array<f32>;       // weight_hh [4H, P], or from_h weight_hr [P, H], of each direction
@group(0) @binding(1) var<storage, read> gates: array<f32>;        // [D, T, B, 4H] activated
@group(0) @binding(2) var<storage, read> states: array<f32>;       // c [D, T+1, B, H]; h [D, T+1, B, P] where the cell comes later
@group(0) @binding(3) var<storage, read_write> dgates: array<f32>; // [D, T, B, 4H] of the pre-activations
@group(0) @binding(4) var<storage, read_write> dh: array<f32>;     // [D, T+1, B, P]
@group(0) @binding(5) var<storage, read_write> dc: array<f32>;     // [D, T+1, B, H]
@group(0) @binding(6) var<storage, read> peephole: array<f32>;     // [3, H] to i, f, o
@group(0) @binding(7) var<storage, read> mask: array<f32>;         // [D, T or 1, B, H]

// four of the summed gates in the components; written a whole vector at a time: the components of one are not
// memory of their own
var<workgroup> d_tile: array<vec4<f32>, 136>; // [8 rows][16 + 1]
var<workgroup> w_tile: array<vec4<f32>, 136>; // [8 units][16 + 1]

fn d_at(step: u32, row: u32, k: u32, width: u32) -> f32 {
  if (row < params.batch && k < width) {
    if (from_h) {
      return dh[params.dh_at + (step + row) * width + k];
    }
    return dgates[params.dgates_at + (step + row) * width + k];
  }
  return 0.0;
}

fn w_at(first: u32, k: u32, unit: u32, width: u32, units: u32) -> f32 {
  if (unit < units && k < width) {
    return weight[first + k * units + unit];
  }
  return 0.0;
}

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_id) li: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  // n-th step from the end; at n = T the "state after" is the initial state
  let n = repeat.x + wg.z;
  let width = select(4u * params.hidden, params.outputs, from_h) + wg.z;
  let units = select(params.outputs, params.hidden, from_h) + wg.z;
  let tiles = (units + 7u) / 8u;
  let all = tiles * ((params.batch + 7u) / 8u);
  let tile = wg.y * wgs.x + wg.x;
  let s = step_of(tile, all, params.steps - 1u - min(n, params.steps - 1u));
  let after = select(s.after, s.before, n == params.steps);
  // the rows of dgates that are summed over, or of dh
  let source = select(step_of(tile, all, params.steps - n).now, after, from_h);
  let first = select(params.weight_hh_at + s.d * params.weight_hh_stride, params.weight_hr_at + s.d * params.weight_hr_stride, from_h);
  let row0 = s.tile / tiles * 8u;
  let unit0 = s.tile % tiles * 8u;
  var sum = 0.0;
  if (n > 0u || from_h) {
    for (var k0 = 0u; k0 < width; k0 += 64u) {
      workgroupBarrier();
      for (var e = lane; e < 128u; e += 64u) {
        let row = row0 + e / 16u;
        let d_k = k0 + 4u * (e % 16u);
        d_tile[e / 16u * 17u + e % 16u] = vec4<f32>(
          d_at(source, row, d_k, width),
          d_at(source, row, d_k + 1u, width),
          d_at(source, row, d_k + 2u, width),
          d_at(source, row, d_k + 3u, width),
        );
        // neighbouring threads follow the units, which are contiguous in memory
        let unit = unit0 + e % 8u;
        let w_k = k0 + 4u * (e / 8u);
        w_tile[e % 8u * 17u + e / 8u] = vec4<f32>(
          w_at(first, w_k, unit, width, units),
          w_at(first, w_k + 1u, unit, width, units),
          w_at(first, w_k + 2u, unit, width, units),
          w_at(first, w_k + 3u, unit, width, units),
        );
      }
      workgroupBarrier();
      for (var q = 0u; q < 16u; q++) {
        sum += dot(d_tile[li.y * 17u + q], w_tile[li.x * 17u + q]); // B1, B2
      }
    }
  }
  let row = row0 + li.y;
  let unit = unit0 + li.x;
  if (row < params.batch && unit < units) {
    let hidden = params.hidden + wg.z;
    let at = params.gates_at + (s.now + row) * 4u * hidden + unit;
    let to = params.dgates_at + (s.now + row) * 4u * hidden + unit;
    let states_at = select(params.h_at, params.c_at, cell);
    let e = (after + row) * units + unit;
    let e_before = (s.before + row) * units + unit;
    var ended = false;
    if (has_lengths && n < params.steps) {
      // a sigmoid is never 0
      ended = gates[params.gates_at + (s.now + row) * 4u * hidden + 3u * hidden] == 0.0;
    }
    var dht = sum;
    if (!from_h) {
      dht += dh[params.dh_at + e];
      if (ended) {
        dh[params.dh_at + e_before] += dht; // B11
      } else if (has_output_clip && n < params.steps) {
        if (abs(states[states_at + e]) >= params.output_clip) {
          dht = 0.0;
        }
      }
      dh[params.dh_at + e] = dht;
    }
    if (cell && n < params.steps) {
      let c_after = states[states_at + e];
      var w = vec3<f32>();
      if (has_peephole) {
        let p = params.peephole_at + s.d * params.peephole_stride + unit;
        w = vec3<f32>(peephole[p], peephole[p + hidden], peephole[p + 2u * hidden]);
      }
      let output = lstm_output_back(dht, gates[at + 3u * hidden], c_after, dc[params.dc_at + e], w.z);
      dc[params.dc_at + e] = output.y;
      dgates[to + 3u * hidden] = output.x;
      if (!normed) {
        var du = output.y;
        if (!ended) {
          du = lstm_clip_back(du, c_after); // B5
        }
        var scale = 1.0;
        if (has_mask) {
          scale = mask[params.mask_at + (mask_row(s) + row) * hidden + unit];
        }
        let ifg = vec3<f32>(gates[at], gates[at + hidden], gates[at + 2u * hidden]);
        let state = lstm_state_back(du, ifg, states[states_at + e_before], w.xy, scale);
        dc[params.dc_at + e_before] += state.w;
        dgates[to] = state.x;
        dgates[to + hidden] = state.y;
        dgates[to + 2u * hidden] = state.z;
      }
    }
  }
}
