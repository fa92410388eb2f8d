//! Ranges of values: seen in full, and cut where that loses least.

use crate::import::int8::Quant;

/// Parts that a value's range is counted in.
const BINS: usize = 2048;
/// Cuts that are tried, in parts of the range.
const CUTS: usize = 128;

/// How a range is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clipping {
    /// Not at all.
    MinMax,
    /// Where the mean squared difference to the float values is least.
    LeastSquares,
    /// So that this share of the values that are not 0 lies inside.
    Percentile(f64),
}

/// The least and the greatest of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The least, cut; at most 0.
    pub lo: f64,
    /// The greatest, cut; at least 0.
    pub hi: f64,
    /// The least and greatest that were seen, or 0.
    pub seen: [f64; 2],
}

impl Range {
    /// A range that is not cut.
    pub fn of(lo: f64, hi: f64) -> Range {
        let (lo, hi) = (lo.min(0.0), hi.max(0.0));
        Range { lo, hi, seen: [lo, hi] }
    }

    /// Whether nothing but 0 was seen.
    pub(super) fn is_still(&self) -> bool {
        self.seen == [0.0; 2]
    }

    /// Scale and zero point: the range over 255 steps. `whole` takes what was seen.
    pub(super) fn quant(&self, whole: bool) -> Quant {
        let [lo, hi] = if whole { self.seen } else { [self.lo, self.hi] };
        let scale = if hi - lo > 1e-30 { (hi - lo) / 255.0 } else { 1.0 / 255.0 };
        Quant { scale, zero: (-128.0 - lo / scale).round_ties_even().clamp(-128.0, 127.0) as i32 }
    }
}

/// Counts a value over samples: first [`Observer::widen`] with all, then [`Observer::count`] with all.
#[derive(Clone, Debug)]
pub struct Observer {
    lo: f64,
    hi: f64,
    bins: Vec<u64>,
}

impl Default for Observer {
    fn default() -> Observer {
        Observer { lo: 0.0, hi: 0.0, bins: vec![0; BINS] }
    }
}

impl Observer {
    /// Takes values into the range; false when one is not finite.
    pub fn widen(&mut self, values: &[f32]) -> bool {
        for &x in values {
            self.lo = self.lo.min(f64::from(x));
            self.hi = self.hi.max(f64::from(x));
        }
        values.iter().all(|x| x.is_finite())
    }

    /// Counts values inside of the range. Zeros are stored exactly, whatever the cut, and are not counted.
    pub fn count(&mut self, values: &[f32]) {
        let width = (self.hi - self.lo) / BINS as f64;
        for &x in values.iter().filter(|x| **x != 0.0) {
            let bin = ((f64::from(x) - self.lo) / width) as usize;
            self.bins[bin.min(BINS - 1)] += 1;
        }
    }

    /// The range, cut.
    pub fn range(&self, clipping: Clipping) -> Range {
        let whole = Range::of(self.lo, self.hi);
        if self.bins.iter().all(|&n| n == 0) {
            return whole;
        }
        let [lo, hi] = match clipping {
            Clipping::MinMax => whole.seen,
            Clipping::LeastSquares => self.least_squares(),
            Clipping::Percentile(share) => self.percentile(share),
        };
        Range { lo, hi, ..whole }
    }

    /// The middle of every part with values, and how many there are.
    fn parts(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let width = (self.hi - self.lo) / BINS as f64;
        let counted = self.bins.iter().enumerate().filter(|(_, n)| **n > 0);
        counted.map(move |(i, &n)| (self.lo + (i as f64 + 0.5) * width, n as f64))
    }

    /// The sum of squared differences when cut to `lo..hi`: of a step's uniform error inside, of the cut outside.
    fn error(&self, [lo, hi]: [f64; 2]) -> f64 {
        let inside = ((hi - lo) / 255.0).powi(2) / 12.0;
        self.parts()
            .map(|(x, n)| {
                n * if x < lo {
                    (x - lo).powi(2)
                } else if x > hi {
                    (x - hi).powi(2)
                } else {
                    inside
                }
            })
            .sum()
    }

    /// Tries both ends together, then each by itself.
    fn least_squares(&self) -> [f64; 2] {
        let ends = [self.lo, self.hi];
        let cut = |end: f64, k: usize| end * k as f64 / CUTS as f64;
        let best = |tries: &mut dyn Iterator<Item = [f64; 2]>| {
            tries.map(|t| (self.error(t), t)).min_by(|a, b| a.0.total_cmp(&b.0)).map_or(ends, |(_, t)| t)
        };
        let steps = || (CUTS / 8..=CUTS).rev();
        let mut now = best(&mut steps().map(|k| ends.map(|end| cut(end, k))));
        for _ in 0..2 {
            now = best(&mut steps().map(|k| [cut(ends[0], k), now[1]]));
            now = best(&mut steps().map(|k| [now[0], cut(ends[1], k)]));
        }
        now
    }

    /// Leaves out as much at both ends.
    fn percentile(&self, share: f64) -> [f64; 2] {
        let all: f64 = self.parts().map(|(_, n)| n).sum();
        let out = all * (1.0 - share.clamp(0.5, 1.0)) / 2.0;
        let width = (self.hi - self.lo) / BINS as f64;
        let parts: Vec<(f64, f64)> = self.parts().collect();
        let lo = behind(parts.iter(), out) - width / 2.0;
        let hi = behind(parts.iter().rev(), out) + width / 2.0;
        [lo.clamp(self.lo, 0.0), hi.clamp(0.0, self.hi)]
    }
}

/// The first part behind which more than `out` values lie.
fn behind<'a>(mut parts: impl Iterator<Item = &'a (f64, f64)>, out: f64) -> f64 {
    let mut sum = 0.0;
    let found = parts.find(|(_, n)| {
        sum += n;
        sum > out
    });
    found.map_or(0.0, |(x, _)| *x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(values: &[f32]) -> Observer {
        let mut observer = Observer::default();
        assert!(observer.widen(values));
        observer.count(values);
        observer
    }

    #[test]
    fn an_outlier_is_cut_and_an_even_spread_is_not() {
        let even: Vec<f32> = (-500..=500).map(|i| i as f32 / 100.0).collect();
        let range = observed(&even).range(Clipping::LeastSquares);
        assert!(range.lo < -4.9 && range.hi > 4.9, "{range:?}");
        let mut spiked: Vec<f32> = (0..100_000).map(|i| (i % 100) as f32 / 100.0).collect();
        spiked.push(20.0);
        // Cut by 2.2 the outlier costs 4.8, and a hundred thousand finer steps save as much.
        for (clipping, most) in [(Clipping::LeastSquares, 18.0), (Clipping::Percentile(0.999), 1.1)] {
            let range = observed(&spiked).range(clipping);
            assert!(range.hi < most && range.lo == 0.0 && range.seen == [0.0, 20.0], "{range:?}");
        }
        assert_eq!(observed(&spiked).range(Clipping::MinMax).hi, 20.0);
    }

    #[test]
    fn nothing_but_zeros_has_a_scale() {
        let range = observed(&[0.0; 8]).range(Clipping::LeastSquares);
        assert!(range.is_still() && range.quant(false).scale > 0.0);
        assert!(!Observer::default().widen(&[f32::NAN]));
    }

    #[test]
    fn zero_is_stored_exactly() {
        for (lo, hi) in [(-1.3, 2.9), (0.0, 6.0), (-4.0, 0.0), (3.0, 5.0)] {
            let quant = Range::of(lo, hi).quant(false);
            assert_eq!(quant.store(0.0), f64::from(quant.zero));
            assert!((-128..=127).contains(&quant.zero));
        }
    }
}
