//! Unsafe code: in which files, and how much.

use super::config::Unsafe;
use super::{Config, Report, config};
use crate::source::line_of;
use crate::tree::Tree;
use std::collections::BTreeMap;

/// The places where unsafe code may be.
const PLACES: &[(&str, &str)] = &[
    ("simd", "SIMD, asm, and disjoint parts of one buffer for workers"),
    ("gpu", "interfaces of GPUs"),
    ("arena", "casts of arena bytes"),
    ("files", "file mapping and system calls on files"),
    ("abi", "the C ABI"),
    ("allocator", "an allocator that counts, in tests"),
];

/// Crates that forbid it as a whole: the file that must say so.
const FORBIDDEN: &[&str] =
    &["compiler/src/lib.rs", "compiler/plan/src/lib.rs", "xtask/src/main.rs", "tests/src/lib.rs"];

/// Runs the rules.
pub fn run(tree: &Tree, config: &Config, report: &mut Report) {
    for (file, source) in tree.rust() {
        let count = source.words("unsafe").count();
        let first = source.words("unsafe").next().map_or(0, |at| line_of(&file.text, at));
        let lifts = source.words("unsafe_code").any(|at| {
            let line = source.code[..at].rfind('\n').map_or(0, |n| n + 1);
            source.code[line..at].contains("expect(") || source.code[line..at].contains("allow(")
        });
        match config.unsafe_files.get(&file.path) {
            None if count > 0 => {
                let row = format!("\"{}\" = {{ count = {count}, place = \"{}\" }}", file.path, guess(&file.path));
                let help = format!("write it in safe code, or add `{row}` to [unsafe] of {}", config::PATH);
                report.add(&file.path, first, format!("{count} uses of unsafe in a file that may hold none"), help);
            }
            None if lifts => report.add(&file.path, 0, "lifts `unsafe_code` and needs it not", "remove the attribute"),
            None => {}
            Some(held) if count > held.count => {
                let help = format!("write the new ones in safe code, or set count = {count} in {}", config::PATH);
                report.add(&file.path, first, format!("{count} uses of unsafe, {} are held", held.count), help);
            }
            Some(held) if count < held.count => {
                let what = format!("[unsafe] `{}` says {}, it is {count} now", file.path, held.count);
                let help = if count == 0 { "remove the row".to_string() } else { format!("set count = {count}") };
                report.add(config::PATH, 0, what, help);
            }
            Some(_) => {}
        }
    }
    rows(tree, config, report);
}

/// Writes today's counts into the exceptions.
pub fn hold(tree: &Tree, config: &mut Config) {
    let mut files = BTreeMap::new();
    for (file, source) in tree.rust() {
        let count = source.words("unsafe").count();
        let place = config.unsafe_files.get(&file.path).map_or(guess(&file.path), |held| held.place.as_str());
        if count > 0 {
            files.insert(file.path.clone(), Unsafe { count, place: place.to_string() });
        }
    }
    config.unsafe_files = files;
}

fn rows(tree: &Tree, config: &Config, report: &mut Report) {
    for (path, held) in &config.unsafe_files {
        if tree.find(path).is_none() {
            report.add(config::PATH, 0, format!("[unsafe] `{path}` does not exist"), "remove the row");
        }
        if !PLACES.iter().any(|(place, _)| *place == held.place) {
            let places: Vec<String> = PLACES.iter().map(|(name, what)| format!("{name} ({what})")).collect();
            let what = format!("[unsafe] `{path}`: `{}` is no place for it", held.place);
            report.add(config::PATH, 0, what, format!("one of {}", places.join(", ")));
        }
    }
    let roots = FORBIDDEN.iter().filter_map(|path| tree.find(path));
    for file in roots.filter(|f| f.source.as_ref().is_some_and(|s| !s.code.contains("#![forbid(unsafe_code)]"))) {
        report.add(&file.path, 1, "the crate does not forbid unsafe code", "add `#![forbid(unsafe_code)]`");
    }
}

fn guess(path: &str) -> &'static str {
    match path {
        p if p.contains("tests/") => "allocator",
        p if p.contains("kernels/") => "simd",
        p if p.contains("gpu") || p.contains("cuda") => "gpu",
        p if p.contains("arena") => "arena",
        p if p.contains("firmware/") || p.contains("abi") => "abi",
        _ => "files",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(code: &str, toml: &str) -> Vec<String> {
        let mut report = Report::default();
        let config = Config::parse(toml).expect("a good file");
        run(&Tree::of(&[("kernels/src/a.rs", code)]), &config, &mut report);
        report.findings.into_iter().map(|f| f.what).collect()
    }

    #[test]
    fn the_count_is_held_from_both_sides() {
        let held = "[unsafe]\n\"kernels/src/a.rs\" = { count = 2, place = \"simd\" }\n";
        let two = "// unsafe in words counts not\nunsafe fn f() {}\nfn g() { unsafe { f() } }\n";
        assert_eq!(findings(two, held), [""; 0]);
        assert_eq!(findings(two, ""), ["2 uses of unsafe in a file that may hold none"]);
        assert_eq!(findings("unsafe fn f() {}", held), ["[unsafe] `kernels/src/a.rs` says 2, it is 1 now"]);
        assert_eq!(findings(&two.repeat(2), held), ["4 uses of unsafe, 2 are held"]);
        let wrong = held.replace("simd", "speed");
        assert_eq!(findings(two, &wrong), ["[unsafe] `kernels/src/a.rs`: `speed` is no place for it"]);
    }

    #[test]
    fn a_lifted_lint_must_be_needed() {
        let code = "#![expect(unsafe_code, reason = \"SIMD\")]\nfn f() {}\n";
        assert_eq!(findings(code, ""), ["lifts `unsafe_code` and needs it not"]);
    }
}
