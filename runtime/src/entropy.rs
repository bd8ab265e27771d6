//! The only source of randomness: a sequence from one seed.

/// SplitMix64 (Steele, Lea and Flood, 2014), seeded by the operating system.
#[derive(Debug, Clone)]
pub(crate) struct Entropy(u64);

impl Entropy {
    /// A sequence that nobody can predict.
    #[allow(clippy::disallowed_methods, reason = "this is the home of randomness")]
    pub(crate) fn system() -> Self {
        // Where the operating system has no randomness nothing else is safe to do.
        Self(getrandom::u64().expect("the operating system provides randomness"))
    }

    /// The sequence of one seed, for tests that are repeated.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn next_wide(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }
}
