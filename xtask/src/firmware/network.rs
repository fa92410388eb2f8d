//! Published networks end to end: compiled to source, trained on both boards, and trained by `tinyforge simulate` on
//! the same images. The checkpoints in the boards' flash must be the simulation's bytes.

use super::checkpoint::{self, Counters};
use super::elf::Elf;
use super::families;
use super::inputs::Inputs;
use super::{BOARDS, Bench, TARGET, c_example, check_program, output, stack};
use crate::tasks::{Outcome, cargo, run as run_command};
use std::path::{Path, PathBuf};
use std::process::Command;

const CLASSES: u32 = 10;
/// Examples that are learnt from, with a new start in the middle.
const EXAMPLES: u32 = 32;
/// SRAM that a plan may use where its row says nothing else, and of it what the stack keeps.
const MEMORY_BYTES: u32 = 256 * 1024;
const STACK_BYTES: u32 = 8 * 1024;
const FLASH_BYTES: u64 = 1024 * 1024;
const RATE_MILLIONTHS: u32 = 800;

/// A network with a scheme, and what is expected of it.
struct Row {
    network: &'static str,
    /// The label of a published scheme, or a scheme by name.
    scheme: &'static str,
    /// Examples of a step.
    batch: u32,
    /// SRAM that the plan may use, and of it what the stack keeps.
    memory: [u32; 2],
    /// Whether its plan fits the memory: one that does not is refused, with what it would need.
    fits: bool,
    /// Whether it is run without `--all`.
    is_default: bool,
    /// Whether the program in C is run around it too.
    is_in_c: bool,
}

const fn row(network: &'static str, scheme: &'static str) -> Row {
    Row {
        network,
        scheme,
        batch: 1,
        memory: [MEMORY_BYTES, STACK_BYTES],
        fits: true,
        is_default: false,
        is_in_c: false,
    }
}

const ROWS: [Row; 8] = [
    Row { memory: [128 * 1024, 6 * 1024], is_default: true, ..row("mcunet-5fps", "49kb") },
    row("mcunet-5fps", "99kb"),
    row("mcunet-5fps", "148kb"),
    Row { is_default: true, ..row("mbv2-w0.35", "49kb") },
    row("mbv2-w0.35", "99kb"),
    row("mbv2-w0.35", "138kb"),
    Row { batch: 4, ..row("mcunet-5fps", "49kb") },
    Row { batch: 4, is_default: true, is_in_c: true, ..row("mcunet-5fps", "bias:3") },
];

impl Row {
    fn name(&self) -> String {
        let batch = if self.batch > 1 { format!(" batch {}", self.batch) } else { String::new() };
        format!("{} {}{batch}", self.network, self.scheme)
    }

    fn steps(&self) -> u32 {
        EXAMPLES / self.batch
    }
}

/// What the host knows of a row before a board runs it.
struct Case {
    folder: PathBuf,
    /// Tells plans and weights apart.
    plan: String,
    /// What the trained tensors are after the simulation.
    state: Vec<u8>,
    /// Shares of the test images that are classified right before and after.
    accuracy: [f64; 2],
    /// Bytes of SRAM and of stack.
    memory: [u32; 2],
}

/// One line of the table.
struct Measured {
    arena: u64,
    touched: u64,
    stack: u64,
    statics: u64,
    flash: u64,
    code: u64,
    step: u64,
    inference: u64,
}

/// Runs the rows and prints one table of them.
pub fn run(bench: &Bench, is_all: bool) -> Outcome {
    let inputs = Inputs::prepare(bench)?;
    let (mut lines, mut failed) = (Vec::new(), Vec::new());
    for row in ROWS.iter().filter(|row| is_all || row.is_default) {
        match run_row(bench, &inputs, row, is_all) {
            Ok(new) => lines.extend(new),
            Err(why) => {
                eprintln!("{}: {why}", row.name());
                failed.push(row.name());
            }
        }
    }
    println!(
        "\n| network, scheme, core | plan | arena | touched | stack | SRAM in all | flash | code alone | \
         M instr. a step | an inference |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    );
    lines.iter().for_each(|line| println!("{line}"));
    if !is_all {
        println!("`cargo xtask firmware --all` runs {} rows and counts the instructions of every layer", ROWS.len());
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("{} failed", failed.join(", "))) }
}

/// The lines of a row.
fn run_row(bench: &Bench, inputs: &Inputs, row: &Row, is_all: bool) -> Result<Vec<String>, String> {
    let case = match prepare(bench, inputs, row)? {
        Ok(case) => case,
        Err(need) if !row.fits => {
            return Ok(vec![format!("| {} | refused: {need} | | | | | | | | |", row.name())]);
        }
        Err(need) => return Err(format!("it is refused, {need}, and should fit")),
    };
    if !row.fits {
        return Err("it fits now: say so in the table of rows, xtask/src/firmware/network.rs".to_string());
    }
    println!("\n{}: plan {}", row.name(), case.plan);
    let program = build(bench, &case, "learn", &[])?;
    check_program(&row.name(), &program)?;
    holds_flash(&case, &program)?;
    stack::print_bound(&program);
    let measured = std::thread::scope(|scope| {
        let (case, program) = (&case, &program);
        let runs = BOARDS.map(|board| scope.spawn(move || on_board(bench, case, row, program, board)));
        runs.map(|run| run.join().unwrap_or_else(|_| Err("a run was broken off".to_string())))
    });
    let mut lines = Vec::new();
    for (board, measured) in BOARDS.into_iter().zip(measured) {
        lines.push(line(row, &case, core(board), &measured?));
    }
    println!(
        "both boards: {EXAMPLES} images with a new start between: every byte of the checkpoint is the simulation's"
    );
    if row.is_in_c {
        in_c(bench, &case, row)?;
    }
    if is_all {
        layers(bench, &case, row)?;
    }
    Ok(lines)
}

/// What a board's processor is called.
fn core(board: &str) -> &'static str {
    if board == BOARDS[0] { "M4" } else { "M7" }
}

fn line(row: &Row, case: &Case, core: &str, m: &Measured) -> String {
    let millions = |n: u64| format!("{:.2}", n as f64 / 1e6);
    format!(
        "| {}, {core} | `{}` | {} | {} | {} | {} | {} | {} | {} | {} |",
        row.name(),
        case.plan,
        m.arena,
        m.touched,
        m.stack,
        m.statics + m.stack,
        m.flash,
        m.code,
        millions(m.step),
        millions(m.inference)
    )
}

fn tinyforge(bench: &Bench, name: &str, more: &[String]) -> Result<String, String> {
    output(Command::new(bench.host("tinyforge")).arg(name).args(more))
}

/// The value of a field of the JSON object in the last line.
fn field<'a>(text: &'a str, name: &str) -> Result<&'a str, String> {
    let last = text.lines().last().unwrap_or_default();
    let rest = last.split_once(&format!("\"{name}\":")).ok_or_else(|| format!("no `{name}` in {last}"))?.1;
    Ok(rest.split([',', '}']).next().unwrap_or_default().trim_matches('"'))
}

/// Writes the source and trains on this computer; the inner error says what a plan that is refused would need.
fn prepare(bench: &Bench, inputs: &Inputs, row: &Row) -> Result<Result<Case, String>, String> {
    let folder = bench.place.join(row.name().replace([' ', ':'], "-"));
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let (network, is_published) = inputs.network(row.network);
    let weights = if is_published { "published" } else { "generated" };
    println!("\n{}: {weights} weights, {}", row.name(), inputs.images_name());
    let request = [
        network.display().to_string(),
        format!("--classes={CLASSES}"),
        format!("--scheme={}", inputs.scheme(row.network, row.scheme)),
        format!("--memory={}", row.memory[0]),
        format!("--stack={}", row.memory[1]),
        format!("--batch={}", row.batch),
        "--json".to_string(),
    ];
    let emit = ["--emit=rust".to_string(), format!("--out={}", folder.display())];
    let text = match tinyforge(bench, "compile", &[&request[..], &emit].concat()) {
        Ok(text) => text,
        Err(why) => return why.lines().find_map(refused).map(Err).ok_or(why),
    };
    let plan = field(&text, "plan")?.to_string();
    let [train, test] = inputs.images();
    let path = |name: &str| folder.join(name).display().to_string();
    let data = [
        format!("--data={}", train.display()),
        format!("--test={}", test.display()),
        format!("--steps={}", row.steps()),
        format!("--lr={}", f64::from(RATE_MILLIONTHS) / 1e6),
        "--epochs=1".to_string(),
        "--warmup=0".to_string(),
        "--decay=constant".to_string(),
        format!("--state={}", path("state")),
        format!("--stream={}", path("")),
    ];
    let text = tinyforge(bench, "simulate", &[&request[..], &data].concat())?;
    let share = |name| field(&text, name)?.parse::<f64>().map_err(|e| format!("{name}: {e}"));
    let accuracy = [share("accuracy_before")?, share("accuracy")?];
    let state = std::fs::read(folder.join("state")).map_err(|e| format!("{}: {e}", path("state")))?;
    Ok(Ok(Case { folder, plan, state, accuracy, memory: row.memory }))
}

/// What the planner says of a plan that is too large.
fn refused(line: &str) -> Option<String> {
    line.split_once("plan needs ").map(|(_, rest)| format!("needs {rest}"))
}

/// The program around the network; a copy, since the next build of the example puts another in its place.
fn build(bench: &Bench, case: &Case, name: &str, more: &[&str]) -> Result<PathBuf, String> {
    let mut command = cargo(&["build", "--locked", "--release", "--manifest-path", "firmware/boards/Cargo.toml"]);
    command.args(["-p", "learn", "--target", TARGET]).args(more);
    command.env("TINYFORGE_MODEL", case.folder.join("model.rs"));
    command.env("TINYFORGE_RAM_BYTES", case.memory[0].to_string());
    command.env("TINYFORGE_STACK_BYTES", case.memory[1].to_string());
    bench.toolchain.apply(&mut command);
    run_command(command)?;
    let program = case.folder.join(name);
    let built = bench.program("learn");
    std::fs::copy(&built, &program).map_err(|e| format!("{}: {e}", built.display()))?;
    Ok(program)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// The weights that do not change are in the program, byte for byte.
fn holds_flash(case: &Case, program: &Path) -> Outcome {
    let program = read(program)?;
    for name in ["flash.bin", "start.bin"] {
        let bytes = read(&case.folder.join(name))?;
        let head = &bytes[..bytes.len().min(64)];
        let mut places = program.windows(head.len().max(1)).enumerate().filter(|(_, window)| *window == head);
        if !places.any(|(at, _)| program[at..].starts_with(&bytes)) {
            return Err(format!("the program does not hold the bytes of {name}"));
        }
    }
    Ok(())
}

/// One start of the program.
fn start(bench: &Bench, case: &Case, board: &str, program: &Path, more: &[String]) -> Result<String, String> {
    let rates = [format!("rate={RATE_MILLIONTHS}"), format!("bias={}", RATE_MILLIONTHS / 2), "seed=0".to_string()];
    let files = ["train=train.samples".to_string(), "test=test.samples".to_string()];
    let run = bench.emulator.run(board, program, &case.folder, &[&files[..], &rates, more].concat())?;
    if run.code == 0 { Ok(run.text) } else { Err(format!("{board} ended with code {}:\n{}", run.code, run.text)) }
}

/// Trains half of it, then the rest in a new start, and compares.
fn on_board(bench: &Bench, case: &Case, row: &Row, program: &Path, board: &str) -> Result<Measured, String> {
    let steps = row.steps();
    let flash = case.folder.join(format!("{board}.flash"));
    if flash.exists() {
        std::fs::remove_file(&flash).map_err(|e| format!("{}: {e}", flash.display()))?;
    }
    let mut texts = Vec::new();
    for until in [steps / 2, steps] {
        let more = [format!("flash={board}.flash"), format!("steps={until}"), format!("every={}", steps / 2)];
        texts.push(start(bench, case, board, program, &more)?);
    }
    for (text, word, wanted) in [(&texts[0], "before", case.accuracy[0]), (&texts[1], "after", case.accuracy[1])] {
        let said = number_in(text, word, "right=")? as f64 / number_in(text, word, "of=")?.max(1) as f64;
        println!("{board}: accuracy {word} {said:.3}");
        if (said - wanted).abs() > 1e-6 {
            return Err(format!("{board}: accuracy {word} is {said}, the simulation's is {wanted}\n{text}"));
        }
    }
    let counters = Counters { seed: 0, examples: EXAMPLES.into(), steps, loads: 1 };
    checkpoint::compare(&read(&flash)?, &counters, &case.state).map_err(|why| format!("{board}: {why}"))?;
    if case.state.starts_with(&read(&case.folder.join("start.bin"))?) {
        return Err("nothing was learnt: the state is what it was at the start".to_string());
    }
    measure(case, program, &texts[1]).map_err(|why| format!("{board}: {why}"))
}

/// The program in C around the same network: half of the steps on one board, half on the other.
fn in_c(bench: &Bench, case: &Case, row: &Row) -> Outcome {
    let program = c_example::build(bench, Some(&case.folder.join("model.rs")), &case.folder.join("learn-c.elf"))?;
    let flash = case.folder.join("c.flash");
    if flash.exists() {
        std::fs::remove_file(&flash).map_err(|e| format!("{}: {e}", flash.display()))?;
    }
    let rates = ["0".to_string(), RATE_MILLIONTHS.to_string(), (RATE_MILLIONTHS / 2).to_string()];
    for (board, steps) in [(BOARDS[0], row.steps() / 2), (BOARDS[1], row.steps())] {
        let files = ["train.samples", "test.samples", "c.flash", &steps.to_string()].map(str::to_string);
        let run = bench.emulator.run(board, &program, &case.folder, &[&files[..], &rates].concat())?;
        if run.code != 0 {
            return Err(format!("{board} ended with code {}:\n{}", run.code, run.text));
        }
    }
    let counters = Counters { seed: 0, examples: EXAMPLES.into(), steps: row.steps(), loads: 1 };
    checkpoint::compare(&read(&flash)?, &counters, &case.state).map_err(|why| format!("in C: {why}"))?;
    println!("in C, half on one board and half on the other: every byte of the checkpoint is the simulation's");
    Ok(())
}

/// The number behind `name` in the line that starts with `word`.
fn number_in(text: &str, word: &str, name: &str) -> Result<u64, String> {
    let line = text.lines().find(|line| line.starts_with(word));
    let found = line.and_then(|line| line.split(' ').find_map(|w| w.strip_prefix(name)?.parse().ok()));
    found.ok_or_else(|| format!("no `{name}` in a line `{word}`:\n{text}"))
}

/// The line of the table; an error if the plan does not hold.
fn measure(case: &Case, program: &Path, text: &str) -> Result<Measured, String> {
    let bytes = read(program)?;
    let elf = Elf::parse(&bytes).ok_or("the program is no ELF file")?;
    let fixed = read(&case.folder.join("flash.bin"))?.len() + read(&case.folder.join("start.bin"))?.len();
    let instructions = |name: &str| {
        let word = text.split_once(name).and_then(|(_, rest)| rest.split([' ', '\n']).next());
        word.and_then(|word| word.parse().ok()).ok_or_else(|| format!("no `{name}`:\n{text}"))
    };
    let m = Measured {
        arena: number_in(text, "arena=", "arena=")?,
        touched: number_in(text, "arena=", "touched=")?,
        stack: number_in(text, "arena=", "stack=")?,
        statics: elf.ram_bytes(),
        flash: elf.flash_bytes(),
        code: elf.flash_bytes().saturating_sub(fixed as u64),
        step: instructions("instructions of a step=")?,
        inference: instructions(" of an inference=")?,
    };
    // The highest byte that was written is the planned peak, but for the rounding of the last slot.
    if m.touched > m.arena || m.arena - m.touched >= 16 {
        return Err(format!("planned {} bytes, touched {}", m.arena, m.touched));
    }
    let flash = m.flash + instructions("flash of checkpoints=")?;
    if flash > FLASH_BYTES {
        return Err(format!("{flash} bytes of flash with checkpoints, {FLASH_BYTES} are there"));
    }
    if m.statics + m.stack > case.memory[0].into() {
        return Err(format!("{} bytes of RAM with stack, {} are there", m.statics + m.stack, case.memory[0]));
    }
    Ok(m)
}

/// Counts the instructions of every step of the plan, prints those of the kernel families, and writes all to a file.
fn layers(bench: &Bench, case: &Case, row: &Row) -> Outcome {
    let program = build(bench, case, "learn-steps", &["--features", "steps"])?;
    let source = String::from_utf8(read(&case.folder.join("model.rs"))?).map_err(|e| format!("model.rs: {e}"))?;
    let steps = families::steps(&source, row.batch);
    for board in BOARDS {
        let flash = case.folder.join("steps.flash");
        if flash.exists() {
            std::fs::remove_file(&flash).map_err(|e| format!("{}: {e}", flash.display()))?;
        }
        let more = ["flash=steps.flash", "steps=1", "tests=1"].map(str::to_string);
        let counted = families::counted(&start(bench, case, board, &program, &more)?);
        let path = case.folder.join(format!("layers-{}.md", core(board)));
        std::fs::write(&path, families::layers(&steps, &counted)).map_err(|e| format!("{}: {e}", path.display()))?;
        println!("\n{}, {}; every layer in {}\n\n{}", row.name(), core(board), path.display(), {
            families::table(&steps, &counted)
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let text = "words\n{\"plan\":\"0a\",\"accuracy\":0.25,\"seconds\":1}";
        assert_eq!((field(text, "plan"), field(text, "accuracy")), (Ok("0a"), Ok("0.25")));
        assert!(field(text, "other").is_err());
        let text = "before steps=0 right=2 of=8 new=0 of=1\narena=16 touched=12\n";
        assert_eq!((number_in(text, "before", "of="), number_in(text, "arena=", "touched=")), (Ok(8), Ok(12)));
        assert_eq!(refused("error: plan needs 300 KiB of SRAM"), Some("needs 300 KiB of SRAM".to_string()));
    }
}
