//! Safetensors headers and shard indices.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tinyforge_compiler::import::Catalog;
use tinyforge_compiler::import::safetensors::{Index, SafetensorsError, layout, parse_header};
use tinyforge_compiler::import::source::NewTensor;

fuzz_target!(|data: &[u8]| {
    if let Ok(index) = Index::parse(data) {
        assert_eq!(Index::parse(index.to_json(0).as_bytes()).as_ref(), Ok(&index));
        let _ = index.check(&Catalog::new());
    }
    // A file that is longer than what was read of it.
    let _ = parse_header(data, u64::MAX);
    let file_bytes = data.len() as u64;
    let header = match parse_header(data, file_bytes) {
        Ok(header) => header,
        Err(SafetensorsError::NeedMore { .. }) if data.len() >= 8 => panic!("the whole file is here"),
        Err(_) => return,
    };
    let theirs = safetensors::SafeTensors::deserialize(data).expect("the reference reader is no stricter");
    assert_eq!(theirs.len(), header.tensors.len());
    let mut covered = header.data_start;
    for tensor in &header.tensors {
        assert_eq!(tensor.offset, covered);
        covered += tensor.bytes;
        let view = theirs.tensor(&tensor.name).expect("the same names");
        assert_eq!(view.data(), &data[tensor.offset as usize..covered as usize]);
    }
    assert_eq!(covered, file_bytes);
    let mut catalog = Catalog::new();
    header.add_to(&mut catalog, "a").expect("names differ");
    let tensors: Vec<_> =
        catalog.iter().map(|tensor| NewTensor::new(tensor.name.as_str(), tensor.dtype, &tensor.shape)).collect();
    let written = layout(&tensors, &header.metadata).expect("what was read can be written");
    let read = parse_header(&written.header, written.file_bytes).expect("what was written can be read");
    assert_eq!((read.metadata, read.tensors.len()), (header.metadata, tensors.len()));
});
