//! GGUF headers, the tokenizer and the configuration in their metadata.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tinyforge_compiler::import::gguf::{self, GgufError, layout, parse};
use tinyforge_compiler::import::source::NewTensor;
use tinyforge_compiler::import::weight_map::bind_gguf;
use tinyforge_compiler::import::{gguf_decoder, gguf_export, hf};
use tinyforge_plan::DType;

fuzz_target!(|data: &[u8]| {
    // Tensor data need not be there: pretend that the file goes on for a gigabyte.
    let file_bytes = data.len() as u64 + (1 << 30);
    let gguf = match parse(data, file_bytes) {
        Ok(gguf) => gguf,
        Err(GgufError::NeedMore { bytes, have }) => {
            assert!(bytes > have && bytes <= file_bytes);
            return;
        }
        Err(_) => return,
    };
    if let Some(cut) = data.len().checked_sub(data.len() / 3 + 1) {
        match parse(&data[..cut], file_bytes) {
            Err(GgufError::NeedMore { bytes, .. }) => assert!(bytes <= data.len() as u64),
            // The cut may fall behind the header.
            other => assert_eq!(format!("{other:?}"), format!("{:?}", Ok::<_, GgufError>(&gguf))),
        }
    }
    for tensor in &gguf.tensors {
        assert!(tensor.offset >= gguf.data_start && tensor.offset + tensor.bytes <= file_bytes);
        assert_eq!(Some(tensor.bytes), tensor.dtype.bytes_of(tensor.shape.iter().product()));
    }
    let metadata: Vec<_> = gguf.metadata.clone().into_iter().collect();
    let tensors: Vec<_> =
        gguf.tensors.iter().map(|info| NewTensor::new(info.name.as_str(), info.dtype, &info.shape)).collect();
    if gguf.alignment <= 1 << 16 {
        let written = layout(&metadata, &tensors).expect("what was read can be written");
        let read = parse(&written.header, written.file_bytes).expect("what was written can be read");
        // NaN differs from itself; its text does not.
        assert_eq!(format!("{:?}", read.metadata), format!("{:?}", gguf.metadata));
    }
    let _ = gguf.tokenizer();
    let Ok(catalog) = gguf::catalog(&[("a", &gguf)]) else { return };
    for factors in [None, Some(&[1.0f32; 32][..])] {
        let Ok(config) = gguf_decoder::config(&gguf, &catalog, factors) else { continue };
        config.check().expect("an importer returns what checks");
        let _ = hf::config_json(&config, DType::F32);
        if let Ok(metadata) = gguf_export::metadata(&config) {
            let written = layout(&metadata, &[]).expect("metadata can be written");
            parse(&written.header, written.file_bytes).expect("what was written can be read");
        }
        if config.layers <= 64 {
            let _ = bind_gguf(&config, &catalog);
        }
    }
});
