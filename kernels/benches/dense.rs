//! GFLOP/s of the dense product over the shapes of SmolLM2-135M. Run on an idle machine:
//! `cargo bench -p tinyforge-kernels --bench dense -- [threads] [filter] [types] [set]`; the best of several runs is
//! printed.

use half::bf16;
use std::time::{Duration, Instant};
use tinyforge_kernels::f32::dense::{Compute, Gemm, Mat, MatData, gemm_on, gemm_scratch_bytes, kernel_sets};
use tinyforge_kernels::f32::quant;
use tinyforge_kernels::par::Par;
use tinyforge_plan::DType;

/// Name, m, n, k, left factor transposed, right factor transposed.
type Shape = (&'static str, usize, usize, usize, bool, bool);

const SHAPES: &[Shape] = &[
    ("square", 1024, 1024, 1024, false, false),
    ("q fwd T=256", 256, 576, 576, false, true),
    ("kv fwd T=256", 256, 192, 576, false, true),
    ("up fwd T=256", 256, 1536, 576, false, true),
    ("down fwd T=256", 256, 576, 1536, false, true),
    ("up fwd T=512", 512, 1536, 576, false, true),
    ("up fwd T=2048", 2048, 1536, 576, false, true),
    ("head fwd T=256", 256, 49152, 576, false, true),
    ("up dx T=256", 256, 576, 1536, false, false),
    ("down dx T=256", 256, 1536, 576, false, false),
    ("up dW T=256", 1536, 576, 256, true, false),
    ("down dW T=256", 576, 1536, 256, true, false),
    ("kv dW T=256", 192, 576, 256, true, false),
    ("up dW T=512", 1536, 576, 512, true, false),
    ("lora A fwd T=256", 256, 8, 576, false, true),
    ("lora B fwd T=256", 256, 576, 8, false, true),
    ("lora dA T=256", 8, 576, 256, true, false),
    ("lora dB T=256", 576, 8, 256, true, false),
    ("up fwd T=1", 1, 1536, 576, false, true),
    ("down fwd T=1", 1, 576, 1536, false, true),
    ("head fwd T=1", 1, 49152, 576, false, true),
    ("head fwd T=4", 4, 49152, 576, false, true),
    ("3B q fwd T=128", 128, 2048, 2048, false, true),
    ("3B up fwd T=128", 128, 5632, 2048, false, true),
    ("3B down fwd T=128", 128, 2048, 5632, false, true),
    ("3B q dx T=128", 128, 2048, 2048, false, false),
    ("3B up dx T=128", 128, 2048, 5632, false, false),
    ("3B down dx T=128", 128, 5632, 2048, false, false),
    ("3B up fwd T=512", 512, 5632, 2048, false, true),
    ("3B up dx T=512", 512, 2048, 5632, false, false),
];

/// Seconds of the fastest of several runs.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 5 || begin.elapsed() < Duration::from_millis(300) {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn values(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn measure(par: &Par, shape: &Shape, compute: Compute, weight: DType, set: &str) -> String {
    let &(_, m, n, k, a_trans, b_trans) = shape;
    let (a, b) = (values(m * k), values(n * k));
    let mut bytes = vec![0; weight.bytes_of((n * k) as u64).unwrap_or(0) as usize];
    let cols = if b_trans { k } else { n };
    let mut halves = vec![];
    let right = match weight.is_quantised() {
        true if !cols.is_multiple_of(weight.block_elems() as usize) => return "-".into(),
        true => {
            // Random bits cost what real ones do; the simple formats are encoded so that sums stay finite.
            if !quant::quantise(weight, &b, &mut bytes) {
                bytes.iter_mut().zip(&b).for_each(|(byte, x)| *byte = x.to_bits() as u8 & 0x3f);
            }
            MatData::Blocks(weight, &bytes)
        }
        false if weight == DType::BF16 => {
            halves.extend(b.iter().map(|&x| bf16::from_f32(x)));
            MatData::BF16(&halves)
        }
        false => MatData::F32(&b),
    };
    let (a_rows, a_cols) = if a_trans { (k, m) } else { (m, k) };
    let (b_rows, b_cols) = if b_trans { (n, k) } else { (k, n) };
    let g = Gemm {
        a: Mat { data: MatData::F32(&a), rows: a_rows, cols: a_cols, stride: a_cols },
        a_trans,
        b: Mat { data: right, rows: b_rows, cols: b_cols, stride: b_cols },
        b_trans,
        compute,
        alpha: 1.0,
        bias: None,
        accumulate: false,
        k_segment: None,
    };
    let mut c = vec![0.0; m * n];
    let mut scratch = vec![0; gemm_scratch_bytes(m, n, k, compute, par.threads())];
    let set = kernel_sets(compute).find(|known| set.is_empty() || known.name == set).expect("a set of this machine");
    let seconds = best(|| par.enter(|| gemm_on(set, par, &g, &mut c, n, &mut scratch)));
    format!("{:.0}", 2.0 * (m * n * k) as f64 / seconds / 1e9)
}

/// Elements decoded a nanosecond, from and to the second cache.
fn decode() {
    let mut out = vec![0.0; 64 * 1024];
    for dtype in DType::all().filter(|dtype| dtype.is_quantised()) {
        let bytes = vec![0x2f; dtype.bytes_of(out.len() as u64).expect("whole blocks") as usize];
        let seconds = best(|| quant::dequantise(dtype, &bytes, &mut out));
        println!("decode {:5} {:6.2} elements/ns", dtype.name(), out.len() as f64 / seconds / 1e9);
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let threads = args.first().and_then(|arg| arg.parse().ok()).unwrap_or(1);
    let filter = args.get(1).cloned().unwrap_or_default();
    let set = args.get(3).cloned().unwrap_or_default();
    let types = args.get(2).cloned().unwrap_or_default();
    let par = Par::new(threads, 1 << 20).expect("threads");
    for compute in [Compute::F32, Compute::BF16] {
        println!("{compute:?}: {:?}", kernel_sets(compute).map(|set| set.name).collect::<Vec<_>>());
    }
    let columns: Vec<_> = [
        ("f32", Compute::F32, DType::F32),
        ("bf16", Compute::BF16, DType::F32),
        ("bf16w", Compute::BF16, DType::BF16),
        ("q8_0", Compute::F32, DType::Q8_0),
        ("q4_0", Compute::F32, DType::Q4_0),
        ("q4_1", Compute::F32, DType::Q4_1),
        ("q4_k", Compute::F32, DType::Q4K),
        ("q6_k", Compute::F32, DType::Q6K),
    ]
    .into_iter()
    .filter(|column| types.is_empty() || types.split(',').any(|name| name == column.0))
    .collect();
    print!("{:22}", format!("GFLOP/s, {threads} threads"));
    columns.iter().for_each(|(name, ..)| print!("{name:>8}"));
    println!();
    for shape in SHAPES.iter().filter(|shape| shape.0.contains(&filter)) {
        print!("{:22}", shape.0);
        columns.iter().for_each(|&(_, compute, weight)| print!("{:>8}", measure(&par, shape, compute, weight, &set)));
        println!();
    }
    if "decode".contains(&filter) {
        decode();
    }
}
