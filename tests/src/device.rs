//! Graphs on a device: compiled as the command line compiles them, filled, run and read back.

use crate::storage;
use std::collections::BTreeMap;
use tinyforge::cpu::CpuKernels;
use tinyforge::gpu::wgpu::Cooperative;
use tinyforge::gpu::{GpuKernels, cuda};
use tinyforge::runner::{DeviceChoice, RunOptions, Runner};
use tinyforge_compiler::compile::{CompileError, Compiled, Entry, Request, Role, compile};
use tinyforge_compiler::ir::graph::{Builder, Graph, Kind, Region};
use tinyforge_compiler::ir::ops::Op;
use tinyforge_compiler::ir::types::Type;
use tinyforge_compiler::scheme::Scheme;
use tinyforge_compiler::target::Target;
use tinyforge_plan::{Kernels, Named, Plan, StoredKind, Tensor};

/// Name of the entry that [`compile_forward`] makes.
pub const ENTRY: &str = "forward";

/// A device that tests run plans on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// The CPU with so many threads.
    Cpu(u32),
    /// The best adapter of wgpu, with the dense product that every adapter makes in the same order.
    Wgpu,
    /// The same with what every adapter has: lanes added without subgroups, bytes copied to it.
    WgpuPlain,
    /// The best adapter, with dense products by cooperative matrices.
    WgpuCooperative,
    /// The kernels of CUDA on the host, with the threads of a block in one order or the other, and with or without a
    /// library of dense products.
    CudaShim(Order, Library),
}

impl Device {
    /// What plans are made for.
    pub fn target(self) -> Target {
        match self {
            Device::Cpu(_) => Target::CPU,
            Device::Wgpu | Device::WgpuPlain | Device::WgpuCooperative => Target::WGPU,
            Device::CudaShim(..) => Target::CUDA,
        }
    }

    /// What runs them.
    pub fn choice(self) -> DeviceChoice {
        match self {
            Device::Cpu(_) => DeviceChoice::Cpu,
            Device::Wgpu | Device::WgpuPlain | Device::WgpuCooperative => DeviceChoice::Wgpu,
            Device::CudaShim(..) => DeviceChoice::Cuda,
        }
    }

    /// What opens its card: with `TINYFORGE_CUDA=card` a real one, for the kernels on it.
    pub fn driver(self) -> Option<cuda::Open> {
        match self {
            Device::CudaShim(..) if wants_card() => Some(cuda::open_default),
            Device::CudaShim(Order::Ascending, Library::Absent) => Some(tinyforge_cuda_shim::ascending),
            Device::CudaShim(Order::Descending, Library::Absent) => Some(tinyforge_cuda_shim::descending),
            Device::CudaShim(Order::Ascending, Library::There) => Some(tinyforge_cuda_shim::ascending_by_library),
            Device::CudaShim(Order::Descending, Library::There) => Some(tinyforge_cuda_shim::descending_by_library),
            _ => None,
        }
    }

    /// Traits of the adapter that are left alone.
    pub fn without(self) -> &'static [&'static str] {
        match self {
            Device::Wgpu => &["cooperative matrices"],
            Device::WgpuPlain => &["cooperative matrices", "subgroups", "mappable buffers"],
            _ => &[],
        }
    }

    /// Worker threads.
    pub fn threads(self) -> u32 {
        match self {
            Device::Cpu(threads) => threads,
            Device::Wgpu | Device::WgpuPlain | Device::WgpuCooperative | Device::CudaShim(..) => 1,
        }
    }

    /// What its kernels can do.
    pub fn kernels(self) -> Box<dyn Kernels> {
        match self {
            Device::Cpu(threads) => Box::new(CpuKernels { threads }),
            // The least that any adapter gives.
            Device::Wgpu | Device::WgpuPlain | Device::WgpuCooperative => Box::new(GpuKernels {
                operand_bytes_max: 128 << 20,
                takes_products: false,
                has_own_memory: false,
                updates_as_host: false,
            }),
            Device::CudaShim(..) => Box::new(cuda::KERNELS),
        }
    }
}

/// In which order the threads of a block come between two barriers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// The first one first.
    Ascending,
    /// The last one first.
    Descending,
}

/// Whether a library multiplies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Library {
    /// The kernels of this program do.
    Absent,
    /// It does where it can.
    There,
}

fn wants_card() -> bool {
    std::env::var("TINYFORGE_CUDA").is_ok_and(|v| v == "card")
}

/// Whether the kernels of CUDA can be compiled for the host. Where they must be (`TINYFORGE_CUDA=require`) and cannot,
/// the test fails; elsewhere it says what is missing.
///
/// # Panics
/// There is no compiler where there must be one.
pub fn has_cuda_shim() -> bool {
    wants_card()
        || is_there("TINYFORGE_CUDA", "g++", || tinyforge_cuda_shim::compiler().map(drop).map_err(|e| e.to_string()))
}

/// Whether there is an adapter for wgpu. Where there must be one (`TINYFORGE_WGPU=require`) and is none, the test
/// fails; elsewhere it says what is missing.
///
/// # Panics
/// There is none where there must be one.
pub fn has_wgpu() -> bool {
    let look = || tinyforge::gpu::wgpu::default_adapter().map(drop).map_err(|e| e.to_string());
    is_there("TINYFORGE_WGPU", "mesa-vulkan-drivers, libvulkan1", look)
}

/// Whether the best adapter multiplies by cooperative matrices; few do.
///
/// # Panics
/// It has them, and they fail the test that comes before they are used.
pub fn has_wgpu_cooperative() -> bool {
    if !has_wgpu() {
        return false;
    }
    let adapter = tinyforge::gpu::wgpu::default_adapter().expect("looked for before");
    match adapter.cooperative().expect("it opens") {
        Cooperative::F32 => true,
        Cooperative::Absent => {
            eprintln!("skipped: {} has no cooperative matrices of f32", adapter.name);
            false
        }
        failed @ Cooperative::Failed(_) => panic!("cooperative matrices of {}: {failed}", adapter.name),
    }
}

/// Whether what tests of a device need was found. Where it must be (`VARIABLE=require`) and is not, the test fails;
/// elsewhere it says what is missing, and the Debian packages that have it. `VARIABLE=skip` leaves the tests out.
fn is_there(variable: &str, packages: &str, look: impl FnOnce() -> Result<(), String>) -> bool {
    let asked = std::env::var(variable).unwrap_or_default();
    if asked == "skip" {
        eprintln!("skipped: {variable}=skip");
        return false;
    }
    let Err(why) = look() else { return true };
    assert!(asked != "require", "{variable}=require, and {why}");
    eprintln!("skipped: {why} (Debian: {packages})");
    false
}

/// Compiles a graph that is only run forward. Every run must have a result, so the graph gets one more weight, which
/// nothing of it reads.
///
/// # Errors
/// The device has no kernel for something.
pub fn compile_forward(graph: &Graph, device: Device) -> Result<Plan, CompileError> {
    let mut graph = graph.clone();
    let block = graph.block("layers.0");
    let anchor = graph.declare(Kind::Weight, "anchor", Type::f32(&[1]));
    let mut b = Builder::new(&mut graph);
    b.at(block, Region::Forward);
    let out = b.push1("anchored", Op::Scale, &[anchor], &[]);
    graph.results.push(("anchored".to_string(), out));
    compile_on(ENTRY, graph, (device.target(), &*device.kernels(), device.threads()))
}

/// Compiles a graph, as it is, to a plan's one entry that is only run forward.
///
/// # Errors
/// The device has no kernel for something.
pub fn compile_entry(name: &str, graph: Graph, target: Target, threads: u32) -> Result<Plan, CompileError> {
    compile_on(name, graph, (target, &CpuKernels { threads }, threads))
}

fn compile_on(
    name: &str,
    graph: Graph,
    (target, kernels, threads): (Target, &dyn Kernels, u32),
) -> Result<Plan, CompileError> {
    let request = Request {
        scheme: Scheme::frozen(),
        target,
        threads,
        ..Request::plain(name, vec![Entry { name: name.to_string(), graph, role: Role::Forward }], kernels)
    };
    compile(&request).map(|Compiled { plan, .. }| plan)
}

/// Bytes by the names of declared tensors and results.
pub type Bytes = BTreeMap<String, Vec<u8>>;

/// Runs the entry of a plan over an arena that is full of `poison`, and returns the bytes of its results and of the
/// stored tensors that it changes.
///
/// # Panics
/// The plan is damaged, or a kernel refuses its data, or it writes where nothing was planned.
pub fn run(plan: &Plan, contents: &Bytes, poison: u8, device: Device) -> Bytes {
    let (choice, driver, without) = (device.choice(), device.driver(), device.without());
    let options = RunOptions { device: choice, driver, without, ..RunOptions::default() };
    let mut runner = Runner::new(plan.clone(), options).expect("a compiled plan runs");
    let entry = runner.entry(ENTRY).expect("the plan has the entry");
    runner.fill(poison).expect("the device is there");
    let set = |bytes: &mut [u8], name: &String| match contents.get(name) {
        Some(given) => bytes.copy_from_slice(given),
        None => bytes.fill(0),
    };
    for stored in &plan.stored {
        runner.change(&stored.tensor, |bytes| set(bytes, &stored.name)).expect("the device is there");
    }
    for input in &plan.entries[entry].inputs {
        set(runner.input(entry, &input.name), &input.name);
    }
    runner.run(entry).expect("the samples hold nothing that a kernel refuses");
    let named = |n: &Named| (n.name.clone(), runner.result(entry, &n.name).to_vec());
    let results: Vec<(String, Vec<u8>)> = plan.entries[entry].results.iter().map(named).collect();
    let mut read = |tensor: &Tensor| runner.fetch(tensor).expect("the device is there").to_vec();
    for stored in plan.stored.iter().filter(|s| !s.changes) {
        let unchanged = contents.get(&stored.name).is_none_or(|bytes| *bytes == read(&stored.tensor));
        assert!(unchanged, "`{}` is changed, and the plan does not say so", stored.name);
    }
    let changed = plan.stored.iter().filter(|s| s.changes && s.kind != StoredKind::Const);
    let changed: Vec<(String, Vec<u8>)> = changed.map(|s| (s.name.clone(), read(&s.tensor))).collect();
    results.into_iter().chain(changed).collect()
}

/// The numbers of a result.
pub fn numbers(graph: &Graph, name: &str, bytes: &[u8]) -> Vec<f64> {
    let v = graph.result(name).or_else(|| graph.find(name)).expect("the plan's names are the graph's");
    storage::load(graph.ty(v).dtype, bytes)
}
