//! `docs/ops.md` is what the op table and the comments over its rows say.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use tinyforge_compiler::ir::attrs::Attr;
use tinyforge_compiler::ir::ops::{Op, OpDef, Saves};
use tinyforge_tests::golden::{HOW_TO_BLESS, blessing, difference};

fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(workspace(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

const LIST: &str = "docs/ops.md";
const FOLDER: &str = "compiler/src/ir/ops/";

#[test]
fn the_list_is_what_the_table_says() {
    let (list, text) = (read(LIST), text());
    if blessing() {
        std::fs::write(workspace(LIST), text).unwrap_or_else(|e| panic!("{LIST}: {e}"));
    } else if list != text {
        panic!("{LIST}: {}\n{HOW_TO_BLESS}", difference(&list, &text));
    }
}

#[test]
fn an_op_has_one_name() {
    for op in Op::ALL {
        assert_eq!(op.name(), snake(&format!("{op:?}")), "the row of {op:?} calls it otherwise");
    }
}

/// The walk through adding an op names five files that exist, and its rows are rows.
#[test]
fn the_walk_has_five_files() {
    let walk = read("docs/adding-an-op.md");
    let steps: Vec<&str> = walk.split("\n## ").filter(|s| s.starts_with(|c: char| c.is_ascii_digit())).collect();
    for (i, step) in steps.iter().enumerate() {
        let title = step.lines().next().unwrap_or_default();
        assert!(title.starts_with(&format!("{}. ", i + 1)), "step {} is `{title}`", i + 1);
        assert!(workspace(title.split('`').nth(1).unwrap_or_default()).is_file(), "`{title}` names no file");
    }
    assert!(walk.contains("five files") && steps.len() == 5, "the walk has {} files", steps.len());
    for (op, constant) in [("Softsign", "SOFTSIGN"), ("SoftsignGrad", "SOFTSIGN_GRAD")] {
        assert!(comment(steps[0], constant).is_some(), "{constant} has no row with a comment");
        assert_eq!(place(steps[1], op), Some(("activation", constant)));
        steps[2..].iter().for_each(|step| assert!(step.contains(&snake(op)), "no {op} in {step}"));
        assert_eq!(Op::from_name(&snake(op)), None, "the walk's op is in the tree");
    }
}

const HEAD: &str = "# Ops

Printed from the op table by `cargo xtask docs`; edit the rows in `compiler/src/ir/ops/`, not this file.

- **operands**: how many; `2-3` means that the last one may be absent. `+=` marks an op that starts from it.
- **attributes**: with the value that holds where none is written.
- **gradient reads**: what is kept for backward, and nothing else; `-` where the op has no gradient.
- **in place**: which operand's memory which result may take.
";

fn text() -> String {
    let table = read(&format!("{FOLDER}mod.rs"));
    let (mut text, mut family, mut source) = (HEAD.to_string(), "", String::new());
    for op in Op::ALL {
        let name = format!("{op:?}");
        let (of, constant) = place(&table, &name).unwrap_or_else(|| panic!("{name} has no line in the table"));
        if of != family {
            family = of;
            source = read(&format!("{FOLDER}{}.rs", of.replace("::", "/")));
            let header = source.lines().next().and_then(|line| line.strip_prefix("//! ")).unwrap_or_default();
            write!(text, "\n## {family}\n\n{header}\n{COLUMNS}").expect("a text takes whatever is written");
        }
        let comment = comment(&source, constant);
        row(&mut text, op.def(), &comment.unwrap_or_else(|| panic!("{FOLDER}{of}.rs: {constant} has no comment")));
    }
    text
}

const COLUMNS: &str = "
| op | operands | attributes | gradient reads | in place | what it does |
|---|---|---|---|---|---|
";

fn row(text: &mut String, def: &OpDef, comment: &str) {
    let (least, most) = def.arity;
    let mut operands = if least == most { format!("{most}") } else { format!("{least}-{most}") };
    operands.push_str(if def.acc.is_some() { " `+=`" } else { "" });
    let value = |attr: Attr| match attr {
        Attr::Int(v) => v.to_string(),
        Attr::Float(v) => format!("{v:?}"),
    };
    let attrs: Vec<String> = def.attrs.iter().map(|a| format!("{}={}", a.name, value(a.default))).collect();
    let saves: Vec<String> = def.saves.iter().map(saved).collect();
    let reads = match (def.vjp.is_some(), saves.is_empty()) {
        (false, _) => "-".to_string(),
        (true, true) => "nothing".to_string(),
        (true, false) => saves.join(", "),
    };
    let in_place: Vec<String> = def.in_place.iter().map(|(a, o)| format!("{a}→{o}")).collect();
    let comment = comment.replace('|', "\\|");
    let cells = [&format!("`{}`", def.name), &operands, &attrs.join(" "), &reads, &in_place.join(" "), &comment];
    for cell in cells {
        write!(text, "| {cell} ").expect("a text takes whatever is written");
    }
    text.push_str("|\n");
}

fn saved(saves: &Saves) -> String {
    match saves {
        Saves::Arg(i) => format!("operand {i}"),
        Saves::Out(i) => format!("result {i}"),
    }
}

/// Family and constant of an op, from the line `Name => family::CONSTANT,` of the table. A family `int8::conv` is the
/// file `int8/conv.rs`.
fn place<'a>(table: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let line = table.lines().find_map(|line| line.trim().strip_prefix(name)?.trim_start().strip_prefix("=>"))?;
    line.trim().trim_end_matches(',').rsplit_once("::")
}

/// The comment over a row, in one line.
fn comment(text: &str, constant: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| line.starts_with(&format!("pub const {constant}: ")))?;
    let above = lines[..at].iter().rev().map_while(|line| line.strip_prefix("///")).map(str::trim);
    let comment: Vec<&str> = above.collect();
    let comment: Vec<&str> = comment.into_iter().rev().filter(|line| !line.starts_with("```")).collect();
    (!comment.is_empty()).then(|| comment.join(" "))
}

/// `LinearGradX` to `linear_grad_x`, `Conv2dGradX` to `conv2d_grad_x`.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

#[test]
fn names_are_taken_apart() {
    assert_eq!(snake("Conv2dGradX"), "conv2d_grad_x");
    assert_eq!(place("    Relu => activation::RELU,\n", "Relu"), Some(("activation", "RELU")));
    assert_eq!(place("    Relu6 => activation::RELU6,\n", "Relu"), None);
}

#[test]
fn comments_are_put_in_one_line() {
    let text = "/// One\n/// two.\npub const A: OpDef = 1;\npub const B: OpDef = 1;\n";
    assert_eq!(comment(text, "A").as_deref(), Some("One two."));
    assert_eq!(comment(text, "B"), None);
}
