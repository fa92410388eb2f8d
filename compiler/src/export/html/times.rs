//! Compute and transfers on a time line: a lane for the steps, one for those of the host, and one for each direction of
//! the link.
//!
//! In seconds, where the machine has rates: as the schedule is played. Otherwise a step takes one unit, and the
//! transfers of a direction share the steps that they have: each begins as soon as the one before it has ended, and
//! those that one step waits for take it in turns by their bytes.

use super::escaped;
use super::picture::{LEFT, LETTER, LITTLE, RIGHT, WIDTH, listed, short, unit_steps};
use crate::cost::{self, Span};
use crate::export::copies::groups;
use crate::export::json::part;
use crate::machine::Machine;
use std::fmt::Write;
use std::ops::Range;
use tinyforge_plan::{Direction, Entry, Plan, Step};

/// Height of a lane and of the space between two.
const LANE: f64 = 30.0;
const GAP: f64 = 8.0;
/// Height of the times below.
const BOTTOM: f64 = 20.0;

/// When everything of an entry runs.
#[derive(Clone, PartialEq, Debug)]
pub struct Times {
    /// Of every step.
    pub steps: Vec<Span>,
    /// Of every event of the link, in the order of [`cost::events`].
    pub events: Vec<Span>,
    /// When the last of them ends.
    pub end: f64,
    /// Of that, how long no step runs.
    pub waiting: f64,
    /// Why these are units and not seconds.
    pub in_units: Option<String>,
}

/// A machine's times of an entry; units where there is none or it lacks rates.
pub fn times(plan: &Plan, entry: &Entry, machine: Option<&Machine>) -> Times {
    let Some(machine) = machine else { return units(plan, entry, "no machine's rates are given".to_string()) };
    let played = cost::schedule(plan, entry, machine).and_then(|schedule| cost::simulate(machine, &schedule));
    match played {
        Ok(played) => Times {
            steps: played.works,
            events: played.transfers,
            end: played.seconds,
            waiting: played.waiting_s,
            in_units: None,
        },
        Err(why) => units(plan, entry, why.to_string()),
    }
}

fn units(plan: &Plan, entry: &Entry, why: String) -> Times {
    let span = |i: usize| Span { start_s: i as f64, end_s: (i + 1) as f64 };
    let events = cost::events(plan, entry);
    let mut spans = vec![Span::default(); events.len()];
    for direction in [Direction::In, Direction::Out] {
        let lane: Vec<usize> =
            (0..events.len()).filter(|&i| entry.transfers[events[i].start].direction == direction).collect();
        // One that is waited for earlier than what is ahead of it hurries all of that.
        let mut due: Vec<u32> = lane.iter().map(|&i| entry.transfers[events[i].start].ends).collect();
        for k in (1..due.len()).rev() {
            due[k - 1] = due[k - 1].min(due[k]);
        }
        let bytes = |i: &usize| moved(plan, entry, &events[*i]).iter().map(|(_, bytes)| bytes).sum::<u64>() as f64;
        let mut free = 0.0f64;
        for (k, &i) in lane.iter().enumerate() {
            let start_s = free.max(f64::from(entry.transfers[events[i].start].begins));
            let rest: f64 = lane[k..].iter().zip(&due[k..]).filter(|(_, d)| **d == due[k]).map(|(i, _)| bytes(i)).sum();
            let share = (f64::from(due[k]) - start_s).max(0.0) * bytes(&i) / rest.max(1.0);
            free = start_s + share;
            spans[i] = Span { start_s, end_s: free };
        }
    }
    let steps: Vec<Span> = (0..entry.steps.len()).map(span).collect();
    Times { end: steps.len() as f64, waiting: 0.0, steps, events: spans, in_units: Some(why) }
}

/// Names and bytes of what an event carries.
fn moved(plan: &Plan, entry: &Entry, event: &Range<usize>) -> Vec<(String, u64)> {
    let stored = entry.transfers[event.clone()].iter().map(|t| &plan.stored[t.stored as usize]);
    stored.map(|s| (s.name.clone(), s.tensor.bytes())).collect()
}

/// Something on a lane.
struct Bar {
    span: Span,
    class: &'static str,
    name: String,
    title: String,
    /// How many things it stands for.
    count: usize,
}

/// What is less than two points wide joins the bar before it, where that touches it and is of its kind.
fn join(bars: Vec<Bar>, point: f64) -> Vec<Bar> {
    let mut out: Vec<Bar> = Vec::new();
    for bar in bars {
        let little = LITTLE * point;
        let before = out.last_mut().filter(|b| {
            b.class == bar.class
                && bar.span.start_s - b.span.end_s < point / 2.0
                && (bar.span.seconds() < little || b.span.seconds() < little)
        });
        match before {
            Some(before) => {
                before.span.end_s = bar.span.end_s;
                before.count += bar.count;
                let _ = write!(before.title, "\n{}", bar.title);
            }
            None => out.push(bar),
        }
    }
    out
}

/// The steps of the device or of the host, those of a block and a part that follow one another as one.
fn compute(plan: &Plan, entry: &Entry, times: &Times, on_host: bool) -> Vec<Bar> {
    let steps = entry.steps.iter().zip(&times.steps).enumerate();
    let steps: Vec<_> = steps.filter(|(_, (step, _))| plan.is_on_host(step) == on_host).collect();
    let point = times.end / (WIDTH - LEFT - RIGHT);
    let is_one = |a: &(usize, (_, &Span)), b: &(usize, (_, &Span))| b.1.1.start_s - a.1.1.end_s < point;
    let same = |a: &Step, b: &Step| a.block == b.block && a.part == b.part;
    let bar = |run: &[(usize, (&Step, &Span))]| {
        let (first, last) = (&run[0], &run[run.len() - 1]);
        let span = Span { start_s: first.1.1.start_s, end_s: last.1.1.end_s };
        let name = entry.blocks.get(first.1.0.block as usize).cloned().unwrap_or_default();
        let title = format!("{name} {}: steps {} to {}", part(first.1.0.part), first.0, last.0);
        let title = format!("{title}, {}", when(&span, times));
        Bar { span, class: part(first.1.0.part), name, title, count: run.len() }
    };
    steps.chunk_by(|a, b| same(a.1.0, b.1.0) && is_one(a, b)).map(bar).collect()
}

/// The transfers of a direction.
fn carried(plan: &Plan, entry: &Entry, times: &Times, direction: Direction) -> Vec<Bar> {
    let groups = groups(plan, entry);
    let mut bars = Vec::new();
    for (event, &span) in cost::events(plan, entry).iter().zip(&times.events) {
        let first = &entry.transfers[event.start];
        if first.direction != direction {
            continue;
        }
        let parts = moved(plan, entry, event);
        let mut names: Vec<String> =
            entry.transfers[event.clone()].iter().filter_map(|t| groups.get(&t.stored)).map(|g| g.name()).collect();
        names.dedup();
        let name = names.join(", ");
        let window = match (first.begins, first.ends as usize) {
            (a, b) if b >= entry.steps.len() => format!("may begin with step {a}, is due at the end"),
            (a, b) => format!("may begin with step {a}, step {b} waits for it"),
        };
        let count: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
        let title =
            format!("{name}: {}, {}\n{window}{}", super::bytes(count), when(&span, times), listed(&parts, parts.len()));
        let class = if direction == Direction::In { "comes" } else { "goes" };
        bars.push(Bar { span, class, name, title, count: parts.len() });
    }
    bars
}

fn when(span: &Span, times: &Times) -> String {
    match times.in_units {
        Some(_) => format!("from {:.1} to {:.1} steps", span.start_s, span.end_s),
        None => format!("{} from {} on", seconds(span.seconds()), seconds(span.start_s)),
    }
}

/// `12.3 ms`.
fn seconds(s: f64) -> String {
    if s <= 0.0 {
        return "0 s".to_string();
    }
    const UNITS: [(f64, &str); 3] = [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")];
    let &(unit, name) = UNITS.iter().find(|(unit, _)| s >= *unit).unwrap_or(&UNITS[2]);
    let number = s / unit;
    let digits = if number >= 100.0 { 0 } else { 2 - usize::from(number >= 10.0) };
    format!("{number:.digits$} {name}")
}

/// The time line of an entry, its words above it.
pub(super) fn picture(plan: &Plan, entry: &Entry, machine: Option<&Machine>) -> String {
    let times = times(plan, entry, machine);
    let names = |direction| match machine.and_then(|m| Some((m, m.links.iter().find(|l| l.to == m.near)?))) {
        Some((_, link)) if direction == Direction::In => format!("{} → {}", link.from, link.to),
        Some((machine, link)) => format!("{} → {}", machine.near, link.from),
        None if direction == Direction::In => "comes in".to_string(),
        None => "goes back".to_string(),
    };
    let mut lanes = vec![("compute".to_string(), compute(plan, entry, &times, false))];
    let by_host = compute(plan, entry, &times, true);
    lanes.extend((!by_host.is_empty()).then(|| ("host".to_string(), by_host)));
    for direction in [Direction::In, Direction::Out] {
        let bars = carried(plan, entry, &times, direction);
        lanes.extend((!bars.is_empty()).then(|| (names(direction), bars)));
    }
    let point = times.end.max(f64::MIN_POSITIVE) / (WIDTH - LEFT - RIGHT);
    let height = lanes.len() as f64 * (LANE + GAP) + BOTTOM;
    let mut out = format!("<h3>Time</h3><p>{}</p>\n", escaped(&words(plan, entry, &times, machine)));
    let _ = writeln!(
        out,
        "<div class=\"scroll\"><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"compute and \
         transfers of {} \
         over time\">",
        escaped(&entry.name)
    );
    for (i, (name, bars)) in lanes.into_iter().enumerate() {
        lane(&mut out, &name, &join(bars, point), i as f64 * (LANE + GAP), point);
    }
    axis(&mut out, &times, height - BOTTOM, point);
    out.push_str("</svg></div>\n");
    out
}

fn words(plan: &Plan, entry: &Entry, times: &Times, machine: Option<&Machine>) -> String {
    let [read, written] = [Direction::In, Direction::Out].map(|direction| short(plan.moved(entry, direction).1));
    let amounts = match entry.transfers.is_empty() {
        true => String::new(),
        false => format!("; {read} come in, {written} go back"),
    };
    match (&times.in_units, machine) {
        (None, Some(machine)) => format!(
            "predicted {} on {} ({}), of which compute waits {}{amounts}",
            seconds(times.end),
            machine.name,
            machine.figures,
            seconds(times.waiting)
        ),
        (why, _) => format!("one unit a step: {}{amounts}", why.as_deref().unwrap_or("no rates")),
    }
}

fn lane(out: &mut String, name: &str, bars: &[Bar], y: f64, point: f64) {
    let _ = writeln!(
        out,
        "<text class=\"row\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect class=\"away\" x=\"{LEFT}\" \
         y=\"{y:.1}\" width=\"{:.1}\" height=\"{LANE}\"/>",
        LEFT - 6.0,
        y + LANE / 2.0 + 4.0,
        escaped(name),
        WIDTH - LEFT - RIGHT
    );
    for bar in bars {
        let (x, width) = (LEFT + bar.span.start_s / point, bar.span.seconds() / point);
        let _ = writeln!(
            out,
            "<rect class=\"bar {}\" x=\"{x:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{LANE}\" \
             data-count=\"{}\"><title>{}</title></rect>",
            bar.class,
            bar.count,
            escaped(&bar.title)
        );
        // Of `layers.12` the number will do where there is no room for all of it.
        let last = bar.name.rsplit_once('.').map_or(bar.name.as_str(), |(_, last)| last);
        let room = ((width - 1.0) / LETTER).max(0.0) as usize;
        let ink = match bar.class {
            "comes" => "label ink",
            "goes" | "update" => "label",
            _ => "label dark",
        };
        let fits = |text: &&str| text.chars().count() <= room && !text.is_empty();
        if let Some(text) = [bar.name.as_str(), last].into_iter().find(fits) {
            let _ = writeln!(
                out,
                "<text class=\"{ink}\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                x + width / 2.0,
                y + LANE / 2.0 + 3.6,
                escaped(text)
            );
        }
    }
}

/// Times below the lanes.
fn axis(out: &mut String, times: &Times, y: f64, point: f64) {
    let unit = match times.in_units {
        Some(_) => f64::from(unit_steps(times.end as u32)),
        None => round(times.end / 12.0),
    };
    let marks = if unit > 0.0 { (times.end / unit) as u32 } else { 0 };
    for i in 0..=marks {
        let at = f64::from(i) * unit;
        let text = match times.in_units {
            Some(_) => format!("{at:.0}"),
            None => seconds(at),
        };
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1:.1}\" y2=\"{y:.1}\"/><text x=\"{0:.1}\" \
             y=\"{2:.1}\">\
             {text}</text>",
            LEFT + at / point,
            y - GAP,
            y + 11.0
        );
    }
}

/// 1, 2 or 5 of a power of ten, at least this much.
fn round(least: f64) -> f64 {
    if least <= 0.0 {
        return 0.0;
    }
    let ten = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * ten).find(|n| *n >= least).unwrap_or(10.0 * ten)
}
