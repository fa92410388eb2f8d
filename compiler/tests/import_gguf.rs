//! The GGUF format: what is laid out reads back, prefixes ask for more, and old versions read.

use tinyforge_compiler::import::gguf::{self, Array, Gguf, GgufError, Value, layout, parse};
use tinyforge_compiler::import::source::NewTensor;
use tinyforge_plan::DType;

/// Metadata with every type of value.
fn every_value() -> Vec<(String, Value)> {
    let values = [
        ("general.architecture", Value::String("test".into())),
        ("u8", Value::U8(200)),
        ("i8", Value::I8(-100)),
        ("u16", Value::U16(60_000)),
        ("i16", Value::I16(-30_000)),
        ("u32", Value::U32(4_000_000_000)),
        ("i32", Value::I32(-2_000_000_000)),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(i64::MIN)),
        ("f32", Value::F32(0.1)),
        ("f64", Value::F64(0.1)),
        ("bool", Value::Bool(true)),
        ("string", Value::String("zwölf \u{1F980}".into())),
        ("a.u8", Value::Array(Array::U8(vec![1, 255]))),
        ("a.i8", Value::Array(Array::I8(vec![-1]))),
        ("a.u16", Value::Array(Array::U16(vec![256, 1]))),
        ("a.i16", Value::Array(Array::I16(vec![-256]))),
        ("a.u32", Value::Array(Array::U32(vec![1 << 31]))),
        ("a.i32", Value::Array(Array::I32(vec![-5, 5]))),
        ("a.u64", Value::Array(Array::U64(vec![1 << 63]))),
        ("a.i64", Value::Array(Array::I64(vec![-1]))),
        ("a.f32", Value::Array(Array::F32(vec![1.5, -0.0]))),
        ("a.f64", Value::Array(Array::F64(vec![1e300]))),
        ("a.bool", Value::Array(Array::Bool(vec![true, false]))),
        ("a.string", Value::Array(Array::String(vec!["".into(), "b".into()]))),
        ("a.empty", Value::Array(Array::F32(vec![]))),
        ("a.nested", Value::Array(Array::Array(vec![Array::U8(vec![1]), Array::String(vec!["x".into()])]))),
    ];
    values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn tensors() -> Vec<NewTensor> {
    let mut tensors = vec![NewTensor::new("vector", DType::F32, &[5]), NewTensor::new("i8", DType::I8, &[2, 2, 2, 3])];
    for dtype in DType::all().filter(|dtype| !matches!(dtype, DType::U8 | DType::U32)) {
        tensors.push(NewTensor::new(format!("matrix.{}", dtype.name()), dtype, &[3, 2 * dtype.block_elems()]));
    }
    tensors
}

#[test]
fn what_is_laid_out_reads_back() {
    for alignment in [None, Some(8), Some(256)] {
        let mut metadata = every_value();
        metadata.extend(alignment.map(|bytes| ("general.alignment".to_owned(), Value::U32(bytes))));
        let layout = layout(&metadata, &tensors()).unwrap();
        let gguf = parse(&layout.header, layout.file_bytes).unwrap();
        assert_eq!((gguf.version, gguf.alignment), (3, u64::from(alignment.unwrap_or(32))));
        assert_eq!(gguf.metadata, metadata.into_iter().collect());
        assert_eq!((gguf.data_start, gguf.tensors.len()), (layout.header.len() as u64, layout.tensors.len()));
        for (read, placed) in gguf.tensors.iter().zip(&layout.tensors) {
            assert_eq!((&read.name, read.dtype, &read.shape), (&placed.name, placed.dtype, &placed.shape));
            assert_eq!((read.offset, read.bytes), (placed.offset, placed.bytes));
            assert_eq!(read.offset % gguf.alignment, 0);
            assert_eq!(Some(read.bytes), read.dtype.bytes_of(read.shape.iter().product()));
        }
        let catalog = gguf::catalog(&[("m.gguf", &gguf)]).unwrap();
        assert_eq!(catalog.get("vector").unwrap().bytes, 20);
    }
}

#[test]
fn every_prefix_asks_for_more() {
    let layout = layout(&every_value(), &tensors()).unwrap();
    // The padding after the table is not part of the header.
    let table_end = layout.header.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    for end in 0..table_end {
        match parse(&layout.header[..end], layout.file_bytes) {
            Err(GgufError::NeedMore { bytes, have }) => {
                assert_eq!(have, end as u64);
                assert!(bytes > have && bytes <= layout.header.len() as u64, "{end}: {bytes}");
            }
            other => panic!("{end}: {other:?}"),
        }
        match parse(&layout.header[..end], end as u64) {
            Err(GgufError::Truncated { file_bytes, .. }) => assert_eq!(file_bytes, end as u64),
            other => panic!("{end}: {other:?}"),
        }
    }
}

#[test]
fn files_that_end_in_their_data_are_truncated() {
    let layout = layout(&[], &[NewTensor::new("a", DType::Q4_0, &[4, 32])]).unwrap();
    let end = layout.tensors[0].end();
    assert!(parse(&layout.header, end).is_ok(), "the last tensor's padding may be missing");
    let error = parse(&layout.header, end - 1).unwrap_err();
    assert_eq!(error, GgufError::PastEnd { name: "a".into(), end, file_bytes: end - 1 });
}

#[test]
fn version_2_reads_and_others_are_refused() {
    let layout = layout(&every_value(), &tensors()).unwrap();
    let version = |number: u32| {
        let mut header = layout.header.clone();
        header[4..8].copy_from_slice(&number.to_le_bytes());
        parse(&header, layout.file_bytes).map(|gguf| gguf.version)
    };
    assert_eq!(version(2), Ok(2));
    assert_eq!(version(1), Err(GgufError::Version { version: 1 }));
    assert_eq!(version(4), Err(GgufError::Version { version: 4 }));
    assert_eq!(version(3 << 24), Err(GgufError::BigEndian));
}

#[test]
fn accessors_check_types() {
    let layout = layout(&every_value(), &[]).unwrap();
    let gguf = parse(&layout.header, layout.file_bytes).unwrap();
    assert_eq!(gguf.str("string"), Ok(Some("zwölf \u{1F980}")));
    assert_eq!(gguf.u64("u8"), Ok(Some(200)));
    assert_eq!(gguf.f64("f32"), Ok(Some(f64::from(0.1f32))));
    assert_eq!(gguf.bool("bool"), Ok(Some(true)));
    assert_eq!(gguf.u64("absent"), Ok(None));
    let error = gguf.u64("i8").unwrap_err().to_string();
    assert_eq!(error, "metadata `i8` is -100 (i8), expected an integer that is not negative");
    assert!(gguf.u32("u64").is_err());
    assert!(gguf.str("u8").is_err());
    assert!(gguf.array("string").is_err());
}

fn with_tokenizer(change: &[(&str, Value)]) -> Gguf {
    let mut metadata: Vec<(String, Value)> = vec![
        ("tokenizer.ggml.model".into(), Value::String("llama".into())),
        ("tokenizer.ggml.tokens".into(), Value::Array(Array::String(["<s>", "</s>", "a"].map(String::from).to_vec()))),
        ("tokenizer.ggml.scores".into(), Value::Array(Array::F32(vec![0.0, 0.0, -1.0]))),
        ("tokenizer.ggml.token_type".into(), Value::Array(Array::I32(vec![3, 3, 1]))),
        ("tokenizer.ggml.bos_token_id".into(), Value::U32(0)),
        ("tokenizer.ggml.eos_token_id".into(), Value::U32(1)),
        ("tokenizer.ggml.add_bos_token".into(), Value::Bool(true)),
    ];
    for (key, value) in change {
        metadata.retain(|(other, _)| other != key);
        metadata.push(((*key).into(), value.clone()));
    }
    let layout = layout(&metadata, &[]).unwrap();
    parse(&layout.header, layout.file_bytes).unwrap()
}

#[test]
fn tokenizers_are_checked() {
    let gguf = with_tokenizer(&[]);
    let tokenizer = gguf.tokenizer().unwrap().unwrap();
    assert_eq!((tokenizer.model, tokenizer.tokens.len(), tokenizer.scores[2]), ("llama", 3, -1.0));
    assert_eq!((tokenizer.token_types, tokenizer.merges.len()), (&[3, 3, 1][..], 0));
    assert_eq!((tokenizer.bos, tokenizer.eos, tokenizer.pad), (Some(0), Some(1), None));
    assert_eq!((tokenizer.add_bos, tokenizer.add_eos, tokenizer.chat_template), (Some(true), None, None));

    let refuse = |key: &str, value: Value| with_tokenizer(&[(key, value)]).tokenizer().unwrap_err().to_string();
    let past_end = refuse("tokenizer.ggml.eos_token_id", Value::U32(3));
    assert_eq!(past_end, "metadata `tokenizer.ggml.eos_token_id` is 3, of 3 tokens, expected the id of a token");
    assert!(refuse("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0]))).contains("one element a token"));
    assert!(refuse("tokenizer.ggml.scores", Value::Array(Array::I32(vec![0; 3]))).contains("array of f32"));
    assert!(refuse("tokenizer.ggml.tokens", Value::Array(Array::U8(vec![0; 3]))).contains("array of strings"));
    assert!(refuse("tokenizer.chat_template", Value::U8(1)).contains("a string"));

    let layout = layout(&[], &[]).unwrap();
    assert_eq!(parse(&layout.header, layout.file_bytes).unwrap().tokenizer(), Ok(None));
}

#[test]
fn split_models_need_all_their_files_in_order() {
    let part = |number: u16, name: &str| {
        let metadata = [("split.no".to_owned(), Value::U16(number)), ("split.count".to_owned(), Value::U16(2))];
        let layout = layout(&metadata, &[NewTensor::new(name, DType::F32, &[4])]).unwrap();
        parse(&layout.header, layout.file_bytes).unwrap()
    };
    let (first, second, same) = (part(0, "a"), part(1, "b"), part(1, "a"));
    let catalog = gguf::catalog(&[("1.gguf", &first), ("2.gguf", &second)]).unwrap();
    assert_eq!((catalog.len(), catalog.get("b").unwrap().file), (2, 1));
    let error = |parts: &[(&str, &Gguf)]| gguf::catalog(parts).unwrap_err().to_string();
    assert_eq!(error(&[("1.gguf", &first)]), "the model is split in 2 files, 1 were given");
    assert!(error(&[("2.gguf", &second), ("1.gguf", &first)]).contains("in order"));
    assert!(error(&[("1.gguf", &first), ("2.gguf", &same)]).contains("again in `2.gguf`"));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let refuse = |tensor: NewTensor| layout(&[], &[tensor]).unwrap_err().to_string();
    assert!(refuse(NewTensor::new("u", DType::U8, &[4])).contains("no GGML type"));
    assert!(refuse(NewTensor::new("r", DType::F32, &[1, 1, 1, 1, 1])).contains("5 dimensions"));
    assert!(refuse(NewTensor::new("b", DType::Q4_0, &[2, 16])).contains("whole blocks of 32"));
    assert!(refuse(NewTensor::new("h", DType::F32, &[1 << 40, 1 << 40])).contains("overflows"));
    assert!(refuse(NewTensor::new("l", DType::I8, &[u64::MAX - 4])).contains("overflows"));
    assert!(refuse(NewTensor::new("e", DType::F32, &[0])).contains("empty"));
    let twice = [NewTensor::new("a", DType::F32, &[4]), NewTensor::new("a", DType::F32, &[4])];
    assert!(layout(&[], &twice).unwrap_err().to_string().contains("again"));
    let keys = [("k".to_owned(), Value::U8(1)), ("k".to_owned(), Value::U8(2))];
    assert!(layout(&keys, &[]).unwrap_err().to_string().contains("occurs twice"));
    let alignment = [("general.alignment".to_owned(), Value::U32(24))];
    assert!(layout(&alignment, &[]).unwrap_err().to_string().contains("power of two"));
}
