//! Elementwise kernels by the tables that stand beside them: an op that one of them is named after needs no row.

use super::call::Call;
use super::{Query, elems};
use tinyforge_kernels::f32::{Elementwise, activation, elementwise};
use tinyforge_plan::DType;

const TABLES: &[&[(&str, Elementwise)]] = &[activation::KERNELS, elementwise::KERNELS];

/// Names of the kernels.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TABLES.iter().flat_map(|table| table.iter()).map(|(name, _)| *name)
}

/// The kernel of this name.
pub(super) fn find(name: &str) -> Option<Elementwise> {
    TABLES.iter().flat_map(|table| table.iter()).find(|(kernel, _)| *kernel == name).map(|(_, kernel)| *kernel)
}

/// Bytes of scratch, which is none.
///
/// # Errors
/// The op has other operands than the kernel, or attributes, which no row hands over.
pub(super) fn scratch(kernel: Elementwise, query: &Query) -> Result<usize, String> {
    let operands = match kernel {
        Elementwise::Forward(_) => 1,
        Elementwise::Backward(_) | Elementwise::Commuting(_) => 2,
    };
    let all = || query.args.iter().chain(query.outs);
    let is_whole = query.args.len() == operands && query.outs.len() == 1 && query.attrs.is_empty();
    if is_whole && all().all(|t| t.dtype == DType::F32 && elems(t) == elems(&query.outs[0])) {
        return Ok(0);
    }
    let operands = ["an operand", "two operands"][operands - 1];
    Err(format!("without a row in engine/src/cpu it takes {operands} and a result of as many f32, and no attributes"))
}

/// Runs a step.
pub(super) fn run(c: &mut Call, kernel: Elementwise) {
    let y = c.out(0);
    match kernel {
        Elementwise::Forward(kernel) => kernel(c.par, c.maybe(0), y),
        Elementwise::Backward(kernel) => kernel(c.par, c.arg(0), c.maybe(1), y),
        Elementwise::Commuting(kernel) => match (c.maybe(0), c.maybe(1)) {
            (a, Some(b)) => kernel(c.par, a, b, y),
            (Some(a), None) => kernel(c.par, None, a, y),
            (None, None) => unreachable!("one operand at most lies where the result lies"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::CpuKernels;
    use std::collections::BTreeSet;
    use tinyforge_plan::{DType, Kernels, Number, Shape};

    #[test]
    fn a_name_is_told_once() {
        let mut names = BTreeSet::new();
        let twice: Vec<_> = CpuKernels::names().filter(|name| !names.insert(*name)).collect();
        assert!(twice.is_empty(), "kernels with a row that are in a table too, or twice: {twice:?}");
    }

    #[test]
    fn what_only_a_row_could_hand_over_is_refused() {
        let ask = |args: &[Shape], attrs: &[(String, Number)]| {
            let outs = [Shape { dtype: DType::F32, dims: &[2, 3] }];
            CpuKernels { threads: 1 }.scratch_bytes("relu", args, &outs, attrs)
        };
        let [x, row, half] = [(DType::F32, &[2, 3][..]), (DType::F32, &[3]), (DType::BF16, &[2, 3])]
            .map(|(dtype, dims)| Shape { dtype, dims });
        assert_eq!(ask(&[x], &[]), Ok(0));
        let attrs = [("slope".to_string(), Number::Float(0.5))];
        for (args, attrs) in [(&[row][..], &[][..]), (&[half], &[]), (&[x, x], &[]), (&[], &[]), (&[x], &attrs)] {
            let why = ask(args, attrs).expect_err("a kernel cannot take it");
            assert!(why.contains("takes an operand and a result of as many f32, and no attributes"), "{why}");
        }
    }
}
