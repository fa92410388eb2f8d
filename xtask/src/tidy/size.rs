//! Lengths: functions, files, and bytes of whatever is committed.

use super::dead::Modules;
use super::{Config, Report, config};
use crate::source::line_of;
use crate::tree::Tree;
use std::collections::BTreeMap;

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 1000;
const FILE_LINES_AIM: usize = 400;
const FILE_BYTES_MAX: usize = 600 * 1024;

/// Key, line where it begins, and size.
type Sizes = BTreeMap<String, (usize, usize)>;

/// Runs the rules.
pub fn run(tree: &Tree, config: &Config, modules: &Modules, report: &mut Report) {
    let [functions, files, bytes] = measure(tree, modules);
    let is_test = |path: &str| tree.find(path).is_some_and(|f| f.is_test) || modules.is_test(path);
    let long = files.iter().filter(|(path, (_, lines))| *lines > FILE_LINES_AIM && !is_test(path)).count();
    if long > 0 {
        report.notes.push(format!("{long} files are longer than the {FILE_LINES_AIM} lines to aim at"));
    }
    let rule = |table, unit, limit, help| Rule { table, unit, limit, help };
    rule("function_lines", "lines", FUNCTION_LINES_MAX, "split it").check(&functions, &config.function_lines, report);
    let help = "split it by what it is about";
    rule("file_lines", "lines", FILE_LINES_MAX, help).check(&files, &config.file_lines, report);
    let help = "make it in a test, or keep it smaller";
    rule("file_bytes", "bytes", FILE_BYTES_MAX, help).check(&bytes, &config.file_bytes, report);
}

/// Writes today's sizes over the limits into the exceptions.
pub fn hold(tree: &Tree, modules: &Modules, config: &mut Config) {
    let over = |sizes: Sizes, limit| sizes.into_iter().map(|(k, (_, n))| (k, n)).filter(|(_, n)| *n > limit).collect();
    let [functions, files, bytes] = measure(tree, modules);
    config.function_lines = over(functions, FUNCTION_LINES_MAX);
    config.file_lines = over(files, FILE_LINES_MAX);
    config.file_bytes = over(bytes, FILE_BYTES_MAX);
}

/// Lines of functions that are no tests, lines of Rust files, bytes of all files.
fn measure(tree: &Tree, modules: &Modules) -> [Sizes; 3] {
    let (mut functions, mut files) = (Sizes::new(), Sizes::new());
    for (file, source) in tree.rust() {
        files.insert(file.path.clone(), (0, file.text.lines().count()));
        for function in source.functions() {
            if file.is_test_at(function.start) || modules.is_test(&file.path) {
                continue;
            }
            let line = line_of(&file.text, function.start);
            let longest = functions.entry(format!("{}::{}", file.path, function.name)).or_insert((0, 0));
            if function.lines > longest.1 {
                *longest = (line, function.lines);
            }
        }
    }
    let bytes = tree.sizes.iter().map(|(path, bytes)| (path.clone(), (0, *bytes as usize))).collect();
    [functions, files, bytes]
}

struct Rule<'a> {
    table: &'a str,
    unit: &'a str,
    limit: usize,
    help: &'a str,
}

impl Rule<'_> {
    /// Holds every size against the limit, or against what its exception allows; exceptions fall with their sizes.
    fn check(&self, found: &Sizes, held: &BTreeMap<String, usize>, report: &mut Report) {
        let Rule { table, unit, limit, help } = self;
        for (key, &(line, size)) in found {
            let (path, name) = key.split_once("::").unwrap_or((key, ""));
            let what = if name.is_empty() { "the file".to_string() } else { format!("`{name}`") };
            let allowed = held.get(key).copied().unwrap_or(*limit);
            if size > allowed {
                report.add(path, line, format!("{what} has {size} {unit}, {} over {allowed}", size - allowed), *help);
            } else if size < allowed && held.contains_key(key) {
                let row = if size <= *limit { "remove the row".to_string() } else { format!("write {size}") };
                report.add(config::PATH, 0, format!("[{table}] `{key}` says {allowed}, it is {size} now"), row);
            }
        }
        for key in held.keys().filter(|key| !found.contains_key(*key)) {
            report.add(config::PATH, 0, format!("[{table}] `{key}` does not exist"), "remove the row");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(lines: usize, toml: &str) -> Vec<String> {
        let text = format!("fn long() {{\n{}}}\n", "    a();\n".repeat(lines - 2));
        let tree = Tree::of(&[("compiler/src/lib.rs", &text)]);
        let mut report = Report::default();
        run(&tree, &Config::parse(toml).expect("a good file"), &Modules::of(&tree), &mut report);
        report.findings.into_iter().map(|f| f.what).collect()
    }

    #[test]
    fn a_function_may_have_seventy_lines() {
        assert_eq!(findings(70, ""), [""; 0]);
        assert_eq!(findings(71, ""), ["`long` has 71 lines, 1 over 70"]);
    }

    #[test]
    fn an_exception_may_only_fall() {
        let held = "[function_lines]\n\"compiler/src/lib.rs::long\" = 80\n";
        assert_eq!(findings(80, held), [""; 0]);
        assert_eq!(findings(81, held), ["`long` has 81 lines, 1 over 80"]);
        assert_eq!(findings(75, held), ["[function_lines] `compiler/src/lib.rs::long` says 80, it is 75 now"]);
        let gone = "[function_lines]\n\"compiler/src/lib.rs::short\" = 80\n";
        assert_eq!(findings(3, gone), ["[function_lines] `compiler/src/lib.rs::short` does not exist"]);
    }
}
