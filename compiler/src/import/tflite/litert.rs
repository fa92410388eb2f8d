//! Factors by which the definitions give LiteRT's numbers.
//!
//! The peer is LiteRT 2.3 with its default kernels: XNNPACK's where there is one for the operator, else the built-in
//! ones. Convolutions and fully connected layers, there as here, multiply by an f32 and round ties to even. The rest
//! rounds in ways of its own, for which the op table has rows: sums of whole numbers (`i8_add_up`), means of stored
//! numbers (`i8_avg_pool_away`), and lines `nearest(scale x + offset)` (`i8_sum_pool`). What has no such form is
//! refused.

use crate::import::int8::{Line, Quant};

/// Bits of the larger multiplier of a sum.
const SUM_BITS: i32 = 20;
/// Ratios of scales that XNNPACK's sums take.
const SUM_RATIOS: std::ops::Range<f32> = 1.0 / 1024.0..256.0;
/// Ratios of scales that its changes of scale take.
const CHANGE_RATIOS: std::ops::RangeInclusive<f32> = 1.0 / 256.0..=128.0;
/// From this ratio of scales on, a convolution is none of XNNPACK's.
const CONV_RATIO: f32 = 256.0;
/// What is added to a line's offset to put ties on the side that they belong to, tried in this order.
const NUDGES: [f64; 9] = [0.0, 1e-6, -1e-6, 1e-5, -1e-5, 1e-4, -1e-4, 1e-3, -1e-3];

fn outside(ratio: f32) -> String {
    format!("one scale is {ratio} times the other: LiteRT rounds such ratios in a way that no layer does")
}

/// Refuses a convolution that XNNPACK does not take.
///
/// # Errors
/// A channel's scale is too large beside the result's.
pub fn check_conv(x: Quant, w_scales: &[f32], y: Quant) -> Result<(), String> {
    let mut ratios = w_scales.iter().map(|w| x.scale as f32 * w / y.scale as f32);
    ratios.find(|ratio| *ratio >= CONV_RATIO && ratio.is_finite()).map_or(Ok(()), |ratio| Err(outside(ratio)))
}

/// The factors of a sum's operands: XNNPACK's multipliers, whole numbers of 21 bits over one power of two.
///
/// # Errors
/// The ratios are outside of what it takes, or one is so small beside the other that nothing is left of it.
pub fn sum_factors(a: f64, b: f64, y: f64) -> Result<[f32; 2], String> {
    let ratios = [a, b].map(|x| x as f32 / y as f32);
    if let Some(&ratio) = ratios.iter().find(|r| !SUM_RATIOS.contains(r)) {
        return Err(outside(ratio));
    }
    let exponent = (ratios[0].max(ratios[1]).to_bits() >> 23) as i32 - 127;
    // Powers of two change no digit, so the product is exact.
    let unit = 2f32.powi(SUM_BITS - exponent);
    Ok(ratios.map(|r| (r * unit).round_ties_even() / unit))
}

/// The mean over `area` elements, as MEAN computes it: product and sum in f32, the zero points in the offset.
pub fn mean(x: Quant, area: u64, y: Quant) -> Line {
    let (elems, zero) = (area as f32, x.zero as f32);
    let scale = (x.scale as f32 / y.scale as f32) * (1.0 / elems);
    Line { scale, offset: y.zero as f32 - elems * zero * scale }
}

/// A change of scale as QUANTIZE computes it: a multiplier of whole 256ths, ties up.
///
/// # Errors
/// The ratio is outside of what XNNPACK takes.
pub fn change(x: Quant, y: Quant) -> Result<Line, String> {
    let ratio = x.scale as f32 / y.scale as f32;
    if !CHANGE_RATIOS.contains(&ratio) {
        return Err(outside(ratio));
    }
    let factor = (ratio * 256.0).round_ties_even() as i64;
    let wanted = |stored: i64| (((stored - i64::from(x.zero)) * factor + 128) >> 8) + i64::from(y.zero);
    fit(factor as f64 / 256.0, [x.zero, y.zero], -128, wanted).ok_or_else(|| outside(ratio))
}

/// A RELU of another scale: the product with a number of 31 bits from 1/2 to 1, rounded, and for ratios below that the
/// quotient by a power of two, rounded again. Ties go up; what is below zero is clamped and may be anything there.
///
/// Each line comes with the quantisation that it leads to.
///
/// # Errors
/// No line gives the same numbers.
pub fn relu(x: Quant, y: Quant) -> Result<Vec<(Line, Quant)>, String> {
    let ratio = x.scale as f32 / y.scale as f32;
    // An f32's digits as a fraction from 1/2 to 1, and its power of two.
    let power = (ratio.to_bits() >> 23) as i32 - 126;
    let (left, right) = (power.max(0), (-power).max(0));
    if !(-16..=16).contains(&power) {
        return Err(outside(ratio));
    }
    let factor = (f64::from(ratio) * 2f64.powi(31 - power)) as i64;
    let between = if right > 0 { Quant { scale: y.scale * 2f64.powi(-right), zero: x.zero } } else { y };
    let zero = i64::from(x.zero);
    let product = |stored: i64| ((((stored - zero) << left) * factor + (1 << 30)) >> 31) + i64::from(between.zero);
    let first = fit(f64::from(ratio) * 2f64.powi(right), [x.zero, between.zero], zero, product);
    let mut lines = vec![(first.ok_or_else(|| outside(ratio))?, between)];
    if right > 0 {
        let quotient = |stored: i64| ((stored - zero + (1 << (right - 1))) >> right) + i64::from(y.zero);
        let second = fit(2f64.powi(-right), [x.zero, y.zero], zero, quotient);
        lines.push((second.ok_or_else(|| outside(ratio))?, y));
    }
    Ok(lines)
}

/// A line of this scale through both zero points that gives what is `wanted` for all stored numbers from `least` on.
fn fit(scale: f64, [x, y]: [i32; 2], least: i64, wanted: impl Fn(i64) -> i64) -> Option<Line> {
    let lines = NUDGES
        .iter()
        .map(|nudge| Line { scale: scale as f32, offset: (f64::from(y) - f64::from(x) * scale + nudge) as f32 });
    let mut lines = lines.filter(|line| (least..=127).all(|x| line.at(x as i8) == wanted(x).clamp(-128, 127) as i8));
    lines.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair of zero points that a drawn pair of scales comes with has its line.
    #[test]
    fn changes_and_relus_have_lines() {
        let mut refused = 0;
        for i in 0..2000u32 {
            let drawn = |k: u32| f64::from(i.wrapping_mul(2_654_435_761).rotate_left(k) >> 8) / f64::from(1u32 << 24);
            let scale =
                |k: u32| if i % 2 == 0 { 0.01 * (1.0 + (20.0 * drawn(k)).floor()) } else { (-4.0 * drawn(k)).exp() };
            let quant = |k: u32| Quant { scale: scale(k), zero: (256.0 * drawn(k + 3)) as i32 - 128 };
            let (x, y) = (quant(0), quant(11));
            assert!(change(x, y).is_ok(), "{x:?} to {y:?}");
            refused += u32::from(relu(x, y).is_err());
        }
        assert!(refused <= 4, "{refused} of 2000 have no line");
    }

    #[test]
    fn what_no_layer_rounds_like_is_refused() {
        let quant = |scale: f64| Quant { scale, zero: 3 };
        assert!(sum_factors(1.0, 0.5, 1.0).is_ok() && sum_factors(1.0, 0.0009, 1.0).is_err());
        assert!(sum_factors(256.0, 1.0, 1.0).is_err());
        assert!(change(quant(1.0), quant(0.0075)).is_err() && change(quant(0.0035), quant(1.0)).is_err());
        assert!(relu(quant(1e6), quant(1.0)).is_err());
        let conv = |w: f32| check_conv(quant(1.0), &[1.0, w], quant(1.0));
        assert!(conv(255.9).is_ok() && conv(256.0).is_err_and(|why| why.contains("one scale is 256 times")));
    }
}
