//! Dense products on the host, by the arguments of cuBLASLt: matrices column by column.
//!
//! As in a library, the order of a sum follows from what is said of a product: `k` is cut into chunks whose length is
//! picked by all of it. Two products that should be one and are not give other bytes.

use std::hash::{DefaultHasher, Hash, Hasher};
use tinyforge::gpu::cuda::{Matmul, Matrix, Multiply, WORKSPACE_BYTES};
use tinyforge_plan::DType;

/// The card's memory, asked for by address and length.
pub trait Bytes {
    /// The bytes there.
    ///
    /// # Errors
    /// They are not in the card's memory.
    fn bytes(&mut self, address: u64, bytes: u64) -> Result<&mut [u8], String>;
}

/// Bytes of an element.
fn elem(dtype: DType) -> Result<u64, String> {
    match dtype {
        DType::F32 => Ok(4),
        DType::BF16 => Ok(2),
        other => Err(format!("a product of {}", other.name())),
    }
}

fn number(dtype: DType, bytes: &[u8]) -> f32 {
    match *bytes {
        [a, b] if dtype == DType::BF16 => f32::from_bits(u32::from(u16::from_le_bytes([a, b])) << 16),
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
        _ => f32::NAN,
    }
}

/// Addresses from the first byte of a matrix to behind its last.
fn span(matrix: &Matrix, address: u64) -> Result<(u64, u64), String> {
    let elems = (matrix.cols - 1) * matrix.stride + matrix.rows;
    if matrix.stride < matrix.rows || !address.is_multiple_of(matrix.aligned.into()) {
        return Err(format!("{matrix:?} at {address}"));
    }
    Ok((address, address + elems * elem(matrix.dtype)?))
}

/// `op(matrix)`, row by row.
fn read(memory: &mut dyn Bytes, matrix: &Matrix, transposes: bool, address: u64) -> Result<Vec<f32>, String> {
    let (first, end) = span(matrix, address)?;
    let (bytes, size) = (memory.bytes(first, end - first)?, elem(matrix.dtype)?);
    let (rows, cols) = if transposes { (matrix.cols, matrix.rows) } else { (matrix.rows, matrix.cols) };
    let at = |row: u64, col: u64| if transposes { col + row * matrix.stride } else { row + col * matrix.stride };
    let of = |i: u64| number(matrix.dtype, &bytes[(size * i) as usize..(size * (i + 1)) as usize]);
    Ok((0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))).map(|(row, col)| of(at(row, col))).collect())
}

/// The nearest number of TF32.
fn tf32(x: f32) -> f32 {
    f32::from_bits((x.to_bits() + 0xfff + ((x.to_bits() >> 13) & 1)) & !0x1fff)
}

/// Steps of `k` that are summed apart.
fn chunk(matmul: &Matmul) -> usize {
    let mut hash = DefaultHasher::new();
    matmul.hash(&mut hash);
    2 + (hash.finish() % 13) as usize
}

/// Runs a product.
///
/// # Errors
/// Its words contradict each other, or its places.
pub fn multiply(memory: &mut dyn Bytes, matmul: &Matmul, places: &Multiply) -> Result<(), String> {
    let Matmul { a, b, d, transposes: [ta, tb], .. } = matmul;
    let (m, k) = if *ta { (a.cols, a.rows) } else { (a.rows, a.cols) };
    let (k2, n) = if *tb { (b.cols, b.rows) } else { (b.rows, b.cols) };
    if (m, n, k) != (d.rows, d.cols, k2) || a.dtype != b.dtype || d.dtype != DType::F32 {
        return Err(format!("{matmul:?} is no product"));
    }
    let (to, end) = span(d, places.d)?;
    for (matrix, address) in [(a, places.a), (b, places.b)] {
        let (first, last) = span(matrix, address)?;
        if first < end && to < last {
            return Err(format!("{matmul:?}: the result lies over a factor"));
        }
    }
    for at in [0, WORKSPACE_BYTES - 4096] {
        memory.bytes(places.workspace + at, 4096)?.fill(0xa5);
    }
    let [mut left, mut right] = [read(memory, a, *ta, places.a)?, read(memory, b, *tb, places.b)?];
    if matmul.rounds_to_tf32 {
        left.iter_mut().chain(&mut right).for_each(|x| *x = tf32(*x));
    }
    let start = if places.beta == 0.0 { Vec::new() } else { read(memory, d, false, places.c)? };
    let bias = if matmul.has_bias { memory.bytes(places.bias, 4 * m)?.to_vec() } else { Vec::new() };
    let (columns, depth, chunk) = (n as usize, k as usize, chunk(matmul));
    let result = memory.bytes(to, end - to)?;
    for (i, row) in left.chunks_exact(depth).enumerate() {
        let mut sums = vec![0.0_f32; columns];
        for (s, steps) in row.chunks(chunk).enumerate() {
            let mut part = vec![0.0_f32; columns];
            for (x, of_step) in steps.iter().zip(right[s * chunk * columns..].chunks_exact(columns)) {
                part.iter_mut().zip(of_step).for_each(|(sum, y)| *sum += x * y);
            }
            sums.iter_mut().zip(&part).for_each(|(sum, part)| *sum += part);
        }
        for (j, sum) in sums.iter().enumerate() {
            let mut y = places.alpha * sum;
            y += start.get(i * columns + j).map_or(0.0, |c| places.beta * c);
            y += bias.get(4 * i..4 * i + 4).map_or(0.0, |b| number(DType::F32, b));
            let at = 4 * (i + j * d.stride as usize);
            result[at..at + 4].copy_from_slice(&y.to_le_bytes());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain(Vec<u8>);

    impl Bytes for Plain {
        fn bytes(&mut self, address: u64, bytes: u64) -> Result<&mut [u8], String> {
            self.0.get_mut(address as usize..(address + bytes) as usize).ok_or_else(|| format!("{address}"))
        }
    }

    fn matrix(rows: u64, cols: u64, stride: u64) -> Matrix {
        Matrix { dtype: DType::F32, rows, cols, stride, aligned: 4 }
    }

    /// `[1 3; 2 4]` times the transpose of `[1 0; 2 5; 9 9]`, cut to two rows, and a bias, in columns of three.
    #[test]
    fn columns_are_multiplied() {
        let mut words = vec![0.0_f32; 64];
        words[..4].copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        words[4..10].copy_from_slice(&[1.0, 2.0, 9.0, 0.0, 5.0, 9.0]);
        words[10..12].copy_from_slice(&[100.0, 200.0]);
        words[12..18].copy_from_slice(&[1.0, 1.0, -7.0, 2.0, 2.0, -7.0]);
        let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes.resize(256 + WORKSPACE_BYTES as usize, 0);
        let mut memory = Plain(bytes);
        let (a, b, d) = (matrix(2, 2, 2), matrix(2, 2, 3), matrix(2, 2, 3));
        let matmul = Matmul { transposes: [false, true], a, b, d, has_bias: true, rounds_to_tf32: false };
        let product = tinyforge::gpu::cuda::Product(0);
        let places = Multiply { product, a: 0, b: 16, c: 48, d: 48, bias: 40, alpha: 2.0, beta: 1.0, workspace: 256 };
        multiply(&mut memory, &matmul, &places).expect("a product");
        let found: Vec<f32> = memory.0[48..72].chunks_exact(4).map(|b| number(DType::F32, b)).collect();
        // 2 [1 17; 2 24] + [1 2; 1 2] + the bias a row.
        assert_eq!(found, [103.0, 205.0, -7.0, 136.0, 250.0, -7.0]);
        let over = Multiply { d: 8, c: 8, ..places };
        assert!(multiply(&mut memory, &matmul, &over).is_err_and(|why| why.contains("over a factor")));
        let odd = Matmul { a: Matrix { aligned: 16, ..a }, ..matmul };
        assert!(multiply(&mut memory, &odd, &Multiply { a: 4, ..places }).is_err(), "it does not lie as it says");
    }
}
