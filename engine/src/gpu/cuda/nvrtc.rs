//! Compiles kernels for one architecture, and keeps what was made.

use super::source;
use crate::gpu::kept;
use cudarc::nvrtc::sys;
use std::ffi::{CStr, CString, c_char, c_int};
use tinyforge_plan::DType;

/// What NVRTC made: code for a card, or, of a card that it does not know yet, text that the driver compiles.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// The bytes; text ends with a zero.
    pub bytes: Vec<u8>,
    /// What the compiler said.
    pub log: String,
}

/// What to make of a family's text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Form {
    /// Code for this compute capability.
    Code(u32),
    /// Text for this compute capability and later ones.
    Text(u32),
}

/// Why there is no NVRTC.
fn absent() -> String {
    "libnvrtc was not found: install CUDA's toolkit (12.8 or later), or the wheel nvidia-cuda-nvrtc and put its lib \
     folder on LD_LIBRARY_PATH"
        .to_string()
}

/// A program of NVRTC, destroyed with this.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "NVRTC is a C library")]
        // SAFETY: the program was created and is destroyed once; there is nobody to tell of an error.
        let _ = unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// Fills a buffer whose size and contents NVRTC tells by two functions.
macro_rules! filled {
    ($program:expr, $size:ident, $get:ident) => {{
        let mut size = 0;
        #[expect(unsafe_code, reason = "NVRTC is a C library")]
        // SAFETY: the program lives, and the buffer has as many bytes as were asked for.
        let result = unsafe {
            sys::$size($program, &mut size).result().and_then(|()| {
                let mut bytes = vec![0_u8; size];
                sys::$get($program, bytes.as_mut_ptr().cast::<c_char>()).result().map(|()| bytes)
            })
        };
        result.map_err(|e| format!("{}: {e}", stringify!($get)))
    }};
}

/// The version of NVRTC and the compute capabilities that it makes code for, ascending.
///
/// # Errors
/// There is none.
pub fn version() -> Result<((c_int, c_int), Vec<u32>), String> {
    #[expect(unsafe_code, reason = "NVRTC is a C library")]
    // SAFETY: libraries of that name are opened and closed; the functions below write where they are told, the last as
    // many numbers as the one before it counts.
    unsafe {
        if !sys::is_culib_present() {
            return Err(absent());
        }
        let (mut major, mut minor, mut count) = (0, 0, 0);
        let says = |e| format!("NVRTC does not tell what it is: {e}");
        sys::nvrtcVersion(&mut major, &mut minor).result().map_err(says)?;
        sys::nvrtcGetNumSupportedArchs(&mut count).result().map_err(says)?;
        let mut all: Vec<c_int> = vec![0; usize::try_from(count).unwrap_or(0)];
        sys::nvrtcGetSupportedArchs(all.as_mut_ptr()).result().map_err(says)?;
        Ok(((major, minor), all.into_iter().filter_map(|a| u32::try_from(a).ok()).collect()))
    }
}

/// The text of an op family for one storage type, compiled.
///
/// # Errors
/// There is no NVRTC, or it refuses the text; with its words.
pub fn compile(stem: &str, storage: DType, form: Form) -> Result<Image, String> {
    version()?;
    let text = source::text(stem).ok_or_else(|| format!("there is no kernels/cuda/{stem}.cu"))?;
    let (text, name) = (c_text(&text)?, c_text(&format!("{stem}.cu"))?);
    let options = options(storage, form).iter().map(|o| c_text(o)).collect::<Result<Vec<_>, _>>()?;
    let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    let mut program = std::ptr::null_mut();
    #[expect(unsafe_code, reason = "NVRTC is a C library")]
    // SAFETY: the texts end with zeros and outlive the program, which is made of copies of them.
    let created = unsafe {
        sys::nvrtcCreateProgram(&mut program, text.as_ptr(), name.as_ptr(), 0, std::ptr::null(), std::ptr::null())
            .result()
    };
    created.map_err(|e| format!("{stem}.cu: {e}"))?;
    let program = Program(program);
    #[expect(unsafe_code, reason = "NVRTC is a C library")]
    // SAFETY: the program lives, and so do as many options as are said.
    let compiled = unsafe { sys::nvrtcCompileProgram(program.0, pointers.len() as c_int, pointers.as_ptr()).result() };
    let log = filled!(program.0, nvrtcGetProgramLogSize, nvrtcGetProgramLog)?;
    let log = CStr::from_bytes_until_nul(&log).map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
    compiled.map_err(|e| format!("{stem}.cu: {e}\n{log}"))?;
    let bytes = match form {
        Form::Code(_) => filled!(program.0, nvrtcGetCUBINSize, nvrtcGetCUBIN)?,
        Form::Text(_) => filled!(program.0, nvrtcGetPTXSize, nvrtcGetPTX)?,
    };
    Ok(Image { bytes, log })
}

fn c_text(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|e| e.to_string())
}

/// Products and sums are one operation where the text says so and nowhere else.
fn options(storage: DType, form: Form) -> Vec<String> {
    let architecture = match form {
        Form::Code(capability) => format!("sm_{capability}"),
        Form::Text(capability) => format!("compute_{capability}"),
    };
    vec![
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".to_string(),
        "--fmad=false".to_string(),
        format!("-DSTORAGE={}", storage as u8),
    ]
}

/// The same for a card of this compute capability, from the cache where it is there; what is found there is taken only
/// where `is_good` says so.
///
/// # Errors
/// As [`compile`].
pub fn compile_cached<T>(
    stem: &str,
    storage: DType,
    capability: u32,
    is_good: impl Fn(&[u8]) -> Result<T, String>,
) -> Result<T, String> {
    let (version, known) = version()?;
    let form = match known.iter().rev().find(|&&k| k <= capability) {
        Some(&k) if k == capability => Form::Code(k),
        Some(&k) => Form::Text(k),
        None => {
            return Err(format!("this NVRTC, {version:?}, has no architecture for compute capability {capability}"));
        }
    };
    let path = kept::file(stem, (source::text(stem), options(storage, form), version));
    if let Some(Ok(found)) = path.as_ref().and_then(|p| kept::read(p)).map(|bytes| is_good(&bytes)) {
        return Ok(found);
    }
    let image = compile(stem, storage, form)?;
    let found = is_good(&image.bytes)?;
    if let Some(path) = path {
        kept::write(&path, &image.bytes);
    }
    Ok(found)
}
