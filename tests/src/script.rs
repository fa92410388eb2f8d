//! Passes by name: `differentiate, prune(w1, w2), fuse, update(adamw, clip=1.0, micro=2), order`.
//!
//! | pass | arguments |
//! |---|---|
//! | `parameterize` | an update scheme: `last:1+head` |
//! | `differentiate`, `fuse`, `fuse_update`, `split_tables`, `spill`, `order`, `verify` | none |
//! | `host_update` | names of weights whose updates it marks; none makes those that are marked the host's |
//! | `split_update` | none, or `gradients`: by panels too; and `tables`: those that `split_tables` cuts, by its parts |
//! | `fuse_rows` | none; scratch is a row of what `i8_bottleneck` reads, times 8 |
//! | `fuse_channels` | none; scratch is two channels of what `i8_bottleneck_grad_update` makes |
//! | `prune` | names of trained tensors; none takes what `parameterize` found |
//! | `layer_major` | the number of micro-batches that `update` was told |
//! | `update` | a rule, then `clip=`, `micro=`, `beta1=`, `weight_decay=`, and `second`: clip by a second backward |
//! | `recompute` | a step of the ladder, or `all` |

use crate::graphs::{assert_text_is_graph, assert_verified};
use tinyforge_compiler::ir::graph::Graph;
use tinyforge_compiler::ir::ops::Op;
use tinyforge_compiler::optimizer::rule_index;
use tinyforge_compiler::passes::parameterize::Storage;
use tinyforge_compiler::passes::split_tables::Tables;
use tinyforge_compiler::passes::split_update::Panels;
use tinyforge_compiler::passes::update::{ClipBy, Optimizer};
use tinyforge_compiler::passes::{
    differentiate, fuse, fuse_channels, fuse_rows, fuse_update, host_update, layer_major, live, order, parameterize,
    prune, recompute, spill, split_tables, split_update, update,
};
use tinyforge_compiler::scheme::Scheme;
use tinyforge_plan::DType;

/// A pass and its arguments.
#[derive(Clone, PartialEq, Debug)]
pub struct Call {
    /// The pass's name.
    pub pass: String,
    /// What stands in its parentheses, split at commas.
    pub args: Vec<String>,
}

/// Graphs on their way through passes.
pub struct Stages {
    /// The graph that runs once a micro-batch.
    pub graph: Graph,
    /// The graph that runs once a step, where `update` made one.
    pub finish: Option<Graph>,
    trained: Vec<String>,
}

/// Reads the calls of a script.
///
/// # Panics
/// When a parenthesis is missing.
pub fn parse(script: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut rest = script.trim();
    while !rest.is_empty() {
        let end = rest.find([',', '(']).unwrap_or(rest.len());
        let (pass, mut tail) = (rest[..end].trim().to_string(), &rest[end..]);
        let mut args = Vec::new();
        if let Some(open) = tail.strip_prefix('(') {
            let (inside, after) = open.split_once(')').expect("a parenthesis is closed");
            args = inside.split(',').map(|a| a.trim().to_string()).filter(|a| !a.is_empty()).collect();
            tail = after;
        }
        calls.push(Call { pass, args });
        rest = tail.trim_start().trim_start_matches(',').trim_start();
    }
    calls
}

/// An optimizer with the usual numbers.
pub fn optimizer(rule: &str) -> Optimizer {
    let rule = rule_index(rule).unwrap_or_else(|| panic!("there is no rule `{rule}`"));
    Optimizer { rule, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, clip: None }
}

impl Stages {
    /// A graph before any pass.
    pub fn new(graph: Graph) -> Stages {
        Stages { graph, finish: None, trained: Vec::new() }
    }

    /// Runs a script; after every pass the graphs verify and their text reads back to them.
    ///
    /// # Errors
    /// What the first pass says that refuses its graph.
    pub fn run(&mut self, script: &str) -> Result<(), String> {
        for call in parse(script) {
            self.pass(&call)?;
            for graph in [Some(&self.graph), self.finish.as_ref()].into_iter().flatten() {
                assert_verified(graph);
                assert_text_is_graph(graph);
            }
        }
        Ok(())
    }

    fn both(&mut self, pass: impl Fn(&mut Graph)) {
        pass(&mut self.graph);
        self.finish.as_mut().map(pass);
    }

    fn pass(&mut self, call: &Call) -> Result<(), String> {
        let args: Vec<&str> = call.args.iter().map(String::as_str).collect();
        match (call.pass.as_str(), &args[..]) {
            ("verify", []) => {}
            ("parameterize", [scheme]) => {
                let scheme = Scheme::parse(scheme).map_err(|e| e.to_string())?;
                let storage = Storage { trained: DType::F32, frozen: None };
                let found = parameterize::run(&mut self.graph, &scheme, storage, 0).map_err(|e| e.to_string())?;
                self.trained = found.trained;
            }
            ("differentiate", []) => {
                let list = |e: Vec<tinyforge_compiler::ir::verify::Finding>| {
                    e.iter().map(|f| f.message.clone()).collect::<Vec<_>>().join("; ")
                };
                differentiate::run(&mut self.graph).map_err(list)?;
            }
            ("prune", []) => prune::run(&mut self.graph, |name| self.trained.iter().any(|t| t == name)),
            ("prune", names) => prune::run(&mut self.graph, |name| names.contains(&name)),
            ("fuse", []) => fuse::run(&mut self.graph),
            ("update", [rule, settings @ ..]) => self.update(rule, settings),
            ("host_update", []) => host_update::run(&mut self.graph),
            ("host_update", names) => {
                host_update::mark(&mut self.graph, &names.iter().map(|name| (*name).to_string()).collect());
            }
            ("fuse_update", []) => self.both(fuse_update::run),
            ("layer_major", [micro]) => {
                let finish = self.finish.take().expect("`update` was told of several micro-batches");
                let micro = micro.parse().expect("micro-batches are a number");
                self.graph = layer_major::run(&self.graph, &finish, micro);
            }
            ("split_tables", []) => {
                let tables = split_tables::splittable(&[&self.graph], &self.tables());
                split_tables::run(&mut self.graph, &tables);
            }
            ("split_update", []) => self.split_update(false, false),
            ("split_update", ["gradients"]) => self.split_update(true, false),
            ("split_update", ["gradients", "tables"]) => self.split_update(true, true),
            ("spill", []) => spill::run(&mut self.graph),
            ("recompute", [step]) => {
                let step = if *step == "all" { u32::MAX } else { step.parse().expect("a step is a number or `all`") };
                recompute_step(&mut self.graph, step);
            }
            ("order", []) => self.both(order::run),
            ("fuse_rows", []) => fuse_rows::run(&mut self.graph, |g| Some(live::profile(g, |i| ring(g, i)))),
            ("fuse_channels", []) => {
                fuse_channels::run(&mut self.graph, |g| Some(live::profile(g, |i| ring(g, i))));
            }
            _ => panic!("there is no pass `{}` that takes {:?}", call.pass, call.args),
        }
        Ok(())
    }

    /// Tables that can be stored in parts, whatever is trained.
    fn tables(&self) -> Tables {
        split_tables::tables(&[&self.graph], 1, |_| true)
    }

    fn split_update(&mut self, gradients: bool, in_parts: bool) {
        let tables = if in_parts { self.tables() } else { Tables::new() };
        let panels = Panels { gradients, block_parts: 1, tables: &tables };
        self.both(|g| _ = split_update::run(g, &panels));
    }

    fn update(&mut self, rule: &str, settings: &[&str]) {
        let mut optimizer = optimizer(rule);
        let (mut clip_by, mut micro) = (ClipBy::Keeping, 1);
        for setting in settings {
            let number = |value: &str| value.parse::<f64>().expect("a setting is a number");
            match setting.split_once('=') {
                Some(("clip", value)) => optimizer.clip = Some(number(value)),
                Some(("micro", value)) => micro = number(value) as u32,
                Some(("beta1", value)) => optimizer.beta1 = number(value),
                Some(("weight_decay", value)) => optimizer.weight_decay = number(value),
                None if *setting == "second" => clip_by = ClipBy::SecondBackward,
                _ => panic!("update has no setting `{setting}`"),
            }
        }
        self.finish = update::run(&mut self.graph, &optimizer, clip_by, micro);
    }
}

/// A stand-in for the scratch of a device's kernel.
fn ring(graph: &Graph, i: usize) -> u64 {
    let node = &graph.nodes[i];
    match node.op {
        Op::I8Bottleneck => 8 * u64::from(graph.ty(node.args[0]).cols()),
        Op::I8BottleneckGradUpdate => 8 * u64::from(graph.ty(node.outs[0]).rows()),
        _ => 0,
    }
}

/// How many steps [`recompute_step`] knows for a graph.
pub fn ladder_steps(graph: &Graph) -> u32 {
    (recompute::ladder(graph).len() as u32 - 1) * graph.blocks.len() as u32
}

/// Recomputes by a step of the ladder: rung by rung, and within a rung block by block.
pub fn recompute_step(graph: &mut Graph, step: u32) {
    let rungs = recompute::ladder(graph);
    let blocks = graph.blocks.len() as u32;
    let step = step.min(ladder_steps(graph));
    let (rung, extra) = ((step / blocks) as usize, step % blocks);
    recompute::run(graph, |block| rungs[(rung + usize::from(block < extra)).min(rungs.len() - 1)]);
}
