//! A plan as Rust source: straight-line calls of kernels over one arena, for the runtime in `firmware/`.
//!
//! Every offset, length and parameter is a constant of the code, and whether slots overlap is checked while it
//! compiles. A kernel that the plan does not use is not named, so the linker drops it. Three files: `model.rs`,
//! `flash.bin` with what stays, and `start.bin` with what training begins from.

mod calls;
mod params;
mod slots;

use std::fmt::Write;
use tinyforge_plan::{DType, Entry, Part, Plan, Space, Step, Tensor, encode};

/// The files of an exported model.
#[derive(Clone, PartialEq, Debug)]
pub struct Source {
    /// The code.
    pub model: String,
    /// What lies in flash and stays.
    pub flash: Vec<u8>,
    /// What the changed tensors, which lie at the start of SRAM, begin with.
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
    /// A step has several micro-batches.
    #[error("generated code takes all samples of a step at a time: compile with one micro-batch")]
    MicroBatches,
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
}

/// The two memories of a plan for a microcontroller.
fn memories(plan: &Plan) -> Result<[&Space; 2], ExportError> {
    let flash = plan.spaces.iter().find(|s| !s.is_written).ok_or(ExportError::NoSpace("flash"))?;
    let sram = plan.spaces.iter().find(|s| s.is_written).ok_or(ExportError::NoSpace("SRAM"))?;
    Ok([flash, sram])
}

/// Tells plans and weights apart: checksums of both.
pub fn hash(plan: &Plan, image: &[u8]) -> u64 {
    let code = u64::from(encode::crc32(&encode::encode(plan)));
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
    let Request { plan, image, limits } = *request;
    let [flash, sram] = memories(plan)?;
    for (space, limit) in [(sram, limits[0]), (flash, limits[1])] {
        if space.bytes > limit {
            return Err(ExportError::Budget { name: space.name.clone(), bytes: space.bytes, limit });
        }
    }
    if plan.entry("update").is_some() {
        return Err(ExportError::MicroBatches);
    }
    let near = |t: &Tensor| t.offset >= sram.first_byte;
    let state_end = plan.stored.iter().map(|s| &s.tensor).filter(|t| near(t)).map(|t| t.end() - sram.first_byte).max();
    let state_bytes = state_end.unwrap_or(0);
    let bytes = |from: u64, len: u64| image[from as usize..(from + len) as usize].to_vec();
    let hash = hash(plan, image);
    let mut code = String::new();
    head(&mut code, plan, [flash, sram], limits, hash);
    let infer = plan.entry("infer").ok_or(ExportError::Missing { what: "entry", name: "infer" })?;
    let base = sram.first_byte;
    let infer_body = entry(infer, base)?;
    let train = plan.entry("train");
    let train_body = train.map(|t| entry(t, base)).transpose()?;
    model(&mut code, infer, train, state_bytes, hash, base)?;
    code.push_str(&infer_body);
    code.push_str(&train_body.unwrap_or_default());
    Ok(Source {
        model: code,
        flash: bytes(flash.first_byte, flash.bytes),
        start: bytes(sram.first_byte, state_bytes),
        hash,
    })
}

fn head(code: &mut String, plan: &Plan, [flash, sram]: [&Space; 2], limits: [u64; 2], hash: u64) {
    let _ = write!(
        code,
        "//! {}: compiled by tinyforge, plan {hash:016x}.\n\
         //!\n\
         //! SRAM {} bytes, flash {} bytes beside the code. Not to be edited: compile again.\n\n\
         use tinyforge_firmware::kernels::int8 as k;\n\
         use tinyforge_firmware::{{Arena, Fault, Model, Read, Slot, Span, Step, Write}};\n\n\
         /// Bytes of SRAM.\n\
         pub const SRAM_BYTES: usize = {};\n\
         /// Bytes of weights and constants in flash.\n\
         pub const FLASH_BYTES: usize = {};\n\
         const _: () = assert!(SRAM_BYTES <= {}, \"the plan does not fit the SRAM it was compiled for\");\n\n\
         static FLASH: Arena<FLASH_BYTES> = Arena::of(*include_bytes!(\"flash.bin\"));\n\
         static START: &[u8] = include_bytes!(\"start.bin\");\n\n",
        plan.name, sram.bytes, flash.bytes, sram.bytes, flash.bytes, limits[0],
    );
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

/// The model's type and what the runtime asks of it.
fn model(
    code: &mut String,
    infer: &Entry,
    train: Option<&Entry>,
    state_bytes: u64,
    hash: u64,
    base: u64,
) -> Result<(), ExportError> {
    fn named<'a>(found: Option<&'a Tensor>, what: &'static str, name: &'static str) -> Result<&'a Tensor, ExportError> {
        found.ok_or(ExportError::Missing { what, name })
    }
    let image = named(infer.input("images"), "input", "images")?;
    let logits = named(infer.result("logits"), "result", "logits")?;
    let images = image.shape[0];
    let classes = logits.elems() / u64::from(images);
    let batch = train.and_then(|t| t.input("labels")).map_or(1, Tensor::elems);
    let _ = write!(
        code,
        "/// The model over its memory.\n\
         pub struct Net {{\n    sram: Arena<SRAM_BYTES>,\n}}\n\n\
         impl Net {{\n    /// The model before its start.\n    pub const fn new() -> Net {{\n        \
         Net {{ sram: Arena::new() }}\n    }}\n}}\n\n\
         impl Default for Net {{\n    fn default() -> Net {{\n        Net::new()\n    }}\n}}\n\n\
         impl Model for Net {{\n    const HASH: u64 = {hash:#018x};\n    const INPUT_LEN: usize = {};\n    \
         const CLASSES: usize = {classes};\n    const BATCH: usize = {batch};\n    \
         const STATE: &'static [Span] = &[Span {{ at: 0, len: {state_bytes} }}];\n\n    \
         fn memory(&self) -> &[u8] {{\n        self.sram.bytes()\n    }}\n\n    \
         fn memory_mut(&mut self) -> &mut [u8] {{\n        self.sram.bytes_mut()\n    }}\n\n    \
         fn start(&mut self) {{\n        self.sram.bytes_mut().iter_mut().zip(START).for_each(|(to, from)| *to = *from);\n    }}\n\n    \
         fn infer_input(&mut self) -> &mut [i8] {{\n        self.sram.slot::<{}>()\n    }}\n\n    \
         fn infer(&mut self) -> u16 {{\n        {}let logits = self.sram.slot::<{}>();\n        \
         let mut best = 0;\n        for (i, &logit) in logits.iter().enumerate() {{\n            \
         if logits.get(best).is_some_and(|&most| logit > most) {{\n                best = i;\n            }}\n        }}\n        \
         best as u16\n    }}\n\n",
        image.elems() / u64::from(images),
        slot(image, base),
        steps_of(infer),
        slot(logits, base),
    );
    let Some(train) = train else {
        let _ = write!(
            code,
            "    fn train_input(&mut self) -> &mut [i8] {{\n        &mut []\n    }}\n\n    \
             fn train(&mut self, _labels: &[i32], _step: &Step) -> Result<f32, Fault> {{\n        Err(Fault::Label)\n    }}\n}}\n\n",
        );
        return Ok(());
    };
    let image = named(train.input("images"), "input", "images")?;
    let loss = named(train.result("loss"), "result", "loss")?;
    let mut feed = String::new();
    for (name, value) in [
        ("labels", "labels.try_into().map_err(|_| Fault::Label)?".to_string()),
        ("loss_weights", format!("[1.0 / {batch}.0; {batch}]")),
        ("hyper", "step.hyper()".to_string()),
        ("rng", "step.rng()".to_string()),
    ] {
        if let Some(t) = train.input(name) {
            let _ = writeln!(feed, "        *self.sram.slot::<{}>() = {value};", slot(t, base));
        }
    }
    let _ = write!(
        code,
        "    fn train_input(&mut self) -> &mut [i8] {{\n        self.sram.slot::<{}>()\n    }}\n\n    \
         fn train(&mut self, labels: &[i32], step: &Step) -> Result<f32, Fault> {{\n{feed}        {}\
         let loss: f32 = self.sram.slot::<{}>().iter().sum();\n        \
         if loss.is_finite() {{ Ok(loss) }} else {{ Err(Fault::Loss) }}\n    }}\n}}\n\n",
        slot(image, base),
        steps_of(train),
        slot(loss, base),
    );
    Ok(())
}

/// Runs of steps of one block and part: each becomes a function.
fn runs(entry: &Entry) -> Vec<(String, &[Step])> {
    let mut runs: Vec<(String, &[Step])> = Vec::new();
    let same = |a: &Step, b: &Step| a.block == b.block && a.part == b.part;
    for steps in entry.steps.chunk_by(same) {
        let block = entry.blocks.get(steps[0].block as usize).map_or("", String::as_str);
        let part = match steps[0].part {
            Part::Forward => "forward",
            Part::Backward => "backward",
            Part::Update => "update",
        };
        let clean: String = block.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let base = format!("{}_{clean}_{part}", entry.name).replace("__", "_").to_ascii_lowercase();
        let taken = runs.iter().filter(|(name, _)| *name == base || name.starts_with(&format!("{base}_"))).count();
        let name = if taken == 0 { base } else { format!("{base}_{}", taken + 1) };
        runs.push((name, steps));
    }
    runs
}

fn steps_of(entry: &Entry) -> String {
    runs(entry).iter().map(|(name, _)| format!("{name}(&mut self.sram);\n        ")).collect()
}

fn entry(entry: &Entry, base: u64) -> Result<String, ExportError> {
    let mut code = String::new();
    for (name, steps) in runs(entry) {
        let _ = writeln!(code, "#[inline(never)]\nfn {name}(sram: &mut Arena<SRAM_BYTES>) {{");
        for step in steps {
            let _ = writeln!(code, "    // {}", step.label);
            code.push_str(&calls::call(step, base)?);
        }
        code.push_str("}\n\n");
    }
    Ok(code)
}
