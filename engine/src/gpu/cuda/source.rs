//! The text of the kernels, one file an op family.

/// What every family includes.
pub const COMMON: &str = include_str!("../../../../kernels/cuda/common.cuh");
/// What families include that multiply in matrix units, behind [`COMMON`].
pub const MMA: &str = include_str!("../../../../kernels/cuda/mma.cuh");

/// The text of every family, by its stem.
pub const FAMILIES: &[(&str, &str)] = &[
    ("activation", include_str!("../../../../kernels/cuda/activation.cu")),
    ("attention", include_str!("../../../../kernels/cuda/attention.cu")),
    ("batch_norm", include_str!("../../../../kernels/cuda/batch_norm.cu")),
    ("conv", include_str!("../../../../kernels/cuda/conv.cu")),
    ("elementwise", include_str!("../../../../kernels/cuda/elementwise.cu")),
    ("embedding", include_str!("../../../../kernels/cuda/embedding.cu")),
    ("linear", include_str!("../../../../kernels/cuda/linear.cu")),
    ("loss", include_str!("../../../../kernels/cuda/loss.cu")),
    ("norm", include_str!("../../../../kernels/cuda/norm.cu")),
    ("pool", include_str!("../../../../kernels/cuda/pool.cu")),
    ("update", include_str!("../../../../kernels/cuda/update.cu")),
];

/// The lines that a family's file includes others with.
const INCLUDES: [(&str, &str); 2] = [("#include \"common.cuh\"\n", COMMON), ("#include \"mma.cuh\"\n", MMA)];
/// What a kernel begins with; the number of its threads and its name follow.
const KERNEL: &str = "\nKERNEL(";

/// The whole text of a family.
pub fn text(stem: &str) -> Option<String> {
    let (_, text) = FAMILIES.iter().find(|(name, _)| *name == stem)?;
    Some(INCLUDES.iter().fold((*text).to_string(), |text, (line, included)| text.replacen(line, included, 1)))
}

/// The kernels of a family's text, with the threads of their blocks.
pub fn kernels(text: &str) -> impl Iterator<Item = (&str, u32)> {
    text.match_indices(KERNEL).filter_map(|(at, _)| {
        let (threads, rest) = text[at + KERNEL.len()..].split_once(')')?;
        let name = rest.trim_start().split('(').next()?;
        Some((name, threads.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_kernels_and_includes_what_all_share() {
        for (stem, family) in FAMILIES {
            assert!(text(stem).is_some_and(|t| t.contains("index_of")), "{stem} includes common.cuh");
            assert_eq!(kernels(family).count(), family.matches(KERNEL.trim_start()).count(), "{stem}");
        }
        let found: Vec<_> = kernels("// KERNEL(9) no(\nKERNEL(64) f(Params p)\nKERNEL(1) g(").collect();
        assert_eq!(found, [("f", 64), ("g", 1)]);
    }
}
