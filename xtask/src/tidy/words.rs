//! Words in all texts, and how lines end.

use super::{Config, Report};
use crate::source::{line_of, words};
use crate::tree::{File, Tree};

const LINE_CHARS_MAX: usize = 120;

/// Folders of somebody's machine: a path that begins with one of them works nowhere else.
const PLACES: &[&str] = &["home", "root", "work", "Users"];

/// Runs the rules.
pub fn run(tree: &Tree, config: &Config, report: &mut Report) {
    let skipped = |f: &&File| is_data(&f.path) || config.words_skip.keys().any(|p| f.path.starts_with(p));
    for file in tree.files.iter().filter(|f| !skipped(f)) {
        let lower = file.text.to_ascii_lowercase();
        for (word, instead) in &config.words {
            // A word written in capitals is meant in capitals.
            let is_upper = word.bytes().all(|b| !b.is_ascii_lowercase());
            let text = if is_upper { &file.text } else { &lower };
            let several = format!("{word}s");
            for at in words(text, word).chain(words(text, &several)) {
                let line = line_of(&file.text, at);
                report.add(&file.path, line, format!("`{word}` is not a word of this project"), instead.as_str());
            }
        }
        for place in PLACES {
            for at in absolute(&file.text, place) {
                let what = format!("an absolute path, `/{place}/...`");
                let help = "a path from the workspace's root, or an environment variable";
                report.add(&file.path, line_of(&file.text, at), what, help);
            }
        }
        lines(file, report);
    }
}

/// Where a path that begins with `/place/` stands.
fn absolute(text: &str, place: &str) -> Vec<usize> {
    let path = format!("/{place}/");
    let begins = |at: usize| !text[..at].ends_with(|c: char| c.is_alphanumeric() || "._-~/}*>".contains(c));
    text.match_indices(path.as_str()).map(|(at, _)| at).filter(|at| begins(*at)).collect()
}

fn lines(file: &File, report: &mut Report) {
    if file.text.contains('\r') {
        report.add(&file.path, 0, "lines end with a carriage return", "end them with a newline alone");
    }
    if !file.text.is_empty() && !file.text.ends_with('\n') {
        report.add(&file.path, 0, "the last line has no end", "end it with a newline");
    }
    for (i, line) in file.text.lines().enumerate() {
        if line.ends_with([' ', '\t']) {
            report.add(&file.path, i + 1, "the line ends in spaces", "remove them");
        }
    }
    // Code is rustfmt's to break; comments it leaves alone.
    let comments = file.source.as_ref().map_or("", |s| s.comments.as_str());
    for (i, line) in comments.lines().enumerate() {
        let chars = line.trim_end().chars().count();
        if chars > LINE_CHARS_MAX {
            let what = format!("the comment ends at column {chars}, at most {LINE_CHARS_MAX}");
            report.add(&file.path, i + 1, what, "break it");
        }
    }
}

/// Data and generated files: not ours to spell.
fn is_data(path: &str) -> bool {
    path.starts_with("fuzz/corpus/") || [".json", ".txt", ".svg", ".lock"].iter().any(|end| path.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Vec<String> {
        let config = Config::parse("[words]\n\"util\" = \"name what it does\"\n\"XYZ\" = \"spell it out\"\n");
        let mut report = Report::default();
        run(&Tree::of(&[("docs/a.md", text)]), &config.expect("a good file"), &mut report);
        report.findings.into_iter().map(|f| f.what).collect()
    }

    #[test]
    fn words_are_found_whole_and_in_any_case() {
        assert_eq!(findings("The Util of it, utilship.\n"), ["`util` is not a word of this project"]);
        assert_eq!(findings("utils\n").len(), 1);
        assert_eq!(findings("xyz XYZ\n"), ["`XYZ` is not a word of this project"]);
    }

    #[test]
    fn absolute_paths_are_found() {
        assert_eq!(findings(&format!("see /{}/me/x\n", PLACES[0])).len(), 1);
        assert_eq!(findings("see docs/home/x, ../root/y, $X/work/z and ${X}/work/z\n").len(), 0);
    }

    #[test]
    fn lines_end_plainly() {
        assert_eq!(findings("a \n"), ["the line ends in spaces"]);
        assert_eq!(findings("a"), ["the last line has no end"]);
    }
}
