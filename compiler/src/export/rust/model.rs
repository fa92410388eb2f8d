//! The head of generated code: sizes, constants, and the type that the runtime asks.

use super::steps::Train;
use super::{ExportError, memories, slot};
use std::fmt::Write;
use tinyforge_plan::{Entry, Plan, Space, Tensor};

/// What the model's type is made from.
pub(super) struct Parts<'a> {
    pub(super) plan: &'a Plan,
    pub(super) hash: u64,
    /// Examples of a training step; 0 where nothing is trained.
    pub(super) batch: u32,
    /// Bytes at the start of SRAM that outlive an example.
    pub(super) state_bytes: u64,
    /// Calls of inference.
    pub(super) infer: &'a str,
    /// Calls of training.
    pub(super) train: Option<&'a Train>,
    /// Calls of the update behind a batch.
    pub(super) update: &'a str,
}

/// Sizes and constants, with what must hold of them.
pub(super) fn head(plan: &Plan, [flash, sram]: [&Space; 2], limits: [u64; 2], hash: u64) -> String {
    format!(
        "//! {}: compiled by tinyforge, plan {hash:016x}.\n\
         //!\n\
         //! SRAM {} bytes and {} of stack, flash {} bytes beside the code. Not to be edited: compile again.\n\
         #![allow(clippy::all, reason = \"printed for one network\")]\n\n\
         use tinyforge_firmware::kernels::int8 as k;\n\
         use tinyforge_firmware::model::{{DONE, class_of}};\n\
         use tinyforge_firmware::{{Arena, Model, Probe, Read, Slot, Span, Step, Write}};\n\n\
         /// Bytes of SRAM.\n\
         pub const SRAM_BYTES: usize = {};\n\
         /// Bytes of stack that the plan leaves free in SRAM.\n\
         pub const STACK_BYTES: usize = {};\n\
         /// Bytes of weights and constants in flash.\n\
         pub const FLASH_BYTES: usize = {};\n\
         const _: () = assert!(SRAM_BYTES + STACK_BYTES <= {}, \"arena and stack do not fit the SRAM\");\n\
         const _: () = assert!(FLASH_BYTES + START.len() <= {}, \"the weights do not fit the flash\");\n\n\
         static FLASH: Arena<FLASH_BYTES> = Arena::of(*include_bytes!(\"flash.bin\"));\n\
         const START: &[u8] = include_bytes!(\"start.bin\");\n\n",
        plan.name,
        sram.bytes,
        plan.fixed_bytes(),
        flash.bytes,
        sram.bytes,
        plan.fixed_bytes(),
        flash.bytes,
        limits[0],
        limits[1],
    )
}

fn named<'a>(found: Option<&'a Tensor>, what: &'static str, name: &'static str) -> Result<&'a Tensor, ExportError> {
    found.ok_or(ExportError::Missing { what, name })
}

/// The type, and all that the runtime asks of it.
pub(super) fn model(parts: &Parts) -> Result<String, ExportError> {
    let Parts { plan, hash, state_bytes, .. } = *parts;
    let base = memories(plan)?[1].first_byte;
    let infer = named_entry(plan, "infer")?;
    let image = named(infer.input("images"), "input", "images")?;
    let logits = named(infer.result("logits"), "result", "logits")?;
    let images = u64::from(image.shape[0]);
    let mut code = String::from(
        "/// The model over its memory, with a probe that is told what runs.\n\
         pub struct Probed<P> {\n    sram: Arena<SRAM_BYTES>,\n    probe: core::marker::PhantomData<P>,\n}\n\n\
         /// The model over its memory.\n\
         #[allow(dead_code, reason = \"not used where there is a probe\")]\n\
         pub type Net = Probed<()>;\n\n\
         impl<P> Probed<P> {\n    /// The model before its start.\n    pub const fn new() -> Probed<P> {\n        \
         Probed { sram: Arena::new(), probe: core::marker::PhantomData }\n    }\n}\n\n\
         impl<P> Default for Probed<P> {\n    fn default() -> Probed<P> {\n        Probed::new()\n    }\n}\n\n",
    );
    let _ = write!(
        code,
        "impl<P: Probe> Model for Probed<P> {{\n    const HASH: u64 = {hash:#018x};\n    \
         const INPUT_LEN: usize = {};\n    \
         const CLASSES: usize = {};\n    const BATCH: usize = {};\n    \
         const STATE: &'static [Span] = &[Span {{ at: 0, len: {state_bytes} }}];\n\n    \
         fn memory(&self) -> &[u8] {{\n        self.sram.bytes()\n    }}\n\n    \
         fn memory_mut(&mut self) -> &mut [u8] {{\n        self.sram.bytes_mut()\n    }}\n\n    \
         fn start(&mut self) {{\n        \
         let state = self.sram.bytes_mut().iter_mut().take({state_bytes});\n        \
         state.zip(START.iter().chain(core::iter::repeat(&0))).for_each(|(to, from)| *to = *from);\n    }}\n\n    \
         fn infer_input(&mut self) -> &mut [i8] {{\n        self.sram.slot::<{}>()\n    }}\n\n    \
         fn infer(&mut self) -> u16 {{\n{}        class_of(self.sram.slot::<{}>())\n    }}\n\n",
        image.elems() / images,
        logits.elems() / images,
        parts.batch,
        slot(image, base),
        parts.infer,
        slot(logits, base),
    );
    training(&mut code, parts, base)?;
    code.push_str("}\n");
    Ok(code)
}

fn named_entry<'a>(plan: &'a Plan, name: &'static str) -> Result<&'a Entry, ExportError> {
    plan.entry(name).ok_or(ExportError::Missing { what: "entry", name })
}

/// The lines that fill inputs of an entry, of those that it has.
fn feed(entry: &Entry, base: u64, values: &[(&str, &str)]) -> String {
    let fed = values.iter().filter_map(|(name, value)| {
        let t = entry.input(name)?;
        Some(format!("        *self.sram.slot::<{}>() = {value};\n", slot(t, base)))
    });
    fed.collect()
}

/// The functions of a training step.
fn training(code: &mut String, parts: &Parts, base: u64) -> Result<(), ExportError> {
    let (Some(entry), Some(train)) = (parts.plan.entry("train"), parts.train) else {
        code.push_str(
            "    fn train_input(&mut self) -> &mut [i8] {\n        &mut []\n    }\n\n    \
             fn forward(&mut self, _label: i32) -> f32 {\n        f32::NAN\n    }\n\n    \
             fn backward(&mut self, _step: &Step) {}\n\n    fn update(&mut self, _step: &Step) {}\n",
        );
        return Ok(());
    };
    let image = named(entry.input("images"), "input", "images")?;
    let loss = named(entry.result("loss"), "result", "loss")?;
    if named(entry.input("labels"), "input", "labels")?.elems() != 1 {
        return Err(ExportError::Missing { what: "input", name: "labels` of one example" });
    }
    let share = format!("[1.0 / {}.0]", parts.batch);
    let numbers = [("hyper", "step.hyper()"), ("rng", "step.rng()")];
    let before = feed(entry, base, &[("labels", "[label]"), ("loss_weights", &share)]);
    let between = feed(entry, base, &numbers);
    let after = parts.plan.entry("update").map_or(String::new(), |update| feed(update, base, &numbers));
    let _ = write!(
        code,
        "    fn train_input(&mut self) -> &mut [i8] {{\n        self.sram.slot::<{}>()\n    }}\n\n    \
         fn forward(&mut self, label: i32) -> f32 {{\n{before}{}        \
         self.sram.slot::<{}>().iter().sum()\n    }}\n\n    \
         fn backward(&mut self, {}step: &Step) {{\n{between}{}    }}\n\n    \
         fn update(&mut self, {}step: &Step) {{\n{after}{}    }}\n",
        slot(image, base),
        train.forward,
        slot(loss, base),
        if between.is_empty() { "_" } else { "" },
        train.backward,
        if after.is_empty() { "_" } else { "" },
        parts.update,
    );
    Ok(())
}
