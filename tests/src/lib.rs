//! Tests that cross crates, and what they share.
//!
//! Not for anything that another crate needs: nothing depends on this one.
#![forbid(unsafe_code)]

pub mod convnets;
pub mod device;
pub mod generate;
pub mod golden;
pub mod graphs;
pub mod images;
pub mod models;
pub mod published;
pub mod random;
pub mod samples;
pub mod script;
pub mod storage;
