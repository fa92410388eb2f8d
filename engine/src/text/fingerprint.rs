//! A fast 64-bit digest that tells whether inputs changed. It is not for security.

/// Digest of a stream of bytes; how the stream is cut into calls does not matter.
#[derive(Debug, Clone)]
pub(crate) struct Fingerprint {
    state: u64,
    tail: [u8; 8],
    len: u64,
}

impl Fingerprint {
    pub(crate) fn new() -> Fingerprint {
        Fingerprint { state: 0x243f_6a88_85a3_08d3, tail: [0; 8], len: 0 }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        let filled = (self.len % 8) as usize;
        self.len += bytes.len() as u64;
        if filled > 0 {
            let take = bytes.len().min(8 - filled);
            self.tail[filled..filled + take].copy_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if filled + take < 8 {
                return;
            }
            self.word(u64::from_le_bytes(self.tail));
        }
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        self.tail[..rest.len()].copy_from_slice(rest);
    }

    /// A field of its own: its length goes in too, so that neighbouring fields cannot be shifted into each other.
    pub(crate) fn field(&mut self, bytes: &[u8]) {
        self.update(&(bytes.len() as u64).to_le_bytes());
        self.update(bytes);
    }

    fn word(&mut self, word: u64) {
        self.state = mix(self.state ^ word);
    }

    pub(crate) fn finish(&self) -> u64 {
        let mut tail = [0; 8];
        let filled = (self.len % 8) as usize;
        tail[..filled].copy_from_slice(&self.tail[..filled]);
        mix(mix(self.state ^ u64::from_le_bytes(tail)) ^ self.len)
    }
}

/// Scrambles 64 bits one to one (the finalizer of SplitMix64).
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cuts_do_not_matter_and_every_byte_does() {
        let bytes: Vec<u8> = (0..100).map(|i| (i * 37) as u8).collect();
        let digest = |parts: &[&[u8]]| {
            let mut digest = Fingerprint::new();
            parts.iter().for_each(|part| digest.update(part));
            digest.finish()
        };
        let whole = digest(&[&bytes]);
        for cut in 0..100 {
            assert_eq!(digest(&[&bytes[..cut], &bytes[cut..cut.midpoint(100)], &bytes[cut.midpoint(100)..]]), whole);
            let mut other = bytes.clone();
            other[cut] ^= 1;
            assert_ne!(digest(&[&other]), whole);
            assert_ne!(digest(&[&bytes[..cut]]), whole);
        }
    }
}
