//! The amounts of one step of a plan.

use super::Work;
use tinyforge_plan::{DType, Part, Step, Tensor};

/// Kernels that read or write only chosen rows or columns of their largest tensor.
const PARTIAL: [&str; 5] = ["embedding", "embedding_grad", "gather_cols", "slice_cols", "kv_write"];

/// The amounts of a step. Each tensor counts once for reading and once for writing; what is looked up in a larger one,
/// twice.
pub fn work(step: &Step) -> Work {
    let near_bytes = near_bytes(step);
    let is_update = step.part == Part::Update && step.changes > 0;
    Work {
        kernel: step.kernel.clone(),
        factors: factors(step),
        weights: weights(step),
        flops: step.flops,
        near_bytes,
        optimizer_bytes: if is_update { update_bytes(step) } else { 0 },
        on_host: false,
        block: step.block,
        part: step.part,
    }
}

fn factors(step: &Step) -> DType {
    match step.kernel.starts_with("i8_") {
        true => DType::I8,
        false if step.int("compute") == 1 => DType::BF16,
        false => DType::F32,
    }
}

/// The storage of an operand that is not plain f32: of quantised weights, or of bf16 ones.
fn weights(step: &Step) -> DType {
    let is_plain = |dtype: DType| matches!(dtype, DType::F32 | DType::F64 | DType::I32 | DType::U32);
    step.args.iter().map(|t| t.dtype).find(|dtype| !is_plain(*dtype)).unwrap_or(DType::F32)
}

fn near_bytes(step: &Step) -> u64 {
    // A result in its operand's place, of the same type, is one tensor that is read and written.
    let is_moved = |out: &&Tensor| step.args.first().is_none_or(|arg| arg.offset != out.offset);
    if step.kernel == "reshape" && !step.outs.iter().any(|out| is_moved(&out)) {
        return 0;
    }
    let read: u64 = step.args.iter().map(Tensor::bytes).sum();
    let written: u64 = step.outs.iter().chain(&step.args[..step.changes as usize]).map(Tensor::bytes).sum();
    let largest = step.args.iter().chain(&step.outs).max_by_key(|t| t.bytes());
    match largest {
        // A gradient without a sum to go on from is written as a whole.
        Some(largest)
            if PARTIAL.contains(&step.kernel.as_str()) && step.args.iter().any(|t| t.offset == largest.offset) =>
        {
            let touched = step.args.iter().chain(&step.outs).filter(|t| t.offset != largest.offset);
            2 * touched.map(Tensor::bytes).sum::<u64>()
        }
        _ => read + written,
    }
}

/// Weights and states are read and written, the gradient is read. A gradient that exists for a panel at a time is not
/// in the memory.
fn update_bytes(step: &Step) -> u64 {
    let changed = &step.args[..step.changes as usize];
    let gradient = match step.kernel.as_str() {
        "update" => step.args.get(step.changes as usize).map_or(0, Tensor::bytes),
        _ => 0,
    };
    2 * changed.iter().map(Tensor::bytes).sum::<u64>() + gradient
}
