//! A plan as JSON, for programs: all that the plan's bytes say but the numbers of tables.
//!
//! ```json
//! { "format": "tinyforge-plan", "version": 1,
//!   "name": "net last:1", "align_bytes": 8, "threads": 1,
//!   "total_bytes": 9000,                      near memory in all: arena and fixed parts
//!   "spaces": [{ "name", "first_byte", "bytes", "is_written", "is_far", "is_host" }],  the last is near
//!   "fixed": [{ "name", "bytes" }],           parts of the near memory outside the arena
//!   "files": ["net.safetensors"],
//!   "stored": [{ "name", "kind", "changes", "source", "tensor" }],    kind: weight, state or const
//!   "entries": [{ "name", "flops", "blocks": ["layers.0"],
//!     "inputs": [{ "name", "tensor" }], "results": [{ "name", "tensor" }],
//!     "peak": { "bytes", "lower_bound_bytes", "step", "holders": [{ "name", "bytes" }] },
//!     "steps": [{ "kernel", "label", "block", "part", "args": [tensor], "outs": [tensor], "changes",
//!                 "attrs": { "stride_h": 1 }, "scratch": { "offset", "bytes" } or null, "flops" }] }] }
//! ```
//!
//! A tensor is `{ "value", "name", "dtype", "shape", "space", "offset", "bytes" }`. Offsets and peaks are addresses
//! over all spaces; what lies in a space starts at its `first_byte`. Equal `value`s are equal contents. `block` is the
//! block's name, `part` is forward, backward or update, `changes` counts the leading operands that are changed in
//! place. A source is `{ "kind", ... }` with `file`, `offset` and `dtype` where it lies in a file. A field may be
//! added; one that is removed or means something else makes another version.

use super::lives;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tinyforge_plan::{Entry, Named, Number, Part, Plan, Source, Step, StoredKind, Tensor};

/// The version of the form.
pub const VERSION: u32 = 1;

/// The plan as one line of JSON.
pub fn export(plan: &Plan) -> String {
    let entries: Vec<Value> = plan.entries.iter().map(|e| entry(plan, e)).collect();
    let spaces: Vec<Value> = plan
        .spaces
        .iter()
        .map(|s| {
            json!({
                "name": s.name, "first_byte": s.first_byte, "bytes": s.bytes, "is_written": s.is_written,
                "is_far": s.is_far, "is_host": s.is_host,
            })
        })
        .collect();
    let fixed: Vec<Value> = plan.fixed.iter().map(|f| json!({ "name": f.name, "bytes": f.bytes })).collect();
    let stored: Vec<Value> = plan
        .stored
        .iter()
        .map(|s| {
            json!({
                "name": s.name, "kind": kind(s.kind), "changes": s.changes, "source": source(&s.source),
                "tensor": tensor(plan, &s.tensor, &s.name),
            })
        })
        .collect();
    json!({
        "format": "tinyforge-plan", "version": VERSION, "name": plan.name, "align_bytes": plan.align_bytes,
        "threads": plan.threads, "total_bytes": plan.total_bytes(), "spaces": spaces, "fixed": fixed,
        "files": plan.files, "stored": stored, "entries": entries,
    })
    .to_string()
}

fn kind(kind: StoredKind) -> &'static str {
    match kind {
        StoredKind::Weight => "weight",
        StoredKind::State => "state",
        StoredKind::Const => "const",
    }
}

/// The word for a part of a step.
pub(super) fn part(part: Part) -> &'static str {
    match part {
        Part::Forward => "forward",
        Part::Backward => "backward",
        Part::Update => "update",
    }
}

fn source(source: &Source) -> Value {
    match source {
        Source::Zero => json!({ "kind": "zero" }),
        Source::File { file, offset, dtype, transpose } => {
            json!({ "kind": "file", "file": file, "offset": offset, "dtype": dtype.name(), "transpose": transpose })
        }
        Source::Permuted { file, offset, dtype, shape, axes } => {
            json!({
                "kind": "file", "file": file, "offset": offset, "dtype": dtype.name(), "shape": shape, "axes": axes,
            })
        }
        Source::Bytes(bytes) => json!({ "kind": "bytes", "bytes": bytes.len() }),
        Source::Table(values) => json!({ "kind": "table", "values": values.len() }),
        Source::Uniform { bound } => json!({ "kind": "uniform", "bound": bound }),
        Source::Normal { std } => json!({ "kind": "normal", "std": std }),
        Source::Fill(value) => json!({ "kind": "fill", "value": value }),
        Source::TopColumns { of, scale } => json!({ "kind": "top_columns", "of": of, "scale": scale }),
    }
}

fn tensor(plan: &Plan, t: &Tensor, name: &str) -> Value {
    json!({
        "value": t.value, "name": name, "dtype": t.dtype.name(), "shape": t.shape,
        "space": plan.space_of(t.offset).map(|s| s.name.as_str()), "offset": t.offset, "bytes": t.bytes(),
    })
}

fn entry(plan: &Plan, entry: &Entry) -> Value {
    let names = lives::names(plan, entry);
    let named = |all: &[Named]| -> Vec<Value> {
        all.iter().map(|n| json!({ "name": n.name, "tensor": tensor(plan, &n.tensor, &n.name) })).collect()
    };
    let holders: Vec<Value> = entry.peak.holders.iter().map(|h| json!({ "name": h.name, "bytes": h.bytes })).collect();
    let steps: Vec<Value> = entry.steps.iter().map(|s| step(plan, entry, s, &names)).collect();
    json!({
        "name": entry.name, "flops": entry.flops(), "blocks": entry.blocks,
        "inputs": named(&entry.inputs), "results": named(&entry.results),
        "peak": {
            "bytes": entry.peak.bytes, "lower_bound_bytes": entry.peak.lower_bound_bytes, "step": entry.peak.step,
            "holders": holders,
        },
        "steps": steps,
    })
}

fn step(plan: &Plan, entry: &Entry, step: &Step, names: &BTreeMap<u32, String>) -> Value {
    let list = |tensors: &[Tensor]| -> Vec<Value> {
        tensors.iter().map(|t| tensor(plan, t, names.get(&t.value).map_or("", String::as_str))).collect()
    };
    let number = |n: &Number| match n {
        Number::Int(v) => json!(v),
        Number::Float(v) => json!(v),
    };
    let attrs: Map<String, Value> = step.attrs.iter().map(|(name, n)| (name.clone(), number(n))).collect();
    let scratch =
        (step.scratch_bytes > 0).then(|| json!({ "offset": step.scratch_offset, "bytes": step.scratch_bytes }));
    json!({
        "kernel": step.kernel, "label": step.label, "block": entry.blocks.get(step.block as usize),
        "part": part(step.part), "args": list(&step.args), "outs": list(&step.outs), "changes": step.changes,
        "attrs": attrs, "scratch": scratch, "flops": step.flops,
    })
}
