//! Row lookups and their gradient.

use super::call::Call;
use super::{Kernel, KernelError, elems, plain};
use tinyforge_kernels::f32::embedding::{self as k, Onto};

pub(super) const KERNELS: &[Kernel] = &[
    plain("embedding", |c| {
        let (w, tokens, y) = (c.mat(0), c.arg(1), c.out(0));
        k::embedding(c.par, &w, tokens, y).map_err(|e| c.error(e.to_string()))
    }),
    plain("embedding_part", |c| {
        let (w, tokens) = (c.mat(0), c.arg(1));
        let part = (c.step.size("first_row"), c.step.size("vocab"));
        let y = c.started(2, 0);
        k::embedding_part(c.par, &w, tokens, part, y).map_err(|e| c.error(e.to_string()))
    }),
    Kernel {
        name: "embedding_grad",
        run: embedding_grad,
        scratch: |q| Ok(k::embedding_grad_scratch_bytes(elems(&q.args[1]), q.threads)),
    },
];

fn embedding_grad(c: &mut Call) -> Result<(), KernelError> {
    let (cols, tokens) = (c.step.args[0].cols(), c.step.args[1].elems() as usize);
    let seq = tokens / c.step.size("rows").max(1);
    let (dx, index, scratch) = (c.arg(0), c.arg(1), c.scratch());
    let (dw, given) = c.accumulator(2, 0);
    let onto = match (given, c.step.int("running") != 0) {
        (false, _) => Onto::Zero,
        (true, true) => Onto::Running,
        (true, false) => Onto::Whole,
    };
    let table = (c.step.size("vocab"), c.step.size("first_row"));
    k::embedding_grad(c.par, dx, index, seq, cols, table, onto, dw, scratch).map_err(|e| c.error(e.to_string()))
}
