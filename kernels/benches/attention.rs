//! Attention forward and backward at the shapes of SmolLM2-135M, in GFLOP/s of the products that the causal mask
//! leaves (4 and 10 operations a score and element of a head).
//!
//! `cargo bench -p tinyforge-kernels --bench attention -- [threads]`

use std::time::Instant;
use tinyforge_kernels::f32::attention::*;
use tinyforge_kernels::par::Par;

/// The least of `runs` times of `f`, in seconds.
fn best(runs: usize, mut f: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(time).fold(f64::INFINITY, f64::min)
}

fn main() {
    let most = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(2);
    println!("{:>5} {:>8} {:>12} {:>12}", "seq", "threads", "forward", "backward");
    for seq in [64, 256, 512, 1024] {
        for threads in [1, most] {
            run(seq, &Par::new(threads, 1 << 20).expect("threads"));
        }
    }
}

fn run(seq: usize, par: &Par) {
    let (heads, kv_heads, head_dim) = (9, 3, 64);
    let dims = Attention { rows: 1, seq, heads, kv_heads, head_dim, scale: 0.125, is_causal: true, window: None };
    let values = |len: usize| (0..len).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect::<Vec<_>>();
    let (q, k, v, d_o) = (values(seq * 576), values(seq * 192), values(seq * 192), values(seq * 576));
    let segments = vec![0; seq];
    let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; seq * heads]);
    let mut scratch = vec![0; attention_scratch_bytes(&dims, par.threads())];
    let forward =
        par.enter(|| best(200, || attention(par, &dims, &q, &k, &v, &segments, &mut o, &mut lse, &mut scratch)));
    let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
    let mut scratch = vec![0; attention_grad_scratch_bytes(&dims, par.threads())];
    let saved = Saved { q: &q, k: &k, v: &v, o: &o, lse: &lse, d_o: &d_o, segments: &segments };
    let backward =
        par.enter(|| best(200, || attention_grad(par, &dims, &saved, &mut dq, &mut dk, &mut dv, &mut scratch)));
    let scores = (seq * (seq + 1) / 2 * heads * head_dim) as f64;
    println!(
        "{seq:>5} {:>8} {:>12.1} {:>12.1}",
        par.threads(),
        4.0 * scores / forward / 1e9,
        10.0 * scores / backward / 1e9
    );
}
