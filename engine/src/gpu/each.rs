//! Elementwise kernels by the texts of their families: an op that one of them is named after needs no row.
//!
//! Such a kernel has an invocation an element. It takes the op's operands and then its results, all of them as many
//! f32; of its parameters it reads their number. The names come from the text in CUDA, which every build has; those of
//! the shaders are the same (`engine/tests/shaders.rs`).

use super::call::GROUP;
use super::{Call, Kernel, Launch, Operand, Params, Work, cuda, grid_of};
use std::sync::LazyLock;

/// The families. Their parameters begin with the number of elements.
const STEMS: [&str; 2] = ["activation", "elementwise"];

/// Kernels of these families that rows launch and no op is named after.
const PARTS: [&str; 6] = ["check_finite", "copy", "move_cols", "norm_sq_parts", "sigmoid_all", "tanh_all"];

static KERNELS: LazyLock<Vec<Kernel>> = LazyLock::new(|| {
    let of_family = |&(stem, text)| cuda::kernels(text).map(move |(entry, _)| Kernel::plain(stem, entry));
    let families = cuda::FAMILIES.iter().filter(|(stem, _)| STEMS.contains(stem));
    families.flat_map(of_family).filter(|kernel| !PARTS.contains(&kernel.entry)).collect()
});

/// Names of the kernels; some of them have rows.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    KERNELS.iter().map(|kernel| kernel.entry)
}

/// The kernel of this name.
pub(super) fn find(name: &str) -> Option<Kernel> {
    KERNELS.iter().copied().find(|kernel| kernel.entry == name)
}

/// One launch over all operands and results.
///
/// # Errors
/// They are not all as many f32, or there are attributes, which no row hands over.
pub(super) fn work(c: &Call, kernel: Kernel) -> Result<Work, String> {
    let takes = "without a row in engine/src/gpu it takes operands and results of as many f32, and no attributes";
    let len = c.elems_of_all().ok_or(takes)?;
    let operands = (0..c.args()).map(Operand::Arg).chain((0..c.outs()).map(Operand::Out)).collect();
    Ok(Work::one(Launch {
        kernel,
        operands,
        params: Params::new().size(len),
        grid: grid_of(len.div_ceil(GROUP)),
        in_units: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{GpuKernels, of_row, rows};
    use std::collections::BTreeSet;
    use tinyforge_plan::{DType, Number, Shape};

    #[test]
    fn a_name_is_told_once() {
        let mut names = BTreeSet::new();
        let twice: Vec<_> = GpuKernels::names().filter(|name| !names.insert(*name)).collect();
        assert!(twice.is_empty(), "ops with two rows, or kernels of one name in two families: {twice:?}");
    }

    #[test]
    fn parts_are_kernels_and_the_others_have_a_group_of_their_own_size() {
        let families = cuda::FAMILIES.iter().filter(|(stem, _)| STEMS.contains(stem));
        let all: Vec<(&str, u32)> = families.flat_map(|(_, text)| cuda::kernels(text)).collect();
        let gone: Vec<_> = PARTS.iter().filter(|part| !all.iter().any(|(name, _)| name == *part)).collect();
        assert!(gone.is_empty(), "no kernels are {gone:?}");
        let has_row = |name: &str| rows().any(|row| row.name == name);
        let without_row = all.iter().filter(|(name, _)| !PARTS.contains(name) && !has_row(name));
        let others: Vec<_> = without_row.filter(|(_, threads)| *threads as usize != GROUP).collect();
        assert!(others.is_empty(), "kernels that need a row, since their blocks have not {GROUP} threads: {others:?}");
    }

    #[test]
    fn what_only_a_row_could_hand_over_is_refused() {
        let ask = |dims: &[u32], dtype, attrs: &[(String, Number)]| {
            let (x, y) = (Shape { dtype: DType::F32, dims: &[2, 300] }, Shape { dtype, dims });
            of_row("swiglu", &Call::of_query(&[x, x], &[y], attrs))
        };
        let found = ask(&[2, 300], DType::F32, &[]).expect("it is elementwise");
        let operands = vec![Operand::Arg(0), Operand::Arg(1), Operand::Out(0)];
        let params = Params::new().size(600);
        let kernel = Kernel::plain("activation", "swiglu");
        assert_eq!(found, Work::one(Launch { kernel, operands, params, grid: [3, 1, 1], in_units: None }));
        let attrs = [("slope".to_string(), Number::Float(0.5))];
        for (dims, dtype, attrs) in
            [(&[300][..], DType::F32, &[][..]), (&[2, 300], DType::BF16, &[]), (&[2, 300], DType::F32, &attrs)]
        {
            let why = ask(dims, dtype, attrs).expect_err("a kernel cannot take it");
            assert!(why.contains("operands and results of as many f32, and no attributes"), "{why}");
        }
        assert_eq!(of_row("copy", &Call::of_query(&[], &[], &[])), Err("GPUs have no such kernel".to_string()));
    }
}
