//! What can be wrong with a machine's description.

use super::{KernelRate, Machine};
use std::collections::BTreeSet;

/// Names that a space may have: a plan says the same.
const SPACES: [&str; 6] = ["ram", "vram", "pinned", "disk", "sram", "flash"];
/// Spaces that kernels can work in.
const NEAR: [&str; 3] = ["ram", "vram", "sram"];
/// More cannot be meant.
const RATE_MAX: f64 = 1e21;
/// A kernel whose operands lie in the first cache may be so much faster than the memory.
const EFFICIENCY_MAX: f64 = 1000.0;

/// All that is wrong, in words.
pub fn faults(machine: &Machine) -> Vec<String> {
    let mut faults = Vec::new();
    spaces(machine, &mut faults);
    links(machine, &mut faults);
    rates(machine, &mut faults);
    machine.kernels.iter().for_each(|row| kernel(row, &mut faults));
    faults
}

fn spaces(machine: &Machine, faults: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for space in &machine.spaces {
        let name = &space.name;
        if !SPACES.contains(&name.as_str()) {
            faults.push(format!("space `{name:.40}`: the names are {}", SPACES.join(", ")));
        }
        if !seen.insert(name) {
            faults.push(format!("space `{name:.40}` is described twice"));
        }
        if space.bytes.is_some_and(|b| b == 0 || b > 1 << 60) {
            faults.push(format!("space `{name:.40}` has {} bytes", space.bytes.unwrap_or(0)));
        }
        if !space.align_bytes.is_power_of_two() || space.align_bytes > 1 << 20 {
            faults.push(format!("space `{name:.40}`: align_bytes {} is no power of two to 2^20", space.align_bytes));
        }
    }
    let near = &machine.near;
    if machine.space(near).is_none() {
        faults.push(format!("near is `{near:.40}`, of which there is no [[space]]"));
    } else if !NEAR.contains(&near.as_str()) {
        faults.push(format!("near is `{near:.40}`: kernels work in {}", NEAR.join(", ")));
    }
    if machine.traits.unified && near != "ram" {
        faults.push(format!("unified, and near is `{near:.40}`: one memory for both is called ram"));
    }
    if machine.threads == Some(0) {
        faults.push("threads is 0".to_string());
    }
}

fn links(machine: &Machine, faults: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for link in &machine.links {
        let what = format!("link from `{:.40}` to `{:.40}`", link.from, link.to);
        if machine.space(&link.from).is_none() || machine.space(&link.to).is_none() {
            faults.push(format!("{what}: no such [[space]]"));
        }
        if link.from == link.to {
            faults.push(format!("{what} leads nowhere"));
        }
        if !seen.insert((&link.from, &link.to)) {
            faults.push(format!("{what} is described twice"));
        }
        figure(&format!("{what}: bytes_per_second"), link.bytes_per_second, faults);
        seconds(&format!("{what}: latency_s"), link.latency_s, faults);
    }
}

fn rates(machine: &Machine, faults: &mut Vec<String>) {
    let rates = &machine.rates;
    let all = [
        ("f32", rates.f32),
        ("f16", rates.f16),
        ("bf16", rates.bf16),
        ("i8", rates.i8),
        ("near_bytes_per_second", rates.near_bytes_per_second),
        ("optimizer_bytes_per_second", rates.optimizer_bytes_per_second),
    ];
    all.into_iter().for_each(|(name, rate)| figure(&format!("rates: {name}"), rate, faults));
    seconds("rates: launch_s", rates.launch_s, faults);
}

fn kernel(row: &KernelRate, faults: &mut Vec<String>) {
    let what = format!("kernel `{:.40}`", row.kernel);
    let (x, y) = (&row.ideal_s, &row.efficiency);
    if x.is_empty() || x.len() != y.len() {
        faults.push(format!("{what}: {} sizes and {} efficiencies", x.len(), y.len()));
    }
    let ascend = x.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascend || x.iter().any(|x| !(x.is_finite() && *x > 0.0)) {
        faults.push(format!("{what}: ideal_s must be positive and ascend"));
    }
    if let Some(bad) = y.iter().find(|y| !(y.is_finite() && **y > 0.0 && **y <= EFFICIENCY_MAX)) {
        faults.push(format!("{what}: an efficiency of {bad}"));
    }
}

fn figure(what: &str, rate: Option<f64>, faults: &mut Vec<String>) {
    if let Some(rate) = rate.filter(|r| !(r.is_finite() && *r > 0.0 && *r <= RATE_MAX)) {
        faults.push(format!("{what} is {rate}, must be above 0 and at most {RATE_MAX:e}"));
    }
}

fn seconds(what: &str, s: f64, faults: &mut Vec<String>) {
    if !(0.0..=3600.0).contains(&s) {
        faults.push(format!("{what} is {s}, must be from 0 to 3600"));
    }
}
