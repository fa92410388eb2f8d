//! A float network as a program, with its weights by reference.

use std::collections::HashMap;

use tinyforge_plan::{DType, Source};

use crate::ir::graph::{Graph, Value};
use crate::ir::ops::Tensor;

/// A network in f32: input `images`, result `output`.
///
/// Images are `f32[B,C,H,W]`, or `f32[B,F]` for a network over vectors; the result is `f32[B,K]` or an image. Weights
/// are named `layers.n.weight` and `.bias` in the order of convolutions and linear layers, batch norms
/// `layers.n.norm.*` after the layer before them.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatModel {
    /// The program of `B` images at a time.
    pub graph: Graph,
    /// Files that the weights are in: the model's own first.
    pub files: Vec<String>,
    /// Height, width and channels of an image; a vector is an image of 1 x 1.
    pub shape: [u32; 3],
    /// What was left out or changed, in words.
    pub notes: Vec<String>,
    /// Where each tensor of the program is.
    pub(super) sources: HashMap<String, Source>,
}

impl FloatModel {
    /// What a tensor of the program holds after load.
    pub fn source(&self, name: &str) -> Option<Source> {
        self.sources.get(name).cloned()
    }

    /// What a tensor of the program holds, for the reference interpreter: the naive twin of the engine's loader.
    /// `files` are all bytes of the model's files, in order. `None` for tensors that the model does not bring.
    pub fn contents(&self, v: Value, files: &[Vec<u8>]) -> Option<Tensor> {
        let (ty, source) = (self.graph.ty(v), self.sources.get(&self.graph.info(v).name)?);
        let mut tensor = Tensor::zeros(ty);
        match source {
            Source::Zero => {}
            Source::Table(values) => tensor.data = values.iter().map(|&x| f64::from(x)).collect(),
            Source::Fill(value) => tensor.data.fill(f64::from(*value)),
            Source::File { file, offset, dtype, transpose } => {
                let start = usize::try_from(*offset).ok()?;
                let len = usize::try_from(ty.elems().checked_mul(dtype.block_bytes())?).ok()?;
                let values = numbers(files.get(*file as usize)?.get(start..start.checked_add(len)?)?, *dtype);
                let (rows, cols) = (tensor.rows(), tensor.cols());
                for (i, x) in tensor.data.iter_mut().enumerate() {
                    *x = if *transpose { values[i % cols * rows + i / cols] } else { values[i] };
                }
            }
            _ => return None,
        }
        (tensor.data.len() as u64 == ty.elems()).then_some(tensor)
    }
}

/// Stored floats as numbers.
pub(super) fn numbers(bytes: &[u8], dtype: DType) -> Vec<f64> {
    let halves = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        DType::F64 => bytes.chunks_exact(8).map(|b| b.try_into().map_or(0.0, f64::from_le_bytes)).collect(),
        DType::F16 => halves.map(half).collect(),
        DType::BF16 => halves.map(|h| f64::from(f32::from_bits(u32::from(h) << 16))).collect(),
        _ => bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
    }
}

/// An f16 by its bits: sign, 5 bits of exponent, 10 of fraction.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}
