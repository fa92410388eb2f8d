//! Images to a network's input: channels, size, and bytes.

/// A decoded image: `height x width x channels` bytes, row-major; 1 is grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
pub(super) struct Image {
    width: usize,
    height: usize,
    channels: usize,
    data: Vec<u8>,
}

impl Image {
    pub(super) fn new(width: usize, height: usize, channels: usize, data: Vec<u8>) -> Result<Image, String> {
        let wanted = width.checked_mul(height).and_then(|n| n.checked_mul(channels));
        if width == 0 || height == 0 || wanted != Some(data.len()) {
            return Err(format!("{width} x {height} pixels of {channels} channels in {} bytes", data.len()));
        }
        Ok(Image { width, height, channels, data })
    }

    /// Channel `c` of `wanted` at pixel `i`; alpha is left out, grey is repeated or made by the weights of BT.601.
    fn value(&self, i: usize, c: usize, wanted: usize) -> f32 {
        let pixel = &self.data[i * self.channels..(i + 1) * self.channels];
        match (self.channels, wanted) {
            (1 | 2, _) => f32::from(pixel[0]),
            (_, 1) => 0.299 * f32::from(pixel[0]) + 0.587 * f32::from(pixel[1]) + 0.114 * f32::from(pixel[2]),
            _ => f32::from(pixel[c]),
        }
    }
}

/// The image in the input's size and channels, each pixel less 128.
///
/// Another size is reached by averaging with a triangle filter as wide as the reduction; the aspect is not kept.
pub(super) fn to_input(image: &Image, [height, width, channels]: [usize; 3]) -> Result<Vec<i8>, String> {
    if channels != 1 && channels != 3 {
        return Err(format!("the network takes {channels} channels, images have 1 or 3"));
    }
    let (rows, cols) = (weights(image.height, height), weights(image.width, width));
    let mut wide = vec![0.0f32; image.height * width * channels];
    for y in 0..image.height {
        for (x, (first, taps)) in cols.iter().enumerate() {
            for c in 0..channels {
                let at = y * image.width + first;
                let sum = taps.iter().enumerate().map(|(k, w)| w * image.value(at + k, c, channels)).sum();
                wide[(y * width + x) * channels + c] = sum;
            }
        }
    }
    let mut out = Vec::with_capacity(height * width * channels);
    for (first, taps) in &rows {
        for x in 0..width * channels {
            let sum: f32 = taps.iter().enumerate().map(|(k, w)| w * wide[(first + k) * width * channels + x]).sum();
            out.push((sum.round().clamp(0.0, 255.0) - 128.0) as i8);
        }
    }
    Ok(out)
}

/// For every output position the first input position and the weights from there on; they add to 1.
fn weights(from: usize, to: usize) -> Vec<(usize, Vec<f32>)> {
    let ratio = from as f64 / to as f64;
    let radius = ratio.max(1.0);
    let of = |i: usize| {
        let centre = (i as f64 + 0.5) * ratio - 0.5;
        let first = (centre - radius).ceil().max(0.0) as usize;
        let last = ((centre + radius).floor() as usize).min(from - 1);
        let taps: Vec<f64> = (first..=last).map(|k| (1.0 - (k as f64 - centre).abs() / radius).max(0.0)).collect();
        let sum: f64 = taps.iter().sum();
        (first, taps.iter().map(|w| (w / sum) as f32).collect())
    };
    (0..to).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_size_is_the_same_pixels() {
        let data: Vec<u8> = (0..27).map(|i| i * 9).collect();
        let image = Image::new(3, 3, 3, data.clone()).unwrap();
        let want: Vec<i8> = data.iter().map(|&p| (i16::from(p) - 128) as i8).collect();
        assert_eq!(to_input(&image, [3, 3, 3]).unwrap(), want);
    }

    #[test]
    fn a_flat_image_stays_flat_and_grey_is_repeated() {
        let image = Image::new(5, 7, 1, vec![200; 35]).unwrap();
        assert!(to_input(&image, [3, 11, 3]).unwrap().iter().all(|&p| p == 72));
    }

    #[test]
    fn halving_averages() {
        let image = Image::new(4, 1, 1, vec![0, 0, 100, 100]).unwrap();
        let half = to_input(&image, [1, 2, 1]).unwrap();
        assert!(half[0] < -110 && half[1] > -46, "{half:?}");
    }

    #[test]
    fn sizes_must_agree() {
        assert!(Image::new(4, 4, 3, vec![0; 47]).is_err());
    }
}
