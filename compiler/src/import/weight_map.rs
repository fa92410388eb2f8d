//! From the parameters a model has to the tensors of its files.
//!
//! Parameters carry the names that Hugging Face checkpoints use, whatever file they come from, and the logical
//! shape `[out, in]`. Invariant of a [`WeightMap`]: every parameter of the model is bound to a float or block
//! tensor of the right shape. Not for reading or converting data.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::decoder_config::{DecoderConfig, Family, NormKind};
use super::source::{Catalog, TensorRef};
use tinyforge_plan::DType;

/// One parameter of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Canonical name, for example `model.layers.3.self_attn.q_proj.weight`.
    pub name: String,
    /// Logical extents; matrices are `[out, in]`.
    pub shape: Vec<u64>,
    /// The block it belongs to, counted from the embedding; `None` for embedding, final norm and head.
    pub block: Option<usize>,
    /// Name in GGUF files.
    gguf: String,
    /// Whether Hugging Face stores the matrix as `[in, out]`.
    hf_transposed: bool,
    /// Heads whose rows the rotation pairs; `None` for anything but q and k.
    rotated_heads: Option<usize>,
}

impl Param {
    /// Name in GGUF files.
    pub fn gguf_name(&self) -> &str {
        &self.gguf
    }

    /// Order of the rows in a GGUF file of the model.
    pub fn gguf_rows(&self, config: &DecoderConfig) -> RowOrder {
        match self.rotated_heads {
            Some(heads) if config.family.gguf_interleaves() => {
                RowOrder::RopeInterleaved { heads, head_dim: config.head_dim }
            }
            _ => RowOrder::Plain,
        }
    }
}

/// Order of a tensor's rows in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// As `transformers` has them.
    Plain,
    /// Pairs of the rotation are neighbours, as in GGUF files of the llama family; see [`plain_row_sources`].
    RopeInterleaved {
        /// Heads in the tensor.
        heads: usize,
        /// Rows of a head.
        head_dim: usize,
    },
}

/// A parameter and the tensor that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Canonical name.
    pub name: String,
    /// Logical extents; matrices are `[out, in]`.
    pub shape: Vec<u64>,
    /// The block it belongs to, counted from the embedding; `None` for embedding, final norm and head.
    pub block: Option<usize>,
    /// Where it lies.
    pub tensor: TensorRef,
    /// Whether the file holds `[in, out]`, so that logical element `[o, i]` is the file's `[i, o]`.
    pub transpose: bool,
    /// Order of the rows in the file. Informative: [`super::Rope::interleaved`] makes the model right without a change
    /// of order; an export to another format puts them in plain order.
    pub rows: RowOrder,
}

/// What a checkpoint lacks for a model; everything is listed at once.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the files do not hold the model that its configuration describes:{}", lines(.missing, .wrong))]
pub struct BindError {
    /// Parameters that no tensor is there for.
    pub missing: Vec<String>,
    /// Tensors that are there but cannot be used: name and why.
    pub wrong: Vec<(String, String)>,
}

/// The message's list, cut when it gets long.
fn lines(missing: &[String], wrong: &[(String, String)]) -> String {
    const SHOWN: usize = 20;
    let missing_lines = missing.iter().map(|name| format!("\n  `{name}` is missing"));
    let wrong_lines = wrong.iter().map(|(name, why)| format!("\n  `{name}` {why}"));
    let mut text: String = missing_lines.chain(wrong_lines).take(SHOWN).collect();
    let total = missing.len() + wrong.len();
    if total > SHOWN {
        text.push_str(&format!("\n  and {} more", total - SHOWN));
    }
    text
}

/// All parameters of a model, bound, in the order of [`DecoderConfig::params`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightMap {
    bindings: Vec<Binding>,
    by_name: BTreeMap<String, usize>,
    unused: Vec<String>,
}

impl WeightMap {
    /// The binding of a parameter by its canonical name.
    pub fn get(&self, name: &str) -> Option<&Binding> {
        self.by_name.get(name).map(|&position| &self.bindings[position])
    }

    /// All bindings, embedding first, then block by block, then norm and head.
    pub fn iter(&self) -> impl Iterator<Item = &Binding> {
        self.bindings.iter()
    }

    /// Stores matrices whose rows are whole blocks of this type in it.
    pub fn store_matrices(&mut self, dtype: DType) {
        let is_suited = |b: &&mut Binding| b.shape.len() == 2 && b.shape[1].is_multiple_of(dtype.block_elems());
        self.bindings.iter_mut().filter(is_suited).for_each(|b| b.tensor.dtype = dtype);
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.bindings.len()
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.bindings.is_empty()
    }

    /// Tensors of the files that no parameter uses, apart from known buffers; worth a warning.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }
}

impl DecoderConfig {
    /// The parameters of the model in forward order: embedding, blocks, final norm, head. A tied head is not listed.
    pub fn params(&self) -> Vec<Param> {
        let mut params = Params { list: Vec::new(), block: None };
        let (vocab, hidden) = (self.vocab as u64, self.hidden as u64);
        let is_gpt2 = self.family == Family::Gpt2;
        let embed = if is_gpt2 { "transformer.wte" } else { "model.embed_tokens" };
        params.push(&format!("{embed}.weight"), "token_embd.weight", &[vocab, hidden]);
        if let Some(positions) = self.learned_positions {
            params.push("transformer.wpe.weight", "position_embd.weight", &[positions as u64, hidden]);
        }
        for block in 0..self.layers {
            params.block = Some(block);
            if is_gpt2 { self.gpt2_block(block, &mut params) } else { self.llama_block(block, &mut params) }
        }
        params.block = None;
        let norm = if is_gpt2 { "transformer.ln_f" } else { "model.norm" };
        params.norm(self.norm, norm, "output_norm", hidden);
        if !self.tied {
            params.push("lm_head.weight", "output.weight", &[vocab, hidden]);
        }
        params.list
    }

    fn llama_block(&self, block: usize, params: &mut Params) {
        let (hf, gguf) = (format!("model.layers.{block}"), format!("blk.{block}"));
        let (hidden, ff, head_dim) = (self.hidden as u64, self.ff as u64, self.head_dim as u64);
        let (q, kv) = (self.q_width() as u64, self.kv_width() as u64);
        params.norm(self.norm, &format!("{hf}.input_layernorm"), &format!("{gguf}.attn_norm"), hidden);
        let rows = [
            ("self_attn.q_proj", "attn_q", [q, hidden], self.qkv_bias, Some(self.heads)),
            ("self_attn.k_proj", "attn_k", [kv, hidden], self.qkv_bias, Some(self.kv_heads)),
            ("self_attn.v_proj", "attn_v", [kv, hidden], self.qkv_bias, None),
            ("self_attn.o_proj", "attn_output", [hidden, q], self.o_bias, None),
        ];
        for (hf_name, gguf_name, shape, has_bias, rotated_heads) in rows {
            let first = params.list.len();
            params.linear(&format!("{hf}.{hf_name}"), &format!("{gguf}.{gguf_name}"), shape, has_bias);
            for param in &mut params.list[first..] {
                param.rotated_heads = rotated_heads;
            }
        }
        if self.qk_norm {
            params.push(&format!("{hf}.self_attn.q_norm.weight"), &format!("{gguf}.attn_q_norm.weight"), &[head_dim]);
            params.push(&format!("{hf}.self_attn.k_norm.weight"), &format!("{gguf}.attn_k_norm.weight"), &[head_dim]);
        }
        params.norm(self.norm, &format!("{hf}.post_attention_layernorm"), &format!("{gguf}.ffn_norm"), hidden);
        if self.gated {
            params.linear(&format!("{hf}.mlp.gate_proj"), &format!("{gguf}.ffn_gate"), [ff, hidden], self.mlp_bias);
        }
        params.linear(&format!("{hf}.mlp.up_proj"), &format!("{gguf}.ffn_up"), [ff, hidden], self.mlp_bias);
        params.linear(&format!("{hf}.mlp.down_proj"), &format!("{gguf}.ffn_down"), [hidden, ff], self.mlp_bias);
    }

    fn gpt2_block(&self, block: usize, params: &mut Params) {
        let (hf, gguf) = (format!("transformer.h.{block}"), format!("blk.{block}"));
        let (hidden, ff) = (self.hidden as u64, self.ff as u64);
        params.norm(self.norm, &format!("{hf}.ln_1"), &format!("{gguf}.attn_norm"), hidden);
        params.conv1d(&format!("{hf}.attn.c_attn"), &format!("{gguf}.attn_qkv"), [3 * hidden, hidden], self.qkv_bias);
        params.conv1d(&format!("{hf}.attn.c_proj"), &format!("{gguf}.attn_output"), [hidden, hidden], self.o_bias);
        params.norm(self.norm, &format!("{hf}.ln_2"), &format!("{gguf}.ffn_norm"), hidden);
        params.conv1d(&format!("{hf}.mlp.c_fc"), &format!("{gguf}.ffn_up"), [ff, hidden], self.mlp_bias);
        params.conv1d(&format!("{hf}.mlp.c_proj"), &format!("{gguf}.ffn_down"), [hidden, ff], self.mlp_bias);
    }
}

/// Collects parameters.
struct Params {
    list: Vec<Param>,
    block: Option<usize>,
}

impl Params {
    fn push(&mut self, name: &str, gguf: &str, shape: &[u64]) {
        self.list.push(Param {
            name: name.into(),
            shape: shape.to_vec(),
            block: self.block,
            gguf: gguf.into(),
            hf_transposed: false,
            rotated_heads: None,
        });
    }

    fn norm(&mut self, kind: NormKind, name: &str, gguf: &str, width: u64) {
        self.push(&format!("{name}.weight"), &format!("{gguf}.weight"), &[width]);
        if kind == NormKind::LayerNorm {
            self.push(&format!("{name}.bias"), &format!("{gguf}.bias"), &[width]);
        }
    }

    fn linear(&mut self, name: &str, gguf: &str, shape: [u64; 2], has_bias: bool) {
        self.push(&format!("{name}.weight"), &format!("{gguf}.weight"), &shape);
        if has_bias {
            self.push(&format!("{name}.bias"), &format!("{gguf}.bias"), &shape[..1]);
        }
    }

    /// A product that Hugging Face stores as `[in, out]`.
    fn conv1d(&mut self, name: &str, gguf: &str, shape: [u64; 2], has_bias: bool) {
        let weight = self.list.len();
        self.linear(name, gguf, shape, has_bias);
        self.list[weight].hf_transposed = true;
    }
}

/// Binds a Hugging Face checkpoint. Names may lack the leading `model.` or `transformer.`.
///
/// When `lm_head.weight` is absent the head is the embedding and `config.tied` is set. Errors with everything that
/// is missing or has the wrong shape or storage type.
pub fn bind_hf(config: &mut DecoderConfig, catalog: &Catalog) -> Result<WeightMap, BindError> {
    let is_known = |name: &str| catalog.get(name).is_some() || catalog.unsupported_dtype(name).is_some();
    config.tied |= !is_known("lm_head.weight");
    let config = &*config;
    bind(config, catalog, |param| {
        let short = param.name.strip_prefix("model.").or_else(|| param.name.strip_prefix("transformer."));
        let is_embedding = param.block.is_none() && param.shape == [config.vocab as u64, config.hidden as u64];
        // Of two names for one tensor some tools keep the head's.
        let shared = (config.tied && is_embedding).then_some("lm_head.weight");
        let candidates = [Some(param.name.as_str()), short, shared];
        let name = candidates.into_iter().flatten().find(|name| is_known(name)).unwrap_or(&param.name);
        (name.to_owned(), param.hf_transposed, RowOrder::Plain)
    })
}

/// Binds the tensors of a GGUF file to a configuration from [`super::gguf_decoder::config`].
///
/// Errors with everything that is missing or has the wrong shape or storage type.
pub fn bind_gguf(config: &DecoderConfig, catalog: &Catalog) -> Result<WeightMap, BindError> {
    bind(config, catalog, |param| (param.gguf.clone(), false, param.gguf_rows(config)))
}

/// `place` gives the name in the file, whether it is transposed there, and the order of its rows.
fn bind(
    config: &DecoderConfig,
    catalog: &Catalog,
    place: impl Fn(&Param) -> (String, bool, RowOrder),
) -> Result<WeightMap, BindError> {
    let mut error = BindError { missing: Vec::new(), wrong: Vec::new() };
    let mut map = WeightMap { bindings: Vec::new(), by_name: BTreeMap::new(), unused: Vec::new() };
    let mut used = BTreeSet::new();
    for param in config.params() {
        let (name, transpose, rows) = place(&param);
        let Some(tensor) = catalog.get(&name) else {
            match catalog.unsupported_dtype(&name) {
                Some(dtype) => error.wrong.push((name, format!("is stored as {dtype}, which is not supported"))),
                None => error.missing.push(name),
            }
            continue;
        };
        if let Some(why) = misfit(&param, tensor, transpose) {
            error.wrong.push((name, why));
            continue;
        }
        map.by_name.insert(param.name.clone(), map.bindings.len());
        used.insert(name);
        let Param { name, shape, block, .. } = param;
        map.bindings.push(Binding { name, shape, block, tensor: tensor.clone(), transpose, rows });
    }
    if !(error.missing.is_empty() && error.wrong.is_empty()) {
        return Err(error);
    }
    let rest = catalog.iter().filter(|tensor| !used.contains(&tensor.name) && !is_buffer(&tensor.name));
    map.unused = rest.map(|tensor| tensor.name.clone()).collect();
    Ok(map)
}

/// Why the tensor cannot be the parameter, if it cannot.
fn misfit(param: &Param, tensor: &TensorRef, transpose: bool) -> Option<String> {
    let mut shape = param.shape.clone();
    if transpose {
        shape.reverse();
    }
    if tensor.shape != shape {
        return Some(format!("has the shape {:?}, expected {shape:?}", tensor.shape));
    }
    if !(tensor.dtype.is_float() || tensor.dtype.is_quantised()) {
        return Some(format!("is stored as {}, expected floats", tensor.dtype.name()));
    }
    None
}

/// Tensors that checkpoints carry and no model needs: masks, frequencies, a head that is tied.
fn is_buffer(name: &str) -> bool {
    const SUFFIXES: [&str; 3] = [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];
    let is_factors = matches!(name, "rope_freqs.weight" | "rope_factors_short.weight" | "rope_factors_long.weight");
    is_factors || name == "lm_head.weight" || SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// For a tensor whose rows are [`RowOrder::RopeInterleaved`]: row `r` of the plain order is row `sources[r]` of the
/// file. It holds for weights, biases and the B matrix of a LoRA pair alike; A is not affected.
///
/// Within a head of `d` rows, plain row `s * d/2 + i` (half `s`, pair `i`) is file row `2 i + s`.
pub fn plain_row_sources(heads: usize, head_dim: usize) -> Vec<usize> {
    let half = head_dim / 2;
    let source = |row: usize| {
        let (head, within) = (row / head_dim, row % head_dim);
        head * head_dim + 2 * (within % half) + within / half
    };
    (0..heads * head_dim).map(source).collect()
}

/// The inverse of [`plain_row_sources`]: row `r` of the interleaved order is row `sources[r]` of the plain one.
pub fn interleaved_row_sources(heads: usize, head_dim: usize) -> Vec<usize> {
    let half = head_dim / 2;
    let source = |row: usize| {
        let (head, within) = (row / head_dim, row % head_dim);
        head * head_dim + (within % 2) * half + within / 2
    };
    (0..heads * head_dim).map(source).collect()
}
