//! Which token comes next.

use tinyforge_kernels::random::Stream;

/// The step that sampling draws its random numbers at: no optimizer step, nor that of initial values.
const STREAM_STEP: u32 = u32::MAX - 1;

/// How a token is chosen from the logits. The steps are taken in the order of the fields.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sampling {
    /// Logits of tokens that the text already has are divided by it where positive and multiplied where negative;
    /// 1 leaves them.
    pub repetition_penalty: f32,
    /// Logits are divided by it; 0 takes the likeliest token, of equal ones the first.
    pub temperature: f32,
    /// Only so many of the likeliest tokens are left; 0 leaves all.
    pub top_k: usize,
    /// Only the likeliest tokens are left whose probabilities reach this sum together; 1 leaves all.
    pub top_p: f32,
    /// The same seed after the same text chooses the same token.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { repetition_penalty: 1.0, temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// What is wrong with the settings, if anything.
    pub fn fault(&self) -> Option<String> {
        let Sampling { repetition_penalty, temperature, top_p, .. } = *self;
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Some(format!("temperature {temperature} must be 0 or more"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Some(format!("top-p {top_p} must be above 0 and at most 1"));
        }
        let is_good = repetition_penalty > 0.0 && repetition_penalty.is_finite();
        (!is_good).then(|| format!("repetition penalty {repetition_penalty} must be above 0"))
    }
}

/// Memory for choosing tokens; nothing is allocated after it is made.
pub(super) struct Sampler {
    logits: Vec<f32>,
    /// Tokens still to choose from.
    left: Vec<u32>,
    /// Whether the text has the token.
    is_penalised: Vec<bool>,
}

impl Sampler {
    pub(super) fn new(vocab: usize) -> Sampler {
        Sampler { logits: vec![0.0; vocab], left: Vec::with_capacity(vocab), is_penalised: vec![false; vocab] }
    }

    /// Bytes that a sampler of so many tokens takes.
    pub(super) fn bytes(vocab: usize) -> usize {
        vocab * (size_of::<f32>() + size_of::<u32>() + size_of::<bool>())
    }

    /// The token after `text`, which holds ids below the number of logits. `None` when a logit is no number.
    pub(super) fn sample(&mut self, logits: &[f32], text: &[u32], how: &Sampling) -> Option<u32> {
        if logits.iter().any(|x| x.is_nan()) {
            return None;
        }
        self.logits.copy_from_slice(logits);
        if how.repetition_penalty != 1.0 {
            self.penalise(text, how.repetition_penalty);
        }
        if how.temperature == 0.0 {
            return Some(likeliest(&self.logits));
        }
        self.left.clear();
        self.left.extend(0..logits.len() as u32);
        self.keep_top_k(how.top_k);
        let max = self.left.iter().fold(f32::NEG_INFINITY, |max, &id| max.max(self.logits[id as usize]));
        for &id in &self.left {
            let x = &mut self.logits[id as usize];
            // All logits but some infinite ones: those share the probability.
            *x = if *x == max { 1.0 } else { ((*x - max) / how.temperature).exp() };
        }
        self.keep_top_p(how.top_p);
        Some(self.draw(Stream { seed: how.seed, step: STREAM_STEP, tensor: 0 }.uniform(text.len() as u64)))
    }

    fn penalise(&mut self, text: &[u32], penalty: f32) {
        for &id in text {
            let (x, is_done) = (&mut self.logits[id as usize], &mut self.is_penalised[id as usize]);
            if !std::mem::replace(is_done, true) {
                *x = if *x > 0.0 { *x / penalty } else { *x * penalty };
            }
        }
        text.iter().for_each(|&id| self.is_penalised[id as usize] = false);
    }

    /// Brings the likelier of two tokens first, of equal ones the first.
    fn order(values: &[f32]) -> impl Fn(&u32, &u32) -> std::cmp::Ordering {
        |&a, &b| values[b as usize].total_cmp(&values[a as usize]).then(a.cmp(&b))
    }

    fn keep_top_k(&mut self, k: usize) {
        if k > 0 && k < self.left.len() {
            self.left.select_nth_unstable_by(k - 1, Sampler::order(&self.logits));
            self.left.truncate(k);
            self.left.sort_unstable();
        }
    }

    /// `logits` holds multiples of the probabilities.
    fn keep_top_p(&mut self, p: f32) {
        if p >= 1.0 {
            return;
        }
        let Sampler { logits, left, .. } = self;
        left.sort_unstable_by(Sampler::order(logits));
        let enough = f64::from(p) * total(logits, left);
        let mut sum = 0.0;
        let reaches = |&id: &u32| {
            sum += f64::from(logits[id as usize]);
            sum >= enough
        };
        let count = left.iter().position(reaches).map_or(left.len(), |last| last + 1);
        left.truncate(count);
    }

    /// The token at the share `u` of the probability that is left.
    fn draw(&self, u: f32) -> u32 {
        let goal = f64::from(u) * total(&self.logits, &self.left);
        let mut sum = 0.0;
        let passes = |&&id: &&u32| {
            sum += f64::from(self.logits[id as usize]);
            sum > goal
        };
        // `u` is below 1, so only rounding can leave the goal unreached.
        *self.left.iter().find(passes).or(self.left.last()).expect("a token is always left")
    }
}

fn total(weights: &[f32], ids: &[u32]) -> f64 {
    ids.iter().map(|&id| f64::from(weights[id as usize])).sum()
}

fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &x) in logits.iter().enumerate() {
        if x > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, -2.0, 3.0, 2.0];

    fn counts(how: Sampling, draws: u64) -> [u64; 5] {
        let mut sampler = Sampler::new(5);
        let mut counts = [0; 5];
        for seed in 0..draws {
            let id = sampler.sample(&LOGITS, &[], &Sampling { seed, ..how }).unwrap();
            counts[id as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        assert_eq!(Sampler::new(5).sample(&LOGITS, &[], &Sampling::default()), Some(1));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let how = Sampling { temperature: 2.0, ..Sampling::default() };
        let weights = LOGITS.map(|x| (f64::from(x) / 2.0).exp());
        let sum: f64 = weights.iter().sum();
        for (count, weight) in counts(how, 20_000).iter().zip(weights) {
            let expected = 20_000.0 * weight / sum;
            assert!((*count as f64 - expected).abs() < 5.0 * expected.sqrt(), "{count} draws, {expected} expected");
        }
    }

    #[test]
    fn top_k_and_top_p_leave_the_likeliest() {
        let how = Sampling { temperature: 1.0, ..Sampling::default() };
        assert_eq!(counts(Sampling { top_k: 1, ..how }, 100), [0, 100, 0, 0, 0]);
        let two = counts(Sampling { top_k: 2, ..how }, 1000);
        assert!(two[1] > 400 && two[3] > 400 && two[1] + two[3] == 1000);
        // Probabilities are .05, .38, .00, .38, .14.
        let three = counts(Sampling { top_p: 0.8, ..how }, 1000);
        assert!(three[0] + three[2] == 0 && three[4] > 100);
        let both = counts(Sampling { top_k: 3, top_p: 0.5, ..how }, 1000);
        assert_eq!(both[1] + both[3], 1000);
        assert_eq!(counts(Sampling { top_p: 1e-9, ..how }, 100), [0, 100, 0, 0, 0]);
    }

    #[test]
    fn a_penalty_counts_once_per_token() {
        let how = Sampling { repetition_penalty: 1.2, ..Sampling::default() };
        let mut sampler = Sampler::new(5);
        assert_eq!(sampler.sample(&LOGITS, &[1], &how), Some(3));
        assert_eq!(sampler.sample(&LOGITS, &[1, 3, 3, 3], &how), Some(1));
        assert_eq!(sampler.sample(&[-1.0, -1.05, -9.0, -9.0, -9.0], &[0], &how), Some(1));
    }

    #[test]
    fn infinities_are_chosen_or_left_and_nan_is_refused() {
        let how = Sampling { temperature: 1.0, ..Sampling::default() };
        let mut sampler = Sampler::new(5);
        let inf = f32::INFINITY;
        assert_eq!(sampler.sample(&[0.0, inf, 0.0, 0.0, 0.0], &[], &how), Some(1));
        assert_eq!(sampler.sample(&[-inf, -inf, -inf, -inf, 0.0], &[], &how), Some(4));
        assert!(sampler.sample(&[-inf; 5], &[], &how).is_some());
        assert_eq!(sampler.sample(&[0.0, f32::NAN, 0.0, 0.0, 0.0], &[], &how), None);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let good = Sampling::default();
        assert_eq!(good.fault(), None);
        for (bad, word) in [
            (Sampling { temperature: f32::NAN, ..good }, "temperature"),
            (Sampling { temperature: -1.0, ..good }, "temperature"),
            (Sampling { top_p: 0.0, ..good }, "top-p"),
            (Sampling { repetition_penalty: 0.0, ..good }, "repetition"),
        ] {
            assert!(bad.fault().unwrap().contains(word));
        }
    }
}
