//! Dependencies: each has a line in `docs/DEPENDENCIES.md` that says what it saves, and each line a dependency.

use super::Report;
use crate::tree::{File, Tree};
use std::collections::{BTreeMap, BTreeSet};
use toml::{Table, Value};

const LIST: &str = "docs/DEPENDENCIES.md";
const SECTIONS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// Runs the rules.
pub fn run(tree: &Tree, report: &mut Report) {
    let Some(list) = tree.find(LIST) else {
        report.add(LIST, 0, "the list of dependencies is missing", "write it: a row a dependency");
        return;
    };
    let (mut used, mut shared) = (BTreeMap::new(), BTreeSet::new());
    for file in tree.files.iter().filter(|f| f.path == "Cargo.toml" || f.path.ends_with("/Cargo.toml")) {
        match file.text.parse::<Table>() {
            Ok(table) => manifest(file, &table, &mut used, &mut shared),
            Err(e) => report.add(&file.path, 0, format!("cannot be read: {e}"), "mend it"),
        }
    }
    let listed: BTreeSet<String> = list.text.lines().filter_map(row).map(str::to_string).collect();
    for (name, path) in used.iter().filter(|(name, _)| !listed.contains(*name)) {
        let help = format!("add a row that begins \"| `{name}` |\" and says what it saves, or do without it");
        report.add(LIST, 0, format!("`{name}` of {path} has no row"), help);
    }
    for name in listed.iter().filter(|name| !used.contains_key(*name)) {
        report.add(LIST, 0, format!("`{name}` has a row and nothing depends on it"), "remove the row");
    }
    for name in shared.iter().filter(|name| !used.contains_key(*name)) {
        let what = format!("`{name}` is a dependency of the workspace and of no crate");
        report.add("Cargo.toml", 0, what, "remove it from [workspace.dependencies]");
    }
}

/// The name in a row of the list.
fn row(line: &str) -> Option<&str> {
    line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name)
}

/// Notes the foreign crates that a manifest takes, and those that the workspace names.
fn manifest(file: &File, table: &Table, used: &mut BTreeMap<String, String>, shared: &mut BTreeSet<String>) {
    let mut tables: Vec<&Table> = vec![table];
    tables
        .extend(table.get("target").and_then(Value::as_table).into_iter().flatten().filter_map(|(_, t)| t.as_table()));
    for table in tables {
        for section in SECTIONS {
            for (name, value) in table.get(section).and_then(Value::as_table).into_iter().flatten() {
                if is_foreign(name, value) {
                    used.entry(name.clone()).or_insert(file.path.clone());
                }
            }
        }
    }
    let workspace = table.get("workspace").and_then(|w| w.get("dependencies")).and_then(Value::as_table);
    let foreign = workspace.into_iter().flatten().filter(|(name, value)| is_foreign(name, value));
    shared.extend(foreign.map(|(name, _)| name.clone()));
}

fn is_foreign(name: &str, value: &Value) -> bool {
    value.get("path").is_none() && !name.starts_with("tinyforge")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_dependencies_match() {
        let tree = Tree::of(&[
            ("Cargo.toml", "[workspace.dependencies]\nhalf = \"2\"\nrayon = \"1\"\na = { path = \"a\" }\n"),
            (
                "a/Cargo.toml",
                "[dependencies]\nhalf.workspace = true\n[target.'cfg(unix)'.dependencies]\nrustix = \"1\"\n",
            ),
            (LIST, "| crate | saves |\n|---|---|\n| `half` | f16 |\n| `libm` | erf |\n"),
        ]);
        let mut report = Report::default();
        run(&tree, &mut report);
        let found: Vec<&str> = report.findings.iter().map(|f| f.what.as_str()).collect();
        let wanted = [
            "`rustix` of a/Cargo.toml has no row",
            "`libm` has a row and nothing depends on it",
            "`rayon` is a dependency of the workspace and of no crate",
        ];
        assert_eq!(found, wanted);
    }
}
