//! `tinyforge make-model`: a model of a shape whose weights are random numbers, for measurements at a size of which no
//! real model is at hand.
//!
//! A weight is a function of seed, name and index: the same on every machine. Tensors are written one after the other,
//! through a buffer of one piece a thread.

use crate::error::CommandError;
use crate::model::checkpoint;
use crate::planning::storage;
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use tinyforge::files::{FileError, read_whole, write_atomic};
use tinyforge_compiler::import::source::TensorRef;
use tinyforge_compiler::import::{DecoderConfig, hf, safetensors};
use tinyforge_kernels::random::Stream;
use tinyforge_plan::{DType, encode};

/// Makes a model of a shape with random weights and a byte-level tokenizer, to measure with
#[derive(clap::Args, Debug)]
pub struct MakeModelArgs {
    /// The shape: a config.json of a supported family
    #[arg(long)]
    config: PathBuf,
    /// Folder for the model
    #[arg(long)]
    out: PathBuf,
    /// Storage of the weights: f32, f16 or bf16
    #[arg(long, default_value = "bf16")]
    dtype: String,
    /// Seed of the weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Tokens of the tokenizer: one a byte, and the end of a text.
const TOKENS: usize = 257;
/// The last of them.
const END_OF_TEXT: u32 = 256;
/// Standard deviation of the weights.
const STD: f64 = 0.02;
/// Elements that a thread makes at a time.
const PIECE_ELEMS: usize = 1 << 20;

/// Makes the model.
///
/// # Errors
/// The configuration is not supported, or the folder cannot be written.
pub fn run(args: &MakeModelArgs) -> Result<(), CommandError> {
    let bad = |e: &dyn std::fmt::Display| CommandError::request(format!("{}: {e}", args.config.display()));
    let dtype = storage("--dtype", &args.dtype)?;
    let mut config = hf::config(&read_whole(&args.config)?).map_err(|e| bad(&e))?;
    if config.vocab < TOKENS {
        let why = format!("a vocabulary of {} has no room for {TOKENS} tokens: the bytes and an end", config.vocab);
        return Err(bad(&why));
    }
    (config.bos, config.eos) = (None, vec![END_OF_TEXT]);
    std::fs::create_dir_all(&args.out).map_err(|e| FileError::new(&args.out, "cannot make the folder", e))?;
    let text = |name: &str, text: &str| write_atomic(&args.out.join(name), |file| file.write_all(text.as_bytes()));
    text("config.json", &hf::config_json(&config, dtype).map_err(CommandError::request)?)?;
    text("tokenizer.json", &tokenizer_json())?;
    text("tokenizer_config.json", TOKENIZER_CONFIG)?;
    let bytes = write_weights(&config, dtype, args.seed, &args.out.join("model.safetensors"))?;
    println!("{}: {bytes} bytes of weights", args.out.display());
    Ok(())
}

/// Writes the tensors of a checkpoint and says how many bytes the file has.
fn write_weights(config: &DecoderConfig, dtype: DType, seed: u64, path: &Path) -> Result<u64, CommandError> {
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let layout = safetensors::layout(&checkpoint(config, dtype), &metadata).map_err(CommandError::request)?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut buffer = vec![0; cores * PIECE_ELEMS * dtype.block_bytes() as usize];
    let table = table(dtype);
    write_atomic(path, |file| {
        file.write_all(&layout.header)?;
        layout.tensors.iter().try_for_each(|tensor| write_tensor(file, tensor, seed, &table, &mut buffer))
    })?;
    Ok(layout.file_bytes)
}

fn write_tensor(
    file: &mut dyn Write,
    tensor: &TensorRef,
    seed: u64,
    table: &[[u8; 4]],
    buffer: &mut [u8],
) -> std::io::Result<()> {
    let width = tensor.dtype.block_bytes() as usize;
    let fixed = match (tensor.name.ends_with(".bias"), tensor.shape.len()) {
        (true, _) => Some(element(tensor.dtype, 0.0)),
        // What is no bias and no matrix is a norm.
        (_, 1) => Some(element(tensor.dtype, 1.0)),
        _ => None,
    };
    let stream = Stream { seed, step: u32::MAX, tensor: encode::crc32(tensor.name.as_bytes()) };
    let (elems, per_write) = (tensor.elems() as usize, buffer.len() / width);
    for first in (0..elems).step_by(per_write) {
        let piece = &mut buffer[..per_write.min(elems - first) * width];
        let fill = &|part: usize, out: &mut [u8]| match fixed {
            Some(value) => out.chunks_exact_mut(width).for_each(|out| out.copy_from_slice(&value[..width])),
            None => random(out, width, &stream, (first + part * PIECE_ELEMS) as u64, table),
        };
        std::thread::scope(|scope| {
            for (part, out) in piece.chunks_mut(PIECE_ELEMS * width).enumerate() {
                scope.spawn(move || fill(part, out));
            }
        });
        file.write_all(piece)?;
    }
    Ok(())
}

/// Elements from `first`, a multiple of [`PIECE_ELEMS`] past the tensor's start: nearly normal, the sum of the four
/// bytes of a random word.
fn random(out: &mut [u8], width: usize, stream: &Stream, first: u64, table: &[[u8; 4]]) {
    const BLOCKS: usize = 16;
    for (i, part) in out.chunks_mut(4 * BLOCKS * width).enumerate() {
        let words = stream.blocks::<BLOCKS>(first / 4 + (i * BLOCKS) as u64);
        for (j, out) in part.chunks_exact_mut(width).enumerate() {
            let sum: u32 = words[j / BLOCKS][j % BLOCKS].to_le_bytes().iter().map(|&b| u32::from(b)).sum();
            out.copy_from_slice(&table[sum as usize][..width]);
        }
    }
}

/// The stored element for each sum of four bytes. Such a sum has the variance `4 (256^2 - 1) / 12`.
fn table(dtype: DType) -> Vec<[u8; 4]> {
    let deviation = (4.0 * (256.0 * 256.0 - 1.0) / 12.0f64).sqrt();
    (0..=4 * 255).map(|sum| element(dtype, (STD * (f64::from(sum) - 510.0) / deviation) as f32)).collect()
}

/// A stored element, padded.
fn element(dtype: DType, x: f32) -> [u8; 4] {
    let two = |[a, b]: [u8; 2]| [a, b, 0, 0];
    match dtype {
        DType::BF16 => two(bf16::from_f32(x).to_le_bytes()),
        DType::F16 => two(f16::from_f32(x).to_le_bytes()),
        _ => x.to_le_bytes(),
    }
}

const TOKENIZER_CONFIG: &str = r#"{
  "tokenizer_class": "PreTrainedTokenizerFast",
  "bos_token": null,
  "eos_token": "<|endoftext|>",
  "pad_token": "<|endoftext|>",
  "unk_token": null,
  "add_prefix_space": false,
  "clean_up_tokenization_spaces": false
}
"#;

/// A tokenizer with a token for each byte, in the order of bytes, and the end of a text.
fn tokenizer_json() -> String {
    let vocab: serde_json::Map<_, _> =
        (0..=255u8).map(|byte| (letter(byte).to_string(), serde_json::json!(byte))).collect();
    let mut json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{
            "id": END_OF_TEXT, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    });
    json["model"]["vocab"]["<|endoftext|>"] = serde_json::json!(END_OF_TEXT);
    format!("{json}\n")
}

/// The letter that byte-level tokenizers write for a byte: itself where it can be seen, else one past U+00FF, in order.
fn letter(byte: u8) -> char {
    let is_seen = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_seen(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !is_seen(b)).count() as u32;
    char::from_u32(0x100 + before).expect("68 letters from U+0100 are characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_those_of_byte_level_tokenizers() {
        assert_eq!([letter(b' '), letter(b'\n'), letter(b'A'), letter(0xad), letter(0xff)], ['Ġ', 'Ċ', 'A', 'Ń', 'ÿ']);
        let all: std::collections::BTreeSet<char> = (0..=255).map(letter).collect();
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn weights_have_the_deviation_and_depend_on_the_index_alone() {
        let stream = Stream { seed: 7, step: u32::MAX, tensor: 1 };
        let table = table(DType::F32);
        let make = |first: u64, count: usize| {
            let mut out = vec![0; 4 * count];
            random(&mut out, 4, &stream, first, &table);
            out.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<_>>()
        };
        let all = make(0, 1 << 16);
        assert_eq!(all[4096..4196], make(4096, 100)[..]);
        let mean = all.iter().map(|&x| f64::from(x)).sum::<f64>() / all.len() as f64;
        let std = (all.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / all.len() as f64).sqrt();
        assert!(mean.abs() < 3e-4 && (std - STD).abs() < 2e-4, "mean {mean}, deviation {std}");
    }
}
