//! Compiles int8 networks for microcontrollers while something else is built: the graph is exported at build time.
//!
//! The compiler takes bytes and gives text; the engine's library reads weights. This crate joins them for build
//! scripts and for the command, which has no other way. A build script is
//!
//! ```no_run
//! use std::process::ExitCode;
//! use tinyforge_build::{Build, Emit};
//!
//! fn main() -> ExitCode {
//!     Build::new("model/net.json").memory("64KiB").flash("256KiB").scheme("last:1").emit(&[Emit::Rust, Emit::Html])
//! }
//! ```
//!
//! and the crate that it belongs to says `include!(concat!(env!("OUT_DIR"), "/tinyforge.rs"));` and has `model::Net`.
//! What does not fit is an error of the build, in the planner's words.
#![forbid(unsafe_code)]

mod built;
mod error;
pub mod model;
pub mod planning;
pub mod settings;
pub mod sizes;

pub use built::{Built, CSettings, Emit, name_of};
pub use error::BuildError;
use settings::{Int8Settings, Rounding};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What is to be compiled, and for what; sizes and schemes are written as on the command line.
#[derive(Clone, Debug)]
pub struct Build {
    model: PathBuf,
    classes: Option<u32>,
    scheme: String,
    target: String,
    memory: String,
    flash: String,
    stack: String,
    batch: u32,
    is_scaled: bool,
    update: Rounding,
    momentum: f64,
    seed: u64,
    c: CSettings,
}

impl Build {
    /// For a TFLite file, or the `.json` of a network beside its `.safetensors`; otherwise as the command does it
    /// where it is told nothing: the last layer trained, 256 KiB of SRAM, 1 MiB of flash, a Cortex-M7.
    pub fn new(model: impl Into<PathBuf>) -> Build {
        Build {
            model: model.into(),
            classes: None,
            scheme: "last:1".to_string(),
            target: "cortex-m7".to_string(),
            memory: "256KiB".to_string(),
            flash: "1MiB".to_string(),
            stack: "4KiB".to_string(),
            batch: 1,
            is_scaled: true,
            update: Rounding::Stochastic,
            momentum: 0.0,
            seed: 0,
            c: CSettings::default(),
        }
    }

    /// A new head of so many classes.
    pub fn classes(mut self, classes: u32) -> Build {
        self.classes = Some(classes);
        self
    }

    /// What is trained: a name such as `last:2`, or a `.toml` file.
    pub fn scheme(mut self, scheme: impl Into<String>) -> Build {
        self.scheme = scheme.into();
        self
    }

    /// What is planned for: `cortex-m4` or `cortex-m7`.
    pub fn target(mut self, target: impl Into<String>) -> Build {
        self.target = target.into();
        self
    }

    /// SRAM for everything: arena, weights that change, masks, stack.
    pub fn memory(mut self, size: impl Into<String>) -> Build {
        self.memory = size.into();
        self
    }

    /// Flash for weights and constants.
    pub fn flash(mut self, size: impl Into<String>) -> Build {
        self.flash = size.into();
        self
    }

    /// Stack that is kept free in SRAM.
    pub fn stack(mut self, size: impl Into<String>) -> Build {
        self.stack = size.into();
        self
    }

    /// Samples a step whose gradients are taken together.
    pub fn batch(mut self, samples: u32) -> Build {
        self.batch = samples;
        self
    }

    /// Plain descent on the stored integers, without quantisation-aware scaling.
    pub fn without_qas(mut self) -> Build {
        self.is_scaled = false;
        self
    }

    /// How updates are rounded.
    pub fn update(mut self, rounding: Rounding) -> Build {
        self.update = rounding;
        self
    }

    /// Momentum of the gradients, below 1.
    pub fn momentum(mut self, momentum: f64) -> Build {
        self.momentum = momentum;
        self
    }

    /// Seed of a new head.
    pub fn seed(mut self, seed: u64) -> Build {
        self.seed = seed;
        self
    }

    /// For [`Emit::C`]: the runtime's folder, and the units of the flash that checkpoints go to.
    pub fn c(mut self, settings: CSettings) -> Build {
        self.c = settings;
        self
    }

    /// The settings, read.
    ///
    /// # Errors
    /// One of them says nothing that can be done.
    pub fn settings(&self) -> Result<Int8Settings, BuildError> {
        if self.batch == 0 {
            return Err(BuildError::request("a step has at least 1 sample"));
        }
        Ok(Int8Settings {
            scheme: settings::scheme(&self.scheme)?,
            target: settings::target(&self.target)?,
            memory: settings::size(&self.memory)?,
            flash: settings::size(&self.flash)?,
            stack: settings::size(&self.stack)?,
            batch: self.batch,
            is_scaled: self.is_scaled,
            update: self.update,
            momentum: settings::momentum(self.momentum)?,
        })
    }

    /// Plans and loads; writes nothing.
    ///
    /// # Errors
    /// The request cannot be met, with numbers and the way out, or a file cannot be read.
    pub fn run(&self) -> Result<Built, BuildError> {
        Built::of(&self.model, self.classes, &self.settings()?, self.seed)
    }

    /// Plans, loads, writes into `folder`; gives what was built and the files.
    ///
    /// # Errors
    /// As [`Build::run`], or the folder cannot be written.
    pub fn write(&self, emits: &[Emit], folder: &Path) -> Result<(Built, Vec<PathBuf>), BuildError> {
        let built = self.run()?;
        let mut files = Vec::new();
        for &emit in emits {
            files.extend(built.write(emit, folder, &self.c)?);
        }
        Ok((built, files))
    }

    /// For build scripts: writes into `OUT_DIR` and tells Cargo on which files that depends. With [`Emit::Rust`] there
    /// is also `tinyforge.rs`, to be included, which declares the module `model`. Gives the script's exit code; what
    /// cannot be met is an error of the build.
    #[must_use = "it is the exit code of the build script"]
    pub fn emit(&self, emits: &[Emit]) -> ExitCode {
        for path in self.read_files() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        let Some(folder) = std::env::var_os("OUT_DIR").map(PathBuf::from) else {
            return refused(&BuildError::request("OUT_DIR is not set: this is for build scripts, which Cargo runs"));
        };
        let result = self.write(emits, &folder).and_then(|(built, _)| {
            if emits.contains(&Emit::Rust) {
                include_file(&folder)?;
            }
            Ok(built)
        });
        match result {
            Ok(built) => {
                for path in &built.sources {
                    println!("cargo::rerun-if-changed={}", path.display());
                }
                ExitCode::SUCCESS
            }
            Err(error) => refused(&error),
        }
    }

    /// What is read before anything can fail.
    fn read_files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.model.clone(), self.model.with_extension("safetensors")];
        files.extend(self.scheme.ends_with(".toml").then(|| PathBuf::from(&self.scheme)));
        // Cargo runs a script every time when one of these is not there.
        files.retain(|path| path.exists());
        files
    }
}

/// Code that is included into a module cannot begin as a file does, so the model is a module by its path.
fn include_file(folder: &Path) -> Result<(), BuildError> {
    let text = format!("#[path = {:?}]\npub mod model;\n", folder.join("model.rs"));
    Ok(tinyforge::files::write_atomic(&folder.join("tinyforge.rs"), |file| file.write_all(text.as_bytes()))?)
}

/// Says why, in the words of Cargo, which takes a line at a time.
fn refused(error: &BuildError) -> ExitCode {
    for line in error.to_string().lines() {
        println!("cargo::error={line}");
    }
    ExitCode::FAILURE
}
