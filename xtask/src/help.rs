//! The command's help as a page.

/// Where the page lies.
pub const PATH: &str = "docs/commands.md";

const HEAD: &str = "# Commands

What `tinyforge --help` says, printed by `cargo xtask docs`; edit the command, not this file.
";

/// The page; `ask` gives what the command says to its arguments.
///
/// # Errors
/// The command cannot be asked.
pub fn text(ask: impl Fn(&[&str]) -> Result<String, String>) -> Result<String, String> {
    let all = ask(&["--help"])?;
    let mut page = format!("{HEAD}\n```\n{}```\n", tidied(&all));
    for name in names(&all) {
        page.push_str(&format!("\n## {name}\n\n```\n{}```\n", tidied(&ask(&[name, "--help"])?)));
    }
    Ok(page)
}

/// The commands in the list of all; the one that only repeats this help is left out.
fn names(help: &str) -> Vec<&str> {
    let list = help.lines().skip_while(|line| line.trim() != "Commands:").skip(1);
    let rows = list.take_while(|line| !line.trim().is_empty());
    rows.filter_map(|row| row.split_whitespace().next()).filter(|name| *name != "help").collect()
}

/// Lines without spaces at their ends.
fn tidied(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_part() {
        let all = "Does things\n\nUsage: x\n\nCommands:\n  plan  Plans\n  help  Helps\n\nOptions:\n  -h  Help\n";
        let ask = |args: &[&str]| match args {
            ["--help"] => Ok(all.to_string()),
            [name, "--help"] => Ok(format!("How to {name} \n")),
            _ => Err("unknown".to_string()),
        };
        let page = text(ask).expect("the command answers");
        assert!(page.ends_with("\n## plan\n\n```\nHow to plan\n```\n"), "{page}");
    }
}
