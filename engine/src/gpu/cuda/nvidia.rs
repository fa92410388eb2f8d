//! The driver of NVIDIA's cards. Its library is looked for when it is first asked for.

use super::cublaslt::CublasLt;
use super::driver::{Call, Driver, Event, Facts, Function, Recording, Stream};
use super::matmul::{Matmul, Multiply, Product};
use super::nvrtc::compile_cached;
use super::source;
use crate::gpu::{GpuError, Kernel};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::collections::BTreeMap;
use std::ffi::{CString, c_int, c_void};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use tinyforge_plan::DType;

/// The least compute capability that the kernels are compiled for: what CUDA 13 still knows.
const CAPABILITY_MIN: (u32, u32) = (7, 5);
/// Arguments of the widest kernel.
const ARGS_MAX: usize = 16;

/// What went wrong, in the driver's words.
fn says(e: DriverError) -> String {
    let name = e.error_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let text = e.error_string().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{name}: {text}")
}

fn absent(why: String) -> GpuError {
    GpuError::Absent { kind: "cuda", why }
}

/// Loads the driver's library, once.
fn start() -> Result<(), GpuError> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let start = || {
        #[expect(unsafe_code, reason = "a library is looked for")]
        // SAFETY: libraries of the driver's names are opened and closed.
        let is_there = unsafe { sys::is_culib_present() };
        match is_there {
            false => Err("libcuda was not found; install the driver of the NVIDIA card".to_string()),
            true => result::init().map_err(says),
        }
    };
    STARTED.get_or_init(start).clone().map_err(absent)
}

/// Opens the first card; `CUDA_VISIBLE_DEVICES` says which one that is.
///
/// # Errors
/// There is none, it is too old, or its driver refuses.
pub fn open() -> Result<Box<dyn Driver>, GpuError> {
    start()?;
    let count = result::device::get_count().map_err(|e| absent(says(e)))?;
    if count == 0 {
        return Err(absent("the driver sees no card; CUDA_VISIBLE_DEVICES may hide it".to_string()));
    }
    let card = Card::open(0).map_err(|why| GpuError::Lost { device: "cuda:0".to_string(), why })?;
    let (at, least) = (card.capability, CAPABILITY_MIN);
    if at < least {
        let why = format!("compute capability {}.{}, the kernels need {}.{}", at.0, at.1, least.0, least.1);
        return Err(absent(why));
    }
    Ok(Box::new(card))
}

/// What the driver says of every card, the one that a run takes first.
pub fn cards() -> Vec<Facts> {
    let count = start().ok().and_then(|()| result::device::get_count().ok()).unwrap_or(0);
    (0..count).filter_map(|i| Card::open(i).and_then(|c| c.facts()).ok()).collect()
}

/// A card with its primary context, which the process shares.
struct Card {
    device: sys::CUdevice,
    context: sys::CUcontext,
    capability: (u32, u32),
    streams: [sys::CUstream; Stream::ALL.len()],
    memory: OnceLock<sys::CUdeviceptr>,
    pinned: OnceLock<(NonNull<u8>, u64)>,
    /// The library of dense products, or why there is none.
    library: Result<Mutex<CublasLt>, String>,
    made: Mutex<Made>,
}

/// What was made so far, by number.
#[derive(Default)]
struct Made {
    events: Vec<sys::CUevent>,
    recordings: Vec<sys::CUgraphExec>,
    modules: BTreeMap<(&'static str, DType), sys::CUmodule>,
    functions: Vec<sys::CUfunction>,
    by_kernel: BTreeMap<Kernel, (Function, u32)>,
}

// SAFETY: the driver's handles may be used from every thread that the context is current on, and each call makes it so;
// pinned memory is only copied from and to, through pointers.
#[expect(unsafe_code, reason = "handles of the driver")]
unsafe impl Send for Card {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "handles of the driver")]
unsafe impl Sync for Card {}

impl Card {
    fn open(ordinal: c_int) -> Result<Card, String> {
        let device = result::device::get(ordinal).map_err(says)?;
        let attribute = |which| {
            #[expect(unsafe_code, reason = "the driver is a C library")]
            // SAFETY: the device is one that the driver has just named.
            let value = unsafe { result::device::get_attribute(device, which) };
            value.map_err(says).map(|v| u32::try_from(v).unwrap_or(0))
        };
        let capability = (
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        #[expect(unsafe_code, reason = "the driver is a C library")]
        // SAFETY: the device is there; the context is released once, when the card is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(says)?;
        let (memory, pinned, made) = (OnceLock::new(), OnceLock::new(), Mutex::default());
        let streams = [std::ptr::null_mut(); Stream::ALL.len()];
        let library = Err("not looked for yet".to_string());
        let mut card = Card { device, context, capability, streams, memory, pinned, library, made };
        card.enter()?;
        // What it takes of the card's memory is then not free any more for whoever asks.
        card.library = CublasLt::open().map(Mutex::new);
        for stream in &mut card.streams {
            *stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(says)?;
        }
        Ok(card)
    }

    /// Makes the card's context this thread's.
    #[expect(unsafe_code, reason = "the driver is a C library")]
    fn enter(&self) -> Result<(), String> {
        // SAFETY: the context is retained until the card is dropped.
        unsafe { result::ctx::set_current(self.context) }.map_err(says)
    }

    fn library(&self) -> Option<MutexGuard<'_, CublasLt>> {
        self.library.as_ref().ok().map(|l| l.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stream(&self, stream: Stream) -> sys::CUstream {
        let at = Stream::ALL.iter().position(|s| *s == stream).expect("all of them are there");
        self.streams[at]
    }

    fn new_event(&self, flags: sys::CUevent_flags) -> Result<Event, String> {
        self.enter()?;
        let event = result::event::create(flags).map_err(says)?;
        let mut made = self.made();
        made.events.push(event);
        Ok(Event(made.events.len() as u32 - 1))
    }

    /// What the stream for kernels is given by `give`, as a graph that can be launched.
    #[expect(unsafe_code, reason = "the driver is a C library")]
    fn graph(&self, give: &dyn Fn() -> Result<(), String>) -> Result<sys::CUgraphExec, String> {
        // Another thread's calls have nothing to do with it.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as the card; a capture that was begun is ended, whatever comes between; the
        // graph is given back once, after the executable one was made of it.
        unsafe {
            result::stream::begin_capture(self.streams[0], mode).map_err(says)?;
            let given = give();
            let graph = result::stream::end_capture(self.streams[0]).map_err(says);
            let graph = given.and(graph)?;
            let made = sys::CUgraphInstantiate_flags(0);
            let made = result::graph::instantiate(graph, made).map_err(says);
            let _ = result::graph::destroy(graph);
            made
        }
    }

    /// So many bytes of pinned memory.
    fn place(&self, at: u64, bytes: u64) -> *mut u8 {
        let (first, len) = self.pinned.get().expect("pinned memory was asked for at load");
        assert!(at.checked_add(bytes).is_some_and(|end| end <= *len), "{bytes} bytes at {at} are not in {len}");
        first.as_ptr().wrapping_add(at as usize)
    }

    /// Loads a module of a family, compiled for this card.
    #[expect(unsafe_code, reason = "the driver is a C library")]
    fn module(&self, stem: &str, storage: DType) -> Result<sys::CUmodule, String> {
        let load = |image: &[u8]| {
            // SAFETY: NVRTC made the image, now or for the cache, whose files appear whole; text ends with a zero.
            unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(says)
        };
        compile_cached(stem, storage, 10 * self.capability.0 + self.capability.1, load)
    }
}

#[expect(unsafe_code, reason = "the driver is a C library")]
impl Drop for Card {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        let made = std::mem::take(&mut *self.made());
        // SAFETY: everything was made by this card and is given back once; nothing runs any more once the context has
        // come to rest. Errors have nobody to tell, and the process's end gives back what is left.
        unsafe {
            let _ = result::ctx::synchronize();
            self.library = Err("the card is given back".to_string());
            for &event in &made.events {
                let _ = result::event::destroy(event);
            }
            for &recording in &made.recordings {
                let _ = result::graph::exec_destroy(recording);
            }
            for &module in made.modules.values() {
                let _ = result::module::unload(module);
            }
            for &stream in self.streams.iter().filter(|s| !s.is_null()) {
                let _ = result::stream::destroy(stream);
            }
            if let Some(&memory) = self.memory.get() {
                let _ = result::free_sync(memory);
            }
            if let Some((first, _)) = self.pinned.get() {
                let _ = result::free_host(first.as_ptr().cast());
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

#[expect(unsafe_code, reason = "the driver is a C library")]
impl Driver for Card {
    fn facts(&self) -> Result<Facts, String> {
        self.enter()?;
        let (free, total) = result::mem_get_info().map_err(says)?;
        let mut version = 0;
        let attribute = |which| {
            // SAFETY: the device is the card's.
            unsafe { result::device::get_attribute(self.device, which) }.map_err(says)
        };
        let engines = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT)?;
        let processors = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        // SAFETY: it writes the number that it is given the place of.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(says)?;
        let version = u32::try_from(version).unwrap_or(0);
        Ok(Facts {
            name: result::device::get_name(self.device).map_err(says)?,
            total_bytes: total as u64,
            free_bytes: free as u64,
            capability: self.capability,
            driver: (version / 1000, version % 1000 / 10),
            processors: u32::try_from(processors).unwrap_or(0),
            copies_overlap: engines >= 2,
            has_units: self.capability >= (8, 0),
            library: self
                .library()
                .map(|l| l.name.clone())
                .ok_or_else(|| self.library.as_ref().err().cloned().unwrap_or_default()),
        })
    }

    fn function(&self, kernel: Kernel) -> Result<(Function, u32), String> {
        self.enter()?;
        let mut made = self.made();
        if let Some(&known) = made.by_kernel.get(&kernel) {
            return Ok(known);
        }
        let key = (kernel.stem, kernel.storage);
        let module = match made.modules.get(&key) {
            Some(&module) => module,
            None => {
                let module = self.module(kernel.stem, kernel.storage)?;
                made.modules.insert(key, module);
                module
            }
        };
        let text = source::text(kernel.stem).ok_or_else(|| format!("there is no kernels/cuda/{}.cu", kernel.stem))?;
        let (_, threads) = source::kernels(&text)
            .find(|(name, _)| *name == kernel.entry)
            .ok_or_else(|| format!("{}.cu has no kernel `{}`", kernel.stem, kernel.entry))?;
        let name = CString::new(kernel.entry).map_err(|e| e.to_string())?;
        // SAFETY: the module is loaded, and stays so until the card is dropped.
        let function = unsafe { result::module::get_function(module, name) }.map_err(says)?;
        let number = Function(made.functions.len() as u32);
        made.functions.push(function);
        made.by_kernel.insert(kernel, (number, threads));
        Ok((number, threads))
    }

    fn product(&self, matmul: &Matmul) -> Result<Option<Product>, String> {
        self.enter()?;
        self.library().map_or(Ok(None), |mut library| library.product(matmul))
    }

    fn allocate(&self, bytes: u64) -> Result<u64, String> {
        self.enter()?;
        // SAFETY: what is allocated is freed once, when the card is dropped.
        let memory = unsafe { result::malloc_sync(bytes as usize) }.map_err(says)?;
        self.memory.set(memory).map_err(|_| "memory is asked for once".to_string())?;
        Ok(memory)
    }

    fn pin(&self, bytes: u64) -> Result<(), String> {
        self.enter()?;
        // SAFETY: as above.
        let first = unsafe { result::malloc_host(bytes as usize, 0) }.map_err(says)?;
        let first = NonNull::new(first.cast()).ok_or("the driver gave no pinned memory")?;
        self.pinned.set((first, bytes)).map_err(|_| "pinned memory is asked for once".to_string())
    }

    fn pinned(&self, at: u64, bytes: u64, with: &mut dyn FnMut(&mut [u8])) {
        let first = self.place(at, bytes);
        // SAFETY: the place was checked and lives as long as the card; whoever asks has waited for the copies there,
        // and what another thread asks for meanwhile lies apart.
        with(unsafe { std::slice::from_raw_parts_mut(first, bytes as usize) });
    }

    fn event(&self) -> Result<Event, String> {
        self.new_event(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn timer(&self) -> Result<Event, String> {
        self.new_event(sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn elapsed_ns(&self, from: Event, to: Event) -> Result<u64, String> {
        self.enter()?;
        let [from, to] = [from, to].map(|event| self.made().events[event.0 as usize]);
        // SAFETY: both live as long as the card.
        let ms = unsafe { result::event::elapsed(from, to) }.map_err(says)?;
        Ok((f64::from(ms) * 1e6) as u64)
    }

    fn launch(&self, call: &Call) -> Result<(), String> {
        self.enter()?;
        let function = self.made().functions[call.function.0 as usize];
        let mut args = [std::ptr::null_mut::<c_void>(); ARGS_MAX];
        args[0] = call.params.as_ptr().cast_mut().cast();
        for (arg, pointer) in args[1..].iter_mut().zip(&call.pointers) {
            *arg = std::ptr::from_ref(pointer).cast_mut().cast();
        }
        let [x, y, z] = call.grid;
        let args = &mut args[..call.pointers.len() + 1];
        // SAFETY: the arguments are those of the function's text, which a test compares with the rows; the driver
        // copies them before it returns. The plan's checker has made sure of places and sizes, and kernels compare
        // indices that come with the data with their limits.
        unsafe { result::launch_kernel(function, (x, y, z), (call.threads, 1, 1), 0, self.streams[0], args) }
            .map_err(says)
    }

    fn multiply(&self, multiply: &Multiply) -> Result<(), String> {
        self.enter()?;
        let library = self.library().ok_or("the library is not there that made the product")?;
        library.multiply(multiply, self.streams[0])
    }

    fn capture(&self, give: &dyn Fn() -> Result<(), String>) -> Result<Option<Recording>, String> {
        self.enter()?;
        let Ok(graph) = self.graph(give) else { return Ok(None) };
        let mut made = self.made();
        made.recordings.push(graph);
        Ok(Some(Recording(made.recordings.len() as u32 - 1)))
    }

    fn replay(&self, recording: Recording) -> Result<(), String> {
        self.enter()?;
        let graph = self.made().recordings[recording.0 as usize];
        // SAFETY: both live as long as the card; what the graph does was checked when it was given.
        unsafe { result::graph::launch(graph, self.streams[0]) }.map_err(says)
    }

    fn up(&self, stream: Stream, pinned: u64, address: u64, bytes: u64) -> Result<(), String> {
        self.enter()?;
        let from = self.place(pinned, bytes).cast_const().cast::<c_void>();
        // SAFETY: both places were planned; pinned memory lives as long as the card.
        unsafe { sys::cuMemcpyHtoDAsync_v2(address, from, bytes as usize, self.stream(stream)) }.result().map_err(says)
    }

    fn down(&self, stream: Stream, address: u64, pinned: u64, bytes: u64) -> Result<(), String> {
        self.enter()?;
        let to = self.place(pinned, bytes).cast::<c_void>();
        // SAFETY: as above.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to, address, bytes as usize, self.stream(stream)) }.result().map_err(says)
    }

    fn set(&self, address: u64, bytes: u64, byte: u8) -> Result<(), String> {
        self.enter()?;
        // SAFETY: the place was planned.
        unsafe { result::memset_d8_async(address, byte, bytes as usize, self.stream(Stream::Compute)) }.map_err(says)
    }

    fn record(&self, event: Event, stream: Stream) -> Result<(), String> {
        self.enter()?;
        let event = self.made().events[event.0 as usize];
        // SAFETY: both live as long as the card.
        unsafe { result::event::record(event, self.stream(stream)) }.map_err(says)
    }

    fn follow(&self, stream: Stream, event: Event) -> Result<(), String> {
        self.enter()?;
        let event = self.made().events[event.0 as usize];
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as above.
        unsafe { result::stream::wait_event(self.stream(stream), event, flags) }.map_err(says)
    }

    fn wait(&self, event: Event) -> Result<(), String> {
        self.enter()?;
        let event = self.made().events[event.0 as usize];
        // SAFETY: as above.
        unsafe { result::event::synchronize(event) }.map_err(says)
    }
}
