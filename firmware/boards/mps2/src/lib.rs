//! The boards mps2-an386 (Cortex-M4F) and mps2-an500 (Cortex-M7) as QEMU emulates them: console, files of the host,
//! stack, counted instructions, a flash for checkpoints.
//!
//! Invariant: no formatting machinery and no panic, so that a program's size and symbols are those of the code under
//! test. Not for hardware: a real board has no semihosting without a debugger.
#![no_std]

pub mod console;
pub mod count;
pub mod flash;
pub mod host;
pub mod stack;

pub use console::Line;
pub use cortex_m_rt::entry;

use core::panic::PanicInfo;
use cortex_m_rt::{ExceptionFrame, exception};

/// Exit code of a panic.
const PANIC: u32 = 101;
/// Exit code of a fault of the processor.
const HARD_FAULT: u32 = 102;

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    host::exit(PANIC)
}

#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    Line::new().text("hard fault at ").hex(frame.pc()).text(" from ").hex(frame.lr()).print();
    host::exit(HARD_FAULT)
}

/// Sets the processor back, as a loss of power would, and starts the program anew.
pub fn reset() -> ! {
    cortex_m::peripheral::SCB::sys_reset()
}
