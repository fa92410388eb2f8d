//! The found scheme as a file, which says what each part of it contributes and takes.

use super::candidates::Part;
use std::fmt::Write;

/// A part of the scheme.
pub struct Line {
    /// What it trains.
    pub part: Part,
    /// What it lowered the loss by, alone.
    pub gain: f64,
    /// Bytes of the tensors that it trains.
    pub own_bytes: u64,
    /// The weight's name, of a weight.
    pub tensor: String,
}

/// The text of the file. `head` are remarks for its beginning.
pub fn text(head: &[String], lines: &[Line]) -> String {
    let mut out = String::new();
    for remark in head {
        let _ = writeln!(out, "# {remark}");
    }
    out.push_str("\n[update]\nkind = \"sparse\"\n");
    let bias = lines.iter().find_map(|l| if let Part::Bias(depth) = l.part { Some((depth, l)) } else { None });
    match bias {
        Some((depth, line)) => {
            let _ = writeln!(out, "bias_last = {depth} # {}", remark(line));
        }
        None => out.push_str("bias_last = 0\n"),
    }
    let mut weights: Vec<(u32, f64, &Line)> = Vec::new();
    for line in lines {
        if let Part::Weight(layer, ratio) = line.part {
            weights.push((layer, ratio, line));
        }
    }
    weights.sort_by_key(|(layer, ..)| *layer);
    for (layer, ratio, line) in &weights {
        let _ = write!(
            out,
            "\n[[update.weight]] # {}\nlayer = {layer} # {}\nratio = {ratio:?}\n",
            remark(line),
            line.tensor
        );
    }
    if weights.is_empty() {
        out.push_str("\n[[update.weight]] # nothing of a weight\nlayer = 0\nratio = 0.0\n");
    }
    out
}

fn remark(line: &Line) -> String {
    format!("contributes {:.4}, trains {} bytes", line.gain, line.own_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::candidates::scheme;
    use tinyforge_compiler::scheme::Scheme;

    #[test]
    fn the_file_is_the_scheme() {
        for parts in [vec![], vec![Part::Bias(4)], vec![Part::Weight(9, 1.0), Part::Bias(20), Part::Weight(3, 0.125)]] {
            let line = |&part: &Part| Line { part, gain: 0.25, own_bytes: 10, tensor: "blocks.1.weight".to_string() };
            let text = text(&["found".to_string()], &parts.iter().map(line).collect::<Vec<_>>());
            let mut sorted = parts.clone();
            sorted.sort_by_key(|p| p.lowest(0));
            let read = Scheme::parse_file(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert_eq!(read.kind, scheme(&sorted).kind, "{text}");
        }
    }
}
