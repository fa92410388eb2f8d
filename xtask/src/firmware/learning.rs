//! The example that learns on a board: the same weights as on the host, after a run in one piece, after resets, and
//! after losses of power at many places of its checkpoints.

use super::{BOARDS, Bench, emulator::Run, output};
use crate::tasks::Outcome;
use std::path::Path;
use std::process::Command;

const STEPS: u32 = 300;
/// A checkpoint every so many steps.
const EVERY: u32 = 50;
/// Exit code of the board when its power fails.
const POWER_LOSS: i32 = 9;
/// At which piece of work of the flash the power fails: in an erasure, in the words of the state, in the header, in
/// the second and in later checkpoints.
const CUTS: &[u32] = &[1, 2, 3, 40, 84, 86, 88, 89, 91, 130, 172, 260, 400];
/// More starts than cuts that can happen in one run.
const STARTS: u32 = 20;

/// Runs everything.
pub fn run(bench: &Bench) -> Outcome {
    let wanted = on_host(bench)?;
    println!("\nhost: {wanted}");
    for board in BOARDS {
        let whole = start(bench, board, "whole.flash", &[])?;
        expect(board, &whole, &wanted)?;
        println!("{board}: the same, in one piece");
        for line in whole.text.lines().filter(|line| line.starts_with("instructions") || line.starts_with("arena")) {
            println!("{board}: {line}");
        }
    }
    let board = BOARDS[0];
    let reset = start(bench, board, "reset.flash", &[format!("reset={}", 3 * EVERY)])?;
    expect("after a reset", &reset, &wanted)?;
    if !reset.text.contains("goes on from checkpoint") {
        return Err(format!("the reset did not happen:\n{}", reset.text));
    }
    println!("{board}: the same after a reset");
    let starts: u32 = CUTS.iter().map(|cut| cut_at(bench, board, *cut, &wanted)).sum::<Result<_, _>>()?;
    println!("{board}: the same with power failing at {} places of checkpoints, {starts} starts in all", CUTS.len());
    Ok(())
}

/// The files of samples, and the line that every run must end with; prints the one before.
pub fn on_host(bench: &Bench) -> Result<String, String> {
    let mut command = Command::new(bench.host("examples/on_host"));
    command.arg(bench.place.join("training.samples")).arg(bench.place.join("test.samples")).arg(STEPS.to_string());
    let text = output(&mut command)?;
    let (before, after) = text.trim_end().split_once('\n').ok_or_else(|| format!("two lines, not {text}"))?;
    println!("host: {before}");
    Ok(after.to_string())
}

/// Starts with a new flash.
fn start(bench: &Bench, board: &str, flash: &str, more: &[String]) -> Result<Run, String> {
    let path = bench.place.join(flash);
    if path.exists() {
        std::fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    go_on(bench, board, flash, more)
}

/// Starts with what the flash holds.
fn go_on(bench: &Bench, board: &str, flash: &str, more: &[String]) -> Result<Run, String> {
    let mut arguments = vec!["train=training.samples".to_string(), "test=test.samples".to_string()];
    arguments.extend([format!("flash={flash}"), format!("steps={STEPS}"), format!("every={EVERY}")]);
    arguments.extend_from_slice(more);
    let program: &Path = &bench.program("learn");
    bench.emulator.run(board, program, &bench.place, &arguments)
}

fn expect(what: &str, run: &Run, wanted: &str) -> Outcome {
    if run.code == 0 && run.text.lines().any(|line| line == wanted) {
        return Ok(());
    }
    Err(format!("{what}: code {}, wanted `{wanted}`:\n{}", run.code, run.text))
}

/// Starts again and again, with the power failing at piece of work `cut` of every start but those that come to the
/// end; then once more without. Gives the number of starts.
fn cut_at(bench: &Bench, board: &str, cut: u32, wanted: &str) -> Result<u32, String> {
    let what = format!("power failing at {cut}");
    // So early, no start gets a checkpoint done: the second has full power.
    let power = [format!("power={cut}")];
    let mut run = start(bench, board, "cut.flash", &power)?;
    let mut starts = 1;
    while run.code == POWER_LOSS && starts < STARTS {
        let steps_done = run.text.lines().any(|line| line.starts_with("step "));
        let more = if steps_done { &power[..] } else { &[] };
        run = go_on(bench, board, "cut.flash", more)?;
        starts += 1;
    }
    expect(&what, &run, wanted)?;
    if starts == 1 {
        return Err(format!("{what}: it did not fail"));
    }
    Ok(starts)
}
