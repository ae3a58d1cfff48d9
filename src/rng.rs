//! Repeatable random numbers: SplitMix64 (Steele, Lea, Flood 2014). Same seed, same numbers, everywhere.

/// A small generator for initial values, shuffling and sampling; not for cryptography.
///
/// ```
/// let (mut a, mut b) = (everloop::Rng::new(7), everloop::Rng::new(7));
/// assert_eq!(a.uniform(), b.uniform());
/// assert!(a.below(10) < 10);
/// ```
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [-bound, bound).
    pub fn symmetric(&mut self, bound: f64) -> f64 {
        (2.0 * self.uniform() - 1.0) * bound
    }

    /// Uniform in 0..n; 0 for n = 0. The bias of at most n / 2^64 does not matter here.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.bits() as u128 * n as u128) >> 64) as usize
    }

    /// `len` values uniform in [-bound, bound).
    pub fn vector(&mut self, len: usize, bound: f64) -> Vec<f64> {
        (0..len).map(|_| self.symmetric(bound)).collect()
    }
}
