//! A plan for a C program: a crate that makes the static library `libmodel.a`, and the headers to it.
//!
//! The crate is ready: `cargo build --release` in its folder, with `--target` for a microcontroller. Its code is the
//! Rust export's, behind the C interface of the runtime in `firmware/`; what `include/model.h` says of the model is
//! compared with the code while the crate compiles, so that a header of another plan is an error and not a crash.

use super::ExportError;
use super::rust::Source;
use std::fmt::Write;
use tinyforge_plan::Plan;

/// The header of the C interface, which the firmware's tests hold to the code.
const INTERFACE: &str = include_str!("../../../firmware/include/tinyforge.h");

/// What an export is made from.
pub struct Request<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The same as Rust.
    pub source: &'a Source,
    /// The folder of the runtime's crate, as the manifest will name it.
    pub runtime: &'a str,
    /// Samples a step.
    pub batch: u32,
    /// Bytes in which the flash for checkpoints is written, and erased.
    pub units: [u32; 2],
}

/// A file of the crate: its path in the folder, and its bytes.
pub type File = (&'static str, Vec<u8>);

/// The files of the crate.
///
/// # Errors
/// The plan lacks an input or a result, or the units cannot be those of a flash.
pub fn export(request: &Request) -> Result<Vec<File>, ExportError> {
    let Request { source, units: [write, erase], .. } = *request;
    if write == 0 || erase == 0 || erase % write != 0 {
        return Err(ExportError::FlashUnits { write, erase });
    }
    let facts = Facts::of(request.plan, request.batch)?;
    Ok(vec![
        ("Cargo.toml", manifest(request).into_bytes()),
        ("src/lib.rs", library(request, &facts).into_bytes()),
        ("src/model.rs", source.model.clone().into_bytes()),
        ("src/flash.bin", source.flash.clone()),
        ("src/start.bin", source.start.clone()),
        ("include/tinyforge.h", INTERFACE.as_bytes().to_vec()),
        ("include/model.h", header(request, &facts).into_bytes()),
    ])
}

/// What a C program has to know while it compiles.
struct Facts {
    /// Height, width and channels of an example.
    input: [u32; 3],
    classes: u64,
    batch: u64,
    sram_bytes: u64,
    stack_bytes: u64,
}

impl Facts {
    fn of(plan: &Plan, batch: u32) -> Result<Facts, ExportError> {
        let missing = |what, name| ExportError::Missing { what, name };
        let infer = plan.entry("infer").ok_or(missing("entry", "infer"))?;
        let image = infer.input("images").ok_or(missing("input", "images"))?;
        let logits = infer.result("logits").ok_or(missing("result", "logits"))?;
        let &[images, height, width, channels] = &image.shape[..] else { return Err(missing("input", "images")) };
        let stack_bytes = plan.fixed.iter().filter(|f| f.name == "stack").map(|f| f.bytes).sum();
        Ok(Facts {
            input: [height, width, channels],
            classes: logits.elems() / u64::from(images.max(1)),
            // A model that only infers has no steps.
            batch: plan.entry("train").map_or(0, |_| u64::from(batch)),
            sram_bytes: plan.near_bytes(),
            stack_bytes,
        })
    }

    fn input_len(&self) -> u64 {
        self.input.iter().map(|&d| u64::from(d)).product()
    }
}

fn manifest(request: &Request) -> String {
    // A TOML literal string holds a path of any system as it is, unless there is a quote in it.
    let path = request.runtime.replace('\'', "");
    format!(
        "# {}: compiled by tinyforge. `cargo build --release` makes target/release/libmodel.a; for a Cortex-M4F or M7\n\
         # add `--target thumbv7em-none-eabihf`. Headers are in include/.\n\
         [package]\nname = \"model\"\nversion = \"0.1.0\"\nedition = \"2024\"\npublish = false\n\n\
         [lib]\ncrate-type = [\"staticlib\"]\ntest = false\nbench = false\ndoctest = false\n\n\
         [dependencies]\ntinyforge-firmware = {{ path = '{path}' }}\n\n\
         # Nothing unwinds, and what the model does not call is dropped.\n\
         [profile.dev]\nopt-level = 3\npanic = \"abort\"\n\n\
         [profile.release]\nopt-level = 3\npanic = \"abort\"\nlto = \"fat\"\ncodegen-units = 1\n\n\
         # A workspace of its own, wherever it lies.\n[workspace]\n",
        request.plan.name
    )
}

fn library(request: &Request, facts: &Facts) -> String {
    let [write, erase] = request.units;
    format!(
        "//! {}: a static library for C. Not to be edited: compile again.\n\
         #![no_std]\n\n\
         mod model;\n\n\
         tinyforge_firmware::c_interface!(model::Net = model::Net::new(), write {write}, erase {erase});\n\n\
         // What include/model.h says.\n\
         const _: () = {{\n    use tinyforge_firmware::Model;\n    \
         assert!(<model::Net as Model>::HASH == {:#018x});\n    \
         assert!(<model::Net as Model>::INPUT_LEN == {});\n    \
         assert!(<model::Net as Model>::CLASSES == {});\n    \
         assert!(<model::Net as Model>::BATCH == {});\n    \
         assert!(model::SRAM_BYTES == {});\n}};\n\n\
         #[panic_handler]\nfn panic(_: &core::panic::PanicInfo) -> ! {{\n    loop {{\n        \
         core::hint::spin_loop();\n    }}\n}}\n",
        request.plan.name,
        request.source.hash,
        facts.input_len(),
        facts.classes,
        facts.batch,
        facts.sram_bytes
    )
}

fn header(request: &Request, facts: &Facts) -> String {
    let Request { plan, source, units: [write, erase], .. } = *request;
    let [height, width, channels] = facts.input;
    let mut out = format!(
        "/* {}: compiled by tinyforge. Not to be edited: compile again.\n *\n \
         * The model's sizes as constants, for arrays; functions are in tinyforge.h. An example is\n \
         * int8_t[height][width][channels]; a pixel of 0..255 goes in as pixel - 128. */\n\
         #ifndef TINYFORGE_MODEL_H\n#define TINYFORGE_MODEL_H\n\n#include \"tinyforge.h\"\n\n\
         #define TINYFORGE_MODEL_PLAN {:#018x}ull\n",
        plan.name.replace("*/", "* /"),
        source.hash
    );
    for (name, value) in [
        ("INPUT_HEIGHT", u64::from(height)),
        ("INPUT_WIDTH", u64::from(width)),
        ("INPUT_CHANNELS", u64::from(channels)),
        ("INPUT_LEN", facts.input_len()),
        ("CLASSES", facts.classes),
        ("BATCH", facts.batch),
        ("SRAM_BYTES", facts.sram_bytes),
        ("STACK_BYTES", facts.stack_bytes),
        ("STATE_BYTES", source.start.len() as u64),
        ("FLASH_BYTES", (source.flash.len() + source.start.len()) as u64),
        ("WRITE_BYTES", u64::from(write)),
        ("ERASE_BYTES", u64::from(erase)),
    ] {
        let _ = writeln!(out, "#define TINYFORGE_MODEL_{name} {value}u");
    }
    out.push_str("\n#endif\n");
    out
}
