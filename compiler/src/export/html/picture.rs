//! A lane as a picture: steps across, addresses up, a rectangle for every slot.
//!
//! Knows lanes, slots and steps, nothing of what kind of plan they are from: a lane of another space, or of what
//! crosses a link, is drawn by the same code.

use super::thin::thin;
use super::{bytes, escaped};
use crate::export::copies::Stay;
use crate::export::json::part;
use crate::export::lives::{Lane, Role, Slot, copied};
use std::fmt::Write;
use tinyforge_plan::{Entry, Plan, Step};

/// Width of the picture, of which the text left of it.
pub(super) const WIDTH: f64 = 1200.0;
pub(super) const LEFT: f64 = 110.0;
pub(super) const RIGHT: f64 = 10.0;
/// Height of the area of a whole space's addresses, the least that an entry gets which uses little of it, and of the
/// rows above and below it.
const HEIGHT: f64 = 420.0;
const LOW: f64 = 180.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 34.0;
/// Width of a letter in a slot.
pub(super) const LETTER: f64 = 6.2;
/// Height of a lane in which nothing comes or goes.
const STRIP: f64 = 34.0;

/// What is narrower or lower is drawn together with its neighbours.
pub(super) const LITTLE: f64 = 2.0;

/// Parts that the text of slots drawn together names.
const PARTS: usize = 6;

/// Where steps and addresses lie.
struct Scale {
    steps: f64,
    first_byte: u64,
    span: f64,
    height: f64,
}

impl Scale {
    fn x(&self, step: u32) -> f64 {
        x(step, self.steps)
    }

    fn bottom(&self) -> f64 {
        TOP + self.height
    }

    fn y(&self, address: u64) -> f64 {
        self.bottom() - self.height * (address.saturating_sub(self.first_byte)) as f64 / self.span
    }
}

/// Where a step begins, of so many.
pub(super) fn x(step: u32, steps: f64) -> f64 {
    LEFT + (WIDTH - LEFT - RIGHT) * f64::from(step) / steps
}

/// A lane over the steps of an entry; `limit` is what the space may hold.
pub(super) fn timeline(plan: &Plan, entry: &Entry, lane: &Lane, stays: &[Stay], limit: Option<u64>) -> String {
    let top = lane.slots.iter().map(|s| s.offset + s.bytes).max().unwrap_or(0);
    let held = top.saturating_sub(lane.space.first_byte).max(1);
    // A budget far above what is used would leave nothing to see.
    let limit = limit.filter(|&limit| limit >= held && limit <= held * 3 / 2);
    let scale = Scale {
        steps: entry.steps.len().max(1) as f64,
        first_byte: lane.space.first_byte,
        span: limit.unwrap_or(held) as f64 * 1.02,
        height: (HEIGHT * held as f64 / lane.space.bytes.max(1) as f64).clamp(LOW, HEIGHT),
    };
    let height = scale.bottom() + BOTTOM;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<div class=\"scroll\"><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"memory of {} over the \
         steps of {}\">",
        escaped(&lane.space.name),
        escaped(&entry.name)
    );
    grid(&mut out, &scale, limit.unwrap_or(held));
    let size = [(WIDTH - LEFT - RIGHT) / scale.steps, scale.height / scale.span];
    let slots = thin(&lane.slots, size);
    slots.iter().for_each(|slot| rectangle(&mut out, &scale, slot));
    moves(&mut out, &scale, plan, stays);
    labels(&mut out, &scale, &slots);
    bands(&mut out, &scale, entry);
    if let Some(limit) = limit {
        let y = scale.y(scale.first_byte + limit);
        let _ = writeln!(
            out,
            "<line class=\"limit\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\">budget</text>",
            WIDTH - RIGHT,
            WIDTH - RIGHT - 2.0,
            y + 12.0
        );
    }
    // The peak is of the near memory, where its address lies.
    if (lane.space.first_byte..=lane.space.end()).contains(&entry.peak.bytes) {
        peak(&mut out, &scale, entry);
    }
    out.push_str("</svg></div>\n");
    out
}

/// Lines at round addresses, and the steps below.
fn grid(out: &mut String, scale: &Scale, most: u64) {
    let unit = unit(most, (scale.height / 50.0) as u64);
    for address in (0..=most).step_by(unit as usize) {
        let y = scale.y(scale.first_byte + address);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            short(address)
        );
    }
    let steps = scale.steps as u32;
    for step in (0..steps).step_by(unit_steps(steps) as usize) {
        let x = scale.x(step);
        let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{:.1}\">{step}</text>", scale.bottom() + 14.0);
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">step</text>",
        LEFT - 6.0,
        scale.bottom() + 14.0
    );
}

/// A power of two of which about `lines` make `most`.
fn unit(most: u64, lines: u64) -> u64 {
    (most / lines).max(1).next_power_of_two()
}

pub(super) fn unit_steps(steps: u32) -> u32 {
    [1, 2, 5, 10, 20, 50, 100, 200, 500].into_iter().find(|unit| steps / unit <= 24).unwrap_or(1000)
}

pub(super) fn short(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

fn rectangle(out: &mut String, scale: &Scale, slot: &Slot) {
    let (x, y) = (scale.x(slot.steps[0]), scale.y(slot.offset + slot.bytes));
    let (width, height) = (scale.x(slot.steps[1] + 1) - x, scale.y(slot.offset) - y);
    let _ = writeln!(
        out,
        "<rect class=\"slot {}{}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
         height=\"{height:.2}\"><title>{}</title></rect>",
        slot.role.name(),
        // An edge would leave nothing of the colour.
        if width.min(height) < 2.0 * LITTLE { " thin" } else { "" },
        escaped(&title(slot, scale.first_byte))
    );
}

/// Names, over all rectangles.
fn labels(out: &mut String, scale: &Scale, slots: &[Slot]) {
    for slot in slots {
        let (x, y) = (scale.x(slot.steps[0]), scale.y(slot.offset + slot.bytes));
        label(out, slot, [x, y, scale.x(slot.steps[1] + 1) - x, scale.y(slot.offset) - y]);
    }
}

/// The name, where there is room for some of it.
fn label(out: &mut String, slot: &Slot, [x, y, width, height]: [f64; 4]) {
    let room = ((width - 8.0) / LETTER) as usize;
    if height < 12.0 || room < 5 {
        return;
    }
    let text: String = if slot.name.chars().count() <= room {
        slot.name.clone()
    } else {
        slot.name.chars().take(room - 1).chain(['…']).collect()
    };
    let is_light = matches!(slot.role, Role::Activation | Role::Gradient | Role::Scratch | Role::Frozen | Role::Copy);
    let class = if is_light { "label dark" } else { "label" };
    let _ = writeln!(
        out,
        "<text class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        x + 4.0,
        y + height / 2.0 + 3.6,
        escaped(&text)
    );
}

fn title(slot: &Slot, first_byte: u64) -> String {
    let steps = match slot.steps {
        [a, b] if a == b => format!("step {a}"),
        [a, b] => format!("steps {a} to {b}"),
    };
    let form = if slot.form.is_empty() { String::new() } else { format!("{} ", slot.form) };
    format!(
        "{}\n{}: {form}{}\nat {}, {steps}{}",
        slot.name,
        slot.role.name(),
        bytes(slot.bytes),
        slot.offset - first_byte,
        listed(&slot.parts, if slot.role == Role::Copy { slot.parts.len() } else { PARTS })
    )
}

/// A line each for so many, and the number of the rest.
pub(super) fn listed(parts: &[(String, u64)], most: usize) -> String {
    let shown = &parts[..most.min(parts.len())];
    let mut out: String = shown.iter().map(|(name, count)| format!("\n{name}: {count} B")).collect();
    if shown.len() < parts.len() {
        let _ = write!(out, "\nand {} more", parts.len() - shown.len());
    }
    out
}

/// How copies come and go, over their places.
fn moves(out: &mut String, scale: &Scale, plan: &Plan, stays: &[Stay]) {
    for stay in stays {
        let windows = stay.comes.iter().map(|w| (w, "comes", "comes in"));
        for (&[first, last], class, word) in windows.chain(stay.goes.iter().map(|w| (w, "goes", "goes back"))) {
            for slot in copied(plan, stay) {
                let (x, y) = (scale.x(first), scale.y(slot.offset + slot.bytes));
                let _ = writeln!(
                    out,
                    "<rect class=\"move {class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{} \
                     {word}\n{}\nbeside steps {first} to {last}</title></rect>",
                    scale.x(last + 1) - x,
                    scale.y(slot.offset) - y,
                    escaped(&slot.name),
                    bytes(slot.bytes)
                );
            }
        }
    }
}

/// Above the addresses: the blocks, and below them the parts of the step.
fn bands(out: &mut String, scale: &Scale, entry: &Entry) {
    let steps: Vec<_> = entry.steps.iter().enumerate().collect();
    for (i, group) in steps.chunk_by(|a, b| a.1.block == b.1.block).enumerate() {
        let (first, last) = (group[0].0 as u32, group[group.len() - 1].0 as u32);
        let (x, end) = (scale.x(first), scale.x(last + 1));
        let name = entry.blocks.get(group[0].1.block as usize).map_or("", String::as_str);
        let shade = if i % 2 == 0 { "even" } else { "odd" };
        let _ = writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"4\" width=\"{:.1}\" height=\"20\" class=\"{shade}\"><title>{}\nsteps {first} to \
             {last}</title></rect>",
            end - x,
            escaped(name)
        );
        // Of `layers.12` the number will do where there is no room for all of it.
        let short = name.rsplit_once('.').map_or(name, |(_, last)| last);
        let room = ((end - x - 1.0) / LETTER) as usize;
        if let Some(text) = [name, short].into_iter().find(|t| t.chars().count() <= room && !t.is_empty()) {
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"18\" text-anchor=\"middle\" pointer-events=\"none\">{}</text>",
                (x + end) / 2.0,
                escaped(text)
            );
        }
    }
    // Neighbours in one part of the step are drawn together where each is too narrow.
    let few = ((LITTLE * scale.steps / (WIDTH - LEFT - RIGHT)).ceil() as usize).max(1);
    for group in steps.chunk_by(|a, b| a.1.part == b.1.part).flat_map(|run| run.chunks(few)) {
        let (first, step) = group[0];
        let x = scale.x(first as u32);
        let _ = writeln!(
            out,
            "<rect class=\"{}\" x=\"{x:.1}\" y=\"26\" width=\"{:.1}\" height=\"9\"><title>{}</title></rect>",
            part(step.part),
            scale.x((first + group.len()) as u32) - x + 0.2,
            escaped(&steps_title(group))
        );
    }
}

fn steps_title(group: &[(usize, &Step)]) -> String {
    let lines = group.iter().take(PARTS).map(|(at, step)| format!("step {at}: {}\n{}\n", step.kernel, step.label));
    let rest = if group.len() > PARTS { format!("and {} more\n", group.len() - PARTS) } else { String::new() };
    lines.chain([rest, part(group[0].1.part).to_string()]).collect()
}

fn peak(out: &mut String, scale: &Scale, entry: &Entry) {
    let step = entry.peak.step;
    let (x, y) = ((scale.x(step) + scale.x(step + 1)) / 2.0, scale.y(entry.peak.bytes));
    let _ = writeln!(
        out,
        "<line class=\"peak\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{}\"/><line class=\"peak\" x1=\"{LEFT}\" \
         x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
        scale.bottom(),
        WIDTH - RIGHT
    );
    // Beside the line on the side that has room.
    let (at, anchor) = if x < WIDTH / 2.0 { (x + 6.0, "start") } else { (x - 6.0, "end") };
    let _ = writeln!(
        out,
        "<text class=\"peak-text\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">peak {} at step {step}</text>",
        scale.bottom() + 25.0,
        bytes(entry.peak.bytes - scale.first_byte)
    );
}

/// A lane in which nothing comes or goes: one row, as long as it is full.
pub(super) fn strip(lane: &Lane) -> String {
    let mut out = String::new();
    let per_byte = (WIDTH - RIGHT) / lane.space.bytes.max(1) as f64;
    let _ = writeln!(
        out,
        "<div class=\"scroll\"><svg viewBox=\"0 0 {WIDTH} {STRIP}\" role=\"img\" aria-label=\"what lies in {}\">",
        escaped(&lane.space.name)
    );
    for slot in &lane.slots {
        let x = (slot.offset - lane.space.first_byte) as f64 * per_byte;
        let width = (slot.bytes as f64 * per_byte).max(0.3);
        let _ = writeln!(
            out,
            "<rect class=\"slot {}\" x=\"{x:.1}\" y=\"2\" width=\"{width:.1}\" height=\"{}\"><title>{}</title></rect>",
            slot.role.name(),
            STRIP - 4.0,
            escaped(&title(slot, lane.space.first_byte))
        );
        label(&mut out, slot, [x, 2.0, width, STRIP - 4.0]);
    }
    out.push_str("</svg></div>\n");
    out
}
