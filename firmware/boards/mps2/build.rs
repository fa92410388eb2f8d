//! Writes the memory map: a budget of flash and RAM far below what the emulated board has, so that the linker refuses
//! what would not fit on a chip. `TINYFORGE_FLASH_BYTES`, `TINYFORGE_RAM_BYTES` and `TINYFORGE_STACK_BYTES` change it.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    let flash = size("TINYFORGE_FLASH_BYTES", 1024 * 1024);
    let ram = size("TINYFORGE_RAM_BYTES", 256 * 1024);
    let stack = size("TINYFORGE_STACK_BYTES", 16 * 1024);
    assert!(stack.is_multiple_of(8) && stack < ram, "a stack of {stack} bytes in a RAM of {ram}");
    // The stack lies at the very bottom: below it is no memory, so what overflows stops instead of eating data.
    let map = format!(
        "MEMORY {{\n  FLASH : ORIGIN = 0x00000000, LENGTH = {flash}\n  STACK : ORIGIN = 0x20000000, LENGTH = {stack}\n  \
         RAM : ORIGIN = 0x20000000 + {stack}, LENGTH = {}\n}}\n\
         _stack_end = ORIGIN(STACK);\n_stack_start = ORIGIN(STACK) + LENGTH(STACK);\n",
        ram - stack
    );
    // Invariant: cargo sets it for every build script.
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where"));
    fs::write(out.join("memory.x"), map).unwrap_or_else(|e| panic!("memory.x: {e}"));
    println!("cargo:rustc-link-search={}", out.display());
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    println!("cargo:rerun-if-changed=build.rs");
}

/// A number of bytes from the environment.
fn size(name: &str, default: usize) -> usize {
    println!("cargo:rerun-if-env-changed={name}");
    match env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")),
        Err(_) => default,
    }
}
