//! The block formats against what GGML's own tools make of the same bits (`data/blocks.py`).

use std::path::Path;
use tinyforge_kernels::f32::quant::{dequantise, quantise};
use tinyforge_plan::DType;

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn blocks_decode_to_the_same_bits() {
    for dtype in DType::all().filter(|dtype| dtype.is_quantised()) {
        let file = fixture(&format!("{}.bin", dtype.name()));
        let (blocks, elements) = file.split_at(4 * dtype.block_bytes() as usize);
        let expected = floats(elements);
        let mut out = vec![f32::NAN; 4 * dtype.block_elems() as usize];
        dequantise(dtype, blocks, &mut out);
        assert_eq!(bits(&out), bits(&expected), "{}", dtype.name());
    }
}

#[test]
fn values_encode_to_the_same_bytes() {
    for dtype in [DType::Q8_0, DType::Q4_0, DType::Q4_1] {
        let file = fixture(&format!("{}.encode.bin", dtype.name()));
        let (values, expected) = file.split_at(4 * 256);
        let mut blocks = vec![0xff; expected.len()];
        assert!(quantise(dtype, &floats(values), &mut blocks));
        assert_eq!(blocks, expected, "{}", dtype.name());
    }
    assert!(!quantise(DType::Q4K, &[0.0; 256], &mut [0; 144]), "q4_k is only read");
}

/// Scales may be anything a file holds: zeros, infinities and NaN included.
#[test]
fn every_f16_scale_decodes() {
    for scale in 0..=u16::MAX {
        let mut block = [0; 34];
        block[..2].copy_from_slice(&scale.to_le_bytes());
        block[2] = 1;
        let mut out = [0.0; 32];
        dequantise(DType::Q8_0, &block, &mut out);
        let expected = half::f16::from_bits(scale).to_f32();
        assert!(out[0] == expected || out[0].is_nan() && expected.is_nan(), "scale {scale:#06x}");
    }
}

#[test]
#[should_panic(expected = "do not hold")]
fn a_part_of_a_block_is_refused() {
    dequantise(DType::Q4_0, &[0; 17], &mut [0.0; 32]);
}
