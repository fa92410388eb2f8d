//! Texts that must agree with the code: the printed op list, the map, links between texts.

use super::Report;
use crate::oplist;
use crate::source::line_of;
use crate::tree::{File, Tree};

const ARCHITECTURE: &str = "ARCHITECTURE.md";
const PASSES: &str = "compiler/src/passes/";

/// Runs the rules.
pub fn run(tree: &Tree, report: &mut Report) {
    match oplist::text(tree) {
        Ok(text) if tree.find(oplist::PATH).is_none_or(|f| f.text != text) => {
            report.add(oplist::PATH, 0, "is not what the op table says", "run `cargo xtask docs`");
        }
        Ok(_) => {}
        Err(faults) => faults.into_iter().for_each(|(path, what, help)| report.add(&path, 0, what, help)),
    }
    map(tree, report);
    for file in tree.files.iter().filter(|f| f.path.ends_with(".md")) {
        links(tree, file, report);
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
}
