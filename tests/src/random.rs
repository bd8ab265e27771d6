//! Chance that a seed decides.

/// The seeds of a random test; `STEAD_SEEDS=from..to` chooses others.
///
/// # Panics
/// Where these are no numbers.
pub fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let chosen = std::env::var("STEAD_SEEDS").ok();
    let parsed = chosen.as_deref().and_then(|text| text.split_once(".."));
    parsed.map_or(default, |(from, to)| {
        from.parse().expect("a number")..to.parse().expect("a number")
    })
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }
}
