//! Which blocks of a far memory have copies in the near one, and when: a row a block, steps across.

use super::picture::{LEFT, RIGHT, WIDTH, listed, x};
use super::{bytes, escaped};
use crate::export::copies::{Group, Stay, groups};
use crate::export::json::part;
use std::collections::BTreeMap;
use std::fmt::Write;
use tinyforge_plan::{Entry, Part, Plan, Space};

/// Height of all rows together where they are many, and the least and the largest of one.
const HEIGHT: f64 = 620.0;
const ROW: [f64; 2] = [6.0, 14.0];
/// Least height of a row with a name of its own.
const NAMED: f64 = 9.0;
/// Height of the steps below.
const BOTTOM: f64 = 18.0;

/// Steps that read a row are drawn as one use of it where they are no farther apart.
const NEAR: f64 = 8.0;

/// A group that streams between a far space and the near memory.
struct Row {
    group: Group,
    stored: Vec<u32>,
}

/// The groups of a space that an entry moves or finds near: weights by the order of the blocks, then states.
fn rows(plan: &Plan, entry: &Entry, space: &Space) -> Vec<Row> {
    let mut rows: BTreeMap<Group, Vec<u32>> = BTreeMap::new();
    for (stored, group) in groups(plan, entry) {
        if (space.first_byte..space.end()).contains(&plan.stored[stored as usize].tensor.offset) {
            rows.entry(group).or_default().push(stored);
        }
    }
    let place = |group: &Group| entry.blocks.iter().position(|b| *b == group.block);
    let mut rows: Vec<Row> = rows.into_iter().map(|(group, stored)| Row { group, stored }).collect();
    rows.sort_by_key(|row| (row.group.is_state, place(&row.group)));
    rows
}

/// The rows of a far space as a picture; nothing where none of it comes near.
pub(super) fn picture(plan: &Plan, entry: &Entry, space: &Space, stays: &[Stay]) -> Option<String> {
    let rows = rows(plan, entry, space);
    let height = (HEIGHT / rows.len().max(1) as f64).clamp(ROW[0], ROW[1]);
    let (below, steps) = (height * rows.len() as f64, entry.steps.len().max(1) as f64);
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<div class=\"scroll\"><svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"blocks of {} in the near \
         memory over the steps of {}\">",
        below + BOTTOM,
        escaped(&space.name),
        escaped(&entry.name)
    );
    for (i, row) in rows.iter().enumerate() {
        let y = i as f64 * height;
        name(&mut out, plan, row, [y, height], i % (NAMED / height).ceil() as usize == 0);
        for stay in stays.iter().filter(|stay| stay.group == row.group) {
            // A block may have a part in each of several spaces.
            let copies = stay.copies.iter().copied().filter(|(stored, _)| row.stored.contains(stored)).collect();
            bar(&mut out, plan, &Stay { copies, ..stay.clone() }, [y, height, steps]);
        }
        uses(&mut out, plan, entry, row, [y, height, steps]);
    }
    for step in (0..entry.steps.len() as u32).step_by(super::picture::unit_steps(entry.steps.len() as u32) as usize) {
        let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\">{step}</text>", x(step, steps), below + 13.0);
    }
    out.push_str("</svg></div>\n");
    (!rows.is_empty()).then_some(out)
}

/// The row as far as nothing of it is near, and what it is called.
fn name(out: &mut String, plan: &Plan, row: &Row, [y, height]: [f64; 2], is_named: bool) {
    let parts = row.stored.iter().map(|&i| &plan.stored[i as usize]);
    let parts: Vec<(String, u64)> = parts.map(|s| (s.name.clone(), s.tensor.bytes())).collect();
    let _ = writeln!(
        out,
        "<rect class=\"away\" x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}: {}{}</title></rect>",
        y + 1.0,
        WIDTH - LEFT - RIGHT,
        height - 2.0,
        escaped(&row.group.name()),
        bytes(parts.iter().map(|(_, count)| count).sum()),
        escaped(&listed(&parts, parts.len()))
    );
    if is_named {
        let _ = writeln!(
            out,
            "<text class=\"row\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}{}</text>",
            LEFT - 6.0,
            y + height / 2.0 + 3.5,
            escaped(&row.group.block),
            if row.group.is_state { " states" } else { "" }
        );
    }
}

/// A stay, and within it when the copies come in and go back.
fn bar(out: &mut String, plan: &Plan, stay: &Stay, [y, height, steps]: [f64; 3]) {
    let from = match stay.comes {
        Some([first, last]) => format!("comes in beside steps {first} to {last}"),
        None => "is there from the run before".to_string(),
    };
    let [begins, ends] = stay.steps;
    let back: Vec<String> = stay.goes.iter().map(|[a, b]| format!("\ngoes back beside steps {a} to {b}")).collect();
    let title = format!("{} is near from step {begins} to {ends}\n{from}{}", stay.group.name(), back.concat());
    let title = format!("{title}\n{} tensors, {}", stay.copies.len(), bytes(stay.bytes(plan)));
    let mut parts = vec![(stay.steps, "near copy")];
    parts.extend(stay.comes.iter().map(|&window| (window, "move comes")));
    parts.extend(stay.goes.iter().map(|&window| (window, "move goes")));
    let _ = writeln!(out, "<g class=\"stay\"><title>{}</title>", escaped(&title));
    for ([first, last], class) in parts {
        let _ = writeln!(
            out,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
            x(first, steps),
            y + 1.0,
            (x(last + 1, steps) - x(first, steps)).max(1.0),
            height - 2.0
        );
    }
    out.push_str("</g>\n");
}

/// The steps that read the row, by their part: neighbours as one.
fn uses(out: &mut String, plan: &Plan, entry: &Entry, row: &Row, [y, height, steps]: [f64; 3]) {
    let values: Vec<u32> = row.stored.iter().map(|&i| plan.stored[i as usize].tensor.value).collect();
    let near = (NEAR * steps / (WIDTH - LEFT - RIGHT)) as u32 + 1;
    let mut runs: Vec<(Part, [u32; 2])> = Vec::new();
    for (i, step) in entry.steps.iter().enumerate() {
        if !step.args.iter().any(|arg| values.contains(&arg.value)) {
            continue;
        }
        match runs.last_mut().filter(|(part, [_, last])| *part == step.part && i as u32 <= last + near) {
            Some((_, steps)) => steps[1] = i as u32,
            None => runs.push((step.part, [i as u32; 2])),
        }
    }
    for (its, [first, last]) in runs {
        let _ = writeln!(
            out,
            "<rect class=\"use {}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
            part(its),
            x(first, steps),
            y + height * 0.3,
            (x(last + 1, steps) - x(first, steps)).max(2.0),
            height * 0.4
        );
    }
}
