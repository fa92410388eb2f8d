//! The C interface of a compiled model: what `firmware/include/tinyforge.h` declares.
//!
//! Invariant: a static library holds one model; every function gives 0 or a [`Fault`] and touches nothing on a null
//! pointer. Calls may come from any one thread at a time: a call during a call is refused. Not for Rust applications,
//! which use [`crate::Learner`].
//!
//! A crate of type `staticlib` writes `tinyforge_firmware::c_interface!(Net = Net::new(), write 4, erase 1024);` with
//! its model and the units of the flash that checkpoints go to.
#![expect(unsafe_code, reason = "the C ABI: pointers of the caller")]

use crate::arena::Place;
use crate::fault::Fault;
use crate::learner::Learner;
use crate::model::Model;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, Ordering};
use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash};

/// `struct tinyforge_flash`: a flash driver of the application.
///
/// The functions give 0 for success. Offsets and lengths are whole units: `write_bytes` for reading and writing,
/// `erase_bytes` for erasing.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FlashDriver {
    /// Handed to every function.
    pub context: *mut c_void,
    /// The region for checkpoints: its first byte, as the functions count.
    pub start: u32,
    /// Its length in bytes.
    pub len: u32,
    /// Reads `len` bytes at `at`.
    pub read: Option<unsafe extern "C" fn(context: *mut c_void, at: u32, bytes: *mut u8, len: u32) -> i32>,
    /// Writes `len` bytes at `at`, which were erased.
    pub write: Option<unsafe extern "C" fn(context: *mut c_void, at: u32, bytes: *const u8, len: u32) -> i32>,
    /// Sets `len` bytes at `at` to 0xff.
    pub erase: Option<unsafe extern "C" fn(context: *mut c_void, at: u32, len: u32) -> i32>,
}

/// `struct tinyforge_counters`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CounterValues {
    /// The run's seed.
    pub seed: u64,
    /// Examples learnt from.
    pub examples: u64,
    /// Training steps.
    pub steps: u32,
    /// Times loaded from flash.
    pub loads: u32,
    /// CRC-32 of the state.
    pub digest: u32,
    /// Bytes of the region that one checkpoint takes.
    pub slot_bytes: u32,
}

/// `struct tinyforge_score`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ScoreValues {
    /// Examples of which the class was right.
    pub right: u32,
    /// Examples.
    pub seen: u32,
}

/// `tinyforge_next`: writes an example and gives its label; a negative one when there is no further example.
pub type NextExample = unsafe extern "C" fn(context: *mut c_void, input: *mut i8) -> i32;

/// The example at `input`; `None` for a null pointer.
///
/// # Safety
/// `input` is null or points to `INPUT_LEN` numbers that live as long as the reference is used.
unsafe fn example<'a, M: Model>(input: *const i8) -> Option<&'a [i8]> {
    // SAFETY: not null; the caller's promise.
    (!input.is_null()).then(|| unsafe { core::slice::from_raw_parts(input, M::INPUT_LEN) })
}

/// A driver with its units as types.
struct Flash<const WRITE: usize, const ERASE: usize>(FlashDriver);

#[derive(Debug)]
struct DriverError;

impl NorFlashError for DriverError {
    fn kind(&self) -> NorFlashErrorKind {
        NorFlashErrorKind::Other
    }
}

impl<const WRITE: usize, const ERASE: usize> ErrorType for Flash<WRITE, ERASE> {
    type Error = DriverError;
}

fn done(code: Option<i32>) -> Result<(), DriverError> {
    if code == Some(0) { Ok(()) } else { Err(DriverError) }
}

impl<const WRITE: usize, const ERASE: usize> ReadNorFlash for Flash<WRITE, ERASE> {
    const READ_SIZE: usize = WRITE;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), DriverError> {
        let FlashDriver { context, read, .. } = self.0;
        // SAFETY: the driver's promise in `tinyforge.h`; pointer and length are one slice's.
        done(read.map(|read| unsafe { read(context, offset, bytes.as_mut_ptr(), bytes.len() as u32) }))
    }

    fn capacity(&self) -> usize {
        self.0.start.saturating_add(self.0.len) as usize
    }
}

impl<const WRITE: usize, const ERASE: usize> NorFlash for Flash<WRITE, ERASE> {
    const WRITE_SIZE: usize = WRITE;
    const ERASE_SIZE: usize = ERASE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), DriverError> {
        let FlashDriver { context, erase, .. } = self.0;
        // SAFETY: the driver's promise in `tinyforge.h`.
        done(erase.map(|erase| unsafe { erase(context, from, to.saturating_sub(from)) }))
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), DriverError> {
        let FlashDriver { context, write, .. } = self.0;
        // SAFETY: the driver's promise in `tinyforge.h`; pointer and length are one slice's.
        done(write.map(|write| unsafe { write(context, offset, bytes.as_ptr(), bytes.len() as u32) }))
    }
}

/// The model behind the C functions of one library.
pub struct Interface<M: 'static> {
    model: Place<M>,
    busy: AtomicBool,
    learner: UnsafeCell<Option<Learner<'static, M>>>,
}

// SAFETY: the learner is reached only through `with`, which lets one caller in at a time.
unsafe impl<M: Send> Sync for Interface<M> {}

impl<M: Model> Interface<M> {
    /// Around this model, not started.
    pub const fn new(model: M) -> Interface<M> {
        Interface { model: Place::new(model), busy: AtomicBool::new(false), learner: UnsafeCell::new(None) }
    }

    /// Lets one caller at the learner.
    fn with(&self, f: impl FnOnce(&mut Option<Learner<'static, M>>) -> Result<(), Fault>) -> u8 {
        if self.busy.swap(true, Ordering::Acquire) {
            return Fault::NotStarted.code();
        }
        // SAFETY: `busy` was false and is true until this reference is gone.
        let result = f(unsafe { &mut *self.learner.get() });
        self.busy.store(false, Ordering::Release);
        result.err().map_or(0, Fault::code)
    }

    fn started(&self, f: impl FnOnce(&mut Learner<'static, M>) -> Result<(), Fault>) -> u8 {
        self.with(|learner| f(learner.as_mut().ok_or(Fault::NotStarted)?))
    }

    /// `tinyforge_start`: the weights of the file, step 0.
    pub fn start(&'static self, seed: u64, rate: f32, bias_rate: f32) -> u8 {
        self.with(|slot| {
            match slot {
                Some(learner) => learner.start(seed, rate, bias_rate),
                None => {
                    *slot = Some(Learner::new(self.model.take().ok_or(Fault::NotStarted)?, seed, rate, bias_rate));
                }
            }
            Ok(())
        })
    }

    /// `tinyforge_input`: where an example for the next `infer` goes, `INPUT_LEN` numbers; null before `start`.
    pub fn infer_input(&self) -> *mut i8 {
        let mut at = core::ptr::null_mut();
        self.started(|learner| {
            at = learner.model().infer_input().as_mut_ptr();
            Ok(())
        });
        at
    }

    /// `tinyforge_train_input`: where an example for the next `train` goes, `INPUT_LEN` numbers; null before `start`.
    pub fn train_input(&self) -> *mut i8 {
        let mut at = core::ptr::null_mut();
        self.started(|learner| {
            at = learner.model().train_input().as_mut_ptr();
            Ok(())
        });
        at
    }

    /// `tinyforge_infer`.
    ///
    /// # Safety
    /// `input` is null, which means the example in `infer_input`, or points to `INPUT_LEN` numbers outside the model;
    /// `class` is null or points to a `u16` that may be written.
    pub unsafe fn infer(&self, input: *const i8, class: *mut u16) -> u8 {
        self.started(|learner| {
            // SAFETY: the caller's promise.
            let class = unsafe { class.as_mut() }.ok_or(Fault::Null)?;
            // SAFETY: the caller's promise.
            *class = match unsafe { example::<M>(input) } {
                Some(input) => learner.infer(input)?,
                None => learner.model().infer(),
            };
            Ok(())
        })
    }

    /// `tinyforge_train`.
    ///
    /// # Safety
    /// `input` is null, which means the example in `train_input`, or points to `INPUT_LEN` numbers outside the model;
    /// `loss` is null, which asks for none, or points to a `float` that may be written.
    pub unsafe fn train(&self, input: *const i8, label: i32, loss: *mut f32) -> u8 {
        self.started(|learner| {
            // SAFETY: the caller's promise.
            let value = match unsafe { example::<M>(input) } {
                Some(input) => learner.train(input, label)?,
                None => learner.train_in_place(label)?,
            };
            // SAFETY: the caller's promise.
            if let Some(loss) = unsafe { loss.as_mut() } {
                *loss = value;
            }
            Ok(())
        })
    }

    /// `tinyforge_evaluate`.
    ///
    /// # Safety
    /// `next` is null or does what `tinyforge.h` says; `score` is null or points to a [`ScoreValues`] that may be
    /// written.
    pub unsafe fn evaluate(&self, next: Option<NextExample>, context: *mut c_void, score: *mut ScoreValues) -> u8 {
        self.started(|learner| {
            // SAFETY: the caller's promise.
            let (next, to) = (next.ok_or(Fault::Null)?, unsafe { score.as_mut() }.ok_or(Fault::Null)?);
            let found = learner.evaluate(|input| {
                // SAFETY: the caller's promise; the pointer is that of `INPUT_LEN` numbers.
                let label = unsafe { next(context, input.as_mut_ptr()) };
                (label >= 0).then_some(label)
            });
            *to = ScoreValues { right: found.right, seen: found.seen };
            Ok(())
        })
    }

    /// `tinyforge_set_rates`.
    pub fn set_rates(&self, rate: f32, bias_rate: f32) -> u8 {
        self.started(|learner| {
            learner.set_rates(rate, bias_rate);
            Ok(())
        })
    }

    /// `tinyforge_save`.
    ///
    /// # Safety
    /// `driver` is null or points to a driver whose functions do what `tinyforge.h` says.
    pub unsafe fn save<const WRITE: usize, const ERASE: usize>(&self, driver: *const FlashDriver) -> u8 {
        self.started(|learner| {
            // SAFETY: the caller's promise.
            let driver = *unsafe { driver.as_ref() }.ok_or(Fault::Null)?;
            let region = driver.start..driver.start.saturating_add(driver.len);
            let mut checkpoints = Learner::<M>::checkpoints(Flash::<WRITE, ERASE>(driver), region)?;
            learner.save(&mut checkpoints).map(|_| ())
        })
    }

    /// `tinyforge_load`.
    ///
    /// # Safety
    /// As [`Interface::save`].
    pub unsafe fn load<const WRITE: usize, const ERASE: usize>(&self, driver: *const FlashDriver) -> u8 {
        self.started(|learner| {
            // SAFETY: the caller's promise.
            let driver = *unsafe { driver.as_ref() }.ok_or(Fault::Null)?;
            let region = driver.start..driver.start.saturating_add(driver.len);
            let mut checkpoints = Learner::<M>::checkpoints(Flash::<WRITE, ERASE>(driver), region)?;
            learner.load(&mut checkpoints).map(|_| ())
        })
    }

    /// `tinyforge_counters`.
    ///
    /// # Safety
    /// `counters` is null or points to a `struct tinyforge_counters` that may be written.
    pub unsafe fn counters<const WRITE: usize, const ERASE: usize>(&self, counters: *mut CounterValues) -> u8 {
        self.started(|learner| {
            let now = learner.counters();
            // SAFETY: the caller's promise.
            *unsafe { counters.as_mut() }.ok_or(Fault::Null)? = CounterValues {
                seed: now.seed,
                examples: now.examples,
                steps: now.steps,
                loads: now.loads,
                digest: learner.digest(),
                slot_bytes: Learner::<M>::slot_bytes::<Flash<WRITE, ERASE>>(),
            };
            Ok(())
        })
    }
}

/// Defines the functions of `firmware/include/tinyforge.h` for a model, given by a constant expression, and a flash
/// with these units.
#[macro_export]
macro_rules! c_interface {
    ($Model:ty = $model:expr, write $write:literal, erase $erase:literal) => {
        const _: () = {
            use $crate::abi::{CounterValues, FlashDriver, Interface, NextExample, ScoreValues};
            static MODEL: Interface<$Model> = Interface::new($model);
            #[unsafe(no_mangle)]
            static tinyforge_input_len: u32 = <$Model as $crate::Model>::INPUT_LEN as u32;
            #[unsafe(no_mangle)]
            static tinyforge_classes: u32 = <$Model as $crate::Model>::CLASSES as u32;
            #[unsafe(no_mangle)]
            static tinyforge_batch: u32 = <$Model as $crate::Model>::BATCH as u32;
            #[unsafe(no_mangle)]
            static tinyforge_write_bytes: u32 = $write;
            #[unsafe(no_mangle)]
            static tinyforge_erase_bytes: u32 = $erase;
            #[unsafe(no_mangle)]
            extern "C" fn tinyforge_start(seed: u64, rate: f32, bias_rate: f32) -> u8 {
                MODEL.start(seed, rate, bias_rate)
            }
            #[unsafe(no_mangle)]
            extern "C" fn tinyforge_input() -> *mut i8 {
                MODEL.infer_input()
            }
            #[unsafe(no_mangle)]
            extern "C" fn tinyforge_train_input() -> *mut i8 {
                MODEL.train_input()
            }
            #[unsafe(no_mangle)]
            unsafe extern "C" fn tinyforge_infer(input: *const i8, class: *mut u16) -> u8 {
                // SAFETY: the caller's promise in `tinyforge.h`.
                unsafe { MODEL.infer(input, class) }
            }
            #[unsafe(no_mangle)]
            unsafe extern "C" fn tinyforge_train(input: *const i8, label: i32, loss: *mut f32) -> u8 {
                // SAFETY: the caller's promise in `tinyforge.h`.
                unsafe { MODEL.train(input, label, loss) }
            }
            #[unsafe(no_mangle)]
            unsafe extern "C" fn tinyforge_evaluate(
                next: Option<NextExample>,
                context: *mut core::ffi::c_void,
                score: *mut ScoreValues,
            ) -> u8 {
                // SAFETY: the caller's promise in `tinyforge.h`.
                unsafe { MODEL.evaluate(next, context, score) }
            }
            #[unsafe(no_mangle)]
            extern "C" fn tinyforge_set_rates(rate: f32, bias_rate: f32) -> u8 {
                MODEL.set_rates(rate, bias_rate)
            }
            #[unsafe(no_mangle)]
            unsafe extern "C" fn tinyforge_save(driver: *const FlashDriver) -> u8 {
                // SAFETY: the caller's promise in `tinyforge.h`.
                unsafe { MODEL.save::<$write, $erase>(driver) }
            }
            #[unsafe(no_mangle)]
            unsafe extern "C" fn tinyforge_load(driver: *const FlashDriver) -> u8 {
                // SAFETY: the caller's promise in `tinyforge.h`.
                unsafe { MODEL.load::<$write, $erase>(driver) }
            }
            #[unsafe(no_mangle)]
            unsafe extern "C" fn tinyforge_counters(counters: *mut CounterValues) -> u8 {
                // SAFETY: the caller's promise in `tinyforge.h`.
                unsafe { MODEL.counters::<$write, $erase>(counters) }
            }
        };
    };
}
