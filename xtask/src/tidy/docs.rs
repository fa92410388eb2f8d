//! Texts that must agree with the tree: the map, links between texts, and the files and tests they mention.

use super::Report;
use crate::source::line_of;
use crate::tree::{File, Tree};

const ARCHITECTURE: &str = "ARCHITECTURE.md";
const PASSES: &str = "compiler/src/passes/";

/// Files that a walk invents.
const INVENTED: &[&str] = &["compiler/src/passes/merge_reshapes.rs"];

/// Runs the rules.
pub fn run(tree: &Tree, report: &mut Report) {
    map(tree, report);
    for file in tree.files.iter().filter(|f| f.path.ends_with(".md")) {
        links(tree, file, report);
        mentions(tree, file, report);
    }
}

/// Every room and every pass is in the map; every pass is run.
fn map(tree: &Tree, report: &mut Report) {
    let Some(map) = tree.find(ARCHITECTURE) else {
        report.add(ARCHITECTURE, 0, "the map is missing", "write it");
        return;
    };
    let folders = tree.files.iter().filter_map(|f| f.path.split_once('/')).map(|(folder, _)| folder);
    let mut folders: Vec<&str> = folders.filter(|f| !f.starts_with('.')).collect();
    folders.dedup();
    for folder in folders.iter().filter(|folder| !map.text.contains(&format!("`{folder}/`"))) {
        report.add(ARCHITECTURE, 0, format!("`{folder}/` is not in the map"), "add it with its invariant");
    }
    let driver = tree.find("compiler/src/compile.rs").map_or("", |f| f.text.as_str());
    let files = tree.files.iter().filter_map(|f| f.path.strip_prefix(PASSES)?.strip_suffix(".rs"));
    for pass in files.filter(|name| !name.contains('/') && !["mod", "live"].contains(name)) {
        if !map.text.contains(&format!("`{pass}`")) {
            report.add(ARCHITECTURE, 0, format!("the pass `{pass}` is not in the map"), "add it to the way of a model");
        }
        if !driver.contains(&format!("{pass}::run")) {
            let help = "call it from compiler/src/compile.rs, or delete it";
            report.add(&format!("{PASSES}{pass}.rs"), 0, "the pass is never run", help);
        }
    }
}

/// Links to files lead somewhere.
fn links(tree: &Tree, file: &File, report: &mut Report) {
    let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    for (at, _) in file.text.match_indices("](") {
        let target = file.text[at + 2..].split([')', '#', ' ']).next().unwrap_or_default();
        if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let path = tree.root.join(folder).join(target);
        let known = |p: &str| tree.files.iter().any(|f| f.path == p);
        if !path.exists() && !known(target) {
            let what = format!("the link to `{target}` leads nowhere");
            report.add(&file.path, line_of(&file.text, at), what, "correct it");
        }
    }
}

/// Files and tests that are mentioned exist: `folder/file.rs`, `folder/file.rs::test`.
fn mentions(tree: &Tree, file: &File, report: &mut Report) {
    let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    for (i, line) in file.text.lines().enumerate() {
        for mention in line.split('`').skip(1).step_by(2) {
            let (path, test) = mention.split_once("::").map_or((mention, None), |(path, test)| (path, Some(test)));
            let is_file = path.contains('/') && path.ends_with(".rs") && !path.contains(['*', ' ', '<', '$']);
            if !is_file || INVENTED.contains(&path) {
                continue;
            }
            let beside = if folder.is_empty() { path.to_string() } else { format!("{folder}/{path}") };
            let Some(found) = tree.find(path).or_else(|| tree.find(&beside)) else {
                report.add(&file.path, i + 1, format!("`{path}` does not exist"), "name the file that does");
                continue;
            };
            let has = |test: &str| found.source.as_ref().is_some_and(|s| s.functions().iter().any(|f| f.name == test));
            if let Some(test) = test.filter(|test| !has(test)) {
                report.add(&file.path, i + 1, format!("`{path}` has no `{test}`"), "name the test that does it");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_and_passes_are_in_the_map() {
        let tree = Tree::of(&[
            (ARCHITECTURE, "`compiler/` with `prune`\n"),
            ("compiler/src/compile.rs", "fn f() { prune::run(g); }\n"),
            ("compiler/src/passes/prune.rs", ""),
            ("compiler/src/passes/fuse.rs", ""),
            ("kernels/src/lib.rs", ""),
        ]);
        let mut report = Report::default();
        map(&tree, &mut report);
        let found: Vec<&str> = report.findings.iter().map(|f| f.what.as_str()).collect();
        let wanted = ["`kernels/` is not in the map", "the pass `fuse` is not in the map", "the pass is never run"];
        assert_eq!(found, wanted);
    }

    #[test]
    fn links_lead_somewhere() {
        let text = "[a](b.md) [c](gone.md) [d](https://example.org) [e](#part)\n";
        let tree = Tree::of(&[("a.md", text), ("b.md", "")]);
        let mut report = Report::default();
        links(&tree, &tree.files[0], &mut report);
        let found: Vec<&str> = report.findings.iter().map(|f| f.what.as_str()).collect();
        assert_eq!(found, ["the link to `gone.md` leads nowhere"]);
    }

    #[test]
    fn mentioned_files_and_tests_exist() {
        let text = "`a/b.rs` `a/c.rs` `a/b.rs::works` `a/b.rs::breaks` `a/*.rs` `b.rs`\n";
        let tree = Tree::of(&[("a.md", text), ("a/b.rs", "fn works() {}\n")]);
        let mut report = Report::default();
        mentions(&tree, &tree.files[0], &mut report);
        let found: Vec<&str> = report.findings.iter().map(|f| f.what.as_str()).collect();
        assert_eq!(found, ["`a/c.rs` does not exist", "`a/b.rs` has no `breaks`"]);
    }
}
