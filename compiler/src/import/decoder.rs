//! Builds the program of a decoder language model from its description.
//!
//! One body for the embedding, one for every kind of block (blocks differ only by their attention window), one for
//! the head. Shapes: `T = rows * seq` tokens, `D` hidden width.

use super::decoder_config::{Activation, DecoderConfig, Family, NormKind};
use crate::ir::attrs::Attr;
use crate::ir::graph::{Builder, Graph, Kind, Value};
use crate::ir::ops::Op;
use crate::ir::program::{Operand, Program};
use crate::ir::types::Type;
use std::collections::HashMap;
use tinyforge_plan::DType;

/// What the program is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Losses of packed rows: inputs `tokens, positions, segments, labels, loss_weights`, result `loss[T]`.
    Loss {
        /// Packed rows in a micro-batch.
        rows: u32,
        /// Tokens a row.
        seq: u32,
    },
    /// Logits of every token of packed rows: inputs `tokens, positions, segments`, result `logits[T,V]`.
    Logits {
        /// Packed rows.
        rows: u32,
        /// Tokens a row.
        seq: u32,
    },
    /// Continues a text through a key/value cache: inputs `tokens, positions` and `last`, the index of the token
    /// whose logits are wanted; result `logits[1,V]`. Unused tokens repeat a used one and its position.
    Cached {
        /// Tokens at a time: the chunk of a prefill, or 1.
        tokens: u32,
        /// Capacity of the cache.
        context: u32,
    },
}

impl Mode {
    /// Tokens and packed rows.
    fn size(self) -> (u32, u32) {
        match self {
            Mode::Loss { rows, seq } | Mode::Logits { rows, seq } => (rows * seq, rows),
            Mode::Cached { tokens, .. } => (tokens, 1),
        }
    }
}

/// How factors enter products.
pub const COMPUTE_F32: i64 = 0;
/// Factors are rounded to bf16.
pub const COMPUTE_BF16: i64 = 1;

/// Name of the table of rotation frequencies, a constant of the program.
pub const INV_FREQ: &str = "rope.inv_freq";

/// The program; `dtype_of` gives the storage of each parameter by its canonical name.
pub fn program(config: &DecoderConfig, mode: Mode, compute: i64, dtype_of: &dyn Fn(&str) -> DType) -> Program {
    let (tokens, rows) = mode.size();
    let program = Program { rows, ..Program::default() };
    let mut writer = Writer { config, mode, compute, dtype_of, tokens, program, named: HashMap::new() };
    writer.inputs();
    let mut x = writer.embed();
    for layer in 0..config.layers {
        x = writer.block(layer, x);
    }
    writer.head(x);
    writer.program
}

struct Writer<'a> {
    config: &'a DecoderConfig,
    mode: Mode,
    compute: i64,
    dtype_of: &'a dyn Fn(&str) -> DType,
    tokens: u32,
    program: Program,
    named: HashMap<String, Operand>,
}

/// A body being written, and what its calls must hand over.
struct Body<'g> {
    b: Builder<'g>,
    /// Program-level name of every declared tensor: relative names of parameters start with a dot.
    formals: Vec<String>,
    compute: i64,
}

impl Body<'_> {
    fn declare(&mut self, kind: Kind, actual: &str, name: &str, ty: Type) -> Value {
        self.formals.push(actual.to_string());
        self.b.declare(kind, name, ty)
    }

    fn push(&mut self, name: &str, op: Op, args: &[Value], attrs: &[(&str, Attr)]) -> Value {
        self.b.push1(name, op, args, attrs)
    }
}

impl Writer<'_> {
    fn declare(&mut self, kind: Kind, name: &str, ty: Type) -> Operand {
        if let Some(&known) = self.named.get(name) {
            return known;
        }
        let operand = self.program.declare(kind, name, ty);
        self.named.insert(name.to_string(), operand);
        operand
    }

    fn inputs(&mut self) {
        let t = self.tokens;
        let ints: &[&str] = match self.mode {
            Mode::Loss { .. } => &["tokens", "positions", "segments", "labels"],
            Mode::Logits { .. } => &["tokens", "positions", "segments"],
            Mode::Cached { .. } => &["tokens", "positions"],
        };
        for name in ints {
            self.declare(Kind::Input, name, Type::i32(&[t]));
        }
        match self.mode {
            Mode::Loss { .. } => {
                self.declare(Kind::Input, "loss_weights", Type::f32(&[t]));
            }
            Mode::Cached { .. } => {
                self.declare(Kind::Input, "last", Type::i32(&[1]));
            }
            Mode::Logits { .. } => {}
        }
        if let Some(rope) = &self.config.rope {
            self.declare(Kind::Const, INV_FREQ, Type::f32(&[rope.inv_freq.len() as u32]));
        }
    }

    fn hidden(&self) -> Type {
        Type::f32(&[self.tokens, self.config.hidden as u32])
    }

    /// Adds the body of this name, made by `write`, and a call of it for the block `call`. Parameters that the body
    /// names with a leading dot belong to `prefix`.
    fn call(
        &mut self,
        body_name: &str,
        call: &str,
        prefix: &str,
        x: Option<Operand>,
        write: impl Fn(&Writer, &mut Body) -> (String, Value),
    ) -> Operand {
        let mut graph = Graph::new(self.program.rows);
        let mut body = Body { b: Builder::new(&mut graph), formals: Vec::new(), compute: self.compute };
        let (result, value) = write(self, &mut body);
        let formals = body.formals;
        let types: Vec<(Kind, Type)> = graph.values.iter().filter_map(|v| Some((v.decl?, v.ty.clone()))).collect();
        graph.results.push((result, value));
        let actual = |name: &String| match name.strip_prefix('.') {
            Some(rest) => format!("{prefix}.{rest}"),
            None => name.clone(),
        };
        let args = formals
            .iter()
            .zip(types)
            .map(|(name, (kind, ty))| match (name.as_str(), x) {
                ("x", Some(x)) => x,
                _ => self.declare(kind, &actual(name), ty),
            })
            .collect();
        // Blocks whose parameters are stored alike share a body; others get one of their own.
        let same = self.program.bodies.iter().position(|(_, g)| *g == graph);
        let index = same.unwrap_or_else(|| {
            let taken = self.program.bodies.iter().filter(|(n, _)| n.starts_with(body_name)).count();
            let name = if taken == 0 { body_name.to_string() } else { format!("{body_name}.{taken}") };
            self.program.bodies.push((name, graph));
            self.program.bodies.len() - 1
        });
        Operand::Call(self.program.call(call, index as u32, args), 0)
    }

    fn weight(&self, body: &mut Body, prefix: &str, name: &str, shape: &[usize]) -> Value {
        let full = match name.strip_prefix('.') {
            Some(rest) => format!("{prefix}.{rest}"),
            None => name.to_string(),
        };
        let shape: Vec<u32> = shape.iter().map(|&d| d as u32).collect();
        let ty = Type::new((self.dtype_of)(&full), &shape);
        body.declare(Kind::Weight, name, name.trim_start_matches('.'), ty)
    }

    fn int_input(&self, body: &mut Body, name: &str) -> Value {
        body.declare(Kind::Input, name, name, Type::i32(&[self.tokens]))
    }

    fn embed(&mut self) -> Operand {
        let gpt2 = self.config.family == Family::Gpt2;
        self.call("embed", "embed", "", None, |w, body| {
            let c = w.config;
            let name = if gpt2 { "transformer.wte.weight" } else { "model.embed_tokens.weight" };
            let table = w.weight(body, "", name, &[c.vocab, c.hidden]);
            let tokens = w.int_input(body, "tokens");
            let mut x = body.push("x", Op::Embedding, &[table, tokens], &[]);
            if let Some(positions) = c.learned_positions {
                let table = w.weight(body, "", "transformer.wpe.weight", &[positions, c.hidden]);
                let at = w.int_input(body, "positions");
                let p = body.push("p", Op::Embedding, &[table, at], &[]);
                x = body.push("out", Op::Add, &[x, p], &[]);
            }
            ("x".to_string(), x)
        })
    }

    fn block(&mut self, layer: usize, x: Operand) -> Operand {
        let gpt2 = self.config.family == Family::Gpt2;
        let prefix = if gpt2 { format!("transformer.h.{layer}") } else { format!("model.layers.{layer}") };
        let window = self.config.sliding_window.as_ref().filter(|s| s.layers.get(layer) == Some(&true));
        let window = window.map_or(0, |s| s.size);
        let body_name = if window > 0 { "windowed_layer" } else { "layer" };
        let (p, hidden) = (prefix.clone(), self.hidden());
        self.call(body_name, &format!("layers.{layer}"), &prefix, Some(x), move |w, body| {
            let x = body.declare(Kind::Input, "x", "x", hidden.clone());
            let names = if gpt2 { ["ln_1", "ln_2"] } else { ["input_layernorm", "post_attention_layernorm"] };
            let normed = w.norm(body, &p, "norm1", &format!(".{}", names[0]), x);
            let attended = w.attention(body, &p, normed, window);
            let mid = body.push("mid", Op::Add, &[x, attended], &[]);
            let normed = w.norm(body, &p, "norm2", &format!(".{}", names[1]), mid);
            let ff = w.feed_forward(body, &p, normed);
            ("out".to_string(), body.push("out", Op::Add, &[mid, ff], &[]))
        })
    }

    fn norm(&self, body: &mut Body, prefix: &str, name: &str, module: &str, x: Value) -> Value {
        let c = self.config;
        let weight = self.weight(body, prefix, &format!("{module}.weight"), &[c.hidden]);
        let eps = ("eps", f64::from(c.norm_eps).into());
        match c.norm {
            NormKind::RmsNorm => body.push(name, Op::RmsNorm, &[x, weight], &[eps]),
            NormKind::LayerNorm => {
                let bias = self.weight(body, prefix, &format!("{module}.bias"), &[c.hidden]);
                body.push(name, Op::LayerNorm, &[x, weight, bias], &[eps])
            }
        }
    }

    /// The linear layer `module` of the block `p`, applied to `x`; the result is called `name`.
    fn linear(
        &self,
        body: &mut Body,
        p: &str,
        (name, module): (&str, &str),
        x: Value,
        dims: [usize; 2],
        bias: bool,
    ) -> Value {
        let mut args = vec![x, self.weight(body, p, &format!("{module}.weight"), &dims)];
        if bias {
            args.push(self.weight(body, p, &format!("{module}.bias"), &dims[..1]));
        }
        let compute = body.compute;
        body.push(name, Op::Linear, &args, &[("compute", compute.into())])
    }

    fn attention(&self, body: &mut Body, p: &str, x: Value, window: usize) -> Value {
        let c = self.config;
        let [q, k, v] = self.projections(body, p, x);
        let q = self.positioned(body, p, "q", q, c.heads);
        let k = self.positioned(body, p, "k", k, c.kv_heads);
        let mut attrs: Vec<(&str, Attr)> = vec![
            ("heads", c.heads.into()),
            ("kv_heads", c.kv_heads.into()),
            ("scale", (1.0 / (c.head_dim as f64).sqrt()).into()),
            ("window", window.into()),
        ];
        let o = match self.mode {
            Mode::Loss { seq, .. } | Mode::Logits { seq, .. } => {
                let segments = self.shared_input(body, "segments");
                attrs.extend([("compute", body.compute.into()), ("seq", seq.into())]);
                body.push("attn", Op::Attention, &[q, k, v, segments], &attrs)
            }
            Mode::Cached { context, .. } => {
                let positions = self.shared_input(body, "positions");
                let ty = Type::f32(&[context, c.kv_width() as u32]);
                let caches = [("k", k), ("v", v)].map(|(name, x)| {
                    let cache =
                        body.declare(Kind::State, &format!(".{name}_cache"), &format!("{name}_cache"), ty.clone());
                    body.b.push(name, Op::KvWrite, &[cache, x, positions], &[]);
                    cache
                });
                body.push("attn", Op::AttentionCached, &[q, caches[0], caches[1], positions], &attrs)
            }
        };
        let module = if c.family == Family::Gpt2 { ".attn.c_proj" } else { ".self_attn.o_proj" };
        self.linear(body, p, ("o", module), o, [c.hidden, c.q_width()], c.o_bias)
    }

    fn projections(&self, body: &mut Body, p: &str, x: Value) -> [Value; 3] {
        let c = self.config;
        if c.family == Family::Gpt2 {
            let all = self.linear(body, p, ("qkv", ".attn.c_attn"), x, [3 * c.hidden, c.hidden], c.qkv_bias);
            let part = |i: usize| [("start", (i * c.hidden).into()), ("len", c.hidden.into())];
            return [("q", 0), ("k", 1), ("v", 2)].map(|(name, i)| body.push(name, Op::SliceCols, &[all], &part(i)));
        }
        [("q", c.q_width()), ("k", c.kv_width()), ("v", c.kv_width())].map(|(name, width)| {
            self.linear(body, p, (name, &format!(".self_attn.{name}_proj")), x, [width, c.hidden], c.qkv_bias)
        })
    }

    /// Head normalisation and rotation, where the model has them.
    fn positioned(&self, body: &mut Body, p: &str, name: &str, mut x: Value, heads: usize) -> Value {
        let c = self.config;
        if c.qk_norm {
            let w = self.weight(body, p, &format!(".self_attn.{name}_norm.weight"), &[c.head_dim]);
            let attrs = [("eps", f64::from(c.norm_eps).into()), ("groups", heads.into())];
            x = body.push(&format!("{name}_norm"), Op::RmsNorm, &[x, w], &attrs);
        }
        let Some(rope) = &c.rope else { return x };
        let positions = self.shared_input(body, "positions");
        let table = match body.b.graph.find("inv_freq") {
            Some(v) => v,
            None => body.declare(Kind::Const, INV_FREQ, "inv_freq", Type::f32(&[rope.inv_freq.len() as u32])),
        };
        let attrs = [
            ("heads", heads.into()),
            ("interleaved", rope.interleaved.into()),
            ("factor", f64::from(rope.attention_factor).into()),
        ];
        body.push(&format!("{name}_rope"), Op::Rope, &[x, positions, table], &attrs)
    }

    fn shared_input(&self, body: &mut Body, name: &str) -> Value {
        match body.b.graph.find(name) {
            Some(v) => v,
            None => self.int_input(body, name),
        }
    }

    fn feed_forward(&self, body: &mut Body, p: &str, x: Value) -> Value {
        let c = self.config;
        let names = match c.family {
            Family::Gpt2 => ["", ".mlp.c_fc", ".mlp.c_proj"],
            _ => [".mlp.gate_proj", ".mlp.up_proj", ".mlp.down_proj"],
        };
        let (wide, bias) = ([c.ff, c.hidden], c.mlp_bias);
        let act = match c.activation {
            Activation::Silu => Op::Silu,
            Activation::Gelu => Op::Gelu,
            Activation::GeluTanh => Op::GeluTanh,
        };
        let inner = if c.gated {
            let gate = self.linear(body, p, ("gate", names[0]), x, wide, bias);
            let up = self.linear(body, p, ("up", names[1]), x, wide, bias);
            if act == Op::Silu {
                body.push("act", Op::Swiglu, &[gate, up], &[])
            } else {
                let gate = body.push("gate_act", act, &[gate], &[]);
                body.push("act", Op::Mul, &[gate, up], &[])
            }
        } else {
            let up = self.linear(body, p, ("up", names[1]), x, wide, bias);
            body.push("act", act, &[up], &[])
        };
        self.linear(body, p, ("down", names[2]), inner, [c.hidden, c.ff], bias)
    }

    fn head(&mut self, x: Operand) {
        let gpt2 = self.config.family == Family::Gpt2;
        let hidden = self.hidden();
        let name = if self.mode.is_loss() { "loss" } else { "logits" };
        let result = self.call("head", "head", "", Some(x), move |w, body| {
            let c = w.config;
            let mut x = body.declare(Kind::Input, "x", "x", hidden.clone());
            if let Mode::Cached { .. } = w.mode {
                let last = body.declare(Kind::Input, "last", "last", Type::i32(&[1]));
                x = body.push("x_last", Op::Embedding, &[x, last], &[]);
            }
            let normed = w.norm(body, "", "norm", if gpt2 { "transformer.ln_f" } else { "model.norm" }, x);
            let table = match (c.tied, gpt2) {
                (false, _) => "lm_head.weight",
                (true, true) => "transformer.wte.weight",
                (true, false) => "model.embed_tokens.weight",
            };
            let table = w.weight(body, "", table, &[c.vocab, c.hidden]);
            let compute = body.compute;
            let logits = body.push("logits", Op::Linear, &[normed, table], &[("compute", compute.into())]);
            if !w.mode.is_loss() {
                return (name.to_string(), logits);
            }
            let labels = w.int_input(body, "labels");
            let weights = body.declare(Kind::Input, "loss_weights", "loss_weights", Type::f32(&[w.tokens]));
            (name.to_string(), body.push("loss", Op::CrossEntropy, &[logits, labels, weights], &[]))
        });
        self.program.results.push((name.to_string(), result));
    }
}

impl Mode {
    fn is_loss(self) -> bool {
        matches!(self, Mode::Loss { .. })
    }
}
