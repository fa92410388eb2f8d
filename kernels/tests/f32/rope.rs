use crate::common::*;
use tinyforge_kernels::f32::rope::*;

fn frequencies(pairs: usize) -> Vec<f32> {
    (0..pairs).map(|i| 1.0 / 10_000f32.powf(i as f32 / pairs as f32)).collect()
}

fn naive(rope: &Rope, x: &[f32], positions: &[i32]) -> Vec<f64> {
    let mut y = wide(x);
    let pairs = rope.inv_freq.len();
    for (t, row) in y.chunks_mut(rope.heads * rope.head_dim).enumerate() {
        for head in row.chunks_mut(rope.head_dim) {
            for i in 0..pairs {
                let angle = f64::from(positions[t] as f32 * rope.inv_freq[i]);
                let (s, c) = (if rope.is_inverse { -angle } else { angle }).sin_cos();
                let (a, b) = if rope.is_interleaved { (2 * i, 2 * i + 1) } else { (i, i + pairs) };
                let (u, v) = (head[a], head[b]);
                head[a] = (u * c - v * s) * f64::from(rope.factor);
                head[b] = (v * c + u * s) * f64::from(rope.factor);
            }
        }
    }
    y
}

#[test]
fn rotation_is_the_naive_form() {
    for (tokens, heads, head_dim, rotated) in
        [(1, 1, 2, 2), (3, 2, 8, 8), (9, 3, 64, 64), (8, 2, 80, 32), (17, 1, 128, 128)]
    {
        let inv_freq = frequencies(rotated / 2);
        let x = values(1, tokens * heads * head_dim);
        let mut positions = integers(2, tokens, 0, 131_072);
        positions[0] = 1_000_000;
        for (is_interleaved, is_inverse, factor) in
            [(false, false, 1.0), (true, false, 1.0), (false, true, 1.25), (true, true, 0.5)]
        {
            let dims = Rope { heads, head_dim, inv_freq: &inv_freq, is_interleaved, factor, is_inverse };
            let [y, in_place] = everywhere([x.len(); 2], |par, [y, z]| {
                rope(par, &dims, Some(&x), &positions, y);
                z.copy_from_slice(&x);
                rope(par, &dims, None, &positions, z);
            });
            assert_close(&y, &naive(&dims, &x, &positions), 3e-7);
            assert_same(&y, &in_place, "in place");
        }
    }
}

#[test]
fn the_inverse_undoes_and_is_the_gradient() {
    let inv_freq = frequencies(16);
    let dims =
        Rope { heads: 2, head_dim: 32, inv_freq: &inv_freq, is_interleaved: false, factor: 1.0, is_inverse: false };
    let (x, dy, positions) = (values(1, 5 * 64), values(2, 5 * 64), [0, 1, 2, 77, 5000]);
    let [y, back, dx] = everywhere([x.len(); 3], |par, [y, back, dx]| {
        rope(par, &dims, Some(&x), &positions, y);
        rope(par, &Rope { is_inverse: true, ..dims }, Some(y), &positions, back);
        rope(par, &Rope { is_inverse: true, ..dims }, Some(&dy), &positions, dx);
    });
    assert_close(&back, &wide(&x), 1e-6);
    // y = R x, so dy . y = (R' dy) . x.
    assert!((dot(&wide(&dy), &wide(&y)) - dot(&wide(&dx), &wide(&x))).abs() < 1e-4);
}
