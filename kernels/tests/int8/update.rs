//! Stochastic rounding: no bias, no way past the limits, one number for one element.

use tinyforge_kernels::int8::{Shape, Update, i8_update, i32_update, update_stream};

fn update(factor: &[f32], lr: f32, step: u32) -> Update<'_> {
    Update { lr, factor, stream: update_stream(&[5, 6, step, 0], 3) }
}

#[test]
fn the_mean_move_is_the_step() {
    // A move of 0.1 a step, and what 4000 draws may be off by: five standard deviations.
    for (g, lr) in [(0.5f32, 0.2f32), (-0.25, 0.4), (0.001, 3.0), (-3.7, 1.0)] {
        let (steps, len) = (200, 20);
        let mut sum = 0.0;
        for step in 0..steps {
            let mut w = vec![0i8; len];
            i8_update(
                Shape::ChannelLast { channels: len },
                &update(&vec![1.0; len], lr, step),
                &mut w,
                &vec![g; len],
                None,
            );
            sum += w.iter().map(|w| f64::from(*w)).sum::<f64>();
        }
        let draws = f64::from(steps) * len as f64;
        let move_by = -f64::from(g) * f64::from(lr);
        let fraction = move_by - move_by.floor();
        let allowed = 5.0 * (fraction * (1.0 - fraction) / draws).sqrt() + 1e-6;
        assert!((sum / draws - move_by).abs() < allowed, "{} is not {move_by} +- {allowed}", sum / draws);
    }
}

#[test]
fn moves_are_as_defined_and_saturate() {
    let (channels, inner) = (4, 7);
    let g: Vec<f32> = (0..channels * inner).map(|i| (i as f32 - 9.0) * 40.0).collect();
    let factor = [1.0, 0.01, 0.0, 1.0];
    let update = update(&factor, 0.5, 1);
    let mut w: Vec<i8> = (0..channels * inner).map(|i| ((i * 37 % 255) as i32 - 127) as i8).collect();
    let before = w.clone();
    i8_update(Shape::ChannelFirst { channels, inner }, &update, &mut w, &g, None);
    for at in 0..w.len() {
        let delta = -((0.5f32 * factor[at / inner]) * g[at]);
        let up = update.stream.uniform(at as u64) < delta - delta.floor();
        let expected = (i32::from(before[at]) + delta.floor() as i32 + i32::from(up)).clamp(-127, 127);
        assert_eq!(i32::from(w[at]), expected, "element {at}");
    }
    assert_eq!(w[2 * inner..3 * inner], before[2 * inner..3 * inner], "a factor of 0 freezes");
    assert!(w.contains(&127) && w.contains(&-127), "{w:?}");
}

#[test]
fn steps_without_measure_saturate_and_nan_moves_nothing() {
    let g = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e30, -1e30, 0.0];
    let factor = [1.0; 6];
    let shape = Shape::ChannelLast { channels: 6 };
    let mut w = [1i8; 6];
    i8_update(shape, &update(&factor, 1.0, 0), &mut w, &g, None);
    assert_eq!(w, [-127, 127, 1, -127, 127, 1]);
    let mut b = [i32::MIN + 5, i32::MAX - 5, 7, -2_000_000_000, 2_000_000_000, 9];
    i32_update(shape, &update(&factor, 1.0, 0), &mut b, &g, None);
    assert_eq!(b, [i32::MIN, i32::MAX, 7, i32::MIN, i32::MAX, 9]);
}

#[test]
fn a_part_moves_as_the_whole_does() {
    let (channels, rows, inner) = (4, 2, 9);
    let whole: Vec<f32> = (0..channels * rows * inner).map(|i| ((i * 37 % 50) as f32 - 25.0) / 13.0).collect();
    let index = [7, 0, 3];
    let factor = [1.0, 0.3, 2.0, 0.7];
    let update = update(&factor, 0.9, 2);
    let (mut all, mut some) = (vec![0i8; whole.len()], vec![0i8; whole.len()]);
    i8_update(Shape::ChannelFirst { channels, inner }, &update, &mut all, &whole, None);
    let part: Vec<f32> = whole.chunks(inner).flat_map(|row| index.map(|i| row[i as usize])).collect();
    i8_update(Shape::ChannelFirst { channels, inner }, &update, &mut some, &part, Some(&index));
    for at in 0..all.len() {
        assert_eq!(some[at], if index.contains(&((at % inner) as i32)) { all[at] } else { 0 });
    }
}
