//! Compiles the network's training to source code while the program is built. What does not fit ends the build.

use std::process::ExitCode;
use tinyforge_build::{Build, Emit};

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed=STRIPED_MEMORY");
    let memory = std::env::var("STRIPED_MEMORY").unwrap_or("24KiB".to_string());
    Build::new("model/striped.json")
        .target("cortex-m4")
        .memory(memory)
        .flash("64KiB")
        .scheme("model/scheme.toml")
        .emit(&[Emit::Rust, Emit::Html])
}
