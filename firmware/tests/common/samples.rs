//! Images of four kinds, and the file that examples on a board read.

use tinyforge_firmware::kernels::random::Stream;

/// Numbers of an image.
pub const LEN: usize = 64;

/// Image `index`: bars that lie, stand, or lean to one of two sides, somewhere, under noise. With its label.
pub fn sample(seed: u64, index: u32) -> ([i8; LEN], i32) {
    let stream = Stream { seed, step: index, tensor: 0 };
    let [kind, phase, ..] = stream.block(0);
    let (kind, phase) = (kind % 4, (phase % 4) as usize);
    let image = std::array::from_fn(|i| {
        let (row, column) = (i / 8, i % 8);
        let along = match kind {
            0 => row,
            1 => column,
            2 => row + column,
            _ => row + 8 - column,
        };
        let bright = if (along + phase) % 4 < 2 { 50 } else { -50 };
        (bright + (stream.block(1 + i as u64)[0] % 121) as i32 - 60) as i8
    });
    (image, kind as i32)
}

/// `TFSM`, the number of samples, the length of each; then each label and its numbers.
#[allow(dead_code, reason = "tests make samples one by one")]
pub fn file(seed: u64, count: u32) -> Vec<u8> {
    let mut bytes = b"TFSM".to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend((LEN as u32).to_le_bytes());
    for index in 0..count {
        let (image, label) = sample(seed, index);
        bytes.extend(label.to_le_bytes());
        bytes.extend(image.map(|x| x as u8));
    }
    bytes
}
