//! Opens a model: a Hugging Face directory or a GGUF file becomes a description, a weight map, and open files.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tinyforge::files::{FileError, ReadAt, read_if_there, read_whole};
use tinyforge::text::{GgufVocab, TextError, Tokenizer, TokenizerFiles};
use tinyforge_compiler::import::decoder::{self, Mode};
use tinyforge_compiler::import::gguf::{self, Gguf};
use tinyforge_compiler::import::safetensors::{self, Header};
use tinyforge_compiler::import::source::{Catalog, NewTensor, TensorRef};
use tinyforge_compiler::import::weight_map::{self, Binding, WeightMap};
use tinyforge_compiler::import::{DecoderConfig, Family, gguf_decoder, hf};
use tinyforge_compiler::ir::graph::Graph;
use tinyforge_plan::{DType, Source};

/// Why a model cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Reading failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not what it should be.
    #[error("{}: {why}", path.display())]
    Bad {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The tokenizer cannot be read.
    #[error("tokenizer of {}: {source}", path.display())]
    Tokenizer {
        /// The model.
        path: PathBuf,
        /// What is wrong.
        source: TextError,
    },
}

fn bad(path: &Path, why: impl ToString) -> ModelError {
    ModelError::Bad { path: path.to_path_buf(), why: why.to_string() }
}

/// Which format a model was read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// A Hugging Face directory.
    HuggingFace,
    /// A GGUF file.
    Gguf,
}

/// An opened model.
pub struct Model {
    /// Where it is.
    pub path: PathBuf,
    /// What it was read from.
    pub format: Format,
    /// Its description.
    pub config: DecoderConfig,
    /// Where its parameters lie.
    pub weights: WeightMap,
    /// Its weight files, in the order in which bindings number them.
    pub files: Vec<ReadAt>,
    vocab: Option<GgufVocab>,
    start: Start,
}

/// Where the parameters' contents come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Start {
    Files,
    Seed,
    /// From a file that is not there: such a model can be planned, not loaded.
    Absent,
}

/// The file in which a checkpoint of one file holds its tensors.
const TENSORS: &str = "model.safetensors";
/// What lists the files of a checkpoint of several.
const INDEX: &str = "model.safetensors.index.json";

/// The longest prefix of a GGUF file that is read for its header.
const GGUF_HEADER_BYTES_MAX: u64 = 1 << 30;

impl Model {
    /// Opens a directory or a `.gguf` file.
    ///
    /// # Errors
    /// Nothing is there, or it is no model that is supported; everything that is missing is named.
    pub fn open(path: &Path) -> Result<Model, ModelError> {
        let meta = std::fs::metadata(path).map_err(|e| FileError::new(path, "cannot open the model", e))?;
        if meta.is_dir() { open_directory(path) } else { open_gguf(path) }
    }

    /// A model of a directory's `config.json` whose parameters start from the run's seed.
    ///
    /// # Errors
    /// The configuration is missing or not supported.
    pub fn new(path: &Path) -> Result<Model, ModelError> {
        Model::described(path, read_config(path)?, DType::F32, Start::Seed)
    }

    /// A model to be planned: as [`Model::open`], but a directory may hold `config.json` alone. Its tensors are then
    /// those of a checkpoint of one file in `stored`, or in the type that the configuration declares, or in bf16. Where
    /// there are weights, `stored` must be absent.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_to_plan(path: &Path, stored: Option<DType>) -> Result<Model, ModelError> {
        let has_weights = !path.is_dir() || path.join(TENSORS).exists() || path.join(INDEX).exists();
        if has_weights && stored.is_some() {
            return Err(bad(path, "--stored is for a config.json without weights; these have their type"));
        }
        if has_weights || !path.join("config.json").exists() {
            return Model::open(path);
        }
        let declared = hf::declared_dtype(&read_whole(&path.join("config.json"))?).map_err(|e| bad(path, e))?;
        let dtype = stored.or(declared).unwrap_or(DType::BF16);
        Model::described(path, read_config(path)?, dtype, Start::Absent)
    }

    /// A model of a configuration whose parameters start from the run's seed; or, where its matrices are to be stored
    /// in `blocks` of quantised elements, those from zero.
    ///
    /// # Errors
    /// Its sizes are beyond what a file can hold.
    pub fn from_config(name: &Path, config: DecoderConfig, blocks: Option<DType>) -> Result<Model, ModelError> {
        let mut model = Model::described(name, config, DType::F32, Start::Seed)?;
        blocks.into_iter().for_each(|dtype| model.weights.store_matrices(dtype));
        Ok(model)
    }

    /// A model whose tensors lie where a checkpoint of one file would have them.
    fn described(path: &Path, mut config: DecoderConfig, dtype: DType, start: Start) -> Result<Model, ModelError> {
        let layout = safetensors::layout(&checkpoint(&config, dtype), &BTreeMap::new()).map_err(|e| bad(path, e))?;
        let mut catalog = Catalog::new();
        catalog.add_file(TENSORS);
        layout.tensors.into_iter().try_for_each(|tensor| catalog.insert(tensor)).map_err(|e| bad(path, e))?;
        let weights = weight_map::bind_hf(&mut config, &catalog).map_err(|e| bad(path, e))?;
        let (files, format) = (Vec::new(), Format::HuggingFace);
        Ok(Model { path: path.to_path_buf(), format, config, weights, files, vocab: None, start })
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// There is none, or it is of a kind that is not supported.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let wrap = |source| ModelError::Tokenizer { path: self.path.clone(), source };
        if let Some(vocab) = &self.vocab {
            return Tokenizer::from_gguf(vocab).map_err(wrap);
        }
        let read = |name: &str| read_if_there(&self.path.join(name));
        let tokenizer = read_whole(&self.path.join("tokenizer.json"))?;
        let (config, map) = (read("tokenizer_config.json")?, read("special_tokens_map.json")?);
        let template = read("chat_template.jinja")?.map(String::from_utf8).transpose();
        let template = template.map_err(|e| bad(&self.path.join("chat_template.jinja"), e))?;
        let files = TokenizerFiles {
            tokenizer: &tokenizer,
            config: config.as_deref(),
            special_tokens_map: map.as_deref(),
            chat_template: template.as_deref(),
        };
        Tokenizer::from_huggingface(files).map_err(wrap)
    }

    /// Storage of a parameter in the file.
    pub fn dtype_of(&self, name: &str) -> DType {
        self.weights.get(name).map_or(DType::F32, |b| b.tensor.dtype)
    }

    /// The forward graph for a mode.
    pub fn graph(&self, mode: Mode, compute: i64) -> Graph {
        decoder::program(&self.config, mode, compute, &|name| self.dtype_of(name)).inline()
    }

    /// Where the contents of a weight or constant come from.
    pub fn source(&self, name: &str) -> Source {
        if name == decoder::INV_FREQ {
            return Source::Table(self.config.rope.as_ref().map(|r| r.inv_freq.clone()).unwrap_or_default());
        }
        let binding = self.weights.get(name);
        if self.start == Start::Seed {
            let is_quantised = binding.is_some_and(|b| b.tensor.dtype.is_quantised());
            return if is_quantised { Source::Zero } else { initial(name, &self.config) };
        }
        match binding {
            Some(Binding { tensor, transpose, .. }) => {
                Source::File { file: tensor.file, offset: tensor.offset, dtype: tensor.dtype, transpose: *transpose }
            }
            None => Source::Zero,
        }
    }

    /// Names of the weight files.
    pub fn file_names(&self) -> Vec<String> {
        match self.start {
            Start::Absent => vec![self.path.join(TENSORS).display().to_string()],
            _ => self.files.iter().map(|f| f.path().display().to_string()).collect(),
        }
    }

    /// Elements of all parameters.
    pub fn parameter_count(&self) -> u64 {
        self.weights.iter().map(|b| b.shape.iter().product::<u64>()).sum()
    }
}

/// Reads the headers of safetensors files into a catalog.
///
/// # Errors
/// A file is missing or damaged.
pub fn open_safetensors(paths: &[PathBuf]) -> Result<(Catalog, Vec<ReadAt>), ModelError> {
    let (mut catalog, mut files) = (Catalog::new(), Vec::new());
    for path in paths {
        let file = ReadAt::open(path)?;
        let len = safetensors::header_len(&file.prefix(8)?, file.len()).map_err(|e| bad(path, e))?;
        let header: Header = safetensors::parse_header(&file.prefix(len + 8)?, file.len()).map_err(|e| bad(path, e))?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        header.add_to(&mut catalog, &name).map_err(|e| bad(path, e))?;
        files.push(file);
    }
    Ok((catalog, files))
}

fn read_config(path: &Path) -> Result<DecoderConfig, ModelError> {
    let config_path = path.join("config.json");
    let bytes = read_whole(&config_path)?;
    hf::config(&bytes).map_err(|e| bad(&config_path, e))
}

/// The tensors of a Hugging Face checkpoint of this model.
pub fn checkpoint(config: &DecoderConfig, dtype: DType) -> Vec<NewTensor> {
    let stored = |param: weight_map::Param| {
        let mut shape = param.shape;
        if config.family == Family::Gpt2 && shape.len() == 2 && param.block.is_some() {
            shape.reverse();
        }
        NewTensor::new(param.name, dtype, &shape)
    };
    config.params().into_iter().map(stored).collect()
}

/// How a new parameter starts: norms at 1, biases at 0, matrices normal with deviation 0.02, those that end a
/// residual branch smaller by the root of their number. Source: Radford et al. 2019.
fn initial(name: &str, config: &DecoderConfig) -> Source {
    const STD: f64 = 0.02;
    let ends_branch = ["o_proj.weight", "down_proj.weight", "c_proj.weight"].iter().any(|e| name.ends_with(e));
    if name.ends_with(".bias") {
        Source::Zero
    } else if name.contains("norm") || name.contains(".ln_") {
        Source::Fill(1.0)
    } else if ends_branch {
        Source::Normal { std: STD / (2.0 * config.layers as f64).sqrt() }
    } else {
        Source::Normal { std: STD }
    }
}

fn open_directory(path: &Path) -> Result<Model, ModelError> {
    let mut config = read_config(path)?;
    let generation = path.join("generation_config.json");
    if let Some(bytes) = read_if_there(&generation)? {
        hf::apply_generation_config(&mut config, &bytes).map_err(|e| bad(&generation, e))?;
    }
    let index_path = path.join(INDEX);
    if !index_path.exists() && !path.join(TENSORS).exists() {
        let why = format!(
            "there is a config.json and no weights ({TENSORS}, or {INDEX} with its files): `plan` can do with that, \
             and `train --from-scratch` starts from random parameters"
        );
        return Err(bad(path, why));
    }
    let (catalog, files) = if let Some(bytes) = read_if_there(&index_path)? {
        let index = safetensors::Index::parse(&bytes).map_err(|e| bad(&index_path, e))?;
        let paths: Vec<PathBuf> = index.files().iter().map(|f| path.join(f)).collect();
        let opened = open_safetensors(&paths)?;
        index.check(&opened.0).map_err(|e| bad(&index_path, e))?;
        opened
    } else {
        open_safetensors(&[path.join(TENSORS)])?
    };
    let weights = weight_map::bind_hf(&mut config, &catalog).map_err(|e| bad(path, e))?;
    Ok(Model {
        path: path.to_path_buf(),
        format: Format::HuggingFace,
        config,
        weights,
        files,
        vocab: None,
        start: Start::Files,
    })
}

/// Parses a GGUF header, reading ever longer prefixes until it is whole.
fn gguf_header(file: &ReadAt) -> Result<Gguf, ModelError> {
    let mut most = 1 << 20;
    loop {
        let prefix = file.prefix(most)?;
        match gguf::parse(&prefix, file.len()) {
            Err(gguf::GgufError::NeedMore { .. }) if most < GGUF_HEADER_BYTES_MAX.min(file.len()) => most *= 2,
            result => return result.map_err(|e| bad(file.path(), e)),
        }
    }
}

fn open_gguf(path: &Path) -> Result<Model, ModelError> {
    let file = ReadAt::open(path)?;
    let header = gguf_header(&file)?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let catalog = gguf::catalog(&[(&name, &header)]).map_err(|e| bad(path, e))?;
    let factors = match gguf_decoder::rope_factors_tensor(&catalog) {
        Some(tensor) => Some(read_f32(&file, tensor)?),
        None => None,
    };
    let config = gguf_decoder::config(&header, &catalog, factors.as_deref()).map_err(|e| bad(path, e))?;
    let weights = weight_map::bind_gguf(&config, &catalog).map_err(|e| bad(path, e))?;
    let vocab = header.tokenizer().map_err(|e| bad(path, e))?.map(|t| GgufVocab {
        model: t.model.to_string(),
        pre: t.pre.map(str::to_string),
        tokens: t.tokens.to_vec(),
        scores: t.scores.to_vec(),
        token_types: t.token_types.to_vec(),
        merges: t.merges.to_vec(),
        bos: t.bos,
        eos: t.eos,
        ends: t.eot.into_iter().chain(t.eom).collect(),
        pad: t.pad,
        unk: t.unk,
        add_bos: t.add_bos,
        add_eos: t.add_eos,
        add_space_prefix: t.add_space_prefix,
        chat_template: t.chat_template.map(str::to_string),
    });
    Ok(Model {
        path: path.to_path_buf(),
        format: Format::Gguf,
        config,
        weights,
        files: vec![file],
        vocab,
        start: Start::Files,
    })
}

/// A small float tensor of a file.
///
/// # Errors
/// It cannot be read, or is no float tensor.
pub fn read_f32(file: &ReadAt, tensor: &TensorRef) -> Result<Vec<f32>, ModelError> {
    if tensor.dtype.is_quantised() || !tensor.dtype.is_float() {
        return Err(bad(file.path(), format!("`{}` must hold floats", tensor.name)));
    }
    let mut bytes = vec![0; tensor.bytes as usize];
    file.read(tensor.offset, &mut bytes)?;
    let mut values = vec![0.0; tensor.elems() as usize];
    tinyforge::load::to_f32(tensor.dtype, &bytes, &mut values);
    Ok(values)
}

/// Tensors by name, where several catalogs are looked through.
pub type ByName = HashMap<String, TensorRef>;
