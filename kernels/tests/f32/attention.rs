use crate::common::*;
use tinyforge_kernels::f32::attention::*;
use tinyforge_kernels::par::Par;

/// Whether query `i` sees key `j`, both of one packed row.
fn sees(dims: &Attention, segments: &[i32], i: usize, j: usize) -> bool {
    segments[i] >= 0
        && segments[i] == segments[j]
        && (!dims.is_causal || j <= i)
        && dims.window.is_none_or(|window| i.abs_diff(j) < window)
}

/// `(o, lse)` in f64.
fn naive(dims: &Attention, q: &[f64], k: &[f64], v: &[f64], segments: &[i32]) -> (Vec<f64>, Vec<f64>) {
    let (hd, q_cols, kv_cols) = (dims.head_dim, dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim);
    let (mut o, mut lse) = (vec![0.0; q.len()], vec![]);
    for row in 0..dims.rows {
        let first = row * dims.seq;
        for i in 0..dims.seq {
            for h in 0..dims.heads {
                let kv = h / (dims.heads / dims.kv_heads) * hd;
                let seen: Vec<usize> =
                    (0..dims.seq).filter(|&j| sees(dims, &segments[first..first + dims.seq], i, j)).collect();
                let at = (first + i) * q_cols + h * hd;
                let key = |j: usize| (first + j) * kv_cols + kv;
                let scores: Vec<f64> = seen
                    .iter()
                    .map(|&j| f64::from(dims.scale) * dot(&q[at..at + hd], &k[key(j)..key(j) + hd]))
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                lse.push(if seen.is_empty() { f64::NEG_INFINITY } else { max + sum.ln() });
                for (&j, s) in seen.iter().zip(&scores) {
                    (0..hd).for_each(|d| o[at + d] += (s - max).exp() / sum * v[key(j) + d]);
                }
            }
        }
    }
    (o, lse)
}

struct Problem {
    dims: Attention,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_o: Vec<f32>,
    segments: Vec<i32>,
}

impl Problem {
    fn new(dims: Attention) -> Problem {
        let tokens = dims.rows * dims.seq;
        let (q, kv) = (tokens * dims.heads * dims.head_dim, tokens * dims.kv_heads * dims.head_dim);
        let segments = (0..tokens).map(|t| document(t % dims.seq, dims.seq)).collect();
        let q_values = values(1, q).iter().map(|x| x * 3.0).collect();
        Problem { dims, q: q_values, k: values(2, kv), v: values(3, kv), d_o: values(4, q), segments }
    }

    fn with_segments(mut self, f: impl Fn(usize) -> i32) -> Problem {
        self.segments = (0..self.segments.len()).map(|t| f(t % self.dims.seq)).collect();
        self
    }

    /// `[o, lse, dq, dk, dv]`.
    fn run(&self) -> [Vec<f32>; 5] {
        let (q, kv, lse) = (self.q.len(), self.k.len(), self.dims.rows * self.dims.seq * self.dims.heads);
        everywhere([q, lse, q, kv, kv], |par, [o, lse, dq, dk, dv]| {
            let (q, k, v, segments) = (&self.q, &self.k, &self.v, &self.segments);
            let mut scratch = vec![0xff; attention_scratch_bytes(&self.dims, par.threads())];
            attention(par, &self.dims, q, k, v, segments, o, lse, &mut scratch);
            let mut scratch = vec![0xff; attention_grad_scratch_bytes(&self.dims, par.threads())];
            let saved = Saved { q, k, v, o, lse, d_o: &self.d_o, segments };
            attention_grad(par, &self.dims, &saved, dq, dk, dv, &mut scratch);
        })
    }

    fn check(&self) -> [Vec<f32>; 5] {
        println!("{:?}", self.dims);
        let out = self.run();
        let (q, k, v) = (wide(&self.q), wide(&self.k), wide(&self.v));
        let (o, lse) = naive(&self.dims, &q, &k, &v, &self.segments);
        assert_close(&out[0], &o, 2e-6);
        assert_close(&out[1], &lse, 2e-6);
        let [dq, dk, dv] = self.naive_gradients(&o, &lse);
        assert_close(&out[2], &dq, 1e-5);
        assert_close(&out[3], &dk, 1e-5);
        assert_close(&out[4], &dv, 1e-5);
        out
    }

    /// The textbook's gradients; `small_gradients_are_finite_differences` holds them against the naive form.
    fn naive_gradients(&self, o: &[f64], lse: &[f64]) -> [Vec<f64>; 3] {
        let dims = &self.dims;
        let (q, k, v, d_o) = (wide(&self.q), wide(&self.k), wide(&self.v), wide(&self.d_o));
        let (hd, q_cols, kv_cols) = (dims.head_dim, dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim);
        let scale = f64::from(dims.scale);
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        for t in 0..dims.rows * dims.seq {
            let (first, i) = (t / dims.seq * dims.seq, t % dims.seq);
            for h in 0..dims.heads {
                let at = t * q_cols + h * hd;
                let delta = dot(&o[at..at + hd], &d_o[at..at + hd]);
                for j in (0..dims.seq).filter(|&j| sees(dims, &self.segments[first..first + dims.seq], i, j)) {
                    let key = (first + j) * kv_cols + h / (dims.heads / dims.kv_heads) * hd;
                    let score = scale * dot(&q[at..at + hd], &k[key..key + hd]);
                    let p = (score - lse[t * dims.heads + h]).exp();
                    let ds = p * (dot(&d_o[at..at + hd], &v[key..key + hd]) - delta) * scale;
                    for d in 0..hd {
                        dq[at + d] += ds * k[key + d];
                        dk[key + d] += ds * q[at + d];
                        dv[key + d] += p * d_o[at + d];
                    }
                }
            }
        }
        [dq, dk, dv]
    }
}

/// Three documents and some padding in a packed row.
fn document(t: usize, seq: usize) -> i32 {
    if t + 1 == seq && seq > 4 { -1 } else { (t * 3 / seq) as i32 }
}

fn dims(rows: usize, seq: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Attention {
    let scale = 1.0 / (head_dim as f32).sqrt();
    Attention { rows, seq, heads, kv_heads, head_dim, scale, is_causal: true, window: None }
}

#[test]
fn head_dimensions() {
    for head_dim in [1, 8, 16, 64, 80, 128] {
        Problem::new(dims(2, 70, 2, 1, head_dim)).check();
    }
}

#[test]
fn lengths_around_the_tiles() {
    for seq in [1, 2, 31, 32, 33, 63, 64, 65, 96, 129, 200] {
        Problem::new(dims(1, seq, 1, 1, 16)).with_segments(|_| 0).check();
        Problem::new(dims(2, seq, 3, 3, 8)).check();
    }
}

#[test]
fn masks() {
    for is_causal in [true, false] {
        for window in [None, Some(1), Some(5), Some(40), Some(100), Some(usize::MAX)] {
            let dims = Attention { is_causal, window, ..dims(1, 150, 3, 1, 16) };
            Problem::new(dims).check();
            Problem::new(dims).with_segments(|_| 7).check();
            // Segments that alternate, so that no tile is plain.
            Problem::new(dims).with_segments(|t| (t % 3) as i32 - 1).check();
        }
    }
}

#[test]
fn what_sees_nothing_gets_zeros() {
    let [o, lse, dq, dk, dv] =
        Problem::new(dims(2, 40, 2, 1, 16)).with_segments(|t| if t < 35 { -1 } else { 0 }).check();
    for row in 0..2 {
        let tokens = row * 40..row * 40 + 35;
        assert!(o[tokens.start * 32..tokens.end * 32].iter().all(|&x| x == 0.0));
        assert!(dq[tokens.start * 32..tokens.end * 32].iter().all(|&x| x == 0.0));
        assert!(lse[tokens.start * 2..tokens.end * 2].iter().all(|&x| x == f32::NEG_INFINITY));
        assert!(dk[tokens.start * 16..tokens.end * 16].iter().all(|&x| x == 0.0));
        assert!(dv[tokens.start * 16..tokens.end * 16].iter().all(|&x| x == 0.0));
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let mut problem = Problem::new(dims(1, 80, 1, 1, 16));
    problem.q.iter_mut().for_each(|q| *q *= 100.0);
    let out = problem.run();
    assert!(out.iter().flatten().all(|x| x.is_finite() || *x == f32::NEG_INFINITY));
}

#[test]
fn small_gradients_are_finite_differences() {
    let problem = Problem::new(dims(1, 6, 2, 1, 4));
    let (q, k, v, d_o) = (wide(&problem.q), wide(&problem.k), wide(&problem.v), wide(&problem.d_o));
    let out = problem.run();
    let loss = |q: &[f64], k: &[f64], v: &[f64]| dot(&naive(&problem.dims, q, k, v, &problem.segments).0, &d_o);
    assert_close(&out[2], &differences(&q, |q| loss(q, &k, &v)), 1e-5);
    assert_close(&out[3], &differences(&k, |k| loss(&q, k, &v)), 1e-5);
    assert_close(&out[4], &differences(&v, |v| loss(&q, &k, v)), 1e-5);
}

/// With few heads for many threads the gradients of keys and queries are computed apart.
#[test]
fn many_threads_change_no_bit() {
    for (kv_heads, window) in [(1, None), (3, Some(50))] {
        let problem = Problem::new(Attention { window, ..dims(1, 150, 3, kv_heads, 16) });
        let [o, lse, expected @ ..] = problem.run();
        let (q, k, v, segments) = (&problem.q, &problem.k, &problem.v, &problem.segments);
        let par = Par::new(8, 1 << 20).unwrap();
        let mut scratch = vec![0xff; attention_grad_scratch_bytes(&problem.dims, 8)];
        let saved = Saved { q, k, v, o: &o, lse: &lse, d_o: &problem.d_o, segments };
        let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| vec![f32::NAN; x.len()]);
        attention_grad(&par, &problem.dims, &saved, &mut dq, &mut dk, &mut dv, &mut scratch);
        [dq, dk, dv].iter().zip(&expected).for_each(|(a, b)| assert_same(a, b, "eight threads"));
    }
}

#[test]
fn packed_rows_are_independent() {
    let both = Problem::new(dims(2, 45, 3, 1, 16));
    let out = both.run();
    let half = |x: &[f32], row: usize| x[row * x.len() / 2..(row + 1) * x.len() / 2].to_vec();
    for row in 0..2 {
        let alone = Problem {
            dims: Attention { rows: 1, ..both.dims },
            q: half(&both.q, row),
            k: half(&both.k, row),
            v: half(&both.v, row),
            d_o: half(&both.d_o, row),
            segments: both.segments[row * 45..(row + 1) * 45].to_vec(),
        };
        let expected = alone.run();
        out.iter().zip(&expected).for_each(|(all, one)| assert_same(&half(all, row), one, "packed row"));
    }
}

/// Queries at `positions` of a cache of `context` entries, against the naive form one by one.
fn check_cached(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>, positions: &[i32]) {
    let context = 300;
    let cached = CachedAttention { heads, kv_heads, head_dim, scale: 0.3, window };
    let q = values(1, positions.len() * heads * head_dim);
    let (k, v) = (values(2, context * kv_heads * head_dim), values(3, context * kv_heads * head_dim));
    let [o] = everywhere([q.len()], |par, [o]| {
        let bytes = attention_cached_scratch_bytes(&cached, positions.len(), context, par.threads());
        attention_cached(par, &cached, &q, &k, &v, positions, o, &mut vec![0xff; bytes]).unwrap();
    });
    let (q, k, v) = (wide(&q), wide(&k), wide(&v));
    for (t, &position) in positions.iter().enumerate() {
        let row = t * heads * head_dim..(t + 1) * heads * head_dim;
        if position < 0 {
            assert!(o[row].iter().all(|&x| x == 0.0));
            continue;
        }
        // The last token of a packed row that holds the cache up to its position.
        let seq = position as usize + 1;
        let dims = Attention { rows: 1, seq, heads, kv_heads, head_dim, scale: 0.3, is_causal: true, window };
        let mut all = vec![0.0; seq * heads * head_dim];
        let last = all.len() - heads * head_dim;
        all[last..].copy_from_slice(&q[row.clone()]);
        let (expected, _) = naive(&dims, &all, &k, &v, &vec![0; seq]);
        assert_close(&o[row], &expected[last..], 2e-6);
    }
}

#[test]
fn cached_attention_is_the_naive_form() {
    let many: Vec<i32> = (0..70).map(|t| if t == 9 { -1 } else { t * 4 }).collect();
    for window in [None, Some(1), Some(33), Some(1000)] {
        for head_dim in [8, 16, 64, 80] {
            check_cached(3, 1, head_dim, window, &[0, 299, -1]);
            check_cached(2, 2, head_dim, window, &[127, 128, 129, 130, 5, 64, 63]);
        }
        check_cached(2, 1, 16, window, &many);
        check_cached(2, 1, 16, window, &many[..8]);
    }
    check_cached(2, 1, 16, None, &[-1; 10]);
    check_cached(2, 1, 16, None, &[]);
}

#[test]
fn the_cache_is_written_by_position() {
    let mut cache = vec![0.0; 8];
    kv_write(2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, -1, 0], &mut cache).unwrap();
    assert_eq!(cache, [5.0, 6.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
    let error = kv_write(2, &[7.0, 7.0, 7.0, 7.0], &[1, 4], &mut cache).unwrap_err();
    assert_eq!((error.what, error.at, error.value, error.limit), ("position", 1, 4, 4));
    assert_eq!(cache[2], 0.0);
    let dims = CachedAttention { heads: 1, kv_heads: 1, head_dim: 2, scale: 1.0, window: None };
    let result = attention_cached(&one(), &dims, &[0.0; 2], &cache, &cache, &[4], &mut [0.0; 2], &mut []);
    assert_eq!(result.unwrap_err().value, 4);
}
