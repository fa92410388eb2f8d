//! Runs an int8 model by the reference interpreter: slow, and the meaning of the program.
//!
//! ```text
//! int8_run MODEL.tflite INPUT OUTPUT             every image of INPUT through the whole file
//! int8_run NET.json NET.safetensors INPUT OUTPUT
//! ```
//! INPUT holds int8 images one after another, OUTPUT gets the int8 results. Stdout: one JSON object about the model.

use std::error::Error;
use std::fs;

use tinyforge_compiler::import::int8::{Entry, Int8Model};
use tinyforge_compiler::import::{mcu, tflite};
use tinyforge_compiler::ir::graph::Kind;
use tinyforge_compiler::ir::ops::Tensor;
use tinyforge_compiler::ir::reference::Memory;
use tinyforge_compiler::ir::verify::verify;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (model, file, input, output) = match &args[..] {
        [path, input, output] => {
            let file = fs::read(path)?;
            (tflite::import(&file, path)?, file, input, output)
        }
        [json, weights, input, output] => {
            let file = fs::read(weights)?;
            (mcu::import(&fs::read(json)?, &file, weights)?, file, input, output)
        }
        _ => return Err("int8_run MODEL [WEIGHTS] INPUT OUTPUT".into()),
    };
    model.notes.iter().for_each(|note| eprintln!("{note}"));
    let results = run(&model, &file, &fs::read(input)?)?;
    fs::write(output, &results)?;
    println!(
        "{{\"input\":{:?},\"input_scale\":{:?},\"input_zero\":{},\"output\":{:?},\"output_scale\":{:?},\"output_zero\":{},\
         \"layers\":{},\"dead_channels\":{}}}",
        model.input().shape,
        model.input().quant.scale,
        model.input().quant.zero,
        model.result().shape,
        model.result().quant.scale,
        model.result().quant.zero,
        model.layers.len(),
        model.dead_channels().count()
    );
    Ok(())
}

fn run(model: &Int8Model, file: &[u8], images: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let graph = model.graph(Entry::Whole, 1)?;
    let findings = verify(&graph);
    if !findings.is_empty() {
        return Err(format!("{findings:?}").into());
    }
    let elems = usize::try_from(model.input().elems())?;
    if !images.len().is_multiple_of(elems) {
        return Err(format!("{} bytes are not whole images of {elems}", images.len()).into());
    }
    let result = graph.result("output").ok_or("no result")?;
    let input = graph.find("images").ok_or("no input")?;
    let mut memory = Memory::run(&graph, |v| match graph.info(v).decl {
        Some(Kind::Input) => Tensor::zeros(graph.ty(v)),
        _ => model.contents(&graph, v, file, 0).unwrap_or_else(|| panic!("`{}` has no source", graph.info(v).name)),
    });
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
