//! Runs an int8 model by the reference interpreter: slow, and the meaning of the program.
//!
//! ```text
//! int8_run MODEL.tflite INPUT OUTPUT             every image of INPUT through the whole file
//! int8_run NET.json NET.safetensors INPUT OUTPUT
//! int8_run --layers MODEL.tflite INPUT OUTPUT    every layer by itself
//! ```
//! INPUT holds int8 images one after another, OUTPUT gets the int8 results. With `--layers`, INPUT holds all images of
//! the network, in its order, and OUTPUT gets the same, each layer's computed from the given ones that it reads.
//! Stdout: one JSON object about the model.

use std::collections::HashMap;
use std::error::Error;
use std::fs;

use tinyforge_compiler::import::int8::{Entry, Int8Model, LayerOp};
use tinyforge_compiler::import::{mcu, tflite};
use tinyforge_compiler::ir::graph::{Graph, Kind, Value};
use tinyforge_compiler::ir::ops::Tensor;
use tinyforge_compiler::ir::reference::Memory;
use tinyforge_compiler::ir::verify::verify;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let by_layer = args.first().is_some_and(|arg| arg == "--layers");
    args.drain(..usize::from(by_layer));
    let (model, file, input, output) = match &args[..] {
        [path, input, output] => {
            let file = fs::read(path)?;
            (tflite::import(&file, path)?, file, input, output)
        }
        [json, weights, input, output] => {
            let file = fs::read(weights)?;
            (mcu::import(&fs::read(json)?, &file, weights)?, file, input, output)
        }
        _ => return Err("int8_run [--layers] MODEL [WEIGHTS] INPUT OUTPUT".into()),
    };
    model.notes.iter().for_each(|note| eprintln!("{note}"));
    let given = fs::read(input)?;
    let results = if by_layer { layers(&model, &file, &given)? } else { run(&model, &file, &given)? };
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
    format!(
        "{{\"input\":{:?},\"output\":{:?},\"images\":{elems:?},\"layers\":[{}],\"dead_channels\":{dead}}}",
        input.shape,
        output.shape,
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
    let graph = program(model)?;
    let values: Vec<Value> = model.images.iter().filter_map(|i| graph.find(&i.name)).collect();
    let sample: usize = values.iter().map(|&v| graph.ty(v).elems() as usize).sum();
    if values.len() != model.images.len() || !given.len().is_multiple_of(sample) {
        return Err(format!("{} bytes are not whole samples of {sample}", given.len()).into());
    }
    let mut results = Vec::new();
    for sample in given.chunks_exact(sample) {
        let mut images: HashMap<Value, Tensor> = HashMap::new();
        let mut rest = sample;
        for &v in &values {
            let mut image = Tensor::zeros(graph.ty(v));
            let (bytes, more) = rest.split_at(image.data.len());
            image.data = bytes.iter().map(|&b| f64::from(b as i8)).collect();
            images.insert(v, image);
            rest = more;
        }
        let mut computed = images.clone();
        for node in &graph.nodes {
            let operand = |&v: &Value| images.get(&v).cloned().unwrap_or_else(|| stored(model, &graph, v, file));
            let mut operands: Vec<Tensor> = node.args.iter().map(operand).collect();
            let mut outs = vec![Tensor::zeros(graph.ty(node.outs[0]))];
            (node.op.def().eval)(&mut operands, &mut outs, &node.attrs);
            computed.insert(node.outs[0], outs.remove(0));
        }
        results.extend(values.iter().flat_map(|v| computed[v].data.iter().map(|&y| y as i8 as u8)));
    }
    Ok(results)
}

fn run(model: &Int8Model, file: &[u8], images: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let graph = program(model)?;
    let elems = usize::try_from(model.input().elems())?;
    if !images.len().is_multiple_of(elems) {
        return Err(format!("{} bytes are not whole images of {elems}", images.len()).into());
    }
    let result = graph.result("output").ok_or("no result")?;
    let input = graph.find("images").ok_or("no input")?;
    let mut memory = Memory::run(&graph, |v| stored(model, &graph, v, file));
    let mut results = Vec::new();
    for image in images.chunks_exact(elems) {
        let mut x = Tensor::zeros(graph.ty(input));
        x.data = image.iter().map(|&b| f64::from(b as i8)).collect();
        memory.set(input, x);
        memory.step(&graph);
        results.extend(memory.get(result).data.iter().map(|&y| y as i8 as u8));
    }
    Ok(results)
}
