//! A plan as one page: memory over the steps of every entry, which blocks are near, what runs and moves when, where
//! memory is fullest and what fills it there, totals.
//!
//! Self-contained: style, script and pictures are in the file, and nothing is fetched. Readable without scripts and
//! on a narrow screen.

mod blocks;
mod picture;
mod thin;
pub mod times;

use super::copies::stays;
use super::lives::{Lane, Role, Slot, lanes};
use crate::machine::Machine;
use std::collections::BTreeSet;
use std::fmt::Write;
use tinyforge_plan::{Entry, Plan};

/// Rows of a table before the rest is folded away, and rows of that before it is summed up.
const ROWS: usize = 12;
const FOLDED: usize = 150;

/// What the colours of a block's row mean.
const BLOCKS_LEGEND: &str = "<div class=\"legend\"><span><i class=\"away\"></i>far</span>\
    <span><i class=\"comes\"></i>comes in</span><span><i class=\"copy\"></i>near</span>\
    <span><i class=\"goes\"></i>goes back</span><span>within, the steps that read it: <i class=\"forward\"></i>forward \
    <i class=\"backward\"></i>backward <i class=\"update\"></i>update</span></div>\n";

/// What a page is made from.
pub struct Request<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Tells plans and weights apart, where weights are loaded.
    pub hash: Option<u64>,
    /// What spaces may hold: name and bytes.
    pub limits: &'a [(&'a str, u64)],
    /// What the time line's seconds are of, where anything moves.
    pub machine: Option<&'a Machine>,
}

impl Request<'_> {
    fn limit(&self, space: &str) -> Option<u64> {
        self.limits.iter().find(|(name, _)| *name == space).map(|(_, bytes)| *bytes)
    }
}

/// The page.
pub fn export(request: &Request) -> String {
    let plan = request.plan;
    let mut out = String::new();
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n\
         <main>\n<h1>{0}</h1>\n",
        escaped(&plan.name),
        include_str!("style.css")
    );
    if let Some(hash) = request.hash {
        let _ = writeln!(out, "<p>plan {hash:016x}</p>");
    }
    totals(&mut out, request);
    plan.entries.iter().for_each(|e| entry(&mut out, request, e));
    steady(&mut out, plan);
    let _ = write!(
        out,
        "</main>\n<div id=\"tip\"></div>\n<script>\n{}</script>\n</body>\n</html>\n",
        include_str!("script.js")
    );
    out
}

/// Text inside an element or an attribute.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// `171,376 B`, and in larger units where that says more.
fn bytes(bytes: u64) -> String {
    let exact = grouped(bytes);
    match bytes {
        0..1024 => format!("{exact} B"),
        1024..1048576 => format!("{exact} B ({:.1} KiB)", bytes as f64 / 1024.0),
        1048576..1073741824 => format!("{exact} B ({:.1} MiB)", bytes as f64 / 1048576.0),
        _ => format!("{exact} B ({:.2} GiB)", bytes as f64 / 1073741824.0),
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A card a space: how full it is, and of what.
fn totals(out: &mut String, request: &Request) {
    let plan = request.plan;
    out.push_str("<div class=\"cards\">\n");
    for (i, space) in plan.spaces.iter().enumerate().rev() {
        let is_near = i + 1 == plan.spaces.len();
        let total = if is_near { plan.total_bytes() } else { space.bytes };
        let _ = writeln!(out, "<section><h2>{}</h2><div class=\"big\">{}</div>", escaped(&space.name), bytes(total));
        if let Some(limit) = request.limit(&space.name) {
            let share = 100.0 * total as f64 / limit.max(1) as f64;
            let class = if total > limit { "over" } else { "" };
            let _ = writeln!(
                out,
                "<div class=\"meter\"><i class=\"{class}\" style=\"width:{:.1}%\"></i></div><p>{share:.1} % of {}</p>",
                share.min(100.0),
                bytes(limit)
            );
        }
        out.push_str("<table>\n");
        for (name, bytes) in uses(plan, space.first_byte, is_near) {
            row(out, &name, bytes);
        }
        out.push_str("</table></section>\n");
    }
    out.push_str("</div>\n");
}

fn row(out: &mut String, name: &str, count: u64) {
    let _ =
        writeln!(out, "<tr><td class=\"name\">{}</td><td class=\"n\">{} B</td></tr>", escaped(name), grouped(count));
}

/// What a space is used for; of the near one with the parts outside the arena.
fn uses(plan: &Plan, first_byte: u64, is_near: bool) -> Vec<(String, u64)> {
    let here = |offset: u64| plan.space_of(offset).is_some_and(|s| s.first_byte == first_byte);
    let trained = plan.stored_bytes(|s| s.changes && here(s.tensor.offset));
    let frozen = plan.stored_bytes(|s| !s.changes && here(s.tensor.offset));
    let mut uses = vec![("trained tensors".to_string(), trained), ("frozen tensors".to_string(), frozen)];
    if is_near {
        let rest = plan.near_bytes().saturating_sub(trained + frozen);
        uses.push(("values of a step, scratch".to_string(), rest));
        uses.extend(plan.fixed.iter().map(|f| (f.name.clone(), f.bytes)));
    } else if plan.spaces.iter().any(|s| s.first_byte == first_byte && !s.is_far) {
        // Tensors that change start from a copy in the memory that stays.
        uses.push(("where trained tensors start from, beside it".to_string(), plan.stored_bytes(|s| s.changes)));
    }
    uses.retain(|(_, bytes)| *bytes > 0);
    uses
}

fn entry(out: &mut String, request: &Request, entry: &Entry) {
    let plan = request.plan;
    let lanes = lanes(plan, entry);
    let near = plan.spaces.last().map_or(0, |s| s.first_byte);
    let at = entry.steps.get(entry.peak.step as usize).map_or(String::new(), |s| format!("{} {}", s.kernel, s.label));
    let _ = writeln!(
        out,
        "<section><h2>{}</h2><p>{} steps; fullest at step {}, {}: {}</p>",
        escaped(&entry.name),
        entry.steps.len(),
        entry.peak.step,
        escaped(&at),
        bytes(entry.peak.bytes.saturating_sub(near))
    );
    let stays = stays(plan, entry);
    for lane in lanes.iter().filter(|lane| !lane.is_steady()) {
        legend(out, &lane.slots);
        out.push_str(&picture::timeline(plan, entry, lane, &stays, request.limit(&lane.space.name)));
    }
    for space in plan.spaces.iter().filter(|space| space.is_far) {
        if let Some(picture) = blocks::picture(plan, entry, space, &stays) {
            let near = plan.spaces.last().map_or("", |s| s.name.as_str());
            let _ = writeln!(out, "<h3>Blocks from {} in {}</h3>", escaped(&space.name), escaped(near));
            out.push_str(BLOCKS_LEGEND);
            out.push_str(&picture);
        }
    }
    if !entry.transfers.is_empty() || request.machine.is_some() {
        out.push_str(&times::picture(plan, entry, request.machine));
    }
    if let Some(lane) = lanes.last() {
        holders(out, lane, entry.peak.step);
    }
    out.push_str("</section>\n");
}

fn legend(out: &mut String, slots: &[Slot]) {
    let used: BTreeSet<Role> = slots.iter().map(|s| s.role).collect();
    out.push_str("<div class=\"legend\">");
    for role in Role::ALL.iter().filter(|role| used.contains(role)) {
        let _ = write!(out, "<span><i class=\"{0}\"></i>{0}</span>", role.name());
    }
    if used.contains(&Role::Copy) {
        out.push_str(
            "<span><i class=\"comes\"></i>copy comes in</span><span><i class=\"goes\"></i>copy goes back</span>",
        );
    }
    out.push_str("<span>above, the blocks and the parts of a step: <i class=\"forward\"></i>forward ");
    out.push_str("<i class=\"backward\"></i>backward <i class=\"update\"></i>update</span></div>\n");
}

/// What fills a lane at a step, largest first.
fn holders(out: &mut String, lane: &Lane, step: u32) {
    let mut held: Vec<&Slot> = lane.slots.iter().filter(|s| (s.steps[0]..=s.steps[1]).contains(&step)).collect();
    held.sort_by_key(|s| (u64::MAX - s.bytes, s.offset));
    let most = held.first().map_or(1, |s| s.bytes).max(1);
    let _ = writeln!(out, "<h3>Held in {} at step {step}</h3>", escaped(&lane.space.name));
    let head = "<table><tr><th>what</th><th>as</th><th class=\"n\">bytes</th><th></th></tr>\n";
    out.push_str(head);
    for (i, slot) in held.iter().take(ROWS + FOLDED).enumerate() {
        if i == ROWS {
            let rest: u64 = held[i..].iter().map(|s| s.bytes).sum();
            let _ =
                writeln!(out, "</table><details><summary>{} more, {}</summary>{head}", held.len() - ROWS, bytes(rest));
        }
        holder(out, &slot.name, slot.role, slot.bytes, most);
    }
    let rest = held.get(ROWS + FOLDED..).unwrap_or_default();
    for role in Role::ALL {
        let of_role: Vec<u64> = rest.iter().filter(|s| s.role == role).map(|s| s.bytes).collect();
        if !of_role.is_empty() {
            holder(out, &format!("{} smaller ones", of_role.len()), role, of_role.iter().sum(), most);
        }
    }
    out.push_str(if held.len() > ROWS { "</table></details>\n" } else { "</table>\n" });
}

fn holder(out: &mut String, name: &str, role: Role, count: u64, most: u64) {
    let _ = writeln!(
        out,
        "<tr><td class=\"name\">{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"bar\"><i class=\"{1}\" \
         style=\"width:{:.1}%\"></i></td></tr>",
        // A long name is broken behind its dots.
        escaped(name).replace('.', ".<wbr>"),
        role.name(),
        grouped(count),
        (100.0 * count as f64 / most as f64).min(100.0)
    );
}

/// Spaces in which nothing comes or goes, whatever the entry.
fn steady(out: &mut String, plan: &Plan) {
    let Some(first) = plan.entries.first() else { return };
    for (i, lane) in lanes(plan, first).iter().enumerate() {
        let is_steady = plan.entries.iter().all(|e| lanes(plan, e)[i].is_steady());
        if is_steady && !lane.slots.is_empty() {
            let _ = writeln!(
                out,
                "<section><h2>{}</h2><p>{} tensors, {}</p>",
                escaped(&lane.space.name),
                lane.slots.len(),
                bytes(lane.space.bytes)
            );
            out.push_str(&picture::strip(lane));
            out.push_str("</section>\n");
        }
    }
}
