//! `tinyforge inspect`: what is in a file, in words: a model, a plan, a checkpoint, a run or training data.

use super::Common;
use crate::error::CommandError;
use crate::int8::float;
use crate::int8::model::is_onnx;
use crate::knobs::Knobs;
use crate::request;
use crate::sizes::show;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tinyforge::data::{self, DataOptions};
use tinyforge::train::checkpoint;
use tinyforge_compiler::ir::graph::Kind;
use tinyforge_compiler::passes::quantize;
use tinyforge_plan::{Part, Plan, encode};

/// Says what is in a file
#[derive(clap::Args, Debug)]
pub struct InspectArgs {
    /// A model, plan, checkpoint, run folder or data file
    pub file: PathBuf,
    /// The model whose tokenizer reads the data
    #[arg(long)]
    model: Option<PathBuf>,
    #[command(flatten)]
    knobs: Knobs,
    #[command(flatten)]
    common: Common,
}

/// Inspects.
///
/// # Errors
/// The file is not there, or is nothing that is known.
pub fn run(args: &InspectArgs) -> Result<(), CommandError> {
    let path = &args.file;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if let Some(model) = &args.model {
        return inspect_data(args, model);
    }
    if path.join(crate::run::RECORD).exists() {
        return inspect_run(path);
    }
    let start = read_start(path)?;
    match &start[..] {
        b"TFPL" => inspect_plan(path, &args.common),
        b"TFCK" => inspect_checkpoint(path),
        _ if is_onnx(path) => inspect_onnx(path, &args.common),
        _ if path.join("config.json").exists() || start == *b"GGUF" => inspect_model(path, &args.knobs, &args.common),
        _ if name.ends_with(".jsonl") || name.ends_with(".txt") => {
            Err(CommandError::request("data is tokenised by a model: add --model MODEL"))
        }
        _ => Err(CommandError::request(format!("{}: no model, plan, checkpoint, run or data", path.display()))),
    }
}

fn read_start(path: &Path) -> Result<Vec<u8>, CommandError> {
    let missing = |e| CommandError::request(format!("{}: {e}", path.display()));
    if std::fs::metadata(path).map_err(missing)?.is_dir() {
        return Ok(Vec::new());
    }
    let file = tinyforge::files::ReadAt::open(path)?;
    Ok(file.prefix(4)?)
}

fn inspect_data(args: &InspectArgs, model: &Path) -> Result<(), CommandError> {
    let tokenizer = request::open(model, &args.knobs)?.tokenizer()?;
    let options = DataOptions {
        pack: args.knobs.pack.unwrap_or(true),
        mask_prompt: args.knobs.mask_prompt.unwrap_or(true),
        valid_fraction: args.knobs.valid_fraction.unwrap_or(0.0),
        seed: args.knobs.seed.unwrap_or(0),
        ..DataOptions::new(args.knobs.seq.unwrap_or(256).max(1) as usize)
    };
    let mut quiet = |_| ControlFlow::Continue(());
    let set = data::prepare(&args.file, args.knobs.valid.as_deref(), None, &options, &tokenizer, &mut quiet)?;
    let inspection = set.inspect(&tokenizer)?;
    println!("{inspection}");
    if args.common.json {
        println!(
            "{}",
            serde_json::json!({
                "rows": inspection.train.rows, "tokens": inspection.train.tokens,
                "trained_tokens": inspection.train.trained_tokens,
                "truncated_documents": inspection.train.truncated_documents,
                "dropped_documents": inspection.train.dropped_documents,
            })
        );
    }
    Ok(())
}

fn inspect_run(path: &Path) -> Result<(), CommandError> {
    let text = std::fs::read_to_string(path.join(crate::run::RECORD)).map_err(CommandError::run)?;
    println!("{text}");
    let checkpoint = path.join("checkpoint.bin");
    if checkpoint.exists() { inspect_checkpoint(&checkpoint) } else { Ok(()) }
}

fn inspect_checkpoint(path: &Path) -> Result<(), CommandError> {
    let found = checkpoint::open(path)?;
    println!("checkpoint {}: {:?}", path.display(), found.progress());
    for (name, dtype, shape) in found.tensors() {
        println!("  {name} : {dtype}{shape:?}");
    }
    Ok(())
}

fn inspect_model(path: &Path, knobs: &Knobs, common: &Common) -> Result<(), CommandError> {
    let model = request::open(path, knobs)?;
    let c = &model.config;
    println!(
        "{} model: {} parameters, {} blocks of width {}, {} heads over {} key/value heads of {}, feed-forward {}",
        c.family.name(),
        model.parameter_count(),
        c.layers,
        c.hidden,
        c.heads,
        c.kv_heads,
        c.head_dim,
        c.ff
    );
    println!("vocabulary {}, context {}, {} head", c.vocab, c.max_positions, if c.tied { "tied" } else { "untied" });
    for binding in model.weights.iter() {
        println!(
            "  {} : {}{:?}  {}",
            binding.name,
            binding.tensor.dtype.name(),
            binding.shape,
            show(binding.tensor.bytes)
        );
    }
    for name in model.weights.unused() {
        println!("  unused: {name}");
    }
    if common.json {
        println!("{}", serde_json::json!({ "family": c.family.name(), "parameters": model.parameter_count() }));
    }
    Ok(())
}

/// The input, every layer with its ops, and whether it can become int8.
fn inspect_onnx(path: &Path, common: &Common) -> Result<(), CommandError> {
    let model = float::read(path, &tinyforge::files::read_whole(path)?)?;
    let graph = &model.graph;
    let weights: u64 = graph.declared(Kind::Weight).map(|v| graph.ty(v).elems()).sum();
    let [h, w, c] = model.shape;
    println!("float network of {weights} numbers over samples of {h} x {w} x {c}");
    for node in &graph.nodes {
        let given: Vec<String> = node.outs.iter().map(|&v| graph.ty(v).to_string()).collect();
        println!("  {:<12} {:<16} {}", graph.blocks[node.block as usize], node.op.name(), given.join(", "));
    }
    model.files[1..].iter().for_each(|file| println!("  data in {file}"));
    model.notes.iter().for_each(|note| println!("  note: {note}"));
    let layers = quantize::observed(graph);
    match &layers {
        Ok(values) => println!("can become int8: {} values are measured", values.len()),
        Err(why) => println!("cannot become int8: {why}"),
    }
    if common.json {
        let ops = graph.nodes.len();
        println!("{}", serde_json::json!({ "parameters": weights, "ops": ops, "int8": layers.is_ok() }));
    }
    Ok(())
}

fn inspect_plan(path: &Path, common: &Common) -> Result<(), CommandError> {
    let bytes = tinyforge::files::read_whole(path)?;
    let plan = encode::decode(&bytes).map_err(|e| CommandError::request(format!("{}: {e}", path.display())))?;
    print_plan(&plan);
    if common.json {
        println!("{}", serde_json::json!({ "arena_bytes": plan.arena_bytes(), "total_bytes": plan.total_bytes() }));
    }
    Ok(())
}

/// Every stored tensor, and for every block what the training entry does there.
fn print_plan(plan: &Plan) {
    println!("plan {}: arena {} bytes, {} threads", plan.name, plan.arena_bytes(), plan.threads);
    for s in &plan.stored {
        let changes = if s.changes { ", changes" } else { "" };
        println!(
            "  {:?} {} : {}{:?} at {}{changes}",
            s.kind,
            s.name,
            s.tensor.dtype.name(),
            s.tensor.shape,
            s.tensor.offset
        );
    }
    for entry in &plan.entries {
        println!("entry {}: {} steps, peak {} bytes", entry.name, entry.steps.len(), entry.peak.bytes);
        for (b, name) in entry.blocks.iter().enumerate() {
            let of = |part| entry.steps.iter().filter(|s| s.block as usize == b && s.part == part).count();
            let saved = saved_bytes(entry, b as u32);
            let counts = [of(Part::Forward), of(Part::Backward), of(Part::Update)];
            if counts.iter().sum::<usize>() > 0 {
                let [f, back, update] = counts;
                println!("  block {name}: {f} forward, {back} backward, {update} update steps; saved {saved} bytes");
            }
        }
    }
}

/// Bytes that the forward steps of a block leave for backward steps.
pub fn saved_bytes(entry: &tinyforge_plan::Entry, block: u32) -> u64 {
    let made = entry.steps.iter().filter(|s| s.block == block && s.part == Part::Forward).flat_map(|s| &s.outs);
    let read =
        |value: u32| entry.steps.iter().any(|s| s.part != Part::Forward && s.args.iter().any(|a| a.value == value));
    let mut seen = std::collections::BTreeMap::new();
    made.filter(|t| read(t.value)).for_each(|t| {
        seen.insert(t.value, t.bytes());
    });
    seen.values().sum()
}
