//! The files in `ir/`: texts that passes turn into expected texts, and texts that must be refused.
//!
//! A file begins with comments; `# run: PASSES` says what runs over the graph that follows, and behind a line `---`
//! stands the expected text. `--- update` separates the graph that runs once a step. `# fails: MESSAGE` in place of
//! an expected text says how a pass refuses the graph. In a file without `# run:`, every line that ends in
//! `# error: MESSAGE` must be reported with that message, and no other line.

use std::fs;
use std::path::{Path, PathBuf};
use tinyforge_compiler::ir::text::{parse_graph, parse_program, print_graph, print_program};
use tinyforge_tests::golden::{HOW_TO_BLESS, blessing, difference};
use tinyforge_tests::graphs::assert_text_is_graph;
use tinyforge_tests::script::Stages;

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("ir");
    let entries = fs::read_dir(&folder).expect("tests/ir is there");
    let mut files: Vec<PathBuf> = entries.map(|e| e.expect("tests/ir can be listed").path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "txt"));
    files.sort();
    files
}

/// The rest of the first comment that starts with `# KEY:`.
fn header<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix("# ")?.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

/// Input and expectation; the line between them belongs to neither.
fn split(text: &str) -> (&str, &str) {
    text.split_once("\n---\n").unwrap_or((text.trim_end(), ""))
}

fn run(input: &str, script: &str) -> Result<String, String> {
    let graph = parse_graph(input).map_err(|d| format!("the input is refused: {d:?}"))?;
    assert_text_is_graph(&graph);
    let mut stages = Stages::new(graph);
    stages.run(script)?;
    let finish = stages.finish.map(|g| format!("--- update\n{}", print_graph(&g)));
    Ok(print_graph(&stages.graph) + &finish.unwrap_or_default())
}

fn check_run(file: &Path, text: &str, script: &str) -> Result<(), String> {
    let (input, wanted) = split(text);
    match (run(input, script), header(text, "fails")) {
        (Err(found), Some(part)) if found.contains(part) => Ok(()),
        (Err(found), _) => Err(format!("refused: {found}")),
        (Ok(_), Some(part)) => Err(format!("must be refused with `{part}`")),
        (Ok(found), None) if found == wanted => Ok(()),
        (Ok(found), None) if blessing() => {
            fs::write(file, format!("{input}\n---\n{found}")).map_err(|e| format!("cannot be rewritten: {e}"))
        }
        (Ok(found), None) => Err(format!("{}{HOW_TO_BLESS}", difference(wanted, &found))),
    }
}

fn check_errors(text: &str) -> Result<(), String> {
    let is_program = text.lines().any(|l| l.trim() == "program");
    let found = match is_program {
        true => parse_program(text).map(|p| print_program(&p)),
        false => parse_graph(text).map(|g| print_graph(&g)),
    };
    let mut found = found.err().ok_or("must be refused")?;
    for (i, line) in text.lines().enumerate() {
        // Findings about no single line are expected in a comment of their own.
        let (wanted, number) = match (line.split_once("# error: "), line.split_once("# error anywhere: ")) {
            (Some((_, wanted)), _) => (wanted, i + 1),
            (_, Some((_, wanted))) => (wanted, 0),
            _ => continue,
        };
        let matching = found.iter().position(|d| d.line == number && d.message.contains(wanted));
        let at = matching.ok_or_else(|| format!("line {}: no `{wanted}` among {found:?}", i + 1))?;
        found.remove(at);
    }
    if found.is_empty() { Ok(()) } else { Err(format!("also reported: {found:?}")) }
}

#[test]
fn files_give_what_they_say() {
    let mut failures = Vec::new();
    for file in files() {
        let text = fs::read_to_string(&file).expect("a listed file can be read");
        let checked = match header(&text, "run") {
            Some(script) => check_run(&file, &text, script),
            None => check_errors(&text),
        };
        if let Err(why) = checked {
            failures.push(format!("{}:\n{why}", file.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn programs_read_back() {
    let text = "program\nrows 2\ninput %x : f32[4,3]\nweight @w : f32[3,3]\nbody layer\n  input %x : f32[4,3]\n  \
                weight @w : f32[3,3]\n  %h = linear %x, @w : f32[4,3]\n  %y = relu %h : f32[4,3]\n  return y = %y\nend\n\
                call a = layer %x, @w\ncall b = layer a:0, @w\nreturn out = b:0\n";
    let program = parse_program(text).expect("the program is right");
    assert_eq!(print_program(&program), text);
    let graph = program.inline();
    assert_text_is_graph(&graph);
    assert_eq!(graph.nodes.len(), 4);
    assert_eq!(graph.blocks, ["", "a", "b"]);
}

#[test]
fn differences_are_shown() {
    let found = difference("a\nb\nc\nd\ne", "a\nb\nx\nd\ne");
    assert_eq!(found, "  b\n- c\n+ x\n  d\n");
    assert_eq!(difference("a", "a"), "");
}
