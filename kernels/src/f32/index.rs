//! Indices that come with the data: checked before they are followed.

use core::fmt;

/// An index of the data points outside of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// What the index names.
    pub what: &'static str,
    /// Its place in the list of indices.
    pub at: usize,
    /// Its value.
    pub value: i32,
    /// Entries of the table.
    pub limit: usize,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OutOfRange { what, at, value, limit } = self;
        write!(f, "{what} {value} at place {at} is not below {limit}; check that the data was made for this model")
    }
}

impl core::error::Error for OutOfRange {}

/// Checks that all of `values` lie in `0..limit`; `is_ignored` ones may be anything.
pub(crate) fn check(
    what: &'static str,
    values: &[i32],
    limit: usize,
    is_ignored: impl Fn(i32) -> bool,
) -> Result<(), OutOfRange> {
    let is_bad = |value: i32| !is_ignored(value) && (value < 0 || value as usize >= limit);
    match values.iter().position(|&value| is_bad(value)) {
        Some(at) => Err(OutOfRange { what, at, value: values[at], limit }),
        None => Ok(()),
    }
}
