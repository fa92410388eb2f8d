//! Takes the model from `TINYFORGE_MODEL`, a Rust file with a `Net`; without it the one in `model/`.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=TINYFORGE_MODEL");
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    // Invariant: cargo sets both for every build script.
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo says where"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where"));
    let model = env::var_os("TINYFORGE_MODEL").map_or(here.join("model/mod.rs"), PathBuf::from);
    println!("cargo:rerun-if-changed={}", model.display());
    let path = model.canonicalize().unwrap_or_else(|e| panic!("{}: {e}", model.display()));
    fs::write(out.join("model.rs"), format!("#[path = {path:?}]\nmod model;\n")).unwrap_or_else(|e| panic!("{e}"));
}
