//! Says what the target's instruction set has beyond what stable `cfg` shows: `has_dsp` (packed 16-bit
//! multiply-accumulates of Armv7E-M) and `has_fpu` (single-precision floats with a fused multiply-add).

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(has_dsp)");
    println!("cargo:rustc-check-cfg=cfg(has_fpu)");
    let target = env::var("TARGET").unwrap_or_default();
    // Armv8-M has the DSP instructions as an option that a processor of this name brings.
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let is_v8 = target.starts_with("thumbv8m.main") && flags.contains("target-cpu=cortex-m");
    if target.starts_with("thumbv7em") || is_v8 {
        println!("cargo:rustc-cfg=has_dsp");
    }
    if target.starts_with("thumb") && target.ends_with("eabihf") {
        println!("cargo:rustc-cfg=has_fpu");
    }
}
