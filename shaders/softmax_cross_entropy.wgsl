// p[r, v] = exp(logits[r, v] - max_r) / sum_v exp(logits[r, v] - max_r)
// rows[r] = (-ln p[r, target], 1 if the target is the first largest logit, 1);  (0, 0, 0) if the target is IGNORE
//
// One workgroup a row. Grid: workgroups folded into x and y.
// `+ wg.z` adds 0 where a uniform ends a loop: llvmpipe would compile the kernel anew for every value.

@group(0) @binding(0) var<storage, read> logits: array<f32>;              // [rows, V]
@group(0) @binding(1) var<storage, read> targets: array<u32>;             // [rows]
@group(0) @binding(2) var<storage, read_write> probabilities: array<f32>; // [rows, V]
@group(0) @binding(3) var<storage, read_write> row_losses: array<f32>;    // [rows, 3]

const IGNORE = 0xffffffffu;

var<workgroup> largest: array<f32, 64>;
var<workgroup> places: array<u32, 64>;
var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) wgs: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = wg.y * wgs.x + wg.x;
  if (row < params.rows) {
    let base = params.logits_at + row * params.columns;
    let to = params.probabilities_at + row * params.columns;
    // columns beyond V repeat the last one, which changes neither maximum nor place
    var place = min(lane, params.columns - 1u);
    var top = logits[base + place];
    for (var v = lane + 64u; v < params.columns + wg.z; v += 64u) {
      let x = logits[base + v];
      if (x > top) {
        top = x;
        place = v;
      }
    }
    largest[lane] = top;
    places[lane] = place;
    workgroupBarrier();
    top = largest[0];
    place = places[0];
    for (var i = 1u; i < 64u; i++) {
      if (largest[i] > top || (largest[i] == top && places[i] < place)) {
        top = largest[i];
        place = places[i];
      }
    }
    var sum = 0.0;
    for (var v = lane; v < params.columns + wg.z; v += 64u) {
      let value = exp(logits[base + v] - top);
      probabilities[to + v] = value;
      sum += value;
    }
    sums[lane] = sum;
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < 64u; i++) {
      total += sums[i];
    }
    for (var v = lane; v < params.columns + wg.z; v += 64u) {
      probabilities[to + v] /= total;
    }
    if (lane == 0u) {
      let target_ = targets[params.targets_at + row];
      var loss = 0.0;
      if (target_ != IGNORE) {
        loss = log(total) + top - logits[base + target_];
      }
      let out = params.row_losses_at + 3u * row;
      row_losses[out] = loss;
      row_losses[out + 1u] = select(0.0, 1.0, place == target_);
      row_losses[out + 2u] = select(1.0, 0.0, target_ == IGNORE);
    }
  }
}
