//! The compiler for bare Cortex-M: rustup's target where it is installed, else Debian's compiler with its sources.
//!
//! Debian ships no library for bare targets, so `core` and `alloc` are built once into a sysroot of our own, named
//! after the compiler's version. Only that build uses unstable options; ours is a plain one with `--sysroot`.

use super::output;
use crate::tasks::{Outcome, cargo};
use std::path::{Path, PathBuf};
use std::process::Command;

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const LINKERS: &[&str] = &["ld.lld", "ld.lld-22", "ld.lld-20", "ld.lld-19", "ld.lld-18", "ld.lld-16", "ld.lld-14"];

/// How to build.
pub struct Toolchain {
    /// For people.
    pub name: String,
    /// Where the build goes: one folder a compiler, since cargo does not see a sysroot change.
    pub target_dir: PathBuf,
    target: &'static str,
    debian: Option<Debian>,
}

struct Debian {
    sysroot: PathBuf,
    linker: PathBuf,
}

impl Toolchain {
    /// Looks for one, and builds the sysroot if that is what is missing. `TINYFORGE_FIRMWARE_RUSTC=debian` passes over
    /// rustup's.
    pub fn find(target: &'static str, place: &Path) -> Result<Toolchain, String> {
        let wants_debian = std::env::var_os("TINYFORGE_FIRMWARE_RUSTC").is_some_and(|name| name == "debian");
        let version = output(Command::new("rustc").arg("-vV"))?;
        let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
        let rustlib = Path::new(sysroot.trim()).join("lib/rustlib");
        if !wants_debian && rustlib.join(target).join("lib").is_dir() {
            let name = format!("{} with its own library for {target}", release(&version));
            return Ok(Toolchain { name, target_dir: place.join(key("build", &version)), target, debian: None });
        }
        let linker = linker(&rustlib, &version);
        let missing: Vec<&str> = [
            (Path::new(DEBIAN_RUSTC).exists(), "rustc-web"),
            (debian_library().is_some(), "rust-web-src"),
            (linker.is_some(), "lld"),
        ]
        .iter()
        .filter_map(|(is_there, package)| (!is_there).then_some(*package))
        .collect();
        let (Some(library), Some(linker), []) = (debian_library(), linker, &missing[..]) else {
            return Err(format!(
                "there is no library for {target}: `rustup target add {target}`, or on Debian \
                 `apt-get install --no-remove {}`",
                missing.join(" ")
            ));
        };
        let version = output(Command::new(DEBIAN_RUSTC).arg("-vV"))?;
        let sysroot = place.join(key("sysroot", &version));
        if !sysroot.join("lib/rustlib").join(target).join("lib").is_dir() {
            build_sysroot(target, &sysroot, place)?;
        }
        let name = format!("Debian's {} with a library built from {}", release(&version), library.display());
        let target_dir = place.join(key("build", &version));
        Ok(Toolchain { name, target_dir, target, debian: Some(Debian { sysroot, linker }) })
    }

    /// Whether clippy comes with it.
    pub fn has_lints(&self) -> bool {
        self.debian.is_none()
    }

    /// Makes a cargo command build with it.
    pub fn apply(&self, command: &mut Command) {
        command.arg("--target-dir").arg(&self.target_dir);
        command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        if let Some(debian) = &self.debian {
            let name = self.target.to_uppercase().replace(['-', '.'], "_");
            command.env("RUSTC", DEBIAN_RUSTC).env(format!("CARGO_TARGET_{name}_LINKER"), &debian.linker);
            command.env("CARGO_ENCODED_RUSTFLAGS", format!("--sysroot\u{1f}{}", debian.sysroot.display()));
        }
    }
}

/// The first line of `rustc -vV`.
fn release(version: &str) -> &str {
    version.lines().next().unwrap_or("rustc")
}

/// A folder's name that differs where compilers do.
fn key(prefix: &str, version: &str) -> String {
    let find = |name: &str| version.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("unknown");
    let hash: String = find("commit-hash: ").chars().take(9).collect();
    format!("{prefix}-{}-{hash}", find("release: "))
}

/// The sources of Debian's library.
fn debian_library() -> Option<PathBuf> {
    let sysroot = output(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"])).ok()?;
    let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    library.join("Cargo.lock").exists().then_some(library)
}

/// A linker for ELF: LLVM's from the system, or the one in rustup's folder.
fn linker(rustlib: &Path, version: &str) -> Option<PathBuf> {
    let host = version.lines().find_map(|line| line.strip_prefix("host: "))?;
    let own = rustlib.join(host).join("bin/rust-lld");
    let system = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let mut named = LINKERS.iter().flat_map(|name| system.iter().flatten().map(move |folder| folder.join(name)));
    named.find(|path| path.exists()).or_else(|| own.exists().then_some(own))
}

/// Builds `core` and `alloc` with Debian's compiler.
fn build_sysroot(target: &str, sysroot: &Path, place: &Path) -> Outcome {
    let work = place.join("sysroot-work");
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |e: std::io::Error| format!("{path}: {e}")
    };
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(work.join("src")).map_err(failed(&work))?;
    let manifest = "[package]\nname = \"empty\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n[workspace]\n\n\
                    [profile.release]\nopt-level = 3\n";
    std::fs::write(work.join("Cargo.toml"), manifest).map_err(failed(&work))?;
    std::fs::write(work.join("src/lib.rs"), "#![no_std]\n").map_err(failed(&work))?;
    let mut command = cargo(&["build", "-q", "--release", "-Zbuild-std=core,alloc", "--target", target]);
    command.arg("--target-dir").arg(work.join("target")).current_dir(&work);
    // Bitcode, so that link-time optimisation reaches into the library.
    command.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", "-Cembed-bitcode=yes");
    command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1").env_remove("CARGO_TARGET_DIR");
    eprintln!("building core and alloc for {target} with {DEBIAN_RUSTC}");
    crate::tasks::run(command)?;
    let (from, lib) = (work.join("target").join(target).join("release/deps"), Path::new("lib/rustlib").join(target));
    let new = place.join("sysroot-new");
    let _ = std::fs::remove_dir_all(&new);
    let to = new.join(&lib).join("lib");
    std::fs::create_dir_all(&to).map_err(failed(&to))?;
    for entry in std::fs::read_dir(&from).map_err(failed(&from))? {
        let path = entry.map_err(failed(&from))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let is_library = ["libcore-", "liballoc-", "libcompiler_builtins-"].iter().any(|start| name.starts_with(start));
        if is_library && name.ends_with(".rlib") {
            std::fs::copy(&path, to.join(&name)).map_err(failed(&path))?;
        }
    }
    // In one step, so that a build that was broken off leaves no half of one.
    let _ = std::fs::remove_dir_all(sysroot);
    std::fs::rename(&new, sysroot).map_err(failed(sysroot))?;
    let _ = std::fs::remove_dir_all(&work);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compilers_have_folders_of_their_own() {
        let version = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\ncommit-hash: ac68faa20c58cbccd\n\
                       host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\n";
        assert_eq!(key("sysroot", version), "sysroot-1.96.0-ac68faa20");
        assert_eq!(key("sysroot", ""), "sysroot-unknown-unknown");
        assert_eq!(release(version), "rustc 1.96.0 (ac68faa20 2026-05-25)");
    }
}
