//! The text form: the text *is* the program, `parse(print(p)) == p`.
//!
//! ```text
//! rows 2
//! input %x : f32[8,16]
//! weight @w : f32[4,16]
//! block layers.0 forward
//! %h = linear %x, @w : f32[8,4]
//! return out = %h
//! ```
//!
//! One line a declaration or node; `#` starts a comment; attributes at their defaults are left out.

mod parse;
mod print;

pub use parse::{Diagnostic, parse_graph, parse_program};
pub use print::{print_graph, print_program};
