//! The progress line: one line that is written over on a terminal, one line now and then elsewhere.

use crate::sizes::show;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};
use tinyforge::train::StepReport;

/// Time between lines where stderr is no terminal.
const QUIET: Duration = Duration::from_secs(5);

/// A run's progress on stderr.
pub struct Bar {
    steps: u64,
    first: u64,
    started: Instant,
    shown: Option<Instant>,
    tokens: u64,
    is_terminal: bool,
}

impl Bar {
    /// Progress of a run of `steps` steps of which `done` were done before.
    pub fn new(steps: u64, done: u64) -> Bar {
        let is_terminal = std::io::stderr().is_terminal();
        Bar { steps, first: done, started: Instant::now(), shown: None, tokens: 0, is_terminal }
    }

    /// Tells of a step.
    pub fn step(&mut self, report: &StepReport, rss_bytes: Option<u64>) {
        self.tokens += report.seen_tokens;
        let is_last = report.step == self.steps;
        let wait = if self.is_terminal { Duration::from_millis(100) } else { QUIET };
        if !is_last && self.shown.is_some_and(|at| at.elapsed() < wait) {
            return;
        }
        self.shown = Some(Instant::now());
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let left = seconds / (report.step - self.first) as f64 * (self.steps - report.step) as f64;
        let memory = rss_bytes.map_or(String::new(), |b| format!("  memory {}", show(b)));
        let line = format!(
            "step {}/{}  loss {:.4}  lr {:.2e}  {:.0} tokens/s{memory}  left {}",
            report.step,
            self.steps,
            report.loss,
            report.lr,
            self.tokens as f64 / seconds,
            clock(left)
        );
        if self.is_terminal {
            eprint!("\r\x1b[2K{line}");
            // A progress line that cannot be shown is no reason to stop.
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{line}");
        }
    }

    /// Tells of something else, on a line of its own.
    pub fn note(&mut self, text: &str) {
        self.finish();
        eprintln!("{text}");
    }

    /// Ends the line.
    pub fn finish(&self) {
        if self.is_terminal && self.shown.is_some() {
            eprintln!();
        }
    }
}

fn clock(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    if s >= 3600 {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    } else {
        format!("{}:{:02}", s / 60, s % 60)
    }
}
