//! A published network end to end: compiled to source, trained on a board, and trained by `tinyforge simulate`. The
//! weights must be the same bits. `TINYFORGE_COMMAND` may name a command that is built already.

use super::elf::Elf;
use super::{BOARDS, Bench, TARGET, check_program, output};
use crate::tasks::{Outcome, cargo, run as run_command};
use std::path::{Path, PathBuf};
use std::process::Command;

const NAME: &str = "mcunet-5fps";
const CLASSES: u32 = 10;
/// Pixels and colours of an image.
const INPUT_LEN: usize = 128 * 128 * 3;
const SAMPLES: u32 = 32;
const STEPS: u32 = 32;
/// SRAM that the plan may use, of which the stack is kept.
const MEMORY_BYTES: u32 = 128 * 1024;
const STACK_BYTES: u32 = 6 * 1024;
const FLASH_BYTES: u64 = 1024 * 1024;
const RATE_MILLIONTHS: u32 = 800;
/// The scheme that is published as 49kb: biases of the last 20 convolutions, and of three weights these shares of the
/// input channels. What it keeps of two further ones is nothing.
const BIAS_LAST: u32 = 20;
const WEIGHTS: [(u32, f64); 3] = [(24, 0.25), (27, 0.5), (30, 0.5)];

/// Compiles, simulates, builds, runs; says that it was left out where the network's file is not there.
pub fn run(bench: &Bench) -> Outcome {
    let Some(file) = file() else {
        println!("\nskipped: {NAME} end to end, since TINYFORGE_ASSETS holds no mcu/{NAME}.json");
        return Ok(());
    };
    let folder = bench.place.join(NAME);
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    samples(&folder)?;
    let wanted = simulate(&file, &folder)?;
    let program = build(bench, &folder)?;
    println!();
    check_program(NAME, &program)?;
    for board in BOARDS {
        let flash = folder.join("flash");
        if flash.exists() {
            std::fs::remove_file(&flash).map_err(|e| format!("{}: {e}", flash.display()))?;
        }
        // Half of it, then the rest in a new start.
        for steps in [STEPS / 2, STEPS] {
            let rates = [format!("rate={RATE_MILLIONTHS}"), format!("bias={}", RATE_MILLIONTHS / 2)];
            let more = [format!("steps={steps}"), format!("every={}", STEPS / 2), "seed=0".to_string()];
            let files = ["train=samples", "test=samples", "flash=flash"].map(str::to_string);
            let run = bench.emulator.run(board, &program, &folder, &[&files[..], &rates, &more].concat())?;
            let after = run.text.lines().find(|line| line.starts_with("after")).unwrap_or_default();
            let is_same = after.ends_with(&format!("digest={wanted:08x}"));
            if run.code != 0 || (steps == STEPS && !is_same) {
                return Err(format!("{board}: code {}, wanted {wanted:08x}:\n{}", run.code, run.text));
            }
            if steps == STEPS {
                for line in run.text.lines().filter(|l| l.starts_with("instructions") || l.starts_with("arena")) {
                    println!("{board}: {line}");
                }
                flash_fits(&program, &run.text)?;
                peak_is_touched(&run.text)?;
                println!("{board}: {NAME}, {STEPS} steps with a new start between: the weights of the simulation");
            }
        }
    }
    Ok(())
}

/// Program, weights and checkpoints together are no more than the flash.
fn flash_fits(program: &Path, text: &str) -> Outcome {
    let bytes = std::fs::read(program).map_err(|e| format!("{}: {e}", program.display()))?;
    let program_bytes = Elf::parse(&bytes).map_or(0, |elf| elf.flash_bytes());
    let said = text.lines().find_map(|line| line.split_once("flash of checkpoints=")?.1.parse::<u64>().ok());
    let all = program_bytes + said.unwrap_or(u64::MAX / 2);
    println!("flash: {all} bytes with checkpoints, of {FLASH_BYTES}");
    if all <= FLASH_BYTES { Ok(()) } else { Err(format!("{NAME}: {} bytes of flash too many", all - FLASH_BYTES)) }
}

/// The highest byte that was written is the planned peak, but for the rounding of the last slot.
fn peak_is_touched(text: &str) -> Outcome {
    let number =
        |name: &str| -> Option<u64> { text.split(&[' ', '\n']).find_map(|w| w.strip_prefix(name)?.parse().ok()) };
    match (number("arena="), number("touched=")) {
        (Some(arena), Some(touched)) if touched <= arena && arena - touched < 16 => Ok(()),
        (arena, touched) => Err(format!("{NAME}: planned {arena:?} bytes, touched {touched:?}")),
    }
}

/// The network's description, where there is one.
fn file() -> Option<PathBuf> {
    let assets = std::env::var_os("TINYFORGE_ASSETS").map(PathBuf::from);
    let assets = assets.unwrap_or(crate::tree::root().join("../shared/assets"));
    let file = assets.join("mcu").join(format!("{NAME}.json"));
    file.exists().then_some(file)
}

/// Noise with labels, as the command reads it and as the board does.
fn samples(folder: &Path) -> Outcome {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let (mut data, mut labels, mut stream) = (Vec::new(), Vec::new(), b"TFSM".to_vec());
    stream.extend(SAMPLES.to_le_bytes());
    stream.extend((INPUT_LEN as u32).to_le_bytes());
    for index in 0..SAMPLES {
        let image: Vec<u8> = (0..INPUT_LEN).map(|_| next()).collect();
        let label = index * 3 % CLASSES;
        stream.extend(label.to_le_bytes());
        stream.extend(&image);
        labels.push(label as u8);
        data.extend(image);
    }
    for (name, bytes) in [("data", data), ("labels", labels), ("samples", stream)] {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// Writes the source, trains on this computer; gives the checksum of what was trained.
fn simulate(file: &Path, folder: &Path) -> Result<u32, String> {
    let scheme = folder.join("scheme.toml");
    let mut text = format!("[update]\nkind = \"sparse\"\nbias_last = {BIAS_LAST}\n");
    for (layer, ratio) in WEIGHTS {
        text += &format!("\n[[update.weight]]\nlayer = {layer}\nratio = {ratio}\n");
    }
    std::fs::write(&scheme, text).map_err(|e| format!("{}: {e}", scheme.display()))?;
    let tinyforge = |name: &str, more: &[String]| {
        let mut command = match std::env::var_os("TINYFORGE_COMMAND") {
            Some(built) => Command::new(built),
            None => cargo(&["run", "--quiet", "--bin", "tinyforge", "--"]),
        };
        output(command.arg(name).args(more))
    };
    let common = [
        file.display().to_string(),
        format!("--classes={CLASSES}"),
        format!("--scheme={}", scheme.display()),
        format!("--memory={MEMORY_BYTES}"),
        format!("--stack={STACK_BYTES}"),
    ];
    let emit = ["--emit=rust".to_string(), format!("--out={}", folder.display())];
    tinyforge("compile", &[&common[..], &emit].concat())?;
    let path = |name: &str| folder.join(name).display().to_string();
    let data = [
        format!("--data={}", path("data")),
        format!("--labels={}", path("labels")),
        format!("--test={}", path("data")),
        format!("--test-labels={}", path("labels")),
        format!("--steps={STEPS}"),
        format!("--lr={}", f64::from(RATE_MILLIONTHS) / 1e6),
        "--epochs=1".to_string(),
        "--warmup=0".to_string(),
        "--decay=constant".to_string(),
        "--in-order".to_string(),
        format!("--state={}", path("state")),
    ];
    tinyforge("simulate", &[&common[..], &data].concat())?;
    let state = std::fs::read(folder.join("state")).map_err(|e| format!("{}: {e}", path("state")))?;
    Ok(crc32(&state))
}

/// The program around the network; a copy, since the next build of the example puts another in its place.
fn build(bench: &Bench, folder: &Path) -> Result<PathBuf, String> {
    let mut command = cargo(&["build", "--locked", "--release", "--manifest-path", "firmware/boards/Cargo.toml"]);
    command.args(["-p", "learn", "--target", TARGET]).env("TINYFORGE_MODEL", folder.join("model.rs"));
    command.env("TINYFORGE_RAM_BYTES", MEMORY_BYTES.to_string());
    command.env("TINYFORGE_STACK_BYTES", STACK_BYTES.to_string());
    bench.toolchain.apply(&mut command);
    run_command(command)?;
    let program = folder.join("learn");
    let built = bench.program("learn");
    std::fs::copy(&built, &program).map_err(|e| format!("{}: {e}", built.display()))?;
    Ok(program)
}

/// CRC-32 as in zlib.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::crc32;

    #[test]
    fn the_published_check_value() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
