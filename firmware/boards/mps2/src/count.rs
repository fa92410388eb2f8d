//! Counted instructions.
//!
//! Under `-icount shift=0` the emulator lets a nanosecond pass with every instruction, and SysTick counts at 25 MHz: a
//! tick is 40 instructions. These are instructions, never cycles: there is no pipeline, no wait state, no cache.

use core::sync::atomic::{AtomicU32, Ordering};
pub use cortex_m::peripheral::SYST;
use cortex_m::peripheral::syst::SystClkSource;
use cortex_m_rt::exception;
use tinyforge_firmware::Probe;
use tinyforge_firmware::model::DONE;

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

/// Instructions of every step of a plan, where [`Steps`] is its probe.
static STEPS: [AtomicU32; STEPS_MAX] = [const { AtomicU32::new(0) }; STEPS_MAX];
/// More than any plan has.
pub const STEPS_MAX: usize = 1024;
/// The step that runs, and what had been counted when it began.
static NOW: [AtomicU32; 2] = [AtomicU32::new(DONE), AtomicU32::new(0)];

/// A probe that adds up the instructions of every step; counting must have been started.
pub struct Steps;

impl Probe for Steps {
    fn at(step: u32) {
        // Differences only, so that it may wrap.
        let now = instructions() as u32;
        let [running, since] = &NOW;
        if let Some(sum) = STEPS.get(running.load(Ordering::Relaxed) as usize) {
            let new = now.wrapping_sub(since.load(Ordering::Relaxed));
            sum.store(sum.load(Ordering::Relaxed).wrapping_add(new), Ordering::Relaxed);
        }
        running.store(step, Ordering::Relaxed);
        since.store(now, Ordering::Relaxed);
    }
}

/// Numbers and instructions of the steps that ran since the last call.
pub fn take_steps() -> impl Iterator<Item = (usize, u32)> {
    let sums = STEPS.iter().map(|sum| sum.swap(0, Ordering::Relaxed));
    sums.enumerate().filter(|(_, sum)| *sum != 0)
}

/// The timer, for the one who asks first.
pub fn timer() -> Option<SYST> {
    cortex_m::Peripherals::take().map(|peripherals| peripherals.SYST)
}
