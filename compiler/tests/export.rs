//! Plans as JSON, as a graph, as a page and as a C library's sources: what they say is what the plan says.

mod mcu_file;

use std::collections::BTreeSet;
use tinyforge_compiler::compile::{Entry, Request, Role, compile};
use tinyforge_compiler::export::lives::{Role as Use, lanes, names};
use tinyforge_compiler::export::{ExportError, c, dot, html, json, rust};
use tinyforge_compiler::import::{int8, mcu};
use tinyforge_compiler::passes::parameterize::Storage;
use tinyforge_compiler::target::Target;
use tinyforge_plan::{DType, Fixed, Kernels, Number, Plan, Shape, Source};

/// Some scratch for every convolution.
struct SomeScratch;

impl Kernels for SomeScratch {
    fn scratch_bytes(&self, kernel: &str, _: &[Shape], _: &[Shape], _: &[(String, Number)]) -> Result<u64, String> {
        Ok(if kernel.starts_with("i8_conv2d") { 24 } else { 0 })
    }
}

/// A small network that trains its last three layers.
fn plan() -> Plan {
    let (structure, weights) = mcu_file::tiny();
    let model = mcu::import(structure.as_bytes(), &weights, "tiny.safetensors").expect("a network");
    let entry =
        |name: &str, kind, role| Entry { name: name.to_string(), graph: model.graph(kind, 1).expect("a graph"), role };
    let source = |name: &str| model.source(name, true).unwrap_or(Source::Zero);
    let compiled = compile(&Request {
        storage: Storage { trained: DType::I8, frozen: None },
        target: Target::CORTEX_M7,
        source: &source,
        files: model.files.clone(),
        ..Request::plain(
            "tiny <net> \"last\"",
            vec![
                entry("train", int8::Entry::Train, Role::Train { micro_batches: 1 }),
                entry("infer", int8::Entry::Infer, Role::Forward),
            ],
            &SomeScratch,
        )
    });
    let mut plan = compiled.expect("it compiles").plan;
    plan.fixed.push(Fixed { name: "stack".to_string(), bytes: 512 });
    plan
}

#[test]
fn slots_of_one_moment_lie_apart_and_inside_their_space() {
    let plan = plan();
    for entry in &plan.entries {
        let lanes = lanes(&plan, entry);
        assert_eq!(lanes.len(), plan.spaces.len());
        for lane in lanes {
            for (i, a) in lane.slots.iter().enumerate() {
                assert!(a.offset >= lane.space.first_byte && a.offset + a.bytes <= lane.space.end(), "{a:?}");
                for b in &lane.slots[..i] {
                    // A result may take the place of an operand that dies at its step.
                    let is_one_time = a.steps[0] < b.steps[1] && b.steps[0] < a.steps[1];
                    let overlap = a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
                    assert!(!(is_one_time && overlap), "{}: {a:?} {b:?}", entry.name);
                }
            }
        }
    }
}

#[test]
fn the_highest_slot_ends_at_the_planned_peak() {
    let plan = plan();
    let mut all = BTreeSet::new();
    for entry in &plan.entries {
        let lanes = lanes(&plan, entry);
        let near = lanes.last().expect("a near space");
        let top = near.slots.iter().map(|s| s.offset + s.bytes).max().unwrap_or(0);
        assert_eq!(top.next_multiple_of(u64::from(plan.align_bytes)), entry.peak.bytes.next_multiple_of(8));
        all.extend(lanes.iter().flat_map(|lane| &lane.slots).map(|s| s.role));
        let names = names(&plan, entry);
        for t in entry.steps.iter().flat_map(|s| s.args.iter().chain(&s.outs)) {
            assert!(names.get(&t.value).is_some_and(|n| !n.is_empty()), "{t:?}");
        }
    }
    // Nothing of this plan is far.
    let wanted = Use::ALL.into_iter().filter(|role| *role != Use::Copy);
    assert_eq!(all.into_iter().collect::<Vec<_>>(), wanted.collect::<Vec<_>>());
}

#[test]
fn json_says_what_the_plan_says() {
    let plan = plan();
    let read: serde_json::Value = serde_json::from_str(&json::export(&plan)).expect("JSON");
    assert_eq!(read["format"], "tinyforge-plan");
    assert_eq!(read["name"], plan.name.as_str());
    assert_eq!(read["total_bytes"], plan.total_bytes());
    for (entry, said) in plan.entries.iter().zip(read["entries"].as_array().expect("a list")) {
        assert_eq!(said["peak"]["bytes"], entry.peak.bytes);
        let steps = said["steps"].as_array().expect("a list");
        assert_eq!(steps.len(), entry.steps.len());
        for (step, said) in entry.steps.iter().zip(steps) {
            assert_eq!(said["kernel"], step.kernel.as_str());
            let offsets = said["outs"].as_array().expect("a list").iter().map(|t| t["offset"].as_u64());
            assert!(offsets.eq(step.outs.iter().map(|t| Some(t.offset))));
            assert_eq!(said["scratch"].is_null(), step.scratch_bytes == 0);
            for (name, number) in &step.attrs {
                let wanted = match number {
                    Number::Int(v) => serde_json::json!(v),
                    Number::Float(v) => serde_json::json!(v),
                };
                assert_eq!(said["attrs"][name], wanted, "{} {name}", step.label);
            }
        }
    }
    let stored = read["stored"].as_array().expect("a list");
    assert!(stored.iter().any(|s| s["changes"] == true && s["tensor"]["space"] == "sram"));
    assert!(stored.iter().any(|s| s["changes"] == false && s["tensor"]["space"] == "flash"));
}

#[test]
fn the_graph_is_whole() {
    let plan = plan();
    let text = dot::export(&plan);
    assert_eq!(text.matches('{').count(), text.matches('}').count());
    assert_eq!(text.replace("\\\"", "").matches('"').count() % 2, 0);
    let declared: BTreeSet<&str> = text
        .lines()
        .filter_map(|l| l.trim().split_once(" ["))
        .map(|(id, _)| id)
        .filter(|id| !id.contains(' '))
        .collect();
    let mut edges = 0;
    for line in text.lines().filter(|l| l.contains(" -> ")) {
        let (from, to) = line.trim().trim_end_matches(';').split_once(" -> ").expect("an edge");
        let to = to.split(" [").next().unwrap_or(to);
        assert!(declared.contains(from) && declared.contains(to), "{line}");
        edges += 1;
    }
    let steps: usize = plan.entries.iter().map(|e| e.steps.len()).sum();
    assert!(edges > steps && steps > 20, "{edges} edges, {steps} steps");
    for (e, entry) in plan.entries.iter().enumerate() {
        assert!((0..entry.steps.len()).all(|s| declared.contains(format!("e{e}s{s}").as_str())));
    }
}

#[test]
fn graphviz_reads_the_graph() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let started = Command::new("dot").arg("-Tsvg").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut dot) = started else {
        println!("skipped: graphviz is not installed");
        return;
    };
    let text = dot::export(&plan());
    dot.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let drawn = dot.wait_with_output().expect("it ends");
    assert!(drawn.status.success() && String::from_utf8_lossy(&drawn.stdout).contains("</svg>"));
}

#[test]
fn the_page_stands_alone_and_shows_every_slot() {
    let plan = plan();
    let page = html::export(&html::Request {
        plan: &plan,
        hash: Some(7),
        limits: &[("sram", 4096), ("flash", 1 << 20)],
        machine: None,
    });
    for outside in ["http:", "https:", "//cdn", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("tiny &lt;net&gt; &quot;last&quot;") && !page.contains("<net>"));
    for tag in ["svg", "section", "table", "div", "main", "details"] {
        let (opened, closed) = (format!("<{tag}"), format!("</{tag}>"));
        assert_eq!(page.matches(&opened).count(), page.matches(&closed).count(), "{tag}");
    }
    let drawn = page.matches("class=\"slot ").count();
    let near: usize = plan.entries.iter().map(|e| lanes(&plan, e).last().map_or(0, |l| l.slots.len())).sum();
    let flash = lanes(&plan, &plan.entries[0])[0].slots.len();
    assert_eq!(drawn, near + flash);
    assert_eq!(page.matches("class=\"peak-text\"").count(), plan.entries.len());
}

#[test]
fn c_sources_agree_with_their_header() {
    let plan = plan();
    let image = vec![1; plan.arena_bytes() as usize];
    let source =
        rust::export(&rust::Request { plan: &plan, image: &image, limits: [1 << 20; 2], batch: 3 }).expect("Rust");
    let request =
        c::Request { plan: &plan, source: &source, runtime: "/some where/firmware", batch: 3, units: [4, 512] };
    let files = c::export(&request).expect("C");
    let text = |name: &str| {
        let (_, bytes) = files.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("{name}"));
        String::from_utf8(bytes.clone()).expect("text")
    };
    let header = text("include/model.h");
    let said = |name: &str| header.lines().find_map(|l| l.strip_prefix(&format!("#define TINYFORGE_MODEL_{name} ")));
    assert_eq!(said("INPUT_LEN"), Some("108u"));
    assert_eq!(said("INPUT_HEIGHT"), Some("6u"));
    assert_eq!(said("CLASSES"), Some("3u"));
    assert_eq!(said("BATCH"), Some("3u"));
    assert!(source.model.contains("const BATCH: usize = 3;"), "the header's batch is the code's");
    assert_eq!(said("SRAM_BYTES"), Some(format!("{}u", plan.near_bytes()).as_str()));
    assert_eq!(said("STACK_BYTES"), Some("512u"));
    assert_eq!(said("ERASE_BYTES"), Some("512u"));
    assert_eq!(said("PLAN"), Some(format!("{:#018x}ull", source.hash).as_str()));
    assert!(text("src/lib.rs").contains(&format!("HASH == {:#018x}", source.hash)));
    assert!(text("Cargo.toml").contains("path = '/some where/firmware'"));
    assert_eq!(text("src/model.rs"), source.model);
    let units = c::export(&c::Request { units: [8, 12], ..request });
    assert_eq!(units.err(), Some(ExportError::FlashUnits { write: 8, erase: 12 }));
}
