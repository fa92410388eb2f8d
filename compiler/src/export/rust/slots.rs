//! The operands of one call: slots of SRAM, bound in one `let`, and constants in flash, named in place.

use super::slot;
use std::fmt::Write;
use tinyforge_plan::{Step, Tensor};

/// Collects the slots of a step.
pub(super) struct Slots<'a> {
    pub(super) step: &'a Step,
    number: usize,
    base: u64,
    consts: String,
    bound: Vec<(String, bool, String)>,
}

impl<'a> Slots<'a> {
    /// For step `number` of a plan whose SRAM starts at `base`.
    pub(super) fn new(step: &'a Step, number: usize, base: u64) -> Slots<'a> {
        Slots { step, number, base, consts: String::new(), bound: Vec::new() }
    }

    /// A reference to a constant of type `k::<of>` that holds the kernel's dimensions.
    pub(super) fn dims(&mut self, of: &str, value: &str) -> String {
        let _ = writeln!(self.consts, "    const DIMS_{}: k::{of} = k::{value};", self.number);
        format!("&DIMS_{}", self.number)
    }

    /// What reads a tensor: a bound name, or the place in flash.
    fn read(&mut self, t: &Tensor, name: &str) -> String {
        if t.offset < self.base {
            return format!("FLASH.read::<{}>()", slot(t, 0));
        }
        self.bind(t, name, false)
    }

    fn bind(&mut self, t: &Tensor, name: &str, is_written: bool) -> String {
        self.bound.push((name.to_string(), is_written, slot(t, self.base)));
        name.to_string()
    }

    /// Operand `i` under this name.
    pub(super) fn arg(&mut self, i: usize, name: &str) -> String {
        let step = self.step;
        self.read(&step.args[i], name)
    }

    /// Operand `i`, which the step changes.
    pub(super) fn change(&mut self, i: usize, name: &str) -> String {
        let step = self.step;
        self.bind(&step.args[i], name, true)
    }

    /// Result `i`.
    pub(super) fn out(&mut self, i: usize, name: &str) -> String {
        let step = self.step;
        self.bind(&step.outs[i], name, true)
    }

    /// `Some(name)` of result `i`, or `None` where the step has none.
    pub(super) fn out_or_none(&mut self, i: usize, name: &str) -> String {
        if i < self.step.outs.len() { format!("Some({})", self.out(i, name)) } else { "None".to_string() }
    }

    /// `Some(name)` of operand `i`, or `None` where the step has none.
    pub(super) fn arg_or_none(&mut self, i: usize, name: &str) -> String {
        if i < self.step.args.len() { format!("Some({})", self.arg(i, name)) } else { "None".to_string() }
    }

    /// The scratch, or nothing; that it is enough for the kernel of the dimensions before, by its function `bytes`, is
    /// checked while the code compiles.
    pub(super) fn scratch(&mut self, bytes: &str) -> String {
        let (number, len) = (self.number, self.step.scratch_bytes);
        let _ = writeln!(self.consts, "    const _: () = assert!(k::{bytes}(&DIMS_{number}) <= {len});");
        if len == 0 {
            return "&mut []".to_string();
        }
        let place = format!("Slot<u8, {}, {len}>", self.step.scratch_offset - self.base);
        self.bound.push(("scratch".to_string(), true, place));
        "scratch".to_string()
    }

    /// Whether result 0 lies where operand `i` lies.
    pub(super) fn in_place(&self, i: usize) -> bool {
        self.step.args[i].offset == self.step.outs[0].offset
    }

    /// How many bytes before operand 0 result 0 begins, where it lies over it.
    pub(super) fn lies_over(&self) -> Option<u64> {
        let (x, y) = (&self.step.args[0], &self.step.outs[0]);
        (y.offset <= x.offset && x.offset < y.end()).then(|| x.offset - y.offset)
    }

    /// The bytes of result 0 and of operand 0, which it lies over, under one name.
    pub(super) fn out_over(&mut self, name: &str) -> String {
        let (x, y) = (&self.step.args[0], &self.step.outs[0]);
        let len = y.end().max(x.end()) - y.offset;
        self.bound.push((name.to_string(), true, format!("Slot<i8, {}, {len}>", y.offset - self.base)));
        name.to_string()
    }

    /// The constants, and the `let` that binds all slots.
    pub(super) fn binding(&self) -> String {
        let mut out = self.consts.clone();
        if self.bound.is_empty() {
            return out;
        }
        let names: Vec<&str> = self.bound.iter().map(|(name, ..)| name.as_str()).collect();
        let views: Vec<String> = self
            .bound
            .iter()
            .map(|(_, is_written, slot)| format!("{}<{slot}>", if *is_written { "Write" } else { "Read" }))
            .collect();
        let comma = if names.len() == 1 { "," } else { "" };
        let _ = writeln!(out, "    let ({}{comma}) = sram.slots::<({}{comma})>();", names.join(", "), views.join(", "));
        out
    }
}
