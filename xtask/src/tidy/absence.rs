//! What must not be: the bounds between the rooms that `ARCHITECTURE.md` promises.

use super::Report;
use super::dead::Modules;
use crate::source::{Source, line_of};
use crate::tree::{File, Tree};

/// A text that must not stand in the code of some files.
struct Absence {
    folder: &'static str,
    except: &'static str,
    texts: &'static [&'static str],
    why: &'static str,
}

/// No path begins so.
const NOWHERE: &str = "//";

const ABSENCES: &[Absence] = &[
    Absence {
        folder: "engine/src/",
        except: NOWHERE,
        texts: &["tinyforge_compiler"],
        why: "the library runs plans and never sees the compiler: move it to engine/cli/, or put it in the plan",
    },
    Absence {
        folder: "compiler/",
        except: "compiler/tests/",
        texts: &["std::thread", "std::fs", "std::net", "std::process", "std::env", "rayon", "std::time"],
        why: "the compiler has no device, no thread and no file: hand it bytes, and let the caller read and wait",
    },
    Absence {
        folder: "kernels/src/",
        except: NOWHERE,
        texts: &[
            "tinyforge_plan::Plan",
            "tinyforge_plan::Step",
            "tinyforge_plan::Entry",
            "std::fs",
            "tinyforge_compiler",
        ],
        why: "kernels are functions over slices and know nothing of plans: take slices and numbers",
    },
];

/// Crates that do without the standard library: the file that must say so, and what it says.
const NO_STD: &[(&str, &str)] = &[
    ("compiler/plan/src/lib.rs", "#![no_std]"),
    ("firmware/src/lib.rs", "#![no_std]"),
    ("kernels/src/lib.rs", "#![cfg_attr(not(feature ="),
];

/// What passes may share beside constants: it is no pass.
const SHARED: &str = "live";
const PASSES: &str = "compiler/src/passes/";

/// Runs the rules.
pub fn run(tree: &Tree, modules: &Modules, report: &mut Report) {
    for (file, source) in tree.rust() {
        let is_test = |at: usize| file.is_test_at(at) || modules.is_test(&file.path);
        for absence in ABSENCES.iter().filter(|a| file.path.starts_with(a.folder) && !file.path.starts_with(a.except)) {
            for text in absence.texts {
                for at in source.words(text).filter(|at| !is_test(*at)) {
                    report.add(&file.path, line_of(&file.text, at), format!("mentions `{text}`"), absence.why);
                }
            }
        }
        if file.path.starts_with(PASSES) && !file.path.ends_with("/mod.rs") {
            passes(tree, file, source, report);
        }
    }
    for (path, text) in NO_STD {
        if tree.find(path).and_then(|f| f.source.as_ref()).is_some_and(|s| !s.code.contains(text)) {
            report.add(path, 1, "the crate needs the standard library", format!("begin it with `{text}...`"));
        }
    }
}

/// A pass takes constants from other passes, nothing else.
fn passes(tree: &Tree, file: &File, source: &Source, report: &mut Report) {
    for prefix in ["super::", "crate::passes::"] {
        for at in source.words(prefix) {
            let rest = &source.code[at + prefix.len()..];
            let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            let item = rest[name.len()..].trim_start_matches(':');
            let item = item.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            let is_constant =
                !item.is_empty() && item.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
            let is_pass = tree.find(&format!("{PASSES}{name}.rs")).is_some();
            if is_pass && name != SHARED && !is_constant && !file.path.ends_with(&format!("/{name}.rs")) {
                let help = "a pass never calls a pass: call both from compile.rs, or move what they share to live.rs";
                report.add(&file.path, line_of(&file.text, at), format!("uses the pass `{name}`"), help);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        let tree = Tree::of(files);
        let mut report = Report::default();
        run(&tree, &Modules::of(&tree), &mut report);
        report.findings.into_iter().map(|f| f.what).collect()
    }

    #[test]
    fn the_library_never_sees_the_compiler() {
        let code = "use tinyforge_compiler::ir;\n";
        assert_eq!(findings(&[("engine/src/run.rs", code)]), ["mentions `tinyforge_compiler`"]);
        assert_eq!(findings(&[("engine/cli/src/main.rs", code)]), [""; 0]);
        assert_eq!(findings(&[("engine/src/run.rs", "// tinyforge_compiler\n")]), [""; 0]);
    }

    #[test]
    fn the_compiler_reads_no_files() {
        assert_eq!(findings(&[("compiler/src/a.rs", "fn f() { std::fs::read(p); }\n")]), ["mentions `std::fs`"]);
        assert_eq!(findings(&[("compiler/tests/a.rs", "fn f() { std::fs::read(p); }\n")]), [""; 0]);
    }

    #[test]
    fn a_pass_takes_only_constants_from_another() {
        let prune = ("compiler/src/passes/prune.rs", "use super::differentiate::GRAD;\nuse crate::passes::live;\n");
        let fuse = ("compiler/src/passes/fuse.rs", "fn f() { super::prune::run(g); }\n");
        let others = [("compiler/src/passes/differentiate.rs", ""), ("compiler/src/passes/live.rs", "")];
        assert_eq!(findings(&[prune, others[0], others[1]]), [""; 0]);
        assert_eq!(findings(&[prune, fuse, others[0], others[1]]), ["uses the pass `prune`"]);
    }
}
