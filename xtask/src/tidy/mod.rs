//! Tidy: what a reader would otherwise have to check by eye.
//!
//! A rule reads the tree and reports findings; each says what, where, and the way out. Old exceptions are held in
//! `xtask/tidy.toml` as ratchets: numbers that may fall and never rise unseen.

mod absence;
mod banned;
mod config;
mod dead;
mod dependencies;
mod docs;
mod size;
mod unsafety;
mod words;

use crate::tree::Tree;
pub use config::{Config, PATH};
use std::fmt;

/// Something to mend.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Path from the root.
    pub path: String,
    /// Line, counted from 1; 0 means the file as a whole.
    pub line: usize,
    /// What is wrong, with numbers.
    pub what: String,
    /// The way out.
    pub help: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.what)?,
            line => write!(f, "{}:{line}: {}", self.path, self.what)?,
        }
        write!(f, "\n  help: {}", self.help)
    }
}

/// Collects findings.
#[derive(Default)]
pub struct Report {
    /// What was found.
    pub findings: Vec<Finding>,
    /// What is worth knowing and breaks nothing.
    pub notes: Vec<String>,
}

impl Report {
    fn add(&mut self, path: &str, line: usize, what: impl Into<String>, help: impl Into<String>) {
        self.findings.push(Finding { path: path.to_string(), line, what: what.into(), help: help.into() });
    }
}

/// Runs every rule over the tree.
pub fn run(tree: &Tree, config: &Config) -> Report {
    let mut report = Report::default();
    let modules = dead::Modules::of(tree);
    size::run(tree, config, &modules, &mut report);
    unsafety::run(tree, config, &mut report);
    banned::run(tree, &modules, &mut report);
    words::run(tree, config, &mut report);
    absence::run(tree, &modules, &mut report);
    dead::run(tree, &modules, &mut report);
    dependencies::run(tree, &mut report);
    docs::run(tree, &mut report);
    report.findings.sort();
    report.findings.dedup();
    report
}

/// The text of `xtask/tidy.toml` with today's numbers.
pub fn hold(tree: &Tree, mut config: Config) -> String {
    let modules = dead::Modules::of(tree);
    size::hold(tree, &modules, &mut config);
    unsafety::hold(tree, &mut config);
    config.text(tree.find(config::PATH).map_or("", |f| f.text.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The work tree itself is tidy.
    #[test]
    fn the_tree_is_tidy() {
        let tree = Tree::read().expect("the tree can be read");
        let config = Config::of(&tree).expect("xtask/tidy.toml can be read");
        let findings = run(&tree, &config).findings;
        let list: Vec<String> = findings.iter().map(Finding::to_string).collect();
        assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), list.join("\n"));
    }
}
