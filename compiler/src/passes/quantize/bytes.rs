//! What the bytes of a network's input mean.

use super::Result;
use crate::import::int8::{Int8Error, Quant};

/// How a float network wants its input made of a sample's bytes `q`, which are pixels less 128:
/// `x = ((q + 128) scale - mean) / std`, mean and deviation one for all channels or one a channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Bytes {
    /// One step of a byte: 1/255 for networks that take pixels of 0..1.
    pub scale: f64,
    /// What is taken off.
    pub mean: Vec<f64>,
    /// What is divided by.
    pub std: Vec<f64>,
}

impl Default for Bytes {
    /// Pixels of 0..1.
    fn default() -> Bytes {
        Bytes { scale: 1.0 / 255.0, mean: vec![0.0], std: vec![1.0] }
    }
}

/// The input as int8, and what of its meaning the first layer takes over: channel `c` means
/// `factors[c] real + offsets[c]`.
pub(super) struct Input {
    pub quant: Quant,
    pub factors: Vec<f64>,
    pub offsets: Vec<f64>,
    pub note: Option<String>,
}

impl Input {
    /// Whether its bytes mean the same in all channels, up to half a step.
    pub fn is_even(&self) -> bool {
        self.factors.iter().all(|&f| f == 1.0) && self.offsets.iter().all(|d| d.abs() <= self.quant.scale / 2.0)
    }
}

impl Bytes {
    /// Mean and deviation of a channel.
    fn of(&self, channel: usize) -> (f64, f64) {
        let at = |list: &[f64]| if list.len() == 1 { list[0] } else { list[channel] };
        (at(&self.mean), at(&self.std))
    }

    /// What the float network gets for a byte of this channel.
    pub fn real(&self, byte: i8, channel: usize) -> f32 {
        let (mean, std) = self.of(channel);
        (((f64::from(byte) + 128.0) * self.scale - mean) / std) as f32
    }

    /// Refuses lists that do not suit the channels, and numbers that mean nothing.
    ///
    /// # Errors
    /// With the numbers.
    pub fn check(&self, channels: u32) -> Result<()> {
        let fail = |why: String| Err(Int8Error::Layer { layer: "the input".into(), why });
        for (name, list) in [("mean", &self.mean), ("deviation", &self.std)] {
            if list.len() != 1 && list.len() != channels as usize {
                return fail(format!(
                    "{} numbers as its {name}; one, or one for each of {channels} channels, is taken",
                    list.len()
                ));
            }
        }
        let is_scale = |x: f64| x.is_finite() && (x as f32).is_normal() && x > 0.0;
        if !is_scale(self.scale) || !self.std.iter().all(|&s| is_scale(s)) || !self.mean.iter().all(|m| m.is_finite()) {
            return fail(format!(
                "scale {}, mean {:?} and deviation {:?} must be finite, the first and last positive",
                self.scale, self.mean, self.std
            ));
        }
        Ok(())
    }

    /// The input's quantisation. Channel by channel, `x_c = a_c (q - z) + d_c` with one zero point `z`, the stored
    /// number nearest to 0 over all channels: `a_c` and `d_c` are the first layer's to fold.
    pub(super) fn input(&self, channels: u32) -> Result<Input> {
        self.check(channels)?;
        let parts: Vec<(f64, f64)> = (0..channels as usize).map(|c| self.of(c)).collect();
        let mean = parts.iter().map(|(mean, _)| mean / self.scale).sum::<f64>() / f64::from(channels);
        let zero = (mean - 128.0).round_ties_even().clamp(-128.0, 127.0);
        let steps: Vec<f64> = parts.iter().map(|(_, std)| self.scale / std).collect();
        let scale = steps.iter().fold(0.0, |a: f64, &b| a.max(b));
        let offsets: Vec<f64> =
            parts.iter().zip(&steps).map(|((mean, _), step)| step * (zero + 128.0 - mean / self.scale)).collect();
        let widest = offsets.iter().zip(&steps).map(|(d, step)| (d / step).abs()).fold(0.0, f64::max);
        let note = (widest > 1.0).then(|| {
            format!(
                "the means of the input's channels lie up to {widest:.0} bytes from the one zero point {zero}: folded \
                 into the first layer, which is exact but where that layer reads padding"
            )
        });
        let factors = steps.iter().map(|step| step / scale).collect();
        Ok(Input { quant: Quant { scale, zero: zero as i32 }, factors, offsets, note })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_means_the_same_in_both_networks() {
        let bytes = Bytes { scale: 1.0 / 255.0, mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] };
        let input = bytes.input(3).unwrap();
        for (q, c) in [(-128i8, 0), (0, 1), (127, 2), (-13, 0)] {
            let real = input.quant.scale * f64::from(i32::from(q) - input.quant.zero);
            let folded = input.factors[c] * real + input.offsets[c];
            assert!((folded - f64::from(bytes.real(q, c))).abs() < 1e-6, "{q} {c}");
        }
        assert!(input.note.is_some());
        assert!(bytes.input(4).is_err());
        assert!(Bytes { std: vec![0.0], ..Bytes::default() }.input(3).is_err());
        assert_eq!(Bytes::default().input(1).unwrap().quant, Quant { scale: 1.0 / 255.0, zero: -128 });
    }
}
