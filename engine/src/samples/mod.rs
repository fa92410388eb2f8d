//! Labelled samples for networks with 8-bit inputs: image folders, IDX files, and raw arrays.
//!
//! All samples are read at the start, as the bytes that the network takes: `i8[height, width, channels]`, row-major.
//! A pixel of 0..=255 becomes `pixel - 128`. Reading never allocates from a length that the file does not bear out.

mod folder;
mod idx;
mod pixels;
mod raw;
pub mod stream;

use crate::files::FileError;
use std::path::{Path, PathBuf};

/// Why samples cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// Reading failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// What was read cannot be used.
    #[error("{path}: {why}")]
    Bad {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and the way out.
        why: String,
    },
}

impl SampleError {
    fn bad(path: &Path, why: impl Into<String>) -> SampleError {
        SampleError::Bad { path: path.to_path_buf(), why: why.into() }
    }
}

/// Samples with their labels.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Samples {
    /// Height, width and channels of a sample.
    pub shape: [usize; 3],
    /// One label a sample, below [`Samples::classes`].
    pub labels: Vec<u32>,
    /// Names of the classes; empty where the data names none.
    pub names: Vec<String>,
    bytes: Vec<i8>,
}

impl Samples {
    /// Samples of this shape from their bytes, one after the other.
    ///
    /// # Panics
    /// The bytes are not `labels.len()` whole samples: a fault of the caller.
    pub fn new(shape: [usize; 3], bytes: Vec<i8>, labels: Vec<u32>, names: Vec<String>) -> Samples {
        assert_eq!(bytes.len(), labels.len() * shape.iter().product::<usize>(), "whole samples");
        Samples { shape, labels, names, bytes }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The bytes of sample `i`.
    pub fn sample(&self, i: usize) -> &[i8] {
        let len = self.shape.iter().product::<usize>();
        &self.bytes[i * len..(i + 1) * len]
    }

    /// One more than the largest label, or the number of names where that is more.
    pub fn classes(&self) -> usize {
        self.labels.iter().map(|&l| l as usize + 1).max().unwrap_or(0).max(self.names.len())
    }

    /// Every `parts`-th sample from `first` on goes to the second, the others to the first.
    pub fn split(self, parts: usize) -> (Samples, Samples) {
        let empty = || Samples { shape: self.shape, names: self.names.clone(), ..Samples::default() };
        let (mut train, mut held) = (empty(), empty());
        for i in 0..self.len() {
            let to = if parts > 1 && i % parts == parts - 1 { &mut held } else { &mut train };
            to.labels.push(self.labels[i]);
            to.bytes.extend_from_slice(self.sample(i));
        }
        (train, held)
    }
}

/// Where samples are.
#[derive(Clone, PartialEq, Debug)]
pub struct Location {
    /// An image folder with a folder a class, an IDX file of images, or a raw array of `i8`.
    pub data: PathBuf,
    /// The labels beside an IDX file or a raw array.
    pub labels: Option<PathBuf>,
}

/// Reads samples of the network's input shape: height, width, channels.
///
/// # Errors
/// A file is not there, is damaged, or does not suit the shape.
pub fn read(location: &Location, shape: [usize; 3]) -> Result<Samples, SampleError> {
    let path = &location.data;
    let samples = match &location.labels {
        None if path.is_dir() => folder::read(path, shape)?,
        None => {
            return Err(SampleError::bad(
                path,
                "images without labels: give a folder with a folder of .jpg or .png files for every class, or name the \
                 file of labels with --labels",
            ));
        }
        Some(labels) if idx::is_idx(path) => idx::read(path, labels, shape)?,
        Some(labels) => raw::read(path, labels, shape)?,
    };
    if samples.is_empty() {
        return Err(SampleError::bad(path, "there is no sample"));
    }
    Ok(samples)
}

/// Reads samples without labels, for what only looks at them: a folder of images, or of a folder a class, an IDX file,
/// or raw `i8` arrays. Every label is 0.
///
/// # Errors
/// As [`read`].
pub fn read_unlabelled(path: &Path, shape: [usize; 3]) -> Result<Samples, SampleError> {
    let samples = match path.is_dir() {
        true => folder::read_unlabelled(path, shape)?,
        false if idx::is_idx(path) => idx::read_unlabelled(path, shape)?,
        false => raw::read_unlabelled(path, shape)?,
    };
    if samples.is_empty() {
        return Err(SampleError::bad(path, "there is no sample"));
    }
    Ok(samples)
}
