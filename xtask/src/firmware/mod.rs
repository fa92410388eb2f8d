//! `cargo xtask firmware`: builds for bare Cortex-M, runs in QEMU, measures.
//!
//! Everything it makes lies in `firmware` of the target folder. What is missing is named with what brings it.

mod c_example;
mod checkpoint;
mod conformance;
mod elf;
mod emulator;
mod families;
mod inputs;
mod learning;
mod network;
mod stack;
mod toolchain;

use crate::tasks::{Outcome, cargo, words};
use elf::Elf;
use emulator::Emulator;
use std::path::{Path, PathBuf};
use std::process::Command;
use toolchain::Toolchain;

/// Cortex-M4F and M7: both run the same code.
const TARGET: &str = "thumbv7em-none-eabihf";
/// The boards as QEMU names them.
const BOARDS: [&str; 2] = ["mps2-an386", "mps2-an500"];

/// What is done, in this order; told whether all is asked for.
type Part = fn(&Bench, bool) -> Outcome;
const PARTS: [(&str, Part); 6] = [
    ("lints", |bench, _| lints(bench)),
    ("sizes", |bench, _| sizes(bench)),
    ("conformance", |bench, _| conformance::run(bench)),
    ("learning", |bench, _| learning::run(bench)),
    ("c", |bench, _| c_example::run(bench)),
    ("networks", network::run),
];

/// What all parts need.
struct Bench {
    toolchain: Toolchain,
    emulator: Emulator,
    /// Where files go.
    place: PathBuf,
}

impl Bench {
    /// A program of this computer that was built.
    fn host(&self, name: &str) -> PathBuf {
        target_dir().join("debug").join(name)
    }

    /// An ELF that was built.
    fn program(&self, name: &str) -> PathBuf {
        self.toolchain.target_dir.join(TARGET).join("release").join(name)
    }
}

/// Builds, and runs the parts whose names are given, or all. `--all` takes every network and counts every layer.
pub fn run(args: &[&str]) -> Outcome {
    let is_all = args.contains(&"--all");
    let named: Vec<&str> = args.iter().copied().filter(|arg| *arg != "--all").collect();
    if let Some(unknown) = named.iter().find(|name| !PARTS.iter().any(|(part, _)| part == *name)) {
        let parts: Vec<&str> = PARTS.iter().map(|(part, _)| *part).collect();
        return Err(format!("there is no part `{unknown}`: {}", parts.join(", ")));
    }
    let place = target_dir().join("firmware");
    std::fs::create_dir_all(&place).map_err(|e| format!("{}: {e}", place.display()))?;
    let emulator = Emulator::find(&place)?;
    let toolchain = Toolchain::find(TARGET, &place)?;
    println!("{}\n{}", toolchain.name, emulator.name);
    let bench = Bench { toolchain, emulator, place };
    build(&bench)?;
    let mut failed = Vec::new();
    for (name, part) in PARTS.iter().filter(|(name, _)| named.is_empty() || named.contains(name)) {
        match part(&bench, is_all) {
            Ok(()) => println!("{name}: ok"),
            Err(why) => {
                eprintln!("{name}: FAILED: {why}");
                failed.push(*name);
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("{} failed", failed.join(", "))) }
}

/// The folder of everything built.
pub(crate) fn target_dir() -> PathBuf {
    let root = crate::tree::root();
    std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), |dir| root.join(dir))
}

/// A command that must succeed; gives what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let name = words(command);
    let output = command.output().map_err(|e| format!("`{name}` cannot be started: {e}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("`{name}` ended with {}\n{}", output.status, errors.trim_end()));
    }
    String::from_utf8(output.stdout).map_err(|e| format!("`{name}`: {e}"))
}

fn build(bench: &Bench) -> Outcome {
    // In one command, so that what they have in common is built once, and as the tests have it.
    let mut command = cargo(&["build", "--bin", "tinyforge", "--bin", "conformance-vectors"]);
    command.args(["--example", "published", "--example", "on_host"]);
    crate::tasks::run(command)?;
    let mut command = cargo(&["build", "--locked", "--release", "--manifest-path", "firmware/boards/Cargo.toml"]);
    command.args(["--target", TARGET]);
    bench.toolchain.apply(&mut command);
    crate::tasks::run(command)
}

/// What the check of the main workspace does not see. Debian's compiler comes without lints.
fn lints(bench: &Bench) -> Outcome {
    let mut command = cargo(&["fmt", "--all", "--check", "--manifest-path", "firmware/boards/Cargo.toml"]);
    command.env_remove("RUSTC");
    crate::tasks::run(command)?;
    if !bench.toolchain.has_lints() {
        return Ok(());
    }
    let mut command = cargo(&["clippy", "--locked", "--release", "--no-deps", "--target", TARGET]);
    command.args(["--manifest-path", "firmware/boards/Cargo.toml"]);
    bench.toolchain.apply(&mut command);
    command.args(["--", "-D", "warnings"]);
    crate::tasks::run(command)
}

/// Panic-free, and how large.
fn sizes(bench: &Bench) -> Outcome {
    println!("\n{:<14} {:>10} {:>10} {:>10}   bytes", "program", "flash", "RAM", "stack kept");
    let results = ["conformance", "learn"].map(|name| check_program(name, &bench.program(name)));
    results.into_iter().collect()
}

/// One row of the table of sizes; an error if the program can panic.
fn check_program(name: &str, path: &Path) -> Outcome {
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let elf = Elf::parse(&bytes).ok_or_else(|| format!("{} is no 32-bit ELF file", path.display()))?;
    println!("{name:<14} {:>10} {:>10} {:>10}", elf.flash_bytes(), elf.ram_bytes(), elf.stack_bytes());
    let panics: Vec<&str> = elf.symbols().map(|(name, _)| name).filter(|name| name.contains("panic")).collect();
    if panics.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{name} can panic: it holds {}; look for calls of it with `arm-none-eabi-objdump -dl {}`, then index with `get` \
         and divide by what the compiler knows is not 0",
        panics.join(", "),
        path.display()
    ))
}
