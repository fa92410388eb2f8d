//! Activation functions whose kernels have names of their own; the others need [no row](super::each).

use super::{Kernel, Row, each};

const STEM: &str = "activation";

pub(super) const ROWS: &[Row] = &[
    Row { name: "sigmoid", work: |c| each::work(c, Kernel::plain(STEM, "sigmoid_all")) },
    Row { name: "tanh", work: |c| each::work(c, Kernel::plain(STEM, "tanh_all")) },
];
