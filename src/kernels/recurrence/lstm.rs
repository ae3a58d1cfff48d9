//! The cell's rule for one unit of one row, as the equations have it. `w` are peephole weights, 0 where there is none,
//! `mask` is 1 where nothing is dropped.

use super::{COUPLED, Sequence};
use crate::float::Float;

/// i, f, g and u from the pre-activations of i, f, g.
pub fn lstm_state<T: Float>(k: &Sequence, y: [T; 3], c_before: T, w: [T; 2], mask: T) -> [T; 4] {
    let i = (y[0] + w[0] * c_before).sigmoid(); // F4
    let f = match k.has(COUPLED) {
        true => T::ONE - i, // F5
        false => (y[1] + w[1] * c_before + T::of(k.forget_bias)).sigmoid(),
    };
    let g = y[2].tanh(); // F6
    [i, f, g, f * c_before + i * g * mask] // F7
}

/// o and m from the pre-activation of o.
pub fn lstm_output<T: Float>(y_o: T, c: T, w_o: T) -> [T; 2] {
    let o = (y_o + w_o * c).sigmoid(); // F9
    [o, o * c.tanh()] // F10
}

/// The gradients of o's pre-activation and of c, from those of m and of c without m.
pub fn lstm_output_back<T: Float>(dm: T, o: T, c: T, dc: T, w_o: T) -> [T; 2] {
    let tanh_c = c.tanh();
    let dy_o = dm * tanh_c * o * (T::ONE - o); // B3
    [dy_o, dc + dm * o * (T::ONE - tanh_c * tanh_c) + dy_o * w_o] // B4
}

/// The gradients of the pre-activations of i, f, g, and what flows to the c before, from that of u.
pub fn lstm_state_back<T: Float>(k: &Sequence, du: T, [i, f, g]: [T; 3], c_before: T, w: [T; 2], mask: T) -> [T; 4] {
    let one = T::ONE;
    let (dy_i, dy_f) = match k.has(COUPLED) {
        true => ((du * g * mask - du * c_before) * i * (one - i), T::ZERO),
        false => (du * g * mask * i * (one - i), du * c_before * f * (one - f)), // B6, B7
    };
    let dy_g = du * i * mask * (one - g * g); // B8
    [dy_i, dy_f, dy_g, du * f + dy_i * w[0] + dy_f * w[1]] // B9
}
