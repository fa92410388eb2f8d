//! Opens an int8 network, or makes one of a float network.

use super::Int8Args;
use super::float::Float;
use crate::error::CommandError;
use std::path::Path;
use tinyforge::files::{ReadAt, read_whole};
use tinyforge::samples::{self, Samples};
use tinyforge_compiler::import::int8::Int8Model;
use tinyforge_compiler::import::{mcu, tflite};

/// A network with its open file.
pub struct Opened {
    /// What it computes, and where its weights are.
    pub model: Int8Model,
    /// The files that its weights are in.
    pub files: Vec<ReadAt>,
    /// The float network that it was made of.
    pub float: Option<Float>,
}

/// Samples that a network is quantised with where the user named none: the data that it is trained on.
pub struct Fallback<'a> {
    /// The data.
    pub data: &'a Path,
    /// Whether every tenth is held out.
    pub holds_out: bool,
}

/// Whether the name is that of an ONNX file.
pub fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"))
}

/// Opens a TFLite file, the `.json` of a network whose weights lie in the `.safetensors` file of the same name, or an
/// ONNX file, which is quantised.
///
/// # Errors
/// A file is not there or damaged, the network has parts that are not supported, or a float one lacks samples.
pub fn open(args: &Int8Args, fallback: Option<Fallback>) -> Result<Opened, CommandError> {
    let path = &args.model;
    let request =
        |path: &Path, why: &dyn std::fmt::Display| CommandError::request(format!("{}: {why}", path.display()));
    let bytes = read_whole(path).map_err(CommandError::request)?;
    let mut float = None;
    let (model, weights) = if is_onnx(path) {
        let mut opened = Float::open(path, &bytes, &args.float)?;
        let samples = calibration(args, fallback, opened.shape())?;
        let model = opened.quantize(&samples, args.float.ranges)?;
        float = Some(opened);
        (model, path.to_path_buf())
    } else if mcu::is_structure(&bytes) {
        let weights = path.with_extension("safetensors");
        let data = read_whole(&weights).map_err(CommandError::request)?;
        let model = mcu::import(&bytes, &data, &weights.to_string_lossy()).map_err(|e| request(path, &e))?;
        (model, weights)
    } else {
        (tflite::import(&bytes, &path.to_string_lossy()).map_err(|e| request(path, &e))?, path.to_path_buf())
    };
    let model = match args.classes {
        Some(classes) => model.with_classes(classes).map_err(|e| request(path, &e))?,
        None => model,
    };
    Ok(Opened { model, files: vec![ReadAt::open(&weights)?], float })
}

/// The samples that a float network is quantised with.
fn calibration(args: &Int8Args, fallback: Option<Fallback>, shape: [usize; 3]) -> Result<Samples, CommandError> {
    let named = args.float.calibrate.as_deref().map(|data| Fallback { data, holds_out: false });
    let Some(from) = named.or(fallback) else {
        return Err(CommandError::request(format!(
            "{} is a float network; its values' ranges are measured on samples: `--calibrate DIR` with some hundred \
             images like those that it will see, an IDX file, or raw int8 arrays",
            args.model.display()
        )));
    };
    if args.float.calibrate_samples == 0 {
        return Err(CommandError::request("--calibrate-samples must be at least 1"));
    }
    let all = samples::read_unlabelled(from.data, shape).map_err(CommandError::request)?;
    let all = if from.holds_out { all.split(10).0 } else { all };
    let count = args.float.calibrate_samples.min(all.len());
    let bytes = (0..count).flat_map(|i| all.sample(i * all.len() / count)).copied().collect();
    Ok(Samples::new(shape, bytes, vec![0; count], Vec::new()))
}
