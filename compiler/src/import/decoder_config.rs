//! One description of decoder language models, whatever file it was read from.
//!
//! Invariant: a [`DecoderConfig`] that an importer returned satisfies [`DecoderConfig::check`]: every extent is
//! positive and below its limit, heads divide evenly, and shapes computed from it do not overflow. Not for
//! building programs; the builder reads this.

use super::config_error::{ConfigError, Findings};
use super::rope::Rope;

/// Most blocks a model may have.
pub const LAYERS_MAX: usize = 4096;
/// Most attention heads, and most elements of a head.
pub const HEADS_MAX: usize = 1 << 16;
/// Largest extent of anything else: vocabulary, hidden and inner width.
pub const EXTENT_MAX: usize = 1 << 28;
/// Longest context.
pub const POSITIONS_MAX: usize = (1 << 31) - 1;

/// The family of a model: which computation its blocks do and what its parameters are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are the families' own")]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gpt2,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 5] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3, Family::Gpt2];

    /// The `model_type` of Hugging Face configurations.
    pub fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Gpt2 => "gpt2",
        }
    }

    /// The family of this `model_type`, if it is supported.
    pub fn from_name(name: &str) -> Option<Family> {
        Family::ALL.into_iter().find(|family| family.name() == name)
    }

    /// The `general.architecture` of GGUF files.
    pub fn gguf_architecture(self) -> &'static str {
        match self {
            Family::Llama | Family::Mistral => "llama",
            Family::Qwen2 | Family::Qwen3 | Family::Gpt2 => self.name(),
        }
    }

    /// Whether GGUF files hold the rows of q and k so that the pairs of the rotation are neighbours.
    pub fn gguf_interleaves(self) -> bool {
        matches!(self, Family::Llama | Family::Mistral)
    }

    /// The class that `transformers` makes of it.
    pub fn architecture(self) -> &'static str {
        match self {
            Family::Llama => "LlamaForCausalLM",
            Family::Mistral => "MistralForCausalLM",
            Family::Qwen2 => "Qwen2ForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
            Family::Gpt2 => "GPT2LMHeadModel",
        }
    }
}

/// How activations are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps) * weight`.
    RmsNorm,
    /// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`.
    LayerNorm,
}

/// The nonlinearity of the feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x / 2 * (1 + erf(x / sqrt 2))`.
    Gelu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    GeluTanh,
}

/// Attention restricted to the last positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    /// A query at position `i` sees keys `j` with `i - size < j <= i`.
    pub size: usize,
    /// Whether each block, counted from the embedding, is restricted.
    pub layers: Vec<bool>,
}

/// A decoder language model: embedding, `layers` equal pre-norm blocks, final norm, head.
///
/// Parameter shapes: `q` is `[heads * head_dim, hidden]`, `k` and `v` `[kv_heads * head_dim, hidden]`, `o`
/// `[hidden, heads * head_dim]`; gate and up `[ff, hidden]`, down `[hidden, ff]`. GPT-2 holds q, k and v in one,
/// `[3 * hidden, hidden]`.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Family.
    pub family: Family,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// Width between blocks.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head; `heads * head_dim` need not be `hidden`.
    pub head_dim: usize,
    /// Inner width of the feed-forward part.
    pub ff: usize,
    /// Normalisation.
    pub norm: NormKind,
    /// Added to the variance under the root.
    pub norm_eps: f32,
    /// Nonlinearity.
    pub activation: Activation,
    /// Whether the feed-forward part is `down(act(gate(x)) * up(x))` rather than `down(act(up(x)))`.
    pub gated: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output has a bias.
    pub o_bias: bool,
    /// Whether the feed-forward products have biases.
    pub mlp_bias: bool,
    /// Whether each head of q and k is RMS-normalised, before the rotation, with a weight over `head_dim`.
    pub qk_norm: bool,
    /// Rotary positions.
    pub rope: Option<Rope>,
    /// Rows of the learned position embedding, added to the token's.
    pub learned_positions: Option<usize>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Restricted attention.
    pub sliding_window: Option<SlidingWindow>,
    /// Context length.
    pub max_positions: usize,
    /// Token before a text.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

impl DecoderConfig {
    /// `heads * head_dim`.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// `kv_heads * head_dim`.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Checks extents and their relations; all faults are in one error.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut findings = Findings::default();
        self.collect(&mut findings);
        findings.finish()
    }

    pub(crate) fn collect(&self, findings: &mut Findings) {
        let extents = [
            ("vocab", self.vocab, EXTENT_MAX),
            ("hidden", self.hidden, EXTENT_MAX),
            ("layers", self.layers, LAYERS_MAX),
            ("heads", self.heads, HEADS_MAX),
            ("kv_heads", self.kv_heads, HEADS_MAX),
            ("head_dim", self.head_dim, HEADS_MAX),
            ("ff", self.ff, EXTENT_MAX),
            ("max_positions", self.max_positions, POSITIONS_MAX),
        ];
        for (key, value, limit) in extents {
            if value == 0 || value > limit {
                findings.wrong(key, value, format!("1 to {limit}"));
            }
        }
        if self.kv_heads > 0 && !self.heads.is_multiple_of(self.kv_heads) {
            findings.wrong("kv_heads", self.kv_heads, format!("a divisor of the {} query heads", self.heads));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            findings.wrong("norm_eps", self.norm_eps, "a small number, not negative");
        }
        if let Some(rope) = &self.rope
            && (rope.rotary_dim > self.head_dim || rope.inv_freq.len() != rope.rotary_dim / 2)
        {
            let found = format!("{} frequencies for {} elements", rope.inv_freq.len(), rope.rotary_dim);
            let need = format!("half as many frequencies as elements, at most {}", self.head_dim);
            findings.wrong("rope", found, need);
        }
        if let Some(window) = &self.sliding_window
            && (window.size == 0 || window.layers.len() != self.layers)
        {
            let found = format!("{} over {} layers", window.size, window.layers.len());
            findings.wrong("sliding_window", found, format!("a positive size over {} layers", self.layers));
        }
        let is_full_width = self.heads.checked_mul(self.head_dim) == Some(self.hidden) && self.kv_heads == self.heads;
        if self.family == Family::Gpt2 && !is_full_width {
            let found = format!("{} query and {} key heads of {}", self.heads, self.kv_heads, self.head_dim);
            findings.wrong("heads", found, format!("equal numbers, together {} wide", self.hidden));
        }
    }
}
