//! The tasks: each runs programs and says which one failed.

use crate::help;
use crate::tidy::{self, Config};
use crate::tree::{self, Tree};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// What a task returns: nothing, or why it failed.
pub type Outcome = Result<(), String>;

/// The same cargo that runs this program.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(args).current_dir(tree::root());
    command
}

/// A command as people write it, without the folder of its program.
pub fn words(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs a command that must succeed.
pub fn run(mut command: Command) -> Outcome {
    let name = words(&command);
    eprintln!("$ {name}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{name}` ended with {status}")),
        Err(e) => Err(format!("`{name}` cannot be started: {e}")),
    }
}

/// Formatting, lints, tidy, tests, printed docs. All of them run, so that one failure does not hide the next.
pub fn check() -> Outcome {
    let results =
        [("formatting", formatting()), ("lints", lints()), ("tidy", tidy()), ("tests", tests()), ("docs", printed())];
    let mut failed = Vec::new();
    for (name, result) in results {
        match result {
            Ok(()) => eprintln!("{name}: ok"),
            Err(why) => {
                eprintln!("{name}: FAILED: {why}");
                failed.push(name);
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("{} failed", failed.join(", "))) }
}

fn formatting() -> Outcome {
    run(cargo(&["fmt", "--all", "--check"])).map_err(|why| format!("{why}; run `cargo fmt --all`"))
}

fn lints() -> Outcome {
    run(cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// All tests, and below them the sum over all test programs in the form of one.
fn tests() -> Outcome {
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    let name = words(&command);
    eprintln!("$ {name}");
    let started = command.stdout(Stdio::piped()).spawn();
    let mut child = started.map_err(|e| format!("`{name}` cannot be started: {e}"))?;
    let mut sum = Sum::default();
    if let Some(out) = child.stdout.take() {
        let mut stdout = std::io::stdout().lock();
        for line in BufReader::new(out).split(b'\n') {
            let line = line.map_err(|e| format!("the output of `{name}` cannot be read: {e}"))?;
            sum.add(&String::from_utf8_lossy(&line));
            let written = stdout.write_all(&line).and_then(|()| stdout.write_all(b"\n"));
            written.map_err(|e| format!("the output cannot be written: {e}"))?;
        }
    }
    let status = child.wait().map_err(|e| format!("`{name}`: {e}"))?;
    let word = if status.success() { "ok" } else { "FAILED" };
    println!("\nall {} test programs together:\ntest result: {word}. {}", sum.programs, sum.counts());
    if status.success() { Ok(()) } else { Err(format!("`{name}` ended with {status}")) }
}

/// Counts of all test programs.
#[derive(Default, Debug, PartialEq)]
struct Sum {
    programs: u32,
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Sum {
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        self.programs += 1;
        for part in counts.split(';') {
            match part.trim().split_once(' ').map(|(n, word)| (n.parse().unwrap_or(0), word)) {
                Some((n, "passed")) => self.passed += n,
                Some((n, "failed")) => self.failed += n,
                Some((n, "ignored")) => self.ignored += n,
                _ => {}
            }
        }
    }

    fn counts(&self) -> String {
        format!("{} passed; {} failed; {} ignored", self.passed, self.failed, self.ignored)
    }
}

/// The rules of the house.
pub fn tidy() -> Outcome {
    let tree = Tree::read()?;
    let report = tidy::run(&tree, &Config::of(&tree)?);
    report.findings.iter().for_each(|finding| eprintln!("{finding}"));
    report.notes.iter().for_each(|note| eprintln!("note: {note}"));
    match report.findings.len() {
        0 => Ok(()),
        n => Err(format!("{n} findings")),
    }
}

/// Writes today's sizes and counts of unsafe code into the ratchets.
pub fn hold() -> Outcome {
    let tree = Tree::read()?;
    let text = tidy::hold(&tree, Config::of(&tree)?);
    std::fs::write(tree.root.join(tidy::PATH), text).map_err(|e| format!("{}: {e}", tidy::PATH))?;
    eprintln!("look at `git diff {}`: every number that rose needs a reason", tidy::PATH);
    Ok(())
}

/// Rewrites expectations. What changed is for git to show.
pub fn bless() -> Outcome {
    let mut command = cargo(&["test", "-p", "tinyforge-tests", "--no-fail-fast"]);
    command.env("BLESS", "1");
    run(command)?;
    docs()?;
    eprintln!("look at `git diff` before you commit: what is blessed is believed");
    Ok(())
}

/// Prints the docs that come from tables.
pub fn docs() -> Outcome {
    let mut command = cargo(&["test", "-q", "-p", "tinyforge-tests", "--test", "op_list"]);
    command.env("BLESS", "1");
    run(command)?;
    std::fs::write(tree::root().join(help::PATH), help::text(ask)?).map_err(|e| format!("{}: {e}", help::PATH))
}

/// What the command says to these arguments.
fn ask(args: &[&str]) -> Result<String, String> {
    let mut command = cargo(&["run", "-q", "--bin", "tinyforge", "--"]);
    command.args(args).stderr(Stdio::inherit());
    let name = words(&command);
    let output = command.output().map_err(|e| format!("`{name}` cannot be started: {e}"))?;
    if !output.status.success() {
        return Err(format!("`{name}` ended with {}", output.status));
    }
    String::from_utf8(output.stdout).map_err(|e| format!("`{name}`: {e}"))
}

/// The printed help is today's. The op list is held by a test.
fn printed() -> Outcome {
    let old = std::fs::read_to_string(tree::root().join(help::PATH)).map_err(|e| format!("{}: {e}", help::PATH))?;
    match help::text(ask)? == old {
        true => Ok(()),
        false => Err(format!("{} is not what the command says; run `cargo xtask docs`", help::PATH)),
    }
}

/// Speed, alone or beside a peer.
pub fn bench(peer: Option<&str>) -> Outcome {
    match peer {
        None => run(cargo(&["bench", "-p", "tinyforge-kernels"])),
        Some("rust") => run(cargo(&["run", "--release", "--manifest-path", "benches/dense-peers/Cargo.toml"])),
        Some("torch") => {
            let python = std::env::var("TINYFORGE_PEER_PYTHON").map_err(|_| {
                "set TINYFORGE_PEER_PYTHON to a Python with the packages of tests/peers/requirements.txt".to_string()
            })?;
            let mut command = Command::new(python);
            command.arg("tests/peers/side_by_side.py").current_dir(tree::root());
            run(command)
        }
        Some(other) => Err(format!("`{other}` is no peer: rust or torch")),
    }
}

/// Makes a model to measure with.
pub fn model(options: &[&str]) -> Outcome {
    let command = ["run", "-q", "--release", "--bin", "tinyforge", "--", "make-model"];
    run(cargo(&[&command, options].concat()))
}

/// Runs every fuzz target for a while.
pub fn fuzz(seconds: &str) -> Outcome {
    let seconds: u32 = seconds.parse().map_err(|_| format!("`{seconds}` is no number of seconds"))?;
    let folder = tree::root().join("fuzz/fuzz_targets");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        return Err("there are no fuzz targets yet: fuzz/fuzz_targets does not exist".to_string());
    };
    let paths = entries.filter_map(|entry| entry.ok().map(|e| e.path()));
    let stems = paths
        .filter(|p| p.extension().is_some_and(|e| e == "rs"))
        .filter_map(|p| p.file_stem().map(|s| s.to_os_string()));
    let mut targets: Vec<String> = stems.map(|stem| stem.to_string_lossy().into_owned()).collect();
    targets.sort();
    // `+nightly` is rustup's, so the cargo that runs this program is not asked.
    let nightly = |args: &[&str]| {
        let mut command = Command::new("cargo");
        command.arg("+nightly").args(args).current_dir(tree::root()).env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
        command
    };
    let installed = nightly(&["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !installed.is_ok_and(|status| status.success()) {
        return Err(
            "cargo-fuzz is missing: `rustup toolchain install nightly` and `cargo install cargo-fuzz`".to_string()
        );
    }
    let time = format!("-max_total_time={seconds}");
    targets.iter().try_for_each(|target| run(nightly(&["fuzz", "run", target, "--", &time])))
}

/// Clones the last commit and runs there what CI runs.
pub fn ci() -> Outcome {
    let root = tree::root();
    let place = root.join("target/ci");
    let clone = place.join("clone");
    if clone.exists() {
        std::fs::remove_dir_all(&clone).map_err(|e| format!("{}: {e}", clone.display()))?;
    }
    std::fs::create_dir_all(&place).map_err(|e| format!("{}: {e}", place.display()))?;
    let mut command = Command::new("git");
    command.args(["clone", "--quiet"]).arg(&root).arg(&clone);
    run(command)?;
    let mut command = Command::new("bash");
    command.arg(".ci/run").current_dir(&clone).stdin(Stdio::null()).env("CI", "true").env_remove("CARGO");
    // What was built for the last clone serves the next one.
    command.env("CARGO_TARGET_DIR", place.join("target"));
    let assets = root.join("../shared/assets");
    if assets.exists() && std::env::var_os("TINYFORGE_ASSETS").is_none() {
        command.env("TINYFORGE_ASSETS", assets);
    }
    run(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let mut sum = Sum::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s",
        ] {
            sum.add(line);
        }
        assert_eq!(sum, Sum { programs: 2, passed: 4, failed: 2, ignored: 1 });
        assert_eq!(sum.counts(), "4 passed; 2 failed; 1 ignored");
    }
}
