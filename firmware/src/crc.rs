//! CRC-32 as in zlib and Ethernet: reflected polynomial 0xedb88320, start and end inverted.

/// Remainders of four bits: 64 bytes of flash, two look-ups a byte.
const TABLE: [u32; 16] = table();

const fn table() -> [u32; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        let mut word = i as u32;
        let mut bit = 0;
        while bit < 4 {
            word = if word & 1 == 1 { word >> 1 ^ 0xedb8_8320 } else { word >> 1 };
            bit += 1;
        }
        table[i] = word;
        i += 1;
    }
    table
}

/// A checksum over bytes that come in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Crc(u32);

impl Crc {
    /// The checksum of nothing.
    pub const fn new() -> Crc {
        Crc(u32::MAX)
    }

    /// Takes in further bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let mut word = self.0 ^ u32::from(*byte);
            word = word >> 4 ^ TABLE[(word & 15) as usize];
            word = word >> 4 ^ TABLE[(word & 15) as usize];
            self.0 = word;
        }
    }

    /// The checksum of all bytes so far.
    pub const fn value(self) -> u32 {
        !self.0
    }

    /// The checksum of these bytes.
    pub fn of(bytes: &[u8]) -> u32 {
        let mut crc = Crc::new();
        crc.add(bytes);
        crc.value()
    }
}

impl Default for Crc {
    fn default() -> Crc {
        Crc::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_check_value() {
        assert_eq!(Crc::of(b"123456789"), 0xcbf4_3926);
        assert_eq!(Crc::of(b""), 0);
    }

    #[test]
    fn pieces_are_as_good_as_the_whole() {
        let mut crc = Crc::new();
        crc.add(b"1234");
        crc.add(b"");
        crc.add(b"56789");
        assert_eq!(crc.value(), Crc::of(b"123456789"));
    }
}
