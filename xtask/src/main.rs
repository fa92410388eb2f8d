//! The project's tasks: `cargo xtask`.
#![forbid(unsafe_code)]

mod cuda;
mod firmware;
mod help;
mod source;
mod tasks;
mod tidy;
mod tree;

use std::process::ExitCode;

const USAGE: &str = "cargo xtask TASK

  check              formatting, lints, tidy and all tests: the command that CI runs
  tidy               the rules of the house alone; notes what could be better
  tidy --hold        writes today's sizes and counts into xtask/tidy.toml, for the diff to show
  bless              rewrites the expectations of the text tests, and the printed docs
  docs               prints docs/ops.md from the op table and docs/commands.md from the command's help
  bench [--peer P]   speed of the kernels; beside them P = rust (other crates) or torch
  model OPTIONS...   makes a model with random weights, to measure with: --config FILE --out DIR [--dtype, --seed]
  fuzz [SECONDS]     every fuzz target for so long (default 30)
  firmware           builds for Cortex-M, runs conformance and the examples in QEMU, prints sizes and instructions
  firmware --all     the same with every published network, and instructions layer by layer
  firmware PART...   parts of it: lints, sizes, conformance, learning, c, networks
  cuda [PART]        compiles the CUDA kernels for every architecture and runs them on the host; no card is needed;
                     parts: compile, conformance
  ci                 what CI does: a fresh clone of the last commit, then .ci/run in it
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["check"] => tasks::check(),
        ["tidy"] => tasks::tidy(),
        ["tidy", "--hold"] => tasks::hold(),
        ["bless"] => tasks::bless(),
        ["docs"] => tasks::docs(),
        ["bench"] => tasks::bench(None),
        ["bench", "--peer", peer] => tasks::bench(Some(peer)),
        ["model", ref options @ ..] => tasks::model(options),
        ["fuzz"] => tasks::fuzz("30"),
        ["fuzz", seconds] => tasks::fuzz(seconds),
        ["firmware", ref more @ ..] => firmware::run(more),
        ["cuda", ref parts @ ..] => cuda::parts(parts),
        ["ci"] => tasks::ci(),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
