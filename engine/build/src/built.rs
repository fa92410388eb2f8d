//! A compiled network with its weights, and what can be written of it.

use crate::error::BuildError;
use crate::settings::Int8Settings;
use crate::{model, planning};
use std::path::{Path, PathBuf};
use tinyforge::files::write_atomic;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge_compiler::export::{c, dot, html, json, rust};
use tinyforge_compiler::import::int8::Int8Model;
use tinyforge_plan::{Plan, encode};

/// What is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Emit {
    /// Rust: `model.rs`, `flash.bin`, `start.bin`.
    Rust,
    /// A crate that makes a static library, and headers.
    C,
    /// The plan's bytes: `model.plan`.
    Plan,
    /// A graph for graphviz: `model.dot`.
    Dot,
    /// A page that shows memory over the steps: `model.html`.
    Html,
    /// The plan for programs: `model.json`.
    Json,
}

/// What C programs need beside the model.
#[derive(Clone, PartialEq, Debug)]
pub struct CSettings {
    /// The folder of the crate `tinyforge-firmware`.
    pub runtime: PathBuf,
    /// Bytes in which the flash for checkpoints is written, and erased.
    pub units: [u32; 2],
}

impl Default for CSettings {
    fn default() -> CSettings {
        // Where this crate was built from, the runtime lies beside it.
        let runtime = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../firmware");
        CSettings { runtime: runtime.canonicalize().unwrap_or(runtime), units: [8, 1024] }
    }
}

/// A network that was compiled and loaded.
pub struct Built {
    /// What it computes.
    pub model: Int8Model,
    /// The files that it came from.
    pub sources: Vec<PathBuf>,
    /// Tells plans and weights apart.
    pub hash: u64,
    runner: Runner,
    limits: [u64; 2],
    batch: u32,
}

impl Built {
    /// Opens, plans and loads.
    ///
    /// # Errors
    /// See [`model::open`] and [`planning::plan`].
    pub fn of(path: &Path, classes: Option<u32>, settings: &Int8Settings, seed: u64) -> Result<Built, BuildError> {
        Built::of_opened(path, model::open(path, classes)?, settings, seed)
    }

    /// Plans and loads a network that was opened, or made, from the file `path`.
    ///
    /// # Errors
    /// See [`planning::plan`].
    pub fn of_opened(
        path: &Path,
        opened: model::Opened,
        settings: &Int8Settings,
        seed: u64,
    ) -> Result<Built, BuildError> {
        let plan = planning::plan(&name_of(path), &opened.model, settings)?.plan;
        let mut runner = Runner::new(plan, RunOptions::default())?;
        runner.load(&opened.files, seed)?;
        let hash = rust::hash(runner.plan(), runner.arena().bytes(), settings.batch);
        let weights = opened.files.iter().map(|file| file.path().to_path_buf());
        let mut sources: Vec<PathBuf> = std::iter::once(path.to_path_buf()).chain(weights).collect();
        sources.dedup();
        Ok(Built {
            model: opened.model,
            sources,
            hash,
            runner,
            limits: [settings.memory, settings.flash],
            batch: settings.batch,
        })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.runner.plan()
    }

    /// Writes one form into a folder, which is made where it is not there; gives the files.
    ///
    /// # Errors
    /// The plan has no such form, or the folder cannot be written.
    pub fn write(&self, emit: Emit, folder: &Path, c: &CSettings) -> Result<Vec<PathBuf>, BuildError> {
        let mut written = Vec::new();
        for (name, bytes) in self.files(emit, c)? {
            let path = folder.join(name);
            let parent = path.parent().unwrap_or(folder);
            std::fs::create_dir_all(parent).map_err(|e| BuildError::run(format!("{}: {e}", parent.display())))?;
            write_atomic(&path, |file| file.write_all(&bytes))?;
            written.push(path);
        }
        Ok(written)
    }

    fn files(&self, emit: Emit, c: &CSettings) -> Result<Vec<(&'static str, Vec<u8>)>, BuildError> {
        let (plan, limits) = (self.plan(), self.limits);
        let (image, batch) = (self.runner.arena().bytes(), self.batch);
        let source = || rust::export(&rust::Request { plan, image, limits, batch });
        Ok(match emit {
            Emit::Rust => {
                let source = source()?;
                vec![("flash.bin", source.flash), ("start.bin", source.start), ("model.rs", source.model.into_bytes())]
            }
            Emit::C => {
                let runtime = c.runtime.to_string_lossy();
                if !c.runtime.join("Cargo.toml").exists() {
                    return Err(BuildError::request(format!(
                        "{runtime} is not the crate tinyforge-firmware: name its folder with --runtime"
                    )));
                }
                c::export(&c::Request { plan, source: &source()?, runtime: &runtime, batch, units: c.units })?
            }
            Emit::Plan => vec![("model.plan", encode::encode(plan))],
            Emit::Dot => vec![("model.dot", dot::export(plan).into_bytes())],
            Emit::Json => vec![("model.json", json::export(plan).into_bytes())],
            Emit::Html => {
                let names = [plan.spaces.last(), plan.spaces.first()].map(|s| s.map_or("", |s| s.name.as_str()));
                let limits = [(names[0], limits[0]), (names[1], limits[1])];
                let page = html::export(&html::Request { plan, hash: Some(self.hash), limits: &limits, machine: None });
                vec![("model.html", page.into_bytes())]
            }
        })
    }
}

/// What a network is called: the file's name without its ending.
pub fn name_of(path: &Path) -> String {
    path.file_stem().map_or(String::new(), |n| n.to_string_lossy().into_owned())
}
