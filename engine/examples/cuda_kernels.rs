//! Compiles every CUDA kernel as a run does, by NVRTC, and writes what came out: `cuda_kernels FOLDER ARCHITECTURE...`.
//!
//! A file `<stem>-<storage>-<architecture>.ptx` a family, storage type and architecture, for `ptxas` to look at; and the
//! same families as code for the card, to see that NVRTC assembles them too. Needs no card: `cargo xtask cuda`.

use std::path::Path;
use std::process::ExitCode;
use tinyforge::gpu::cuda::FAMILIES;
use tinyforge::gpu::cuda::nvrtc::{Form, compile};
use tinyforge_plan::DType;

/// Storage types that change what a family's kernels are.
fn storages(text: &str) -> &'static [DType] {
    match (text.contains("stored("), text.contains("STORAGE")) {
        (true, _) => &[DType::F32, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4K, DType::Q6K],
        (false, true) => &[DType::F32, DType::BF16],
        (false, false) => &[DType::F32],
    }
}

fn write(folder: &Path, capability: u32) -> Result<(), String> {
    for (stem, text) in FAMILIES {
        for &storage in storages(text) {
            let image = compile(stem, storage, Form::Text(capability))?;
            let path = folder.join(format!("{stem}-{}-{capability}.ptx", storage.name()));
            let text = image.bytes.strip_suffix(&[0]).unwrap_or(&image.bytes);
            std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    Ok(())
}

fn run() -> Result<(), String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (folder, capabilities) = args.split_first().ok_or("cuda_kernels FOLDER ARCHITECTURE...")?;
    let folder = Path::new(folder);
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let numbers = capabilities.iter().map(|c| c.parse::<u32>().map_err(|e| format!("{c}: {e}")));
    let numbers = numbers.collect::<Result<Vec<u32>, _>>()?;
    // As a run on the oldest card does; what differs between architectures is ptxas's, and that is run on each.
    let oldest = numbers.iter().min().copied().unwrap_or(75);
    FAMILIES.iter().try_for_each(|(stem, _)| compile(stem, DType::F32, Form::Code(oldest)).map(drop))?;
    numbers.iter().try_for_each(|&capability| write(folder, capability))
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // The one who asks is another program, which shows this.
            std::io::Write::write_all(&mut std::io::stderr(), format!("error: {why}\n").as_bytes()).ok();
            ExitCode::FAILURE
        }
    }
}
