//! The safetensors format, against the `safetensors` crate.

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::{Dtype, TensorView};
use tinyforge_compiler::import::safetensors::{Index, SafetensorsError, header_len, layout, parse_header};
use tinyforge_compiler::import::source::NewTensor;
use tinyforge_compiler::import::{Catalog, safetensors as ours};
use tinyforge_plan::DType;

/// Bytes that differ from place to place.
fn pattern(length: u64, seed: u64) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(37).wrapping_add(seed * 101) >> 1) as u8).collect()
}

#[test]
fn files_of_the_crate_read_the_same() {
    let kinds = [
        (Dtype::F32, Some(DType::F32), 4),
        (Dtype::F16, Some(DType::F16), 2),
        (Dtype::BF16, Some(DType::BF16), 2),
        (Dtype::F64, Some(DType::F64), 8),
        (Dtype::I8, Some(DType::I8), 1),
        (Dtype::U8, Some(DType::U8), 1),
        (Dtype::I32, Some(DType::I32), 4),
        (Dtype::U32, Some(DType::U32), 4),
        (Dtype::I64, None, 8),
        (Dtype::BOOL, None, 1),
        (Dtype::F8_E4M3, None, 1),
    ];
    let shapes = [vec![], vec![3], vec![2, 0], vec![2, 3, 5]];
    let mut data = Vec::new();
    for (k, (theirs, _, bytes)) in kinds.iter().enumerate() {
        for (s, shape) in shapes.iter().enumerate() {
            let length = shape.iter().product::<usize>() as u64 * bytes;
            data.push((format!("kind{k}.shape{s}"), *theirs, shape.clone(), pattern(length, (k * 8 + s) as u64)));
        }
    }
    let views = data
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let file = safetensors::serialize(views, Some(metadata)).unwrap();

    let header = parse_header(&file, file.len() as u64).unwrap();
    assert_eq!(header.metadata, BTreeMap::from([("format".into(), "pt".into())]));
    assert_eq!(header.tensors.len(), data.len());
    let mut catalog = Catalog::new();
    header.add_to(&mut catalog, "a.safetensors").unwrap();
    for (k, (_, dtype, _)) in kinds.iter().enumerate() {
        for (s, shape) in shapes.iter().enumerate() {
            let name = format!("kind{k}.shape{s}");
            let entry = header.tensors.iter().find(|entry| entry.name == name).unwrap();
            let bytes = &file[entry.offset as usize..(entry.offset + entry.bytes) as usize];
            let expected = &data[k * shapes.len() + s].3;
            assert_eq!(bytes, expected, "{name}");
            assert_eq!(entry.shape, shape.iter().map(|&x| x as u64).collect::<Vec<_>>());
            assert_eq!(catalog.get(&name).map(|tensor| tensor.dtype), *dtype, "{name}");
            assert_eq!(catalog.unsupported_dtype(&name).is_some(), dtype.is_none());
        }
    }
}

#[test]
fn the_crate_reads_what_is_streamed() {
    let tensors = [
        NewTensor::new("half", DType::F16, &[3]),
        NewTensor::new("bytes \"quoted\" \u{1F980}", DType::U8, &[5]),
        NewTensor::new("matrix", DType::F32, &[2, 3]),
        NewTensor::new("empty", DType::F32, &[0]),
        NewTensor::new("scalar", DType::F64, &[]),
        NewTensor::new("brain", DType::BF16, &[1, 7]),
    ];
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let layout = layout(&tensors, &metadata).unwrap();
    let mut file = layout.header.clone();
    for (seed, tensor) in layout.tensors.iter().enumerate() {
        assert_eq!(file.len() as u64, tensor.offset, "tensors stream without gaps");
        assert_eq!(tensor.offset % tensor.dtype.block_bytes(), 0, "{} is aligned", tensor.name);
        file.extend(pattern(tensor.bytes, seed as u64));
    }
    assert_eq!(file.len() as u64, layout.file_bytes);
    let theirs = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(theirs.len(), tensors.len());
    for (seed, tensor) in layout.tensors.iter().enumerate() {
        let view = theirs.tensor(&tensor.name).unwrap();
        assert_eq!(view.data(), pattern(tensor.bytes, seed as u64));
        assert_eq!(view.shape().iter().map(|&x| x as u64).collect::<Vec<_>>(), tensor.shape);
    }
    let (_, read) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    assert_eq!(read.metadata().as_ref().unwrap()["format"], "pt");
    assert_eq!(parse_header(&file, layout.file_bytes).unwrap().metadata, metadata);
}

#[test]
fn a_prefix_says_how_much_is_needed() {
    let layout = layout(&[NewTensor::new("a", DType::F32, &[4])], &BTreeMap::new()).unwrap();
    let length = header_len(&layout.header[..8], layout.file_bytes).unwrap();
    assert_eq!(length, layout.header.len() as u64);
    for end in 0..layout.header.len() {
        let needed = if end < 8 { 8 } else { length };
        let error = parse_header(&layout.header[..end], layout.file_bytes).unwrap_err();
        assert_eq!(error, SafetensorsError::NeedMore { bytes: needed, have: end as u64 });
    }
    assert!(parse_header(&layout.header, layout.file_bytes).is_ok());
}

#[test]
fn what_cannot_be_written_is_refused() {
    let refuse = |tensors: &[NewTensor]| layout(tensors, &BTreeMap::new()).unwrap_err().to_string();
    let twice = [NewTensor::new("a", DType::F32, &[1]), NewTensor::new("a", DType::U8, &[1])];
    assert_eq!(refuse(&twice), "tensor `a` is described twice");
    assert!(refuse(&[NewTensor::new("q", DType::Q4_0, &[32])]).contains("dequantise"));
    assert!(refuse(&[NewTensor::new("h", DType::F32, &[1 << 40, 1 << 40])]).contains("overflows"));
    assert!(refuse(&[NewTensor::new("l", DType::U8, &[u64::MAX - 4])]).contains("overflows"));
    let halves = [NewTensor::new("a", DType::U8, &[1 << 62]), NewTensor::new("b", DType::U8, &[1 << 62])];
    assert!(refuse(&halves).contains("overflows"));
    assert!(refuse(&[NewTensor::new("__metadata__", DType::F32, &[1])]).contains("twice"));
}

#[test]
fn shards_are_checked_against_their_index() {
    let shard = |names: &[&str]| {
        let tensors: Vec<NewTensor> = names.iter().map(|name| NewTensor::new(*name, DType::F32, &[2])).collect();
        layout(&tensors, &BTreeMap::new()).unwrap()
    };
    let json = br#"{ "metadata": { "total_size": 24 }, "weight_map":
        { "a": "model-1.safetensors", "c": "model-2.safetensors", "b": "model-1.safetensors" } }"#;
    let index = Index::parse(json).unwrap();
    assert_eq!(index.files(), ["model-1.safetensors", "model-2.safetensors"]);
    assert_eq!(Index::parse(index.to_json(24).as_bytes()).unwrap(), index);

    let read = |shards: [&[&str]; 2]| {
        let mut catalog = Catalog::new();
        for (file, names) in index.files().into_iter().zip(shards) {
            let layout = shard(names);
            parse_header(&layout.header, layout.file_bytes)?.add_to(&mut catalog, file)?;
        }
        index.check(&catalog).map(|()| catalog)
    };
    let catalog = read([&["a", "b"], &["c"]]).unwrap();
    assert_eq!((catalog.get("c").unwrap().file, catalog.total_bytes()), (1, 24));
    let moved = read([&["a"], &["b", "c"]]).unwrap_err();
    assert_eq!(moved, ours::SafetensorsError::NotInShard { name: "b".into(), file: "model-1.safetensors".into() });
    let twice = read([&["a", "b"], &["a", "c"]]).unwrap_err().to_string();
    assert_eq!(twice, "tensor `a` is in `model-1.safetensors` and again in `model-2.safetensors`; remove one of them");

    for name in ["../x", "/etc/x", "a\\b", "C:x", "", ".."] {
        let json = serde_json::json!({ "weight_map": { "a": name } }).to_string();
        assert_eq!(Index::parse(json.as_bytes()), Err(SafetensorsError::UnsafeFileName { file: name.into() }));
    }
    assert_eq!(Index::parse(br#"{ "weight_map": {} }"#), Err(SafetensorsError::EmptyIndex));
}
