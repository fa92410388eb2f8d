use crate::common::*;
use half::bf16;
use tinyforge_kernels::f32::optimizer::*;
use tinyforge_kernels::random::Stream;

const ADAMW: AdamW = AdamW {
    lr: 1e-2,
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-8,
    weight_decay: 0.1,
    bias1: 1.0 - 0.9 * 0.9,
    bias2: 1.0 - 0.99 * 0.99,
    grad_scale: 0.5,
};

const STREAM: Stream = Stream { seed: 11, step: 3, tensor: 5 };

fn plain(w: &mut [f32]) -> Target<'_> {
    Target { weights: Weights::F32(w), columns: None, offset: 0 }
}

/// One AdamW step in f64.
fn naive_adamw(a: &AdamW, w: f64, g: f64, m: f64, v: f64) -> (f64, f64, f64) {
    let f = f64::from;
    let g = g * f(a.grad_scale);
    let (m, v) = (f(a.beta1) * m + (1.0 - f(a.beta1)) * g, f(a.beta2) * v + (1.0 - f(a.beta2)) * g * g);
    let w = w * (1.0 - f(a.lr) * f(a.weight_decay));
    (w - f(a.lr) / f(a.bias1) * m / (v.sqrt() / f(a.bias2).sqrt() + f(a.eps)), m, v)
}

#[test]
fn adamw_is_the_naive_form() {
    for len in LENGTHS {
        let (w0, g, m0) = (values(1, len), values(2, len), values(3, len));
        let v0: Vec<f32> = values(4, len).iter().map(|v| v * v).collect();
        let [w, m, v] = everywhere([len; 3], |par, [w, m, v]| {
            w.copy_from_slice(&w0);
            m.copy_from_slice(&m0);
            v.copy_from_slice(&v0);
            update_adamw(par, &ADAMW, plain(w), &g, m, v);
        });
        let f = f64::from;
        let expected: Vec<_> = (0..len).map(|i| naive_adamw(&ADAMW, f(w0[i]), f(g[i]), f(m0[i]), f(v0[i]))).collect();
        assert_close(&w, &expected.iter().map(|e| e.0).collect::<Vec<_>>(), 1e-6);
        assert_close(&m, &expected.iter().map(|e| e.1).collect::<Vec<_>>(), 1e-6);
        assert_close(&v, &expected.iter().map(|e| e.2).collect::<Vec<_>>(), 1e-6);
    }
}

#[test]
fn sgd_is_the_naive_form() {
    let sgd = Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.01, grad_scale: 2.0 };
    for len in LENGTHS {
        let (w0, g, m0) = (values(1, len), values(2, len), values(3, len));
        let [w, m, without] = everywhere([len; 3], |par, [w, m, without]| {
            w.copy_from_slice(&w0);
            m.copy_from_slice(&m0);
            update_sgd(par, &sgd, plain(w), &g, Some(m));
            without.copy_from_slice(&w0);
            update_sgd(par, &Sgd { momentum: 0.0, ..sgd }, plain(without), &g, None);
        });
        for i in 0..len {
            let grad = 2.0 * f64::from(g[i]) + 0.01 * f64::from(w0[i]);
            let moment = 0.9 * f64::from(m0[i]) + grad;
            assert_close(&[m[i], w[i]], &[moment, f64::from(w0[i]) - 0.1 * moment], 1e-6);
            assert_close(&[without[i]], &[f64::from(w0[i]) - 0.1 * grad], 1e-6);
        }
    }
}

/// All states of one tensor.
#[derive(Clone)]
struct Coded {
    w: Vec<bf16>,
    m: (Vec<u8>, Vec<f32>),
    v: (Vec<u8>, Vec<f32>),
}

impl Coded {
    fn new(len: usize) -> Coded {
        let state = (vec![0; len], vec![0.0; len.div_ceil(BLOCK)]);
        let w = values(1, len).iter().map(|&w| bf16::from_f32(w)).collect();
        Coded { w, m: state.clone(), v: state }
    }

    fn update(&mut self, threads: usize, g: &[f32], elems: std::ops::Range<usize>) {
        let blocks = elems.start / BLOCK..elems.end.div_ceil(BLOCK);
        let weights = Weights::Bf16(&mut self.w[elems.clone()], STREAM);
        let target = Target { weights, columns: None, offset: elems.start as u64 };
        let m = Codes { codes: &mut self.m.0[elems.clone()], scales: &mut self.m.1[blocks.clone()] };
        let v = Codes { codes: &mut self.v.0[elems.clone()], scales: &mut self.v.1[blocks] };
        let par = tinyforge_kernels::par::Par::new(threads, 1 << 20).unwrap();
        update_adamw8(&par, &ADAMW, target, &g[elems], m, v);
    }
}

#[test]
fn panels_and_threads_change_no_bit() {
    let len = 10_000;
    let g = values(2, len);
    let mut whole = Coded::new(len);
    whole.update(1, &g, 0..len);
    for threads in [1, 2] {
        for panel in [BLOCK, 3 * BLOCK, 17 * BLOCK, len] {
            let mut parts = Coded::new(len);
            for start in (0..len).step_by(panel) {
                parts.update(threads, &g, start..len.min(start + panel));
            }
            assert!(parts.w == whole.w && parts.m == whole.m && parts.v == whole.v, "panels of {panel}");
        }
    }
}

#[test]
fn eight_bit_states_follow_full_ones() {
    let len = 1000;
    let mut coded = Coded::new(len);
    let mut w: Vec<f32> = coded.w.iter().map(|w| w.to_f32()).collect();
    let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
    let (mut m8, mut v8) = (coded.m.clone(), coded.v.clone());
    let mut w8 = w.clone();
    for step in 0..50 {
        let g: Vec<f32> = values(100 + step, len).iter().map(|g| g + 0.3).collect();
        update_adamw(&one(), &ADAMW, plain(&mut w), &g, &mut m, &mut v);
        let (m8, v8) = (Codes { codes: &mut m8.0, scales: &mut m8.1 }, Codes { codes: &mut v8.0, scales: &mut v8.1 });
        update_adamw8(&one(), &ADAMW, plain(&mut w8), &g, m8, v8);
        coded.update(1, &g, 0..len);
    }
    let moved: f64 = w.iter().zip(&coded.w).map(|(a, b)| f64::from((a - b.to_f32()).abs())).sum::<f64>() / len as f64;
    let moved8: f64 = w.iter().zip(&w8).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / len as f64;
    let travelled: f64 =
        w.iter().zip(&Coded::new(len).w).map(|(a, b)| f64::from((a - b.to_f32()).abs())).sum::<f64>() / len as f64;
    assert!(moved8 < 0.05 * travelled, "{moved8} of {travelled}");
    assert!(moved < 0.15 * travelled, "{moved} of {travelled}");
}

#[test]
fn chosen_columns_are_updated_and_no_others() {
    let (rows, cols, index) = (70, 9, [0, 3, 8]);
    let chosen = |w: &[f32]| -> Vec<f32> { w.chunks(cols).flat_map(|w| index.map(|i| w[i as usize])).collect() };
    let (w0, g) = (values(1, rows * cols), values(2, rows * 3));
    let (m0, v0) = (values(3, rows * 3), vec![0.5; rows * 3]);
    let [w, m, v, dense, dense_m, dense_v] = everywhere(
        [w0.len(), g.len(), g.len(), g.len(), g.len(), g.len()],
        |par, [w, m, v, dense, dense_m, dense_v]| {
            w.copy_from_slice(&w0);
            dense.copy_from_slice(&chosen(&w0));
            [&mut *m, dense_m].into_iter().for_each(|x| x.copy_from_slice(&m0));
            [&mut *v, dense_v].into_iter().for_each(|x| x.copy_from_slice(&v0));
            let columns = Some(Columns { cols, index: &index });
            update_adamw(par, &ADAMW, Target { weights: Weights::F32(w), columns, offset: 0 }, &g, m, v);
            update_adamw(par, &ADAMW, plain(dense), &g, dense_m, dense_v);
        },
    );
    assert_same(&chosen(&w), &dense, "chosen weights");
    assert_same(&m, &dense_m, "first moments");
    assert_same(&v, &dense_v, "second moments");
    for (i, (&new, &old)) in w.iter().zip(&w0).enumerate() {
        assert!(index.contains(&((i % cols) as i32)) || new.to_bits() == old.to_bits(), "element {i} changed");
    }
}

#[test]
#[should_panic(expected = "must ascend")]
fn columns_out_of_order_are_refused() {
    let columns = Some(Columns { cols: 4, index: &[2, 2] });
    let target = Target { weights: Weights::F32(&mut [0.0; 4]), columns, offset: 0 };
    update_adamw(&one(), &ADAMW, target, &[0.0; 2], &mut [0.0; 2], &mut [0.0; 2]);
}

#[test]
fn tables_ascend_and_codes_are_nearest() {
    for (table, low) in [(&SIGNED, -1.0f32), (&UNSIGNED, 0.0)] {
        let values = table.values();
        assert!(values.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(values[255], 1.0);
        assert!(values.contains(&0.0));
        for i in 0..=20_000 {
            let x = low + (1.0 - low) * i as f32 / 20_000.0;
            let best = values.iter().map(|v| (v - x).abs()).fold(f32::INFINITY, f32::min);
            let found = (values[usize::from(table.nearest(x))] - x).abs();
            assert!(found <= best + 3e-7, "{x}: {found} instead of {best}");
        }
        for (code, &value) in values.iter().enumerate() {
            assert_eq!(usize::from(table.nearest(value)), code);
        }
    }
}

#[test]
fn stochastic_rounding_is_unbiased_and_stays_next_door() {
    for x in [1.003_f32, -0.7001, 3.3e-5, 1.0] {
        let mut sum = 0.0;
        for i in 0..40_000 {
            let rounded = round_stochastic(x, STREAM.bits16(i)).to_f32();
            assert!((rounded - x).abs() < x.abs() / 128.0);
            sum += f64::from(rounded);
        }
        let mean = sum / 40_000.0;
        assert!((mean - f64::from(x)).abs() < f64::from(x.abs()) * 1e-4, "{x}: {mean}");
    }
    assert!(round_stochastic(f32::NAN, u16::MAX).is_nan());
    assert_eq!(round_stochastic(f32::INFINITY, u16::MAX), bf16::INFINITY);
}

#[test]
fn bf16_weights_are_full_ones_rounded_by_the_place_in_the_tensor() {
    let (len, offset) = (5000, 7 * BLOCK as u64);
    let g = values(2, len);
    let start: Vec<bf16> = values(1, len).iter().map(|&w| bf16::from_f32(w)).collect();
    let (mut w, mut full) = (start.clone(), start.iter().map(|w| w.to_f32()).collect::<Vec<_>>());
    let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
    update_adamw(&one(), &ADAMW, plain(&mut full), &g, &mut m, &mut v);
    let target = Target { weights: Weights::Bf16(&mut w, STREAM), columns: None, offset };
    update_adamw(&one(), &ADAMW, target, &g, &mut vec![0.0; len], &mut vec![0.0; len]);
    for (i, (&w, &full)) in w.iter().zip(&full).enumerate() {
        assert_eq!(w, round_stochastic(full, STREAM.bits16(offset + i as u64)), "element {i}");
    }
}

/// A learning rate too small for a bf16 weight to see it in one step still moves the mean.
#[test]
fn small_updates_are_not_lost_in_bf16() {
    let len = 4096;
    let mut w = vec![bf16::from_f32(1.0); len];
    let sgd = Sgd { lr: 1e-4, momentum: 0.0, weight_decay: 0.0, grad_scale: 1.0 };
    for step in 0..100 {
        let weights = Weights::Bf16(&mut w, Stream { step, ..STREAM });
        update_sgd(&one(), &sgd, Target { weights, columns: None, offset: 0 }, &vec![1.0; len], None);
    }
    let mean = w.iter().map(|w| f64::from(w.to_f32())).sum::<f64>() / len as f64;
    assert!((mean - 0.99).abs() < 1e-3, "{mean}");
}
