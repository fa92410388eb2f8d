//! The build script's own answers: it made this program's model, and it ends a build whose budget is too small.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The script that made this program's model, as Cargo built it.
fn script() -> PathBuf {
    // Cargo keeps the script in a sibling of the folder that its output is in.
    let builds = Path::new(env!("OUT_DIR")).ancestors().nth(2).expect("OUT_DIR lies in a folder of builds");
    let folders = std::fs::read_dir(builds).expect("the folder of builds can be read");
    let scripts = folders
        .filter_map(|f| Some(f.ok()?.path()))
        .filter(|f| f.file_name().is_some_and(|name| name.to_string_lossy().starts_with("graph-export-")));
    let newest = scripts
        .map(|folder| folder.join(format!("build-script-build{}", std::env::consts::EXE_SUFFIX)))
        .filter(|script| script.is_file())
        .max_by_key(|script| script.metadata().and_then(|m| m.modified()).ok());
    newest.expect("the script was built")
}

fn run(memory: &str, name: &str) -> (Output, PathBuf) {
    let out = std::env::temp_dir().join(format!("tinyforge-graph-export-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&out);
    std::fs::create_dir_all(&out).expect("the temporary folder takes a folder");
    let mut command = Command::new(script());
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("OUT_DIR", &out).env("STRIPED_MEMORY", memory);
    (command.output().expect("the script can be run"), out)
}

#[test]
fn what_fits_is_written() {
    let (output, out) = run("24KiB", "fits");
    assert!(output.status.success(), "{output:?}");
    for name in ["model.rs", "flash.bin", "start.bin", "model.html", "tinyforge.rs"] {
        assert!(out.join(name).is_file(), "{name}");
    }
    let said = String::from_utf8_lossy(&output.stdout);
    for file in ["model/striped.json", "model/striped.safetensors", "model/scheme.toml"] {
        assert!(said.lines().any(|line| line == format!("cargo::rerun-if-changed={file}")), "{said}");
    }
    // The code of this very program, but for the path that the model was named by.
    let same = |a: &str, b: &str| std::fs::read(a).ok() == std::fs::read(b).ok();
    assert!(same(&out.join("flash.bin").to_string_lossy(), concat!(env!("OUT_DIR"), "/flash.bin")));
    let _ = std::fs::remove_dir_all(&out);
}

#[test]
fn a_budget_too_small_ends_the_build_in_the_planners_words() {
    let (output, out) = run("12KiB", "over");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stdout);
    let errors: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("cargo::error=")).collect();
    assert!(
        errors.first().is_some_and(|e| e.starts_with("plan needs ") && e.contains("the budget is 12.0 KiB")),
        "{said}"
    );
    assert!(errors.iter().any(|e| e.trim_start().starts_with("peak at ")), "{said}");
    assert!(errors.iter().any(|e| e.contains("help: ")), "{said}");
    assert!(!out.join("model.rs").exists());
    let _ = std::fs::remove_dir_all(&out);
}

#[test]
fn the_program_learns() {
    let output = Command::new(env!("CARGO_BIN_EXE_graph-export")).output().expect("the example can be run");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = |before: &str| -> u32 {
        let word = said.split(before).next().and_then(|s| s.split_whitespace().last()).unwrap_or_default();
        word.parse().unwrap_or_else(|_| panic!("{said}"))
    };
    assert!(number(" right before") < 120 && number(" after ") > 150, "{said}");
}
