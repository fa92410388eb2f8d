//! Calls and attributes that have a better form.

use super::Report;
use super::dead::Modules;
use crate::source::{Source, line_of, words};
use crate::tree::{File, Tree};

/// A call, whether tests may use it, and what to write instead.
struct Call {
    text: &'static str,
    in_tests: bool,
    instead: &'static str,
}

const CALLS: &[Call] = &[
    Call { text: "todo!", in_tests: false, instead: "return an error that says what is not there yet" },
    Call { text: "unimplemented!", in_tests: false, instead: "return an error that says what is not there yet" },
    Call { text: "dbg!", in_tests: false, instead: "remove it" },
    Call {
        text: "#[ignore",
        in_tests: false,
        instead: "assert what happens today, with a FIXME that says what should",
    },
    Call { text: "anyhow", in_tests: false, instead: "an enum with `thiserror`, whose variants carry numbers" },
    Call { text: "static mut", in_tests: false, instead: "pass the state, or use an atomic" },
    Call { text: "process::exit", in_tests: false, instead: "return an `ExitCode` from `main`" },
    Call { text: "SystemTime", in_tests: true, instead: "hand the time in: results must not depend on it" },
    Call { text: "thread_rng", in_tests: false, instead: "the counter-based numbers: results repeat" },
];

/// Macros that print, and the files that may use them.
const PRINTS: &[&str] = &["println!", "print!", "eprintln!", "eprint!"];

/// Runs the rules.
pub fn run(tree: &Tree, modules: &Modules, report: &mut Report) {
    for (file, source) in tree.rust() {
        let is_test = |at: usize| file.is_test_at(at) || modules.is_test(&file.path);
        for call in CALLS {
            let found = source.words(call.text).filter(|at| !(call.in_tests && is_test(*at)));
            for at in found.filter(|at| !(may_exit(&file.path) && source.code[*at..].starts_with("process::exit"))) {
                report.add(&file.path, line_of(&file.text, at), format!("`{}` is banned", call.text), call.instead);
            }
        }
        for at in unwraps(file, source).filter(|at| !is_test(*at)) {
            let help = "return an error, or say in a comment or with `expect` why it cannot fail";
            report.add(&file.path, line_of(&file.text, at), "`unwrap` without its invariant", help);
        }
        for at in PRINTS.iter().flat_map(|print| source.words(print)).filter(|at| !is_test(*at)) {
            if !may_print(&file.path) {
                let what = "prints; only the command line does";
                report.add(&file.path, line_of(&file.text, at), what, "return it, or hand it to a callback");
            }
        }
        for at in bare_attributes(source) {
            let help = "add `reason = \"...\"`, or mend what is silenced";
            report.add(&file.path, line_of(&file.text, at), "a lint is silenced without a reason", help);
        }
        for (line, banner) in file.text.lines().enumerate().filter(|(_, line)| is_banner(line)) {
            let help = "split the file where it wants one, or drop it";
            report.add(&file.path, line + 1, format!("`{}` is a banner", banner.trim()), help);
        }
        if file.path.ends_with(".rs") && !file.text.trim_start().starts_with("//!") && !is_test(0) {
            let help = "begin with `//!`: what it is, its invariant, what it is not for";
            report.add(&file.path, 1, "the file has no header", help);
        }
    }
    for file in tree.files.iter().filter(|f| f.path.ends_with("Cargo.toml")) {
        for at in words(&file.text, "anyhow") {
            let help = "an enum with `thiserror`, whose variants carry numbers";
            report.add(&file.path, line_of(&file.text, at), "`anyhow` is banned", help);
        }
    }
}

fn may_print(path: &str) -> bool {
    // What build scripts call speaks to Cargo, which listens to what is printed.
    let places = ["xtask/", "engine/cli/src/", "engine/build/src/", "examples/"];
    places.iter().any(|place| path.starts_with(place)) || path.ends_with("build.rs")
}

fn may_exit(path: &str) -> bool {
    path.starts_with("xtask/") || path.starts_with("engine/cli/src/") || path.starts_with("firmware/")
}

/// Calls of `unwrap` with no comment on their line or the one above.
fn unwraps<'a>(file: &'a File, source: &'a Source) -> impl Iterator<Item = usize> + 'a {
    let comments: Vec<&str> = source.comments.lines().collect();
    source.words(".unwrap()").filter(move |at| {
        let line = line_of(&file.text, *at);
        let said = |line: usize| comments.get(line.wrapping_sub(1)).is_some_and(|c| !c.trim().is_empty());
        !said(line) && !said(line.wrapping_sub(1))
    })
}

/// Attributes that silence a lint and give no reason.
fn bare_attributes(source: &Source) -> Vec<usize> {
    let silences = |attribute: &str| ["allow", "expect"].iter().any(|word| words(attribute, word).next().is_some());
    let attributes = source.code.match_indices("#[").chain(source.code.match_indices("#!["));
    let bare = attributes.filter(|(at, _)| {
        let text = &source.code[*at..*at + attribute_len(&source.code[*at..])];
        silences(text) && words(text, "reason").next().is_none()
    });
    bare.map(|(at, _)| at).collect()
}

fn attribute_len(code: &str) -> usize {
    let mut depth = 0;
    for (i, b) in code.bytes().enumerate() {
        match b {
            b'[' => depth += 1,
            b']' if depth == 1 => return i,
            b']' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

fn is_banner(line: &str) -> bool {
    let Some(comment) = line.trim_start().strip_prefix("//") else { return false };
    ["----", "====", "####", "****", "────"].iter().any(|mark| comment.contains(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, code: &str) -> Vec<(usize, String)> {
        let tree = Tree::of(&[(path, &format!("//! Header.\n{code}"))]);
        let mut report = Report::default();
        run(&tree, &Modules::of(&tree), &mut report);
        report.findings.into_iter().map(|f| (f.line, f.what)).collect()
    }

    #[test]
    fn calls_are_banned_outside_literals_and_comments() {
        let code = "fn f() {\n    todo!()\n    // todo!\n    g(\"todo!\");\n}\n";
        assert_eq!(findings("engine/src/a.rs", code), [(3, "`todo!` is banned".to_string())]);
    }

    #[test]
    fn unwrap_needs_its_invariant() {
        let code = "fn f() {\n    a.unwrap();\n    // The list has one element at least.\n    b.unwrap();\n    c.unwrap(); // checked above\n}\n#[cfg(test)]\nmod tests {\n    fn g() { a.unwrap(); }\n}\n";
        assert_eq!(findings("engine/src/a.rs", code), [(3, "`unwrap` without its invariant".to_string())]);
    }

    #[test]
    fn only_the_command_line_prints() {
        assert_eq!(findings("engine/src/a.rs", "fn f() { println!() }\n").len(), 1);
        assert_eq!(findings("engine/cli/src/main.rs", "fn f() { println!() }\n").len(), 0);
        assert_eq!(findings("kernels/benches/b.rs", "fn f() { println!() }\n").len(), 0);
    }

    #[test]
    fn silenced_lints_have_reasons() {
        assert_eq!(findings("engine/src/a.rs", "#![allow(dead_code)]\n").len(), 1);
        assert_eq!(
            findings("engine/src/a.rs", "#[expect(\n    dead_code,\n    reason = \"x\"\n)]\nfn f() {}\n").len(),
            0
        );
        assert_eq!(findings("engine/src/a.rs", "#[derive(Debug)]\nstruct A;\n").len(), 0);
    }

    #[test]
    fn banners_and_missing_headers_are_found() {
        assert_eq!(findings("engine/src/a.rs", "// ---- part two ----\n").len(), 1);
        let tree = Tree::of(&[("engine/src/a.rs", "use std::fmt;\n")]);
        let mut report = Report::default();
        run(&tree, &Modules::of(&tree), &mut report);
        assert_eq!(report.findings[0].what, "the file has no header");
    }
}
