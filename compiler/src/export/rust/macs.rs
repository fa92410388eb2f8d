//! What a step computes, in words: its window, and how many multiply-accumulates it does.

use super::params::kernel;
use tinyforge_plan::{Step, Tensor};

/// Operations that an update takes for every element, beside the multiply-accumulates of its gradient.
const UPDATE_FLOPS: u64 = 12;

/// The weight that a step reads or trains, where it has one.
fn weight(step: &Step) -> Option<&Tensor> {
    match step.kernel.as_str() {
        "i8_conv2d" | "i8_depthwise" | "i8_conv2d_grad_x" | "i8_depthwise_grad_x" => step.args.get(1),
        "i8_conv2d_grad_w_update" | "i8_depthwise_grad_w_update" => step.args.first(),
        _ => None,
    }
}

/// Multiply-accumulates; 0 of a step that has none.
pub(super) fn count(step: &Step) -> u64 {
    match step.kernel.as_str() {
        "i8_conv2d"
        | "i8_depthwise"
        | "i8_bottleneck"
        | "i8_conv2d_grad_x"
        | "i8_depthwise_grad_x"
        | "i8_conv2d_grad_w"
        | "i8_depthwise_grad_w"
        | "i8_bottleneck_grad_update" => step.flops / 2,
        "i8_conv2d_grad_w_update" | "i8_depthwise_grad_w_update" => {
            let w = &step.args[0];
            let columns = if step.int("sub") == 1 { step.args[6].elems() } else { w.cols() as u64 };
            step.flops.saturating_sub(UPDATE_FLOPS * w.rows() as u64 * columns) / 2
        }
        _ => 0,
    }
}

/// `kernel RxS`, or the kernel alone where there is no window.
pub(super) fn form(step: &Step) -> String {
    let taps = match weight(step) {
        Some(w) if w.shape.len() > 2 => Some(kernel(w).0),
        _ if step.kernel.ends_with("_grad_w") => Some([step.size("kh"), step.size("kw")]),
        _ => None,
    };
    taps.map_or(step.kernel.clone(), |[r, s]| format!("{} {r}x{s}", step.kernel))
}
