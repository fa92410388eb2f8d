//! The rates that everything else is compared with: a large product, a large copy, the optimizer's update.

use std::time::{Duration, Instant};
use tinyforge_kernels::f32::dense::{Compute, Gemm, Mat, MatData, gemm, gemm_scratch_bytes};
use tinyforge_kernels::f32::optimizer::{AdamW, Target, Weights, update_adamw};
use tinyforge_kernels::par::Par;

/// Rows, columns and depth of the product.
const PRODUCT: usize = 1536;
/// Elements of the copy and of the update: far beyond every cache.
const ELEMS: usize = 64 << 20;
/// Runs at least.
const RUNS_MIN: u32 = 2;

/// Seconds of the fastest of several runs.
fn best(limit: Duration, mut run: impl FnMut()) -> f64 {
    run();
    let begin = Instant::now();
    let (mut best, mut runs) = (f64::INFINITY, 0);
    while runs < RUNS_MIN || begin.elapsed() < limit {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

/// FLOP/s of our best product of two large matrices.
pub fn product(par: &Par, compute: Compute, limit: Duration) -> f64 {
    let n = PRODUCT;
    let values: Vec<f32> = (0..n * n).map(|i| (i % 1009) as f32 / 504.0 - 1.0).collect();
    let (mut c, mut scratch) = (vec![0.0; n * n], vec![0; gemm_scratch_bytes(n, n, n, compute, par.threads())]);
    let mat = Mat { data: MatData::F32(&values), rows: n, cols: n, stride: n };
    let g = Gemm {
        a: mat,
        a_trans: false,
        b: mat,
        b_trans: true,
        compute,
        alpha: 1.0,
        bias: None,
        accumulate: false,
        k_segment: None,
    };
    let seconds = par.enter(|| best(limit, || gemm(par, &g, &mut c, n, &mut scratch)));
    2.0 * (n as f64).powi(3) / seconds
}

/// Bytes a second, read and written, of a copy by all threads.
pub fn copy(par: &Par, limit: Duration) -> f64 {
    let from = vec![1u32; ELEMS];
    let mut to = vec![0u32; ELEMS];
    let piece = ELEMS.div_ceil(par.threads());
    let seconds = best(limit, || {
        std::thread::scope(|scope| {
            for (to, from) in to.chunks_mut(piece).zip(from.chunks(piece)) {
                scope.spawn(|| to.copy_from_slice(from));
            }
        });
    });
    8.0 * ELEMS as f64 / seconds
}

/// Bytes a second, read and written, of AdamW in f32: 28 an element.
pub fn adamw(par: &Par, limit: Duration) -> f64 {
    let elems = ELEMS / 4;
    let rule = AdamW {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        bias1: 0.1,
        bias2: 0.001,
        grad_scale: 1.0,
    };
    let g = vec![1e-3f32; elems];
    let [mut w, mut m, mut v] = [vec![0.1f32; elems], vec![0.0f32; elems], vec![0.0f32; elems]];
    let seconds = par.enter(|| {
        best(limit, || {
            let target = Target { weights: Weights::F32(&mut w), columns: None, offset: 0 };
            update_adamw(par, &rule, target, &g, &mut m, &mut v);
        })
    });
    28.0 * elems as f64 / seconds
}
