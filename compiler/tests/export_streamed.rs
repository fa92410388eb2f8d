//! A streamed plan's page: every copy is on it, what is drawn is what the plan says, and lanes are lanes.

use std::collections::BTreeSet;
use tinyforge_compiler::compile::{Entry, Request, Role, compile};
use tinyforge_compiler::cost;
use tinyforge_compiler::export::copies::stays;
use tinyforge_compiler::export::html::times::times;
use tinyforge_compiler::export::html::{self, escaped};
use tinyforge_compiler::export::lives::{Role as Use, lanes};
use tinyforge_compiler::import::decoder::{Mode, program};
use tinyforge_compiler::import::hf;
use tinyforge_compiler::machine::Machine;
use tinyforge_compiler::passes::pipeline::Window;
use tinyforge_compiler::passes::update::Optimizer;
use tinyforge_compiler::scheme::Scheme;
use tinyforge_plan::{DType, Direction, Kernels, Number, Plan, Shape, check};

/// Kernels that need no scratch.
struct NoScratch;

impl Kernels for NoScratch {
    fn scratch_bytes(&self, _: &str, _: &[Shape], _: &[Shape], _: &[(String, Number)]) -> Result<u64, String> {
        Ok(0)
    }
}

const LAYERS: usize = 6;

/// A small decoder of which `window` blocks are near.
fn plan(scheme: &str, window: u32) -> Plan {
    plan_updated(scheme, window, false)
}

/// The same; the host may update what streams.
fn plan_updated(scheme: &str, window: u32, host_updates: bool) -> Plan {
    let config = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": {LAYERS}, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "eos_token_id": 0}}"#
    );
    let config = hf::config(config.as_bytes()).expect("a configuration");
    let graph = || program(&config, Mode::Loss { rows: 2, seq: 8 }, 0, &|_| DType::F32).inline();
    let entry = |name: &str, role| Entry { name: name.to_string(), graph: graph(), role };
    let compiled = compile(&Request {
        scheme: Scheme::parse(scheme).expect("a scheme"),
        optimizer: Optimizer::plain("adamw"),
        window: Some(Window::whole(window, 1)),
        host_updates,
        host_bytes_max: if host_updates { u64::MAX } else { 0 },
        ..Request::plain(
            "small <b> & \"wide\"",
            vec![entry("train", Role::Train { micro_batches: 1 }), entry("eval", Role::Forward)],
            &NoScratch,
        )
    });
    let plan = compiled.expect("it compiles").plan;
    assert_eq!(check::check(&plan), Vec::<String>::new());
    assert!(plan.entries.iter().all(|e| !e.transfers.is_empty()));
    plan
}

fn plans() -> [Plan; 3] {
    [plan("lora", 4), plan("full", 2), plan("last:2", 1)]
}

fn machine() -> Machine {
    Machine::parse(
        "name = \"desk <1>\"\nfigures = \"made up\"\nnear = \"ram\"\n[rates]\nf32 = 1e9\nnear_bytes_per_second = 1e9\n\
         optimizer_bytes_per_second = 1e9\n[[space]]\nname = \"ram\"\n[[space]]\nname = \"disk\"\n\
         [[link]]\nfrom = \"disk\"\nto = \"ram\"\nbytes_per_second = 5e7\n\
         [[link]]\nfrom = \"ram\"\nto = \"disk\"\nbytes_per_second = 2e7\n",
    )
    .expect("a machine")
}

#[test]
fn stays_hold_what_steps_read_and_transfers_bring() {
    for plan in plans() {
        for entry in &plan.entries {
            let stays = stays(&plan, entry);
            let holds = |stored: u32, near: u64, step: u32| {
                let during = stays.iter().filter(|s| s.steps[0] <= step && step <= s.steps[1]);
                during.filter(|s| s.copies.contains(&(stored, near))).count()
            };
            for (i, step) in entry.steps.iter().enumerate() {
                for arg in &step.args {
                    let found = plan.stored.iter().position(|s| s.tensor.value == arg.value && plan.is_far(&s.tensor));
                    if let Some(stored) = found {
                        assert_eq!(holds(stored as u32, arg.offset, i as u32), 1, "step {i} of {}", entry.name);
                    }
                }
            }
            let last = entry.steps.len() as u32 - 1;
            for r in &entry.residents {
                assert_eq!([0, last].map(|step| holds(r.stored, r.near_byte, step)), [1, 1], "{r:?}");
            }
            let come: usize = stays.iter().filter(|s| s.comes.is_some()).map(|s| s.copies.len()).sum();
            assert_eq!(come, entry.transfers.iter().filter(|t| t.direction == Direction::In).count());
            let goes = entry.transfers.iter().any(|t| t.direction == Direction::Out);
            assert_eq!(stays.iter().any(|s| !s.goes.is_empty()), goes);
        }
    }
}

#[test]
fn copies_lie_apart_from_all_else_of_their_time() {
    let mut roles = BTreeSet::new();
    for plan in plans() {
        for entry in &plan.entries {
            let lanes = lanes(&plan, entry);
            let near = lanes.last().expect("a near space");
            roles.extend(near.slots.iter().map(|s| s.role));
            for a in near.slots.iter().filter(|s| s.role == Use::Copy) {
                for b in &near.slots {
                    let is_one_time = a.steps[0] < b.steps[1] && b.steps[0] < a.steps[1];
                    let overlap = a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
                    assert!(a == b || !(is_one_time && overlap), "{}: {a:?} {b:?}", entry.name);
                }
            }
        }
    }
    assert!(roles.contains(&Use::Copy));
}

#[test]
fn lanes_carry_one_thing_at_a_time_inside_its_window() {
    let machine = machine();
    for plan in plans() {
        for entry in &plan.entries {
            for machine in [None, Some(&machine)] {
                let times = times(&plan, entry, machine);
                assert_eq!(times.in_units.is_none(), machine.is_some(), "{:?}", times.in_units);
                let events = cost::events(&plan, entry);
                assert_eq!((times.steps.len(), times.events.len()), (entry.steps.len(), events.len()));
                assert!(events.iter().flat_map(Clone::clone).eq(0..entry.transfers.len()));
                assert!(times.steps.windows(2).all(|pair| pair[0].end_s <= pair[1].start_s));
                let started = |step: u32| times.steps.get(step as usize).map_or(times.end, |s| s.start_s);
                let ended = |step: u32| (step as usize).checked_sub(1).map_or(0.0, |i| times.steps[i].end_s);
                let mut free = [0.0; 2];
                for (event, span) in events.iter().zip(&times.events) {
                    let first = &entry.transfers[event.start];
                    let free = &mut free[usize::from(first.direction == Direction::Out)];
                    assert!(span.start_s >= *free && span.end_s >= span.start_s, "{span:?} at {free}");
                    assert!(span.start_s >= ended(first.begins) && span.end_s <= started(first.ends) + 1e-9);
                    *free = span.end_s;
                }
            }
        }
    }
}

#[test]
fn what_the_host_does_has_a_lane_of_its_own() {
    let card = Machine::parse(
        "name = \"card\"\nfigures = \"made up\"\nnear = \"vram\"\n[rates]\nf32 = 1e9\n\
         near_bytes_per_second = 1e9\noptimizer_bytes_per_second = 1e8\n[[space]]\nname = \"vram\"\n\
         [[space]]\nname = \"pinned\"\n[[space]]\nname = \"disk\"\n\
         [[link]]\nfrom = \"pinned\"\nto = \"vram\"\nbytes_per_second = 5e7\n\
         [[link]]\nfrom = \"vram\"\nto = \"pinned\"\nbytes_per_second = 2e7\n\
         [[link]]\nfrom = \"disk\"\nto = \"pinned\"\nbytes_per_second = 1e7\n\
         [[link]]\nfrom = \"pinned\"\nto = \"disk\"\nbytes_per_second = 1e7\n",
    );
    let card = card.expect("a machine");
    for host_updates in [false, true] {
        let plan = plan_updated("full", 2, host_updates);
        let train = &plan.entries[0];
        let of_host = plan.host_steps(train);
        assert_eq!(!of_host.is_empty(), host_updates);
        let times = times(&plan, train, Some(&card));
        let is_beside = |&i: &u32| {
            let (own, steps) = (times.steps[i as usize], train.steps.iter().zip(&times.steps));
            steps.clone().any(|(s, span)| !plan.is_on_host(s) && span.start_s < own.end_s && own.start_s < span.end_s)
        };
        assert_eq!(of_host.iter().any(is_beside), host_updates, "nothing is beside backward");
        let page = html::export(&html::Request { plan: &plan, hash: None, limits: &[], machine: Some(&card) });
        assert_eq!(page.matches(">host</text>").count(), usize::from(host_updates));
    }
}

#[test]
fn every_transfer_and_every_stay_is_on_the_page() {
    let machine = machine();
    for plan in plans() {
        for machine in [None, Some(&machine)] {
            let page = html::export(&html::Request { plan: &plan, hash: None, limits: &[], machine });
            assert!(page.contains("small &lt;b&gt; &amp; &quot;wide&quot;") && !page.contains("<b>"));
            assert_eq!(page.contains("desk &lt;1&gt;"), machine.is_some());
            for outside in ["http:", "https:", "src=", "@import", "url("] {
                assert!(!page.contains(outside), "{outside}");
            }
            for tag in ["svg", "g ", "section", "table", "div", "text", "title"] {
                let closed = format!("</{}>", tag.trim());
                assert_eq!(page.matches(&format!("<{tag}")).count(), page.matches(&closed).count(), "{tag}");
            }
            let sections: Vec<&str> = page.split("<section><h2>").collect();
            for entry in &plan.entries {
                let start = format!("{}</h2><p>{} steps", escaped(&entry.name), entry.steps.len());
                let section = sections.iter().find(|s| s.starts_with(&start)).expect("a section");
                // A block with parts in several far spaces has a row in each.
                let far = |stored: u32| plan.space_of(plan.stored[stored as usize].tensor.offset).map(|s| s.first_byte);
                let spaces = |copies: &[(u32, u64)]| copies.iter().map(|c| far(c.0)).collect::<BTreeSet<_>>().len();
                let bars: usize = stays(&plan, entry).iter().map(|s| spaces(&s.copies)).sum();
                assert_eq!(section.matches("<g class=\"stay\">").count(), bars, "{}", entry.name);
                let (_, lanes) = section.split_once("<h3>Time</h3>").expect("a time line");
                let counts = |class: &str| -> usize {
                    let start = format!("<rect class=\"bar {class}\"");
                    let bars = lanes.split(&start).skip(1);
                    let count = |bar: &str| bar.split("data-count=\"").nth(1)?.split('"').next()?.parse::<usize>().ok();
                    bars.map(|bar| count(bar).expect("a number")).sum()
                };
                let moved = |way| entry.transfers.iter().filter(|t| t.direction == way).count();
                assert_eq!(counts("comes"), moved(Direction::In));
                assert_eq!(counts("goes"), moved(Direction::Out));
                let steps: usize = ["forward", "backward", "update"].map(counts).iter().sum();
                assert_eq!(steps, entry.steps.len());
                for t in &entry.transfers {
                    let stored = &plan.stored[t.stored as usize];
                    let line = format!("\n{}: {} B", escaped(&stored.name), stored.tensor.bytes());
                    assert!(lanes.contains(&line), "{line}");
                }
            }
        }
    }
}
