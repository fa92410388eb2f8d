//! A plan as Rust source: straight-line calls of kernels over one arena, for the runtime in `firmware/`.
//!
//! Every offset, length and parameter is a constant of the code, and whether slots overlap is checked while it
//! compiles. A kernel that the plan does not use is not named, so the linker drops it. Three files: `model.rs`,
//! `flash.bin` with what stays, and `start.bin` with what training begins from.

mod calls;
mod macs;
mod model;
mod params;
mod slots;
mod steps;

use steps::Code;
use tinyforge_plan::{DType, Plan, Space, Tensor, encode};

/// The files of an exported model.
#[derive(Clone, PartialEq, Debug)]
pub struct Source {
    /// The code.
    pub model: String,
    /// What lies in flash and stays.
    pub flash: Vec<u8>,
    /// What the changed tensors, which lie at the start of SRAM, begin with; zeros at the end are left out.
    pub start: Vec<u8>,
    /// Tells plans and weights apart.
    pub hash: u64,
}

/// Why a plan cannot be exported.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum ExportError {
    /// A memory of the target is missing.
    #[error("the plan has no {0}: compile for a microcontroller, `--target cortex-m7`")]
    NoSpace(&'static str),
    /// An entry, input or result is missing.
    #[error("the plan has no {what} `{name}`")]
    Missing {
        /// What.
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// There is no call for a kernel.
    #[error("{kernel} {label}: generated code cannot call this kernel{why}")]
    Kernel {
        /// The kernel.
        kernel: String,
        /// What it computes.
        label: String,
        /// More.
        why: String,
    },
    /// Something is changed before the loss is known, so that a loss that is not finite would come too late.
    #[error("{label} is changed before the loss is known: the plan's order does not suit generated code")]
    LateLoss {
        /// What is changed.
        label: String,
    },
    /// No flash is written and erased like that.
    #[error("flash that is written {write} bytes at a time and erased {erase} at a time: erasing takes whole writes")]
    FlashUnits {
        /// Bytes of a write.
        write: u32,
        /// Bytes of an erasure.
        erase: u32,
    },
    /// More than a memory holds.
    #[error("the {name} takes {bytes} bytes, {limit} are there ({} over)", .bytes - .limit)]
    Budget {
        /// The memory.
        name: String,
        /// What is needed.
        bytes: u64,
        /// What there is.
        limit: u64,
    },
}

/// What an export is made from.
pub struct Request<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The arena after load.
    pub image: &'a [u8],
    /// Bytes of SRAM and of flash.
    pub limits: [u64; 2],
    /// Examples of a training step.
    pub batch: u32,
}

/// The two memories of a plan for a microcontroller.
fn memories(plan: &Plan) -> Result<[&Space; 2], ExportError> {
    let flash = plan.spaces.iter().find(|s| !s.is_written).ok_or(ExportError::NoSpace("flash"))?;
    let sram = plan.spaces.iter().find(|s| s.is_written).ok_or(ExportError::NoSpace("SRAM"))?;
    Ok([flash, sram])
}

/// Tells plans and weights apart: checksums of both. Where the model's files lie plays no part.
pub fn hash(plan: &Plan, image: &[u8], batch: u32) -> u64 {
    let plain = encode::encode(&Plan { files: Vec::new(), ..plan.clone() });
    let code = u64::from(encode::crc32_more(encode::crc32(&plain), &batch.to_le_bytes()));
    let stored = plan.stored.iter().fold(0, |crc, s| {
        encode::crc32_more(crc, image.get(s.tensor.offset as usize..s.tensor.end() as usize).unwrap_or(&[]))
    });
    code << 32 | u64::from(stored)
}

/// Writes the code.
///
/// # Errors
/// See [`ExportError`].
pub fn export(request: &Request) -> Result<Source, ExportError> {
    let Request { plan, image, limits, batch } = *request;
    let [flash, sram] = memories(plan)?;
    for (space, beside, limit) in [(sram, plan.fixed_bytes(), limits[0]), (flash, 0, limits[1])] {
        let bytes = space.bytes.saturating_add(beside);
        if bytes > limit {
            return Err(ExportError::Budget { name: space.name.clone(), bytes, limit });
        }
    }
    let near = |t: &Tensor| t.offset >= sram.first_byte;
    let state_end = plan.stored.iter().map(|s| &s.tensor).filter(|t| near(t)).map(|t| t.end() - sram.first_byte).max();
    let state_bytes = state_end.unwrap_or(0);
    let bytes = |from: u64, len: u64| image[from as usize..(from + len) as usize].to_vec();
    let hash = hash(plan, image, batch);
    let mut code = Code::new(sram.first_byte);
    let infer = code.entry(plan.entry("infer").ok_or(ExportError::Missing { what: "entry", name: "infer" })?)?;
    let train = plan.entry("train").map(|train| code.train(train)).transpose()?;
    let update = plan.entry("update").map(|update| code.entry(update)).transpose()?;
    let mut model = model::head(plan, [flash, sram], limits, hash);
    model += &model::model(&model::Parts {
        plan,
        hash,
        batch: plan.entry("train").map_or(0, |_| batch),
        state_bytes,
        infer: &infer,
        train: train.as_ref(),
        update: update.as_deref().unwrap_or_default(),
    })?;
    Ok(Source {
        model: model + &code.functions,
        flash: bytes(flash.first_byte, flash.bytes),
        start: without_zeros(bytes(sram.first_byte, state_bytes)),
        hash,
    })
}

/// Zeros at the end, as sums of gradients have them, need no flash.
fn without_zeros(mut bytes: Vec<u8>) -> Vec<u8> {
    let len = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    bytes.truncate(len);
    bytes
}

fn slot(t: &Tensor, base: u64) -> String {
    format!("Slot<{}, {}, {}>", element(t.dtype), t.offset - base, t.elems())
}

/// The Rust type of an element.
fn element(dtype: DType) -> &'static str {
    match dtype {
        DType::I8 => "i8",
        DType::U8 => "u8",
        DType::I32 => "i32",
        DType::U32 => "u32",
        _ => "f32",
    }
}
