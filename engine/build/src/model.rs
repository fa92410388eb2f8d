//! Opens an int8 network.

use crate::error::BuildError;
use std::path::Path;
use tinyforge::files::{ReadAt, read_whole};
use tinyforge_compiler::import::int8::Int8Model;
use tinyforge_compiler::import::{mcu, tflite};

/// A network with its open file.
pub struct Opened {
    /// What it computes, and where its weights are.
    pub model: Int8Model,
    /// The files that its weights are in.
    pub files: Vec<ReadAt>,
}

/// Whether the name is that of an ONNX file, which holds a float network.
pub fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"))
}

/// Opens a TFLite file, or the `.json` of a network whose weights lie in the `.safetensors` file of the same name.
///
/// # Errors
/// A file is not there or damaged, or the network has parts that are not supported.
pub fn open(path: &Path, classes: Option<u32>) -> Result<Opened, BuildError> {
    let request = |path: &Path, why: &dyn std::fmt::Display| BuildError::request(format!("{}: {why}", path.display()));
    let bytes = read_whole(path).map_err(BuildError::request)?;
    if is_onnx(path) {
        let why = "a float network is quantised with samples, which `tinyforge compile` and `simulate` alone do";
        return Err(request(path, &why));
    }
    let (model, weights) = if mcu::is_structure(&bytes) {
        let weights = path.with_extension("safetensors");
        let data = read_whole(&weights).map_err(BuildError::request)?;
        let model = mcu::import(&bytes, &data, &weights.to_string_lossy()).map_err(|e| request(path, &e))?;
        (model, weights)
    } else {
        (tflite::import(&bytes, &path.to_string_lossy()).map_err(|e| request(path, &e))?, path.to_path_buf())
    };
    let model = match classes {
        Some(classes) => model.with_classes(classes).map_err(|e| request(path, &e))?,
        None => model,
    };
    Ok(Opened { model, files: vec![ReadAt::open(&weights)?] })
}
