//! Dense products in the words of cuBLASLt, whose matrices lie column by column.
//!
//! A matrix row by row is the transpose of one column by column. So `D = A B'` by rows is `Dᵀ = B Aᵀ` by columns: the
//! library's first factor is our right one, and its rows are our columns.

use crate::gpu::{Dense, Factor};
use tinyforge_plan::DType;

/// A matrix column by column.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Matrix {
    /// How it is stored.
    pub dtype: DType,
    /// Its rows, neighbours in memory.
    pub rows: u64,
    /// Its columns.
    pub cols: u64,
    /// Elements between columns, at least as many as it has rows: the leading dimension.
    pub stride: u64,
    /// What its first byte is a multiple of.
    pub aligned: u32,
}

/// `D = alpha op(A) op(B) + beta C + bias`: everything of a product but its places and numbers, and everything that an
/// algorithm is chosen by. C lies as D does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Matmul {
    /// Whether `op` transposes A, and B.
    pub transposes: [bool; 2],
    /// The first factor.
    pub a: Matrix,
    /// The second factor.
    pub b: Matrix,
    /// The result.
    pub d: Matrix,
    /// Whether a number is added to every row of D.
    pub has_bias: bool,
    /// Whether f32 factors may be rounded to the 10 bits of TF32.
    pub rounds_to_tf32: bool,
}

/// A product that is ready: a number of the driver's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Product(pub u32);

/// A product with its places, as addresses, and numbers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Multiply {
    /// What is done.
    pub product: Product,
    /// The factors.
    pub a: u64,
    /// The second factor.
    pub b: u64,
    /// C; D where `beta` is 0.
    pub c: u64,
    /// D.
    pub d: u64,
    /// The bias; 0 where there is none.
    pub bias: u64,
    /// What products are multiplied with.
    pub alpha: f32,
    /// 0, or 1.
    pub beta: f32,
    /// [`WORKSPACE_BYTES`] that no other product in flight has.
    pub workspace: u64,
}

/// What the library may use beside operands: always so much, since an algorithm is chosen by it.
pub const WORKSPACE_BYTES: u64 = 32 << 20;

/// A factor of so many rows and `k` columns as a matrix by columns, and whether it is that of its transpose.
fn matrix(f: &Factor, len: usize, k: usize, dtype: DType, aligned: usize) -> (Matrix, bool) {
    let by_rows = f.col == 1;
    let (rows, cols, stride) = if by_rows { (k, len, f.row) } else { (len, k, f.col) };
    debug_assert!(by_rows || f.row == 1, "a stride of a factor is 1");
    // A matrix of one column has no stride of its own.
    let stride = if cols == 1 { stride.max(rows) } else { stride };
    let [rows, cols, stride] = [rows, cols, stride].map(|n| n as u64);
    (Matrix { dtype, rows, cols, stride, aligned: aligned as u32 }, by_rows)
}

impl Matmul {
    /// A product by rows as one by columns.
    pub fn of(dense: &Dense, rounds_to_tf32: bool) -> Matmul {
        let [m, n, k] = dense.size;
        let [left, right] = &dense.factors;
        let [of_left, of_right, of_result] = dense.aligned;
        // `[k, n]` by columns where B's rows lie one after the other along `k`: then it is transposed back.
        let (a, is_a_by_rows) = matrix(right, n, k, dense.dtype, of_right);
        // `op(B)` is `[k, m]`.
        let (b, is_b_by_rows) = matrix(left, m, k, dense.dtype, of_left);
        let stride = if m == 1 { dense.to_row.max(n) } else { dense.to_row } as u64;
        let d = Matrix { dtype: DType::F32, rows: n as u64, cols: m as u64, stride, aligned: of_result as u32 };
        let transposes = [is_a_by_rows, !is_b_by_rows];
        let rounds_to_tf32 = rounds_to_tf32 && dense.dtype == DType::F32;
        Matmul { transposes, a, b, d, has_bias: dense.bias.is_some(), rounds_to_tf32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Operand;

    /// The elements of `op(matrix)` that a library reads, by row and column.
    fn element(matrix: &Matrix, transposes: bool, row: u64, col: u64) -> u64 {
        let (row, col) = if transposes { (col, row) } else { (row, col) };
        assert!(row < matrix.rows && col < matrix.cols && matrix.stride >= matrix.rows, "{matrix:?} at {row}, {col}");
        row + col * matrix.stride
    }

    /// Every factor, transposed and not, of every ragged shape: what a library reads for element `(i, k)` of A,
    /// `(j, k)` of B and `(i, j)` of D is what the product's strides say.
    #[test]
    fn columns_read_what_rows_say() {
        let lens = [1_usize, 2, 3, 5];
        let cases = lens.iter().flat_map(|&m| lens.map(|n| (m, n))).flat_map(|(m, n)| lens.map(|k| [m, n, k]));
        for ([m, n, k], ways) in cases.flat_map(|size| (0..8_usize).map(move |ways| (size, ways))) {
            let operand = Operand::Out(0);
            // Wider than they must be, as a part of a matrix is.
            let factor = |len: usize, transposed: bool, wider: usize| match transposed {
                false => Factor::rows(operand, k + wider),
                true => Factor::transposed(operand, len + wider),
            };
            let wider = 3 * (ways / 4);
            let factors = [factor(m, ways % 2 == 1, wider), factor(n, ways / 2 % 2 == 1, wider)];
            let (to_row, dtype) = (n + wider, DType::F32);
            let (bias, acc, aligned) = (None, None, [16; 3]);
            let dense = Dense {
                size: [m, n, k],
                factors,
                dtype,
                bias,
                acc,
                to: operand,
                to_row,
                to_first: 0,
                alpha: 1.0,
                aligned,
            };
            let found = Matmul::of(&dense, false);
            for (i, j, s) in
                (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).flat_map(|(i, j)| (0..k).map(move |s| (i, j, s)))
            {
                let [a, b] = &factors;
                let at = |row: u64, col, matrix, transposes| element(matrix, transposes, row, col) as usize;
                assert_eq!(at(j as u64, s as u64, &found.a, found.transposes[0]), j * b.row + s * b.col, "{dense:?}");
                assert_eq!(at(s as u64, i as u64, &found.b, found.transposes[1]), i * a.row + s * a.col, "{dense:?}");
                assert_eq!(at(j as u64, i as u64, &found.d, false), i * to_row + j, "{dense:?}");
            }
        }
    }
}
