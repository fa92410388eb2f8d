//! A set of images that can be learned: coloured patterns of five kinds under noise, as PNG files.

use crate::random::Random;
use std::path::Path;

/// The kinds: names of the folders.
pub const CLASSES: [&str; 5] = ["bars", "checks", "columns", "discs", "slopes"];

/// RGB bytes of image `index` of a kind, `side` pixels wide and high: place, size and colours differ from image to
/// image, and every kind has its own range of hues.
pub fn image(class: usize, index: usize, side: usize) -> Vec<u8> {
    let mut random = Random::new((class as u64) << 32 | index as u64);
    let period = random.within(0.12, 0.3) * side as f64;
    let [shift_x, shift_y] = [0, 1].map(|_| random.within(0.0, period));
    let hue = (class as f64 + random.within(-0.6, 0.6)) / CLASSES.len() as f64;
    let colours =
        [colour(hue, random.within(0.6, 1.0)), colour(hue + random.within(0.3, 0.7), random.within(0.1, 0.5))];
    let mut bytes = Vec::with_capacity(3 * side * side);
    for (row, column) in (0..side).flat_map(|row| (0..side).map(move |column| (row, column))) {
        let (y, x) = ((row as f64 + shift_y) / period, (column as f64 + shift_x) / period);
        let half = |v: f64| v.rem_euclid(1.0) < 0.5;
        let is_first = match class {
            0 => half(y),
            1 => half(x) != half(y),
            2 => half(x),
            3 => (x.rem_euclid(1.0) - 0.5).hypot(y.rem_euclid(1.0) - 0.5) < 0.35,
            _ => half(x + y),
        };
        let noise = random.within(-20.0, 20.0);
        bytes.extend(colours[usize::from(!is_first)].map(|c| (255.0 * c + noise).clamp(0.0, 255.0) as u8));
    }
    bytes
}

/// A colour from a hue, once round the circle from 0 to 1, and a brightness.
fn colour(hue: f64, bright: f64) -> [f64; 3] {
    [0.0, 1.0 / 3.0, 2.0 / 3.0].map(|at| {
        let away = ((hue + at).rem_euclid(1.0) - 0.5).abs();
        bright * (away * 6.0 - 1.0).clamp(0.0, 1.0)
    })
}

/// Writes a folder a kind with `count` images each, numbered from `first`.
///
/// # Errors
/// A file cannot be written.
pub fn write(folder: &Path, first: usize, count: usize, side: usize) -> std::io::Result<()> {
    for (class, name) in CLASSES.iter().enumerate() {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        for index in first..first + count {
            let file = std::fs::File::create(folder.join(format!("{index:04}.png")))?;
            let mut encoder = png::Encoder::new(file, side as u32, side as u32);
            encoder.set_color(png::ColorType::Rgb);
            encoder.set_depth(png::BitDepth::Eight);
            encoder.write_header()?.write_image_data(&image(class, index, side))?;
        }
    }
    Ok(())
}
