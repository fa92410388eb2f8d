//! Adapters in PEFT's form.
use crate::error::CommandError;
use crate::model::Model;
use std::path::Path;
use tinyforge::runner::Runner;
use tinyforge_compiler::scheme::Scheme;
/// Writes.
pub fn save(_: &Runner, _: &Model, _: &Path, _: &Scheme) -> Result<(), CommandError> {
    Ok(())
}
/// Reads.
pub fn load(_: &mut Runner, _: &Model, _: &Path) -> Result<(), CommandError> {
    Ok(())
}
/// Scheme of an adapter.
pub fn scheme(_: &Path) -> Result<Scheme, CommandError> {
    Ok(Scheme::parse("lora")?)
}
