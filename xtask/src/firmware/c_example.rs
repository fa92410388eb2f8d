//! The example in C: a program of the C compiler with the model as a static library.

use super::{BOARDS, Bench, TARGET, check_program, output};
use crate::tasks::{Outcome, cargo, run as run_command};
use std::path::{Path, PathBuf};
use std::process::Command;

const COMPILER: &str = "arm-none-eabi-gcc";
const STEPS: u32 = 300;

/// Links the program with the library around a model: a file of generated code, or the one of the examples.
pub fn build(bench: &Bench, model: Option<&Path>, program: &Path) -> Result<PathBuf, String> {
    if output(Command::new(COMPILER).arg("--version")).is_err() {
        return Err(format!(
            "{COMPILER} is missing: on Debian `apt-get install --no-remove gcc-arm-none-eabi libnewlib-arm-none-eabi`"
        ));
    }
    let mut library = cargo(&["build", "--locked", "--release", "--manifest-path", "firmware/boards/Cargo.toml"]);
    library.args(["-p", "learn-c", "--target", TARGET]);
    if let Some(model) = model {
        library.env("TINYFORGE_MODEL", model);
    }
    bench.toolchain.apply(&mut library);
    run_command(library)?;
    let folder = crate::tree::root().join("firmware/examples/learn-c");
    let mut command = Command::new(COMPILER);
    command.args(["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-std=c11", "-O2"]);
    command.args([
        "-Wall",
        "-Wextra",
        "-Werror",
        "-ffunction-sections",
        "--specs=rdimon.specs",
        "-Wl,--gc-sections,-z,noexecstack",
    ]);
    command.arg("-I").arg(crate::tree::root().join("firmware/include")).arg("-T").arg(folder.join("link.ld"));
    command.args([folder.join("start.c"), folder.join("main.c")]);
    command.arg(bench.toolchain.target_dir.join(TARGET).join("release/libtinyforge_model.a"));
    command.arg("-o").arg(program);
    run_command(command)?;
    check_program("learn-c", program)?;
    Ok(program.to_path_buf())
}

/// Compiles, links, runs until half of the steps, and again to the end.
pub fn run(bench: &Bench) -> Outcome {
    let program = build(bench, None, &bench.place.join("learn-c.elf"))?;
    let flash = bench.place.join("c.flash");
    if flash.exists() {
        std::fs::remove_file(&flash).map_err(|e| format!("{}: {e}", flash.display()))?;
    }
    let wanted = super::learning::on_host(bench)?;
    for (board, steps) in [(BOARDS[0], STEPS / 2), (BOARDS[1], STEPS)] {
        let arguments = ["training.samples", "test.samples", "c.flash", &steps.to_string()].map(str::to_string);
        let run = bench.emulator.run(board, &program, &bench.place, &arguments)?;
        let goes_on = run.text.contains("goes on from a checkpoint");
        if run.code != 0 || goes_on != (steps == STEPS) {
            return Err(format!("{board} ended with code {}:\n{}", run.code, run.text));
        }
        if steps == STEPS && !run.text.lines().any(|line| line == wanted) {
            return Err(format!("{board}: wanted `{wanted}`:\n{}", run.text));
        }
    }
    println!("learn-c: half the steps on one board, half on the other: the weights of the host");
    Ok(())
}
