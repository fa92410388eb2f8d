use crate::common::*;
use tinyforge_kernels::f32::dense::{Compute, Mat, MatData};
use tinyforge_kernels::f32::loss::*;
use tinyforge_kernels::par::Par;

fn naive_softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|x| (x - max).exp()).sum();
    x.iter().map(|x| (x - max).exp() / sum).collect()
}

fn naive_nll(x: &[f64], label: usize) -> f64 {
    -naive_softmax(x)[label].ln()
}

#[test]
fn softmax_and_log_softmax() {
    for (rows, cols) in [(1, 1), (3, 15), (2, 16), (5, 17), (2, 64), (3, 65), (2, 20_001)] {
        let x: Vec<f32> = values(1, rows * cols).iter().map(|x| x * 20.0).collect();
        let dy = values(2, rows * cols);
        let [y, log, dx, dlog, z, zdx] = everywhere([x.len(); 6], |par, [y, log, dx, dlog, z, zdx]| {
            softmax(par, cols, Some(&x), y);
            log_softmax(par, cols, Some(&x), log);
            softmax_grad(par, cols, y, Some(&dy), dx);
            log_softmax_grad(par, cols, log, Some(&dy), dlog);
            z.copy_from_slice(&x);
            softmax(par, cols, None, z);
            zdx.copy_from_slice(&dy);
            softmax_grad(par, cols, y, None, zdx);
        });
        let expected: Vec<f64> = wide(&x).chunks(cols).flat_map(naive_softmax).collect();
        assert_close(&y, &expected, 1e-6);
        assert_close(&log, &expected.iter().map(|p| p.ln()).collect::<Vec<_>>(), 1e-6);
        assert_same(&y, &z, "in place");
        assert_same(&dx, &zdx, "gradient in place");
        let (d, mut ex, mut el) = (wide(&dy), vec![], vec![]);
        for (p, d) in expected.chunks(cols).zip(d.chunks(cols)) {
            let (pd, sum) = (dot(p, d), d.iter().sum::<f64>());
            ex.extend(p.iter().zip(d).map(|(p, d)| p * (d - pd)));
            el.extend(p.iter().zip(d).map(|(p, d)| d - p * sum));
        }
        assert_close(&dx, &ex, 1e-6);
        assert_close(&dlog, &el, 1e-5);
    }
}

#[test]
fn a_row_of_minus_infinity_gives_zeros() {
    let [y] = everywhere([20], |par, [y]| softmax(par, 20, Some(&[f32::NEG_INFINITY; 20]), y));
    assert_eq!(y, [0.0; 20]);
}

#[test]
fn cross_entropy_and_its_gradient() {
    for (tokens, vocab) in [(1, 1), (4, 16), (7, 33), (3, 1000)] {
        let x: Vec<f32> = values(1, tokens * vocab).iter().map(|x| x * 10.0).collect();
        let mut labels = integers(2, tokens, 0, vocab as i32);
        let mut weights: Vec<f32> = values(3, tokens).iter().map(|x| x.abs()).collect();
        if tokens > 3 {
            labels[1] = -100;
            weights[2] = 0.0;
        }
        let [loss, dx, in_place] = everywhere([tokens, x.len(), x.len()], |par, [loss, dx, z]| {
            cross_entropy(par, &x, &labels, &weights, loss).unwrap();
            cross_entropy_grad(par, Some(&x), &labels, &weights, dx).unwrap();
            z.copy_from_slice(&x);
            cross_entropy_grad(par, None, &labels, &weights, z).unwrap();
        });
        assert_same(&dx, &in_place, "in place");
        for (t, x) in wide(&x).chunks(vocab).enumerate() {
            let is_ignored = labels[t] < 0 || weights[t] == 0.0;
            let weight = if is_ignored { 0.0 } else { f64::from(weights[t]) };
            let label = labels[t].max(0) as usize;
            assert_close(&loss[t..t + 1], &[weight * naive_nll(x, label)], 1e-6);
            let mut expected: Vec<f64> = naive_softmax(x).iter().map(|p| p * weight).collect();
            expected[label] -= weight;
            assert_close(&dx[t * vocab..(t + 1) * vocab], &expected, 1e-6);
        }
    }
}

#[test]
fn a_label_beyond_the_vocabulary_is_an_error() {
    let error = cross_entropy(&one(), &[0.0; 6], &[-1, 3], &[1.0; 2], &mut [0.0; 2]).unwrap_err();
    assert_eq!((error.what, error.at, error.value, error.limit), ("label", 1, 3, 3));
}

#[test]
fn mean_squared_error() {
    let (y, target, weights) = (values(1, 5 * 37), values(2, 5 * 37), [1.0, 0.0, 0.5, 2.0, 1.0]);
    let [loss, dy] = everywhere([5, y.len()], |par, [loss, dy]| {
        mse_loss(par, &y, &target, &weights, loss);
        mse_loss_grad(par, Some(&y), &target, &weights, dy);
    });
    let (targets, ws) = (wide(&target), wide(&weights));
    let naive = |y: &[f64], t: usize| {
        (0..37).map(|i| (y[t * 37 + i] - targets[t * 37 + i]).powi(2)).sum::<f64>() / 37.0 * ws[t]
    };
    let ys = wide(&y);
    assert_close(&loss, &(0..5).map(|t| naive(&ys, t)).collect::<Vec<_>>(), 1e-6);
    assert_close(&dy, &differences(&ys, |y| (0..5).map(|t| naive(y, t)).sum()), 1e-6);
}

/// One problem of the fused loss.
struct Fused {
    dims: LinearCrossEntropy,
    h: Vec<f32>,
    w: Vec<f32>,
    labels: Vec<i32>,
    weights: Vec<f32>,
    dw0: Vec<f32>,
}

impl Fused {
    fn new(rows: usize, seq: usize, width: usize, vocab: usize) -> Fused {
        let dims = LinearCrossEntropy { rows, seq, width, vocab, logit_scale: 1.5, compute: Compute::F32 };
        let tokens = rows * seq;
        let mut labels = integers(1, tokens, 0, vocab as i32);
        labels.iter_mut().step_by(5).for_each(|label| *label = -100);
        let mut weights: Vec<f32> = values(2, tokens).iter().map(|x| x.abs()).collect();
        weights.iter_mut().skip(1).step_by(7).for_each(|weight| *weight = 0.0);
        let (h, w) = (values(3, tokens * width), values(4, vocab * width));
        Fused { dims, h, w, labels, weights, dw0: values(5, vocab * width) }
    }

    fn head<'a>(&'a self, w: &'a Mat<'a>) -> Head<'a> {
        Head { h: &self.h, w, labels: &self.labels, weights: &self.weights }
    }

    /// Some rows of the weight.
    fn part(&self, rows: std::ops::Range<usize>) -> (LinearCrossEntropy, Part, Mat<'_>) {
        let (width, vocab) = (self.dims.width, self.dims.vocab);
        let data = MatData::F32(&self.w[rows.start * width..rows.end * width]);
        let w = Mat { data, rows: rows.len(), cols: width, stride: width };
        (LinearCrossEntropy { vocab: rows.len(), ..self.dims }, Part { first: rows.start, vocab }, w)
    }

    fn lens(&self) -> [usize; 3] {
        [self.labels.len(), self.h.len(), self.w.len()]
    }

    /// The packed rows `rows` alone.
    fn run(&self, par: &Par, rows: std::ops::Range<usize>, accumulate: bool, [loss, dh, dw]: [&mut [f32]; 3]) {
        let dims = LinearCrossEntropy { rows: rows.len(), ..self.dims };
        let tokens = rows.start * dims.seq..rows.end * dims.seq;
        let w = Mat { data: MatData::F32(&self.w), rows: dims.vocab, cols: dims.width, stride: dims.width };
        let mut scratch = vec![0xff; linear_cross_entropy_scratch_bytes(&dims, par.threads())];
        let h = &self.h[tokens.start * dims.width..tokens.end * dims.width];
        let out = LinearCrossEntropyOut { loss, dh: Some(dh), dw: Some((dw, accumulate)), sums: None };
        let head = Head { h, w: &w, labels: &self.labels[tokens.clone()], weights: &self.weights[tokens] };
        linear_cross_entropy(par, &dims, &head, out, &mut scratch).unwrap();
    }
}

#[test]
fn fused_loss_is_the_naive_form() {
    const CHUNK: usize = CHUNK_TOKENS;
    let lengths =
        [(1, 1, 4, 3), (2, 7, 16, 50), (1, CHUNK, 24, 33), (2, CHUNK + 1, 8, 40), (1, 2 * CHUNK + 2, 33, 100)];
    for (rows, seq, width, vocab) in lengths {
        let problem = Fused::new(rows, seq, width, vocab);
        let [loss, dh, dw] = everywhere_on_threads(problem.lens(), |par, [loss, dh, dw]| {
            problem.run(par, 0..rows, false, [loss, dh, dw]);
        });
        let (h, w) = (wide(&problem.h), wide(&problem.w));
        let (mut eloss, mut edh, mut edw) = (vec![], vec![0.0; h.len()], vec![0.0; w.len()]);
        for t in 0..rows * seq {
            let weight = if problem.labels[t] < 0 { 0.0 } else { f64::from(problem.weights[t]) };
            let label = problem.labels[t].max(0) as usize;
            let h = &h[t * width..(t + 1) * width];
            let x: Vec<f64> = w.chunks(width).map(|w| 1.5 * dot(h, w)).collect();
            eloss.push(weight * naive_nll(&x, label));
            let mut d: Vec<f64> = naive_softmax(&x).iter().map(|p| p * weight).collect();
            d[label] -= weight;
            for v in 0..vocab {
                for c in 0..width {
                    edh[t * width + c] += 1.5 * d[v] * w[v * width + c];
                    edw[v * width + c] += 1.5 * d[v] * h[c];
                }
            }
        }
        assert_close(&loss, &eloss, 3e-6);
        assert_close(&dh, &edh, 1e-5);
        assert_close(&dw, &edw, 1e-5);
    }
}

/// Like `everywhere`, without instruction sets: the dense product's own differ in the last bits.
#[track_caller]
fn everywhere_on_threads<const N: usize>(lens: [usize; N], f: impl Fn(&Par, &mut [Vec<f32>; N])) -> [Vec<f32>; N] {
    let run = |threads| {
        let mut out = lens.map(|len| vec![f32::NAN; len]);
        f(&Par::new(threads, 1 << 20).unwrap(), &mut out);
        out
    };
    let expected = run(1);
    run(2).iter().zip(&expected).for_each(|(a, b)| assert_same(a, b, "two threads"));
    expected
}

#[test]
fn rows_of_the_fused_loss_are_micro_batches() {
    let problem = Fused::new(4, CHUNK_TOKENS + 6, 12, 90);
    let [mut loss, mut dh, _] = problem.lens().map(|len| vec![f32::NAN; len]);
    let mut dw = problem.dw0.clone();
    problem.run(&one(), 0..4, true, [&mut loss, &mut dh, &mut dw]);
    let [mut loss1, mut dh1, _] = problem.lens().map(|len| vec![f32::NAN; len]);
    let mut dw1 = problem.dw0.clone();
    for row in 0..4 {
        let tokens = row * problem.dims.seq..(row + 1) * problem.dims.seq;
        let (loss, dh) = (&mut loss1[tokens.clone()], &mut dh1[tokens.start * 12..tokens.end * 12]);
        problem.run(&one(), row..row + 1, true, [loss, dh, &mut dw1]);
    }
    assert_same(&loss, &loss1, "losses");
    assert_same(&dh, &dh1, "hidden gradients");
    assert_same(&dw, &dw1, "weight gradients");
}

#[test]
fn chunks_that_do_not_count_are_skipped() {
    const SKIPPED: usize = CHUNK_TOKENS;
    let mut problem = Fused::new(1, SKIPPED + 40, 8, 20);
    problem.weights[..SKIPPED].fill(0.0);
    // Infinities in a skipped chunk are not even multiplied.
    problem.h[..SKIPPED * 8].fill(f32::INFINITY);
    let [mut loss, mut dh, mut dw] = problem.lens().map(|len| vec![f32::NAN; len]);
    problem.run(&one(), 0..1, false, [&mut loss, &mut dh, &mut dw]);
    assert!(loss[..SKIPPED].iter().chain(&dh[..SKIPPED * 8]).all(|x| x.to_bits() == 0));
    assert!(dw.iter().all(|x| x.is_finite()) && dw.iter().any(|x| *x != 0.0));
    problem.weights.fill(0.0);
    problem.run(&one(), 0..1, false, [&mut loss, &mut dh, &mut dw]);
    assert!(loss.iter().chain(&dh).chain(&dw).all(|x| x.to_bits() == 0));
}

#[test]
fn loss_alone_is_the_same_loss() {
    let problem = Fused::new(2, CHUNK_TOKENS + 6, 12, 90);
    let [mut loss, mut dh, mut dw] = problem.lens().map(|len| vec![f32::NAN; len]);
    problem.run(&one(), 0..2, false, [&mut loss, &mut dh, &mut dw]);
    let w = Mat { data: MatData::F32(&problem.w), rows: 90, cols: 12, stride: 12 };
    let mut scratch = vec![0; linear_cross_entropy_scratch_bytes(&problem.dims, 1)];
    let mut alone = vec![f32::NAN; loss.len()];
    let out = LinearCrossEntropyOut { loss: &mut alone, dh: None, dw: None, sums: None };
    linear_cross_entropy(&one(), &problem.dims, &problem.head(&w), out, &mut scratch).unwrap();
    assert_same(&loss, &alone, "losses");
}

/// The gradient of the weight by panels of its rows has the bits of the whole, whatever the panels, the number type of
/// the products and the threads.
#[test]
fn panels_of_the_weight_gradient_are_rows_of_the_whole() {
    const CHUNK: usize = CHUNK_TOKENS;
    for (rows, seq, width, vocab) in [(1, 1, 4, 3), (2, 7, 16, 50), (1, CHUNK, 24, 133), (2, CHUNK + 1, 600, 300)] {
        for (compute, accumulate) in [(Compute::F32, false), (Compute::F32, true), (Compute::BF16, false)] {
            let mut problem = Fused::new(rows, seq, width, vocab);
            problem.dims.compute = compute;
            // A row of which nothing counts.
            problem.weights[..seq / 2].fill(0.0);
            let Fused { dims, w, dw0, .. } = &problem;
            let mat = Mat { data: MatData::F32(w), rows: vocab, cols: width, stride: width };
            let [mut loss, mut dh, _] = problem.lens().map(|len| vec![f32::NAN; len]);
            let (mut sums, mut whole) = (vec![f32::NAN; SUMS * loss.len()], dw0.clone());
            let mut scratch = vec![0xff; linear_cross_entropy_scratch_bytes(dims, 1)];
            let dw = Some((&mut whole[..], accumulate));
            let out = LinearCrossEntropyOut { loss: &mut loss, dh: Some(&mut dh), dw, sums: Some(&mut sums) };
            linear_cross_entropy(&one(), dims, &problem.head(&mat), out, &mut scratch).unwrap();
            for (height, threads) in [(1, 1), (17, 2), (64, 1), (vocab, 2)] {
                let par = Par::new(threads, 1 << 20).unwrap();
                let mut panels = dw0.clone();
                for (i, dw) in panels.chunks_mut(height * width).enumerate() {
                    let bytes = linear_cross_entropy_grad_w_scratch_bytes(dims, dw.len() / width, threads);
                    let (first, mut scratch) = (i * height, vec![0xff; bytes]);
                    let dw = (dw, accumulate);
                    let head = problem.head(&mat);
                    linear_cross_entropy_grad_w(&par, dims, &head, &sums, first, dw, &mut scratch).unwrap();
                }
                let what = format!("{rows} x {seq}, {vocab} x {width} by {height}, {compute:?}, {accumulate}");
                assert_same(&panels, &whole, &what);
            }
        }
    }
}

/// Rows of the weight outside of a panel may be anything: another panel's update has changed them.
#[test]
fn a_panel_reads_no_other_rows_of_the_weight() {
    let problem = Fused::new(1, 40, 8, 20);
    let Fused { dims, w, labels, .. } = &problem;
    let sums = vec![1.0; SUMS * labels.len()];
    let run = |w: &[f32]| {
        let mat = Mat { data: MatData::F32(w), rows: 20, cols: 8, stride: 8 };
        let mut dw = vec![f32::NAN; 6 * 8];
        let mut scratch = vec![0; linear_cross_entropy_grad_w_scratch_bytes(dims, 6, 1)];
        let to = (&mut dw[..], false);
        linear_cross_entropy_grad_w(&one(), dims, &problem.head(&mat), &sums, 7, to, &mut scratch).unwrap();
        dw
    };
    let mut spoiled = vec![f32::NAN; w.len()];
    spoiled[7 * 8..13 * 8].copy_from_slice(&w[7 * 8..13 * 8]);
    assert_same(&run(&spoiled), &run(w), "the panel");
}

/// A weight in parts of whole segments leads to the bits of the whole: sums, losses, and the gradient of the hidden
/// states.
#[test]
fn parts_of_the_weight_are_the_whole() {
    const VOCAB: usize = 2 * VOCAB_SEGMENT + 300;
    for (rows, seq, width) in [(1, 1, 4), (2, CHUNK_TOKENS + 9, 8), (1, 40, 17)] {
        for compute in [Compute::F32, Compute::BF16] {
            let mut problem = Fused::new(rows, seq, width, VOCAB);
            problem.dims.compute = compute;
            let Fused { dims, w, weights, .. } = &problem;
            let mat = Mat { data: MatData::F32(w), rows: VOCAB, cols: width, stride: width };
            let [mut loss, mut dh, _] = problem.lens().map(|len| vec![f32::NAN; len]);
            let mut sums = vec![f32::NAN; SUMS * loss.len()];
            let mut scratch = vec![0xff; linear_cross_entropy_scratch_bytes(dims, 1)];
            let out = LinearCrossEntropyOut { loss: &mut loss, dh: Some(&mut dh), dw: None, sums: Some(&mut sums) };
            linear_cross_entropy(&one(), dims, &problem.head(&mat), out, &mut scratch).unwrap();
            let cuts: [(&[usize], usize); 3] =
                [(&[0, 1024, 2048, VOCAB], 1), (&[0, 2048, VOCAB], 2), (&[0, 1024, VOCAB], 1)];
            for (cuts, threads) in cuts {
                let par = Par::new(threads, 1 << 20).unwrap();
                let parts = || cuts.windows(2).map(|cut| problem.part(cut[0]..cut[1]));
                let [mut part_loss, mut part_dh] = [&loss, &dh].map(|x| vec![f32::NAN; x.len()]);
                let mut part_sums = vec![f32::NAN; sums.len()];
                for (dims, part, w) in parts() {
                    let mut scratch = vec![0xff; linear_cross_entropy_sums_scratch_bytes(&dims, threads)];
                    let (to, head) = ((&mut part_sums[..], part.first > 0), problem.head(&w));
                    linear_cross_entropy_sums(&par, &dims, part, &head, to, &mut scratch).unwrap();
                }
                cross_entropy_of_sums(&part_sums, weights, &mut part_loss);
                for (dims, part, w) in parts() {
                    let mut scratch = vec![0xff; linear_cross_entropy_grad_h_scratch_bytes(&dims, threads)];
                    let (to, head) = ((&mut part_dh[..], part.first > 0), problem.head(&w));
                    linear_cross_entropy_grad_h(&par, &dims, part, &head, &part_sums, to, &mut scratch).unwrap();
                }
                assert_same(&part_sums, &sums, "sums");
                assert_same(&part_loss, &loss, "losses");
                assert_same(&part_dh, &dh, "hidden gradients");
            }
        }
    }
}
