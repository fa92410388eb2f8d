//! Folders of images: one folder a class, classes and files in the order of their names.

use super::pixels::{self, Image};
use super::{SampleError, Samples};
use crate::files::{self, FileError};
use std::path::{Path, PathBuf};

/// The largest side of an image that is decoded.
const SIDE_MAX: usize = 16_384;

/// Reads all classes below `path`.
pub(super) fn read(path: &Path, shape: [usize; 3]) -> Result<Samples, SampleError> {
    let (mut bytes, mut labels, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for class in list(path)?.into_iter().filter(|p| p.is_dir()) {
        let label = names.len() as u32;
        names.push(class.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned()));
        let images = images_in(&class)?;
        if images.is_empty() {
            return Err(SampleError::bad(&class, "the class has no .jpg, .jpeg or .png file"));
        }
        for (file, kind) in images {
            let image = decode(&file, kind)?;
            bytes.extend(pixels::to_input(&image, shape).map_err(|why| SampleError::bad(&file, why))?);
            labels.push(label);
        }
    }
    if names.is_empty() {
        return Err(SampleError::bad(path, "the folder has no folder a class"));
    }
    Ok(Samples::new(shape, bytes, labels, names))
}

/// Reads the images of a folder, or of all classes below it, without labels.
pub(super) fn read_unlabelled(path: &Path, shape: [usize; 3]) -> Result<Samples, SampleError> {
    let images = images_in(path)?;
    if images.is_empty() {
        return read(path, shape);
    }
    let mut bytes = Vec::new();
    for (file, kind) in &images {
        let image = decode(file, *kind)?;
        bytes.extend(pixels::to_input(&image, shape).map_err(|why| SampleError::bad(file, why))?);
    }
    Ok(Samples::new(shape, bytes, vec![0; images.len()], Vec::new()))
}

/// The files of a folder that are images.
fn images_in(path: &Path) -> Result<Vec<(PathBuf, Kind)>, SampleError> {
    let files = list(path)?.into_iter().filter(|p| p.is_file());
    Ok(files.filter_map(|file| kind_of(&file).map(|kind| (file, kind))).collect())
}

fn list(path: &Path) -> Result<Vec<PathBuf>, SampleError> {
    let err = |source| FileError::new(path, "cannot list", source);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(path).map_err(err)? {
        let path = entry.map_err(err)?.path();
        if !path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".")) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[derive(Clone, Copy)]
enum Kind {
    Jpeg,
    Png,
}

fn kind_of(path: &Path) -> Option<Kind> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" => Some(Kind::Jpeg),
        "png" => Some(Kind::Png),
        _ => None,
    }
}

fn decode(path: &Path, kind: Kind) -> Result<Image, SampleError> {
    let bytes = files::read_whole(path)?;
    let image = match kind {
        Kind::Jpeg => jpeg(&bytes),
        Kind::Png => png(&bytes),
    };
    image.map_err(|why| SampleError::bad(path, format!("the image cannot be read: {why}")))
}

fn jpeg(bytes: &[u8]) -> Result<Image, String> {
    use zune_jpeg::JpegDecoder;
    use zune_jpeg::zune_core::bytestream::ZCursor;
    use zune_jpeg::zune_core::colorspace::ColorSpace;
    use zune_jpeg::zune_core::options::DecoderOptions;
    let options = DecoderOptions::default()
        .set_max_width(SIDE_MAX)
        .set_max_height(SIDE_MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let data = decoder.decode().map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions().ok_or("it has no size")?;
    Image::new(width, height, 3, data)
}

fn png(bytes: &[u8]) -> Result<Image, String> {
    let mut decoder = png::Decoder::new_with_limits(std::io::Cursor::new(bytes), png::Limits { bytes: 1 << 30 });
    decoder.set_transformations(png::Transformations::normalize_to_color8() | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(|e| e.to_string())?;
    let size = reader.output_buffer_size().filter(|&n| n <= 4 * SIDE_MAX * SIDE_MAX).ok_or("it is too large")?;
    let mut data = vec![0; size];
    let info = reader.next_frame(&mut data).map_err(|e| e.to_string())?;
    data.truncate(info.buffer_size());
    Image::new(info.width as usize, info.height as usize, info.color_type.samples(), data)
}
