//! The int8 kernels on the boards: bit for bit what the host computes, and how many instructions that takes.

use super::{BOARDS, Bench, output};
use crate::tasks::Outcome;
use std::collections::BTreeMap;
use std::process::Command;

/// One line of the board's report.
struct Row<'a> {
    kernel: &'a str,
    label: &'a str,
    work: f64,
    instructions: f64,
}

impl<'a> Row<'a> {
    fn parse(line: &'a str) -> Option<Row<'a>> {
        let mut words = line.strip_prefix("case ")?.split(' ');
        let (kernel, label) = (words.next()?, words.next()?);
        let work = words.next()?.strip_prefix("work=")?.parse().ok()?;
        let instructions = words.next()?.strip_prefix("instructions=")?.parse().ok()?;
        Some(Row { kernel, label, work, instructions })
    }
}

/// Writes the cases, runs them on every board, and prints a table.
pub fn run(bench: &Bench) -> Outcome {
    output(Command::new(bench.host("conformance-vectors")).arg(bench.place.join("vectors.bin")))?;
    for board in BOARDS {
        let program = bench.program("conformance");
        let run = bench.emulator.run(board, &program, &bench.place, &["vectors.bin".to_string()])?;
        let different: Vec<&str> = run.text.lines().filter(|line| line.ends_with("DIFFERENT")).collect();
        if !different.is_empty() {
            return Err(format!("{board} computes otherwise than the host:\n{}", different.join("\n")));
        }
        let rows: Vec<Row> = run.text.lines().filter_map(Row::parse).collect();
        let said = run.text.lines().find_map(|line| line.strip_prefix("cases=")?.split(' ').next()?.parse().ok());
        if run.code != 0 || rows.is_empty() || said != Some(rows.len()) {
            return Err(format!("{board} ended with code {} after {} cases:\n{}", run.code, rows.len(), run.text));
        }
        let stack = run.text.lines().find_map(|line| line.strip_prefix("stack=")).unwrap_or("?");
        println!("\n{board}: {} cases bit for bit as on the host; stack {stack} bytes", rows.len());
        table(&rows);
    }
    Ok(())
}

/// Instructions for a multiply-accumulate, or an element where there are none: of all cases of a kernel together, and
/// of its largest.
fn table(rows: &[Row]) {
    let mut kernels: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        kernels.entry(row.kernel).or_default().push(row);
    }
    println!("{:<28} {:>5} {:>12} {:>12}  largest", "kernel", "cases", "per MAC all", "largest");
    for (kernel, rows) in kernels {
        let per = |rows: &[&Row]| {
            let sum = |f: fn(&Row) -> f64| rows.iter().map(|row| f(row)).sum::<f64>();
            sum(|row| row.instructions) / sum(|row| row.work).max(1.0)
        };
        // The last of equal ones: with a mask or an index.
        let Some(largest) = rows.iter().max_by(|a, b| a.work.total_cmp(&b.work)) else { continue };
        let (all, one) = (per(&rows), per(&[largest]));
        println!("{kernel:<28} {:>5} {all:>12.2} {one:>12.2}  {}", rows.len(), largest.label);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read() {
        let row = Row::parse("case i8_add 1x2,mask work=12 instructions=480 same").expect("a row");
        assert_eq!((row.kernel, row.label, row.work, row.instructions), ("i8_add", "1x2,mask", 12.0, 480.0));
        assert!(Row::parse("cases=3 different=0").is_none());
    }
}
