//! Lines of text, built in place.

use crate::host;

const LINE_BYTES: usize = 160;

/// One line; what does not fit is cut.
pub struct Line {
    /// The last byte stays 0: the host wants an end.
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl Line {
    /// Empty.
    pub fn new() -> Line {
        Line { bytes: [0; LINE_BYTES], len: 0 }
    }

    fn push(&mut self, byte: u8) {
        // Room for a line break and the end.
        if self.len < LINE_BYTES - 2
            && let Some(place) = self.bytes.get_mut(self.len)
        {
            *place = byte;
            self.len += 1;
        }
    }

    /// Adds text.
    pub fn text(&mut self, text: &str) -> &mut Line {
        text.bytes().for_each(|byte| self.push(byte));
        self
    }

    /// Adds an integer.
    pub fn number(&mut self, number: u64) -> &mut Line {
        let mut digits = [0u8; 20];
        let mut rest = number;
        let mut count = 0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            (rest, count) = (rest / 10, count + 1);
            if rest == 0 {
                break;
            }
        }
        digits.iter().skip(20 - count).for_each(|digit| self.push(*digit));
        self
    }

    /// Adds an integer of 32 bits with eight hexadecimal digits.
    pub fn hex(&mut self, number: u32) -> &mut Line {
        for digit in (0..8).rev() {
            let value = (number >> (4 * digit) & 15) as u8;
            self.push(if value < 10 { b'0' + value } else { b'a' + value - 10 });
        }
        self
    }

    /// Adds a number that is not negative, with six decimals.
    pub fn decimal(&mut self, number: f32) -> &mut Line {
        let millionths = (f64::from(number) * 1e6) as u64;
        self.number(millionths / 1_000_000).text(".");
        let mut below = millionths % 1_000_000;
        for _ in 0..6 {
            self.push(b'0' + (below / 100_000) as u8);
            below = below % 100_000 * 10;
        }
        self
    }

    /// Writes it out.
    pub fn print(&mut self) {
        if let Some(end) = self.bytes.get_mut(self.len) {
            *end = b'\n';
        }
        host::print(&self.bytes);
    }
}

impl Default for Line {
    fn default() -> Line {
        Line::new()
    }
}
