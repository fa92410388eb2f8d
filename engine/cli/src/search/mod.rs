//! The search for a scheme: candidates, what each contributes, and the selection that fits.

pub mod candidates;
pub mod measured;
pub mod scheme_file;
