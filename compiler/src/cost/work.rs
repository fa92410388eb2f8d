//! The amounts of one step of a plan.

use super::Work;
use tinyforge_plan::{DType, Part, Plan, Step, Tensor};

/// Kernels that read or write only chosen rows or columns of their largest tensor.
const PARTIAL: [&str; 5] = ["embedding", "embedding_grad", "gather_cols", "slice_cols", "kv_write"];

/// The amounts of a step of a plan, which says whether the host carries it out.
pub fn work_in(plan: &Plan, step: &Step) -> Work {
    Work { on_host: plan.is_on_host(step), ..work(step) }
}

/// The amounts of a step of the device. Each tensor counts once for reading and once for writing; what is looked up in
/// a larger one, twice.
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
    let changed = &step.args[..step.changes as usize];
    let read: u64 = step.args.iter().map(|t| bytes_of(step, t)).sum();
    let written: u64 = step.outs.iter().chain(changed).map(|t| bytes_of(step, t)).sum();
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
        "update" => step.args.get(step.changes as usize).map_or(0, |t| bytes_of(step, t)),
        _ => 0,
    };
    2 * changed.iter().map(|t| bytes_of(step, t)).sum::<u64>() + gradient
}

/// Bytes of an operand or result: of a tensor of which a step takes a panel of rows, those of the panel.
fn bytes_of(step: &Step, tensor: &Tensor) -> u64 {
    let weight = match step.kernel.as_str() {
        "update" => step.args.first(),
        "linear_cross_entropy_grad_w" => step.args.get(1),
        _ => None,
    };
    let panel = u64::try_from(step.int("panel_rows")).unwrap_or(0);
    match weight.map(|w| w.rows() as u64) {
        Some(rows) if panel > 0 && rows > 0 && tensor.rows() as u64 == rows => tensor.bytes() / rows * panel,
        _ => tensor.bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tinyforge_plan::Number;

    fn tensor(shape: &[u32], offset: u64) -> Tensor {
        Tensor { dtype: DType::F32, shape: shape.to_vec(), offset, value: offset as u32 }
    }

    /// An update of the last rows of a weight, with a state and a gradient of these shapes.
    fn update(panel_rows: i64, state: &[u32], gradient: &[u32]) -> Work {
        work(&Step {
            kernel: "update".to_string(),
            args: vec![tensor(&[100, 8], 0), tensor(state, 4096), tensor(gradient, 8192), tensor(&[4], 12288)],
            outs: Vec::new(),
            changes: 2,
            attrs: vec![("panel_rows".to_string(), Number::Int(panel_rows))],
            scratch_offset: 0,
            scratch_bytes: 0,
            block: 0,
            part: Part::Update,
            flops: 0,
            label: String::new(),
        })
    }

    #[test]
    fn a_panel_counts_its_own_rows() {
        assert_eq!(update(0, &[100, 8], &[100, 8]).optimizer_bytes, 5 * 3200);
        assert_eq!(update(25, &[25, 8], &[100, 8]).optimizer_bytes, 5 * 800);
        assert_eq!(update(25, &[25, 8], &[25, 8]).optimizer_bytes, 5 * 800);
        assert_eq!(update(25, &[25, 8], &[25, 8]).near_bytes, 5 * 800 + 16);
    }
}
