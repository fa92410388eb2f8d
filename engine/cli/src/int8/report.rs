//! What a plan for a microcontroller looks like to a person.

use super::planning::flash_bytes;
use crate::sizes::show;
use serde_json::{Value, json};
use std::fmt::Write;
use tinyforge_compiler::import::int8::Int8Model;
use tinyforge_plan::{Plan, Stored, StoredKind};

/// Bytes of SRAM by use: `(use, bytes)`, the arena's rest last.
fn uses(plan: &Plan) -> Vec<(&'static str, u64)> {
    let near = plan.spaces.last().map_or(0, |s| s.first_byte);
    let of = |is: &dyn Fn(&Stored) -> bool| plan.stored_bytes(|s| s.tensor.offset >= near && is(s));
    let weights = of(&|s| s.kind != StoredKind::State);
    let sums = of(&Stored::is_gradient_sum);
    let states = of(&|s| s.kind == StoredKind::State) - sums;
    let rest = plan.near_bytes() - weights - states - sums;
    vec![("trained weights", weights), ("optimizer state", states), ("gradient sums", sums), ("activations", rest)]
}

/// A plan in words.
pub fn words(plan: &Plan, model: &Int8Model, hash: u64, limits: [u64; 2]) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "plan {}: {hash:016x}", plan.name);
    let total = plan.total_bytes();
    let _ = writeln!(out, "  sram   {total:>9} bytes  ({} of {})", show(total), show(limits[0]));
    for (name, bytes) in uses(plan) {
        let _ = writeln!(out, "    {name:<16} {bytes:>9} bytes");
    }
    for part in &plan.fixed {
        let _ = writeln!(out, "    {:<16} {:>9} bytes", part.name, part.bytes);
    }
    let flash = flash_bytes(plan);
    let _ =
        writeln!(out, "  flash  {flash:>9} bytes of weights and constants ({} of {})", show(flash), show(limits[1]));
    let near = plan.spaces.last().map_or(0, |s| s.first_byte);
    for entry in &plan.entries {
        let peak = &entry.peak;
        let at = entry.steps.get(peak.step as usize).map_or(String::new(), |s| format!("{} {}", s.kernel, s.label));
        let macs: u64 = entry.steps.iter().filter(|s| is_product(&s.kernel)).map(|s| s.flops / 2).sum();
        let _ = writeln!(
            out,
            "  {}: peak {} bytes at step {} of {} ({at}), {:.2} M multiply-accumulates",
            entry.name,
            peak.bytes - near,
            peak.step,
            entry.steps.len(),
            macs as f64 / 1e6
        );
        let held: Vec<String> = peak.holders.iter().take(5).map(|h| format!("{} {}", h.name, show(h.bytes))).collect();
        let _ = writeln!(out, "    held there: {}", held.join(", "));
    }
    let dead = model.dead_channels().count();
    if dead > 0 {
        let _ = writeln!(out, "  {dead} channels carry nothing and are frozen");
    }
    for note in &model.notes {
        let _ = writeln!(out, "  note: {note}");
    }
    out
}

/// Whether a kernel's operations are multiply-accumulates.
fn is_product(kernel: &str) -> bool {
    kernel.contains("conv2d") || kernel.contains("depthwise") || kernel.contains("bottleneck")
}

/// The same as JSON.
pub fn json(plan: &Plan, hash: u64) -> Value {
    let uses: serde_json::Map<String, Value> =
        uses(plan).into_iter().map(|(name, bytes)| (name.replace(' ', "_"), bytes.into())).collect();
    json!({
        "plan": format!("{hash:016x}"), "sram_bytes": plan.total_bytes(), "arena_bytes": plan.near_bytes(),
        "flash_bytes": flash_bytes(plan), "uses": uses,
    })
}
