//! Repeatable random numbers: SplitMix64 (Steele, Lea, Flood 2014) for sequences, Threefry (Salmon et al. 2011) for
//! numbers by their place. Same seed, same numbers, everywhere.

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

    /// Normal with mean 0 and variance 1 (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// `len` values uniform in [-bound, bound).
    pub fn vector(&mut self, len: usize, bound: f64) -> Vec<f64> {
        (0..len).map(|_| self.symmetric(bound)).collect()
    }
}

/// Threefry-2x32 with 20 rounds: two random words for every key and counter, without a state.
#[inline]
pub fn threefry(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const TURNS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let keys = [key[0], key[1], 0x1bd1_1bda ^ key[0] ^ key[1]];
    let [mut a, mut b] = [counter[0].wrapping_add(keys[0]), counter[1].wrapping_add(keys[1])];
    for group in 0..5 {
        for turn in TURNS[group % 2] {
            a = a.wrapping_add(b);
            b = b.rotate_left(turn) ^ a;
        }
        a = a.wrapping_add(keys[(group + 1) % 3]);
        b = b.wrapping_add(keys[(group + 2) % 3]).wrapping_add(group as u32 + 1);
    }
    [a, b]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random123, `tests/kat_vectors`, threefry2x32 with 20 rounds.
    #[test]
    fn threefry_gives_the_known_answers() {
        for (key, counter, answer) in [
            ([0, 0], [0, 0], [0x6b20_0159, 0x99ba_4efe]),
            ([u32::MAX; 2], [u32::MAX; 2], [0x1cb9_96fc, 0xbb00_2be7]),
            ([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3], [0xc492_3a9c, 0x483d_f7a0]),
        ] {
            assert_eq!(threefry(key, counter), answer);
        }
    }

    /// Shares of kept elements within 4.5 standard deviations, also of pairs in neighbouring places, steps and keys.
    #[test]
    fn threefry_keeps_the_share_it_should() {
        let places = 1 << 18;
        for p in [0.01, 0.1, 0.5, 0.9] {
            let kept = |key, e, step| threefry([key, 7], [e, step])[0] as f64 >= p * 4_294_967_296.0;
            let share = |of: &dyn Fn(u32) -> bool| (0..places).filter(|e| of(*e)).count() as f64 / places as f64;
            let near = |found: f64, wanted: f64| {
                let deviation = (wanted * (1.0 - wanted) / places as f64).sqrt();
                assert!((found - wanted).abs() < 4.5 * deviation, "{found}, not {wanted}, at {p}");
            };
            for (key, step) in [(0, 0), (1, 0), (0, 1), (0, 1 << 20)] {
                near(share(&|e| kept(key, e, step)), 1.0 - p);
            }
            let both = (1.0 - p) * (1.0 - p);
            near(share(&|e| kept(0, 2 * e, 0) && kept(0, 2 * e + 1, 0)), both);
            near(share(&|e| kept(0, e, 0) && kept(0, e, 1)), both);
            near(share(&|e| kept(0, e, 0) && kept(1, e, 0)), both);
        }
    }
}
