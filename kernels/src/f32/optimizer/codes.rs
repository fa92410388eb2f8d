//! Eight-bit states: a block's largest magnitude, and for every element the nearest value of a table.
//!
//! The table is the dynamic map of Dettmers et al. 2022: seven decades up to 1, the `i`-th, `10^(i - 7)..10^(i - 6)`,
//! cut into `2^i` equal parts (`2^(i + 1)` when there is no sign), of which the middles are the values; 0 and 1
//! besides.
//! So small values keep their order of magnitude and large ones have the most digits.

use super::BLOCK;
use crate::f32::simd::{self, Kernel, LANES, Simd};

/// A state in codes.
pub struct Codes<'a> {
    /// One code an element. All zeros, with zero scales, is a state of zeros.
    pub codes: &'a mut [u8],
    /// One largest magnitude a block of [`BLOCK`] elements.
    pub scales: &'a mut [f32],
}

/// Decades of the map.
const DECADES: usize = 7;

/// Codes whose magnitudes lie on one line: those of a decade, or the one of 1.
#[derive(Clone, Copy)]
struct Line {
    /// Where magnitudes begin to be nearer to this line's values than to the ones below.
    border: f32,
    /// `step of magnitude x = x * slope + offset`, rounded and kept in `first..=last`.
    slope: f32,
    offset: f32,
    first: f32,
    last: f32,
}

/// The values of the codes, and the lines that lead from a value to its code.
pub struct Table {
    /// What the codes stand for, ascending.
    values: [f32; 256],
    /// The code of 0; steps up from it stand for the magnitudes, ascending, steps down for their negatives.
    zero: f32,
    lines: [Line; DECADES + 1],
}

/// For states of either sign.
pub static SIGNED: Table = Table::new(true);
/// For states that are never negative.
pub static UNSIGNED: Table = Table::new(false);

impl Table {
    const fn new(is_signed: bool) -> Table {
        let mut values = [0.0; 256];
        let mut lines = [Line { border: 0.0, slope: 0.0, offset: 255.0, first: 0.0, last: 255.0 }; DECADES + 1];
        let zero = if is_signed { 127 } else { 0 };
        let (mut step, mut decade, mut before) = (1, 1e-6, 0.0);
        let mut i = 0;
        while i < DECADES {
            let parts = if is_signed { 1 << i } else { 2 << i };
            let width = decade * 0.9 / parts as f64;
            let lowest = decade * 0.1 + width / 2.0;
            lines[i] = Line {
                border: ((before + lowest) / 2.0) as f32,
                slope: (1.0 / width) as f32,
                offset: (step as f64 - lowest / width) as f32,
                first: step as f32,
                last: (step + parts - 1) as f32,
            };
            let mut part = 0;
            while part < parts {
                let value = lowest + width * part as f64;
                values[zero + step] = value as f32;
                if is_signed {
                    values[zero - step] = -(value as f32);
                }
                before = value;
                step += 1;
                part += 1;
            }
            decade *= 10.0;
            i += 1;
        }
        values[zero + step] = 1.0;
        let last = step as f32;
        lines[DECADES] = Line { border: ((before + 1.0) / 2.0) as f32, slope: 0.0, offset: last, first: last, last };
        Table { values, zero: zero as f32, lines }
    }

    /// What the codes stand for, ascending.
    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// What leads from a value to its code, for kernels of other devices: the code of 0, then of every line, ascending,
    /// the magnitude behind which it counts, its slope and offset, and its first and last step.
    pub fn lines(&self) -> [f32; 1 + 5 * (DECADES + 1)] {
        let mut all = [self.zero; 1 + 5 * (DECADES + 1)];
        for (line, out) in self.lines.iter().zip(all[1..].chunks_mut(5)) {
            out.copy_from_slice(&[line.border, line.slope, line.offset, line.first, line.last]);
        }
        all
    }

    /// The code of the value nearest to `x`, which is already divided by the scale.
    pub fn nearest(&self, x: f32) -> u8 {
        let mut block = [0.0; BLOCK];
        block[0] = x;
        // A scale of 1 leaves `x` as it is.
        block[1] = 1.0;
        let mut code = [0];
        simd::dispatch(Encode { table: self, x: &block, codes: &mut code });
        code[0]
    }

    /// `out[i] = value of codes[i] * scale`.
    #[inline(always)]
    pub(super) fn decode(&self, codes: &[u8], scale: f32, out: &mut [f32; BLOCK]) {
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = self.values[code as usize] * scale;
        }
    }

    /// The codes of `x` and the scale they are relative to, its largest magnitude.
    #[inline(always)]
    pub(super) fn encode<S: Simd>(&self, s: S, x: &[f32; BLOCK], codes: &mut [u8]) -> f32 {
        let (x, _) = x.as_chunks::<LANES>();
        let mut largest = s.zero();
        for x in x {
            largest = s.max(s.abs(s.load(x)), largest);
        }
        let scale = s.max_lane(largest);
        let inverse = s.splat(if scale > 0.0 { 1.0 / scale } else { 0.0 });
        for (codes, x) in codes.chunks_mut(LANES).zip(x) {
            let mut lanes = [0.0; LANES];
            s.store(self.code(s, s.mul(s.load(x), inverse)), &mut lanes);
            for (code, lane) in codes.iter_mut().zip(lanes) {
                *code = lane.to_bits() as u8;
            }
        }
        scale
    }

    /// The codes of sixteen values, in the low bits.
    #[inline(always)]
    fn code<S: Simd>(&self, s: S, x: S::V) -> S::V {
        /// Adding it leaves the nearest integer in the low bits.
        const TO_INTEGER: f32 = 12_582_912.0;
        let magnitude = s.abs(x);
        let (mut slope, mut offset, mut first, mut last) = (s.zero(), s.zero(), s.zero(), s.zero());
        for line in &self.lines {
            let is_on = s.lt(s.splat(line.border), magnitude);
            slope = s.select(is_on, s.splat(line.slope), slope);
            offset = s.select(is_on, s.splat(line.offset), offset);
            first = s.select(is_on, s.splat(line.first), first);
            last = s.select(is_on, s.splat(line.last), last);
        }
        let step = s.min(s.max(s.fma(magnitude, slope, offset), first), last);
        let zero = s.splat(self.zero);
        let is_negative = s.lt(x, s.zero());
        let step = s.round(step);
        // Only the positive side has a code for 1.
        let code = s.select(is_negative, s.sub(zero, s.min(step, zero)), s.add(zero, step));
        s.add(code, s.splat(TO_INTEGER))
    }
}

/// [`Table::encode`] for any instruction set.
struct Encode<'a> {
    table: &'a Table,
    x: &'a [f32; BLOCK],
    codes: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        self.table.encode(s, self.x, self.codes)
    }
}
