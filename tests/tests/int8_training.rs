//! A small int8 network trained on the CPU device from a file of weights, against the reference interpreter: every
//! weight and bias has the same bits after some steps.

use std::collections::BTreeMap;
use std::path::PathBuf;
use tinyforge::cpu::CpuKernels;
use tinyforge::files::ReadAt;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge_compiler::compile::{CompileError, Compiled, Entry, Request, Role, compile};
use tinyforge_compiler::ir::graph::{Graph, Kind};
use tinyforge_compiler::ir::ops::Tensor;
use tinyforge_compiler::ir::reference::Memory;
use tinyforge_compiler::ir::types::Type;
use tinyforge_compiler::optimizer::rule_index;
use tinyforge_compiler::passes::parameterize::{self, Storage};
use tinyforge_compiler::passes::update::{self, ClipBy, Optimizer};
use tinyforge_compiler::passes::{differentiate, prune};
use tinyforge_compiler::scheme::{Scheme, SchemeKind, Sparse, SparseWeight};
use tinyforge_plan::{DType, Plan, Source, StoredKind};
use tinyforge_tests::convnets::{contents, graph, rows};
use tinyforge_tests::random::Random;
use tinyforge_tests::storage::{load, store};

const NET: &str = "0: 3x3/2 3->8 8-4 | 1: dw3 8->8 4-4 | 2: 1x1 8->6 4-4 | 3: 1x1 6->16 4-4 | 4: dw3 16->16 4-4 |
    5: 1x1 16->6 4-4 + | 6: 1x1 6->24 4-4 | 7: dw5/2 24->24 4-2 | 8: 1x1 24->10 2-2";

const STEPS: u32 = 5;
const STORAGE: Storage = Storage { trained: DType::F32, frozen: None };

fn plain_sgd() -> Optimizer {
    Optimizer { rule: 0, beta1: 0.0, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, clip: None }
}

fn sparse(bias_last: u32, weights: &[(u32, f64)]) -> Scheme {
    let weight = |&(layer, ratio): &(u32, f64)| SparseWeight::of_layer(layer, ratio);
    let weights = weights.iter().map(weight).collect();
    Scheme { kind: SchemeKind::Sparse(Sparse { bias_last: Some(bias_last), weights }), head: true, embed: false }
}

/// Products in an output of the convolution that a scale belongs to, from its weight's shape.
fn taps(graph: &Graph, name: &str) -> u32 {
    let weight = name.rsplit_once('.').and_then(|(conv, _)| graph.find(&format!("{conv}.weight")));
    match weight.map(|w| graph.ty(w).shape.clone()).as_deref() {
        Some(&[_, r, s, i]) => r * s * i,
        Some(&[r, s, _]) => r * s,
        _ => 1,
    }
}

/// The weights in a file, and where each lies.
struct Model {
    path: PathBuf,
    sources: BTreeMap<String, Source>,
}

impl Model {
    fn of(graph: &Graph, name: &str) -> Model {
        let (mut bytes, mut sources) = (Vec::new(), BTreeMap::new());
        for v in graph.declared(Kind::Weight) {
            let info = graph.info(v);
            let source = Source::File { file: 0, offset: bytes.len() as u64, dtype: info.ty.dtype, transpose: false };
            sources.insert(info.name.clone(), source);
            bytes.extend(store(info.ty.dtype, &contents(&info.name, &info.ty, 1).data).0);
        }
        let path = std::env::temp_dir().join(format!("tinyforge-int8-{}-{name}.bin", std::process::id()));
        std::fs::write(&path, bytes).expect("the temporary folder takes a file");
        Model { path, sources }
    }

    fn source(&self, graph: &Graph, name: &str) -> Source {
        if let Some(source) = self.sources.get(name) {
            return source.clone();
        }
        let table = contents(name, &const_type(graph, name), taps(graph, name));
        Source::Table(table.data.iter().map(|&x| x as f32).collect())
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // A file that is left in the temporary folder harms nobody.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The type of a scale, or of the factor of a weight or bias: one number an output channel.
fn const_type(graph: &Graph, name: &str) -> Type {
    let of = name.strip_suffix(".factor").unwrap_or(name);
    let ty = graph.ty(graph.find(of).unwrap_or_else(|| panic!("the net has no `{of}`")));
    Type::f32(&[if ty.shape.len() == 3 { ty.cols() } else { ty.shape[0] }])
}

/// The rules for whole numbers: rounded at random, and to the nearest with states; without and with momentum.
fn rules() -> [(&'static str, Optimizer); 4] {
    let accumulate = rule_index("sgd-accumulate").expect("the table has it");
    [
        ("plain", plain_sgd()),
        ("momentum", Optimizer { beta1: 0.75, ..plain_sgd() }),
        ("accumulate", Optimizer { rule: accumulate, ..plain_sgd() }),
        ("both", Optimizer { rule: accumulate, beta1: 0.75, ..plain_sgd() }),
    ]
}

/// What is trained, by which rule, over how many micro-batches.
#[derive(Clone)]
struct Way {
    scheme: Scheme,
    optimizer: Optimizer,
    micro: u32,
}

fn compiled(graph: &Graph, way: &Way, model: &Model) -> Result<Compiled, CompileError> {
    compile(&Request {
        scheme: way.scheme.clone(),
        storage: STORAGE,
        optimizer: way.optimizer.clone(),
        source: &|name| model.source(graph, name),
        files: vec![model.path.display().to_string()],
        ..Request::plain(
            "int8",
            vec![Entry {
                name: "train".to_string(),
                graph: graph.clone(),
                role: Role::Train { micro_batches: way.micro },
            }],
            &CpuKernels { threads: 1 },
        )
    })
}

/// What an input holds in a micro-batch.
fn input(name: &str, ty: &Type, step: u32, micro: u32) -> Tensor {
    let mut random = Random::new(u64::from(step) << 32 | u64::from(micro) << 8 | name.len() as u64);
    let mut tensor = Tensor::zeros(ty);
    for (i, x) in tensor.data.iter_mut().enumerate() {
        *x = match name {
            "images" => random.below(256) as f64 - 128.0,
            "labels" => random.below(4) as f64,
            "loss_weights" => 0.25,
            "hyper" => f64::from([0.02f32, 0.1, 0.0, 0.0][i]),
            _ => f64::from([77, 5, step, 0][i]),
        };
    }
    tensor
}

/// Trains on the device; returns the losses, and all stored tensors by name.
fn on_device(plan: &Plan, model: &Model, micro: u32) -> (Vec<f64>, BTreeMap<String, Vec<f64>>) {
    let mut runner = Runner::new(plan.clone(), RunOptions::default()).expect("a compiled plan runs");
    let file = ReadAt::open(&model.path).expect("the file was written");
    runner.load(&[file], 1).expect("the file holds what the plan says");
    let (train, update) = (runner.entry("train").expect("it is planned"), runner.entry("update"));
    let mut losses = Vec::new();
    let fill = |runner: &mut Runner, entry: usize, step: u32, micro: u32| {
        for named in plan.entries[entry].inputs.clone() {
            let ty = Type::new(named.tensor.dtype, &named.tensor.shape);
            let bytes = store(ty.dtype, &input(&named.name, &ty, step, micro).data).0;
            runner.arena_mut().tensor_mut(&named.tensor).copy_from_slice(&bytes);
        }
    };
    for step in 0..STEPS {
        for m in 0..micro {
            fill(&mut runner, train, step, m);
            runner.run(train).expect("the data is right");
            losses.extend(runner.result::<f32>(train, "loss").iter().map(|&l| f64::from(l)));
        }
        if let Some(update) = update {
            fill(&mut runner, update, step, 0);
            runner.run(update).expect("the data is right");
        }
    }
    let stored = plan.stored.iter().map(|s| (s.name.clone(), load(s.tensor.dtype, runner.arena().tensor(&s.tensor))));
    (losses, stored.collect())
}

/// Indices of the columns with the largest norm, written from the definition.
fn top_columns(graph: &Graph, weight: &str, keep: usize) -> Vec<f64> {
    let ty = graph.ty(graph.find(weight).expect("the net has it"));
    let scale = weight.replace(".weight", ".scale");
    let s = contents(&scale, &const_type(graph, &scale), taps(graph, &scale)).data;
    let (w, cols) = (contents(weight, ty, 1).data, ty.cols() as usize);
    let per_channel = w.len() / ty.shape[0] as usize;
    let norm = |c: usize| -> f64 {
        let real = |i: usize| w[i] * if ty.shape.len() == 3 { s[c] } else { s[i / per_channel] };
        (0..w.len() / cols).map(|r| real(r * cols + c).powi(2)).sum()
    };
    let mut order: Vec<usize> = (0..cols).collect();
    order.sort_by(|&a, &b| norm(b).total_cmp(&norm(a)));
    order.truncate(keep);
    order.sort_unstable();
    order.into_iter().map(|c| c as f64).collect()
}

/// The same training in the reference interpreter, without any fusion, order or place.
fn in_reference(net: &Graph, way: &Way) -> (Vec<f64>, BTreeMap<String, Vec<f64>>) {
    let Way { scheme, optimizer, micro } = way.clone();
    let mut graph = net.clone();
    let parameters = parameterize::run(&mut graph, &scheme, STORAGE, 0).expect("the scheme suits");
    differentiate::run(&mut graph).expect("all ops have gradients");
    prune::run(&mut graph, |name| parameters.trained.iter().any(|t| t == name));
    let finish = update::run(&mut graph, &optimizer, ClipBy::Keeping, micro);
    let start = |graph: &Graph| {
        let graph = graph.clone();
        let net = net.clone();
        move |v| {
            let info = graph.info(v);
            match (info.decl, info.name.strip_suffix(".index")) {
                (Some(Kind::Input), _) => input(&info.name, &info.ty, 0, 0),
                (Some(Kind::State), _) => Tensor::zeros(&info.ty),
                (_, Some(weight)) => {
                    let data = top_columns(&net, weight, info.ty.elems() as usize);
                    Tensor { data, ..Tensor::zeros(&info.ty) }
                }
                _ => contents(&info.name, &info.ty, taps(&net, &info.name)),
            }
        }
    };
    let mut run = Reference::new(&graph, start(&graph));
    let mut finish = finish.map(|g| {
        let start = start(&g);
        Reference::new(&g, start)
    });
    let mut losses = Vec::new();
    for step in 0..STEPS {
        for m in 0..micro {
            run.inputs(step, m);
            run.memory.step(&run.graph);
            losses.extend(run.memory.get(run.graph.result("loss").expect("the net has one")).data.clone());
        }
        if let Some(finish) = &mut finish {
            finish.inputs(step, 0);
            finish.take(&run);
            finish.memory.step(&finish.graph);
            run.take(finish);
        }
    }
    let mut stored = run.stored();
    stored.extend(finish.into_iter().flat_map(|finish| finish.stored()));
    (losses, stored)
}

/// A graph with its memory.
struct Reference {
    graph: Graph,
    memory: Memory,
}

impl Reference {
    /// A memory in which declared tensors are filled and no node has run.
    fn new(graph: &Graph, start: impl FnMut(tinyforge_compiler::ir::graph::Value) -> Tensor) -> Reference {
        let idle = Graph { nodes: Vec::new(), ..graph.clone() };
        Reference { graph: graph.clone(), memory: Memory::run(&idle, start) }
    }

    fn inputs(&mut self, step: u32, micro: u32) {
        for v in self.graph.declared(Kind::Input).collect::<Vec<_>>() {
            let info = self.graph.info(v);
            self.memory.set(v, input(&info.name, &info.ty, step, micro));
        }
    }

    /// Takes over weights and states of the same name.
    fn take(&mut self, from: &Reference) {
        for kind in [Kind::Weight, Kind::State] {
            for v in self.graph.declared(kind).collect::<Vec<_>>() {
                if let Some(other) = from.graph.find(&self.graph.info(v).name) {
                    self.memory.set(v, from.memory.get(other).clone());
                }
            }
        }
    }

    fn stored(&self) -> BTreeMap<String, Vec<f64>> {
        let all = self.graph.declared(Kind::Weight).chain(self.graph.declared(Kind::State));
        all.map(|v| (self.graph.info(v).name.clone(), self.memory.get(v).data.clone())).collect()
    }
}

/// Trains both ways; returns the plan and what was stored on the device.
fn check(name: &str, scheme: &Scheme, batch: u32, micro: u32) -> (Plan, BTreeMap<String, Vec<f64>>) {
    let way = Way { scheme: scheme.clone(), optimizer: plain_sgd(), micro };
    check_net(name, graph(&rows(NET), batch, 4), &way)
}

fn check_net(name: &str, net: Graph, way: &Way) -> (Plan, BTreeMap<String, Vec<f64>>) {
    let model = Model::of(&net, name);
    let plan = compiled(&net, way, &model).unwrap_or_else(|e| panic!("{name}: {e}")).plan;
    let (losses, found) = on_device(&plan, &model, way.micro);
    let (wanted_losses, wanted) = in_reference(&net, way);
    assert_eq!(losses, wanted_losses, "{name}");
    for (tensor, wanted) in &wanted {
        assert_eq!(&found[tensor], wanted, "{name}: {tensor}");
        // What is no weight is a state, and starts from 0.
        let Some(v) = net.find(tensor) else {
            let is_sum = tensor.contains(".grad_sum");
            assert_eq!(wanted.iter().any(|x| *x != 0.0), !is_sum, "{name}: {tensor}");
            continue;
        };
        let before = contents(tensor, net.ty(v), 1).data;
        let changes = plan.find(tensor).expect("weights are stored").changes;
        assert_eq!(before != *wanted, changes, "{name}: {tensor} moves when it is trained");
    }
    (plan, found)
}

#[test]
fn a_sparse_scheme_trains_as_the_reference_does() {
    let scheme = sparse(6, &[(3, 0.5), (4, 0.25), (6, 0.34), (8, 1.0)]);
    let (plan, found) = check("sparse", &scheme, 1, 1);
    let net = graph(&rows(NET), 1, 4);
    for (weight, keep) in [("convs.3.weight", 3), ("convs.4.weight", 4), ("convs.6.weight", 2)] {
        assert_eq!(found[&format!("{weight}.index")], top_columns(&net, weight, keep), "{weight}");
        // Only the chosen channels moved.
        let ty = net.ty(net.find(weight).expect("the net has it"));
        let cols = ty.cols() as usize;
        let moved = |(i, (a, b)): (usize, (&f64, &f64))| (a != b).then_some((i % cols) as f64);
        let before = contents(weight, ty, 1).data;
        let moved: Vec<f64> = before.iter().zip(&found[weight]).enumerate().filter_map(moved).collect();
        assert!(!moved.is_empty() && moved.iter().all(|c| found[&format!("{weight}.index")].contains(c)), "{weight}");
    }
    // Nothing below the lowest trained convolution, 3, is changed, kept or computed for.
    let steps = &plan.entry("train").expect("it is planned").steps;
    let first_update = steps.iter().position(|s| s.changes > 0).expect("something is trained");
    let backward = &steps[steps.iter().position(|s| s.label == "loss").expect("there is a loss") + 1..];
    let mentions = |conv: u32| {
        let prefix = format!("convs.{conv}.");
        backward.iter().any(|s| s.label.starts_with(&prefix)) || {
            let stored: Vec<u64> =
                plan.stored.iter().filter(|s| s.name.starts_with(&prefix)).map(|s| s.tensor.offset).collect();
            backward.iter().flat_map(|s| &s.args).any(|a| stored.contains(&a.offset))
        }
    };
    assert!(first_update > 0 && mentions(3) && (0..3).all(|conv| !mentions(conv)));
    assert!(steps.iter().filter(|s| s.label.starts_with("convs.") && s.outs.len() == 2).count() == 6);
}

#[test]
fn everything_trains_as_the_reference_does() {
    check("full", &Scheme::full(), 1, 1);
    check("full of three", &Scheme::full(), 3, 1);
    check("last", &Scheme::parse("last:1").expect("a scheme"), 2, 1);
    check("bias", &Scheme::parse("bias:4").expect("a scheme"), 1, 1);
}

#[test]
fn micro_batches_are_rounded_once() {
    let scheme = sparse(4, &[(6, 0.5), (7, 0.5)]);
    let (plan, _) = check("micro", &scheme, 1, 3);
    let update = plan.entry("update").expect("several micro-batches update in an entry of its own");
    assert!(update.steps.iter().any(|s| s.kernel == "i8_update"));
}

#[test]
fn every_rule_trains_as_the_reference_does() {
    let scheme = sparse(6, &[(3, 0.5), (4, 0.25), (6, 0.34), (8, 1.0)]);
    for (name, optimizer) in rules() {
        for micro in [1, 2] {
            let way = Way { scheme: scheme.clone(), optimizer: optimizer.clone(), micro };
            let (plan, _) = check_net(&format!("{name} of {micro}"), graph(&rows(NET), 1, 4), &way);
            // A state of 4 bytes for every trained element and each of momentum and error, and none else.
            let bytes = |is: &dyn Fn(&str) -> bool| plan.stored_bytes(|s| is(&s.name));
            let (m, error) = (bytes(&|n| n.ends_with(".m")), bytes(&|n| n.ends_with(".error")));
            let trained: u64 = 4 * trained_elems(&plan);
            assert_eq!(m, if optimizer.beta1 > 0.0 { trained } else { 0 }, "{name}");
            assert_eq!(error, if optimizer.rule == 0 { 0 } else { trained }, "{name}");
        }
    }
}

/// Elements that updates move: all of a tensor, or its chosen columns.
fn trained_elems(plan: &Plan) -> u64 {
    let of = |name: &str, elems: u64, cols: u64| match plan.find(&format!("{name}.index")) {
        Some(index) => elems / cols * index.tensor.elems(),
        None => elems,
    };
    let is_trained = |s: &&tinyforge_plan::Stored| s.changes && s.kind == StoredKind::Weight;
    plan.stored.iter().filter(is_trained).map(|s| of(&s.name, s.tensor.elems(), s.tensor.cols() as u64)).sum()
}

#[test]
fn what_is_frozen_runs_by_rows() {
    // Wide in the middle of the first blocks, where memory is fullest.
    const WIDE: &str = "0: 3x3/2 3->4 32-16 | 1: dw3 4->4 16-16 | 2: 1x1 4->4 16-16 | 3: 1x1 4->24 16-16 |
        4: dw5/2 24->24 16-8 | 5: 1x1 24->6 8-8 | 6: 1x1 6->24 8-8 | 7: dw3 24->24 8-8 | 8: 1x1 24->6 8-8 +";
    let net = graph(&rows(WIDE), 1, 4);
    let way = Way { scheme: Scheme::parse("bias:1").expect("a scheme"), optimizer: plain_sgd(), micro: 1 };
    let (plan, _) = check_net("rows", net, &way);
    let kernels: Vec<&str> = plan.entries[0].steps.iter().map(|s| s.kernel.as_str()).collect();
    assert!(kernels.contains(&"i8_bottleneck"), "{kernels:?}");
}

#[test]
fn other_rules_are_refused() {
    let net = graph(&rows(NET), 1, 4);
    let model = Model::of(&net, "rules");
    let with = |optimizer: Optimizer| {
        let request = Request {
            storage: STORAGE,
            optimizer,
            source: &|name| model.source(&net, name),
            ..Request::plain(
                "int8",
                vec![Entry { name: "train".to_string(), graph: net.clone(), role: Role::Train { micro_batches: 1 } }],
                &CpuKernels { threads: 1 },
            )
        };
        compile(&request).map(|_| ()).expect_err("it is refused").to_string()
    };
    for optimizer in [
        Optimizer { rule: 1, ..plain_sgd() },
        Optimizer { weight_decay: 0.1, ..plain_sgd() },
        Optimizer { clip: Some(1.0), ..plain_sgd() },
        Optimizer { weight_decay: 0.1, ..rules()[2].1.clone() },
    ] {
        let error = with(optimizer);
        assert!(error.contains("plain sgd"), "{error}");
    }
}
