//! Tinyforge: the library that runs plans.

pub mod data;
pub mod text;
