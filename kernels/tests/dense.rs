//! The dense product against a naive f64 one, and its promises about order.

use half::{bf16, f16};
use tinyforge_kernels::f32::dense::{Compute, Gemm, KernelSet, Mat, MatData, gemm_on, gemm_scratch_bytes, kernel_sets};
use tinyforge_kernels::f32::quant;
use tinyforge_kernels::par::Par;
use tinyforge_plan::DType;

/// A small counter-based generator of values in `-1..1`.
struct Values(u64);

impl Values {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }
}

/// A stored matrix that owns its elements, and what they are worth.
struct Stored {
    dtype: DType,
    rows: usize,
    cols: usize,
    stride: usize,
    floats: Vec<f32>,
    bf16s: Vec<bf16>,
    f16s: Vec<f16>,
    bytes: Vec<u8>,
}

impl Stored {
    fn new(dtype: DType, rows: usize, cols: usize, slack: usize, values: &mut Values) -> Stored {
        let stride = if dtype.is_quantised() { cols } else { cols + slack };
        let mut floats = values.vec(rows * stride);
        let (mut bf16s, mut f16s, mut bytes) = (vec![], vec![], vec![]);
        match dtype {
            DType::F32 => {}
            DType::BF16 => {
                bf16s = floats.iter().map(|&x| bf16::from_f32(x)).collect();
                floats = bf16s.iter().map(|x| x.to_f32()).collect();
            }
            DType::F16 => {
                f16s = floats.iter().map(|&x| f16::from_f32(x)).collect();
                floats = f16s.iter().map(|x| x.to_f32()).collect();
            }
            _ => {
                bytes = random_blocks(dtype, rows * cols, values);
                quant::dequantise(dtype, &bytes, &mut floats);
            }
        }
        Stored { dtype, rows, cols, stride, floats, bf16s, f16s, bytes }
    }

    fn mat(&self) -> Mat<'_> {
        let data = match self.dtype {
            DType::F32 => MatData::F32(&self.floats),
            DType::BF16 => MatData::BF16(&self.bf16s),
            DType::F16 => MatData::F16(&self.f16s),
            dtype => MatData::Blocks(dtype, &self.bytes),
        };
        Mat { data, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// The factors as rows of `k`: as the product sees them.
    fn factors(&self, trans: bool, compute: Compute) -> Vec<Vec<f64>> {
        let value = |row: usize, col: usize| {
            let value = self.floats[row * self.stride + col];
            f64::from(if compute == Compute::BF16 { bf16::from_f32(value).to_f32() } else { value })
        };
        match trans {
            true => (0..self.cols).map(|col| (0..self.rows).map(|row| value(row, col)).collect()).collect(),
            false => (0..self.rows).map(|row| (0..self.cols).map(|col| value(row, col)).collect()).collect(),
        }
    }
}

/// Blocks of random bits, whose f16 scales are small and finite.
fn random_blocks(dtype: DType, elems: usize, values: &mut Values) -> Vec<u8> {
    let len = dtype.bytes_of(elems as u64).expect("whole blocks") as usize;
    let mut bytes: Vec<u8> = (0..len).map(|_| values.bits() as u8).collect();
    let scales: &[usize] = match dtype {
        DType::Q6K => &[208],
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        _ => &[0],
    };
    for block in bytes.chunks_exact_mut(dtype.block_bytes() as usize) {
        for &at in scales {
            block[at..at + 2].copy_from_slice(&f16::from_f32(values.value() / 64.0).to_le_bytes());
        }
    }
    bytes
}

/// Everything about a product but its elements.
#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    a: DType,
    b: DType,
    a_trans: bool,
    b_trans: bool,
    compute: Compute,
    alpha: f32,
    bias: bool,
    accumulate: bool,
    k_segment: Option<usize>,
    slack: usize,
}

impl Case {
    fn new(m: usize, n: usize, k: usize) -> Case {
        Case {
            m,
            n,
            k,
            a: DType::F32,
            b: DType::F32,
            a_trans: false,
            b_trans: true,
            compute: Compute::F32,
            alpha: 1.0,
            bias: false,
            accumulate: false,
            k_segment: None,
            slack: 0,
        }
    }
}

struct Product {
    case: Case,
    a: Stored,
    b: Stored,
    bias: Vec<f32>,
    before: Vec<f32>,
    stride: usize,
    /// Row by row, each element and how far a sum of f32 may be from it.
    expected: Vec<(f64, f64)>,
}

impl Product {
    fn new(case: Case) -> Product {
        let mut values = Values((case.m * 7919 + case.n * 31 + case.k) as u64);
        let Case { m, n, k, slack, .. } = case;
        let (a_rows, a_cols) = if case.a_trans { (k, m) } else { (m, k) };
        let (b_rows, b_cols) = if case.b_trans { (n, k) } else { (k, n) };
        let mut product = Product {
            case,
            a: Stored::new(case.a, a_rows, a_cols, slack, &mut values),
            b: Stored::new(case.b, b_rows, b_cols, 2 * slack, &mut values),
            bias: values.vec(n),
            before: values.vec(m * (n + slack)),
            stride: n + slack,
            expected: vec![],
        };
        product.expect();
        product
    }

    /// The naive product in f64. With `e` the spacing of f32 at 1, a sum of `k` products is within
    /// `(k + 4) e sum |a b|` of the exact one, whatever its order.
    fn expect(&mut self) {
        let case = self.case;
        let rows = self.a.factors(case.a_trans, case.compute);
        let cols = self.b.factors(!case.b_trans, case.compute);
        for (i, row) in rows.iter().enumerate() {
            for (j, col) in cols.iter().enumerate() {
                let (mut sum, mut size) = (0.0, 0.0);
                for (a, b) in row.iter().zip(col) {
                    sum += a * b;
                    size += (a * b).abs();
                }
                let alpha = f64::from(case.alpha);
                let bias = if case.bias { f64::from(self.bias[j]) } else { 0.0 };
                let old = if case.accumulate { f64::from(self.before[i * self.stride + j]) } else { 0.0 };
                let size = alpha.abs() * size + old.abs() + bias.abs();
                let tolerance = (case.k as f64 + 4.0) * f64::from(f32::EPSILON) * size;
                self.expected.push((alpha * sum + old + bias, tolerance));
            }
        }
    }

    fn gemm(&self) -> Gemm<'_> {
        Gemm {
            a: self.a.mat(),
            a_trans: self.case.a_trans,
            b: self.b.mat(),
            b_trans: self.case.b_trans,
            compute: self.case.compute,
            alpha: self.case.alpha,
            bias: self.case.bias.then_some(&self.bias),
            accumulate: self.case.accumulate,
            k_segment: self.case.k_segment,
        }
    }

    /// Runs in a poisoned `C` (unless it is added to) and poisoned scratch of exactly the size asked for, once
    /// aligned and once not.
    fn run(&self, set: &'static KernelSet, par: &Par) -> Vec<f32> {
        let Case { m, n, k, compute, .. } = self.case;
        let bytes = gemm_scratch_bytes(m, n, k, compute, par.threads());
        let mut c = if self.case.accumulate { self.before.clone() } else { vec![f32::NAN; self.before.len()] };
        let mut scratch = vec![0xff; bytes + 1];
        let skew = (m + n) % 2;
        gemm_on(set, par, &self.gemm(), &mut c, self.stride, &mut scratch[skew..skew + bytes]);
        c
    }

    fn check(&self, set: &'static KernelSet, c: &[f32]) {
        let Case { m, n, .. } = self.case;
        for i in 0..m {
            let (row, before) = (&c[i * self.stride..], &self.before[i * self.stride..]);
            for (j, &got) in row.iter().enumerate().take(n) {
                let (want, tolerance) = self.expected[i * n + j];
                assert!(
                    (f64::from(got) - want).abs() <= tolerance,
                    "{}: {:?}: C[{i},{j}] is {got}, not {want} within {tolerance}",
                    set.name,
                    self.case
                );
            }
            for (got, before) in row.iter().zip(before).take(self.stride).skip(n) {
                assert!(got.is_nan() || got == before, "{}: {:?} wrote beside row {i}", set.name, self.case);
            }
        }
    }
}

fn pars() -> [Par; 2] {
    [1, 2].map(|threads| Par::new(threads, 1 << 20).expect("threads"))
}

fn bits(c: &[f32]) -> Vec<u32> {
    c.iter().map(|x| x.to_bits()).collect()
}

/// Checks a case with every set, and that two threads give the bits of one.
fn check(pars: &[Par; 2], case: Case) {
    let product = Product::new(case);
    for set in kernel_sets(case.compute) {
        let one = product.run(set, &pars[0]);
        product.check(set, &one);
        assert_eq!(bits(&one), bits(&product.run(set, &pars[1])), "{}: {case:?}: two threads differ", set.name);
    }
}

#[test]
fn every_edge_shape() {
    let pars = pars();
    let ms = [1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15, 29];
    let ns = [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 67];
    for (i, &m) in ms.iter().enumerate() {
        for (j, &n) in ns.iter().enumerate() {
            for (p, k) in [1, 2, 17, 37].into_iter().enumerate() {
                let which = i + j + p;
                let case = Case {
                    a_trans: which & 1 != 0,
                    b_trans: which & 2 != 0,
                    bias: which & 4 != 0,
                    accumulate: which % 3 == 0,
                    slack: which % 4,
                    ..Case::new(m, n, k)
                };
                check(&pars, case);
                check(&pars, Case { compute: Compute::BF16, ..case });
            }
        }
    }
}

#[test]
fn larger_shapes_cross_every_block() {
    let pars = pars();
    for compute in [Compute::F32, Compute::BF16] {
        for a_trans in [false, true] {
            for b_trans in [false, true] {
                for (m, n, k) in [(61, 300, 531), (530, 40, 520), (3, 577, 1030), (20, 8, 576), (40, 130, 8)] {
                    check(&pars, Case { compute, a_trans, b_trans, slack: 3, ..Case::new(m, n, k) });
                }
            }
        }
    }
}

#[test]
fn every_storage_type_on_both_sides() {
    let pars = pars();
    for dtype in DType::all().filter(|d| d.is_quantised() || matches!(d, DType::F16 | DType::BF16)) {
        for compute in [Compute::F32, Compute::BF16] {
            for trans in [false, true] {
                let case = Case { compute, alpha: -0.5, ..Case::new(33, 70, 768) };
                // Blocks run along the stored row: along k, or along n and m.
                check(&pars, Case { b: dtype, b_trans: trans, n: if trans { 70 } else { 512 }, ..case });
                check(&pars, Case { a: dtype, a_trans: trans, m: if trans { 256 } else { 33 }, k: 512, ..case });
            }
        }
    }
}

#[test]
fn halves_with_odd_strides() {
    let pars = pars();
    for compute in [Compute::F32, Compute::BF16] {
        for dtype in [DType::BF16, DType::F16] {
            for (slack, k) in [(1, 38), (2, 39), (3, 64)] {
                check(&pars, Case { compute, a: dtype, b: dtype, slack, ..Case::new(17, 35, k) });
            }
        }
    }
}

#[test]
fn segments_are_separate_calls() {
    let pars = pars();
    for compute in [Compute::F32, Compute::BF16] {
        for (segment, parts, rest) in [(64, 4, 0), (7, 3, 2), (600, 2, 513)] {
            let k = segment * parts + rest;
            let case =
                Case { compute, a_trans: true, b_trans: false, k_segment: Some(segment), ..Case::new(31, 45, k) };
            check(&pars, case);
            let whole = Product::new(case);
            for set in kernel_sets(compute) {
                let mut c = vec![f32::NAN; whole.before.len()];
                for start in (0..k).step_by(segment) {
                    let len = segment.min(k - start);
                    let rows = |stored: &Stored| stored.floats[start * stored.stride..].to_vec();
                    let (a, b) = (rows(&whole.a), rows(&whole.b));
                    let mut g = whole.gemm();
                    g.a = Mat { data: MatData::F32(&a), rows: len, ..g.a };
                    g.b = Mat { data: MatData::F32(&b), rows: len, ..g.b };
                    g.accumulate = start > 0;
                    g.k_segment = None;
                    let mut scratch = vec![0xff; gemm_scratch_bytes(case.m, case.n, len, compute, 1)];
                    gemm_on(set, &pars[0], &g, &mut c, whole.stride, &mut scratch);
                }
                assert_eq!(bits(&c), bits(&whole.run(set, &pars[1])), "{}: {case:?}", set.name);
            }
        }
    }
}

/// A row of the result is the same alone, in a small batch and in a large one; a column among others too.
#[test]
fn rows_and_columns_do_not_depend_on_their_neighbours() {
    let pars = pars();
    for compute in [Compute::F32, Compute::BF16] {
        let whole = Product::new(Case { compute, bias: true, alpha: 0.3, ..Case::new(70, 90, 1100) });
        for set in kernel_sets(compute) {
            let all = whole.run(set, &pars[1]);
            for (row, rows) in [(0, 1), (3, 5), (17, 29), (69, 1)] {
                for (col, cols) in [(0, 90), (5, 1), (40, 31)] {
                    let a = whole.a.floats[row * 1100..(row + rows) * 1100].to_vec();
                    let b = whole.b.floats[col * 1100..(col + cols) * 1100].to_vec();
                    let mut g = whole.gemm();
                    g.a = Mat { data: MatData::F32(&a), rows, ..g.a };
                    g.b = Mat { data: MatData::F32(&b), rows: cols, ..g.b };
                    g.bias = Some(&whole.bias[col..]);
                    let mut c = vec![f32::NAN; rows * cols];
                    let mut scratch = vec![0xff; gemm_scratch_bytes(rows, cols, 1100, compute, 1)];
                    gemm_on(set, &pars[0], &g, &mut c, cols, &mut scratch);
                    for (i, part) in c.chunks(cols).enumerate() {
                        let want = &all[(row + i) * 90 + col..][..cols];
                        assert_eq!(bits(part), bits(want), "{} row {}", set.name, row + i);
                    }
                }
            }
        }
    }
}

#[test]
fn no_steps_leave_the_bias() {
    let par = Par::new(1, 1 << 20).expect("threads");
    for accumulate in [false, true] {
        let product = Product::new(Case { bias: true, accumulate, ..Case::new(3, 5, 0) });
        for set in kernel_sets(Compute::F32) {
            product.check(set, &product.run(set, &par));
        }
    }
}

#[test]
fn the_first_sum_is_added_to_positive_zero() {
    let par = Par::new(1, 1 << 20).expect("threads");
    for set in kernel_sets(Compute::F32) {
        let mut product = Product::new(Case::new(2, 3, 4));
        product.a.floats.fill(-0.0);
        product.b.floats.fill(1.0);
        assert_eq!(bits(&product.run(set, &par)), [0; 6], "{}", set.name);
    }
}
