//! Raw arrays: `i8` samples one after the other, and one `u8` label a sample.

use super::{SampleError, Samples};
use crate::files;
use std::path::Path;

/// Samples and labels.
pub(super) fn read(data: &Path, labels: &Path, shape: [usize; 3]) -> Result<Samples, SampleError> {
    let (bytes, marks) = (files::read_whole(data)?, files::read_whole(labels)?);
    let len = shape.iter().product::<usize>();
    if len == 0 || bytes.len() != marks.len() * len {
        let why = format!(
            "{} bytes are not {} samples of {} x {} x {} bytes, one for each label of {}",
            bytes.len(),
            marks.len(),
            shape[0],
            shape[1],
            shape[2],
            labels.display()
        );
        return Err(SampleError::bad(data, why));
    }
    let bytes = bytes.into_iter().map(|b| b as i8).collect();
    Ok(Samples::new(shape, bytes, marks.into_iter().map(u32::from).collect(), Vec::new()))
}

/// Samples alone.
pub(super) fn read_unlabelled(data: &Path, shape: [usize; 3]) -> Result<Samples, SampleError> {
    let (bytes, len) = (files::read_whole(data)?, shape.iter().product::<usize>());
    if len == 0 || !bytes.len().is_multiple_of(len) {
        let [h, w, c] = shape;
        let why = format!("{} bytes are not whole samples of {h} x {w} x {c} bytes", bytes.len());
        return Err(SampleError::bad(data, why));
    }
    let count = bytes.len() / len;
    Ok(Samples::new(shape, bytes.into_iter().map(|b| b as i8).collect(), vec![0; count], Vec::new()))
}
