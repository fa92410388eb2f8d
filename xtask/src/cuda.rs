//! `cargo xtask cuda`: every kernel of `kernels/cuda/` compiled for every architecture, and run on the host.
//!
//! Needs no card. NVIDIA's compilers come as Python packages into `cuda/toolkit` of the target folder.

use crate::firmware::{output, target_dir};
use crate::tasks::{Outcome, cargo, run};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compute capabilities: Turing, Ampere, Ada, Hopper, Blackwell.
const ARCHITECTURES: [u32; 6] = [75, 80, 86, 89, 90, 120];
/// What names of kernels for matrix units end in, and the first architecture that has those.
const IN_UNITS: (&str, u32) = ("_bf16", 80);
/// Bytes that a kernel may keep in memory for want of registers.
const SPILL_BYTES_MAX: u64 = 0;
/// The packages, of versions that drivers of the kind 580 can load code from.
const PACKAGES: [&str; 4] = [
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-nvcc==13.0.88",
];

/// What is done, in this order.
type Part = fn() -> Outcome;
const PARTS: [(&str, Part); 2] = [("compile", compile), ("conformance", conformance)];

/// Runs the parts whose names are given, or all.
pub fn parts(wanted: &[&str]) -> Outcome {
    if let Some(unknown) = wanted.iter().find(|w| !PARTS.iter().any(|(name, _)| name == *w)) {
        let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
        return Err(format!("`{unknown}` is no part: {}", names.join(", ")));
    }
    PARTS.iter().filter(|(name, _)| wanted.is_empty() || wanted.contains(name)).try_for_each(|(_, part)| part())
}

/// The compilers, fetched where they are not there yet.
fn toolkit() -> Result<PathBuf, String> {
    let folder = target_dir().join("cuda/toolkit");
    let home = folder.join("nvidia/cu13");
    if !home.join("bin/ptxas").exists() {
        let mut command = Command::new("python3");
        command.args(["-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target"]).arg(&folder);
        run({
            command.args(PACKAGES);
            command
        })?;
    }
    Ok(home)
}

fn compile() -> Outcome {
    let home = toolkit()?;
    let folder = target_dir().join("cuda/ptx");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    // All members are named so that what the workspace's tests have built is used.
    run(cargo(&["build", "-q", "--workspace", "--features", "tinyforge/cuda", "--example", "cuda_kernels"]))?;
    let mut command = Command::new(target_dir().join("debug/examples/cuda_kernels"));
    command.arg(&folder).args(ARCHITECTURES.map(|a| a.to_string())).env("LD_LIBRARY_PATH", home.join("lib"));
    run(command)?;
    let mut table = Table::default();
    let entries = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    files.sort();
    // Two at a time: ptxas has one thread.
    for pair in files.chunks(2) {
        let texts: Vec<Result<String, String>> = std::thread::scope(|scope| {
            let started: Vec<_> = pair.iter().map(|path| scope.spawn(|| assemble(&home, path))).collect();
            started.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("ptxas: a thread ended".to_string()))).collect()
        });
        for (path, text) in pair.iter().zip(texts) {
            table.add(&name_of(path), &text?);
        }
    }
    println!("{}", table.text());
    table.judge()
}

/// What ptxas says of a file.
fn assemble(home: &Path, path: &Path) -> Result<String, String> {
    let name = name_of(path);
    let architecture = name.rsplit('-').next().unwrap_or_default();
    let mut command = Command::new(home.join("bin/ptxas"));
    command.arg(format!("-arch=sm_{architecture}")).args(["-v", "-o", "/dev/null"]).arg(path);
    let done = command.output().map_err(|e| format!("ptxas cannot be started: {e}"))?;
    let text = String::from_utf8_lossy(&done.stderr).into_owned() + &String::from_utf8_lossy(&done.stdout);
    if done.status.success() { Ok(text) } else { Err(format!("{name}: ptxas ended with {}\n{text}", done.status)) }
}

fn name_of(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// What a kernel takes on an architecture.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
struct Cost {
    registers: u64,
    shared_bytes: u64,
    spill_bytes: u64,
}

/// Costs by `<stem> <storage> <kernel>` and architecture.
#[derive(Default)]
struct Table(BTreeMap<String, BTreeMap<u32, Cost>>);

/// The number before a word of a line.
fn before(line: &str, word: &str) -> Option<u64> {
    line.split(word).next()?.trim_end().rsplit([' ', ',']).next()?.parse().ok()
}

impl Table {
    /// Adds what ptxas said of the file `<stem>-<storage>-<architecture>`.
    fn add(&mut self, file: &str, text: &str) {
        let mut parts = file.rsplitn(2, '-');
        let architecture = parts.next().and_then(|a| a.parse().ok()).unwrap_or(0);
        let family = parts.next().unwrap_or_default().replace('-', " ");
        let mut kernel = String::new();
        for line in text.lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                kernel = format!("{family} {}", rest.split('\'').next().unwrap_or_default());
                self.0.entry(kernel.clone()).or_default().insert(architecture, Cost::default());
            }
            let Some(cost) = self.0.get_mut(&kernel).and_then(|of| of.get_mut(&architecture)) else { continue };
            if line.contains("spill stores") {
                let [stores, loads] = ["bytes spill stores", "bytes spill loads"].map(|w| before(line, w).unwrap_or(0));
                cost.spill_bytes += stores + loads;
            }
            if line.contains("Used ") {
                cost.registers = before(line, "registers").unwrap_or(0);
                cost.shared_bytes = before(line, "bytes smem").unwrap_or(0);
            }
        }
    }

    /// A row a kernel: registers on every architecture, shared memory, spilled bytes.
    fn text(&self) -> String {
        let mut text = String::from("| kernel |");
        ARCHITECTURES.iter().for_each(|a| text.push_str(&format!(" sm_{a} |")));
        text.push_str(" shared bytes | spilled bytes |\n|---|");
        text.push_str(&"---|".repeat(ARCHITECTURES.len() + 2));
        for (kernel, costs) in &self.0 {
            text.push_str(&format!("\n| `{kernel}` |"));
            for a in ARCHITECTURES {
                let registers = costs.get(&a).map_or("-".to_string(), |c| c.registers.to_string());
                text.push_str(&format!(" {registers} |"));
            }
            let most = |of: fn(&Cost) -> u64| costs.values().map(of).max().unwrap_or(0);
            text.push_str(&format!(" {} | {} |", most(|c| c.shared_bytes), most(|c| c.spill_bytes)));
        }
        text
    }

    /// Whether every kernel was seen on every architecture that has what it needs, and none spills.
    fn judge(&self) -> Outcome {
        let mut wrong = Vec::new();
        for (kernel, costs) in &self.0 {
            let is_there = |a: u32| a >= IN_UNITS.1 || !kernel.ends_with(IN_UNITS.0);
            let wanted = ARCHITECTURES.iter().filter(|a| is_there(**a));
            let missing = wanted.filter(|a| costs.get(a).is_none_or(|c| c.registers == 0));
            wrong.extend(missing.map(|a| format!("`{kernel}` was not seen for sm_{a}")));
            for (a, cost) in costs.iter().filter(|(_, c)| c.spill_bytes > SPILL_BYTES_MAX) {
                let spilled = cost.spill_bytes;
                wrong.push(format!("`{kernel}` spills {spilled} bytes on sm_{a}, at most {SPILL_BYTES_MAX} are held"));
            }
        }
        match (self.0.is_empty(), wrong.is_empty()) {
            (true, _) => Err("no kernel was compiled".to_string()),
            (_, true) => Ok(()),
            _ => Err(wrong.join("\n")),
        }
    }
}

/// The kernels as C++ against their definitions, and whole models over them.
fn conformance() -> Outcome {
    output(Command::new("c++").arg("--version"))?;
    // All members are named so that what the tests of the workspace have built is used.
    let mut command = cargo(&["test", "--workspace", "--lib", "--test", "conformance", "--test", "cuda"]);
    command.args(["--", "--nocapture", "cuda_", "library::tests", "streams::tests"]).env("TINYFORGE_CUDA", "require");
    run(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'add' for 'sm_75'
ptxas info    : Function properties for add
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 428 bytes cmem[0]
ptxas info    : Compiling entry function 'sum' for 'sm_75'
ptxas info    : Function properties for sum
    64 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes smem, 428 bytes cmem[0]
";

    #[test]
    fn what_ptxas_says_is_read() {
        let mut table = Table::default();
        table.add("elementwise-f32-75", SAID);
        let of = |kernel: &str| table.0[kernel][&75];
        assert_eq!(of("elementwise f32 add"), Cost { registers: 12, shared_bytes: 0, spill_bytes: 0 });
        assert_eq!(of("elementwise f32 sum"), Cost { registers: 255, shared_bytes: 1024, spill_bytes: 40 });
        let wrong = table.judge().expect_err("one spills, and others were not seen");
        assert!(wrong.contains("`elementwise f32 sum` spills 40 bytes on sm_75"), "{wrong}");
        assert!(wrong.contains("`elementwise f32 add` was not seen for sm_120"), "{wrong}");
        assert!(Table::default().judge().is_err());
    }

    #[test]
    fn kernels_that_fit_pass() {
        let mut table = Table::default();
        let fits =
            SAID.replace("16 bytes spill stores, 24 bytes spill loads", "0 bytes spill stores, 0 bytes spill loads");
        ARCHITECTURES.iter().for_each(|a| table.add(&format!("elementwise-f32-{a}"), &fits));
        assert_eq!(table.judge(), Ok(()));
        assert!(table.text().contains("| `elementwise f32 sum` | 255 | 255 |"), "{}", table.text());
    }

    #[test]
    fn kernels_for_matrix_units_are_seen_where_those_are() {
        let mut table = Table::default();
        let fits = SAID.split("ptxas info    : Compiling entry function 'sum'").next().unwrap_or_default();
        let of_units = fits.replace("'add'", "'product_bf16'");
        ARCHITECTURES.iter().filter(|a| **a >= 80).for_each(|a| table.add(&format!("linear-f32-{a}"), &of_units));
        assert_eq!(table.judge(), Ok(()));
        ARCHITECTURES.iter().filter(|a| **a >= 86).for_each(|a| table.add(&format!("linear-bf16-{a}"), &of_units));
        assert!(table.judge().is_err_and(|wrong| wrong.contains("was not seen for sm_80")));
    }
}
