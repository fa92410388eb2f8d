//! What a run leaves: an adapter in PEFT's form, or a whole model as a Hugging Face directory.
//!
//! Tensors are written one after the other from where they live, through a buffer of one row.

use crate::error::CommandError;
use crate::model::{Format, Model};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tinyforge::files::{FileError, read_if_there, write_atomic};
use tinyforge::load::to_f32;
use tinyforge::runner::Runner;
use tinyforge::text::Tokenizer;
use tinyforge_compiler::import::safetensors;
use tinyforge_compiler::import::source::NewTensor;
use tinyforge_compiler::import::weight_map::{Binding, RowOrder, plain_row_sources};
use tinyforge_compiler::import::{Family, hf};
use tinyforge_compiler::scheme::{Scheme, SchemeKind};
use tinyforge_plan::{DType, Tensor};

/// Writes the result of a run into `folder` and says where it lies.
///
/// # Errors
/// The disk is full, or the folder cannot be written.
pub fn save(
    model: &Model,
    tokenizer: &Tokenizer,
    runner: &mut Runner,
    scheme: &Scheme,
    folder: &Path,
) -> Result<PathBuf, CommandError> {
    let (name, path) = match scheme.kind {
        SchemeKind::Lora(_) => ("adapter", folder.join("adapter")),
        _ => ("model", folder.join("model")),
    };
    std::fs::create_dir_all(&path).map_err(|e| FileError::new(&path, "cannot make the folder", e))?;
    if name == "adapter" {
        crate::adapter::save(runner, model, &path, scheme)?;
    } else {
        save_model(model, runner, &path)?;
        save_tokenizer(model, tokenizer, &path)?;
    }
    Ok(path)
}

/// The storage type that a tensor gets in a safetensors file: quantised ones become bf16.
fn written_dtype(stored: DType) -> DType {
    if stored.is_quantised() { DType::BF16 } else { stored }
}

/// Writes a whole model as a Hugging Face directory, without its tokenizer.
///
/// # Errors
/// The disk is full, or the folder cannot be written.
pub fn save_model(model: &Model, runner: &mut Runner, folder: &Path) -> Result<(), CommandError> {
    let mut list = Vec::new();
    for binding in model.weights.iter() {
        let dtype = runner.plan().parts_of(&binding.name).first().expect("a plan stores all parameters").tensor.dtype;
        let mut shape = binding.shape.clone();
        if is_transposed(model, binding) {
            shape.reverse();
        }
        list.push(NewTensor::new(binding.name.clone(), written_dtype(dtype), &shape));
    }
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let layout = safetensors::layout(&list, &metadata).map_err(CommandError::run)?;
    let widest = list.iter().map(|t| t.dtype).find(|d| *d != DType::F32).unwrap_or(DType::F32);
    let config = hf::config_json(&model.config, widest).map_err(CommandError::run)?;
    write_atomic(&folder.join("model.safetensors"), |out| {
        out.write_all(&layout.header)?;
        for place in &layout.tensors {
            let binding = model.weights.get(&place.name).expect("listed from the map");
            let parts: Vec<Tensor> = runner.plan().parts_of(&place.name).iter().map(|s| s.tensor.clone()).collect();
            // What is stored in parts is written as it is.
            for tensor in parts {
                let bytes = runner.fetch(&tensor).map_err(std::io::Error::other)?;
                write_tensor(out, &tensor, bytes, is_transposed(model, binding), row_sources(binding))?;
            }
        }
        Ok(())
    })?;
    Ok(write_atomic(&folder.join("config.json"), |out| out.write_all(config.as_bytes()))?)
}

/// Whether a Hugging Face checkpoint of this family stores the matrix as `[in, out]`.
fn is_transposed(model: &Model, binding: &Binding) -> bool {
    model.config.family == Family::Gpt2 && binding.shape.len() == 2 && binding.block.is_some()
}

fn row_sources(binding: &Binding) -> Option<Vec<usize>> {
    match binding.rows {
        RowOrder::Plain => None,
        RowOrder::RopeInterleaved { heads, head_dim } => Some(plain_row_sources(heads, head_dim)),
    }
}

fn write_tensor(
    out: &mut dyn std::io::Write,
    tensor: &Tensor,
    bytes: &[u8],
    transpose: bool,
    sources: Option<Vec<usize>>,
) -> std::io::Result<()> {
    let (rows, cols) = (tensor.rows(), tensor.cols());
    if !transpose && sources.is_none() && !tensor.dtype.is_quantised() {
        return out.write_all(bytes);
    }
    let row_bytes = bytes.len() / rows.max(1);
    let mut row = vec![0.0; cols];
    let mut put = |value: f32| match written_dtype(tensor.dtype) {
        DType::F32 => out.write_all(&value.to_le_bytes()),
        DType::F16 => out.write_all(&half::f16::from_f32(value).to_le_bytes()),
        _ => out.write_all(&half::bf16::from_f32(value).to_le_bytes()),
    };
    if transpose {
        // Float matrices only: a block-quantised row cannot be read by column.
        let size = tensor.dtype.block_bytes() as usize;
        let mut value = [0.0];
        for (c, r) in (0..cols).flat_map(|c| (0..rows).map(move |r| (c, r))) {
            let at = (r * cols + c) * size;
            to_f32(tensor.dtype, &bytes[at..at + size], &mut value);
            put(value[0])?;
        }
        return Ok(());
    }
    for r in 0..rows {
        let from = sources.as_ref().map_or(r, |s| s[r]);
        to_f32(tensor.dtype, &bytes[from * row_bytes..(from + 1) * row_bytes], &mut row);
        row.iter().try_for_each(|&v| put(v))?;
    }
    Ok(())
}

/// Puts the tokenizer's files beside the model: as they are, or made of what a GGUF file says.
fn save_tokenizer(model: &Model, tokenizer: &Tokenizer, folder: &Path) -> Result<(), CommandError> {
    if model.format == Format::Gguf {
        write_atomic(&folder.join("tokenizer.json"), |out| tokenizer.write_huggingface(out))?;
        let config = tokenizer.huggingface_config();
        return Ok(write_atomic(&folder.join("tokenizer_config.json"), |out| out.write_all(config.as_bytes()))?);
    }
    let names = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
    ];
    for name in names {
        if let Some(bytes) = read_if_there(&model.path.join(name))? {
            write_atomic(&folder.join(name), |out| out.write_all(&bytes))?;
        }
    }
    Ok(())
}
