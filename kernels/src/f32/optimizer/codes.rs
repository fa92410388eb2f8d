//! Eight-bit states: a block's largest magnitude, and for every element the nearest value of a table.
//!
//! The table is the dynamic map of Dettmers et al. 2022: seven decades from 1e-6 to 1, the decade `10^(i - 7)..10^(i - 6)`
//! cut into `2^i` equal parts (`2^(i + 1)` when there is no sign), of which the middles are the values; 0 and 1 besides.
//! So small values keep their order of magnitude and large ones have the most digits.

use super::BLOCK;

/// A state in codes.
pub struct Codes<'a> {
    /// One code an element. All zeros, with zero scales, is a state of zeros.
    pub codes: &'a mut [u8],
    /// One largest magnitude a block of [`BLOCK`] elements.
    pub scales: &'a mut [f32],
}

/// The values of the codes, ascending, and the middles between neighbours.
pub struct Table {
    values: [f32; 256],
    middles: [f32; 255],
}

/// For states of either sign.
pub static SIGNED: Table = Table::new(true);
/// For states that are never negative.
pub static UNSIGNED: Table = Table::new(false);

impl Table {
    const fn new(is_signed: bool) -> Table {
        let mut values = [0.0; 256];
        let zero = if is_signed { 127 } else { 0 };
        let mut next = 1;
        let mut decade = 1e-6;
        let mut i = 0;
        while i < 7 {
            let parts = if is_signed { 1 << i } else { 2 << i };
            let mut part = 0;
            while part < parts {
                let value = decade * (0.1 + 0.9 * (part as f64 + 0.5) / parts as f64);
                values[zero + next] = value as f32;
                if is_signed {
                    values[zero - next] = -(value as f32);
                }
                next += 1;
                part += 1;
            }
            decade *= 10.0;
            i += 1;
        }
        values[255] = 1.0;
        let mut middles = [0.0; 255];
        let mut i = 0;
        while i < 255 {
            middles[i] = ((values[i] as f64 + values[i + 1] as f64) / 2.0) as f32;
            i += 1;
        }
        Table { values, middles }
    }

    /// What the codes stand for, ascending.
    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// The code of the value nearest to `x`, the lower one of two; `x` is already divided by the scale.
    #[inline(always)]
    pub fn nearest(&self, x: f32) -> u8 {
        let mut code = 0;
        let mut step = 128;
        while step > 0 {
            // The sum of the steps so far stays below 256, so the middle is there.
            code += if x > self.middles[code + step - 1] { step } else { 0 };
            step /= 2;
        }
        code as u8
    }

    /// `out[i] = value of codes[i] * scale`.
    #[inline(always)]
    pub(super) fn decode(&self, codes: &[u8], scale: f32, out: &mut [f32; BLOCK]) {
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = self.values[code as usize] * scale;
        }
    }

    /// The codes of `x` and the scale they are relative to.
    #[inline(always)]
    pub(super) fn encode(&self, x: &[f32; BLOCK], codes: &mut [u8]) -> f32 {
        let mut largest = [0.0f32; 16];
        for x in x.as_chunks::<16>().0 {
            for i in 0..16 {
                let magnitude = x[i].abs();
                largest[i] = if magnitude > largest[i] { magnitude } else { largest[i] };
            }
        }
        let scale = largest.iter().copied().fold(0.0, f32::max);
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        for (code, &x) in codes.iter_mut().zip(x) {
            *code = self.nearest(x * inverse);
        }
        scale
    }
}
