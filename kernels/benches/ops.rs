//! GB/s of the kernels that memory bounds, at the shapes of SmolLM2-135M; bytes are those that must be read and
//! written once.
//!
//! `cargo bench -p tinyforge-kernels --bench ops -- [threads]`

use half::bf16;
use std::time::Instant;
use tinyforge_kernels::f32::activation::*;
use tinyforge_kernels::f32::elementwise::*;
use tinyforge_kernels::f32::loss::*;
use tinyforge_kernels::f32::norm::*;
use tinyforge_kernels::f32::optimizer::*;
use tinyforge_kernels::f32::rope::*;
use tinyforge_kernels::par::Par;
use tinyforge_kernels::random::Stream;

const TOKENS: usize = 512;
const WIDTH: usize = 576;
const INNER: usize = 1536;
const VOCAB: usize = 49_152;
/// Elements of an updated tensor, far beyond the caches.
const PARAMETERS: usize = 1 << 24;

/// Prints the best of several runs of `f`, which moves `bytes`.
fn report(name: &str, bytes: usize, mut f: impl FnMut()) {
    let time = |_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    let best = (0..30).map(time).fold(f64::INFINITY, f64::min);
    println!("{name:>16} {:>8.1} GB/s {:>9.1} us", bytes as f64 / best / 1e9, best * 1e6);
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect()
}

fn main() {
    let threads = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(1);
    let par = &Par::new(threads, 1 << 20).expect("threads");
    println!("{threads} threads");
    par.enter(|| {
        activations(par);
        rows(par);
        losses(par);
        updates(par);
    });
}

fn activations(par: &Par) {
    let len = TOKENS * INNER;
    let (gate, up, dy) = (values(len), values(len), values(len));
    let (mut y, mut dgate, mut dup) = (values(len), values(len), values(len));
    report("swiglu", 12 * len, || swiglu(par, Some(&gate), &up, &mut y));
    report("swiglu_grad", 20 * len, || swiglu_grad(par, Some(&gate), Some(&up), &dy, &mut dgate, &mut dup));
    report("gelu", 8 * len, || gelu(par, Some(&gate), &mut y));
    report("add", 12 * len, || add(par, Some(&gate), &up, &mut y));
}

fn rows(par: &Par) {
    let len = TOKENS * WIDTH;
    let (x, w, dy) = (values(len), values(WIDTH), values(len));
    let (mut y, mut dw) = (values(len), values(WIDTH));
    let norm = Norm { cols: WIDTH, groups: 1, seq: TOKENS, eps: 1e-5 };
    report("rms_norm", 8 * len, || rms_norm(par, &norm, Some(&x), &w, &mut y));
    report("rms_norm_grad_x", 12 * len, || rms_norm_grad_x(par, &norm, &x, &w, Some(&dy), &mut y, false));
    let mut scratch = vec![0; norm_grad_w_scratch_bytes(&norm, len, par.threads())];
    report("rms_norm_grad_w", 8 * len, || rms_norm_grad_w(par, &norm, &x, &dy, false, &mut dw, &mut scratch));
    report("sum_rows", 4 * len, || sum_rows(par, &dy, TOKENS, false, &mut dw));
    let inv_freq: Vec<f32> = (0..32).map(|i| 1e-4f32.powf(i as f32 / 32.0)).collect();
    let positions: Vec<i32> = (0..TOKENS as i32).collect();
    let dims =
        Rope { heads: 9, head_dim: 64, inv_freq: &inv_freq, is_interleaved: false, factor: 1.0, is_inverse: false };
    report("rope", 8 * len, || rope(par, &dims, Some(&x), &positions, &mut y));
}

fn losses(par: &Par) {
    let (labels, weights, mut loss) = (vec![7; CHUNK_TOKENS], vec![1.0; CHUNK_TOKENS], vec![0.0; CHUNK_TOKENS]);
    let (x, mut dx) = (values(CHUNK_TOKENS * VOCAB), values(CHUNK_TOKENS * VOCAB));
    report("cross_entropy", 4 * x.len(), || cross_entropy(par, &x, &labels, &weights, &mut loss).expect("labels"));
    report("cross_entropy_gr", 8 * x.len(), || {
        cross_entropy_grad(par, Some(&x), &labels, &weights, &mut dx).expect("labels");
    });
}

fn updates(par: &Par) {
    let adamw = AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        bias1: 0.1,
        bias2: 0.001,
        grad_scale: 1.0,
    };
    let len = PARAMETERS;
    let g = values(len);
    let (mut w, mut m, mut v) = (values(len), vec![0.0; len], vec![0.0; len]);
    report("adamw f32", 28 * len, || {
        let target = Target { weights: Weights::F32(&mut w), columns: None, offset: 0 };
        update_adamw(par, &adamw, target, &g, &mut m, &mut v);
    });
    let mut w: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
    let (mut m8, mut v8) = ((vec![0; len], vec![0.0; len / BLOCK]), (vec![0; len], vec![0.0; len / BLOCK]));
    let stream = Stream { seed: 1, step: 2, tensor: 3 };
    report("adamw8 bf16", 12 * len, || {
        let target = Target { weights: Weights::Bf16(&mut w, stream), columns: None, offset: 0 };
        let m = Codes { codes: &mut m8.0, scales: &mut m8.1 };
        let v = Codes { codes: &mut v8.0, scales: &mut v8.1 };
        update_adamw8(par, &adamw, target, &g, m, v);
    });
    report("adamw bf16", 24 * len, || {
        let target = Target { weights: Weights::Bf16(&mut w, stream), columns: None, offset: 0 };
        update_adamw(par, &adamw, target, &g, &mut m, &mut v);
    });
    let mut scratch = vec![0; norm_sq_scratch_bytes(len, par.threads())];
    report("norm_sq", 4 * len, || norm_sq(par, &g, false, &mut [0.0], &mut scratch));
    let mut b = vec![bf16::ZERO; len];
    report("to bf16", 6 * len, || convert(par, &g, &mut b));
    let mut back = vec![0.0f32; len];
    report("from bf16", 6 * len, || convert(par, &b, &mut back));
}
