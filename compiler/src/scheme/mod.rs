//! The update-scheme language: what is trained.
//!
//! `full`, `last:N`, `bias[:N]`, `lora[:rank]`, `sparse[:N]`, `cycle:N`, each with `+head` and `+embed` behind it;
//! or a TOML file for `sparse` with chosen tensors. Blocks count from the top. Embedding, final norm and head are
//! trained by `full`, and otherwise only when asked for. In int8 models `bias` and `sparse` count convolutions instead
//! of blocks, and the head is always trained.

pub mod published;
pub mod select;

use serde::Deserialize;
use std::fmt;

/// What is trained.
#[derive(Clone, PartialEq, Debug)]
pub struct Scheme {
    /// Which tensors, and how.
    pub kind: SchemeKind,
    /// Whether final norm and head are trained too.
    pub head: bool,
    /// Whether the embedding is trained too.
    pub embed: bool,
}

/// Which tensors are trained, and how.
#[derive(Clone, PartialEq, Debug)]
pub enum SchemeKind {
    /// Nothing: for evaluation and generation, where every tensor stays as the file stores it.
    Frozen,
    /// Everything.
    Full,
    /// All parameters of the last blocks.
    Last(u32),
    /// Biases and norm parameters, of all blocks (of an int8 model: convolutions) or the last ones.
    Bias(Option<u32>),
    /// Low-rank adapters beside the named linear layers.
    Lora(Lora),
    /// Biases of the last blocks and chosen weights, each with a share of its input channels.
    Sparse(Sparse),
    /// All parameters of a group of so many blocks; the groups take turns.
    Cycle(u32),
}

/// Settings of low-rank adapters.
#[derive(Clone, PartialEq, Debug)]
pub struct Lora {
    /// Inner width.
    pub rank: u32,
    /// The product is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// Last components of module names; empty takes the attention's projections.
    pub targets: Vec<String>,
}

/// A selection of sub-tensors.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Sparse {
    /// Biases and norm parameters of so many blocks from the top (of an int8 model: convolutions); `None` is half.
    pub bias_last: Option<u32>,
    /// Chosen weights; empty takes the attention's projections and the feed-forward's first products of the upper
    /// quarter of the blocks at a ratio of 1/4, or of the upper quarter of an int8 model's convolutions those that
    /// expand the channels.
    pub weights: Vec<SparseWeight>,
}

/// One chosen weight.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseWeight {
    /// Its name, or the end of it behind a dot.
    pub tensor: Option<String>,
    /// Or the index of its convolution or linear layer, counted from the input.
    pub layer: Option<u32>,
    /// Share of the input channels that is trained, those of largest L2 norm first.
    #[serde(default = "one")]
    pub ratio: f64,
    /// What its learning rate is multiplied by, of int8 models: part of the constant that its gradient is scaled by.
    #[serde(default = "one")]
    pub rate: f64,
}

impl SparseWeight {
    /// A share of a layer's weight, at the rate of all.
    pub const fn of_layer(layer: u32, ratio: f64) -> SparseWeight {
        SparseWeight { tensor: None, layer: Some(layer), ratio, rate: 1.0 }
    }

    /// Whether it means the weight of this name, of this layer counted from the input.
    pub fn means(&self, weight: &str, layer: usize) -> bool {
        match &self.tensor {
            Some(name) => weight == name || weight.ends_with(&format!(".{name}")),
            None => self.layer.is_some_and(|l| l as usize == layer),
        }
    }
}

fn one() -> f64 {
    1.0
}

/// Why a text is no scheme.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum SchemeError {
    /// The name is unknown.
    #[error("`{0}` is no update scheme: use full, last:N, bias[:N], lora[:RANK], sparse[:N] or cycle:N, or a file")]
    Unknown(String),
    /// The number is missing or wrong.
    #[error("`{0}` needs a whole number from 1, as in `{1}`")]
    Number(String, &'static str),
    /// The file is not what a scheme file is.
    #[error("scheme file: {0}")]
    File(String),
    /// The scheme does not suit the model.
    #[error("{0}")]
    Misfit(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    update: Update,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Update {
    kind: String,
    bias_last: Option<u32>,
    #[serde(default)]
    weight: Vec<SparseWeight>,
    rank: Option<u32>,
    alpha: Option<f64>,
    #[serde(default)]
    targets: Vec<String>,
    #[serde(default)]
    head: bool,
    #[serde(default)]
    embed: bool,
}

impl Scheme {
    /// Everything.
    pub fn full() -> Scheme {
        Scheme { kind: SchemeKind::Full, head: true, embed: true }
    }

    /// Nothing, which no text asks for.
    pub fn frozen() -> Scheme {
        Scheme { kind: SchemeKind::Frozen, head: false, embed: false }
    }

    /// Reads `last:2+head` and the like.
    ///
    /// # Errors
    /// The text is no scheme.
    pub fn parse(text: &str) -> Result<Scheme, SchemeError> {
        let mut parts = text.split('+');
        let main = parts.next().unwrap_or_default();
        let (name, number) = main.split_once(':').map_or((main, None), |(name, n)| (name, Some(n)));
        let count = |example| match number.map(str::parse::<u32>) {
            Some(Ok(n)) if n > 0 => Ok(Some(n)),
            Some(_) => Err(SchemeError::Number(main.to_string(), example)),
            None => Ok(None),
        };
        let must = |example| count(example)?.ok_or(SchemeError::Number(main.to_string(), example));
        let kind = match name {
            "full" if number.is_none() => SchemeKind::Full,
            "last" => SchemeKind::Last(must("last:2")?),
            "bias" => SchemeKind::Bias(count("bias:4")?),
            "lora" => {
                let rank = count("lora:8")?.unwrap_or(8);
                SchemeKind::Lora(Lora { rank, alpha: 2.0 * f64::from(rank), targets: Vec::new() })
            }
            "sparse" => SchemeKind::Sparse(Sparse { bias_last: count("sparse:4")?, weights: Vec::new() }),
            "cycle" => SchemeKind::Cycle(must("cycle:2")?),
            _ => return Err(SchemeError::Unknown(text.to_string())),
        };
        let all = kind == SchemeKind::Full;
        let mut scheme = Scheme { kind, head: all, embed: all };
        for part in parts {
            match part {
                "head" => scheme.head = true,
                "embed" => scheme.embed = true,
                _ => return Err(SchemeError::Unknown(text.to_string())),
            }
        }
        Ok(scheme)
    }

    /// Reads a scheme file.
    ///
    /// # Errors
    /// The text is no TOML of the form described, or a ratio is not in `0..=1`, or a rate not above 0.
    pub fn parse_file(text: &str) -> Result<Scheme, SchemeError> {
        let file: File = toml::from_str(text).map_err(|e| SchemeError::File(e.to_string()))?;
        let update = file.update;
        let kind = match update.kind.as_str() {
            "sparse" => {
                let is_rate = |rate: f64| rate.is_finite() && rate > 0.0;
                let ok = |w: &SparseWeight| {
                    (0.0..=1.0).contains(&w.ratio) && is_rate(w.rate) && (w.tensor.is_some() != w.layer.is_some())
                };
                if let Some(bad) = update.weight.iter().find(|w| !ok(w)) {
                    let what = "each weight has a `tensor` or a `layer`, a ratio from 0 to 1, and a rate above 0";
                    return Err(SchemeError::File(format!("{what}, found {bad:?}")));
                }
                SchemeKind::Sparse(Sparse { bias_last: update.bias_last, weights: update.weight })
            }
            "lora" => {
                let rank = update.rank.unwrap_or(8).max(1);
                let alpha = update.alpha.unwrap_or(2.0 * f64::from(rank));
                SchemeKind::Lora(Lora { rank, alpha, targets: update.targets })
            }
            other => Scheme::parse(other)?.kind,
        };
        let all = kind == SchemeKind::Full;
        Ok(Scheme { kind, head: update.head || all, embed: update.embed || all })
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            SchemeKind::Frozen => f.write_str("frozen")?,
            SchemeKind::Full => return f.write_str("full"),
            SchemeKind::Last(n) => write!(f, "last:{n}")?,
            SchemeKind::Bias(None) => f.write_str("bias")?,
            SchemeKind::Bias(Some(n)) => write!(f, "bias:{n}")?,
            SchemeKind::Lora(l) => write!(f, "lora:{}", l.rank)?,
            SchemeKind::Sparse(Sparse { bias_last: Some(n), .. }) => write!(f, "sparse:{n}")?,
            SchemeKind::Sparse(_) => f.write_str("sparse")?,
            SchemeKind::Cycle(n) => write!(f, "cycle:{n}")?,
        }
        f.write_str(if self.head { "+head" } else { "" })?;
        f.write_str(if self.embed { "+embed" } else { "" })
    }
}
