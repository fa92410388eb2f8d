//! Quantisation-aware scaling: descent on stored integers is descent on the real weights.
//!
//! The networks are a convolution of any kind, a mean over the image, a fully connected layer and cross-entropy. The
//! int8 side is the program that is compiled, differentiated and updated, run by the definitions that do not round;
//! `w + error` is then the integer weight before rounding. The other side is the same network of the float rows over
//! `W = s_w w` and `B = s_w s_x b`, in f64, by plain descent.

use tinyforge_compiler::ir::attrs::Attr;
use tinyforge_compiler::ir::graph::{Builder, Graph, Kind, Region};
use tinyforge_compiler::ir::ops::{Op, Tensor};
use tinyforge_compiler::ir::reference::Memory;
use tinyforge_compiler::ir::types::Type;
use tinyforge_compiler::optimizer::rule_index;
use tinyforge_compiler::passes::parameterize::{self, Storage};
use tinyforge_compiler::passes::update::{self, ClipBy, Optimizer};
use tinyforge_compiler::passes::{differentiate, prune};
use tinyforge_compiler::scheme::Scheme;
use tinyforge_plan::DType;
use tinyforge_tests::graphs::assert_close;
use tinyforge_tests::random::Random;

const LR: f64 = 0.03125;
const BIAS_LR: f64 = 0.015625;

/// A layer with weights: stored integers, and what they mean.
struct Layer {
    weight: Vec<f64>,
    bias: Vec<f64>,
    /// Scale of each output channel's weights.
    w_scale: Vec<f64>,
    x_scale: f64,
    y_scale: f64,
}

impl Layer {
    fn new(random: &mut Random, elems: usize, channels: usize, x_scale: f64) -> Layer {
        let whole = |random: &mut Random, size: usize| random.below(2 * size + 1) as f64 - size as f64;
        Layer {
            weight: (0..elems).map(|_| whole(random, 60)).collect(),
            bias: (0..channels).map(|_| whole(random, 400)).collect(),
            // Numbers of f32, as scales are.
            w_scale: (0..channels).map(|_| f64::from(random.within(0.004, 0.03) as f32)).collect(),
            x_scale,
            y_scale: 1.0,
        }
    }

    fn contents(&self, part: &str) -> Vec<f64> {
        let per_channel = |of: &dyn Fn(f64) -> f64| self.w_scale.iter().map(|&s| f64::from(of(s) as f32)).collect();
        match part {
            "weight" => self.weight.clone(),
            "bias" => self.bias.clone(),
            "scale" => per_channel(&|s| self.x_scale * s / self.y_scale),
            "weight.factor" => per_channel(&|s| 1.0 / (s * s)),
            "bias.factor" => per_channel(&|s| 1.0 / (s * self.x_scale).powi(2)),
            _ => panic!("no part {part}"),
        }
    }
}

/// A network with its input.
struct Case {
    images: u32,
    side: [u32; 2],
    ins: u32,
    outs: u32,
    is_depthwise: bool,
    is_rectified: bool,
    kernel: u32,
    stride: u32,
    pad: u32,
    classes: u32,
    zero_x: i32,
    conv: Layer,
    head: Layer,
    x: Vec<f64>,
    labels: Vec<f64>,
}

impl Case {
    fn new(seed: u64) -> Case {
        let mut random = Random::new(seed);
        let r = &mut random;
        let is_depthwise = seed.is_multiple_of(3);
        let (images, ins) = (1 + r.below(2) as u32, 1 + r.below(5) as u32);
        let outs = if is_depthwise { ins * (1 + r.below(2) as u32) } else { 1 + r.below(6) as u32 };
        let (kernel, stride) = (1 + r.below(3) as u32, 1 + r.below(2) as u32);
        let pad = r.below(kernel as usize) as u32;
        let side = [kernel + r.below(4) as u32, kernel + r.below(4) as u32];
        let (classes, zero_x) = (2 + r.below(4) as u32, r.below(100) as i32 - 50);
        let x_scale = f64::from(r.within(0.01, 0.05) as f32);
        let depth = kernel * kernel * if is_depthwise { 1 } else { ins };
        let conv = Layer::new(r, (outs * depth) as usize, outs as usize, x_scale);
        let head = Layer::new(r, (classes * outs) as usize, classes as usize, 1.0);
        let elems = images * side[0] * side[1] * ins;
        let x = (0..elems).map(|_| r.below(256) as f64 - 128.0).collect();
        let labels = (0..images).map(|_| r.below(classes as usize) as f64).collect();
        let is_rectified = seed.is_multiple_of(2);
        let mut case = Case {
            images,
            side,
            ins,
            outs,
            is_depthwise,
            is_rectified,
            kernel,
            stride,
            pad,
            classes,
            zero_x,
            conv,
            head,
            x,
            labels,
        };
        case.fit_scales();
        case
    }

    /// Scales of results that nothing but a rectifier clamps: from the float network.
    fn fit_scales(&mut self) {
        let (graph, memory) = self.float();
        let largest = |name: &str| {
            let of = memory.get(graph.result(name).expect("it is a result")).data.iter();
            of.fold(1e-3f64, |most, y| most.max(y.abs()))
        };
        self.conv.y_scale = f64::from((largest("y") / 100.0) as f32);
        self.head.y_scale = f64::from((largest("logits") / 100.0) as f32);
        self.head.x_scale = self.conv.y_scale;
    }

    fn out(&self) -> [u32; 2] {
        self.side.map(|len| (len + 2 * self.pad - self.kernel) / self.stride + 1)
    }

    /// Element `[o, i, r, s]` of the float row's weight in the stored one.
    fn places(&self) -> Vec<usize> {
        let [k, ins, outs] = [self.kernel, if self.is_depthwise { 1 } else { self.ins }, self.outs].map(|n| n as usize);
        let mut places = Vec::new();
        for (o, i) in (0..outs).flat_map(|o| (0..ins).map(move |i| (o, i))) {
            for tap in 0..k * k {
                places.push(if self.is_depthwise { tap * outs + o } else { (o * k * k + tap) * ins + i });
            }
        }
        places
    }

    /// The float network and a run of it: results `y`, `logits`, `loss` and the gradients of `w1`, `b1`, `w2`, `b2`.
    fn float(&self) -> (Graph, Memory) {
        let (n, [h, w]) = (self.images, self.side);
        let mut graph = Graph::new(n);
        let groups = if self.is_depthwise { self.ins } else { 1 };
        let mut b = Builder::new(&mut graph);
        let x = b.declare(Kind::Input, "x", Type::f32(&[n, self.ins, h, w]));
        let shape = [self.outs, self.ins / groups, self.kernel, self.kernel];
        let w1 = b.declare(Kind::Weight, "w1", Type::f32(&shape));
        let b1 = b.declare(Kind::Weight, "b1", Type::f32(&[self.outs]));
        let w2 = b.declare(Kind::Weight, "w2", Type::f32(&[self.classes, self.outs]));
        let b2 = b.declare(Kind::Weight, "b2", Type::f32(&[self.classes]));
        let labels = b.declare(Kind::Input, "labels", Type::i32(&[n]));
        let weights = b.declare(Kind::Input, "weights", Type::f32(&[n]));
        let attrs = [("stride", self.stride.into()), ("pad", self.pad.into()), ("groups", groups.into())];
        let mut y = b.push1("y", Op::Conv2d, &[x, w1, b1], &attrs);
        if self.is_rectified {
            y = b.push1("r", Op::Relu, &[y], &[]);
        }
        let f = b.push1("f", Op::GlobalAvgPool, &[y], &[]);
        let logits = b.push1("logits", Op::Linear, &[f, w2, b2], &[]);
        let loss = b.push1("loss", Op::CrossEntropy, &[logits, labels, weights], &[]);
        graph.results = [("y", y), ("logits", logits), ("loss", loss)].map(|(n, v)| (n.to_string(), v)).to_vec();
        differentiate::run(&mut graph).expect("all rows have gradients");
        let memory = Memory::run(&graph, |v| {
            let info = graph.info(v);
            Tensor { data: self.real(&info.name), ..Tensor::zeros(&info.ty) }
        });
        (graph, memory)
    }

    /// What a tensor of the float network holds.
    fn real(&self, name: &str) -> Vec<f64> {
        let biases = |l: &Layer| l.bias.iter().zip(&l.w_scale).map(|(b, s)| b * s * l.x_scale).collect();
        match name {
            "x" => {
                let (area, ins) = ((self.side[0] * self.side[1]) as usize, self.ins as usize);
                let at = |n: usize, c: usize, p: usize| self.x[(n * area + p) * ins + c];
                let places = (0..self.images as usize).flat_map(|n| (0..ins).map(move |c| (n, c)));
                let real = |x: f64| (x - f64::from(self.zero_x)) * self.conv.x_scale;
                places.flat_map(|(n, c)| (0..area).map(move |p| real(at(n, c, p)))).collect()
            }
            "w1" => self.to_real(&self.conv.weight),
            "w2" => self.head_to_real(&self.head.weight),
            "b1" => biases(&self.conv),
            "b2" => biases(&self.head),
            "labels" => self.labels.clone(),
            _ => vec![1.0 / f64::from(self.images); self.images as usize],
        }
    }

    /// Stored weights in the order and units of the float ones.
    fn to_real(&self, stored: &[f64]) -> Vec<f64> {
        let per_channel = stored.len() / self.outs as usize;
        let channel = |i: usize| self.conv.w_scale[i / per_channel];
        self.places().iter().enumerate().map(|(i, &at)| stored[at] * channel(i)).collect()
    }

    fn head_to_real(&self, stored: &[f64]) -> Vec<f64> {
        let scale = |i: usize| self.head.w_scale[i / self.outs as usize];
        stored.iter().enumerate().map(|(i, w)| w * scale(i)).collect()
    }

    /// The int8 network.
    fn stored(&self) -> Graph {
        let (n, [h, w], [oh, ow]) = (self.images, self.side, self.out());
        let mut graph = Graph::new(n);
        let blocks = ["layers.0", "head"].map(|name| graph.block(name));
        let mut b = Builder::new(&mut graph);
        b.at(blocks[0], Region::Forward);
        let k = self.kernel;
        let x = b.declare(Kind::Input, "x", Type::new(DType::I8, &[n, h, w, self.ins]));
        let shape = if self.is_depthwise { vec![k, k, self.outs] } else { vec![self.outs, k, k, self.ins] };
        let mut layer = |name: &str, shape: &[u32], outs: u32| {
            let w = b.declare(Kind::Weight, &format!("{name}.weight"), Type::new(DType::I8, shape));
            let bias = b.declare(Kind::Weight, &format!("{name}.bias"), Type::i32(&[outs]));
            [w, bias, b.declare(Kind::Const, &format!("{name}.scale"), Type::f32(&[outs]))]
        };
        let [w1, b1, s1] = layer("conv", &shape, self.outs);
        let [w2, b2, s2] = layer("head", &[self.classes, 1, 1, self.outs], self.classes);
        let zero_y = if self.is_rectified { -128 } else { -20 };
        let mut attrs: Vec<(&str, Attr)> = vec![("out_h", oh.into()), ("out_w", ow.into())];
        attrs.extend([("stride_h", Attr::from(self.stride)), ("stride_w", self.stride.into())]);
        attrs.extend([("pad_top", Attr::from(self.pad)), ("pad_left", self.pad.into())]);
        attrs.extend([("zero_x", Attr::from(self.zero_x)), ("zero_y", zero_y.into())]);
        if self.is_depthwise {
            attrs.push(("multiplier", (self.outs / self.ins).into()));
        }
        let op = if self.is_depthwise { Op::I8Depthwise } else { Op::I8Conv2d };
        let y = b.push1("y", op, &[x, w1, b1, s1], &attrs);
        b.at(blocks[1], Region::Forward);
        let pool = [("kh", oh.into()), ("kw", ow.into()), ("zero", zero_y.into())];
        let f = b.push1("f", Op::I8AvgPool, &[y], &pool);
        let logits =
            b.push1("logits", Op::I8Conv2d, &[f, w2, b2, s2], &[("zero_x", zero_y.into()), ("zero_y", 7.into())]);
        let labels = b.declare(Kind::Input, "labels", Type::i32(&[n]));
        let weights = b.declare(Kind::Input, "weights", Type::f32(&[n]));
        let attrs = [("scale", Attr::from(self.head.y_scale)), ("zero", 7.into())];
        let loss = b.push1("loss", Op::I8CrossEntropy, &[logits, labels, weights], &attrs);
        graph.results.push(("loss".to_string(), loss));
        graph
    }

    /// Trains the int8 network for a step by a rule; what every weight and bias moved by, with the error where the rule
    /// keeps one, by name.
    fn moves(&self, rule: &str, seed: u32) -> Vec<(String, Vec<f64>)> {
        let mut graph = self.stored();
        let storage = Storage { trained: DType::F32, frozen: None };
        let trained = parameterize::run(&mut graph, &Scheme::full(), storage, 0).expect("the scheme suits").trained;
        differentiate::run(&mut graph).expect("all rows have gradients");
        prune::run(&mut graph, |name| trained.iter().any(|t| t == name));
        let rule = rule_index(rule).expect("the table has it");
        let optimizer = Optimizer { rule, beta1: 0.0, beta2: 0.0, eps: 0.0, weight_decay: 0.0, clip: None };
        update::run(&mut graph, &optimizer, ClipBy::Keeping, 1);
        let contents = |name: &str, ty: &Type| match name {
            "x" => self.x.clone(),
            "hyper" => vec![LR, BIAS_LR, 0.0, 0.0],
            "rng" => vec![f64::from(seed), 0.0, 3.0, 0.0],
            "labels" | "weights" => self.real(name),
            _ => match name.split_once('.') {
                Some(("conv", part)) if !part.ends_with("error") => self.conv.contents(part),
                Some(("head", part)) if !part.ends_with("error") => self.head.contents(part),
                _ => vec![0.0; ty.elems() as usize],
            },
        };
        let memory = Memory::run_smooth(&graph, |v| {
            let info = graph.info(v);
            Tensor { data: contents(&info.name, &info.ty), ..Tensor::zeros(&info.ty) }
        });
        let moved = |name: &String| {
            let w = graph.find(name).expect("it is declared");
            let (before, after) = (contents(name, graph.ty(w)), &memory.get(w).data);
            let error = graph.find(&format!("{name}.error")).map(|e| &memory.get(e).data);
            let of = |i: usize| after[i] - before[i] + error.map_or(0.0, |e| e[i]);
            (name.clone(), (0..before.len()).map(of).collect())
        };
        trained.iter().map(moved).collect()
    }
}

#[test]
fn a_step_of_the_integers_is_a_step_of_the_real_weights() {
    let mut largest = 0.0f64;
    for seed in 0..60 {
        let case = Case::new(seed);
        let (graph, memory) = case.float();
        let step = |name: &str, lr: f64| -> Vec<f64> {
            let grad = graph.result(&format!("grad:{name}")).expect("the loss depends on it");
            memory.get(grad).data.iter().map(|g| -lr * g).collect()
        };
        let moves = case.moves("sgd-accumulate", 0);
        assert_eq!(moves.len(), 4);
        for (name, moved) in moves {
            let of_bias = |l: &Layer| moved.iter().zip(&l.w_scale).map(|(m, s)| m * s * l.x_scale).collect::<Vec<_>>();
            let (found, wanted) = match name.as_str() {
                "conv.weight" => (case.to_real(&moved), step("w1", LR)),
                "conv.bias" => (of_bias(&case.conv), step("b1", BIAS_LR)),
                "head.weight" => (case.head_to_real(&moved), step("w2", LR)),
                _ => (of_bias(&case.head), step("b2", BIAS_LR)),
            };
            // The backward pass, factors and scales are f32; sums of it cancel.
            let size = wanted.iter().fold(1e-6f64, |most, x| most.max(x.abs()));
            assert_close(&format!("seed {seed}, {name}"), &found, &wanted, 2e-5, size);
            largest = moved.iter().fold(largest, |most, m| most.max(m.abs()));
        }
    }
    // The integers were asked to move by more than rounding, and by less than to their limits.
    assert!(largest > 1.0, "{largest}");
}

/// The mean move over seeds is the step. The mean of `n` draws of variance `v = f (1 - f)`, each within 1 of its mean,
/// is off by more than `sqrt(2 v L / n) + 2 L / (3 n)` with a probability of at most `2 exp(-L)` (Bernstein).
#[test]
fn rounding_has_no_bias_over_seeds() {
    const SEEDS: u32 = 300;
    const L: f64 = 25.0;
    let mut moved_at_random = 0;
    for case in [1, 2, 3].map(Case::new) {
        let wanted = case.moves("sgd-accumulate", 0);
        let runs: Vec<_> = (0..SEEDS).map(|seed| case.moves("sgd", seed)).collect();
        for (t, (name, wanted)) in wanted.iter().enumerate() {
            for (i, wanted) in wanted.iter().enumerate() {
                let mean = runs.iter().map(|r| r[t].1[i]).sum::<f64>() / f64::from(SEEDS);
                let part = wanted - wanted.floor();
                let variance = part * (1.0 - part);
                let allowed = (2.0 * variance * L / f64::from(SEEDS)).sqrt() + 2.0 * L / 3.0 / f64::from(SEEDS);
                assert!((mean - wanted).abs() <= allowed, "{name}[{i}]: {mean} is not {wanted} +- {allowed}");
                moved_at_random += usize::from(runs.iter().any(|r| r[t].1[i] != runs[0][t].1[i]));
            }
        }
    }
    assert!(moved_at_random > 50, "{moved_at_random}");
}
