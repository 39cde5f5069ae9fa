//! A bad line: bytes that are lost, come twice or have a bit wrong, by a seed.

/// One direction of such a line, which damages the bytes that pass it.
#[derive(Clone, Debug)]
pub struct Noise {
    random: u64,
    per_million: u32,
}

impl Noise {
    /// So many bytes in a million are damaged.
    #[must_use]
    pub const fn new(seed: u64, per_million: u32) -> Self {
        Self { random: seed, per_million }
    }

    /// The bytes that arrive of `bytes`.
    pub fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut arrived = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            let draw = self.draw();
            if draw % 1_000_000 >= self.per_million.into() {
                arrived.push(byte);
                continue;
            }
            match (draw >> 32) % 3 {
                0 => {}
                1 => arrived.extend([byte; 2]),
                _ => arrived.push(byte ^ (1 << ((draw >> 40) % 8))),
            }
        }
        arrived
    }

    /// The next number (SplitMix64).
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::Noise;

    #[test]
    fn as_many_bytes_are_damaged_as_asked_for_and_the_same_by_the_same_seed() {
        let bytes = vec![b'x'; 1_000_000];
        assert_eq!(Noise::new(7, 0).pass(&bytes), bytes);
        let arrived = Noise::new(7, 10_000).pass(&bytes);
        assert_eq!(Noise::new(7, 10_000).pass(&bytes), arrived);
        let flipped = arrived.iter().filter(|&&byte| byte != b'x').count();
        assert!((2_800..3_900).contains(&flipped), "a third of 10,000: {flipped}");
        assert!(arrived.len() != bytes.len() && arrived.len().abs_diff(bytes.len()) < 500, "{}", arrived.len());
    }
}
