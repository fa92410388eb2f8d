//! Faults of the processor: a line with the place, and an exit code.
#![expect(unsafe_code, reason = "the runtime's form of this handler")]

use crate::{Line, host};
use cortex_m_rt::{ExceptionFrame, exception};

/// Exit code of a fault.
const HARD_FAULT: u32 = 102;

#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    Line::new().text("hard fault at ").hex(frame.pc()).text(" from ").hex(frame.lr()).print();
    host::exit(HARD_FAULT)
}
