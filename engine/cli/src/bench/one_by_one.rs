//! Dense products and attention one at a time, on any device: each is planned and run as a step of training is, and its
//! median time stands beside what bounds it.
//!
//! The bound is arithmetic or traffic with the near memory at the rates of a machine's profile. Without a profile the
//! rates are those of the fastest product of each number type and of a copy, measured here: then a ratio says how far a
//! shape is from the best one of this device, not how far that one is from what the hardware could do.

use crate::error::CommandError;
use crate::planning;
use std::time::{Duration, Instant};
use tinyforge::cpu::CpuKernels;
use tinyforge::gpu;
use tinyforge::runner::{DeviceChoice, RunOptions, Runner};
use tinyforge_compiler::compile::{self, Entry, Request, Role};
use tinyforge_compiler::cost::{self, Work};
use tinyforge_compiler::import::decoder::{COMPUTE_BF16, COMPUTE_F32};
use tinyforge_compiler::ir::attrs::Attr;
use tinyforge_compiler::ir::graph::{Builder, Graph, Kind, Region};
use tinyforge_compiler::ir::ops::Op;
use tinyforge_compiler::ir::types::Type;
use tinyforge_compiler::machine::{Limit, Machine};
use tinyforge_compiler::scheme::Scheme;
use tinyforge_kernels::random::Stream;
use tinyforge_plan::{DType, Kernels, Plan, Stored, Tensor};

/// What is run, where, and for how long.
pub struct Options {
    /// What runs the kernels.
    pub device: DeviceChoice,
    /// Worker threads of the CPU.
    pub threads: u32,
    /// Rows of the products.
    pub tokens: u32,
    /// How long each shape is run; one that would take longer for a single run is left out.
    pub limit: Duration,
    /// The device's rates, where they are known from elsewhere.
    pub machine: Option<Machine>,
}

/// A shape that was run.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    /// The kernel.
    pub kernel: String,
    /// Its sizes, in words.
    pub shape: String,
    /// Number type of its arithmetic.
    pub factors: String,
    /// How its weights are stored.
    pub weights: String,
    /// The median time.
    pub seconds: f64,
    /// Runs that it is of.
    pub runs: usize,
    /// Arithmetic a second.
    pub flops_per_second: f64,
    /// Bytes that the operands have, a second.
    pub bytes_per_second: f64,
    /// What bounds it.
    pub limit: Limit,
    /// Seconds at the rate that bounds it.
    pub bound_s: f64,
    /// The bound over the median.
    pub ratio: f64,
}

/// What was measured.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Measured {
    /// Shapes that were run.
    pub rows: Vec<Row>,
    /// Shapes that were not, and why.
    pub left_out: Vec<[String; 2]>,
    /// The machine whose rates the bounds are at.
    #[serde(skip)]
    pub machine: Machine,
}

/// One step to be timed.
#[derive(Clone, Copy)]
enum Case {
    /// A copy: what the near memory gives.
    Copy { elems: u32 },
    /// A product of a linear layer.
    Product { op: Op, tokens: u32, k: u32, n: u32, weights: DType, compute: i64 },
    /// Causal attention of one packed row.
    Attention { op: Op, seq: u32, compute: i64 },
}

/// Inputs and outputs of the widest layer of three models.
const WIDTHS: [(u32, u32); 3] = [(576, 1536), (2048, 8192), (4096, 14336)];
/// Storage of weights and arithmetic.
const FROZEN: [(DType, i64); 5] = [
    (DType::F32, COMPUTE_F32),
    (DType::F16, COMPUTE_F32),
    (DType::BF16, COMPUTE_BF16),
    (DType::Q8_0, COMPUTE_BF16),
    (DType::Q4_0, COMPUTE_BF16),
];
/// Tokens of a packed row.
const SEQS: [u32; 5] = [128, 512, 1024, 2048, 4096];
/// Heads, heads of keys, elements of a head: those of Llama-3.2-1B.
const HEADS: [u32; 3] = [32, 8, 64];
/// Elements of the copy.
const COPY_ELEMS: u32 = 16 << 20;
/// Runs that count, at most; one before them does not.
const RUNS: usize = 9;
/// Name of the entry and of its result.
const ENTRY: &str = "once";

/// Every case, each kind from small to large. Attention in bf16 is another kernel on cards of NVIDIA alone.
fn cases(tokens: u32, device: DeviceChoice) -> Vec<Case> {
    let mut all = vec![Case::Copy { elems: COPY_ELEMS }];
    for op in [Op::Linear, Op::LinearGradX, Op::LinearGradW] {
        // A gradient of weights reads none.
        let is_of_weights = |weights: DType| op != Op::LinearGradW || matches!(weights, DType::F32 | DType::BF16);
        for (weights, compute) in FROZEN.into_iter().filter(|f| is_of_weights(f.0)) {
            all.extend(WIDTHS.map(|(k, n)| Case::Product { op, tokens, k, n, weights, compute }));
        }
    }
    let computes: &[i64] = if device == DeviceChoice::Cuda { &[COMPUTE_F32, COMPUTE_BF16] } else { &[COMPUTE_F32] };
    for op in [Op::Attention, Op::AttentionGrad] {
        all.extend(computes.iter().flat_map(|&compute| SEQS.map(|seq| Case::Attention { op, seq, compute })));
    }
    all
}

impl Case {
    fn op(self) -> Op {
        match self {
            Case::Copy { .. } => Op::Scale,
            Case::Product { op, .. } | Case::Attention { op, .. } => op,
        }
    }

    /// In words.
    fn shape(self) -> String {
        match self {
            Case::Copy { elems } => format!("{elems} elements"),
            Case::Product { tokens, k, n, .. } => format!("{tokens} tokens, {k} to {n}"),
            Case::Attention { seq, .. } => {
                let [heads, kv_heads, dim] = HEADS;
                format!("{seq} tokens, {heads} heads on {kv_heads} of {dim}")
            }
        }
    }

    /// The step, and behind it one number made of what it gives, so that little comes back to the host.
    fn graph(self) -> Graph {
        let mut graph = Graph::new(1);
        let block = graph.block("layers.0");
        let weight = |graph: &mut Graph, name: &str, ty| graph.declare(Kind::Weight, name, ty);
        let (args, attrs): (Vec<_>, Vec<(&str, Attr)>) = match self {
            Case::Copy { elems } => (vec![weight(&mut graph, "x", Type::f32(&[elems]))], vec![("scale", 0.5.into())]),
            Case::Product { op, tokens, k, n, weights, compute } => {
                let [left, right] = match op {
                    Op::Linear => [Type::f32(&[tokens, k]), Type::new(weights, &[n, k])],
                    Op::LinearGradX => [Type::f32(&[tokens, n]), Type::new(weights, &[n, k])],
                    _ => [Type::f32(&[tokens, n]), Type::f32(&[tokens, k])],
                };
                let args = vec![weight(&mut graph, "left", left), weight(&mut graph, "right", right)];
                let rows = (op == Op::LinearGradW).then_some(("rows", 1.into()));
                (args, [("compute", compute.into())].into_iter().chain(rows).collect())
            }
            Case::Attention { op, seq, compute } => {
                let [heads, kv_heads, dim] = HEADS;
                let [wide, narrow] = [Type::f32(&[seq, heads * dim]), Type::f32(&[seq, kv_heads * dim])];
                let of = [("q", &wide), ("k", &narrow), ("v", &narrow)];
                let mut args: Vec<_> = of.iter().map(|(name, ty)| weight(&mut graph, name, (*ty).clone())).collect();
                args.push(graph.declare(Kind::Input, "segments", Type::i32(&[seq])));
                if op == Op::AttentionGrad {
                    args.push(weight(&mut graph, "out", wide.clone()));
                    args.push(weight(&mut graph, "lse", Type::f32(&[seq, heads])));
                    args.push(weight(&mut graph, "dy", wide));
                }
                let scale = Attr::from(1.0 / f64::from(dim).sqrt());
                let sizes = [("seq", seq.into()), ("heads", heads.into()), ("kv_heads", kv_heads.into())];
                let others = [("scale", scale), ("causal", true.into()), ("window", 0.into())];
                (args, [&sizes[..], &others, &[("compute", compute.into())]].concat())
            }
        };
        let mut b = Builder::new(&mut graph);
        b.at(block, Region::Forward);
        let outs = b.push(ENTRY, self.op(), &args, &attrs);
        let norm = b.push1("norm", Op::NormSq, &outs[..1], &[]);
        graph.results.push(("norm".to_string(), norm));
        graph
    }
}

/// A plan of one case.
fn planned(case: Case, options: &Options) -> Result<Plan, CommandError> {
    let cpu = CpuKernels { threads: options.threads };
    let gpu = gpu::kernels(options.device).map_err(CommandError::request)?;
    let request = Request {
        scheme: Scheme::frozen(),
        target: planning::target(options.device),
        threads: options.threads,
        ..Request::plain(
            ENTRY,
            vec![Entry { name: ENTRY.to_string(), graph: case.graph(), role: Role::Forward }],
            gpu.as_ref().map_or(&cpu as &dyn Kernels, |gpu| gpu),
        )
    };
    Ok(compile::compile(&request).map_err(CommandError::run)?.plan)
}

/// Some elements between -1 and 1, as bytes of a storage type; quantised blocks have one scale and one code.
fn pattern(dtype: DType) -> Vec<u8> {
    const ELEMS: u64 = 1024;
    let stream = Stream { seed: 1, step: 0, tensor: 0 };
    let values = (0..ELEMS).map(|i| 2.0 * stream.uniform(i) - 1.0);
    match dtype {
        DType::F32 => values.flat_map(f32::to_le_bytes).collect(),
        DType::F16 => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        // As a scale in f16 about 0.0007.
        _ => vec![0x11; dtype.block_bytes() as usize],
    }
}

/// A case that was run: what it was, and its times in seconds, ascending.
struct Timed {
    work: Work,
    bytes: u64,
    times: Vec<f64>,
}

impl Timed {
    fn median(&self) -> f64 {
        self.times[self.times.len() / 2]
    }
}

/// Runs a case until its time is up.
fn timed(case: Case, options: &Options) -> Result<Timed, CommandError> {
    let plan = planned(case, options)?;
    let run = RunOptions { count_times: true, device: options.device, ..RunOptions::default() };
    let mut runner = Runner::new(plan.clone(), run)?;
    for Stored { tensor, .. } in &plan.stored {
        let pattern = pattern(tensor.dtype);
        let fill = |bytes: &mut [u8]| {
            bytes.chunks_mut(pattern.len()).for_each(|part| part.copy_from_slice(&pattern[..part.len()]));
        };
        runner.change(tensor, fill)?;
    }
    runner.input::<i32>(0, "segments").fill(0);
    let step = plan.entries[0].steps.iter().find(|s| s.kernel == case.op().name()).expect("the step has a result");
    let taken = |runner: &Runner| -> u64 {
        runner.times().filter(|(s, ..)| s.kernel == step.kernel).map(|(_, ns, _)| ns).sum()
    };
    let (mut times, started, pool) = (Vec::new(), Instant::now(), runner.threads());
    for run in 0..=RUNS {
        let before = taken(&runner);
        pool.enter(|| runner.run(0))?;
        let seconds = (taken(&runner) - before).max(1) as f64 / 1e9;
        if run > 0 || started.elapsed() > options.limit {
            times.push(seconds);
        }
        if run > 0 && started.elapsed() > options.limit {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    let bytes = step.args.iter().chain(&step.outs).map(Tensor::bytes).sum();
    Ok(Timed { work: cost::work(step), bytes, times })
}

/// Runs every case that the time allows; `note` is told what comes next.
///
/// # Errors
/// The device is not there, or failed.
pub fn measure(options: &Options, note: &mut dyn FnMut(&str)) -> Result<Measured, CommandError> {
    // Absent devices are told once, before anything else.
    gpu::kernels(options.device).map_err(CommandError::request)?;
    let (mut found, mut left_out) = (Vec::new(), Vec::new());
    // The kernel, its types, and the rate that the last case of that kind reached.
    let mut last: Option<(Op, DType, f64)> = None;
    for case in cases(options.tokens, options.device) {
        let weights = if let Case::Product { weights, .. } = case { weights } else { DType::F32 };
        let name = format!("{} {} {}", case.op().name(), weights.name(), case.shape());
        let flops = flops(case);
        let rate = last.filter(|&(op, dtype, _)| (op, dtype) == (case.op(), weights)).map(|last| last.2);
        let expected_s = rate.map_or(0.0, |rate| flops / rate);
        if expected_s > options.limit.as_secs_f64() {
            left_out.push([name, format!("a run would take about {expected_s:.1} s")]);
            continue;
        }
        note(&name);
        match timed(case, options) {
            Ok(timed) => {
                last = Some((case.op(), weights, flops / timed.median()));
                found.push((case, timed));
            }
            Err(why) => left_out.push([name, why.to_string().lines().next().unwrap_or_default().to_string()]),
        }
    }
    if found.is_empty() {
        let why = left_out.first().map_or(String::new(), |[name, why]| format!("{name}: {why}"));
        return Err(CommandError::run(format!("no shape could be run; {why}")));
    }
    let machine = options.machine.clone().unwrap_or_else(|| as_measured(options, &found));
    let rows = found.iter().map(|(case, timed)| row(*case, timed, &machine)).collect::<Result<Vec<_>, _>>()?;
    Ok(Measured { rows, left_out, machine })
}

/// Arithmetic of a case, as far as times of one kind are compared by it.
fn flops(case: Case) -> f64 {
    match case {
        Case::Copy { elems } => f64::from(elems),
        Case::Product { tokens, k, n, .. } => 2.0 * f64::from(tokens) * f64::from(k) * f64::from(n),
        Case::Attention { seq, .. } => f64::from(seq) * f64::from(seq),
    }
}

/// A machine with the best rates that were reached.
fn as_measured(options: &Options, found: &[(Case, Timed)]) -> Machine {
    let mut machine = Machine::from_name(options.device.name()).expect("every device is built in");
    let best = |wanted: &dyn Fn(&Case, &Timed) -> Option<f64>| {
        found.iter().filter_map(|(case, timed)| wanted(case, timed)).max_by(f64::total_cmp)
    };
    let product = |factors: DType| {
        best(&|case, timed| {
            let is_one = matches!(case, Case::Product { .. }) && timed.work.factors == factors;
            is_one.then(|| timed.work.flops as f64 / timed.times[0])
        })
    };
    machine.name = "this device".to_string();
    machine.figures = "the fastest product of each type and a copy, measured here".to_string();
    (machine.rates.f32, machine.rates.bf16) = (product(DType::F32), product(DType::BF16));
    let copy = |case: &Case, timed: &Timed| {
        matches!(case, Case::Copy { .. }).then(|| timed.work.near_bytes as f64 / timed.times[0])
    };
    machine.rates.near_bytes_per_second = best(&copy);
    machine
}

fn row(case: Case, timed: &Timed, machine: &Machine) -> Result<Row, CommandError> {
    let Timed { work, bytes, times } = timed;
    let Some((limit, bound_s)) = cost::ideal(machine, work) else {
        let why = format!("{}: the profile does not say FLOP/s in {}", machine.name, work.factors.name());
        return Err(CommandError::request(why));
    };
    let seconds = timed.median();
    Ok(Row {
        kernel: work.kernel.clone(),
        shape: case.shape(),
        factors: work.factors.name().to_string(),
        weights: work.weights.name().to_string(),
        seconds,
        runs: times.len(),
        flops_per_second: work.flops as f64 / seconds,
        bytes_per_second: *bytes as f64 / seconds,
        limit,
        bound_s,
        ratio: bound_s / seconds,
    })
}
