//! Numbers of the reference to bytes in a plan's arena, and back.

use crate::random::Random;
use half::{bf16, f16};
use tinyforge_kernels::f32::quant::{dequantise, quantise};
use tinyforge_plan::DType;

/// The bytes that store `values`, and the numbers that these bytes mean: what the reference must be given.
pub fn store(dtype: DType, values: &[f64]) -> (Vec<u8>, Vec<f64>) {
    let each = |f: &dyn Fn(f64) -> Vec<u8>| values.iter().flat_map(|&x| f(x)).collect::<Vec<u8>>();
    let bytes = match dtype {
        DType::F32 => each(&|x| (x as f32).to_le_bytes().to_vec()),
        DType::F64 => each(&|x| x.to_le_bytes().to_vec()),
        DType::BF16 => each(&|x| bf16::from_f64(x).to_le_bytes().to_vec()),
        DType::F16 => each(&|x| f16::from_f64(x).to_le_bytes().to_vec()),
        DType::I32 => each(&|x| (x as i32).to_le_bytes().to_vec()),
        DType::U32 => each(&|x| (x as u32).to_le_bytes().to_vec()),
        DType::U8 => each(&|x| vec![x as u8]),
        DType::I8 => each(&|x| vec![x as i8 as u8]),
        blocks => quantised(blocks, values),
    };
    let meant = load(dtype, &bytes);
    (bytes, meant)
}

/// Blocks near the values where there is an encoder, and otherwise any blocks with small scales.
fn quantised(dtype: DType, values: &[f64]) -> Vec<u8> {
    let len = dtype.bytes_of(values.len() as u64).expect("whole blocks") as usize;
    let mut bytes = vec![0; len];
    let single: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    if quantise(dtype, &single, &mut bytes) {
        return bytes;
    }
    let scales: &[usize] = match dtype {
        DType::Q5_0 => &[0],
        DType::Q6K => &[208],
        _ => &[0, 2],
    };
    let mut random = Random::new(values.len() as u64);
    bytes.iter_mut().for_each(|b| *b = random.bits() as u8);
    for block in bytes.chunks_mut(dtype.block_bytes() as usize) {
        for &at in scales {
            block[at..at + 2].copy_from_slice(&f16::from_f64(random.within(1e-4, 2e-3)).to_le_bytes());
        }
    }
    bytes
}

/// The numbers that bytes mean.
pub fn load(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.as_chunks().0.iter().map(|b| f(*b)).collect()
    }
    match dtype {
        DType::F32 => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
        DType::F64 => each(bytes, f64::from_le_bytes),
        DType::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f64()),
        DType::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f64()),
        DType::I32 => each(bytes, |b| f64::from(i32::from_le_bytes(b))),
        DType::U32 => each(bytes, |b| f64::from(u32::from_le_bytes(b))),
        DType::U8 => each(bytes, |[b]| f64::from(b)),
        DType::I8 => each(bytes, |[b]| f64::from(b as i8)),
        blocks => {
            let mut out = vec![0.0f32; bytes.len() / blocks.block_bytes() as usize * blocks.block_elems() as usize];
            dequantise(blocks, bytes, &mut out);
            out.into_iter().map(f64::from).collect()
        }
    }
}
