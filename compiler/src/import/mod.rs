//! Reads models by reference: file headers and configurations in, descriptions and tensor locations out.
//!
//! Every reader here takes bytes that the caller has read (a header, a `config.json`) and returns where the
//! weights lie, never the weights themselves. Input is untrusted: no reader panics, loops without reading, or
//! allocates from a length that it has not compared with the bytes it holds. Not for opening files, converting
//! weights or building programs.
//!
//! | module | reads | gives |
//! |---|---|---|
//! | [`safetensors`] | a file's header, a shard index | tensor locations; lays out new files |
//! | [`gguf`] | a file's header | metadata, tokenizer data, tensor locations; lays out new files |
//! | [`hf`] | `config.json` | a [`DecoderConfig`]; writes it again |
//! | [`gguf_decoder`] | GGUF metadata | a [`DecoderConfig`] |
//! | [`gguf_export`] | a [`DecoderConfig`] | GGUF metadata |
//! | [`weight_map`] | a [`DecoderConfig`] and a [`Catalog`] | one [`Binding`] a parameter, shapes checked |
//! | [`tflite`] | a file | an [`int8::Int8Model`] |
//! | [`onnx`] | a file of a float network | a [`onnx::FloatModel`] |
//! | [`mcu`] | a network's `.json` and its safetensors | an [`int8::Int8Model`] |
//! | [`peft`] | `adapter_config.json` | LoRA settings and tensor names; writes them |

pub mod config_error;
pub mod decoder;
pub mod decoder_config;
pub mod gguf;
pub mod gguf_decoder;
pub mod gguf_export;
pub mod hf;
pub mod int8;
mod json;
pub mod mcu;
pub mod onnx;
pub mod peft;
pub mod rope;
pub mod safetensors;
pub mod source;
pub mod tflite;
pub mod weight_map;

pub use config_error::{ConfigError, Finding};
pub use decoder_config::{Activation, DecoderConfig, Family, NormKind, SlidingWindow};
pub use int8::{Int8Error, Int8Model};
pub use rope::{Rope, RopeScaling};
pub use source::{Catalog, FileLayout, TensorRef};
pub use weight_map::{Binding, RowOrder, WeightMap};
