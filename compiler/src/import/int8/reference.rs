//! An int8 program by the op table's definitions: contents of its tensors, the naive twin of the engine's loader, and
//! its layers one by one, for comparison with other interpreters.

use std::collections::HashMap;

use tinyforge_plan::{DType, Source};

use super::{Entry, Int8Error, Int8Model};
use crate::ir::graph::{Graph, Value};
use crate::ir::ops::Tensor;
use crate::ir::reference::mix;

impl Int8Model {
    /// What a stored tensor of the model's program holds, read from `file`, all bytes of the model's file. A new head
    /// is drawn from `seed`, with other numbers than a run's. `None` for tensors that the model does not bring.
    pub fn contents(&self, graph: &Graph, v: Value, file: &[u8], seed: u64) -> Option<Tensor> {
        let (ty, source) = (graph.ty(v), self.source(&graph.info(v).name, true)?);
        let mut tensor = Tensor::zeros(ty);
        let part = |offset: u64, dtype: DType| {
            let start = usize::try_from(offset).ok()?;
            let end = usize::try_from(ty.elems().checked_mul(dtype.block_bytes())?).ok()?.checked_add(start)?;
            file.get(start..end).map(|bytes| numbers(bytes, dtype))
        };
        match source {
            Source::Zero => {}
            Source::File { offset, dtype, .. } => tensor.data = part(offset, dtype)?,
            Source::Permuted { offset, dtype, shape, axes, .. } => {
                permute(&mut tensor, &part(offset, dtype)?, &shape, &axes)
            }
            Source::Bytes(bytes) => tensor.data = numbers(&bytes, ty.dtype),
            Source::Table(values) => tensor.data = values.into_iter().map(f64::from).collect(),
            Source::Uniform { bound } => {
                for (i, x) in tensor.data.iter_mut().enumerate() {
                    let unit = (mix(seed ^ mix(i as u64)) >> 11) as f64 / (1u64 << 53) as f64;
                    *x = ((2.0 * unit - 1.0) * bound).round_ties_even();
                }
            }
            _ => return None,
        }
        (tensor.data.len() as u64 == ty.elems()).then_some(tensor)
    }

    /// Every layer by itself. `given` holds all images of the network, in the order of [`Int8Model::images`], of one
    /// example; so does the result: the input as it was given, and of every layer what it computes from the given
    /// images that it reads. `file` is all bytes of the model's file.
    ///
    /// # Errors
    /// [`Int8Error::Layer`] when `given` has another length, an image is no part of the program, or a tensor has no
    /// contents.
    pub fn layerwise(&self, file: &[u8], given: &[i8]) -> Result<Vec<i8>, Int8Error> {
        let refuse = |layer: &str, why: &str| Int8Error::Layer { layer: layer.to_owned(), why: why.to_owned() };
        let elems: u64 = self.images.iter().map(|i| i.elems()).sum();
        if given.len() as u64 != elems {
            let why = format!("{} numbers are given, all images together have {elems}", given.len());
            return Err(refuse("the network", &why));
        }
        let graph = self.graph(Entry::Whole, 1)?;
        let (mut images, mut values, mut rest) = (HashMap::new(), Vec::new(), given);
        for image in &self.images {
            let v = graph.find(&image.name).ok_or_else(|| refuse(&image.name, "no result depends on it"))?;
            let (data, more) = rest.split_at(image.elems() as usize);
            let data = data.iter().map(|&x| f64::from(x)).collect();
            images.insert(v, Tensor { data, ..Tensor::zeros(graph.ty(v)) });
            values.push(v);
            rest = more;
        }
        let mut computed = images.clone();
        for node in &graph.nodes {
            let operand = |&v: &Value| match images.get(&v) {
                Some(image) => Ok(image.clone()),
                None => self.contents(&graph, v, file, 0).ok_or_else(|| refuse(&graph.info(v).name, "has no source")),
            };
            let mut operands = node.args.iter().map(operand).collect::<Result<Vec<Tensor>, Int8Error>>()?;
            let mut outs = vec![Tensor::zeros(graph.ty(node.outs[0]))];
            (node.op.def().eval)(&mut operands, &mut outs, &node.attrs);
            computed.insert(node.outs[0], outs.remove(0));
        }
        Ok(values.iter().flat_map(|v| computed[v].data.iter().map(|&y| y as i8)).collect())
    }
}

fn numbers(bytes: &[u8], dtype: DType) -> Vec<f64> {
    match dtype {
        DType::I8 => bytes.iter().map(|&b| f64::from(b as i8)).collect(),
        _ => bytes.chunks_exact(4).map(|b| f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
    }
}

/// Stored axis `k` is axis `axes[k]` of the file.
fn permute(tensor: &mut Tensor, file: &[f64], shape: &[u32], axes: &[u8]) {
    let stored = tensor.shape.clone();
    for (i, x) in tensor.data.iter_mut().enumerate() {
        let (mut rest, mut at) = (i, vec![0; shape.len()]);
        for (k, &axis) in axes.iter().enumerate().rev() {
            at[usize::from(axis)] = rest % stored[k];
            rest /= stored[k];
        }
        let from = at.iter().zip(shape).fold(0, |n, (&at, &len)| n * len as usize + at);
        *x = file[from];
    }
}
