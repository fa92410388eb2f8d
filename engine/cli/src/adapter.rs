//! Low-rank adapters in the form of the PEFT library: a folder with `adapter_config.json` and
//! `adapter_model.safetensors`.
//!
//! A plan stores all its adapters with one rank and one factor. Files may differ from module to module: narrower
//! matrices are filled up with zeros, and what a factor differs by goes into B.

use crate::error::CommandError;
use crate::model::{Format, Model, open_safetensors, read_f32};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tinyforge::files::{FileError, ReadAt, read_whole, write_atomic};
use tinyforge::runner::Runner;
use tinyforge_compiler::import::Family;
use tinyforge_compiler::import::peft::{self, AdapterConfig, Pair, Side, TargetModules};
use tinyforge_compiler::import::safetensors;
use tinyforge_compiler::import::source::{Catalog, NewTensor};
use tinyforge_compiler::import::weight_map::{RowOrder, interleaved_row_sources, plain_row_sources};
use tinyforge_compiler::scheme::{Lora, Scheme, SchemeKind};
use tinyforge_plan::{DType, StoredKind, Tensor, part_of};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

/// An adapter's settings, and where its tensors lie.
struct Files {
    config: AdapterConfig,
    catalog: Catalog,
    file: ReadAt,
}

fn open(folder: &Path) -> Result<Files, CommandError> {
    let path = folder.join(CONFIG);
    let bytes = read_whole(&path).map_err(CommandError::request)?;
    let config = AdapterConfig::parse(&bytes).map_err(|e| CommandError::request(format!("{}: {e}", path.display())))?;
    let (catalog, mut files) = open_safetensors(&[folder.join(TENSORS)])?;
    Ok(Files { config, catalog, file: files.remove(0) })
}

fn component(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// The scheme whose plans have room for an adapter: its widest rank, the modules that its tensors are for, and head
/// and embedding where it brings its own.
///
/// # Errors
/// It cannot be read, or is no adapter of low rank.
pub fn scheme(folder: &Path) -> Result<Scheme, CommandError> {
    let Files { config, catalog, .. } = open(folder)?;
    let (mut targets, mut whole) = (BTreeSet::new(), Vec::new());
    let (mut rank, mut scale) = (1, 1.0);
    for tensor in catalog.iter() {
        let Some((module, _)) = peft::parse_tensor_name(&tensor.name) else {
            whole.push(tensor.name.as_str());
            continue;
        };
        let module_rank = config.rank_of(module);
        if module_rank >= rank {
            (rank, scale) = (module_rank, config.scale(module));
        }
        targets.insert(component(module).to_string());
    }
    let rank = u32::try_from(rank).map_err(|_| CommandError::request("the adapter's rank is too large"))?;
    let embed = whole.iter().any(|name| ["embed_tokens", "wte", "wpe"].iter().any(|part| name.contains(part)));
    let lora = Lora { rank, alpha: scale * f64::from(rank), targets: targets.into_iter().collect() };
    Ok(Scheme { kind: SchemeKind::Lora(lora), head: !whole.is_empty(), embed })
}

/// Reads an adapter into the tensors of a plan that was made with [`scheme`], or with `lora` of that rank or wider.
///
/// # Errors
/// It cannot be read, or does not suit the model or the plan.
pub fn load(runner: &mut Runner, model: &Model, folder: &Path) -> Result<(), CommandError> {
    let Files { config, catalog, file } = open(folder)?;
    let map = peft::bind(&config, &catalog, &model.weights).map_err(CommandError::request)?;
    clear(runner)?;
    let planned_scale = planned_scale(runner);
    for pair in &map.pairs {
        load_pair(runner, model, &file, pair, planned_scale)?;
    }
    for (param, tensor) in &map.replaced {
        let binding = model.weights.get(param).expect("bound to a parameter");
        if binding.rows != RowOrder::Plain || binding.transpose {
            return Err(CommandError::request(format!(
                "the adapter replaces `{param}`, which this model's file stores in another order"
            )));
        }
        put(runner, param, &finite(&tensor.name, read_f32(&file, tensor)?)?)?;
    }
    Ok(())
}

/// Sets all adapters of the plan to zero: modules that a file does not mention are as in the base.
fn clear(runner: &mut Runner) -> Result<(), CommandError> {
    let is_b = |name: &str| name.ends_with(".lora_B.weight");
    let all: Vec<Tensor> = runner.plan().stored.iter().filter(|s| is_b(&s.name)).map(|s| s.tensor.clone()).collect();
    Ok(all.iter().try_for_each(|tensor| runner.change(tensor, |bytes| bytes.fill(0)))?)
}

/// The factor that the plan multiplies every adapter by.
fn planned_scale(runner: &Runner) -> f64 {
    let plan = runner.plan();
    let Some(b) = plan.stored.iter().find(|s| s.name.ends_with(".lora_B.weight")) else { return 1.0 };
    let mut steps = plan.entries.iter().flat_map(|e| &e.steps).filter(|s| s.kernel == "linear_add");
    let adds = steps.find(|s| s.args.get(1).is_some_and(|w| w.offset == b.tensor.offset));
    adds.map_or(1.0, |s| f64::from(s.float("alpha")))
}

fn finite(name: &str, values: Vec<f32>) -> Result<Vec<f32>, CommandError> {
    match values.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(CommandError::request(format!("`{name}` of the adapter holds {} at element {at}", values[at]))),
        None => Ok(values),
    }
}

fn load_pair(
    runner: &mut Runner,
    model: &Model,
    file: &ReadAt,
    pair: &Pair,
    planned_scale: f64,
) -> Result<(), CommandError> {
    let module = pair.param.strip_suffix(".weight").unwrap_or(&pair.param);
    let (a_name, b_name) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
    let Some(tensor) = runner.plan().find(&b_name).map(|s| &s.tensor) else {
        return Err(CommandError::request(format!(
            "the plan has no adapter for `{module}`: name it in the scheme's targets"
        )));
    };
    let (rows, wide) = (tensor.rows(), tensor.cols());
    if pair.rank > wide {
        let why = format!("the adapter's rank for `{module}` is {}, the plan's {wide}", pair.rank);
        return Err(CommandError::request(why));
    }
    let mut a = finite(&pair.a.name, read_f32(file, &pair.a)?)?;
    let b = finite(&pair.b.name, read_f32(file, &pair.b)?)?;
    a.resize(a.len() / pair.rank.max(1) * wide, 0.0);
    let factor = (pair.scale / planned_scale) as f32;
    let mut stored = vec![0.0; rows * wide];
    let sources = stored_row_sources(model, &pair.param);
    for (row, out) in stored.chunks_exact_mut(wide).enumerate() {
        let from = sources.as_ref().map_or(row, |s| s[row]);
        let values = &b[from * pair.rank..(from + 1) * pair.rank];
        out.iter_mut().zip(values).for_each(|(o, x)| *o = if factor == 1.0 { *x } else { x * factor });
    }
    put(runner, &a_name, &a)?;
    put(runner, &b_name, &stored)
}

/// For every row that the plan stores, the row of a file in plain order; `None` where the order is plain.
fn stored_row_sources(model: &Model, param: &str) -> Option<Vec<usize>> {
    match model.weights.get(param)?.rows {
        RowOrder::Plain => None,
        RowOrder::RopeInterleaved { heads, head_dim } => Some(interleaved_row_sources(heads, head_dim)),
    }
}

fn put(runner: &mut Runner, name: &str, values: &[f32]) -> Result<(), CommandError> {
    let parts: Vec<Tensor> = runner.plan().parts_of(name).iter().map(|s| s.tensor.clone()).collect();
    if parts.iter().map(Tensor::elems).sum::<u64>() != values.len() as u64 {
        return Err(CommandError::request(format!("the plan has no room for `{name}` of the adapter")));
    }
    let mut left = values;
    for tensor in parts {
        let (own, behind) = left.split_at(tensor.elems() as usize);
        left = behind;
        runner.change(&tensor, |bytes| store(name, tensor.dtype, own, bytes))??;
    }
    Ok(())
}

/// Numbers in a tensor's storage.
fn store(name: &str, dtype: DType, values: &[f32], bytes: &mut [u8]) -> Result<(), CommandError> {
    match dtype {
        DType::F32 => bytes.copy_from_slice(bytemuck::cast_slice(values)),
        DType::BF16 => {
            let out: &mut [half::bf16] = bytemuck::cast_slice_mut(bytes);
            out.iter_mut().zip(values).for_each(|(o, &x)| *o = half::bf16::from_f32(x));
        }
        DType::F16 => {
            let out: &mut [half::f16] = bytemuck::cast_slice_mut(bytes);
            out.iter_mut().zip(values).for_each(|(o, &x)| *o = half::f16::from_f32(x));
        }
        other => {
            let why =
                format!("the adapter replaces `{name}`, which is stored as {}: train it in the scheme", other.name());
            return Err(CommandError::request(why));
        }
    }
    Ok(())
}

/// A stored tensor on its way to a file, in one or several parts.
struct Out {
    name: String,
    parts: Vec<Tensor>,
    /// For every row of the file, the stored row.
    sources: Option<Vec<usize>>,
}

/// Writes the adapter that a plan of the scheme `lora` holds: adapters, and what is trained beside them whole. Each
/// file is whole or not there.
///
/// # Errors
/// The scheme is another, the disk is full, or the folder cannot be written.
pub fn save(runner: &mut Runner, model: &Model, folder: &Path, scheme: &Scheme) -> Result<(), CommandError> {
    let SchemeKind::Lora(lora) = &scheme.kind else {
        return Err(CommandError::request(format!("the scheme {scheme} makes no adapter")));
    };
    let (mut list, mut targets, mut whole) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for stored in runner.plan().stored.iter().filter(|s| s.kind == StoredKind::Weight) {
        let parts = vec![stored.tensor.clone()];
        if let Some((module, side)) = peft::parse_tensor_name(&stored.name) {
            let param = format!("{module}.weight");
            let sources = (side == Side::B).then(|| file_row_sources(model, &param)).flatten();
            list.push(Out { name: peft::tensor_name(module, side), parts, sources });
            targets.insert(component(module).to_string());
        } else if stored.changes {
            let (param, part) = part_of(&stored.name).unwrap_or((&stored.name, 0));
            whole.insert(param.rsplit_once('.').map_or(param, |(module, _)| module).to_string());
            if part == 0 {
                let parts = runner.plan().parts_of(param).iter().map(|s| s.tensor.clone()).collect();
                list.push(Out { name: format!("base_model.model.{param}"), parts, sources: None });
            }
        }
    }
    // Plans list their tensors in one order or another.
    list.sort_by(|a, b| a.name.cmp(&b.name));
    let config = AdapterConfig {
        rank: lora.rank as usize,
        alpha: lora.alpha,
        rank_stabilised: false,
        target_modules: TargetModules::Names(targets.into_iter().collect()),
        rank_pattern: BTreeMap::new(),
        alpha_pattern: BTreeMap::new(),
        fan_in_fan_out: model.config.family == Family::Gpt2,
        dropout: 0.0,
        base_model: (model.format == Format::HuggingFace).then(|| model.path.display().to_string()),
        modules_to_save: whole.into_iter().collect(),
    };
    std::fs::create_dir_all(folder).map_err(|e| FileError::new(folder, "cannot make the folder", e))?;
    write_tensors(runner, &folder.join(TENSORS), &list)?;
    Ok(write_atomic(&folder.join(CONFIG), |out| out.write_all(config.to_json().as_bytes()))?)
}

/// For every row of a file in plain order, the row that the plan stores; `None` where the order is plain.
fn file_row_sources(model: &Model, param: &str) -> Option<Vec<usize>> {
    match model.weights.get(param)?.rows {
        RowOrder::Plain => None,
        RowOrder::RopeInterleaved { heads, head_dim } => Some(plain_row_sources(heads, head_dim)),
    }
}

fn write_tensors(runner: &mut Runner, path: &Path, list: &[Out]) -> Result<(), CommandError> {
    let shape = |parts: &[Tensor]| {
        let mut shape: Vec<u64> = parts[0].shape.iter().map(|&d| u64::from(d)).collect();
        shape[0] = parts.iter().map(|t| u64::from(t.shape[0])).sum();
        shape
    };
    let new: Vec<NewTensor> =
        list.iter().map(|o| NewTensor::new(o.name.clone(), o.parts[0].dtype, &shape(&o.parts))).collect();
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let layout = safetensors::layout(&new, &metadata).map_err(CommandError::run)?;
    write_atomic(path, |out| {
        out.write_all(&layout.header)?;
        for place in &layout.tensors {
            let from = list.iter().find(|o| o.name == place.name).expect("laid out from the list");
            for tensor in &from.parts {
                let bytes = runner.fetch(tensor).map_err(std::io::Error::other)?;
                match &from.sources {
                    None => out.write_all(bytes)?,
                    Some(sources) => {
                        let row_bytes = bytes.len() / tensor.rows().max(1);
                        sources.iter().try_for_each(|&r| out.write_all(&bytes[r * row_bytes..(r + 1) * row_bytes]))?;
                    }
                }
            }
        }
        Ok(())
    })?;
    Ok(())
}
