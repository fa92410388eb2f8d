//! Rotary position embeddings: the frequencies of each variant.
//!
//! Frequencies are computed in f32 with the roundings, and in the order, of the `transformers` library, whose
//! configurations they come from; powers are taken in f64 and rounded once. Not for applying the rotation.

use super::config_error::Findings;

/// How the plain frequencies are stretched for contexts longer than the model was pretrained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// `f / factor`.
    Linear {
        /// Stretch, at least 1 in practice.
        factor: f64,
    },
    /// The base grows with the length of the input beyond `max_positions`; up to there, not at all.
    Dynamic {
        /// Stretch beyond the original length.
        factor: f64,
    },
    /// Low frequencies are divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// `original / low` is the shortest wavelength that is divided in full.
        low_freq_factor: f64,
        /// `original / high` is the longest wavelength that is kept.
        high_freq_factor: f64,
        /// Context length of the pretraining.
        original_max_positions: u64,
    },
    /// NTK-by-parts: a ramp over the dimensions between kept and divided frequencies, and hotter attention.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Context length of the pretraining.
        original_max_positions: u64,
        /// Rotations at which the ramp begins.
        beta_fast: f64,
        /// Rotations at which the ramp ends.
        beta_slow: f64,
        /// Given attention factor; otherwise it follows from `factor` and the two scales.
        attention_factor: Option<f64>,
        /// Scale in the numerator of the attention factor.
        mscale: Option<f64>,
        /// Scale in its denominator.
        mscale_all_dim: Option<f64>,
        /// Whether the ends of the ramp are rounded outward to whole dimensions.
        truncate: bool,
    },
    /// One divisor a frequency; the short ones are used, up to the original context length.
    LongRope {
        /// Divisors up to `original_max_positions`, one a frequency.
        short_factor: Vec<f64>,
        /// Divisors beyond; kept for writing the configuration again.
        long_factor: Vec<f64>,
        /// Context length of the pretraining.
        original_max_positions: u64,
        /// Given attention factor; otherwise it follows from `factor`.
        attention_factor: Option<f64>,
        /// Stretch; otherwise `max_positions / original_max_positions`.
        factor: Option<f64>,
    },
    /// Divisors that a file gives as a tensor, without the rule they came from. No `config.json` can say this.
    Divisors,
}

/// Rotary position embedding of queries and keys.
///
/// Pair `i` of a head is rotated by `position * inv_freq[i]`; cosine and sine are multiplied by
/// `attention_factor`. The pair is elements `(i, i + rotary_dim / 2)`, or `(2 i, 2 i + 1)` when `interleaved`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the plain frequencies.
    pub theta: f64,
    /// Variant.
    pub scaling: RopeScaling,
    /// Angle per position of each pair, `rotary_dim / 2` of them.
    pub inv_freq: Vec<f32>,
    /// Factor of cosine and sine.
    pub attention_factor: f32,
    /// Whether a pair is two neighbours (GGUF files of the llama family) rather than half a head apart.
    pub interleaved: bool,
    /// Elements of a head that are rotated; even.
    pub rotary_dim: usize,
    /// Longest input for which these frequencies hold; `None` when they hold for any.
    pub max_positions_valid: Option<u64>,
}

impl Rope {
    /// The frequencies of a variant, in half-split form.
    ///
    /// `rotary_dim`: even, at least 2; `max_positions`: the configuration's context length. `None` when `theta`,
    /// or a parameter of the variant, makes a frequency that is not finite and positive; `LongRope` wants
    /// `rotary_dim / 2` short factors, `Divisors` needs [`Rope::divide`] afterwards.
    pub fn new(theta: f64, rotary_dim: usize, scaling: RopeScaling, max_positions: u64) -> Option<Rope> {
        if rotary_dim < 2 || !rotary_dim.is_multiple_of(2) {
            return None;
        }
        let plain = plain_frequencies(theta, rotary_dim);
        let mut attention_factor = 1.0;
        let mut max_positions_valid = None;
        let inv_freq = match &scaling {
            RopeScaling::Default | RopeScaling::Divisors => plain,
            RopeScaling::Dynamic { .. } => {
                max_positions_valid = Some(max_positions);
                plain
            }
            RopeScaling::Linear { factor } => plain.iter().map(|f| f / *factor as f32).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let original = *original_max_positions as f64;
                plain.iter().map(|&f| llama3(f, *factor, *low_freq_factor, *high_freq_factor, original)).collect()
            }
            RopeScaling::Yarn { .. } => {
                attention_factor = yarn_attention_factor(&scaling);
                yarn(theta, rotary_dim, &scaling)
            }
            RopeScaling::LongRope { short_factor, original_max_positions, attention_factor: given, factor, .. } => {
                if short_factor.len() != rotary_dim / 2 {
                    return None;
                }
                let original = *original_max_positions as f64;
                let factor = factor.unwrap_or(max_positions as f64 / original);
                attention_factor = given.unwrap_or_else(|| longrope_attention_factor(factor, original));
                max_positions_valid = Some(*original_max_positions);
                let powers = frequency_powers(theta, rotary_dim);
                powers.iter().zip(short_factor).map(|(power, short)| 1.0 / (*short as f32 * power)).collect()
            }
        };
        let attention_factor = attention_factor as f32;
        let is_sound = inv_freq.iter().chain([&attention_factor]).all(|x| x.is_finite() && *x > 0.0);
        is_sound.then_some(Rope {
            theta,
            scaling,
            inv_freq,
            attention_factor,
            interleaved: false,
            rotary_dim,
            max_positions_valid,
        })
    }

    /// Divides each frequency by its factor, as GGUF files of Llama 3 ask with the tensor `rope_freqs.weight`.
    ///
    /// When the factors are those of a published Llama 3 rule, `scaling` becomes that rule, so that a
    /// `config.json` can be written; else it becomes [`RopeScaling::Divisors`]. `None` when the number of factors
    /// is not that of the frequencies or a quotient is not finite and positive.
    pub fn divide(mut self, factors: &[f32]) -> Option<Rope> {
        if factors.len() != self.inv_freq.len() {
            return None;
        }
        self.scaling = self.llama3_rule(factors).unwrap_or(RopeScaling::Divisors);
        for (frequency, factor) in self.inv_freq.iter_mut().zip(factors) {
            *frequency /= factor;
        }
        self.inv_freq.iter().all(|x| x.is_finite() && *x > 0.0).then_some(self)
    }

    /// What the plain frequencies were divided by, for variants that GGUF files store so; `None` for others.
    pub fn divisors(&self) -> Option<Vec<f32>> {
        if !matches!(self.scaling, RopeScaling::Llama3 { .. } | RopeScaling::Divisors) {
            return None;
        }
        let plain = plain_frequencies(self.theta, self.rotary_dim);
        Some(plain.iter().zip(&self.inv_freq).map(|(plain, divided)| plain / divided).collect())
    }

    /// The Llama 3 rule (bands 1 and 4, 8192 original positions) that gives these factors, if it does.
    fn llama3_rule(&self, factors: &[f32]) -> Option<RopeScaling> {
        let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
        let is_match = self.inv_freq.iter().zip(factors).all(|(&plain, &given)| {
            let by_rule = plain / llama3(plain, factor, 1.0, 4.0, 8192.0);
            (by_rule - given).abs() <= 1e-5 * given
        });
        is_match.then_some(RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        })
    }
}

impl RopeScaling {
    /// Notes parameters that make no sense, under the key that holds them.
    pub(crate) fn check(&self, key: &str, findings: &mut Findings) {
        let mut positive = |name: &str, value: f64| {
            if !(value.is_finite() && value > 0.0) {
                findings.wrong(&format!("{key}.{name}"), value, "a positive number");
            }
        };
        match self {
            RopeScaling::Default | RopeScaling::Divisors => {}
            RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor } => positive("factor", *factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                positive("factor", *factor);
                positive("low_freq_factor", *low_freq_factor);
                positive("original_max_position_embeddings", *original_max_positions as f64);
                if high_freq_factor.is_nan() || high_freq_factor <= low_freq_factor {
                    let need = format!("more than low_freq_factor, {low_freq_factor}");
                    findings.wrong(&format!("{key}.high_freq_factor"), high_freq_factor, need);
                }
            }
            RopeScaling::Yarn { factor, original_max_positions, beta_fast, beta_slow, .. } => {
                positive("factor", *factor);
                positive("original_max_position_embeddings", *original_max_positions as f64);
                positive("beta_fast", *beta_fast);
                positive("beta_slow", *beta_slow);
            }
            RopeScaling::LongRope { original_max_positions, factor, .. } => {
                positive("original_max_position_embeddings", *original_max_positions as f64);
                positive("factor", factor.unwrap_or(1.0));
            }
        }
    }
}

/// `theta^(2 i / dim)` for each pair `i`.
fn frequency_powers(theta: f64, dim: usize) -> Vec<f32> {
    let base = f64::from(theta as f32);
    (0..dim / 2).map(|i| base.powf(f64::from((2 * i) as f32 / dim as f32)) as f32).collect()
}

/// `1 / theta^(2 i / dim)` for each pair `i`.
fn plain_frequencies(theta: f64, dim: usize) -> Vec<f32> {
    frequency_powers(theta, dim).iter().map(|power| 1.0 / power).collect()
}

/// One frequency of the Llama 3 rule.
fn llama3(inv_freq: f32, factor: f64, low: f64, high: f64, original: f64) -> f32 {
    let wavelen = (1.0 / inv_freq) * (2.0 * std::f64::consts::PI) as f32;
    let (low_wavelen, high_wavelen) = ((original / low) as f32, (original / high) as f32);
    if wavelen > low_wavelen {
        return inv_freq / factor as f32;
    }
    if wavelen < high_wavelen {
        return inv_freq;
    }
    let smooth = ((1.0 / wavelen) * original as f32 - low as f32) / (high - low) as f32;
    (1.0 - smooth) * inv_freq / factor as f32 + smooth * inv_freq
}

/// `0.1 * mscale * ln(scale) + 1`, or 1 without stretch.
fn yarn_mscale(scale: f64, mscale: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}

fn yarn_attention_factor(scaling: &RopeScaling) -> f64 {
    let RopeScaling::Yarn { factor, attention_factor, mscale, mscale_all_dim, .. } = scaling else {
        return 1.0;
    };
    if let Some(given) = attention_factor {
        return *given;
    }
    // A scale of zero counts as absent.
    match (mscale.filter(|&x| x != 0.0), mscale_all_dim.filter(|&x| x != 0.0)) {
        (Some(over), Some(under)) => yarn_mscale(*factor, over) / yarn_mscale(*factor, under),
        _ => yarn_mscale(*factor, 1.0),
    }
}

/// The frequencies of the YaRN rule.
fn yarn(theta: f64, dim: usize, scaling: &RopeScaling) -> Vec<f32> {
    let RopeScaling::Yarn { factor, original_max_positions, beta_fast, beta_slow, truncate, .. } = *scaling else {
        return Vec::new();
    };
    let dim_of = |rotations: f64| {
        let ratio = original_max_positions as f64 / (rotations * 2.0 * std::f64::consts::PI);
        dim as f64 * ratio.ln() / (2.0 * theta.ln())
    };
    let (mut low, mut high) = (dim_of(beta_fast), dim_of(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    low = low.max(0.0);
    high = high.min(dim as f64 - 1.0);
    if low == high {
        high += 0.001;
    }
    let ramp = |i: usize| ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
    let powers = frequency_powers(theta, dim);
    powers
        .iter()
        .enumerate()
        .map(|(i, power)| {
            let kept = 1.0 - ramp(i);
            1.0 / (factor as f32 * power) * (1.0 - kept) + 1.0 / power * kept
        })
        .collect()
}

fn longrope_attention_factor(factor: f64, original: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() }
}
