//! Counted instructions.
//!
//! Under `-icount shift=0` the emulator lets a nanosecond pass with every instruction, and SysTick counts at 25 MHz: a
//! tick is 40 instructions. These are instructions, never cycles: there is no pipeline, no wait state, no cache.

use core::sync::atomic::{AtomicU32, Ordering};
use cortex_m::peripheral::{SYST, syst::SystClkSource};
use cortex_m_rt::exception;

/// Instructions of one tick.
pub const TICK_INSTRUCTIONS: u64 = 40;
const RELOAD: u32 = 0x00ff_ffff;

static WRAPS: AtomicU32 = AtomicU32::new(0);

#[exception]
fn SysTick() {
    WRAPS.store(WRAPS.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// Counts from now on; again from 0 when called again.
pub fn start(timer: &mut SYST) {
    timer.disable_counter();
    timer.set_clock_source(SystClkSource::Core);
    timer.set_reload(RELOAD);
    timer.clear_current();
    WRAPS.store(0, Ordering::Relaxed);
    timer.enable_interrupt();
    timer.enable_counter();
    // The counter stands at 0 until the first tick loads it.
    while SYST::get_current() == 0 {}
}

/// Instructions since `start`, to 40.
pub fn instructions() -> u64 {
    loop {
        let before = WRAPS.load(Ordering::Relaxed);
        let left = SYST::get_current();
        if before == WRAPS.load(Ordering::Relaxed) {
            let ticks = u64::from(before) * (u64::from(RELOAD) + 1) + u64::from(RELOAD.wrapping_sub(left) & RELOAD);
            return ticks * TICK_INSTRUCTIONS;
        }
    }
}

/// The timer, for the one who asks first.
pub fn timer() -> Option<SYST> {
    cortex_m::Peripherals::take().map(|peripherals| peripherals.SYST)
}
