//! Factors by which the definitions give LiteRT's numbers.
//!
//! The peer is LiteRT 2.3 with its default kernels: XNNPACK's where there is one for the operator, else the built-in
//! optimised ones. Convolutions and fully connected layers, there as here, multiply by an f32 and round ties to even.
//! What is rounded otherwise there is put into factors here, each within 2^-20 of the exact one (of a requantisation,
//! within 2^-9); the definitions stay as they are. Not exact: ties of a sum, which go up there, and ties of an average
//! pool that is padded or larger than [`AREA_MAX`], which go away from stored 0 there.

/// Bits of the larger multiplier of a sum.
const SUM_BITS: i32 = 20;
/// What a factor of means has over its exact value: ties move by more than half a step of f32, and no mean by more than
/// 2^-14, where the nearest to a tie is `1 / AREA_MAX` from it.
const BEYOND: f32 = 1.0 / (1u32 << 21) as f32;
/// Largest window that becomes a convolution: its weights of 1 are stored.
const AREA_MAX: u64 = 256;

/// The factors of a sum's operands: XNNPACK's multipliers, whole numbers of 21 bits over one power of two.
/// Outside of the ratios that it takes, `a / y` and `b / y`.
pub fn sum_factors(a: f64, b: f64, y: f64) -> [f32; 2] {
    let ratios = [a, b].map(|x| x as f32 / y as f32);
    if ratios.iter().any(|r| !(1.0 / 1024.0..256.0).contains(r)) {
        return ratios;
    }
    let exponent = (ratios[0].max(ratios[1]).to_bits() >> 23) as i32 - 127;
    // Powers of two change no digit, so the product is exact.
    let unit = 2f32.powi(SUM_BITS - exponent);
    ratios.map(|r| (r * unit).round_ties_even() / unit)
}

/// The factor of a requantisation: XNNPACK's multiplier, a whole number of 256ths.
pub fn requantize_factor(x: f64, y: f64) -> f32 {
    let ratio = x as f32 / y as f32;
    if (1.0 / 256.0..=128.0).contains(&ratio) { (ratio * 256.0).round_ties_even() / 256.0 } else { ratio }
}

/// The factor of the sum over `area` elements of which a MEAN gives the mean in another scale.
pub fn mean_factor(x: f64, area: u64, y: f64) -> f32 {
    x as f32 * (1.0 / area as f32) / y as f32
}

/// The factor of a sum of stored numbers that gives their mean with ties away from 0, as AVERAGE_POOL_2D does: a
/// little more than `1 / area`, so that a tie lies beyond itself and nothing else crosses one. `None` for windows that
/// have no ties, or are too large.
pub fn away_factor(area: u64) -> Option<f32> {
    (area.is_multiple_of(2) && area <= AREA_MAX).then(|| (1.0 + BEYOND) / area as f32)
}
