//! The boards mps2-an386 (Cortex-M4F) and mps2-an500 (Cortex-M7) as QEMU emulates them: console, files of the host,
//! stack, counted instructions, a flash for checkpoints.
//!
//! Invariant: no formatting machinery and no panic, so that a program's size and symbols are those of the code under
//! test. Not for hardware: a real board has no semihosting without a debugger.
#![no_std]

pub mod console;
pub mod count;
mod fault;
pub mod flash;
pub mod host;
pub mod stack;

pub use console::Line;
pub use cortex_m_rt::entry;

use core::panic::PanicInfo;

/// Exit code of a panic.
const PANIC: u32 = 101;

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    host::exit(PANIC)
}

/// Sets the processor back, as a loss of power would, and starts the program anew.
pub fn reset() -> ! {
    cortex_m::peripheral::SCB::sys_reset()
}
