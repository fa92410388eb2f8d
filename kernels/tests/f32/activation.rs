use crate::common::*;
use tinyforge_kernels::f32::activation::*;
use tinyforge_kernels::par::Par;

type Forward = fn(&Par, Option<&[f32]>, &mut [f32]);
type Backward = fn(&Par, &[f32], Option<&[f32]>, &mut [f32]);

/// An activation, its gradient, which of input and output the gradient reads, and the f64 form.
struct Case {
    name: &'static str,
    forward: Forward,
    backward: Backward,
    reads_output: bool,
    naive: fn(f64) -> f64,
}

const CASES: [Case; 7] = [
    Case { name: "relu", forward: relu, backward: relu_grad, reads_output: true, naive: |x| x.max(0.0) },
    Case { name: "relu6", forward: relu6, backward: relu6_grad, reads_output: true, naive: |x| x.clamp(0.0, 6.0) },
    Case { name: "gelu", forward: gelu, backward: gelu_grad, reads_output: false, naive: naive_gelu },
    Case {
        name: "gelu_tanh",
        forward: gelu_tanh,
        backward: gelu_tanh_grad,
        reads_output: false,
        naive: naive_gelu_tanh,
    },
    Case { name: "silu", forward: silu, backward: silu_grad, reads_output: false, naive: naive_silu },
    Case { name: "sigmoid", forward: sigmoid, backward: sigmoid_grad, reads_output: true, naive: naive_sigmoid },
    Case { name: "tanh", forward: tanh, backward: tanh_grad, reads_output: true, naive: f64::tanh },
];

fn naive_sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn naive_silu(x: f64) -> f64 {
    x * naive_sigmoid(x)
}

fn naive_gelu(x: f64) -> f64 {
    x * 0.5 * libm::erfc(-x / 2f64.sqrt())
}

fn naive_gelu_tanh(x: f64) -> f64 {
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + u.tanh())
}

/// Values over the whole interesting range, none on a kink.
fn inputs(len: usize) -> Vec<f32> {
    values(1, len).iter().map(|x| x * 12.0 + 0.001).collect()
}

#[test]
fn forward_is_the_naive_form() {
    for case in &CASES {
        for len in LENGTHS {
            let x = inputs(len);
            let [y, in_place] = everywhere([len, len], |par, [y, z]| {
                (case.forward)(par, Some(&x), y);
                z.copy_from_slice(&x);
                (case.forward)(par, None, z);
            });
            println!("{} of {len}", case.name);
            assert_close(&y, &wide(&x).into_iter().map(case.naive).collect::<Vec<_>>(), 4e-7);
            assert_same(&y, &in_place, case.name);
        }
    }
}

#[test]
fn backward_is_the_slope() {
    for case in &CASES {
        for len in LENGTHS {
            let (x, dy) = (inputs(len), values(2, len));
            let [saved, dx, in_place] = everywhere([len, len, len], |par, [saved, dx, z]| {
                saved.copy_from_slice(&x);
                if case.reads_output {
                    (case.forward)(par, None, saved);
                }
                (case.backward)(par, saved, Some(&dy), dx);
                z.copy_from_slice(&dy);
                (case.backward)(par, saved, None, z);
            });
            let slope = |x: f64| ((case.naive)(x + 1e-6) - (case.naive)(x - 1e-6)) / 2e-6;
            let expected: Vec<f64> = x.iter().zip(&dy).map(|(&x, &dy)| f64::from(dy) * slope(f64::from(x))).collect();
            println!("{} of {len}", case.name);
            assert_close(&dx, &expected, 2e-6);
            assert_same(&dx, &in_place, case.name);
            assert_eq!(saved.len(), len);
        }
    }
}

#[test]
fn swiglu_and_its_gradient() {
    for len in LENGTHS {
        let (gate, up, dy) = (inputs(len), values(3, len), values(4, len));
        let [y, dgate, dup, y2, dgate2, dup2] = everywhere([len; 6], |par, [y, dgate, dup, y2, dgate2, dup2]| {
            swiglu(par, Some(&gate), &up, y);
            swiglu_grad(par, Some(&gate), Some(&up), &dy, dgate, dup);
            y2.copy_from_slice(&gate);
            swiglu(par, None, &up, y2);
            dgate2.copy_from_slice(&gate);
            dup2.copy_from_slice(&up);
            swiglu_grad(par, None, None, &dy, dgate2, dup2);
        });
        let (g, u, d) = (wide(&gate), wide(&up), wide(&dy));
        let slope = |x: f64| (naive_silu(x + 1e-6) - naive_silu(x - 1e-6)) / 2e-6;
        assert_close(&y, &(0..len).map(|i| naive_silu(g[i]) * u[i]).collect::<Vec<_>>(), 1e-6);
        assert_close(&dgate, &(0..len).map(|i| d[i] * u[i] * slope(g[i])).collect::<Vec<_>>(), 2e-6);
        assert_close(&dup, &(0..len).map(|i| d[i] * naive_silu(g[i])).collect::<Vec<_>>(), 1e-6);
        assert_same(&y, &y2, "y in place");
        assert_same(&dgate, &dgate2, "dgate in place");
        assert_same(&dup, &dup2, "dup in place");
    }
}

#[test]
fn extremes_are_finite_or_right() {
    let x = [f32::NEG_INFINITY, -200.0, -90.0, -0.0, 0.0, 90.0, 200.0, f32::INFINITY, f32::NAN, 1e-30, -1e-30];
    let run = |f: Forward| everywhere([x.len()], |par, [y]| f(par, Some(&x), y))[0].clone();
    let y = run(sigmoid);
    assert_eq!(&y[..2], &[0.0, 0.0]);
    assert_eq!(&y[5..8], &[1.0, 1.0, 1.0]);
    assert!(y[8].is_nan());
    let y = run(tanh);
    assert_eq!((y[0], y[7]), (-1.0, 1.0));
    assert_eq!((y[9], y[10]), (1e-30, -1e-30));
    assert!(y[8].is_nan());
    let y = run(gelu);
    assert_eq!((y[1], y[6]), (0.0, 200.0));
}

#[test]
fn lower_tail_of_gelu_keeps_its_digits() {
    let x: Vec<f32> = (0..64).map(|i| -(i as f32) * 0.125).collect();
    let [y] = everywhere([x.len()], |par, [y]| gelu(par, Some(&x), y));
    for (&x, &y) in x.iter().zip(&y) {
        let expected = naive_gelu(f64::from(x));
        assert!(
            (f64::from(y) - expected).abs() <= 2e-6 * (1.0 + f64::from(x * x)) * expected.abs(),
            "{x}: {y} {expected}"
        );
    }
}
