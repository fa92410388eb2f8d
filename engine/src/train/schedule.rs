//! Learning-rate schedules.

use serde::{Deserialize, Serialize};

/// The shape of the decay after warm-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// The rate stays.
    Constant,
    /// A straight line to the floor.
    Linear,
    /// Half a cosine to the floor.
    Cosine,
}

/// The learning rate of every step.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct LrSchedule {
    /// The highest rate.
    pub peak: f64,
    /// The share of `peak` at which the decay ends.
    pub floor: f64,
    /// Steps of linear warm-up, from `peak / warmup` on.
    pub warmup_steps: u64,
    /// Steps in all.
    pub steps: u64,
    /// The shape of the decay.
    pub decay: Decay,
}

impl LrSchedule {
    /// The rate of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let left = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = ((step - self.warmup_steps) as f64 / left).min(1.0);
        let share = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => 1.0 - done,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        };
        match self.decay {
            Decay::Constant => self.peak,
            _ => self.peak * (self.floor + (1.0 - self.floor) * share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> LrSchedule {
        LrSchedule { peak: 1.0, floor: 0.1, warmup_steps: 4, steps: 14, decay }
    }

    #[test]
    fn warms_up_and_decays_to_the_floor() {
        for decay in [Decay::Linear, Decay::Cosine] {
            let s = schedule(decay);
            assert_eq!([s.at(0), s.at(1), s.at(3), s.at(4)], [0.25, 0.5, 1.0, 1.0]);
            assert!((s.at(14) - 0.1).abs() < 1e-12 && (s.at(9) - 0.55).abs() < 1e-12);
            assert!((4..14).all(|t| s.at(t + 1) < s.at(t)));
        }
        assert_eq!(schedule(Decay::Constant).at(13), 1.0);
    }
}
