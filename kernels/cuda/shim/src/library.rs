//! A .cu file as a library of the host: compiled, opened, called.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use tinyforge::gpu::cuda::{self, Call};
use tinyforge_plan::DType;

const SHIM: &str = include_str!("../shim.h");
const FUNCTIONS: &str = include_str!("../library.h");

/// The C++ compiler: `CXX`, or `c++`.
fn program() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".to_string())
}

/// What compiles, in its own words.
pub fn compiler() -> Result<String, String> {
    static FOUND: OnceLock<Result<String, String>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let output = Command::new(program()).arg("--version").output();
            let output = output.map_err(|e| format!("`{}` cannot be started: {e}; install g++", program()))?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(text.lines().next().unwrap_or_default().to_string())
        })
        .clone()
}

/// Products and sums stay apart; what `fmaf` says is one operation, without a call where the processor has it. Memory
/// may be read as another type than it was written as, as on a card.
fn flags() -> Vec<&'static str> {
    let mut flags = vec!["-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off"];
    flags.extend(["-U_FORTIFY_SOURCE", "-Wall", "-Wno-unused-function", "-Wno-unused-but-set-variable"]);
    flags.push("-fno-strict-aliasing");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        flags.extend(["-mavx2", "-mfma"]);
    }
    flags
}

/// A library that stays open to the process's end.
pub struct Library {
    stem: String,
    inner: libloading::Library,
}

/// A kernel of a library.
#[derive(Clone, Copy)]
pub struct Entry {
    inner: *const c_void,
    operands: u32,
    run: Run,
}

type Run = unsafe extern "C" fn(*const c_void, *const u32, u32, u32, bool, *mut *mut c_void) -> *const c_char;

// SAFETY: an entry is a constant of a library that is never closed, and the library keeps what runs by thread.
#[expect(unsafe_code, reason = "entries are constants of a library")]
unsafe impl Send for Entry {}

impl Library {
    /// The library of an op family, compiled where it was not before.
    pub fn of(stem: &str) -> Result<&'static Library, String> {
        static OPEN: Mutex<BTreeMap<String, &'static Library>> = Mutex::new(BTreeMap::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = open.get(stem) {
            return Ok(library);
        }
        let text = cuda::text(stem).ok_or_else(|| format!("there is no kernels/cuda/{stem}.cu"))?;
        let library = Library::of_text(stem, &text)?;
        open.insert(stem.to_string(), library);
        Ok(library)
    }

    /// The library of a text; it stays open, since entries point into it.
    fn of_text(stem: &str, text: &str) -> Result<&'static Library, String> {
        let path = compiled(stem, text)?;
        #[expect(unsafe_code, reason = "a library is opened")]
        // SAFETY: it was made of our own text, and does nothing when it is opened.
        let inner = unsafe { libloading::Library::new(&path) }.map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Box::leak(Box::new(Library { stem: stem.to_string(), inner })))
    }

    /// A kernel.
    #[expect(unsafe_code, reason = "functions of a library")]
    pub fn entry(&self, name: &str) -> Result<Entry, String> {
        type Find = unsafe extern "C" fn(*const c_char) -> *const c_void;
        type Operands = unsafe extern "C" fn(*const c_void) -> u32;
        let missing = |e: libloading::Error| format!("{}: {e}", self.stem);
        let c_name = CString::new(name).map_err(|e| e.to_string())?;
        // SAFETY: `library.h` declares the three functions with these types.
        unsafe {
            let find = self.inner.get::<Find>(b"tinyforge_find\0").map_err(missing)?;
            let operands = self.inner.get::<Operands>(b"tinyforge_operands\0").map_err(missing)?;
            let run = *self.inner.get::<Run>(b"tinyforge_launch\0").map_err(missing)?;
            let inner = find(c_name.as_ptr());
            if inner.is_null() {
                return Err(format!("{}.cu has no kernel `{name}`", self.stem));
            }
            Ok(Entry { inner, operands: operands(inner), run })
        }
    }
}

impl Entry {
    /// How many arguments it takes.
    pub fn operands(&self) -> u32 {
        self.operands
    }

    /// Runs it.
    pub fn launch(&self, call: &Call, storage: DType, descending: bool) -> Result<(), String> {
        let mut pointers = call.pointers.clone();
        let mut params = call.params;
        let mut args: Vec<*mut c_void> = vec![params.as_mut_ptr().cast()];
        args.extend(pointers.iter_mut().map(|p| std::ptr::from_mut(p).cast()));
        let (grid, storage) = (call.grid.as_ptr(), storage as u32);
        #[expect(unsafe_code, reason = "a kernel of the library is called")]
        // SAFETY: the number of arguments was compared when the call was given; each points into the card's memory, and
        // that it stays inside is what the tests are for.
        let wrong = unsafe { (self.run)(self.inner, grid, call.threads, storage, descending, args.as_mut_ptr()) };
        if wrong.is_null() {
            return Ok(());
        }
        #[expect(unsafe_code, reason = "a text of the library is read")]
        // SAFETY: it is a constant of the library, which ends with a zero.
        let wrong = unsafe { CStr::from_ptr(wrong) };
        Err(wrong.to_string_lossy().into_owned())
    }
}

/// Words as bytes.
#[expect(unsafe_code, reason = "memory is seen as bytes")]
pub fn bytes_of(words: &mut [u128]) -> &mut [u8] {
    let len = std::mem::size_of_val(words);
    // SAFETY: the same bytes, borrowed for as long; every value of a byte is one of a word and the reverse.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), len) }
}

/// The file of a family's library; its name holds what it was made of, so one that is there is as it would be made.
fn compiled(stem: &str, text: &str) -> Result<PathBuf, String> {
    let mut whole = format!("{SHIM}\n#line 1 \"{stem}.cu\"\n{text}\nstatic const shim::Entry entries[] = {{\n");
    for (name, _) in cuda::kernels(text) {
        writeln!(whole, "  SHIM_ENTRY({name}),").expect("a string takes all");
    }
    whole.push_str("};\n");
    whole.push_str(FUNCTIONS);
    let mut hash = std::hash::DefaultHasher::new();
    std::hash::Hash::hash(&(&whole, flags(), compiler()?), &mut hash);
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../target/cuda/shim");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let path = folder.join(format!("{stem}-{:016x}.so", std::hash::Hasher::finish(&hash)));
    if path.exists() {
        return Ok(path);
    }
    // Others may make the same at the same time: each a file of its own, and the last one's name stays.
    let own = folder.join(format!("{stem}-{}", std::process::id()));
    let (source, made) = (own.with_extension("cpp"), own.with_extension("tmp"));
    std::fs::write(&source, whole.replace("#pragma once\n", "")).map_err(|e| format!("{}: {e}", source.display()))?;
    let output = Command::new(program()).args(flags()).arg("-o").arg(&made).arg(&source).output();
    let output = output.map_err(|e| format!("`{}` cannot be started: {e}", program()))?;
    if !output.status.success() {
        return Err(format!("{stem}.cu as C++: {}", String::from_utf8_lossy(&output.stderr)));
    }
    std::fs::rename(&made, &path).map_err(|e| format!("{}: {e}", path.display()))?;
    let _ = std::fs::remove_file(&source);
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tinyforge::gpu::Params;
    use tinyforge::gpu::cuda::{COMMON, Function, MMA};

    /// A block of 64 threads: each writes a place, and reads another's.
    fn reversed(barrier: &str) -> String {
        format!(
            "{COMMON}
struct Params {{ u32 step; }};
KERNEL(64) reversed(Params p, u32 *status, float *y) {{
  __shared__ float lanes[64];
  lanes[threadIdx.x] = static_cast<float>(threadIdx.x);
  {barrier}
  y[threadIdx.x] = lanes[63 - threadIdx.x];
}}
KERNEL(64) summed(Params p, u32 *status, float *y) {{
  __shared__ float lanes[64];
  y[threadIdx.x] = block_sum<64>(lanes, static_cast<float>(threadIdx.x)) + block_max<64>(lanes, y[0]);
}}
"
        )
    }

    /// What a kernel of the text leaves, or what is wrong with it.
    fn run(name: &str, text: (&str, &str), descending: bool) -> Result<Vec<f32>, String> {
        run_on(vec![-1.0; 64], name, text, descending)
    }

    fn run_on(mut y: Vec<f32>, name: &str, (text, kernel): (&str, &str), descending: bool) -> Result<Vec<f32>, String> {
        let (_, threads) = cuda::kernels(text).find(|(found, _)| *found == kernel).ok_or("it is not there")?;
        let entry = Library::of_text(name, text)?.entry(kernel)?;
        let pointers = vec![0, y.as_mut_ptr() as u64];
        let params = [0; Params::WORDS];
        let call = Call { function: Function(0), grid: [1, 1, 1], threads, params, pointers };
        entry.launch(&call, DType::F32, descending).map(|()| y)
    }

    /// A warp's product of `a`, 16 x 16, and `b`, 16 x 8, which lie one behind the other with the result behind them;
    /// words `of` of a lane's four of `a`, by lanes of which `condition` is true.
    fn product(of: [u32; 4], condition: &str) -> String {
        let [w0, w1, w2, w3] = of;
        format!(
            "{COMMON}{MMA}
struct Params {{ u32 step; }};
KERNEL(32) product(Params p, u32 *status, float *y) {{
  u32 g = threadIdx.x / 4, t = threadIdx.x % 4, a[4], b[2];
  for (u32 i = 0; i < 4; i++) {{
    const float *pair = y + 16 * (g + 8 * (i % 2)) + 2 * t + 8 * (i / 2);
    a[i] = bf16_pair(pair[0], pair[1]);
  }}
  for (u32 i = 0; i < 2; i++) {{
    const float *pair = y + 256 + 8 * (2 * t + 8 * i) + g;
    b[i] = bf16_pair(pair[0], pair[8]);
  }}
  float sum[4] = {{}};
  if ({condition}) multiply_16(sum, a[{w0}], a[{w1}], a[{w2}], a[{w3}], b[0], b[1]);
  for (u32 e = 0; e < 4; e++) y[384 + 8 * (g + 8 * (e / 2)) + 2 * t + e % 2] = sum[e];
}}
"
        )
    }

    #[test]
    fn products_in_matrix_units_are_products() {
        if compiler().is_err() {
            eprintln!("skipped: no C++ compiler (Debian: g++)");
            return;
        }
        // Small whole numbers, so that sums are exact; all rows and columns differ.
        let mut y: Vec<f32> = (0..512_u16).map(|i| f32::from(i * 37 % 101) - 50.0).collect();
        let sum = |i: usize, j: usize| (0..16).map(|k| y[16 * i + k] * y[256 + 8 * k + j]).sum::<f32>();
        let wanted: Vec<f32> = (0..128).map(|at| sum(at / 8, at % 8)).collect();
        y[384..].fill(-1.0);
        let good = product([0, 1, 2, 3], "true");
        for descending in [false, true] {
            let found = run_on(y.clone(), "test-product", (&good, "product"), descending).expect("runs");
            assert_eq!(found[384..], wanted);
        }
        for swapped in [[1, 0, 2, 3], [0, 2, 1, 3], [0, 1, 3, 2], [2, 1, 0, 3]] {
            let text = product(swapped, "true");
            let found = run_on(y.clone(), "test-swapped", (&text, "product"), false).expect("runs");
            assert_ne!(found[384..], wanted, "{swapped:?}");
        }
        let lacking = product([0, 1, 2, 3], "threadIdx.x != 5");
        for descending in [false, true] {
            let why = run_on(y.clone(), "test-lacking", (&lacking, "product"), descending).expect_err("lacks a lane");
            assert!(why.contains("lacks lanes"), "{why}");
        }
    }

    #[test]
    fn barriers_are_kept_and_missed() {
        if compiler().is_err() {
            eprintln!("skipped: no C++ compiler (Debian: g++)");
            return;
        }
        let backward: Vec<f32> = (0..64_u8).rev().map(f32::from).collect();
        let good = reversed("__syncthreads();");
        for descending in [false, true] {
            assert_eq!(run("test-good", (&good, "reversed"), descending).as_ref(), Ok(&backward));
            let summed = run("test-good", (&good, "summed"), descending).expect("runs");
            assert_eq!(summed, [2016.0 - 1.0; 64], "a sum of 64 threads by shuffles, and their largest");
        }
        let missing = reversed("");
        let both = [false, true].map(|descending| run("test-missing", (&missing, "reversed"), descending));
        assert_ne!(both[0], both[1], "a kernel without its barrier gives other bytes in another order");
        let divergent = reversed("if (threadIdx.x < 7) __syncthreads();");
        // Those that pass by end, so the others go on: as on a card, where ended threads are not waited for.
        assert!(run("test-divergent", (&divergent, "reversed"), false).is_ok());
        let stuck = reversed("if (threadIdx.x == 0) __syncthreads(); else __syncwarp();");
        let why = run("test-stuck", (&stuck, "reversed"), false).expect_err("a warp waits at two barriers");
        assert!(why.contains("barrier"), "{why}");
    }
}
