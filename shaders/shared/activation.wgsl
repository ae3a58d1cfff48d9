// Never the built-in tanh (NaN for large arguments on some drivers), never exp of an unclamped value.
// clamp may swallow a NaN, so a NaN is handed through by its bits.
fn is_nan(v: f32) -> bool {
  return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u;
}

// 1 / (1 + exp(-v)), never 0
fn lstm_sigmoid(v: f32) -> f32 {
  return select(1.0 / (1.0 + exp(-clamp(v, -30.0, 30.0))), v, is_nan(v));
}

fn lstm_tanh(v: f32) -> f32 {
  let a = min(abs(v), 10.0);
  let z = a * a;
  let p = ((((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z - 3.33332819422e-1) * z * a + a;
  let q = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
  return select(sign(v) * select(q, p, a < 0.625), v, is_nan(v));
}

// v within plus and minus limit; a NaN stays one
fn clipped(v: f32, limit: f32) -> f32 {
  return select(clamp(v, -limit, limit), v, is_nan(v));
}
