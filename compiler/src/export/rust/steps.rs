//! The steps of entries as functions: one for every run of steps of one block and part.

use super::{ExportError, calls, macs};
use std::fmt::Write;
use tinyforge_plan::{Entry, Part, Step};

/// What the entries of a plan become.
pub(super) struct Code {
    /// First byte of SRAM.
    base: u64,
    /// Steps of the entries so far: the number of the next.
    steps: usize,
    /// What functions are called before a number tells equal names apart.
    names: Vec<String>,
    /// The functions.
    pub(super) functions: String,
}

/// The calls of a training step's two parts.
pub(super) struct Train {
    /// Up to the loss: changes nothing that outlives the step.
    pub(super) forward: String,
    /// What follows.
    pub(super) backward: String,
}

impl Code {
    pub(super) fn new(base: u64) -> Code {
        Code { base, steps: 0, names: Vec::new(), functions: String::new() }
    }

    /// Writes the functions of an entry; gives the lines that call them.
    pub(super) fn entry(&mut self, entry: &Entry) -> Result<String, ExportError> {
        self.part(entry, &entry.steps)
    }

    /// The same of a training entry, cut behind the loss.
    pub(super) fn train(&mut self, entry: &Entry) -> Result<Train, ExportError> {
        let loss = entry.result("loss").ok_or(ExportError::Missing { what: "result", name: "loss" })?;
        let makes_loss = |s: &Step| s.outs.iter().any(|t| t.value == loss.value);
        let cut = entry.steps.iter().rposition(makes_loss).map_or(0, |at| at + 1);
        let (forward, backward) = entry.steps.split_at(cut);
        if let Some(early) = forward.iter().find(|s| s.changes > 0) {
            return Err(ExportError::LateLoss { label: early.label.clone() });
        }
        let forward = self.part(entry, forward)?;
        Ok(Train { forward, backward: self.part(entry, backward)? })
    }

    fn part(&mut self, entry: &Entry, steps: &[Step]) -> Result<String, ExportError> {
        let mut lines = String::new();
        for run in steps.chunk_by(|a, b| a.block == b.block && a.part == b.part) {
            let base = name(entry, &run[0]);
            let taken = self.names.iter().filter(|taken| **taken == base).count();
            self.names.push(base.clone());
            let name = if taken == 0 { base } else { format!("{base}_{}", taken + 1) };
            self.function(&name, run)?;
            let _ = writeln!(lines, "        {name}::<P>(&mut self.sram);");
        }
        lines.push_str("        P::at(DONE);\n");
        Ok(lines)
    }

    fn function(&mut self, name: &str, steps: &[Step]) -> Result<(), ExportError> {
        let code = &mut self.functions;
        let _ = writeln!(code, "\n#[inline(never)]\nfn {name}<P: Probe>(sram: &mut Arena<SRAM_BYTES>) {{");
        for step in steps {
            let number = self.steps;
            self.steps += 1;
            let _ = write!(code, "    // {number}: {} {}", macs::form(step), step.label);
            match macs::count(step) {
                0 => code.push('\n'),
                count => {
                    let _ = writeln!(code, ", {count} MACs");
                }
            }
            let _ = writeln!(code, "    P::at({number});");
            code.push_str(&calls::call(step, number, self.base)?);
        }
        code.push_str("}\n");
        Ok(())
    }
}

/// What a run of steps is called after its first.
fn name(entry: &Entry, step: &Step) -> String {
    let block = entry.blocks.get(step.block as usize).map_or("", String::as_str);
    let part = match step.part {
        Part::Forward => "forward",
        Part::Backward => "backward",
        Part::Update => "update",
    };
    let clean: String = block.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("{}_{clean}_{part}", entry.name).replace("__", "_").to_ascii_lowercase()
}
