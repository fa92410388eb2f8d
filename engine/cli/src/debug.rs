//! The debug ladder: the environment variable `DEBUG` says how much is told on stderr. 2 and above: where the time of
//! a run went, kernel by kernel.

use std::collections::BTreeMap;
use tinyforge::runner::Runner;
use tinyforge_compiler::cost;
use tinyforge_compiler::machine::Machine;

/// The level that is asked for; 0 where none is.
pub fn level() -> u32 {
    std::env::var("DEBUG").ok().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Prints the time and the arithmetic rate of every kernel, where they were counted.
pub fn print_times(runner: &Runner) {
    // By kernel: nanoseconds, operations of one pass over the plan, steps of one pass.
    let mut kernels: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for (step, ns, runs) in runner.times() {
        let sum = kernels.entry(&step.kernel).or_default();
        *sum = (sum.0 + ns, sum.1 + step.flops * runs, sum.2 + runs);
    }
    let mut list: Vec<_> = kernels.into_iter().filter(|(_, (ns, ..))| *ns > 0).collect();
    list.sort_by_key(|(_, (ns, ..))| std::cmp::Reverse(*ns));
    let total: u64 = list.iter().map(|(_, (ns, ..))| ns).sum();
    for (kernel, (ns, flops, runs)) in list {
        let share = 100.0 * ns as f64 / total as f64;
        let rate = flops as f64 / ns as f64;
        eprintln!("{kernel:<28} {:>9.1} ms {share:>5.1} %  {runs:>7} runs  {rate:>7.1} GFLOP/s", ns as f64 / 1e6);
    }
}

/// Prints the time of every kernel beside the one that the machine's profile predicts, at level 2.
pub fn print_beside(runner: &Runner, machine: &Machine) {
    if level() < 2 {
        return;
    }
    let mut kernels: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (step, ns, runs) in runner.times() {
        let predicted = cost::seconds(machine, &cost::work(step)).map_or(0.0, |m| m.seconds);
        let sum = kernels.entry(&step.kernel).or_default();
        *sum = (sum.0 + ns as f64 / 1e6, sum.1 + predicted * runs as f64 * 1e3);
    }
    for (kernel, (measured, predicted)) in kernels.into_iter().filter(|(_, (ms, _))| *ms > 0.0) {
        let off = 100.0 * (predicted / measured - 1.0);
        eprintln!("{kernel:<28} {measured:>9.1} ms, predicted {predicted:>9.1} ms  {off:>+6.1} %");
    }
}
