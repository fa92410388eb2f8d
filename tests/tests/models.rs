//! Whole models in f64: what passes leave computes what the imported program computes, and its gradients.

use std::collections::BTreeMap;
use tinyforge_compiler::import::DecoderConfig;
use tinyforge_compiler::ir::graph::{Graph, Kind, Value};
use tinyforge_compiler::ir::ops::Tensor;
use tinyforge_compiler::ir::reference::Memory;
use tinyforge_tests::graphs::{assert_close, assert_verified};
use tinyforge_tests::models::{contents, losses, tiny};
use tinyforge_tests::random::Random;
use tinyforge_tests::script::{Stages, ladder_steps};

const SEQ: u32 = 6;

fn run(config: &DecoderConfig, graph: &Graph) -> Memory {
    assert_verified(graph);
    Memory::run(graph, |v| contents(config, graph, v, 0, SEQ))
}

fn staged(config: &DecoderConfig, rows: u32, script: &str) -> Stages {
    let mut stages = Stages::new(losses(config, rows, SEQ));
    stages.run(script).unwrap_or_else(|e| panic!("{script}: {e}"));
    stages
}

/// All results by name.
fn results(graph: &Graph, memory: &Memory) -> BTreeMap<String, Tensor> {
    graph.results.iter().map(|(name, v)| (name.clone(), memory.get(*v).clone())).collect()
}

/// All stored tensors that nodes change, by name.
fn changed(graph: &Graph, memory: &Memory) -> BTreeMap<String, Tensor> {
    let changes = |v: &Value| graph.nodes.iter().any(|n| n.args[..(n.op.def().mutates)(&n.attrs)].contains(v));
    let all = (0..graph.values.len() as u32).map(Value).filter(changes);
    all.map(|v| (graph.info(v).name.clone(), memory.get(v).clone())).collect()
}

fn assert_all_close(what: &str, found: &BTreeMap<String, Tensor>, wanted: &BTreeMap<String, Tensor>, relative: f64) {
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{what}");
    for (name, tensor) in found {
        assert_close(&format!("{what}: {name}"), &tensor.data, &wanted[name].data, relative, 1e-3);
    }
}

#[test]
fn fused_models_compute_what_the_program_says() {
    for (name, config) in tiny() {
        let plain = staged(&config, 2, "differentiate").graph;
        let fused = staged(&config, 2, "differentiate, fuse").graph;
        assert!(fused.nodes.len() < plain.nodes.len(), "{name}: nothing was fused");
        let (plain_memory, fused_memory) = (run(&config, &plain), run(&config, &fused));
        let (found, wanted) = (results(&fused, &fused_memory), results(&plain, &plain_memory));
        assert_eq!(wanted.len(), 1 + plain.declared(Kind::Weight).count(), "{name}: a gradient for every weight");
        assert_all_close(name, &found, &wanted, 1e-11);
    }
}

#[test]
fn gradients_of_models_are_finite_differences() {
    for (name, config) in tiny() {
        let forward = losses(&config, 2, SEQ);
        let graph = staged(&config, 2, "differentiate, fuse").graph;
        let memory = run(&config, &graph);
        let mut random = Random::new(9);
        for w in forward.declared(Kind::Weight) {
            let weight = forward.info(w).name.clone();
            let grad = &memory.get(graph.result(&format!("grad:{weight}")).expect("every weight is trained")).data;
            for _ in 0..3 {
                let at = random.below(grad.len());
                let step = 1e-5;
                let loss = |offset: f64| {
                    let memory = Memory::run(&forward, |v| {
                        let mut tensor = contents(&config, &forward, v, 0, SEQ);
                        if v == w {
                            tensor.data[at] += offset;
                        }
                        tensor
                    });
                    memory.get(forward.result("loss").expect("a model has losses")).data.clone()
                };
                let wanted: f64 = loss(step).iter().zip(loss(-step)).map(|(a, b)| (a - b) / (2.0 * step)).sum();
                assert_close(&format!("{name}: gradient of {weight}[{at}]"), &[grad[at]], &[wanted], 1e-6, 1e-3);
            }
        }
    }
}

/// The sums of gradients and then the weights after a step of `rows` micro-batches of one packed row.
fn in_micro_batches(config: &DecoderConfig, rows: u32, optimizer: &str) -> [BTreeMap<String, Tensor>; 2] {
    let script = format!(
        "parameterize(full), differentiate, prune, fuse, update({optimizer}, micro={rows}), fuse_update, order"
    );
    let stages = staged(config, 1, &script);
    let (graph, finish) = (stages.graph, stages.finish.expect("several micro-batches have a graph of their own"));
    let mut memory = run(config, &graph);
    for row in 1..rows {
        for v in graph.declared(Kind::Input).collect::<Vec<_>>() {
            memory.set(v, contents(config, &graph, v, row, SEQ));
        }
        memory.step(&graph);
    }
    let sums = changed(&graph, &memory);
    let after = Memory::run(&finish, |v| match sums.get(&finish.info(v).name) {
        Some(sum) => sum.clone(),
        None => contents(config, &finish, v, 0, SEQ),
    });
    let mut weights = changed(&finish, &after);
    for (name, sum) in weights.iter().filter(|(name, _)| name.contains(".grad_sum")) {
        assert!(sum.data.iter().all(|&x| x == 0.0), "{name} is not cleared");
    }
    weights.retain(|name, _| !name.contains(".grad_sum"));
    [sums, weights]
}

#[test]
fn micro_batches_add_up() {
    for (name, config) in tiny() {
        for rows in [2, 3] {
            for optimizer in ["sgd, beta1=0.0", "adamw, clip=0.05, weight_decay=0.1"] {
                let [sums, weights] = in_micro_batches(&config, rows, optimizer);
                let script =
                    format!("parameterize(full), differentiate, prune, fuse, update({optimizer}), fuse_update, order");
                let whole = staged(&config, rows, &script).graph;
                let memory = run(&config, &whole);
                let what = format!("{name}, {rows} micro-batches, {optimizer}");
                assert_all_close(&what, &weights, &changed(&whole, &memory), 1e-12);
                let graph = staged(&config, rows, "differentiate, fuse").graph;
                let memory = run(&config, &graph);
                for (grad, tensor) in results(&graph, &memory).iter().filter(|(n, _)| n.starts_with("grad:")) {
                    let parts =
                        sums.iter().filter(|(n, _)| n.split(".grad_sum").next() == Some(&grad["grad:".len()..]));
                    let mut sum = vec![0.0; tensor.data.len()];
                    parts.for_each(|(_, part)| sum.iter_mut().zip(&part.data).for_each(|(s, p)| *s += p));
                    assert_close(&format!("{what}: {grad}"), &sum, &tensor.data, 1e-12, 1e-3);
                }
            }
        }
    }
}

const SCHEMES: [&str; 8] =
    ["full", "last:1", "last:1+head", "last:2+embed", "bias:1", "lora:2", "sparse:1", "cycle:1+head"];

/// The gradients of a scheme are those of the full model, for the columns that are trained.
#[test]
fn schemes_train_with_the_same_gradients() {
    for (name, config) in tiny() {
        let full = staged(&config, 2, "differentiate").graph;
        let full_results = results(&full, &run(&config, &full));
        for scheme in SCHEMES.iter().filter(|s| !s.starts_with("lora")) {
            let stages = staged(&config, 2, &format!("parameterize({scheme}), differentiate, prune, fuse"));
            let memory = run(&config, &stages.graph);
            let found = results(&stages.graph, &memory);
            assert!(found.len() > 1, "{name}, {scheme}: nothing is trained");
            for (result, tensor) in &found {
                let full = &full_results[result];
                let wanted: Vec<f64> = match stages.graph.find(&format!("{}.index", result.trim_start_matches("grad:")))
                {
                    Some(index) => {
                        let columns = &memory.get(index).data;
                        full.data.chunks(full.cols()).flat_map(|r| columns.iter().map(|&c| r[c as usize])).collect()
                    }
                    None => full.data.clone(),
                };
                assert_close(&format!("{name}, {scheme}: {result}"), &tensor.data, &wanted, 1e-11, 1e-3);
            }
        }
    }
}

/// A low-rank pair's gradients by finite differences: no full gradient to compare with.
#[test]
fn adapters_have_finite_differences() {
    for (name, config) in tiny() {
        let mut stages = Stages::new(losses(&config, 2, SEQ));
        stages.run("parameterize(lora:2)").expect("every model has projections");
        let forward = stages.graph.clone();
        stages.run("differentiate, prune, fuse").expect("all ops have gradients");
        let memory = run(&config, &stages.graph);
        let adapters: Vec<Value> =
            forward.declared(Kind::Weight).filter(|v| forward.info(*v).name.contains(".lora_")).collect();
        assert!(adapters.len() >= 4, "{name}: {} adapters", adapters.len());
        for w in adapters {
            let weight = &forward.info(w).name;
            let grad = memory.get(stages.graph.result(&format!("grad:{weight}")).expect("adapters are trained"));
            let at = weight.len() % grad.data.len();
            let loss = |offset: f64| -> f64 {
                let memory = Memory::run(&forward, |v| {
                    let mut tensor = contents(&config, &forward, v, 0, SEQ);
                    if v == w {
                        tensor.data[at] += offset;
                    }
                    tensor
                });
                memory.get(forward.result("loss").expect("a model has losses")).data.iter().sum()
            };
            let wanted = (loss(1e-5) - loss(-1e-5)) / 2e-5;
            assert_close(&format!("{name}: gradient of {weight}[{at}]"), &[grad.data[at]], &[wanted], 1e-6, 1e-3);
        }
    }
}

/// Recomputation, order and the way of clipping change no bit of the weights after a step.
#[test]
fn budgets_do_not_change_the_step() {
    for (name, config) in tiny() {
        for scheme in SCHEMES {
            let front =
                format!("parameterize({scheme}), differentiate, prune, fuse, update(adamw, clip=0.05), fuse_update");
            let plain = staged(&config, 2, &front).graph;
            let wanted = changed(&plain, &run(&config, &plain));
            assert!(!wanted.is_empty(), "{name}, {scheme}: nothing is updated");
            let second = front.replace("clip=0.05", "clip=0.05, second");
            for front in [&front, &second] {
                let steps = ladder_steps(&staged(&config, 2, front).graph);
                for step in [0, 1, steps / 3, steps / 2, steps] {
                    let graph = staged(&config, 2, &format!("{front}, recompute({step}), order")).graph;
                    let found = changed(&graph, &run(&config, &graph));
                    assert!(found == wanted, "{name}, {scheme}: step {step} of {steps} changes the weights ({front})");
                }
            }
        }
    }
}
