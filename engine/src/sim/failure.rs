//! Failures on demand: the nth of its kind fails, all others do not.

/// What can fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailureKind {
    /// Memory, threads, or the work file.
    Allocation,
    /// A copy to the near memory; half of it is there.
    CopyIn,
    /// A copy to the far memory; half of it is there.
    CopyOut,
    /// A kernel, which then does not run.
    Launch,
}

impl FailureKind {
    /// All kinds.
    pub const ALL: [FailureKind; 4] =
        [FailureKind::Allocation, FailureKind::CopyIn, FailureKind::CopyOut, FailureKind::Launch];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            FailureKind::Allocation => "allocation",
            FailureKind::CopyIn => "copy in",
            FailureKind::CopyOut => "copy out",
            FailureKind::Launch => "kernel launch",
        }
    }
}

/// A failure that is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Of this kind.
    pub kind: FailureKind,
    /// Which one since the machine was made, counted from 1.
    pub nth: u64,
}

/// A failure that happened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the simulated machine failed at {what} {nth}: {at}", what = .kind.name())]
pub struct SimError {
    /// Of what kind.
    pub kind: FailureKind,
    /// Which one, counted from 1.
    pub nth: u64,
    /// What it was for.
    pub at: String,
}

/// Counts what can fail.
pub(super) struct Failures {
    wanted: Option<Failure>,
    counts: [u64; FailureKind::ALL.len()],
}

impl Failures {
    pub(super) fn new(wanted: Option<Failure>) -> Failures {
        Failures { wanted, counts: [0; FailureKind::ALL.len()] }
    }

    /// Counts one more of a kind; `at` says what it is for.
    ///
    /// # Errors
    /// It is the one that is wanted.
    pub(super) fn count(&mut self, kind: FailureKind, at: impl FnOnce() -> String) -> Result<(), SimError> {
        let count = &mut self.counts[kind as usize];
        *count += 1;
        match self.wanted {
            Some(wanted) if wanted == (Failure { kind, nth: *count }) => Err(SimError { kind, nth: *count, at: at() }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Failure, FailureKind, Failures};

    #[test]
    fn the_nth_of_its_kind_fails_alone() {
        let mut failures = Failures::new(Some(Failure { kind: FailureKind::CopyOut, nth: 2 }));
        let mut count = |kind| failures.count(kind, || "here".to_string()).map_err(|e| e.to_string());
        for kind in FailureKind::ALL.into_iter().chain([FailureKind::Launch, FailureKind::CopyIn]) {
            assert_eq!(count(kind), Ok(()));
        }
        let told = "the simulated machine failed at copy out 2: here".to_string();
        assert_eq!(count(FailureKind::CopyOut), Err(told));
        assert_eq!(count(FailureKind::CopyOut), Ok(()));
    }
}
