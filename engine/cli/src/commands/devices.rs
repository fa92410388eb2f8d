//! `tinyforge devices`: what can run kernels here, with memory, limits and traits.

use super::Common;
use crate::error::CommandError;
use crate::fixed;
use crate::run::processor;
use crate::sizes::show;

/// Lists the devices that are here
#[derive(clap::Args, Debug)]
pub struct DevicesArgs {
    #[command(flatten)]
    common: Common,
}

/// Prints the devices, one a line with its limits below, in the words that `--device` takes.
///
/// # Errors
/// None today; the signature is every command's.
pub fn run(args: &DevicesArgs) -> Result<(), CommandError> {
    let (kernels, memory) =
        (format!("{:?}", tinyforge_kernels::f32::simd::isa()).to_lowercase(), fixed::machine_bytes());
    let bytes = memory.map_or("memory unknown".to_string(), |bytes| format!("{} of memory", show(bytes)));
    println!("cpu: {}, {bytes}, {kernels}", processor());
    let adapters = adapters();
    if adapters.is_empty() {
        println!("wgpu: {}", absent());
    }
    let cards = cards();
    if args.common.json {
        let cpu = serde_json::json!({
            "device": "cpu", "name": processor(), "memory_bytes": memory, "traits": [kernels],
        });
        let all: Vec<_> = std::iter::once(cpu).chain(adapters).chain(cards).collect();
        println!("{}", serde_json::json!({ "devices": all }));
    }
    Ok(())
}

/// Prints the cards of CUDA, or why there is none, and returns them as objects.
fn cards() -> Vec<serde_json::Value> {
    let cards = tinyforge::gpu::cuda::cards();
    if cards.is_empty() {
        let why = tinyforge::gpu::cuda::open_default().err().map_or(String::new(), |why| why.to_string());
        println!("cuda: {why}");
    }
    let list = cards.iter().enumerate().map(|(i, card)| {
        let chosen = if i == 0 { ", what --device cuda takes" } else { "" };
        let [capability, driver] = [card.capability, card.driver].map(|(major, minor)| format!("{major}.{minor}"));
        println!("cuda: {} (compute capability {capability}, driver for CUDA {driver}){chosen}", card.name);
        let copies = if card.copies_overlap { "copies beside kernels" } else { "copies between kernels" };
        let (total, free) = (show(card.total_bytes), show(card.free_bytes));
        println!("  {total} of memory, {free} free, {} multiprocessors, {copies}", card.processors);
        match &card.library {
            Ok(name) => println!("  dense products by {name}"),
            Err(why) => println!("  dense products by this program's kernels: {why}"),
        }
        serde_json::json!({
            "device": "cuda", "name": card.name, "memory_bytes": card.total_bytes, "free_bytes": card.free_bytes,
            "capability": capability, "driver": driver, "multiprocessors": card.processors, "traits": [copies],
            "library": card.library.as_ref().ok(),
        })
    });
    list.collect()
}

/// Prints the adapters of wgpu and returns them as objects. How much memory they have wgpu does not tell.
#[cfg(feature = "wgpu")]
fn adapters() -> Vec<serde_json::Value> {
    let list = tinyforge::gpu::wgpu::adapters().iter().enumerate().map(|(i, a)| {
        let chosen = if i == 0 { ", what --device wgpu takes" } else { "" };
        println!("wgpu: {} ({} by {}, driver {}){chosen}", a.name, a.kind, a.backend, a.driver);
        let (least, most) = a.subgroup;
        let subgroup = if least == most { most.to_string() } else { format!("{least} to {most}") };
        println!(
            "  buffers to {}, operands to {}, workgroups with {} of memory, subgroups of {subgroup}",
            show(a.buffer_bytes_max),
            show(a.operand_bytes_max),
            show(a.workgroup_bytes.into()),
        );
        println!("  {}", a.traits.join(", "));
        let cooperative = a.cooperative().map_or_else(|why| why.to_string(), |found| found.to_string());
        println!("  cooperative matrices: {cooperative}");
        serde_json::json!({
            "device": "wgpu", "name": a.name, "backend": a.backend, "kind": a.kind, "driver": a.driver,
            "buffer_bytes_max": a.buffer_bytes_max, "operand_bytes_max": a.operand_bytes_max,
            "workgroup_bytes": a.workgroup_bytes, "subgroup": [a.subgroup.0, a.subgroup.1], "traits": a.traits,
            "cooperative_matrices": cooperative,
        })
    });
    list.collect()
}

#[cfg(feature = "wgpu")]
fn absent() -> String {
    match tinyforge::gpu::wgpu::default_adapter() {
        Ok(adapter) => adapter.name.clone(),
        Err(why) => why.to_string(),
    }
}

#[cfg(not(feature = "wgpu"))]
fn adapters() -> Vec<serde_json::Value> {
    Vec::new()
}

#[cfg(not(feature = "wgpu"))]
fn absent() -> String {
    "this program was built without the feature `wgpu`".to_string()
}
