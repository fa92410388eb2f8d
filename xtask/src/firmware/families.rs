//! Instructions by kernel and by layer: what a board counted, joined with what the generated code says of its steps.

use std::collections::BTreeMap;
use std::fmt::Write;

/// A step as the comment in the generated code names it: `// 12: i8_conv2d 1x1 blocks.1.pointwise1.y, 1048576 MACs`.
#[derive(Clone, PartialEq, Debug)]
pub struct Step {
    /// The plan's entry.
    entry: String,
    kernel: String,
    /// Height and width of the window.
    taps: Option<String>,
    label: String,
    macs: u64,
}

/// The steps of a generated file by number; of training for a whole batch.
pub fn steps(source: &str, batch: u32) -> BTreeMap<u32, Step> {
    let mut entry = "";
    let mut steps = BTreeMap::new();
    for line in source.lines() {
        if let Some(rest) = line.strip_prefix("fn ") {
            entry = rest.split('_').next().unwrap_or_default();
        }
        let Some((number, text)) = line.strip_prefix("    // ").and_then(|rest| rest.split_once(": ")) else {
            continue;
        };
        let Ok(number) = number.parse() else { continue };
        let (text, macs) =
            match text.rsplit_once(", ").and_then(|(text, macs)| Some((text, macs.strip_suffix(" MACs")?))) {
                Some((text, macs)) => (text, macs.parse().unwrap_or(0)),
                None => (text, 0),
            };
        let mut words: Vec<&str> = text.split(' ').collect();
        let kernel = words.remove(0).to_string();
        let is_taps =
            |word: &&str| word.split_once('x').is_some_and(|(r, s)| r.parse::<u8>().is_ok() && s.parse::<u8>().is_ok());
        let taps = words.first().filter(|word| is_taps(word)).map(|word| word.to_string());
        let label = words[usize::from(taps.is_some())..].join(" ");
        let macs = if entry == "train" { macs * u64::from(batch) } else { macs };
        steps.insert(number, Step { entry: entry.to_string(), kernel, taps, label, macs });
    }
    steps
}

/// The families with the instructions that TinyEngine's own C takes for a multiply-accumulate on M7, where it is known.
const FAMILIES: [(&str, Option<f64>); 11] = [
    ("forward, 1x1", Some(2.22)),
    ("forward, depthwise", Some(5.62)),
    ("forward, other", Some(1.98)),
    ("forward, blocks by rows", None),
    ("input gradient, 1x1", Some(3.59)),
    ("input gradient, depthwise", Some(4.81)),
    ("input gradient, other", None),
    ("weight gradient, update", Some(4.21)),
    ("bias gradient, update", None),
    ("backward, blocks by channels", None),
    ("the rest", None),
];

impl Step {
    /// Index of its family.
    fn family(&self) -> usize {
        let is_point = self.taps.as_deref() == Some("1x1");
        match self.kernel.as_str() {
            "i8_conv2d" if is_point => 0,
            "i8_depthwise" => 1,
            "i8_conv2d" => 2,
            "i8_bottleneck" => 3,
            "i8_conv2d_grad_x" if is_point => 4,
            "i8_depthwise_grad_x" => 5,
            "i8_conv2d_grad_x" => 6,
            "i8_bottleneck_grad_update" => 9,
            kernel if kernel.contains("_grad_w") => 7,
            kernel if kernel.contains("_grad_b") => 8,
            _ => 10,
        }
    }
}

/// What a board counted: lines `plan step NUMBER=INSTRUCTIONS`.
pub fn counted(text: &str) -> BTreeMap<u32, u64> {
    let pair = |line: &str| {
        let (number, instructions) = line.strip_prefix("plan step ")?.split_once('=')?;
        Some((number.parse().ok()?, instructions.parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// MACs, instructions and instructions a MAC, as columns.
fn columns(macs: u64, instructions: u64) -> String {
    let per = if macs == 0 { String::new() } else { format!("{:.2}", instructions as f64 / macs as f64) };
    format!("{:>8.3} | {:>8.3} | {per:>7}", macs as f64 / 1e6, instructions as f64 / 1e6)
}

/// The table of kernel families of a training step.
pub fn table(steps: &BTreeMap<u32, Step>, counted: &BTreeMap<u32, u64>) -> String {
    let mut sums = [(0, 0); FAMILIES.len()];
    let mut inference = (0, 0);
    for (number, step) in steps {
        let instructions = counted.get(number).copied().unwrap_or(0);
        let sum = if step.entry == "infer" { &mut inference } else { &mut sums[step.family()] };
        *sum = (sum.0 + step.macs, sum.1 + instructions);
    }
    let mut out = String::from("| kernels | M MACs | M instr. | per MAC | TinyEngine |\n|---|---:|---:|---:|---:|\n");
    for ((name, theirs), (macs, instructions)) in FAMILIES.iter().zip(sums).filter(|(_, sum)| sum.1 > 0) {
        let theirs = theirs.map_or(String::new(), |t| format!("{t:.2}"));
        let _ = writeln!(out, "| {name:<26} | {} | {theirs:>10} |", columns(macs, instructions));
    }
    let all = sums.iter().fold((0, 0), |all, sum| (all.0 + sum.0, all.1 + sum.1));
    for (name, (macs, instructions)) in [("a training step", all), ("an inference", inference)] {
        let _ = writeln!(out, "| **{name}**{:<9} | {} | {:>10} |", "", columns(macs, instructions), "");
    }
    out
}

/// The table of all steps.
pub fn layers(steps: &BTreeMap<u32, Step>, counted: &BTreeMap<u32, u64>) -> String {
    let mut out =
        String::from("| step | kernel | what | M MACs | M instr. | per MAC |\n|---:|---|---|---:|---:|---:|\n");
    for (number, step) in steps {
        let instructions = counted.get(number).copied().unwrap_or(0);
        let taps = step.taps.as_deref().unwrap_or_default();
        let kernel = format!("{} {taps}", step.kernel);
        let label = format!("{} {}", step.entry, step.label);
        let _ = writeln!(out, "| {number:>4} | {kernel:<32} | {label:<44} | {} |", columns(step.macs, instructions));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "fn infer_a_forward<P: Probe>(sram: &mut A) {\n    // 0: i8_conv2d 3x3 a.y, 100 MACs\n}\n\
        fn train_a_forward<P: Probe>(sram: &mut A) {\n    // 1: i8_conv2d 1x1 a.y, 200 MACs\n    // 2: fill dloss\n";

    #[test]
    fn comments_are_steps() {
        let steps = steps(SOURCE, 2);
        let step = &steps[&1];
        assert_eq!((step.entry.as_str(), step.kernel.as_str(), step.macs), ("train", "i8_conv2d", 400));
        assert_eq!((steps[&2].label.as_str(), steps[&2].macs, steps[&0].taps.as_deref()), ("dloss", 0, Some("3x3")));
    }

    #[test]
    fn counts_are_joined() {
        let counted = counted("plan step 0=300\nplan step 1=500\nplan step 2=7\nelse\n");
        let table = table(&steps(SOURCE, 1), &counted);
        let row = table.lines().find(|line| line.starts_with("| forward, 1x1")).expect("a row");
        assert!(row.contains("2.50") && row.contains("2.22"), "{row}");
        assert!(table.contains("**a training step**") && layers(&steps(SOURCE, 1), &counted).lines().count() == 5);
    }
}
