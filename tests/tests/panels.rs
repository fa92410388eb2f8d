//! Gradients by panels of rows: random models and settings of training mean the same and end with the same bytes as
//! with gradients made whole, on every device; and what is made whole does not exist.

use std::collections::BTreeMap;
use tinyforge_compiler::import::DecoderConfig;
use tinyforge_compiler::ir::graph::{Graph, Kind, Value};
use tinyforge_compiler::ir::ops::{Op, Tensor};
use tinyforge_compiler::ir::reference::Memory;
use tinyforge_compiler::ir::text::print_graph;
use tinyforge_plan::part_of;
use tinyforge_tests::device::{
    Bytes, Device, Library, Order, compile_forward, has_cuda_shim, has_wgpu, has_wgpu_cooperative, run,
};
use tinyforge_tests::graphs::assert_close;
use tinyforge_tests::models::{Lengths, contents, gpt2, llama, losses};
use tinyforge_tests::random::Random;
use tinyforge_tests::script::Stages;
use tinyforge_tests::storage::store;

/// How many random models each test looks at.
const MODELS: u64 = 24;
/// A head's chunk of tokens and a bit.
const SEQ_MAX: usize = 140;

/// A model and how it is trained.
struct Training {
    config: DecoderConfig,
    rows: u32,
    seq: u32,
    micro_batches: u32,
    update: String,
}

impl Training {
    /// An embedding of two panels or more beside blocks that are smaller, tied to the head or not.
    fn random(seed: u64) -> Training {
        let mut random = Random::new(seed);
        let lengths = Lengths {
            vocab: 257 + random.below(500),
            hidden: 4 * (1 + random.below(3)),
            layers: 1 + random.below(2),
            heads: [2, 1],
            ff: 2 + random.below(6),
        };
        let seq = 1 + random.below(if seed.is_multiple_of(4) { SEQ_MAX } else { 9 });
        let config = match random.below(5) {
            0 => gpt2(Lengths { heads: [2, 2], ..lengths }, SEQ_MAX),
            1 | 2 => llama(lengths, false),
            _ => llama(lengths, true),
        };
        let micro_batches = 1 + random.below(3) as u32;
        let rule = *random.pick(&["sgd, beta1=0.0", "sgd", "adamw, weight_decay=0.1"]);
        let clip = *random.pick(&["", ", clip=0.05", ", clip=0.05, second"]);
        let clip = if micro_batches > 1 { clip.trim_end_matches(", second") } else { clip };
        let update = format!("update({rule}{clip}, micro={micro_batches})");
        Training { config, rows: 1 + random.below(2) as u32, seq: seq as u32, micro_batches, update }
    }

    /// One step, with gradients whole or by panels.
    fn graph(&self, panels: bool) -> Graph {
        let mut script = format!("parameterize(full), differentiate, prune, fuse, {}", self.update);
        if self.micro_batches > 1 {
            script += &format!(", layer_major({})", self.micro_batches);
        }
        script += ", fuse_update";
        script += if panels { ", split_update(gradients), recompute(all), order" } else { ", split_update, order" };
        let mut stages = Stages::new(losses(&self.config, self.rows, self.seq));
        stages.run(&script).unwrap_or_else(|e| panic!("{script}: {e}"));
        stages.graph
    }

    /// What a declared tensor holds: the inputs of later micro-batches are their own.
    fn contents(&self, graph: &Graph, v: Value) -> Tensor {
        let name = graph.info(v).name.clone();
        let micro = name.strip_prefix('m').and_then(|rest| rest.split_once('.'));
        let Some((micro, rest)) = micro.and_then(|(n, rest)| Some((n.parse::<u32>().ok()?, rest))) else {
            return contents(&self.config, graph, v, 0, self.seq);
        };
        let mut own = Graph::new(1);
        let input = own.declare(Kind::Input, rest, graph.ty(v).clone());
        contents(&self.config, &own, input, micro * self.rows, self.seq)
    }

    fn what(&self, seed: u64) -> String {
        let DecoderConfig { family, vocab, hidden, tied, .. } = &self.config;
        let (rows, seq, update) = (self.rows, self.seq, &self.update);
        format!("model {seed}: {family:?}, {vocab} x {hidden}, tied {tied}, {rows} x {seq} tokens, {update}")
    }
}

/// The stored tensors that nodes change.
fn changed(graph: &Graph) -> Vec<Value> {
    let changes = |v: &Value| graph.nodes.iter().any(|n| n.args[..(n.op.def().mutates)(&n.attrs)].contains(v));
    (0..graph.values.len() as u32).map(Value).filter(changes).collect()
}

/// Values that nodes make of the embedding's shape.
fn wholes(graph: &Graph, config: &DecoderConfig) -> usize {
    let is_whole = |v: &&Value| graph.ty(**v).shape == [config.vocab as u32, config.hidden as u32];
    graph.nodes.iter().flat_map(|n| &n.outs).filter(is_whole).count()
}

#[test]
fn panels_mean_what_whole_gradients_mean() {
    let (mut shared, mut made) = (0, BTreeMap::new());
    for seed in 0..MODELS {
        let training = Training::random(seed);
        let [whole, panels] = [false, true].map(|panels| training.graph(panels));
        let what = training.what(seed);
        assert!(wholes(&whole, &training.config) > 0, "{what}: there is nothing to split");
        assert_eq!(wholes(&panels, &training.config), 0, "{what}\n{}", print_graph(&panels));
        shared += usize::from(training.config.tied);
        panels.nodes.iter().for_each(|n| *made.entry(n.op.name()).or_insert(0) += 1);
        let outcome = |graph: &Graph| -> BTreeMap<String, Tensor> {
            let memory = Memory::run(graph, |v| training.contents(graph, v));
            let of = |v: Value| memory.get(v).clone();
            let stored = changed(graph).into_iter().map(|v| (graph.info(v).name.clone(), of(v)));
            stored.chain(graph.results.iter().map(|(name, v)| (name.clone(), of(*v)))).collect()
        };
        let (found, wanted) = (outcome(&panels), outcome(&whole));
        assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{what}");
        for (name, tensor) in &found {
            assert_close(&format!("{what}: {name}"), &tensor.data, &wanted[name].data, 1e-7, 1e-3);
        }
    }
    assert!((4..MODELS as usize - 4).contains(&shared), "{shared} of {MODELS} models are tied");
    assert!(made["linear_cross_entropy_grad_w"] > 100 && made["embedding_grad"] > 100, "{made:?}");
}

/// Results and changed tensors after a step.
fn step(training: &Training, graph: &Graph, device: Device, poison: u8) -> Bytes {
    let declared = (0..graph.values.len() as u32).map(Value).filter(|v| graph.info(*v).decl.is_some());
    let bytes = |v: Value| store(graph.ty(v).dtype, &training.contents(graph, v).data).0;
    let contents: Bytes = declared.map(|v| (graph.info(v).name.clone(), bytes(v))).collect();
    let plan = compile_forward(graph, device).unwrap_or_else(|e| panic!("{e}\n{}", print_graph(graph)));
    assert_eq!(tinyforge_plan::check::check(&plan), Vec::<String>::new());
    run(&plan, &contents, poison, device)
}

fn check_bytes(devices: [Device; 2], seeds: std::ops::Range<u64>) {
    let mut parts = 0;
    for seed in seeds {
        let training = Training::random(seed);
        let wanted = step(&training, &training.graph(false), devices[0], 0xff);
        parts += wanted.keys().filter(|name| part_of(name).is_some()).count();
        for (device, poison) in devices.into_iter().zip([0xff, 0x7f]) {
            let found = step(&training, &training.graph(true), device, poison);
            assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
            let differs: Vec<_> = found.iter().filter(|(name, bytes)| wanted[*name] != **bytes).map(|f| f.0).collect();
            assert!(differs.is_empty(), "{}, {device:?}: other bytes in {differs:?}", training.what(seed));
        }
    }
    assert!(parts > 0, "no state was stored in parts");
}

#[test]
fn panels_give_the_bytes_of_whole_gradients() {
    check_bytes([Device::Cpu(1), Device::Cpu(2)], 0..MODELS);
}

#[test]
fn wgpu_panels_give_the_bytes_of_whole_gradients() {
    if has_wgpu() {
        check_bytes([Device::Wgpu, Device::WgpuPlain], 0..6);
    }
    if has_wgpu_cooperative() {
        check_bytes([Device::WgpuCooperative; 2], 0..6);
    }
}

#[test]
fn cuda_panels_give_the_bytes_of_whole_gradients() {
    if has_cuda_shim() {
        for library in [Library::Absent, Library::There] {
            check_bytes([Order::Ascending, Order::Descending].map(|order| Device::CudaShim(order, library)), 0..4);
        }
    }
}

/// A gradient that something beside updates and norms reads is not taken apart.
#[test]
fn what_is_read_whole_stays_whole() {
    let training = Training { update: "update(sgd, micro=1)".to_string(), micro_batches: 1, ..Training::random(1) };
    let mut stages = Stages::new(losses(&training.config, training.rows, training.seq));
    stages.run(&format!("parameterize(full), differentiate, prune, fuse, {}", training.update)).expect("passes run");
    let is_gradient = |op| matches!(op, Op::EmbeddingGrad);
    let node = stages.graph.nodes.iter().rfind(|n| is_gradient(n.op)).expect("the embedding is trained").clone();
    stages.graph.results.push(("wanted".to_string(), node.outs[0]));
    stages.run("split_update(gradients)").expect("the pass runs");
    let kept = stages.graph.nodes.iter().find(|n| is_gradient(n.op)).expect("it is still made");
    assert_eq!(kept.attrs.size("panel_rows"), 0);
}
