//! Measures this machine: what products, memory, disk and every kernel reach. The result is a machine's description, in
//! the same form as those of machines that one does not have.

mod kernels;
pub mod one_by_one;
mod rates;

pub use kernels::BEYOND_CACHES;

use crate::error::CommandError;
use std::path::PathBuf;
use std::time::Duration;
use tinyforge::disk::{self, DiskRates};
use tinyforge::runner::STACK_BYTES;
use tinyforge_compiler::machine::{Machine, Rates};
use tinyforge_kernels::f32::dense::Compute;
use tinyforge_kernels::par::Par;

/// What is measured, and where.
pub struct Options {
    /// Worker threads.
    pub threads: u32,
    /// Folder for a temporary file.
    pub folder: PathBuf,
    /// A file to be read in its place.
    pub file: Option<PathBuf>,
    /// How long each rate is measured, and each direction of the disk.
    pub times: [Duration; 2],
    /// Bytes of weights that models have of which kernels are measured, where the machine has room.
    pub weight_bytes: u64,
}

/// What was measured, beyond what the description holds.
pub struct Measured {
    /// The description.
    pub machine: Machine,
    /// FLOP/s of one thread: f32, bf16.
    pub one_thread: [f64; 2],
    /// Bytes a second of our AdamW update.
    pub adamw_bytes_per_second: f64,
    /// The disk.
    pub disk: DiskRates,
}

/// Times that give the same rates from run to run on an idle machine.
pub const TIMES: [Duration; 2] = [Duration::from_millis(700), Duration::from_millis(2000)];
/// The most that is written to disk.
const DISK_BYTES: u64 = 2 << 30;

/// Measures everything; `note` is told what comes next.
///
/// # Errors
/// The disk cannot be used, or the system refuses threads.
pub fn measure(options: &Options, note: &mut dyn FnMut(&str)) -> Result<Measured, CommandError> {
    let par = |threads| Par::new(threads as usize, STACK_BYTES).map_err(CommandError::run);
    let (one, all) = (par(1)?, par(options.threads)?);
    let [rate_time, disk_time] = options.times;
    note("products");
    let flops = |par: &Par| [Compute::F32, Compute::BF16].map(|compute| rates::product(par, compute, rate_time));
    let (one_thread, all_threads) = (flops(&one), flops(&all));
    note("memory");
    let near = rates::copy(&all, rate_time);
    let adamw = rates::adamw(&all, rate_time);
    note("disk");
    let disk = match &options.file {
        Some(file) => disk::of_file(file, disk_time)?,
        None => disk::of_folder(&options.folder, DISK_BYTES, disk_time)?,
    };
    let mut machine = Machine::from_name("cpu").expect("built in");
    machine.figures =
        format!("measured by `tinyforge bench` {} on {}", env!("CARGO_PKG_VERSION"), crate::run::processor());
    machine.name = "this machine".to_string();
    machine.threads = Some(options.threads);
    machine.rates = Rates {
        f32: Some(all_threads[0]),
        bf16: Some(all_threads[1]),
        near_bytes_per_second: Some(near),
        optimizer_bytes_per_second: Some(near),
        ..Rates::default()
    };
    machine.spaces[0].bytes = crate::fixed::machine_bytes();
    for link in &mut machine.links {
        let is_read = link.from == "disk";
        link.bytes_per_second = if is_read { Some(disk.read_bytes_per_second) } else { disk.write_bytes_per_second };
        link.latency_s = disk.latency_s;
    }
    note("kernels");
    kernels::measure(&mut machine, options, 3 * rate_time)?;
    Ok(Measured { machine, one_thread, adamw_bytes_per_second: adamw, disk })
}
