//! A step's attributes as the parameters of its kernel.

use tinyforge_kernels::int8::{Add, Conv, CrossEntropy, Quant, Softmax, SumPool};
use tinyforge_plan::{Step, Tensor};

/// Where in the step a window's numbers stand: a prefix of the attributes.
pub(super) struct Window<'a> {
    pub(super) step: &'a Step,
    pub(super) prefix: &'a str,
}

impl Window<'_> {
    fn int(&self, name: &str) -> i64 {
        self.step.int(&format!("{}{name}", self.prefix))
    }

    fn size(&self, name: &str) -> usize {
        self.step.size(&format!("{}{name}", self.prefix))
    }

    /// The geometry from an image of `x: [images, height, width, channels]` to `out_channels`.
    pub(super) fn conv(&self, x: [usize; 4], kernel: [usize; 2], out_channels: usize) -> Conv {
        Conv {
            images: x[0],
            in_size: [x[1], x[2]],
            in_channels: x[3],
            out_size: [self.size("out_h"), self.size("out_w")],
            out_channels,
            kernel,
            stride: [self.size("stride_h"), self.size("stride_w")],
            pad: [self.size("pad_top"), self.size("pad_left")],
        }
    }

    /// Zero points and limits.
    pub(super) fn quant(&self) -> Quant {
        Quant {
            zero_x: self.int("zero_x") as i32,
            zero_y: self.int("zero_y") as i32,
            lo: self.int("lo") as i32,
            hi: self.int("hi") as i32,
        }
    }
}

/// The four dimensions of an image.
pub(super) fn image(t: &Tensor) -> [usize; 4] {
    let mut dims = [1; 4];
    dims.iter_mut().zip(&t.shape).for_each(|(d, &s)| *d = s as usize);
    dims
}

/// Height and width of the taps, and output channels, of a weight `[O,R,S,I]` or, depthwise, `[R,S,C*M]`.
pub(super) fn kernel(w: &Tensor) -> ([usize; 2], usize) {
    let d = |i: usize| w.shape[i] as usize;
    if w.shape.len() == 4 { ([d(1), d(2)], d(0)) } else { ([d(0), d(1)], d(2)) }
}

/// Parameters of `i8_add`.
pub(super) fn add(step: &Step) -> Add {
    Add {
        ra: step.float("ra"),
        rb: step.float("rb"),
        zero_a: step.int("zero_a") as i32,
        zero_b: step.int("zero_b") as i32,
        zero_y: step.int("zero_y") as i32,
        lo: step.int("lo") as i32,
        hi: step.int("hi") as i32,
    }
}

/// Parameters of `i8_sum_pool`.
pub(super) fn sum_pool(step: &Step) -> SumPool {
    let int = |name: &str| step.int(name) as i32;
    SumPool { scale: step.float("scale"), offset: step.float("offset"), lo: int("lo"), hi: int("hi") }
}

/// Parameters of `i8_softmax`.
pub(super) fn softmax(step: &Step) -> Softmax {
    Softmax {
        scale_x: step.float("scale_x"),
        zero_x: step.int("zero_x") as i32,
        scale_y: step.float("scale_y"),
        zero_y: step.int("zero_y") as i32,
    }
}

/// Parameters of the loss.
pub(super) fn cross_entropy(step: &Step) -> CrossEntropy {
    CrossEntropy { classes: step.args[0].cols(), scale: step.float("scale"), zero: step.int("zero") as i32 }
}
