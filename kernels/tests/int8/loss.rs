//! Softmax and cross-entropy, against f64.

use super::Dice;
use tinyforge_kernels::int8::{CrossEntropy, Softmax, i8_cross_entropy, i8_cross_entropy_grad, i8_softmax};

fn softmax(x: &[i8], scale: f64, zero: i32) -> Vec<f64> {
    let l: Vec<f64> = x.iter().map(|x| scale * f64::from(i32::from(*x) - zero)).collect();
    let max = l.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = l.iter().map(|l| (l - max).exp()).sum();
    l.iter().map(|l| (l - max).exp() / sum).collect()
}

#[test]
fn the_loss_is_cross_entropy_and_its_gradient() {
    for classes in [1, 2, 10, 100] {
        let mut dice = Dice::new(classes as u64);
        let dims = CrossEntropy { classes, scale: 0.07, zero: -20 };
        let x = dice.i8s(3 * classes);
        let label = [0, -1, classes as i32 - 1];
        let (weight, dloss) = ([0.5, 0.5, 0.25], [1.0, 1.0, 2.0]);
        let (mut loss, mut g) = ([9.0; 3], vec![9.0; x.len()]);
        i8_cross_entropy(&dims, &x, &label, &weight, &mut loss);
        i8_cross_entropy_grad(&dims, &x, &label, &weight, &dloss, &mut g);
        for n in 0..3 {
            let p = softmax(&x[n * classes..][..classes], 0.07, -20);
            let counts = label[n] >= 0;
            let expected = if counts { -p[label[n] as usize].ln() * f64::from(weight[n]) } else { 0.0 };
            assert!((f64::from(loss[n]) - expected).abs() < 1e-5 * (1.0 + expected), "{} {expected}", loss[n]);
            for i in 0..classes {
                let hot = if i as i32 == label[n] { 1.0 } else { 0.0 };
                let expected = (p[i] - hot) * 0.07 * f64::from(weight[n]) * f64::from(dloss[n]);
                let expected = if counts { expected } else { 0.0 };
                assert!((f64::from(g[n * classes + i]) - expected).abs() < 1e-7);
            }
        }
    }
}

#[test]
fn a_label_past_the_classes_counts_for_nothing() {
    let dims = CrossEntropy { classes: 2, scale: 1.0, zero: 0 };
    let (mut loss, mut g) = ([9.0], [9.0; 2]);
    i8_cross_entropy(&dims, &[1, 2], &[2], &[1.0], &mut loss);
    i8_cross_entropy_grad(&dims, &[1, 2], &[2], &[1.0], &[1.0], &mut g);
    assert_eq!((loss, g), ([0.0], [0.0; 2]));
}

#[test]
fn softmax_rounds_to_the_nearest_step() {
    for classes in [1, 2, 10, 37] {
        let x = Dice::new(classes as u64).i8s(4 * classes);
        let mut y = vec![0; x.len()];
        let dims = Softmax { scale_x: 0.05, zero_x: 4, scale_y: 1.0 / 256.0, zero_y: -128 };
        i8_softmax(&dims, classes, &x, &mut y);
        for (x, y) in x.chunks(classes).zip(y.chunks(classes)) {
            for (p, y) in softmax(x, 0.05, 4).iter().zip(y) {
                let exact = (p * 256.0 - 128.0).min(127.0);
                assert!((f64::from(*y) - exact).abs() < 0.501, "{y} is not {exact}");
            }
        }
    }
}
