use crate::common::*;
use tinyforge_kernels::f32::conv::*;
use tinyforge_kernels::f32::pool::*;

fn window(kernel: [usize; 2], stride: [usize; 2], pad: [usize; 2], dilation: [usize; 2]) -> Window {
    Window { kernel, stride, pad, pad_end: [pad[0], pad[1].saturating_sub(1)], dilation }
}

fn shapes() -> Vec<Conv> {
    let conv = |images, in_channels, out_channels, groups, size, window| Conv {
        images,
        in_channels,
        out_channels,
        groups,
        size,
        window,
    };
    let plain = window([3, 3], [1, 1], [1, 1], [1, 1]);
    vec![
        conv(1, 1, 1, 1, [1, 1], window([1, 1], [1, 1], [0, 0], [1, 1])),
        conv(2, 5, 7, 1, [13, 11], window([1, 1], [1, 1], [0, 0], [1, 1])),
        conv(1, 9, 3, 1, [16, 9], window([1, 1], [2, 2], [0, 0], [1, 1])),
        conv(2, 3, 8, 1, [9, 12], plain),
        conv(1, 16, 20, 1, [12, 12], window([3, 3], [2, 2], [1, 1], [1, 1])),
        conv(1, 4, 6, 2, [8, 7], window([2, 3], [1, 2], [0, 2], [2, 1])),
        conv(2, 6, 6, 6, [10, 9], plain),
        conv(1, 3, 6, 3, [15, 15], window([7, 7], [2, 2], [3, 3], [1, 1])),
        conv(1, 160, 2, 1, [5, 5], window([1, 1], [1, 1], [0, 0], [1, 1])),
    ]
}

fn lens(dims: &Conv) -> [usize; 3] {
    let [height, width] = dims.out_size();
    [
        dims.images * dims.in_channels * dims.size[0] * dims.size[1],
        dims.out_channels * dims.in_channels / dims.groups * dims.window.kernel[0] * dims.window.kernel[1],
        dims.images * dims.out_channels * height * width,
    ]
}

/// Calls `f(x index, w index, y index)` for every product of the convolution.
fn products(dims: &Conv, mut f: impl FnMut(usize, usize, usize)) {
    let [height, width] = dims.out_size();
    let [kh, kw] = dims.window.kernel;
    let (gi, go) = (dims.in_channels / dims.groups, dims.out_channels / dims.groups);
    for (n, o) in (0..dims.images).flat_map(|n| (0..dims.out_channels).map(move |o| (n, o))) {
        for (r, c) in (0..height).flat_map(|r| (0..width).map(move |c| (r, c))) {
            for (ci, tap) in (0..gi).flat_map(|ci| (0..kh * kw).map(move |tap| (ci, tap))) {
                let row =
                    (r * dims.window.stride[0] + tap / kw * dims.window.dilation[0]).checked_sub(dims.window.pad[0]);
                let col =
                    (c * dims.window.stride[1] + tap % kw * dims.window.dilation[1]).checked_sub(dims.window.pad[1]);
                let (Some(row), Some(col)) = (row, col) else { continue };
                if row < dims.size[0] && col < dims.size[1] {
                    let x = ((n * dims.in_channels + o / go * gi + ci) * dims.size[0] + row) * dims.size[1] + col;
                    let y = ((n * dims.out_channels + o) * height + r) * width + c;
                    f(x, (o * gi + ci) * kh * kw + tap, y);
                }
            }
        }
    }
}

#[test]
fn convolution_and_its_gradients() {
    for dims in shapes() {
        println!("{dims:?}");
        let [in_len, w_len, out_len] = lens(&dims);
        let (x, w, b, dy) = (values(1, in_len), values(2, w_len), values(3, dims.out_channels), values(4, out_len));
        let (dw0, db0) = (values(5, w_len), values(6, b.len()));
        let all = [out_len, out_len, in_len, w_len, w_len, b.len()];
        let [y, plain, dx, dw, more, db] = everywhere(all, |par, [y, plain, dx, dw, more, db]| {
            let mut scratch = vec![0xff; conv2d_scratch_bytes(&dims, par.threads())];
            conv2d(par, &dims, &x, &w, Some(&b), y, &mut scratch);
            conv2d(par, &dims, &x, &w, None, plain, &mut scratch);
            conv2d_grad_x(par, &dims, &w, &dy, dx, &mut scratch);
            let mut scratch = vec![0xff; conv2d_grad_w_scratch_bytes(&dims, par.threads())];
            conv2d_grad_w(par, &dims, &x, &dy, false, dw, &mut scratch);
            more.copy_from_slice(&dw0);
            conv2d_grad_w(par, &dims, &x, &dy, true, more, &mut scratch);
            db.copy_from_slice(&db0);
            conv2d_grad_b(par, &dims, &dy, true, db);
        });
        let (xs, ws, dys) = (wide(&x), wide(&w), wide(&dy));
        let (mut ey, mut ex, mut ew) = (vec![0.0; out_len], vec![0.0; in_len], vec![0.0; w_len]);
        products(&dims, |i, k, o| {
            ey[o] += xs[i] * ws[k];
            ex[i] += dys[o] * ws[k];
            ew[k] += dys[o] * xs[i];
        });
        assert_close(&plain, &ey, 3e-6);
        assert_close(&dx, &ex, 3e-6);
        assert_close(&dw, &ew, 3e-6);
        let pixels = out_len / dims.images / dims.out_channels;
        let channel = |i: usize| i / pixels % dims.out_channels;
        ey.iter_mut().enumerate().for_each(|(i, y)| *y += f64::from(b[channel(i)]));
        assert_close(&y, &ey, 3e-6);
        let mut eb = wide(&db0);
        dys.iter().enumerate().for_each(|(i, dy)| eb[channel(i)] += dy);
        assert_close(&db, &eb, 3e-6);
        check_micro_batches(&dims, &x, &dy, (&dw0, &more), (&db0, &db));
    }
}

/// A call for every image gives the bits of one call.
fn check_micro_batches(dims: &Conv, x: &[f32], dy: &[f32], dw: (&[f32], &[f32]), db: (&[f32], &[f32])) {
    let one_image = Conv { images: 1, ..*dims };
    let (mut more, mut bias) = (dw.0.to_vec(), db.0.to_vec());
    let mut scratch = vec![0; conv2d_grad_w_scratch_bytes(&one_image, 1)];
    for (x, dy) in x.chunks(x.len() / dims.images).zip(dy.chunks(dy.len() / dims.images)) {
        conv2d_grad_w(&one(), &one_image, x, dy, true, &mut more, &mut scratch);
        conv2d_grad_b(&one(), &one_image, dy, true, &mut bias);
    }
    assert_same(&more, dw.1, "weight gradient of micro-batches");
    assert_same(&bias, db.1, "bias gradient of micro-batches");
}

#[test]
fn windows_that_do_not_fit_are_unsupported() {
    let dims = Conv { size: [2, 9], ..shapes()[7] };
    assert!(conv2d_supports(&dims));
    let unpadded = Conv { window: window([7, 7], [2, 2], [0, 0], [1, 1]), ..dims };
    assert!(!conv2d_supports(&unpadded));
    assert!(!conv2d_supports(&Conv { groups: 2, ..dims }));
}

fn pools() -> Vec<Pool> {
    let mut all = vec![];
    for counts_padding in [false, true] {
        for (size, w) in [
            ([1, 1], window([1, 1], [1, 1], [0, 0], [1, 1])),
            ([8, 8], window([2, 2], [2, 2], [0, 0], [1, 1])),
            ([9, 7], window([3, 3], [2, 2], [1, 1], [1, 1])),
            ([5, 6], window([2, 3], [1, 1], [1, 2], [1, 1])),
        ] {
            all.push(Pool { planes: 3, size, window: w, counts_padding });
        }
    }
    all
}

/// As one depthwise convolution with weights of one.
fn taps_of(pool: &Pool) -> Vec<Vec<usize>> {
    let dims = Conv {
        images: 1,
        in_channels: pool.planes,
        out_channels: pool.planes,
        groups: pool.planes,
        size: pool.size,
        window: pool.window,
    };
    let mut taps = vec![vec![]; lens(&dims)[2]];
    products(&dims, |i, _, o| taps[o].push(i));
    taps
}

#[test]
fn pooling_and_its_gradients() {
    for pool in pools() {
        println!("{pool:?}");
        let taps = taps_of(&pool);
        let in_len = pool.planes * pool.size[0] * pool.size[1];
        let (x, dy) = (values(1, in_len), values(2, taps.len()));
        let [max, dmax, avg, davg] =
            everywhere([taps.len(), in_len, taps.len(), in_len], |par, [max, dmax, avg, davg]| {
                let mut index = vec![7; taps.len()];
                max_pool(par, &pool, &x, max, &mut index);
                max_pool_grad(par, &pool, &index, &dy, dmax);
                avg_pool(par, &pool, &x, avg);
                avg_pool_grad(par, &pool, &dy, davg);
            });
        let (mut emax, mut edmax) = (vec![0.0; taps.len()], vec![0.0; in_len]);
        let (mut eavg, mut edavg) = (vec![0.0; taps.len()], vec![0.0; in_len]);
        for (o, taps) in taps.iter().enumerate() {
            let full = pool.window.kernel[0] * pool.window.kernel[1];
            let count = if pool.counts_padding { full } else { taps.len().max(1) } as f64;
            for &i in taps {
                eavg[o] += f64::from(x[i]) / count;
                edavg[i] += f64::from(dy[o]) / count;
            }
            if let Some(&best) = taps.iter().max_by(|a, b| x[**a].total_cmp(&x[**b])) {
                emax[o] = f64::from(x[best]);
                edmax[best] += f64::from(dy[o]);
            }
        }
        assert_close(&max, &emax, 0.0);
        assert_close(&dmax, &edmax, 1e-6);
        assert_close(&avg, &eavg, 1e-6);
        assert_close(&davg, &edavg, 1e-6);
    }
}

#[test]
fn global_pooling() {
    let (x, dy) = (values(1, 6 * 49), values(2, 6));
    let [y, dx] = everywhere([6, x.len()], |par, [y, dx]| {
        global_avg_pool(par, &x, y);
        global_avg_pool_grad(par, &dy, dx);
    });
    let means: Vec<f64> = wide(&x).chunks(49).map(|x| x.iter().sum::<f64>() / 49.0).collect();
    assert_close(&y, &means, 1e-6);
    assert_close(&dx, &(0..x.len()).map(|i| f64::from(dy[i / 49]) / 49.0).collect::<Vec<_>>(), 1e-7);
}
