use crate::common::*;
use half::{bf16, f16};
use tinyforge_kernels::f32::elementwise::*;

#[test]
fn sums_and_products() {
    for len in LENGTHS {
        let (a, b) = (values(1, len), values(2, len));
        let y = everywhere([len; 8], |par, y| {
            for (i, first) in [Some(&a[..]), None].into_iter().enumerate() {
                y[i * 4..i * 4 + 4].iter_mut().for_each(|y| y.copy_from_slice(&a));
                add(par, first, &b, &mut y[i * 4]);
                add_scaled(par, first, 0.5, &b, &mut y[i * 4 + 1]);
                mul(par, first, &b, &mut y[i * 4 + 2]);
                scale(par, first, -3.0, &mut y[i * 4 + 3]);
            }
        });
        for i in 0..len {
            let expected = [a[i] + b[i], b[i].mul_add(0.5, a[i]), a[i] * b[i], a[i] * -3.0];
            for k in 0..4 {
                assert_eq!((y[k][i], y[k + 4][i]), (expected[k], expected[k]), "operation {k} at {i}");
            }
        }
    }
}

#[test]
fn bias_and_its_gradient() {
    for (rows, seq, cols) in [(1, 1, 1), (2, 3, 17), (3, 5, 64), (2, 7, 65), (1, 40, 700)] {
        let tokens = rows * seq;
        let (x, b, dy, db0) = (values(1, tokens * cols), values(2, cols), values(3, tokens * cols), values(4, cols));
        let [y, y2, db, sum] = everywhere([x.len(), x.len(), cols, cols], |par, [y, y2, db, sum]| {
            add_row(par, Some(&x), &b, y);
            y2.copy_from_slice(&x);
            add_row(par, None, &b, y2);
            sum_rows(par, &dy, seq, false, db);
            sum.copy_from_slice(&db0);
            sum_rows(par, &dy, seq, true, sum);
        });
        for i in 0..x.len() {
            assert_eq!((y[i], y2[i]), (x[i] + b[i % cols], x[i] + b[i % cols]));
        }
        let naive: Vec<f64> = (0..cols).map(|c| (0..tokens).map(|t| f64::from(dy[t * cols + c])).sum()).collect();
        assert_close(&db, &naive, 1e-5);
        // One call of all rows is one call a row.
        let mut by_row = db0.clone();
        dy.chunks(seq * cols).for_each(|dy| sum_rows(&one(), dy, seq, true, &mut by_row));
        assert_same(&sum, &by_row, "micro-batches");
    }
}

#[test]
fn conversions_round_to_nearest_even() {
    let mut x = values(5, 5000);
    x.extend([
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1e-40,
        f32::MAX,
        65504.0,
        1.003_906_2,
        1.011_718_8,
    ]);
    for par in [one()] {
        let mut b = vec![bf16::ZERO; x.len()];
        convert(&par, &x, &mut b);
        let mut h = vec![f16::ZERO; x.len()];
        convert(&par, &x, &mut h);
        let (mut from_b, mut from_h) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        convert(&par, &b, &mut from_b);
        convert(&par, &h, &mut from_h);
        for (i, &x) in x.iter().enumerate() {
            assert_eq!(b[i].to_bits(), bf16::from_f32(x).to_bits(), "bf16 of {x}");
            assert_eq!(h[i].to_bits(), f16::from_f32(x).to_bits(), "f16 of {x}");
            assert!(from_b[i] == b[i].to_f32() || x.is_nan());
            assert!(from_h[i] == h[i].to_f32() || x.is_nan());
        }
    }
}

#[test]
fn columns_move() {
    let (rows, widths) = (37, [5, 16, 3]);
    let cols: usize = widths.iter().sum();
    let x = values(1, rows * cols);
    let [a, b, c, back] = everywhere([rows * 5, rows * 16, rows * 3, rows * cols], |par, [a, b, c, back]| {
        split_cols(par, &x, rows, [a, b, c]);
        concat_cols(par, [a, b, c], rows, back);
    });
    assert_same(&back, &x, "split and joined");
    assert_eq!((a[5], b[16], c[3]), (x[cols], x[cols + 5], x[cols + 21]));
    let index = [7, 0, 23, 7];
    let [y, t] = everywhere([rows * 4, rows * cols], |par, [y, t]| {
        gather_cols(par, &x, cols, &index, y);
        transpose(par, &x, rows, t);
    });
    for row in 0..rows {
        for (j, &i) in index.iter().enumerate() {
            assert_eq!(y[row * 4 + j], x[row * cols + i as usize]);
        }
        for col in 0..cols {
            assert_eq!(t[col * rows + row], x[row * cols + col]);
        }
    }
}

#[test]
#[should_panic(expected = "not below 3")]
fn gathering_beyond_the_columns_is_refused() {
    gather_cols(&one(), &[0.0; 3], 3, &[3], &mut [0.0]);
}

#[test]
fn norm_is_f64_and_takes_panels() {
    for len in [0, 1, 31, 32, 33, 4095, 4096, 4097, 50_000] {
        let g = values(9, len);
        let naive: f64 = g.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
        let mut results = vec![];
        for threads in [1, 2] {
            let par = tinyforge_kernels::par::Par::new(threads, 1 << 20).unwrap();
            let mut scratch = vec![0; norm_sq_scratch_bytes(len, threads)];
            let mut out = [1.0];
            norm_sq(&par, &g, false, &mut out, &mut scratch);
            results.push(out[0]);
            let mut out = [0.0];
            g.chunks(3 * NORM_CHUNK).for_each(|g| norm_sq(&par, g, true, &mut out, &mut scratch));
            results.push(out[0]);
        }
        assert!(results.iter().all(|x| x.to_bits() == results[0].to_bits()), "{results:?}");
        assert!((results[0] - naive).abs() <= 1e-12 * naive);
    }
}

#[test]
fn what_is_not_finite_is_found() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = values(3, 40_001);
        x[0] = f32::MAX;
        assert!(is_finite(&one(), &x));
        x[40_000] = bad;
        assert!(!is_finite(&one(), &x));
    }
}
