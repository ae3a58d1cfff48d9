//! The cell's rule on `N` units of one row at once: what the compiler turns into vectors.

use super::{COUPLED, GATES, Sequence};
use crate::float::Float;

/// The pre-activations of i, f, g become i, f, g; gives u. `w` are the peepholes of i and f.
#[inline(always)]
pub fn lstm_state<T: Float, const N: usize>(
    k: &Sequence,
    y: &mut [[T; N]; GATES],
    c_before: &[T; N],
    w: Option<[[T; N]; 2]>,
    mask: Option<[T; N]>,
) -> [T; N] {
    for (gate, w) in w.iter().flatten().enumerate() {
        for lane in 0..N {
            y[gate][lane] += w[lane] * c_before[lane];
        }
    }
    let forget_bias = T::of(k.forget_bias);
    for lane in 0..N {
        y[0][lane] = y[0][lane].sigmoid(); // F4
        y[1][lane] = (y[1][lane] + forget_bias).sigmoid(); // F5
        y[2][lane] = y[2][lane].tanh(); // F6
    }
    if k.has(COUPLED) {
        for lane in 0..N {
            y[1][lane] = T::ONE - y[0][lane];
        }
    }
    let mut g = y[2];
    if let Some(mask) = mask {
        for lane in 0..N {
            g[lane] = g[lane] * mask[lane];
        }
    }
    let mut u = [T::ZERO; N];
    for lane in 0..N {
        u[lane] = y[1][lane] * c_before[lane] + y[0][lane] * g[lane]; // F7
    }
    u
}

/// o and m from the pre-activation of o; `w` is the peephole of o.
#[inline(always)]
pub fn lstm_output<T: Float, const N: usize>(y_o: &[T; N], c: &[T; N], w: Option<[T; N]>) -> [[T; N]; 2] {
    let (mut o, mut m) = (*y_o, [T::ZERO; N]);
    if let Some(w) = w {
        for lane in 0..N {
            o[lane] += w[lane] * c[lane];
        }
    }
    for lane in 0..N {
        o[lane] = o[lane].sigmoid(); // F9
        m[lane] = o[lane] * c[lane].tanh(); // F10
    }
    [o, m]
}

/// The gradients of o's pre-activation and of c, from those of m and of c without m.
#[inline(always)]
pub fn lstm_output_back<T: Float, const N: usize>(
    dm: &[T; N],
    o: &[T; N],
    c: &[T; N],
    mut dc: [T; N],
    w: Option<[T; N]>,
) -> [[T; N]; 2] {
    let mut dy_o = [T::ZERO; N];
    for lane in 0..N {
        let tanh_c = c[lane].tanh();
        dc[lane] += dm[lane] * o[lane] * (T::ONE - tanh_c * tanh_c); // B4
        dy_o[lane] = dm[lane] * tanh_c * o[lane] * (T::ONE - o[lane]); // B3
    }
    if let Some(w) = w {
        for lane in 0..N {
            dc[lane] += dy_o[lane] * w[lane];
        }
    }
    [dy_o, dc]
}

/// The gradients of the pre-activations of i, f, g from that of u, and the gradient of the c before, to which what
/// flows there is added.
#[inline(always)]
pub fn lstm_state_back<T: Float, const N: usize>(
    k: &Sequence,
    du: &[T; N],
    [i, f, g]: &[[T; N]; 3],
    c_before: &[T; N],
    w: Option<[[T; N]; 2]>,
    mask: Option<[T; N]>,
    mut dc_before: [T; N],
) -> ([[T; N]; 3], [T; N]) {
    let (one, mask, mut dy) = (T::ONE, mask.unwrap_or([T::ONE; N]), [[T::ZERO; N]; 3]);
    for lane in 0..N {
        let (i, f, g) = (i[lane], f[lane], g[lane]);
        dc_before[lane] += du[lane] * f; // B9
        dy[0][lane] = du[lane] * g * mask[lane] * i * (one - i); // B6
        dy[1][lane] = du[lane] * c_before[lane] * f * (one - f); // B7
        dy[2][lane] = du[lane] * i * mask[lane] * (one - g * g); // B8
    }
    if k.has(COUPLED) {
        for lane in 0..N {
            let i = i[lane];
            dy[0][lane] = du[lane] * (g[lane] * mask[lane] - c_before[lane]) * i * (one - i);
            dy[1][lane] = T::ZERO;
        }
    }
    for (gate, w) in w.iter().flatten().enumerate() {
        for lane in 0..N {
            dc_before[lane] += dy[gate][lane] * w[lane];
        }
    }
    (dy, dc_before)
}
