// The cell's rule for one unit of one row; the equations are numbered as in docs/lstm.md. w are peepholes.

override has_peephole: bool;
override has_mask: bool;
override coupled: bool;
override has_cell_clip: bool;

// i, f, g and u from the pre-activations of i, f, g
fn lstm_state(y: vec3<f32>, c_before: f32, w: vec2<f32>, mask: f32) -> vec4<f32> {
  var v = y;
  if (has_peephole) {
    v += vec3<f32>(w * c_before, 0.0);
  }
  let i = lstm_sigmoid(v.x);                                                     // F4
  let f = select(lstm_sigmoid(v.y + params.forget_bias), 1.0 - i, coupled);     // F5
  let g = lstm_tanh(v.z);                                                        // F6
  var masked = g;
  if (has_mask) {
    masked *= mask;
  }
  return vec4<f32>(i, f, g, f * c_before + i * masked);                          // F7
}

// o and m from the pre-activation of o
fn lstm_output(y_o: f32, c: f32, w_o: f32) -> vec2<f32> {
  var v = y_o;
  if (has_peephole) {
    v += w_o * c;
  }
  let o = lstm_sigmoid(v);                                                       // F9
  return vec2<f32>(o, o * lstm_tanh(c));                                         // F10
}

// the gradients of o's pre-activation and of c, from those of m and of c without m
fn lstm_output_back(dm: f32, o: f32, c: f32, dc: f32, w_o: f32) -> vec2<f32> {
  let tanh_c = lstm_tanh(c);
  let dy_o = dm * tanh_c * o * (1.0 - o);                                        // B3
  var dct = dc + dm * o * (1.0 - tanh_c * tanh_c);                               // B4
  if (has_peephole) {
    dct += dy_o * w_o;
  }
  return vec2<f32>(dy_o, dct);
}

// the gradients of the pre-activations of i, f, g, and what flows to the c before, from that of u
fn lstm_state_back(du: f32, ifg: vec3<f32>, c_before: f32, w: vec2<f32>, mask: f32) -> vec4<f32> {
  let masked = select(1.0, mask, has_mask);
  let i = ifg.x;
  let f = ifg.y;
  let g = ifg.z;
  var dy_i = du * g * masked * i * (1.0 - i);                                    // B6
  var dy_f = du * c_before * f * (1.0 - f);                                      // B7
  if (coupled) {
    dy_i = du * (g * masked - c_before) * i * (1.0 - i);
    dy_f = 0.0;
  }
  let dy_g = du * i * masked * (1.0 - g * g);                                    // B8
  var to_c_before = du * f;                                                      // B9
  if (has_peephole) {
    to_c_before += dy_i * w.x + dy_f * w.y;
  }
  return vec4<f32>(dy_i, dy_f, dy_g, to_c_before);
}

// F8 without a norm
fn lstm_clip(u: f32) -> f32 {
  if (has_cell_clip) {
    return clipped(u, params.cell_clip);
  }
  return u;
}

// B5 without a norm
fn lstm_clip_back(dc: f32, c: f32) -> f32 {
  if (has_cell_clip) {
    if (abs(c) >= params.cell_clip) {
      return 0.0;
    }
  }
  return dc;
}
