use crate::common::*;
use tinyforge_kernels::f32::batch_norm::*;

const SHAPES: [(usize, usize, usize); 5] = [(2, 1, 1), (1, 3, 5), (3, 2, 16), (2, 4, 49), (4, 3, 130)];

/// Mean and variance of a channel.
fn statistics(dims: &BatchNorm, x: &[f64], channel: usize) -> (f64, f64) {
    let mine: Vec<f64> = x.chunks(dims.pixels).skip(channel).step_by(dims.channels).flatten().copied().collect();
    let mean = mine.iter().sum::<f64>() / mine.len() as f64;
    (mean, mine.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / mine.len() as f64)
}

fn naive(dims: &BatchNorm, x: &[f64], w: &[f64], b: &[f64], fixed: Option<(&[f64], &[f64])>) -> Vec<f64> {
    let used: Vec<(f64, f64)> = (0..dims.channels)
        .map(|c| fixed.map_or_else(|| statistics(dims, x, c), |(mean, var)| (mean[c], var[c])))
        .collect();
    let channel = |i: usize| i / dims.pixels % dims.channels;
    x.iter()
        .enumerate()
        .map(|(i, x)| {
            let (mean, var) = used[channel(i)];
            (x - mean) / (var + f64::from(dims.eps)).sqrt() * w[channel(i)] + b[channel(i)]
        })
        .collect()
}

#[test]
fn training_evaluation_and_gradients() {
    for (images, channels, pixels) in SHAPES {
        let dims = BatchNorm { images, channels, pixels, eps: 1e-3 };
        let len = images * channels * pixels;
        let (x, dy) = (values(1, len), values(2, len));
        let (w, b) = (values(3, channels), values(4, channels));
        let (mean0, var0) = (values(5, channels), values(6, channels).iter().map(|v| v * v + 0.5).collect::<Vec<_>>());
        let c = channels;
        let lens = [len, c, c, c, c, len, c, c, len, len];
        let [y, mean, inverse, running_mean, running_var, dx, dw, db, eval, eval_dx] =
            everywhere(lens, |par, [y, mean, inverse, rm, rv, dx, dw, db, eval, eval_dx]| {
                rm.copy_from_slice(&mean0);
                rv.copy_from_slice(&var0);
                let running = Running { mean: rm, var: rv, momentum: 0.25 };
                batch_norm_train(par, &dims, &x, &w, &b, running, mean, inverse, y);
                let saved = BatchNormSaved { x: &x, w: &w, mean, inverse, is_batch: true };
                batch_norm_grad(par, &dims, &saved, &dy, Some(dx), Some(dw), Some(db), false);
                eval.copy_from_slice(&x);
                batch_norm_eval(par, &dims, None, (&w, &b), (&mean0, &var0), eval);
                let inverse: Vec<f32> = var0.iter().map(|v| 1.0 / (v + 1e-3).sqrt()).collect();
                let saved = BatchNormSaved { x: &x, w: &w, mean: &mean0, inverse: &inverse, is_batch: false };
                batch_norm_grad(par, &dims, &saved, &dy, Some(eval_dx), None, None, false);
            });
        let [xs, dys, ws, bs, means, vars] = [&x, &dy, &w, &b, &mean0, &var0].map(|v| wide(v));
        assert_close(&y, &naive(&dims, &xs, &ws, &bs, None), 1e-5);
        assert_close(&eval, &naive(&dims, &xs, &ws, &bs, Some((&means, &vars))), 2e-6);
        let count = (images * pixels) as f64;
        for c in 0..channels {
            let (m, v) = statistics(&dims, &xs, c);
            assert_close(&[mean[c], inverse[c]], &[m, 1.0 / (v + 1e-3).sqrt()], 2e-5);
            let unbiased = v * count / (count - 1.0);
            assert_close(
                &[running_mean[c], running_var[c]],
                &[0.75 * means[c] + 0.25 * m, 0.75 * vars[c] + 0.25 * unbiased],
                1e-6,
            );
        }
        assert_close(&dx, &differences(&xs, |x| dot(&naive(&dims, x, &ws, &bs, None), &dys)), 1e-4);
        assert_close(&dw, &differences(&ws, |w| dot(&naive(&dims, &xs, w, &bs, None), &dys)), 1e-4);
        assert_close(&db, &differences(&bs, |b| dot(&naive(&dims, &xs, &ws, b, None), &dys)), 1e-5);
        let fixed = Some((&means[..], &vars[..]));
        assert_close(&eval_dx, &differences(&xs, |x| dot(&naive(&dims, x, &ws, &bs, fixed), &dys)), 1e-5);
    }
}
