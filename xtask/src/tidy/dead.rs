//! The module tree: files that no `mod` leads to, and files that are modules of tests.

use super::Report;
use crate::tree::{File, Tree};
use std::collections::{BTreeMap, BTreeSet};
use toml::{Table, Value};

/// Which Rust files are reached from the roots of their crates.
pub struct Modules {
    /// Reached files, and whether only tests reach them.
    reached: BTreeMap<String, bool>,
    /// Declarations that lead nowhere: the file, and the module's name.
    missing: BTreeSet<(String, String)>,
}

impl Modules {
    /// Follows every `mod` declaration.
    pub fn of(tree: &Tree) -> Modules {
        let mut modules = Modules { reached: BTreeMap::new(), missing: BTreeSet::new() };
        let manifests: Vec<&File> = tree.files.iter().filter(|f| is_manifest(&f.path)).collect();
        for manifest in &manifests {
            let folder = manifest.path.trim_end_matches("Cargo.toml");
            for file in tree.files.iter().filter(|f| is_root(folder, &f.path) || named(manifest, folder, &f.path)) {
                modules.follow(tree, &file.path, true, file.is_test);
            }
        }
        modules
    }

    /// Whether only tests reach the file.
    pub fn is_test(&self, path: &str) -> bool {
        self.reached.get(path).copied().unwrap_or(false)
    }

    fn follow(&mut self, tree: &Tree, path: &str, is_root: bool, is_test: bool) {
        let Some(file) = tree.find(path) else { return };
        let Some(source) = &file.source else { return };
        match self.reached.get(path) {
            // Reached by what is not a test: nothing more can change.
            Some(false) => return,
            Some(true) if is_test => return,
            _ => self.reached.insert(path.to_string(), is_test),
        };
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let stem = name.trim_end_matches(".rs");
        let inside = if is_root || stem == "mod" { folder.to_string() } else { format!("{folder}/{stem}") };
        for (module, at, in_tests) in source.modules() {
            let said = path_attribute(&file.text, at).map(|p| normal(&format!("{folder}/{p}")));
            let places = match said {
                Some(said) => vec![said],
                None => vec![format!("{inside}/{module}.rs"), format!("{inside}/{module}/mod.rs")],
            };
            match places.iter().find(|p| tree.find(p).is_some()) {
                Some(place) => self.follow(tree, place, false, is_test || in_tests),
                None => {
                    self.missing.insert((path.to_string(), module));
                }
            }
        }
    }
}

/// Runs the rules.
pub fn run(tree: &Tree, modules: &Modules, report: &mut Report) {
    for (file, _) in tree.rust().filter(|(f, _)| !modules.reached.contains_key(&f.path)) {
        let help = "declare it with `mod`, or delete it";
        report.add(&file.path, 0, "no `mod` leads to the file", help);
    }
    for (path, module) in &modules.missing {
        report.add(path, 0, format!("`mod {module}` has no file"), "add the file to git, or drop the declaration");
    }
}

fn is_manifest(path: &str) -> bool {
    path == "Cargo.toml" || path.ends_with("/Cargo.toml")
}

/// Whether cargo takes the file for a target's root by its place.
fn is_root(folder: &str, path: &str) -> bool {
    let Some(rest) = path.strip_prefix(folder) else { return false };
    let parts: Vec<&str> = rest.split('/').collect();
    match parts[..] {
        ["build.rs"] | ["src", "lib.rs" | "main.rs"] | ["src", "bin", _] | ["src", "bin", _, "main.rs"] => true,
        ["tests" | "benches" | "examples", file] => file.ends_with(".rs"),
        ["tests" | "benches" | "examples", _, "main.rs"] => true,
        _ => false,
    }
}

/// Whether the manifest names the file as a target's root.
fn named(manifest: &File, folder: &str, path: &str) -> bool {
    let Ok(table) = manifest.text.parse::<Table>() else { return false };
    let mut targets: Vec<&Value> = table.get("lib").into_iter().collect();
    for kind in ["bin", "bench", "test", "example"] {
        targets.extend(table.get(kind).and_then(Value::as_array).into_iter().flatten());
    }
    let paths = targets.into_iter().filter_map(|t| t.get("path").and_then(Value::as_str));
    paths.map(|p| normal(&format!("{folder}{p}"))).any(|p| p == path)
}

/// The path in `#[path = "..."]` right above the declaration at `at`.
fn path_attribute(text: &str, at: usize) -> Option<&str> {
    let before = text[..at].rsplit_once("#[path = \"")?.1;
    let (path, rest) = before.split_once("\"]")?;
    rest.split_whitespace().all(|word| word.starts_with("pub")).then_some(path)
}

/// The path without `..` and `.`.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_mod_are_dead() {
        let tree = Tree::of(&[
            ("a/Cargo.toml", "[[bench]]\nname = \"b\"\npath = \"speed/b.rs\"\n"),
            (
                "a/src/lib.rs",
                "mod one;\n#[cfg(test)]\nmod checks;\nmod gone;\n#[path = \"../odd/place.rs\"]\nmod odd;\n",
            ),
            ("a/src/one.rs", "mod two;\n"),
            ("a/src/one/two.rs", ""),
            ("a/src/one/three.rs", ""),
            ("a/src/checks/mod.rs", "mod deep;\n"),
            ("a/src/checks/deep.rs", ""),
            ("a/odd/place.rs", ""),
            ("a/speed/b.rs", ""),
            ("a/tests/t.rs", "mod common;\n"),
            ("a/tests/common/mod.rs", ""),
        ]);
        let modules = Modules::of(&tree);
        let mut report = Report::default();
        run(&tree, &modules, &mut report);
        let found: Vec<(&str, &str)> = report.findings.iter().map(|f| (f.path.as_str(), f.what.as_str())).collect();
        let wanted = [("a/src/one/three.rs", "no `mod` leads to the file"), ("a/src/lib.rs", "`mod gone` has no file")];
        assert_eq!(found, wanted);
        assert!(modules.is_test("a/src/checks/deep.rs") && !modules.is_test("a/src/one/two.rs"));
    }
}
