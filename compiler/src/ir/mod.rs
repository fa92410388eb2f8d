//! The intermediate representation: programs, graphs, the op table, text, verification and the f64 reference.

pub mod attrs;
pub mod graph;
pub mod ops;
pub mod program;
pub mod reference;
pub mod text;
pub mod types;
pub mod verify;
