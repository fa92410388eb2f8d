//! Random graphs and random damage.

use crate::random::Random;
use tinyforge_compiler::ir::attrs::Attr;
use tinyforge_compiler::ir::graph::{Builder, Graph, Kind, Region, Value};
use tinyforge_compiler::ir::ops::{Op, Tensor};
use tinyforge_compiler::ir::types::Type;

/// A random forward graph: `blocks` blocks of elementwise ops, linear layers and norms over values of `rows * seq`
/// tokens, with fan-in, shared weights, and a loss at the end.
pub fn graph(seed: u64) -> Graph {
    let mut random = Random::new(seed);
    let (rows, seq) = (1 + random.below(2) as u32, 1 + random.below(4) as u32);
    let mut graph = Graph::new(rows);
    let block_count = 1 + random.below(4);
    let blocks: Vec<u32> = (0..block_count).map(|i| graph.block(&format!("layers.{i}"))).collect();
    let (embed, head) = (graph.block("embed"), graph.block("head"));
    let b = Builder::new(&mut graph);
    let mut writer = Writer { random, b, tokens: rows * seq, seq, live: Vec::new(), weights: Vec::new() };
    writer.b.at(embed, Region::Forward);
    writer.start();
    for block in blocks {
        writer.b.at(block, Region::Forward);
        for _ in 0..2 + writer.random.below(6) {
            writer.push();
        }
    }
    writer.b.at(head, Region::Forward);
    writer.loss();
    graph
}

struct Writer<'g> {
    random: Random,
    b: Builder<'g>,
    tokens: u32,
    seq: u32,
    /// Matrices of all tokens, latest last.
    live: Vec<Value>,
    /// Matrices that linear layers may share.
    weights: Vec<Value>,
}

impl Writer<'_> {
    fn cols(&self, v: Value) -> u32 {
        self.b.graph.ty(v).cols()
    }

    fn declare(&mut self, kind: Kind, name: &str, ty: Type) -> Value {
        let name = self.b.fresh(name);
        self.b.graph.declare(kind, &name, ty)
    }

    fn weight(&mut self, shape: &[u32]) -> Value {
        self.declare(Kind::Weight, "w", Type::f32(shape))
    }

    fn start(&mut self) {
        let width = *self.random.pick(&[2u32, 4, 6]);
        let x = match self.random.below(2) {
            0 => {
                // Everything hangs on this value: behind a weight, so that there is something to train.
                let x = self.declare(Kind::Input, "x", Type::f32(&[self.tokens, width]));
                self.linear(x)
            }
            _ => {
                let table = self.weight(&[5, width]);
                self.weights.push(table);
                let index = self.declare(Kind::Input, "tokens", Type::i32(&[self.tokens]));
                self.b.push1("x", Op::Embedding, &[table, index], &[])
            }
        };
        self.live.push(x);
    }

    /// A late value more often than an early one.
    fn any(&mut self) -> Value {
        let back = self.random.below(self.live.len()).min(self.random.below(self.live.len()));
        self.live[self.live.len() - 1 - back]
    }

    /// Another value of the same width.
    fn like(&mut self, v: Value) -> Value {
        let cols = self.cols(v);
        let all: Vec<Value> = self.live.iter().copied().filter(|&o| self.cols(o) == cols).collect();
        *self.random.pick(&all)
    }

    fn push(&mut self) {
        let x = self.any();
        let cols = self.cols(x);
        let y = match self.random.below(14) {
            0 | 1 => {
                let other = self.like(x);
                let op = *self.random.pick(&[Op::Add, Op::Mul, Op::Swiglu]);
                self.b.push1("m", op, &[x, other], &[])
            }
            2 => {
                let other = self.like(x);
                self.b.push1("s", Op::AddScaled, &[x, other], &[("scale", 0.5.into())])
            }
            3 | 4 => {
                let op = *self.random.pick(&[Op::Silu, Op::Gelu, Op::GeluTanh, Op::Tanh, Op::Sigmoid, Op::Relu]);
                self.b.push1("a", op, &[x], &[])
            }
            5..=7 => self.linear(x),
            8 => {
                let w = self.weight(&[cols]);
                self.b.push1("n", Op::RmsNorm, &[x, w], &[])
            }
            9 => {
                // A residual and its norm, which fuse.
                let (other, w) = (self.like(x), self.weight(&[cols]));
                let sum = self.b.push1("r", Op::Add, &[x, other], &[]);
                self.live.push(sum);
                self.b.push1("n", Op::RmsNorm, &[sum, w], &[])
            }
            10 => {
                let (w, bias) = (self.weight(&[cols]), self.weight(&[cols]));
                self.b.push1("l", Op::LayerNorm, &[x, w, bias], &[])
            }
            11 => {
                let bias = self.weight(&[cols]);
                self.b.push1("b", Op::AddRow, &[x, bias], &[])
            }
            12 => self.slices(x),
            _ => self.attention(x),
        };
        self.live.push(y);
    }

    fn linear(&mut self, x: Value) -> Value {
        let cols = self.cols(x);
        let shared = self.weights.iter().copied().find(|&w| self.cols(w) == cols);
        let w = match (shared, self.random.below(3)) {
            (Some(w), 0) => w,
            _ => {
                let outs = *self.random.pick(&[2u32, 4, 6]);
                let w = self.weight(&[outs, cols]);
                self.weights.push(w);
                w
            }
        };
        let mut args = vec![x, w];
        if self.random.below(2) == 0 {
            let outs = self.b.graph.ty(w).rows();
            args.push(self.weight(&[outs]));
        }
        self.b.push1("h", Op::Linear, &args, &[])
    }

    /// Parts of a value, put together again in another order.
    fn slices(&mut self, x: Value) -> Value {
        let half = self.cols(x) / 2;
        let part = |start: u32| [("start", Attr::from(start)), ("len", half.into())];
        let first = self.b.push1("p", Op::SliceCols, &[x], &part(0));
        let second = self.b.push1("p", Op::SliceCols, &[x], &part(half));
        self.b.push1("c", Op::ConcatCols, &[second, first], &[])
    }

    /// Declares an input or constant that all of a kind share.
    fn shared(&mut self, kind: Kind, name: &str, ty: Type) -> Value {
        match self.b.graph.find(name) {
            Some(v) => v,
            None => self.declare(kind, name, ty),
        }
    }

    /// Attention over as many heads as divide the columns, with as many of keys and values as some value has room for;
    /// queries and keys are rotated where a head's features are pairs.
    fn attention(&mut self, x: Value) -> Value {
        let cols = self.cols(x);
        let heads = *self.random.pick(&[1, 2, 3].into_iter().filter(|h| cols.is_multiple_of(*h)).collect::<Vec<u32>>());
        let size = cols / heads;
        let fits = |v: &Value| self.cols(*v).is_multiple_of(size) && heads.is_multiple_of(self.cols(*v) / size);
        let all: Vec<Value> = self.live.iter().copied().filter(fits).collect();
        let mut k = *self.random.pick(&all);
        let v = self.like(k);
        let kv_heads = self.cols(k) / size;
        let segments = self.shared(Kind::Input, "segments", Type::i32(&[self.tokens]));
        let mut q = x;
        if size.is_multiple_of(2) && self.random.below(2) == 0 {
            let positions = self.shared(Kind::Input, "positions", Type::i32(&[self.tokens]));
            let table = self.shared(Kind::Const, &format!("inv_freq.{size}"), Type::f32(&[size / 2]));
            let interleaved = self.random.below(2) as u32;
            [q, k] = [(q, heads), (k, kv_heads)].map(|(v, heads)| {
                let attrs = [("heads", heads.into()), ("interleaved", interleaved.into())];
                self.b.push1("turned", Op::Rope, &[v, positions, table], &attrs)
            });
        }
        let attrs = [("seq", self.seq.into()), ("heads", heads.into()), ("kv_heads", kv_heads.into())];
        self.b.push("o", Op::Attention, &[q, k, v, segments], &attrs)[0]
    }

    fn loss(&mut self) {
        let x = self.live[self.live.len() - 1];
        let cols = self.cols(x);
        let weights = self.declare(Kind::Input, "loss_weights", Type::f32(&[self.tokens]));
        let loss = if self.random.below(3) == 0 {
            let target = self.declare(Kind::Input, "target", Type::f32(&[self.tokens, cols]));
            self.b.push1("loss", Op::MseLoss, &[x, target, weights], &[])
        } else {
            let tied = self.weights.iter().copied().find(|&w| self.cols(w) == cols);
            let table = match tied {
                Some(w) => w,
                None => self.weight(&[5, cols]),
            };
            let labels = self.declare(Kind::Input, "labels", Type::i32(&[self.tokens]));
            let logits = self.b.push1("logits", Op::Linear, &[x, table], &[]);
            self.b.push1("loss", Op::CrossEntropy, &[logits, labels, weights], &[])
        };
        self.b.graph.results.push(("loss".to_string(), loss));
    }
}

/// What a random graph is given for a declared tensor: it depends on the name alone.
pub fn contents(name: &str, ty: &Type) -> Tensor {
    let seed = name.bytes().fold(5u64, |seed, b| seed.wrapping_mul(31).wrapping_add(u64::from(b)));
    let (mut random, mut tensor) = (Random::new(seed), Tensor::zeros(ty));
    for (i, x) in tensor.data.iter_mut().enumerate() {
        *x = match name {
            "labels" => random.below(3) as f64 - 1.0,
            "tokens" => random.below(5) as f64,
            "positions" => (i % 3) as f64,
            "segments" => f64::from(u8::from(i % 3 == 2)),
            "loss_weights" => random.within(0.1, 0.2),
            "hyper" => [0.0625, 1.0 - 0.9, 1.0 - 0.999, 0.0][i],
            "rng" => 0.0,
            _ if name.contains(".m") || name.contains(".v") || name.contains(".grad_sum") => 0.0,
            _ => random.within(-1.0, 1.0),
        };
    }
    tensor
}

/// A text with a few random edits: cuts, swaps and copies of pieces, and numbers put in the place of others.
pub fn damaged_text(text: &str, random: &mut Random) -> String {
    const PIECES: [&str; 20] = [
        "0",
        "1",
        "-1",
        "4294967296",
        "2147483647",
        "65536",
        "1e308",
        "99999999999999999999",
        "%",
        "@",
        " = ",
        " : ",
        "[",
        "]",
        "{",
        "}",
        ",",
        "f32[2,3]",
        "\n",
        "running=1",
    ];
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..1 + random.below(2) {
        let at = random.below(chars.len());
        match random.below(5) {
            0 => {
                chars.drain(at..(at + 1 + random.below(8)).min(chars.len()));
            }
            1 => {
                let piece: Vec<char> = random.pick(&PIECES).chars().collect();
                chars.splice(at..at, piece);
            }
            2 => swap_lines(&mut chars, random),
            3 => {
                let from = random.below(chars.len());
                let part: Vec<char> = chars[from..(from + 1 + random.below(30)).min(chars.len())].to_vec();
                chars.splice(at..at, part);
            }
            _ => {
                let number: &str = PIECES[random.below(8)];
                replace_number(&mut chars, at, number);
            }
        }
        if chars.is_empty() {
            break;
        }
    }
    chars.into_iter().collect()
}

fn swap_lines(chars: &mut Vec<char>, random: &mut Random) {
    let text: String = chars.iter().collect();
    let mut lines: Vec<&str> = text.lines().collect();
    if lines.len() > 1 {
        let (a, b) = (random.below(lines.len()), random.below(lines.len()));
        lines.swap(a, b);
        *chars = lines.join("\n").chars().collect();
    }
}

/// Puts another number where the next one behind `at` stands.
fn replace_number(chars: &mut Vec<char>, at: usize, with: &str) {
    let Some(start) = (at..chars.len()).find(|&i| chars[i].is_ascii_digit()) else { return };
    let end = (start..chars.len()).find(|&i| !chars[i].is_ascii_digit()).unwrap_or(chars.len());
    chars.splice(start..end, with.chars());
}
