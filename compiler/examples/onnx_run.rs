//! Runs a float ONNX network by the reference interpreter: slow, and the meaning of the program.
//!
//! ```text
//! onnx_run MODEL.onnx INPUT OUTPUT
//! ```
//! INPUT holds f32 images `[C,H,W]` one after another, OUTPUT gets the f32 results.

use std::error::Error;
use std::fs;
use std::path::Path;

use tinyforge_compiler::import::onnx;
use tinyforge_compiler::ir::graph::Kind;
use tinyforge_compiler::ir::ops::Tensor;
use tinyforge_compiler::ir::reference::Memory;
use tinyforge_compiler::ir::verify::verify;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, input, output] = &args[..] else { return Err("onnx_run MODEL INPUT OUTPUT".into()) };
    let beside = |name: &str| Path::new(path).with_file_name(name);
    let len_of = |name: &str| fs::metadata(beside(name)).ok().map(|m| m.len());
    let file = fs::read(path)?;
    let model = onnx::import(&file, path, &len_of, 1)?;
    model.notes.iter().for_each(|note| eprintln!("{note}"));
    let mut files = vec![file];
    for name in &model.files[1..] {
        files.push(fs::read(beside(name))?);
    }
    let graph = &model.graph;
    let findings = verify(graph);
    if !findings.is_empty() {
        return Err(format!("{findings:?}").into());
    }
    let result = graph.result("output").ok_or("no result")?;
    let images = graph.find("images").ok_or("no input")?;
    let mut memory = Memory::run(graph, |v| match graph.info(v).decl {
        Some(Kind::Input) => Tensor::zeros(graph.ty(v)),
        _ => model.contents(v, &files).unwrap_or_else(|| panic!("`{}` has no contents", graph.info(v).name)),
    });
    let mut results = Vec::new();
    for image in fs::read(input)?.chunks_exact(graph.ty(images).bytes() as usize) {
        let mut x = Tensor::zeros(graph.ty(images));
        let numbers = image.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        x.data = numbers.collect();
        memory.set(images, x);
        memory.step(graph);
        results.extend(memory.get(result).data.iter().flat_map(|&y| (y as f32).to_le_bytes()));
    }
    fs::write(output, &results)?;
    Ok(())
}
