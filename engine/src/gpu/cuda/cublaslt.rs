//! NVIDIA's library of dense products. It is looked for when a card is opened; without it the kernels multiply.
//!
//! Invariant: an algorithm is chosen by a product's words alone, in a workspace of one size, among those that split no
//! sum among blocks, so that equal words give equal bits.

use super::matmul::{Matmul, Matrix, Multiply, Product, WORKSPACE_BYTES};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasLtMatmulDescAttributes_t as DescAttribute, cublasLtMatmulPreferenceAttributes_t as Preference,
};
use cudarc::driver::sys::CUstream;
use std::ffi::c_void;
use tinyforge_plan::DType;

/// The oldest version: its functions are those of 13.
const VERSION_MIN: usize = 12_00_00;

fn says(e: CublasError) -> String {
    format!("cuBLASLt: {e}")
}

/// A product that is ready.
struct Form {
    desc: sys::cublasLtMatmulDesc_t,
    /// A, B, and C, which lies as D does.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
    has_bias: bool,
}

/// Layouts and a description on their way to a form, given back where there is none.
struct Parts {
    desc: Option<sys::cublasLtMatmulDesc_t>,
    layouts: Vec<sys::cublasLtMatrixLayout_t>,
    preference: Option<sys::cublasLtMatmulPreference_t>,
}

#[expect(unsafe_code, reason = "cuBLASLt is a C library")]
impl Drop for Parts {
    fn drop(&mut self) {
        // SAFETY: each was made once, and what a form took is not here any more. Errors have nobody to tell.
        unsafe {
            let _ = self.desc.map(|d| result::destroy_matmul_desc(d));
            for &layout in &self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = self.preference.map(|p| result::destroy_matmul_pref(p));
        }
    }
}

/// The library, with the products that were asked for.
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    forms: Vec<Form>,
    /// Its name with its version.
    pub name: String,
}

// SAFETY: the library's handle and descriptions may be used from every thread, by one at a time: whoever has this.
#[expect(unsafe_code, reason = "handles of a library")]
unsafe impl Send for CublasLt {}

impl CublasLt {
    /// Opens the library for the card whose context is current.
    ///
    /// # Errors
    /// It is not there, it is too old, or it refuses the card.
    #[expect(unsafe_code, reason = "a library is looked for")]
    pub fn open() -> Result<CublasLt, String> {
        // SAFETY: libraries of that name are opened and closed; a version is a number.
        let version = unsafe { sys::is_culib_present().then(|| sys::cublasLtGetVersion()) };
        let version = version.ok_or(
            "libcublasLt was not found: install CUDA's toolkit, or the wheel nvidia-cublas and put its lib folder on \
             LD_LIBRARY_PATH",
        )?;
        if version < VERSION_MIN {
            return Err(format!("cuBLASLt {version} is older than {VERSION_MIN}"));
        }
        let handle = result::create_handle().map_err(says)?;
        let name = format!("cuBLASLt {}.{}.{}", version / 10_000, version / 100 % 100, version % 100);
        Ok(CublasLt { handle, forms: Vec::new(), name })
    }

    /// Chooses an algorithm for a product; none where the library has none.
    ///
    /// # Errors
    /// It refuses the words.
    pub fn product(&mut self, matmul: &Matmul) -> Result<Option<Product>, String> {
        let mut parts = Parts { desc: Some(desc(matmul).map_err(says)?), layouts: Vec::new(), preference: None };
        for matrix in [&matmul.a, &matmul.b, &matmul.d] {
            parts.layouts.push(layout(matrix)?);
        }
        let preference = preference(matmul).map_err(says)?;
        parts.preference = Some(preference);
        let ([a, b, d], Some(desc)) = ([0, 1, 2].map(|i| parts.layouts[i]), parts.desc) else { return Ok(None) };
        #[expect(unsafe_code, reason = "cuBLASLt is a C library")]
        // SAFETY: everything was made just now, and lives until `parts` is dropped.
        let found = unsafe { result::get_matmul_algo_heuristic(self.handle, desc, a, b, d, d, preference) };
        let found = match found {
            Ok(found) if found.workspaceSize as u64 <= WORKSPACE_BYTES => found,
            Ok(_) | Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => return Ok(None),
            Err(e) => return Err(says(e)),
        };
        parts.desc = None;
        parts.layouts.clear();
        self.forms.push(Form { desc, layouts: [a, b, d], algorithm: found.algo, has_bias: matmul.has_bias });
        Ok(Some(Product(self.forms.len() as u32 - 1)))
    }

    /// Runs a product on a stream.
    ///
    /// # Errors
    /// The library refuses it.
    #[expect(unsafe_code, reason = "cuBLASLt is a C library")]
    pub fn multiply(&self, multiply: &Multiply, stream: CUstream) -> Result<(), String> {
        let form = &self.forms[multiply.product.0 as usize];
        let [a, b, d] = form.layouts;
        let at = |address: u64| address as *mut c_void;
        let number = |x: &f32| std::ptr::from_ref(x).cast::<c_void>();
        // SAFETY: the form lives as long as this; the plan's checker has made sure of places and sizes, and the
        // workspace has as many bytes as the algorithm was chosen for. Numbers are copied before the call returns.
        unsafe {
            if form.has_bias {
                set_desc(form.desc, DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &multiply.bias).map_err(says)?;
            }
            result::matmul(
                self.handle,
                form.desc,
                number(&multiply.alpha),
                number(&multiply.beta),
                at(multiply.a),
                a,
                at(multiply.b),
                b,
                at(multiply.c),
                d,
                at(multiply.d),
                d,
                &form.algorithm,
                at(multiply.workspace),
                WORKSPACE_BYTES as usize,
                stream.cast(),
            )
        }
        .map_err(says)
    }
}

#[expect(unsafe_code, reason = "cuBLASLt is a C library")]
impl Drop for CublasLt {
    fn drop(&mut self) {
        for Form { desc, layouts, .. } in std::mem::take(&mut self.forms) {
            drop(Parts { desc: Some(desc), layouts: layouts.into(), preference: None });
        }
        // SAFETY: it was made once; whoever drops it has waited for what runs.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// Sets an attribute of a description to a value of its type.
///
/// # Safety
/// The description lives, and the attribute is of type `T`.
#[expect(unsafe_code, reason = "cuBLASLt is a C library")]
unsafe fn set_desc<T>(desc: sys::cublasLtMatmulDesc_t, attribute: DescAttribute, value: &T) -> Result<(), CublasError> {
    // SAFETY: as the caller promises.
    unsafe {
        result::set_matmul_desc_attribute(desc, attribute, std::ptr::from_ref(value).cast(), std::mem::size_of::<T>())
    }
}

/// What is computed: sums in f32.
#[expect(unsafe_code, reason = "cuBLASLt is a C library")]
fn desc(matmul: &Matmul) -> Result<sys::cublasLtMatmulDesc_t, CublasError> {
    let compute = match matmul.rounds_to_tf32 {
        true => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        false => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
    };
    let desc = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?;
    let epilogue = match matmul.has_bias {
        true => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
        false => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
    };
    let transposes = [DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB];
    // SAFETY: the description was made just now; transposes are numbers of 32 bits, and so are epilogues.
    let set = unsafe {
        let all = transposes.into_iter().zip(matmul.transposes);
        let mut all = all.map(|(attribute, transposes)| set_desc(desc, attribute, &i32::from(transposes)));
        all.try_for_each(|r| r)
            .and_then(|()| set_desc(desc, DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &(epilogue as u32)))
    };
    if let Err(e) = set {
        drop(Parts { desc: Some(desc), layouts: Vec::new(), preference: None });
        return Err(e);
    }
    Ok(desc)
}

fn layout(matrix: &Matrix) -> Result<sys::cublasLtMatrixLayout_t, String> {
    let dtype = match matrix.dtype {
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        other => return Err(format!("a product of {}", other.name())),
    };
    let stride = i64::try_from(matrix.stride).map_err(|e| e.to_string())?;
    result::create_matrix_layout(dtype, matrix.rows, matrix.cols, stride).map_err(says)
}

/// What an algorithm may be: within the workspace, no sum split among blocks, for places as they are aligned.
#[expect(unsafe_code, reason = "cuBLASLt is a C library")]
fn preference(matmul: &Matmul) -> Result<sys::cublasLtMatmulPreference_t, CublasError> {
    let preference = result::create_matmul_pref()?;
    let numbers = [
        (Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, 0),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, matmul.a.aligned),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, matmul.b.aligned),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, matmul.d.aligned),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, matmul.d.aligned),
    ];
    let workspace = WORKSPACE_BYTES;
    // SAFETY: the preferences were made just now; the workspace is a number of 64 bits, the others of 32.
    let set = unsafe {
        let bytes = std::ptr::from_ref(&workspace).cast();
        let largest = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        result::set_matmul_pref_attribute(preference, largest, bytes, 8).and_then(|()| {
            numbers.iter().try_for_each(|(attribute, number)| {
                let value = std::ptr::from_ref(number).cast();
                result::set_matmul_pref_attribute(preference, *attribute, value, 4)
            })
        })
    };
    if let Err(e) = set {
        drop(Parts { desc: None, layouts: Vec::new(), preference: Some(preference) });
        return Err(e);
    }
    Ok(preference)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs the library and no card: every word that a product is told in is taken.
    #[test]
    #[expect(unsafe_code, reason = "a library is looked for")]
    fn cuda_words_are_the_librarys() {
        // SAFETY: libraries of that name are opened and closed.
        if !unsafe { sys::is_culib_present() } {
            eprintln!("skipped: libcublasLt was not found (the wheel nvidia-cublas, with its lib in LD_LIBRARY_PATH)");
            return;
        }
        let matrix = |dtype, aligned| Matrix { dtype, rows: 24, cols: 40, stride: 32, aligned };
        for (dtype, has_bias, rounds_to_tf32) in
            [(DType::F32, false, true), (DType::F32, true, false), (DType::BF16, true, false)]
        {
            let (a, b, d) = (matrix(dtype, 16), matrix(dtype, 8), matrix(DType::F32, 4));
            let matmul = Matmul { transposes: [true, false], a, b, d, has_bias, rounds_to_tf32 };
            let mut parts = Parts { desc: None, layouts: Vec::new(), preference: None };
            parts.desc = Some(desc(&matmul).expect("a description"));
            parts.preference = Some(preference(&matmul).expect("preferences"));
            parts.layouts = [&a, &b, &d].map(|m| layout(m).expect("a layout")).into();
            let bias = 256_u64;
            let pointer = DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            // SAFETY: the description was made just now, and a place is a number of 64 bits.
            unsafe { set_desc(parts.desc.expect("made"), pointer, &bias) }.expect("a place");
        }
        assert!(layout(&matrix(DType::Q8_0, 16)).is_err());
    }
}
