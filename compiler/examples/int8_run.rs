//! Runs an int8 model by the reference interpreter: slow, and the meaning of the program.
//!
//! ```text
//! int8_run MODEL.tflite INPUT OUTPUT             every image of INPUT through the whole file
//! int8_run NET.json NET.safetensors INPUT OUTPUT
//! int8_run --all MODEL.tflite INPUT OUTPUT       the same, OUTPUT gets every image of the network, in its order
//! int8_run --layers MODEL.tflite INPUT OUTPUT    every layer by itself
//! ```
//! INPUT holds int8 images one after another, OUTPUT gets the int8 results. With `--layers`, INPUT holds all images of
//! the network, in its order, and OUTPUT gets the same, each layer's computed from the given ones that it reads.
//! Stdout: one JSON object about the model.

use std::error::Error;
use std::fs;

use tinyforge_compiler::import::int8::{Entry, Int8Model, LayerOp};
use tinyforge_compiler::import::{mcu, tflite};
use tinyforge_compiler::ir::graph::{Graph, Kind, Value};
use tinyforge_compiler::ir::ops::Tensor;
use tinyforge_compiler::ir::reference::Memory;
use tinyforge_compiler::ir::verify::verify;

const USAGE: &str = "int8_run [--all|--layers] MODEL [WEIGHTS] INPUT OUTPUT";

fn main() -> Result<(), Box<dyn Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let flag = args.first().filter(|arg| arg.starts_with("--")).cloned();
    args.drain(..usize::from(flag.is_some()));
    let (model, file, input, output) = match &args[..] {
        [path, input, output] => {
            let file = fs::read(path)?;
            (tflite::import(&file, path)?, file, input, output)
        }
        [json, weights, input, output] => {
            let file = fs::read(weights)?;
            (mcu::import(&fs::read(json)?, &file, weights)?, file, input, output)
        }
        _ => return Err(USAGE.into()),
    };
    model.notes.iter().for_each(|note| eprintln!("{note}"));
    let given = fs::read(input)?;
    let results = match flag.as_deref() {
        None => run(&model, &file, &given, &[model.output])?,
        Some("--all") => run(&model, &file, &given, &(0..model.images.len() as u32).collect::<Vec<_>>())?,
        Some("--layers") => layers(&model, &file, &given)?,
        Some(_) => return Err(USAGE.into()),
    };
    fs::write(output, &results)?;
    println!("{}", about(&model));
    Ok(())
}

fn about(model: &Int8Model) -> String {
    let kind = |op: &LayerOp| match op {
        LayerOp::Reshape => "reshape",
        _ => "layer",
    };
    let layers: Vec<String> = model
        .layers
        .iter()
        .map(|l| format!("{{\"kind\":{:?},\"inputs\":{:?},\"output\":{}}}", kind(&l.op), l.inputs, l.output))
        .collect();
    let elems: Vec<u64> = model.images.iter().map(|i| i.elems()).collect();
    let (input, output, dead) = (model.input(), model.result(), model.dead_channels().count());
    let logits = model.head().map_or(model.output, |at| model.layers[at].output);
    format!(
        "{{\"input\":{:?},\"output\":{:?},\"result\":{},\"logits\":{logits},\"images\":{elems:?},\"layers\":[{}],\
         \"dead_channels\":{dead}}}",
        input.shape,
        output.shape,
        model.output,
        layers.join(",")
    )
}

/// The model's program, verified.
fn program(model: &Int8Model) -> Result<Graph, Box<dyn Error>> {
    let graph = model.graph(Entry::Whole, 1)?;
    let findings = verify(&graph);
    if findings.is_empty() { Ok(graph) } else { Err(format!("{findings:?}").into()) }
}

fn stored(model: &Int8Model, graph: &Graph, v: Value, file: &[u8]) -> Tensor {
    match graph.info(v).decl {
        Some(Kind::Input) => Tensor::zeros(graph.ty(v)),
        _ => model.contents(graph, v, file, 0).unwrap_or_else(|| panic!("`{}` has no source", graph.info(v).name)),
    }
}

/// Every layer by itself.
fn layers(model: &Int8Model, file: &[u8], given: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let sample = usize::try_from(model.images.iter().map(|i| i.elems()).sum::<u64>())?;
    if !given.len().is_multiple_of(sample) {
        return Err(format!("{} bytes are not whole samples of {sample}", given.len()).into());
    }
    let mut results = Vec::new();
    for sample in given.chunks_exact(sample) {
        let sample: Vec<i8> = sample.iter().map(|&b| b as i8).collect();
        results.extend(model.layerwise(file, &sample)?.into_iter().map(|y| y as u8));
    }
    Ok(results)
}

/// The images `wanted` of the network over every input.
fn run(model: &Int8Model, file: &[u8], images: &[u8], wanted: &[u32]) -> Result<Vec<u8>, Box<dyn Error>> {
    let graph = program(model)?;
    let elems = usize::try_from(model.input().elems())?;
    if !images.len().is_multiple_of(elems) {
        return Err(format!("{} bytes are not whole images of {elems}", images.len()).into());
    }
    let name = |&i: &u32| graph.find(&model.images[i as usize].name).ok_or("an image that no result depends on");
    let wanted = wanted.iter().map(name).collect::<Result<Vec<_>, _>>()?;
    let input = graph.find("images").ok_or("no input")?;
    let mut memory = Memory::run(&graph, |v| stored(model, &graph, v, file));
    let mut results = Vec::new();
    for image in images.chunks_exact(elems) {
        let mut x = Tensor::zeros(graph.ty(input));
        x.data = image.iter().map(|&b| f64::from(b as i8)).collect();
        memory.set(input, x);
        memory.step(&graph);
        results.extend(wanted.iter().flat_map(|&v| memory.get(v).data.iter().map(|&y| y as i8 as u8)));
    }
    Ok(results)
}
