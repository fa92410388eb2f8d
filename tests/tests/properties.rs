//! Random graphs, texts and bytes: what passes leave means the same, what is damaged is refused or read, never a
//! panic, and every fault planted in a plan is found.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tinyforge::cpu::CpuKernels;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge_compiler::compile::{Entry, Recompute, Request, Role, compile};
use tinyforge_compiler::ir::graph::{Graph, Value};
use tinyforge_compiler::ir::ops::Tensor;
use tinyforge_compiler::ir::text::{parse_graph, print_graph};
use tinyforge_compiler::passes::update::ClipBy;
use tinyforge_compiler::passes::{differentiate, fuse, order, recompute};
use tinyforge_plan::check::check;
use tinyforge_plan::encode::{DecodeError, crc32, decode, encode};
use tinyforge_plan::{DType, Fixed, Plan, Step};
use tinyforge_tests::generate::{contents, damaged_text, graph};
use tinyforge_tests::graphs::{assert_close, assert_text_is_graph, run_named};
use tinyforge_tests::random::Random;
use tinyforge_tests::script::{Stages, ladder_steps, optimizer};
use tinyforge_tests::storage::{load, store};

/// How many random graphs each test looks at.
const GRAPHS: u64 = 40;

/// Results and changed tensors, by name.
fn outcome(graph: &Graph) -> BTreeMap<String, Tensor> {
    let memory = run_named(graph, |name| contents(name, graph.ty(graph.find(name).expect("declared"))));
    let changes = |v: &Value| graph.nodes.iter().any(|n| n.args[..(n.op.def().mutates)(&n.attrs)].contains(v));
    let changed = (0..graph.values.len() as u32).map(Value).filter(changes);
    let changed = changed.map(|v| (graph.info(v).name.clone(), memory.get(v).clone()));
    changed.chain(graph.results.iter().map(|(name, v)| (name.clone(), memory.get(*v).clone()))).collect()
}

fn staged(graph: &Graph, script: &str) -> Graph {
    let mut stages = Stages::new(graph.clone());
    stages.run(script).unwrap_or_else(|e| panic!("{script}: {e}\n{}", print_graph(graph)));
    stages.graph
}

fn assert_near(what: &str, found: &BTreeMap<String, Tensor>, wanted: &BTreeMap<String, Tensor>, relative: f64) {
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{what}");
    found.iter().for_each(|(n, t)| assert_close(&format!("{what}: {n}"), &t.data, &wanted[n].data, relative, 1e-6));
}

#[test]
fn passes_keep_the_meaning_of_random_graphs() {
    for seed in 0..GRAPHS {
        let graph = graph(seed);
        assert_text_is_graph(&graph);
        let plain = outcome(&staged(&graph, "differentiate"));
        let fused = staged(&graph, "differentiate, fuse");
        let what = format!("graph {seed}:\n{}", print_graph(&graph));
        let wanted = outcome(&fused);
        assert_near(&what, &wanted, &plain, 1e-9);
        let steps = ladder_steps(&fused);
        for step in (0..=steps).step_by((steps as usize / 8).max(1)).chain([steps]) {
            let script = format!("differentiate, fuse, recompute({step}), order");
            assert!(outcome(&staged(&graph, &script)) == wanted, "{what}step {step} of {steps} changes results");
        }
    }
}

#[test]
fn updates_of_random_graphs_do_not_depend_on_the_order() {
    for seed in 0..GRAPHS {
        let graph = graph(seed);
        let front = "differentiate, fuse, update(adamw, clip=0.5, weight_decay=0.1)";
        let wanted = outcome(&staged(&graph, front));
        let second = front.replace("clip=0.5", "clip=0.5, second");
        for script in [
            format!("{front}, fuse_update, recompute(all), order"),
            format!("{second}, fuse_update, recompute(all), order"),
        ] {
            let found = outcome(&staged(&graph, &script));
            assert_near(&format!("graph {seed}, {script}\n{}", print_graph(&graph)), &found, &wanted, 1e-12);
        }
    }
}

struct Training {
    recompute: Recompute,
    clip_by: ClipBy,
    threads: u32,
    micro_batches: u32,
}

const PLAIN: Training =
    Training { recompute: Recompute::Nothing, clip_by: ClipBy::Keeping, threads: 1, micro_batches: 1 };

fn train_plan(graph: &Graph, training: &Training) -> Plan {
    let mut optimizer = optimizer("adamw");
    optimizer.clip = Some(0.5);
    let kernels = CpuKernels { threads: training.threads };
    let request = Request {
        optimizer,
        clip_by: Some(training.clip_by),
        recompute: training.recompute,
        threads: training.threads,
        ..Request::plain(
            "random",
            vec![Entry {
                name: "train".to_string(),
                graph: graph.clone(),
                role: Role::Train { micro_batches: training.micro_batches },
            }],
            &kernels,
        )
    };
    compile(&request).unwrap_or_else(|e| panic!("{e}\n{}", print_graph(graph))).plan
}

/// Bytes of the losses and of the stored tensors after a step.
fn step(plan: &Plan) -> BTreeMap<String, Vec<u8>> {
    let mut runner = Runner::new(plan.clone(), RunOptions::default()).expect("a compiled plan runs");
    runner.arena_mut().bytes_mut().fill(0xff);
    let stored = plan.stored.iter().map(|s| (s.name.as_str(), &s.tensor));
    for (name, tensor) in stored {
        let ty = tinyforge_compiler::ir::types::Type::new(tensor.dtype, &tensor.shape);
        runner.arena_mut().tensor_mut(tensor).copy_from_slice(&store(tensor.dtype, &contents(name, &ty).data).0);
    }
    for (i, entry) in plan.entries.iter().enumerate() {
        for input in &entry.inputs {
            let ty = tinyforge_compiler::ir::types::Type::new(input.tensor.dtype, &input.tensor.shape);
            let bytes = store(input.tensor.dtype, &contents(&input.name, &ty).data).0;
            runner.arena_mut().tensor_mut(&input.tensor).copy_from_slice(&bytes);
        }
        runner.run(i).expect("nothing in the contents is refused");
    }
    let loss = plan.entries[0].result("loss").expect("the graph has losses");
    let mut found = BTreeMap::new();
    if plan.entries.len() == 1 {
        found.insert("loss".to_string(), runner.arena().tensor(loss).to_vec());
    }
    found.extend(plan.stored.iter().map(|s| (s.name.clone(), runner.arena().tensor(&s.tensor).to_vec())));
    found
}

#[test]
fn plans_of_random_graphs_run_as_the_reference_does() {
    for seed in 0..GRAPHS {
        let graph = graph(seed);
        let plan = train_plan(&graph, &PLAIN);
        assert_eq!(check(&plan), Vec::<String>::new(), "graph {seed}");
        assert_eq!(decode(&encode(&plan)).as_ref(), Ok(&plan), "graph {seed}");
        let wanted = outcome(&staged(
            &graph,
            "parameterize(full), differentiate, prune, fuse, update(adamw, clip=0.5), fuse_update",
        ));
        let found = step(&plan);
        for (name, tensor) in wanted.iter().filter(|(name, _)| *name != "clip") {
            // What Adam divides by is near 0 for gradients that are near 0: their steps are compared by size only.
            let (relative, floor) = if name.contains(".v") || name.contains(".m") { (1e-3, 1e-3) } else { (0.1, 1.0) };
            let what = format!("graph {seed}: {name}\n{}", print_graph(&graph));
            assert_close(&what, &load(DType::F32, &found[name]), &tensor.data, relative, floor);
        }
        for (recompute, clip_by, threads) in [
            (Recompute::Step(1), ClipBy::Keeping, 2),
            (Recompute::Step(5), ClipBy::SecondBackward, 1),
            (Recompute::All, ClipBy::Keeping, 1),
            (Recompute::All, ClipBy::SecondBackward, 2),
        ] {
            let training = Training { recompute, clip_by, threads, ..PLAIN };
            let other = train_plan(&graph, &training);
            assert_eq!(check(&other), Vec::<String>::new(), "graph {seed}");
            let what = format!("graph {seed} with {recompute:?}, {clip_by:?} and {threads} threads");
            assert!(step(&other) == found, "{what} gives other bytes\n{}", print_graph(&graph));
        }
        let micro = train_plan(&graph, &Training { micro_batches: 2, ..PLAIN });
        assert_eq!(check(&micro), Vec::<String>::new(), "graph {seed} with micro-batches");
        step(&micro);
    }
}

/// Runs `f` without the message that a panic prints; `None` when it panics.
fn quietly<R>(f: impl FnOnce() -> R) -> Option<R> {
    catch_unwind(AssertUnwindSafe(f)).ok()
}

/// Graphs as text: those of the text tests, and random ones after passes.
fn texts() -> Vec<String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("ir");
    let files = std::fs::read_dir(folder).expect("tests/ir is there");
    let mut texts: Vec<String> =
        files.map(|f| std::fs::read_to_string(f.expect("listed").path()).expect("files of text")).collect();
    texts.retain(|text| parse_graph(text).is_ok());
    texts.sort();
    let staged = |seed| staged(&graph(seed), "differentiate, fuse, update(adamw, clip=1.0)");
    texts.extend((0..20).map(|seed| print_graph(&staged(seed))));
    texts
}

#[test]
fn damaged_texts_are_refused_or_read() {
    let mut random = Random::new(1);
    let texts = texts();
    let (mut refused, mut read) = (0, 0);
    std::panic::set_hook(Box::new(|_| {}));
    let failure = (0..10_000).find_map(|_| {
        let text = damaged_text(random.pick::<String>(&texts), &mut random);
        let Some(parsed) = quietly(|| parse_graph(&text)) else { return Some(("the parser panics", text)) };
        let Ok(graph) = parsed else {
            refused += 1;
            return None;
        };
        read += 1;
        if quietly(|| assert_text_is_graph(&graph)).is_none() {
            return Some(("the text is not the graph", text));
        }
        let passes = || {
            let mut graph = graph.clone();
            if graph.results.iter().all(|(name, _)| !name.starts_with("grad:")) {
                let _ = differentiate::run(&mut graph);
            }
            fuse::run(&mut graph);
            let rungs = recompute::ladder(&graph);
            recompute::run(&mut graph, |_| rungs[rungs.len() - 1]);
            order::run(&mut graph);
        };
        quietly(passes).is_none().then_some(("a pass panics", text))
    });
    let _ = std::panic::take_hook();
    assert!(failure.is_none(), "{}", failure.map(|(what, text)| format!("{what}:\n{text}")).unwrap_or_default());
    assert!(refused > 500 && read > 500, "{refused} refused, {read} read: the damage is too much or too little");
}

/// A plan with scratch, states, several entries and a result in an operand's place.
fn some_plan() -> Plan {
    train_plan(&graph(3), &Training { micro_batches: 2, ..PLAIN })
}

#[test]
fn damaged_plans_are_refused_or_checked() {
    let plan = some_plan();
    let bytes = encode(&plan);
    assert!(matches!(decode(&bytes[..7]), Err(DecodeError::Magic)));
    assert!(matches!(decode(b"TFPX00000000"), Err(DecodeError::Magic)));
    for at in 12..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(matches!(decode(&damaged), Err(DecodeError::Checksum { .. })), "byte {at}");
    }
    let mut random = Random::new(2);
    std::panic::set_hook(Box::new(|_| {}));
    let failure = (0..10_000).find_map(|_| {
        let mut body = bytes[12..].to_vec();
        for _ in 0..1 + random.below(3) {
            let at = random.below(body.len());
            match random.below(4) {
                0 => body[at] = random.bits() as u8,
                1 => body[at] = 0xff,
                2 => body.truncate(at.max(1)),
                _ => body.insert(at, random.bits() as u8),
            }
        }
        let damaged = [&bytes[..8], &crc32(&body).to_le_bytes(), &body].concat();
        quietly(|| decode(&damaged).map(|plan| check(&plan).len())).is_none().then_some(body)
    });
    let _ = std::panic::take_hook();
    assert!(failure.is_none(), "decoding or checking panics for {failure:?}");
}

#[test]
fn sums_of_a_damaged_plan_do_not_wrap_around() {
    let mut plan = some_plan();
    plan.fixed =
        vec![Fixed { name: "code".to_string(), bytes: u64::MAX }, Fixed { name: "heap".to_string(), bytes: 2 }];
    plan.entries[0].steps.iter_mut().take(2).for_each(|s| s.flops = u64::MAX);
    plan.stored.iter_mut().for_each(|s| s.tensor.shape = vec![u32::MAX; 3]);
    assert_eq!([plan.total_bytes(), plan.entries[0].flops(), plan.stored_bytes(|_| true)], [u64::MAX; 3]);
    assert!(!check(&plan).is_empty());
}

/// A plan that is right, the change that spoils it, and a word of what the checker must say.
type Fault = (&'static str, fn(&mut Plan) -> bool, &'static str);

/// The steps of the first entry.
fn steps(plan: &mut Plan) -> &mut Vec<Step> {
    &mut plan.entries[0].steps
}

/// Moves every mention of a value to another place.
fn move_value(plan: &mut Plan, value: u32, offset: u64) {
    let entry = &mut plan.entries[0];
    let tensors = entry.steps.iter_mut().flat_map(|s| s.args.iter_mut().chain(&mut s.outs));
    let named = entry.inputs.iter_mut().chain(&mut entry.results).map(|n| &mut n.tensor);
    tensors.chain(named).filter(|t| t.value == value).for_each(|t| t.offset = offset);
}

/// Two values of the first entry, of which the second is made while the first is still to be read.
fn two_live(plan: &Plan) -> Option<(tinyforge_plan::Tensor, tinyforge_plan::Tensor)> {
    let steps = &plan.entries[0].steps;
    for (i, maker) in steps.iter().enumerate() {
        let Some(first) = maker.outs.first() else { continue };
        let is_stored = plan.stored.iter().any(|s| s.tensor.offset == first.offset);
        for (j, other) in steps.iter().enumerate().skip(i + 1) {
            let read_later = steps[j + 1..].iter().any(|s| s.args.iter().any(|a| a.value == first.value));
            let Some(second) = other.outs.first() else { continue };
            let fresh = !other.args.iter().any(|a| a.offset == second.offset);
            if read_later && fresh && !is_stored && second.offset != first.offset {
                return Some((first.clone(), second.clone()));
            }
        }
    }
    None
}

const FAULTS: &[Fault] = &[
    (
        "overlapping live values",
        |p| {
            let Some((first, second)) = two_live(p) else { return false };
            move_value(p, second.value, first.offset);
            true
        },
        "no longer holds",
    ),
    (
        "values that overlap by their last bytes",
        |p| {
            let Some((first, second)) = two_live(p).filter(|(a, _)| a.bytes() > 64) else { return false };
            move_value(p, second.value, first.offset + 64);
            true
        },
        "",
    ),
    (
        "an offset that is not aligned",
        |p| {
            let value = steps(p)[0].outs[0].value;
            let offset = steps(p)[0].outs[0].offset + 4;
            move_value(p, value, offset);
            true
        },
        "aligned",
    ),
    (
        "a small space",
        |p| {
            p.spaces[0].bytes -= 64;
            true
        },
        "space",
    ),
    (
        "no space",
        |p| {
            p.spaces.clear();
            true
        },
        "space",
    ),
    (
        "a peak that is too low",
        |p| {
            p.entries[0].peak.bytes -= 4;
            true
        },
        "peak",
    ),
    (
        "a peak that is too high",
        |p| {
            p.entries[0].peak.bytes += 4;
            true
        },
        "peak",
    ),
    (
        "a read at another place",
        |p| {
            let Some(step) = steps(p).iter_mut().find(|s| !s.outs.is_empty() && s.args.len() > 1) else { return false };
            step.args[1].offset += 64;
            true
        },
        "holds",
    ),
    (
        "a read of another value",
        |p| {
            let Some(step) = steps(p).iter_mut().find(|s| !s.args.is_empty()) else { return false };
            step.args[0].value += 1;
            true
        },
        "holds",
    ),
    (
        "a longer read",
        |p| {
            let Some(step) = steps(p).iter_mut().find(|s| !s.outs.is_empty() && s.args.len() > 1) else { return false };
            step.args[0].shape[0] += 64;
            true
        },
        "",
    ),
    (
        "steps in another order",
        |p| {
            let Some(at) = (1..steps(p).len()).find(|&i| {
                let made = steps(p)[i - 1].outs.clone();
                let read: Vec<u32> = steps(p)[i].args.iter().map(|a| a.value).collect();
                made.iter().any(|o| read.contains(&o.value))
            }) else {
                return false;
            };
            steps(p).swap(at - 1, at);
            true
        },
        "holds",
    ),
    (
        "a missing step",
        |p| {
            let Some(at) = steps(p).iter().position(|s| !s.outs.is_empty()) else { return false };
            steps(p).remove(at);
            true
        },
        "holds",
    ),
    (
        "scratch over an operand",
        |p| {
            let Some(step) = steps(p).iter_mut().find(|s| s.scratch_bytes > 0 && !s.args.is_empty()) else {
                return false;
            };
            step.scratch_offset = step.args[0].offset;
            true
        },
        "scratch",
    ),
    (
        "scratch over a weight",
        |p| {
            let at = p.stored[0].tensor.offset;
            let Some(step) = steps(p).iter_mut().find(|s| s.scratch_bytes > 0) else { return false };
            step.scratch_offset = at;
            true
        },
        "stored",
    ),
    (
        "scratch past the space",
        |p| {
            let at = p.spaces[0].bytes;
            let Some(step) = steps(p).iter_mut().find(|s| s.scratch_bytes > 0) else { return false };
            step.scratch_offset = at;
            true
        },
        "space",
    ),
    (
        "a result over a weight",
        |p| {
            let at = p.stored[0].tensor.offset;
            let value = steps(p)[0].outs[0].value;
            move_value(p, value, at);
            true
        },
        "stored",
    ),
    (
        "stored tensors that overlap",
        |p| {
            p.stored[1].tensor.offset = p.stored[0].tensor.offset;
            true
        },
        "overlaps",
    ),
    (
        "a stored tensor past the space",
        |p| {
            let end = p.spaces[0].bytes;
            p.stored[0].tensor.offset = end;
            true
        },
        "space",
    ),
    (
        "a result that is overwritten",
        |p| {
            let value = steps(p)[0].outs[0].value;
            let named = p.entries[0].results[0].clone();
            p.entries[0].results[0].tensor = tinyforge_plan::Tensor { value, ..named.tensor };
            true
        },
        "result",
    ),
    (
        "a change of what is not stored",
        |p| {
            let stored: Vec<u64> = p.stored.iter().map(|s| s.tensor.offset).collect();
            let is_passing = |s: &Step| s.changes == 0 && s.args.first().is_some_and(|a| !stored.contains(&a.offset));
            let Some(step) = p.entries[0].steps.iter_mut().find(|s| is_passing(s)) else { return false };
            step.changes = 1;
            true
        },
        "changes",
    ),
    (
        "a change of a weight that is said to stay",
        |p| {
            let Some(stored) = p.stored.iter_mut().find(|s| s.changes) else { return false };
            stored.changes = false;
            true
        },
        "changes",
    ),
    (
        "more changes than operands",
        |p| {
            steps(p)[0].changes = u32::MAX;
            true
        },
        "changes",
    ),
    (
        "a block that does not exist",
        |p| {
            steps(p)[0].block = u32::MAX;
            true
        },
        "block",
    ),
    (
        "two inputs at one place",
        |p| {
            let at = p.entries[0].inputs[0].tensor.offset;
            p.entries[0].inputs[1].tensor.offset = at;
            true
        },
        "holds",
    ),
];

#[test]
fn planted_faults_are_found() {
    for (what, plant, word) in FAULTS {
        let mut planted = 0;
        for seed in 0..30 {
            let mut plan = train_plan(&graph(seed), &Training { micro_batches: 2, ..PLAIN });
            assert_eq!(check(&plan), Vec::<String>::new(), "graph {seed}");
            let right = plan.clone();
            if !plant(&mut plan) || plan == right {
                continue;
            }
            planted += 1;
            let faults = check(&plan);
            assert!(faults.iter().any(|f| f.contains(word)), "{what} in graph {seed}: `{word}` is not in {faults:?}");
        }
        assert!(planted >= 5, "{what}: planted in {planted} plans only");
    }
}
