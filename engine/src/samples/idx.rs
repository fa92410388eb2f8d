//! IDX files, plain or gzipped: the form of the MNIST data sets.
//!
//! Two zero bytes, the element type (8 is unsigned bytes), the number of dimensions, each dimension as a big-endian
//! u32, then the elements.

use super::{SampleError, Samples};
use crate::files;
use std::io::Read;
use std::path::Path;

/// Whether the name says that it is an IDX file.
pub(super) fn is_idx(path: &Path) -> bool {
    let name = path.file_name().map_or(String::new(), |n| n.to_string_lossy().to_ascii_lowercase());
    name.contains("idx")
}

/// Images and labels.
pub(super) fn read(images: &Path, labels: &Path, shape: [usize; 3]) -> Result<Samples, SampleError> {
    let (count, bytes) = pixels(images, shape)?;
    let (label_dims, label_bytes) = array(labels)?;
    if label_dims != [count] {
        return Err(SampleError::bad(labels, format!("{label_dims:?} labels for {count} images")));
    }
    Ok(Samples::new(shape, bytes, label_bytes.iter().map(|&l| u32::from(l)).collect(), Vec::new()))
}

/// Images alone.
pub(super) fn read_unlabelled(images: &Path, shape: [usize; 3]) -> Result<Samples, SampleError> {
    let (count, bytes) = pixels(images, shape)?;
    Ok(Samples::new(shape, bytes, vec![0; count], Vec::new()))
}

/// How many images there are, and their bytes.
fn pixels(images: &Path, shape: [usize; 3]) -> Result<(usize, Vec<i8>), SampleError> {
    let (dims, pixels) = array(images)?;
    let [height, width, channels] = shape;
    let fits = match dims[..] {
        [_, h, w] => [h, w, 1] == shape,
        [_, h, w, c] => [h, w, c] == shape,
        _ => false,
    };
    if !fits {
        let why = format!("samples of {:?}, the network takes {height} x {width} x {channels}", &dims[1..]);
        return Err(SampleError::bad(images, why));
    }
    Ok((dims[0], pixels.iter().map(|&p| (i16::from(p) - 128) as i8).collect()))
}

/// Dimensions and bytes of a file.
fn array(path: &Path) -> Result<(Vec<usize>, Vec<u8>), SampleError> {
    const BYTES_MAX: u64 = 4 << 30;
    let mut bytes = files::read_whole(path)?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut plain = Vec::new();
        let mut unpacked = flate2::read::GzDecoder::new(bytes.as_slice()).take(BYTES_MAX);
        unpacked.read_to_end(&mut plain).map_err(|e| SampleError::bad(path, format!("gzip: {e}")))?;
        bytes = plain;
    }
    parse(&bytes).map_err(|why| SampleError::bad(path, why))
}

fn parse(bytes: &[u8]) -> Result<(Vec<usize>, Vec<u8>), String> {
    let [0, 0, kind, rank, ..] = *bytes else {
        return Err("no IDX file: it does not start with two zero bytes".into());
    };
    if kind != 8 {
        return Err(format!("elements of type {kind:#04x}; unsigned bytes (0x08) are read"));
    }
    let rank = usize::from(rank);
    let header = bytes.get(4..4 + 4 * rank).ok_or("the header is cut off")?;
    let dims: Vec<usize> =
        header.chunks_exact(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize).collect();
    let wanted = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or("the dimensions are too large")?;
    let data = &bytes[4 + 4 * rank..];
    if rank == 0 || data.len() != wanted {
        return Err(format!("dimensions {dims:?} ask for {wanted} bytes, there are {}", data.len()));
    }
    Ok((dims, data.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn dimensions_must_be_borne_out() {
        assert_eq!(parse(&[0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]).unwrap(), (vec![3], vec![7, 8, 9]));
        for bad in
            [&[0u8, 0, 8, 1, 0, 0, 0, 4, 7, 8, 9][..], &[0, 0, 8, 9, 1], &[0, 0, 13, 0], &[1], &[], &[0, 0, 8, 0]]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        let huge = [&[0, 0, 8, 4][..], &[255; 16]].concat();
        assert!(parse(&huge).is_err());
    }
}
