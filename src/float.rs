//! The element type of the CPU executor: `f32` (what the GPU computes in) or `f64` (gradient checks).
//!
//! `sigmoid` and `tanh` are our own in f32, the same algorithm as in the shaders: a built-in `tanh`
//! returns NaN for large arguments on some GPUs, and a libm call per element would be most of the
//! time of a small LSTM. In f64 accuracy is the point, so the standard library computes them.

use ndarray::LinalgScalar;
use std::fmt::{Debug, Display};
use std::ops::{AddAssign, Neg};

/// `f32` or `f64`.
pub trait Float:
    bytemuck::Pod + LinalgScalar + Default + Debug + Display + PartialOrd + Send + Sync + AddAssign + Neg<Output = Self>
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// A NaN: the poison of tests.
    const NAN: Self;
    /// Rounds to this type.
    fn of(value: f64) -> Self;
    /// Widens without loss.
    fn to_f64(self) -> f64;
    /// `e^self`.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// `self * a + b` in one rounding.
    fn fused(self, a: Self, b: Self) -> Self;
    /// `1 / (1 + e^-self)`, never 0; NaN stays NaN.
    fn sigmoid(self) -> Self;
    /// Hyperbolic tangent; NaN stays NaN.
    fn tanh(self) -> Self;
    /// Runs `work` with the widest vectors of this machine.
    fn vectorize<W: Vectorized>(work: W);
}

/// Work written over `N` lanes and blocks of up to `R` rows, compiled once for each instruction set.
///
/// `FMA` says whether [`Float::fused`] is one instruction there (it is a slow library call elsewhere).
pub trait Vectorized {
    /// Must be `#[inline(always)]`, and so must all it calls in its hot loops.
    fn run<const N: usize, const R: usize, const FMA: bool>(self);
}

/// What both have from the standard library, and the lanes and rows of [`Vectorized`] on AVX-512, AVX2 and elsewhere.
macro_rules! standard {
    ($float:ident, $avx512:literal, $avx2:literal, $narrow:literal) => {
        const ZERO: Self = 0.0;
        const ONE: Self = 1.0;
        const NAN: Self = $float::NAN;

        #[inline(always)]
        fn of(value: f64) -> Self {
            value as $float
        }

        #[inline(always)]
        fn to_f64(self) -> f64 {
            self as f64
        }

        #[inline(always)]
        fn ln(self) -> Self {
            $float::ln(self)
        }

        #[inline(always)]
        fn sqrt(self) -> Self {
            $float::sqrt(self)
        }

        #[inline(always)]
        fn fused(self, a: Self, b: Self) -> Self {
            self.mul_add(a, b)
        }

        #[inline]
        fn vectorize<W: Vectorized>(work: W) {
            #[cfg(target_arch = "x86_64")]
            {
                if let Some(simd) = pulp::x86::V4::try_new() {
                    return simd.vectorize(
                        #[inline(always)]
                        || work.run::<$avx512, 6, true>(),
                    );
                }
                if let Some(simd) = pulp::x86::V3::try_new() {
                    return simd.vectorize(
                        #[inline(always)]
                        || work.run::<$avx2, 3, true>(),
                    );
                }
            }
            // 32 vector registers of 128 bits on aarch64; the others have 16 and no fused instruction.
            if cfg!(target_arch = "aarch64") { work.run::<$narrow, 6, true>() } else { work.run::<$narrow, 3, false>() }
        }
    };
}

/// Cephes `expf`, for -87 <= x <= 88: e^x = 2^n e^r with |r| <= ln(2)/2; relative error 2e-7.
///
/// Adding 1.5 * 2^23 rounds to the nearest integer n and leaves it in the low mantissa bits.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p =
        ((((1.987_569_1e-4 * r + 1.398_2e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 1.666_666_5e-1) * r + 0.5;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    (p * r * r + r + 1.0) * power
}

impl Float for f32 {
    standard!(f32, 16, 8, 4);

    #[inline(always)]
    fn exp(self) -> Self {
        exp_f32(self.clamp(-87.0, 88.0))
    }

    #[inline(always)]
    fn sigmoid(self) -> Self {
        // `f32::clamp` keeps a NaN a NaN
        1.0 / (1.0 + exp_f32(-self.clamp(-30.0, 30.0)))
    }

    /// Cephes `tanhf`: an odd polynomial below 0.625, `1 - 2 / (e^2a + 1)` above.
    #[inline(always)]
    fn tanh(self) -> Self {
        let a = self.abs().clamp(0.0, 10.0);
        let z = a * a;
        let p = ((((-5.704_988_7e-3 * z + 2.063_909e-2) * z - 5.373_971_5e-2) * z + 1.333_144_2e-1) * z - 3.333_328e-1)
            * z
            * a
            + a;
        let q = 1.0 - 2.0 / (exp_f32(2.0 * a) + 1.0);
        let magnitude = if a < 0.625 { p } else { q };
        magnitude.copysign(self)
    }
}

impl Float for f64 {
    standard!(f64, 8, 4, 2);

    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }

    #[inline(always)]
    fn sigmoid(self) -> Self {
        1.0 / (1.0 + f64::exp(-self.clamp(-700.0, 700.0)))
    }

    #[inline(always)]
    fn tanh(self) -> Self {
        f64::tanh(self)
    }
}

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub(crate) fn multiply_add<T: Float, const FMA: bool>(a: T, b: T, c: T) -> T {
    if FMA { a.fused(b, c) } else { a * b + c }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_follow_f64_and_never_leave_their_range() {
        let mut worst = [0.0f64; 3];
        for i in -200_000..=200_000 {
            let v = i as f32 * 5e-4;
            worst[0] = worst[0].max((v.sigmoid() as f64 - 1.0 / (1.0 + (-(v as f64)).exp())).abs());
            worst[1] = worst[1].max((Float::tanh(v) as f64 - (v as f64).tanh()).abs());
            if v.abs() < 80.0 {
                let want = (v as f64).exp();
                worst[2] = worst[2].max((Float::exp(v) as f64 - want).abs() / want);
            }
        }
        assert!(worst[0] < 1.5e-7 && worst[1] < 2e-7 && worst[2] < 3e-7, "{worst:?}");
    }

    #[test]
    fn activations_at_the_ends() {
        for (v, s, t) in
            [(f32::INFINITY, 1.0, 1.0), (f32::NEG_INFINITY, 0.0, -1.0), (1e30, 1.0, 1.0), (-1e30, 0.0, -1.0)]
        {
            assert!((v.sigmoid() - s).abs() < 1e-12 && Float::tanh(v) == t, "{v}");
        }
        assert!(f32::NAN.sigmoid().is_nan() && Float::tanh(f32::NAN).is_nan());
        // the recurrence marks what lies past a row's end with gates of 0
        assert!(f32::NEG_INFINITY.sigmoid() > 0.0 && f64::NEG_INFINITY.sigmoid() > 0.0 && f64::NAN.sigmoid().is_nan());
        assert_eq!(Float::tanh(-0.0f32).to_bits(), (-0.0f32).to_bits());
        assert!((Float::tanh(1e-8f32) - 1e-8).abs() < 1e-15);
    }
}
