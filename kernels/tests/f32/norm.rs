use crate::common::*;
use tinyforge_kernels::f32::norm::*;

const SHAPES: [(usize, usize, usize, usize); 7] =
    [(1, 1, 1, 1), (1, 3, 1, 15), (2, 2, 1, 16), (2, 5, 3, 17), (3, 4, 2, 64), (1, 3, 1, 577), (2, 2, 4, 80)];

fn norm_of((_, seq, groups, cols): (usize, usize, usize, usize)) -> Norm {
    Norm { cols, groups, seq, eps: 1e-5 }
}

/// Normalises vectors of `w.len()` elements; `centers` for layer norm.
fn naive(x: &[f64], w: &[f64], b: Option<&[f64]>, eps: f64, centers: bool) -> Vec<f64> {
    let cols = w.len();
    let one = |x: &[f64]| {
        let mean = if centers { x.iter().sum::<f64>() / cols as f64 } else { 0.0 };
        let square = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / cols as f64;
        let inverse = 1.0 / (square + eps).sqrt();
        (0..cols).map(|c| (x[c] - mean) * inverse * w[c] + b.map_or(0.0, |b| b[c])).collect::<Vec<_>>()
    };
    x.chunks(cols).flat_map(one).collect()
}

#[test]
fn rms_norm_in_all_its_forms() {
    for shape in SHAPES {
        let norm = norm_of(shape);
        let len = shape.0 * shape.1 * shape.2 * shape.3;
        let (x, r, w) = (values(1, len), values(2, len), values(3, norm.cols));
        let [y, in_place, sum, of_sum, sum2, of_sum2] =
            everywhere([len; 6], |par, [y, z, sum, of_sum, sum2, of_sum2]| {
                rms_norm(par, &norm, Some(&x), &w, y);
                z.copy_from_slice(&x);
                rms_norm(par, &norm, None, &w, z);
                add_rms_norm(par, &norm, Some(&x), &r, &w, sum, of_sum);
                sum2.copy_from_slice(&x);
                add_rms_norm(par, &norm, None, &r, &w, sum2, of_sum2);
            });
        assert_close(&y, &naive(&wide(&x), &wide(&w), None, 1e-5, false), 2e-6);
        assert_same(&y, &in_place, "in place");
        let added: Vec<f32> = x.iter().zip(&r).map(|(x, r)| x + r).collect();
        assert_same(&sum, &added, "sum");
        assert_same(&sum2, &added, "sum in place");
        assert_close(&of_sum, &naive(&wide(&added), &wide(&w), None, 1e-5, false), 2e-6);
        assert_same(&of_sum, &of_sum2, "norm of the sum");
    }
}

#[test]
fn layer_norm_is_the_naive_form() {
    for shape in SHAPES {
        let norm = norm_of(shape);
        let len = shape.0 * shape.1 * shape.2 * shape.3;
        let (x, w, b) = (values(1, len), values(2, norm.cols), values(3, norm.cols));
        let [y, plain, in_place] = everywhere([len; 3], |par, [y, plain, z]| {
            layer_norm(par, &norm, Some(&x), &w, Some(&b), y);
            layer_norm(par, &norm, Some(&x), &w, None, plain);
            z.copy_from_slice(&x);
            layer_norm(par, &norm, None, &w, Some(&b), z);
        });
        assert_close(&y, &naive(&wide(&x), &wide(&w), Some(&wide(&b)), 1e-5, true), 1e-5);
        assert_close(&plain, &naive(&wide(&x), &wide(&w), None, 1e-5, true), 1e-5);
        assert_same(&y, &in_place, "in place");
    }
}

/// Checks both gradients of one kind of norm.
fn check_gradients(centers: bool) {
    let grad_x = if centers { layer_norm_grad_x } else { rms_norm_grad_x };
    let grad_w = if centers { layer_norm_grad_w } else { rms_norm_grad_w };
    for shape in SHAPES {
        let norm = norm_of(shape);
        let len = shape.0 * shape.1 * shape.2 * shape.3;
        let (x, w, dy) = (values(1, len), values(2, norm.cols), values(3, len));
        let dw0 = values(4, norm.cols);
        let [dx, in_place, twice, dw, more] =
            everywhere([len, len, len, norm.cols, norm.cols], |par, [dx, z, twice, dw, more]| {
                let mut scratch = vec![0xff; norm_grad_w_scratch_bytes(&norm, len, par.threads())];
                grad_x(par, &norm, &x, &w, Some(&dy), dx, false);
                z.copy_from_slice(&dy);
                grad_x(par, &norm, &x, &w, None, z, false);
                twice.copy_from_slice(&x);
                grad_x(par, &norm, &x, &w, Some(&dy), twice, true);
                grad_w(par, &norm, &x, &dy, false, dw, &mut scratch);
                more.copy_from_slice(&dw0);
                grad_w(par, &norm, &x, &dy, true, more, &mut scratch);
            });
        let (xs, ws, dys) = (wide(&x), wide(&w), wide(&dy));
        let expected = differences(&xs, |x| dot(&naive(x, &ws, None, 1e-5, centers), &dys));
        // A single element is normalised to its sign: all slope is in eps.
        assert_close(&dx, &expected, 1e-4);
        assert_same(&dx, &in_place, "in place");
        assert_close(&twice, &expected.iter().zip(&xs).map(|(d, x)| d + x).collect::<Vec<_>>(), 1e-4);
        let expected = differences(&ws, |w| dot(&naive(&xs, w, None, 1e-5, centers), &dys));
        assert_close(&dw, &expected, 1e-5);
        let mut by_row = dw0.clone();
        let per_row = shape.1 * shape.2 * shape.3;
        for (x, dy) in x.chunks(per_row).zip(dy.chunks(per_row)) {
            let mut scratch = vec![0; norm_grad_w_scratch_bytes(&norm, per_row, 1)];
            grad_w(&one(), &norm, x, dy, true, &mut by_row, &mut scratch);
        }
        assert_same(&more, &by_row, "micro-batches");
    }
}

#[test]
fn rms_norm_gradients() {
    check_gradients(false);
}

#[test]
fn layer_norm_gradients() {
    check_gradients(true);
}
