//! Real checkpoints: the shared assets, and a GGUF file named by `TINYFORGE_SMOLLM2_GGUF`.

use std::path::PathBuf;

use tinyforge_compiler::import::{Catalog, RowOrder, gguf, gguf_decoder, hf, safetensors, weight_map};
use tinyforge_plan::DType;

/// A file of the assets, or `None` when they are absent.
fn asset(path: &str) -> Option<PathBuf> {
    let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let root = std::env::var_os("TINYFORGE_ASSETS").map_or_else(|| workspace.join("../shared/assets"), PathBuf::from);
    let file = root.join(path);
    if !file.exists() {
        println!("skipped: {path} is not among the assets");
        return None;
    }
    Some(file)
}

#[test]
fn stories260k_binds_to_its_configuration() {
    let Some(config_path) = asset("stories260K/config.json") else { return };
    let weights = std::fs::read(config_path.with_file_name("model.safetensors")).unwrap();
    let mut config = hf::config(&std::fs::read(&config_path).unwrap()).unwrap();
    assert_eq!((config.vocab, config.hidden, config.layers), (512, 64, 5));
    assert_eq!((config.heads, config.kv_heads, config.head_dim, config.ff), (8, 4, 8, 172));
    assert_eq!((config.bos, config.eos.as_slice(), config.tied), (Some(1), &[2][..], true));
    let rope = config.rope.as_ref().unwrap();
    assert_eq!((rope.inv_freq.len(), rope.interleaved), (4, false));

    let header = safetensors::parse_header(&weights, weights.len() as u64).unwrap();
    let mut catalog = Catalog::new();
    header.add_to(&mut catalog, "model.safetensors").unwrap();
    let map = weight_map::bind_hf(&mut config, &catalog).unwrap();
    assert_eq!((map.len(), map.unused().len()), (2 + 5 * 9, 0));
    let params: u64 = map.iter().map(|binding| binding.tensor.elems()).sum();
    assert_eq!(params, 260_032);

    let theirs = ::safetensors::SafeTensors::deserialize(&weights).unwrap();
    assert_eq!(theirs.len(), catalog.len());
    for (name, view) in theirs.tensors() {
        let ours = catalog.get(&name).unwrap();
        assert_eq!(view.data(), &weights[ours.offset as usize..ours.end() as usize], "{name}");
    }
}

#[test]
fn smollm2_gguf_binds_to_its_configuration() {
    let path = std::env::var_os("TINYFORGE_SMOLLM2_GGUF").map(PathBuf::from).filter(|path| path.exists());
    let Some(path) = path else {
        println!("skipped: TINYFORGE_SMOLLM2_GGUF names no file");
        return;
    };
    let file = std::fs::read(path).unwrap();
    let file_bytes = file.len() as u64;
    // As an engine reads it: a small prefix first, more when asked.
    let mut prefix = 64 << 10;
    let gguf = loop {
        match gguf::parse(&file[..prefix], file_bytes) {
            Err(gguf::GgufError::NeedMore { bytes, .. }) => {
                assert!(bytes > prefix as u64 && bytes <= file_bytes);
                prefix = (bytes as usize).max(2 * prefix).min(file.len());
            }
            other => break other.unwrap(),
        }
    };
    let catalog = gguf::catalog(&[("model.gguf", &gguf)]).unwrap();
    let config = gguf_decoder::config(&gguf, &catalog, None).unwrap();
    assert_eq!((config.vocab, config.hidden, config.layers), (49_152, 576, 30));
    assert_eq!((config.heads, config.kv_heads, config.head_dim, config.ff), (9, 3, 64, 1536));
    assert_eq!((config.bos, config.eos.as_slice(), config.tied), (Some(1), &[2][..], true));
    assert_eq!((config.norm_eps, config.max_positions), (1e-5, 8192));
    let rope = config.rope.as_ref().unwrap();
    assert_eq!((rope.theta, rope.interleaved, rope.inv_freq.len()), (100_000.0, true, 32));

    let map = weight_map::bind_gguf(&config, &catalog).unwrap();
    assert_eq!((map.len(), map.unused().len()), (2 + 30 * 9, 0));
    let k = map.get("model.layers.7.self_attn.k_proj.weight").unwrap();
    assert_eq!((k.tensor.name.as_str(), k.tensor.dtype, k.transpose), ("blk.7.attn_k.weight", DType::Q4_1, false));
    assert_eq!(k.rows, RowOrder::RopeInterleaved { heads: 3, head_dim: 64 });
    assert_eq!(map.get("model.embed_tokens.weight").unwrap().tensor.dtype, DType::Q8_0);

    let tokenizer = gguf.tokenizer().unwrap().unwrap();
    assert_eq!((tokenizer.model, tokenizer.pre, tokenizer.tokens.len()), ("gpt2", Some("smollm"), 49_152));
    assert_eq!((tokenizer.merges.len(), tokenizer.bos, tokenizer.eos), (48_900, Some(1), Some(2)));
    assert_eq!((tokenizer.add_bos, tokenizer.pad), (Some(false), Some(2)));
    assert!(tokenizer.chat_template.unwrap().contains("<|im_start|>"));
}
