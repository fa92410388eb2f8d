//! Fills the stored tensors of a plan: from the model's files, tables, or the run's seed.
//!
//! Files are read piece by piece straight into the arena; only a conversion needs a buffer, of [`BUFFER_BYTES`].

use crate::arena::Arena;
use crate::far::{self, Far};
use crate::files::{FileError, ReadAt};
use crate::gpu::{Gpu, GpuError};
use half::{bf16, f16};
use tinyforge_kernels::f32::quant::dequantise;
use tinyforge_kernels::random::Stream;
use tinyforge_plan::{DType, Plan, Source, Stored, Tensor, encode};

/// Bytes of file that a conversion holds at one time, and f32 elements made of them.
pub const BUFFER_BYTES: usize = 1 << 20;

/// Why a plan's tensors cannot be filled.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Reading failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The device failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// The stored type cannot be made from the file's.
    #[error("`{name}` is {from} in the file, which cannot be stored as {to}", from = .from.name(), to = .to.name())]
    Conversion {
        /// The tensor.
        name: String,
        /// In the file.
        from: DType,
        /// In the plan.
        to: DType,
    },
    /// A weight is not finite.
    #[error("`{name}` of the model holds {value} at element {at}: the file is damaged or the model diverged")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Its first bad element.
        at: usize,
        /// What it is.
        value: f32,
    },
}

/// Random numbers that a tensor starts from. Numbered by its name: what else a plan stores plays no part.
fn start_stream(seed: u64, name: &str) -> Stream {
    Stream { seed, step: u32::MAX, tensor: encode::crc32(name.as_bytes()) }
}

/// Fills every stored tensor. `files` are the plan's, in order. What lives in the work file or in the host's memory is
/// made in the part of the arena that steps use, one tensor at a time, and written there; what lives in the model's
/// file stays.
///
/// # Errors
/// A file cannot be read, or a tensor cannot be converted or is not finite.
pub(crate) fn load(
    plan: &Plan,
    arena: &mut Arena,
    (mut far, mut gpu): (Option<&mut Far>, Option<&mut Gpu>),
    files: &[ReadAt],
    seed: u64,
) -> Result<(), LoadError> {
    let mut buffer = Vec::new();
    for stored in &plan.stored {
        if !plan.is_far(&stored.tensor) {
            fill(stored, arena, files, seed, &mut buffer)?;
            if let Some(gpu) = gpu.as_deref_mut() {
                gpu.send(arena, &stored.tensor)?;
            }
        } else if !matches!(far::place(plan, stored), far::Place::Model(..)) {
            let here = Stored { tensor: far::borrowed(plan, &stored.tensor), ..stored.clone() };
            fill(&here, arena, files, seed, &mut buffer)?;
            far::change(plan, far.as_deref_mut(), arena, &stored.tensor, |_| ())?;
        }
    }
    for stored in &plan.stored {
        if let Source::TopColumns { of, scale } = &stored.source {
            let scale = scale.as_deref().and_then(|name| plan.find(name));
            let scale = scale.map(|s| bytemuck::cast_slice(arena.tensor(&s.tensor)).to_vec());
            let weight = &plan.find(of).expect("a column list belongs to a stored weight").tensor;
            let bytes = match gpu.as_deref_mut() {
                Some(gpu) if !plan.is_far(weight) => gpu.fetch(arena, weight)?,
                _ => far::fetch(plan, far.as_deref_mut(), arena, weight)?,
            };
            let list = top_columns(bytes, weight, scale.as_deref(), stored.tensor.elems() as usize);
            let set = |bytes: &mut [u8]| bytemuck::cast_slice_mut(bytes).copy_from_slice(&list);
            match gpu.as_deref_mut() {
                Some(gpu) if !plan.is_far(&stored.tensor) => gpu.change(arena, &stored.tensor, set)?,
                _ => far::change(plan, far.as_deref_mut(), arena, &stored.tensor, set)?,
            }
        }
    }
    Ok(())
}

/// Fills one stored tensor.
fn fill(
    stored: &Stored,
    arena: &mut Arena,
    files: &[ReadAt],
    seed: u64,
    buffer: &mut Vec<u8>,
) -> Result<(), LoadError> {
    let stream = start_stream(seed, &stored.name);
    match &stored.source {
        Source::Zero => arena.tensor_mut(&stored.tensor).fill(0),
        Source::Table(values) => {
            let out: &mut [f32] = bytemuck::cast_slice_mut(arena.tensor_mut(&stored.tensor));
            out.copy_from_slice(values);
        }
        Source::Uniform { bound } => store_all(arena, stored, |k| (2.0 * stream.uniform(k) - 1.0) * *bound as f32)?,
        Source::Normal { std } => store_all(arena, stored, |k| normal(&stream, k) * *std as f32)?,
        Source::Fill(value) => store_all(arena, stored, |_| *value)?,
        Source::File { file, offset, dtype, transpose } => {
            let from = FilePart { file: &files[*file as usize], offset: *offset, dtype: *dtype };
            from_file(stored, arena, &from, *transpose, buffer)?;
        }
        Source::Permuted { file, offset, dtype, shape, axes } => {
            let from = FilePart { file: &files[*file as usize], offset: *offset, dtype: *dtype };
            permuted(stored, arena, &from, (shape, axes), buffer)?;
        }
        Source::Bytes(bytes) => arena.tensor_mut(&stored.tensor).copy_from_slice(bytes),
        Source::TopColumns { .. } => {}
    }
    Ok(())
}

/// Fills a stored float tensor from the index of each element.
fn store_all(arena: &mut Arena, stored: &Stored, value: impl Fn(u64) -> f32) -> Result<(), LoadError> {
    let t = &stored.tensor;
    let mut row = vec![0.0; t.cols()];
    for r in 0..t.rows() {
        row.iter_mut().enumerate().for_each(|(i, x)| *x = value((r * t.cols() + i) as u64));
        let place = Place { row: r, rows: t.rows(), transpose: false };
        if !store_row(arena.tensor_mut(t), t.dtype, &row, place) {
            return Err(LoadError::Conversion { name: stored.name.clone(), from: DType::F32, to: t.dtype });
        }
    }
    Ok(())
}

/// A normal number of variance 1 for element `index`. Source: Box & Muller 1958.
fn normal(stream: &Stream, index: u64) -> f32 {
    let [a, b] = [2 * index, 2 * index + 1].map(|i| f64::from(stream.uniform(i)));
    // 1 - a is never 0, so its logarithm is finite.
    ((-2.0 * (1.0 - a).ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()) as f32
}

struct FilePart<'a> {
    file: &'a ReadAt,
    offset: u64,
    dtype: DType,
}

fn from_file(
    stored: &Stored,
    arena: &mut Arena,
    from: &FilePart,
    transpose: bool,
    buffer: &mut Vec<u8>,
) -> Result<(), LoadError> {
    let t = &stored.tensor;
    if from.dtype == t.dtype && !transpose {
        from.file.read(from.offset, arena.tensor_mut(t))?;
        return finite(&stored.name, t.dtype, arena.tensor(t));
    }
    if !t.dtype.is_float() {
        return Err(LoadError::Conversion { name: stored.name.clone(), from: from.dtype, to: t.dtype });
    }
    // The file's rows are the tensor's, or its columns.
    let (rows, cols) = if transpose { (t.cols(), t.rows()) } else { (t.rows(), t.cols()) };
    let row_bytes = (cols as u64 / from.dtype.block_elems() * from.dtype.block_bytes()) as usize;
    let per_read = (BUFFER_BYTES / row_bytes.max(4 * cols)).max(1);
    let mut values = vec![0.0f32; cols];
    for first in (0..rows).step_by(per_read) {
        let count = per_read.min(rows - first);
        buffer.resize(count * row_bytes, 0);
        from.file.read(from.offset + (first * row_bytes) as u64, buffer)?;
        for (i, bytes) in buffer.chunks_exact(row_bytes).enumerate() {
            to_f32(from.dtype, bytes, &mut values);
            finite(&stored.name, DType::F32, bytemuck::cast_slice(&values))?;
            let place = Place { row: first + i, rows, transpose };
            if !store_row(arena.tensor_mut(t), t.dtype, &values, place) {
                return Err(LoadError::Conversion { name: stored.name.clone(), from: from.dtype, to: t.dtype });
            }
        }
    }
    Ok(())
}

/// Fills a tensor from a part of a file that has its dimensions in another order; nothing is converted.
fn permuted(
    stored: &Stored,
    arena: &mut Arena,
    from: &FilePart,
    (shape, axes): (&[u32], &[u8]),
    buffer: &mut Vec<u8>,
) -> Result<(), LoadError> {
    let t = &stored.tensor;
    // Elements of the tensor between neighbours along each of the file's dimensions.
    let mut steps = vec![0; shape.len()];
    let mut step = 1;
    for (&axis, &len) in axes.iter().zip(&t.shape).rev() {
        steps[usize::from(axis)] = step;
        step *= len as usize;
    }
    let place = |i: usize| {
        let (mut rest, mut at) = (i, 0);
        for (&len, &step) in shape.iter().zip(&steps).rev() {
            at += rest % len as usize * step;
            rest /= len as usize;
        }
        at
    };
    let size = t.dtype.block_bytes() as usize;
    let (elems, per_read) = (t.elems() as usize, BUFFER_BYTES / size);
    for first in (0..elems).step_by(per_read) {
        buffer.resize(per_read.min(elems - first) * size, 0);
        from.file.read(from.offset + (first * size) as u64, buffer)?;
        let out = arena.tensor_mut(t);
        for (i, element) in buffer.chunks_exact(size).enumerate() {
            let at = place(first + i) * size;
            out[at..at + size].copy_from_slice(element);
        }
    }
    finite(&stored.name, t.dtype, arena.tensor(t))
}

/// Elements of one stored row as f32.
pub fn to_f32(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let halves = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        DType::F32 => {
            let words = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            out.iter_mut().zip(words).for_each(|(o, x)| *o = x);
        }
        DType::F64 => {
            let words = bytes.chunks_exact(8).map(|b| b.try_into().map_or(0.0, f64::from_le_bytes));
            out.iter_mut().zip(words).for_each(|(o, x)| *o = x as f32);
        }
        DType::F16 => out.iter_mut().zip(halves).for_each(|(o, x)| *o = f16::from_bits(x).to_f32()),
        DType::BF16 => out.iter_mut().zip(halves).for_each(|(o, x)| *o = bf16::from_bits(x).to_f32()),
        blocks => dequantise(blocks, bytes, out),
    }
}

/// Which row of the file is stored, and whether it is a column of the tensor.
struct Place {
    row: usize,
    rows: usize,
    transpose: bool,
}

fn store_row(out: &mut [u8], dtype: DType, values: &[f32], place: Place) -> bool {
    let at = |i: usize| match place.transpose {
        true => i * place.rows + place.row,
        false => place.row * values.len() + i,
    };
    match dtype {
        DType::F32 => {
            let out: &mut [f32] = bytemuck::cast_slice_mut(out);
            values.iter().enumerate().for_each(|(i, &x)| out[at(i)] = x);
        }
        DType::BF16 => {
            let out: &mut [bf16] = bytemuck::cast_slice_mut(out);
            values.iter().enumerate().for_each(|(i, &x)| out[at(i)] = bf16::from_f32(x));
        }
        DType::F16 => {
            let out: &mut [f16] = bytemuck::cast_slice_mut(out);
            values.iter().enumerate().for_each(|(i, &x)| out[at(i)] = f16::from_f32(x));
        }
        DType::I8 => {
            let out: &mut [i8] = bytemuck::cast_slice_mut(out);
            values.iter().enumerate().for_each(|(i, &x)| out[at(i)] = x.round_ties_even() as i8);
        }
        _ => return false,
    }
    true
}

/// Refuses NaN and infinity in stored floats. Block formats are checked by what they make.
fn finite(name: &str, dtype: DType, bytes: &[u8]) -> Result<(), LoadError> {
    let bad = match dtype {
        DType::F32 => bytemuck::cast_slice::<u8, f32>(bytes).iter().position(|x| !x.is_finite()),
        DType::BF16 => bytemuck::cast_slice::<u8, bf16>(bytes).iter().position(|x| !x.is_finite()),
        DType::F16 => bytemuck::cast_slice::<u8, f16>(bytes).iter().position(|x| !x.is_finite()),
        _ => None,
    };
    match bad {
        None => Ok(()),
        Some(at) => {
            let mut value = [0.0];
            let size = dtype.block_bytes() as usize;
            to_f32(dtype, &bytes[at * size..(at + 1) * size], &mut value);
            Err(LoadError::NotFinite { name: name.to_string(), at, value: value[0] })
        }
    }
}

/// The `count` columns with the largest L2 norm, ascending; of equal norms the earlier column. An int8 element counts
/// times the scale of its channel: the first dimension, or the last of a depthwise weight, which has three.
fn top_columns(bytes: &[u8], weight: &Tensor, scale: Option<&[f32]>, count: usize) -> Vec<i32> {
    let cols = weight.cols();
    let rows_per_channel = weight.rows() / weight.shape.first().map_or(1, |&d| d.max(1) as usize);
    let row_bytes = (cols as u64 / weight.dtype.block_elems() * weight.dtype.block_bytes()) as usize;
    let (mut sums, mut values) = (vec![0.0f64; cols], vec![0.0f32; cols]);
    for (r, row) in bytes.chunks_exact(row_bytes).enumerate() {
        match scale {
            Some(scale) => {
                let factor = |c: usize| if weight.shape.len() == 3 { scale[c] } else { scale[r / rows_per_channel] };
                values.iter_mut().zip(row).enumerate().for_each(|(c, (x, &q))| *x = f32::from(q as i8) * factor(c));
            }
            None => to_f32(weight.dtype, row, &mut values),
        }
        sums.iter_mut().zip(&values).for_each(|(s, &x)| *s += f64::from(x) * f64::from(x));
    }
    let mut order: Vec<i32> = (0..cols as i32).collect();
    order.sort_by(|&a, &b| sums[b as usize].total_cmp(&sums[a as usize]).then(a.cmp(&b)));
    order.truncate(count);
    order.sort_unstable();
    order
}
