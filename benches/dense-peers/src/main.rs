//! Our dense product beside `gemm` (with its AVX-512 kernels) and `faer`, f32, over the shapes of SmolLM2-135M.
//!
//! Run on an idle machine: `cargo run --release -- [threads] [filter]`. Every cell is the best of several runs, the
//! libraries taking turns, in GFLOP/s. Peers allocate and pack as they like; ours uses planned scratch.

use faer::{Accum, MatMut, MatRef, Par as FaerPar};
use std::time::Instant;
use tinyforge_kernels::f32::dense::{Compute, Gemm, Mat, MatData, gemm as ours, gemm_scratch_bytes};
use tinyforge_kernels::par::Par;

/// Name, m, n, k, left factor transposed, right factor transposed.
type Shape = (&'static str, usize, usize, usize, bool, bool);

const SHAPES: &[Shape] = &[
    ("square", 1024, 1024, 1024, false, false),
    ("q fwd T=256", 256, 576, 576, false, true),
    ("kv fwd T=256", 256, 192, 576, false, true),
    ("up fwd T=256", 256, 1536, 576, false, true),
    ("down fwd T=256", 256, 576, 1536, false, true),
    ("up fwd T=512", 512, 1536, 576, false, true),
    ("head fwd T=256", 256, 49152, 576, false, true),
    ("up dx T=256", 256, 576, 1536, false, false),
    ("up dW T=256", 1536, 576, 256, true, false),
    ("down dW T=256", 576, 1536, 256, true, false),
    ("up dW T=512", 1536, 576, 512, true, false),
    ("lora A fwd T=256", 256, 8, 576, false, true),
    ("lora B fwd T=256", 256, 576, 8, false, true),
    ("lora dA T=256", 8, 576, 256, true, false),
    ("lora dB T=256", 576, 8, 256, true, false),
    ("up fwd T=1", 1, 1536, 576, false, true),
    ("down fwd T=1", 1, 576, 1536, false, true),
    ("head fwd T=1", 1, 49152, 576, false, true),
];

fn values(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// A stored matrix of `rows x cols`, or the transpose of one, as rows, columns and strides.
fn strides(rows: usize, cols: usize, trans: bool) -> (isize, isize) {
    if trans { (1, rows as isize) } else { (cols as isize, 1) }
}

fn run_gemm(shape: &Shape, a: &[f32], b: &[f32], c: &mut [f32], threads: usize) {
    let &(_, m, n, k, a_trans, b_trans) = shape;
    let ((a_row, a_col), (b_row, b_col)) = (strides(m, k, a_trans), strides(k, n, b_trans));
    let par = if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    // SAFETY: the slices hold matrices of these shapes and strides.
    unsafe {
        let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
        gemm::gemm(
            m, n, k, c, 1, n as isize, false, a, a_col, a_row, b, b_col, b_row, 0.0, 1.0, false, false, false, par,
        );
    }
}

fn run_faer(shape: &Shape, a: &[f32], b: &[f32], c: &mut [f32], threads: usize) {
    let &(_, m, n, k, a_trans, b_trans) = shape;
    let view = |data, rows, cols, trans| match trans {
        true => MatRef::from_column_major_slice(data, rows, cols),
        false => MatRef::from_row_major_slice(data, rows, cols),
    };
    let par = if threads == 1 { FaerPar::Seq } else { FaerPar::rayon(threads) };
    let c = MatMut::from_row_major_slice_mut(c, m, n);
    faer::linalg::matmul::matmul(c, Accum::Replace, view(a, m, k, a_trans), view(b, k, n, b_trans), 1.0, par);
}

fn run_ours(par: &Par, shape: &Shape, a: &[f32], b: &[f32], c: &mut [f32], compute: Compute, scratch: &mut [u8]) {
    let &(_, m, n, k, a_trans, b_trans) = shape;
    let mat = |data, (rows, cols): (usize, usize)| Mat { data: MatData::F32(data), rows, cols, stride: cols };
    let g = Gemm {
        a: mat(a, if a_trans { (k, m) } else { (m, k) }),
        a_trans,
        b: mat(b, if b_trans { (n, k) } else { (k, n) }),
        b_trans,
        compute,
        alpha: 1.0,
        bias: None,
        accumulate: false,
        k_segment: None,
    };
    par.enter(|| ours(par, &g, c, n, scratch));
}

fn check(name: &str, want: &[f32], got: &[f32], k: usize, slack: f32) {
    let worst = want.iter().zip(got).map(|(want, got)| (want - got).abs()).fold(0.0, f32::max);
    assert!(worst <= slack * (k as f32).sqrt(), "{name} is off by {worst}");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let threads: usize = args.first().and_then(|arg| arg.parse().ok()).unwrap_or(1);
    let filter = args.get(1).cloned().unwrap_or_default();
    let par = Par::new(threads, 1 << 20).expect("threads");
    // The peers use the global pool.
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("threads");
    println!("{:22}{:>8}{:>8}{:>8}{:>12}", format!("GFLOP/s, {threads} threads"), "gemm", "faer", "ours", "ours, bf16");
    for shape in SHAPES.iter().filter(|shape| shape.0.contains(&filter)) {
        let &(name, m, n, k, ..) = shape;
        let (a, b) = (values(m * k), values(k * n));
        let mut c = [(); 4].map(|()| vec![0.0; m * n]);
        let mut scratch = vec![0; gemm_scratch_bytes(m, n, k, Compute::BF16, threads)];
        let mut best = [f64::INFINITY; 4];
        let begin = Instant::now();
        let mut turns = 0;
        while turns < 6 || begin.elapsed().as_millis() < 1500 {
            for which in 0..4 {
                let c = &mut c[which];
                let start = Instant::now();
                match which {
                    0 => run_gemm(shape, &a, &b, c, threads),
                    1 => run_faer(shape, &a, &b, c, threads),
                    2 => run_ours(&par, shape, &a, &b, c, Compute::F32, &mut scratch),
                    _ => run_ours(&par, shape, &a, &b, c, Compute::BF16, &mut scratch),
                }
                best[which] = best[which].min(start.elapsed().as_secs_f64());
            }
            turns += 1;
        }
        check("gemm", &c[2], &c[0], k, 1e-4);
        check("faer", &c[2], &c[1], k, 1e-4);
        check("bf16", &c[2], &c[3], k, 2e-2);
        let rates = best.map(|seconds| 2.0 * (m * n * k) as f64 / seconds / 1e9);
        println!("{name:22}{:8.0}{:8.0}{:8.0}{:12.0}", rates[0], rates[1], rates[2], rates[3]);
    }
}
