//! Trainings side by side: rows of a table, the same seeds for each, mean and interval.
//!
//! A seed fixes the order of samples, the start of a new head and the draws of rounding, so rows are compared seed by
//! seed. Intervals are of 95 %, by Student's t.

use super::learning::{Course, Learner, Lesson, Rates};
use super::{Int8Args, Int8Settings, model::Opened, planning};
use crate::error::CommandError;
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::time::Instant;
use tinyforge::files::ReadAt;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge_build::settings::Rounding;
use tinyforge_compiler::export::rust;
use tinyforge_plan::Plan;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    row: Vec<Row>,
}

/// What a row does in its own way; the command line says the rest.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Its name in the table.
    pub name: String,
    scheme: Option<String>,
    qas: Option<bool>,
    #[serde(default, deserialize_with = "rounding")]
    update: Option<Rounding>,
    momentum: Option<f64>,
    batch: Option<u32>,
    lr: Option<f64>,
    bias_lr_ratio: Option<f64>,
}

fn rounding<'d, D: Deserializer<'d>>(from: D) -> Result<Option<Rounding>, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

impl Row {
    /// A row that does what the command line says.
    pub fn plain(name: &str) -> Row {
        Row {
            name: name.to_string(),
            scheme: None,
            qas: None,
            update: None,
            momentum: None,
            batch: None,
            lr: None,
            bias_lr_ratio: None,
        }
    }

    fn apply(&self, args: &Int8Args, rates: Rates) -> (Int8Args, Rates) {
        let mut args = args.clone();
        args.scheme = self.scheme.clone().unwrap_or(args.scheme);
        args.no_qas = self.qas.map_or(args.no_qas, |qas| !qas);
        args.update = self.update.unwrap_or(args.update);
        args.momentum = self.momentum.unwrap_or(args.momentum);
        args.batch = self.batch.unwrap_or(args.batch);
        let bias_ratio = self.bias_lr_ratio.unwrap_or(rates.bias_ratio);
        (args, Rates { lr: self.lr.unwrap_or(rates.lr), bias_ratio })
    }
}

/// Reads the rows of a file; a scheme's file is named from that file's folder.
///
/// # Errors
/// The file cannot be read, is no list of rows, or two rows have one name.
pub fn rows(path: &Path) -> Result<Vec<Row>, CommandError> {
    let bad = |why: &dyn std::fmt::Display| CommandError::request(format!("{}: {why}", path.display()));
    let text = String::from_utf8(tinyforge::files::read_whole(path)?).map_err(|e| bad(&e))?;
    let file: File = toml::from_str(&text).map_err(|e| bad(&e))?;
    let mut rows = file.row;
    for i in 0..rows.len() {
        if rows[..i].iter().any(|r| r.name == rows[i].name) {
            return Err(bad(&format!("two rows are named `{}`", rows[i].name)));
        }
        if let Some(scheme) = rows[i].scheme.as_mut().filter(|s| s.ends_with(".toml")) {
            let folder = path.parent().unwrap_or(Path::new(""));
            *scheme = folder.join(&*scheme).to_string_lossy().into_owned();
        }
    }
    if rows.is_empty() { Err(bad(&"there is no [[row]]")) } else { Ok(rows) }
}

/// What a row came to.
pub struct Outcome {
    name: String,
    hash: u64,
    sram_bytes: u64,
    changed_bytes: u64,
    rates: Rates,
    courses: Vec<Course>,
    seconds: f64,
}

/// Trains every row with the seeds from that of `args` on.
///
/// # Errors
/// A row cannot be planned, or its training failed; the message names it.
pub fn run(
    name: &str,
    opened: &Opened,
    args: &Int8Args,
    rates: Rates,
    lesson: &Lesson,
    rows: &[Row],
    seeds: u64,
) -> Result<Vec<Outcome>, CommandError> {
    let of_row = |row: &Row, error: CommandError| match error {
        CommandError::Request(why) => CommandError::Request(format!("row `{}`: {why}", row.name)),
        CommandError::Run(why) => CommandError::Run(format!("row `{}`: {why}", row.name)),
    };
    let mut planned = Vec::new();
    // What cannot be planned is refused before anything is trained.
    for row in rows {
        let (args, rates) = row.apply(args, rates);
        let plan = args.settings().and_then(|s| Ok((planning::plan(name, &opened.model, &s)?.plan, s)));
        planned.push((row, plan.map_err(|e| of_row(row, e))?, rates));
    }
    let mut outcomes = Vec::new();
    for (row, (plan, settings), rates) in planned {
        let started = Instant::now();
        let mut first = Runner::new(plan.clone(), RunOptions::default())?;
        first.load(&opened.files, args.seed)?;
        let hash = rust::hash(&plan, first.arena().bytes(), settings.batch);
        let seeds: Vec<u64> = (0..seeds).map(|k| args.seed.wrapping_add(k)).collect();
        let task = Task { name: &row.name, plan: &plan, files: &opened.files, settings: &settings, rates };
        let courses = all_seeds(&task, lesson, &seeds).map_err(|e| of_row(row, e))?;
        outcomes.push(Outcome {
            name: row.name.clone(),
            hash,
            sram_bytes: plan.total_bytes(),
            changed_bytes: plan.stored_bytes(|s| s.changes),
            rates,
            courses,
            seconds: started.elapsed().as_secs_f64(),
        });
    }
    Ok(outcomes)
}

/// What the trainings of a row have in common.
struct Task<'a> {
    name: &'a str,
    plan: &'a Plan,
    files: &'a [ReadAt],
    settings: &'a Int8Settings,
    rates: Rates,
}

/// A course for every seed, on as many threads as there are: each seed's is the same whatever their number.
fn all_seeds(task: &Task, lesson: &Lesson, seeds: &[u64]) -> Result<Vec<Course>, CommandError> {
    let workers = lesson.threads.clamp(1, seeds.len());
    let lesson = &Lesson { threads: (lesson.threads / workers).max(1), ..*lesson };
    let work = |worker: usize| -> Result<Vec<Course>, CommandError> {
        let mut learner = Learner::new(lesson, task.plan, task.files, task.settings, task.rates)?;
        seeds.iter().skip(worker).step_by(workers).map(|&seed| one_seed(task.name, &mut learner, seed)).collect()
    };
    let done = std::thread::scope(|scope| {
        let started: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        started.into_iter().map(|t| t.join().expect("a worker does not panic")).collect::<Result<Vec<_>, _>>()
    })?;
    let mut done: Vec<_> = done.into_iter().map(Vec::into_iter).collect();
    Ok((0..seeds.len()).filter_map(|k| done[k % workers].next()).collect())
}

fn one_seed(name: &str, learner: &mut Learner, seed: u64) -> Result<Course, CommandError> {
    let course = learner.learn(seed, |_, _| ())?;
    let shown: Vec<String> =
        course.epochs.iter().map(|e| format!("{:.3} ({:.3})", e.accuracy.share(), e.loss)).collect();
    eprintln!("{name}, seed {seed}: {:.3} before; accuracy (loss) {}", course.before.share(), shown.join(", "));
    Ok(course)
}

/// A mean, and how far to each side its interval of 95 % reaches; none of fewer than two numbers.
fn mean(values: &[f64]) -> (f64, Option<f64>) {
    /// Quantiles of 97.5 % of Student's t, by degrees of freedom from 1.
    const T: [f64; 12] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179];
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let Some(freedom) = values.len().checked_sub(1).filter(|&f| f > 0) else { return (mean, None) };
    // Beyond the table, the first terms of its expansion around the normal distribution.
    let t = T.get(freedom - 1).copied().unwrap_or(1.96 + 2.372 / freedom as f64 + 2.82 / (freedom * freedom) as f64);
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / freedom as f64;
    (mean, Some(t * (variance / n).sqrt()))
}

impl Outcome {
    fn accuracies(&self) -> Vec<f64> {
        self.courses.iter().map(|c| c.after().share()).collect()
    }

    /// The row's accuracies minus those of `first`, seed by seed.
    fn against(&self, first: &Outcome) -> Vec<f64> {
        self.accuracies().iter().zip(first.accuracies()).map(|(a, b)| a - b).collect()
    }

    fn json(&self, first: &Outcome) -> Value {
        let interval = |values: &[f64]| {
            let (mean, half) = mean(values);
            json!({"mean": mean, "half_interval_95": half, "values": values})
        };
        let curve = |c: &Course| {
            let epochs = c.epochs.iter().map(|e| json!({"loss": e.loss, "accuracy": e.accuracy.share()}));
            json!({"before": c.before.share(), "epochs": epochs.collect::<Vec<_>>()})
        };
        json!({
            "name": self.name, "plan": format!("{:016x}", self.hash), "sram_bytes": self.sram_bytes,
            "changed_bytes": self.changed_bytes, "lr": self.rates.lr, "bias_lr_ratio": self.rates.bias_ratio,
            "accuracy": interval(&self.accuracies()), "against_first": interval(&self.against(first)),
            "curves": self.courses.iter().map(curve).collect::<Vec<_>>(), "seconds": self.seconds,
        })
    }
}

/// The table in words.
pub fn words(outcomes: &[Outcome]) -> String {
    let percent = |values: &[f64]| {
        let (mean, half) = mean(values);
        format!("{:6.2}{}", 100.0 * mean, half.map_or(String::new(), |h| format!(" +- {:4.2}", 100.0 * h)))
    };
    let width = outcomes.iter().map(|o| o.name.len()).max().unwrap_or(0).max(3);
    let mut out = format!(
        "{:<width$}  {:>14}  {:>14}  {:>10}  {:>9}  {:>8}  plan\n",
        "row", "accuracy, %", "against first", "sram, B", "changed", "seconds"
    );
    for o in outcomes {
        let _ = writeln!(
            out,
            "{:<width$}  {:>14}  {:>14}  {:>10}  {:>9}  {:>8.0}  {:016x}",
            o.name,
            percent(&o.accuracies()),
            percent(&o.against(&outcomes[0])),
            o.sram_bytes,
            o.changed_bytes,
            o.seconds,
            o.hash
        );
    }
    out
}

/// The same as JSON, with all curves.
pub fn json(outcomes: &[Outcome]) -> Value {
    json!({"rows": outcomes.iter().map(|o| o.json(&outcomes[0])).collect::<Vec<_>>()})
}

/// The courses of all rows, by name.
pub fn courses(outcomes: &[Outcome]) -> Vec<(&str, &[Course])> {
    outcomes.iter().map(|o| (o.name.as_str(), o.courses.as_slice())).collect()
}

/// Curves as lines `row,seed,epoch,loss,accuracy`; epoch 0 is before the first step and has no loss.
pub fn csv(rows: &[(&str, &[Course])], first_seed: u64) -> String {
    let mut out = "row,seed,epoch,loss,accuracy\n".to_string();
    for (name, courses) in rows {
        let name = name.replace('"', "\"\"");
        for (k, course) in (0..).zip(*courses) {
            let seed = first_seed.wrapping_add(k);
            let _ = writeln!(out, "\"{name}\",{seed},0,,{}", course.before.share());
            for (epoch, e) in (1..).zip(&course.epochs) {
                let _ = writeln!(out, "\"{name}\",{seed},{epoch},{},{}", e.loss, e.accuracy.share());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::mean;

    #[test]
    fn intervals_are_student_s() {
        let (m, half) = mean(&[0.8, 0.9, 0.85, 0.87, 0.83]);
        // s = 0.038079 and t(4) = 2.776: half = 2.776 s / sqrt(5).
        assert!((m - 0.85).abs() < 1e-12 && (half.expect("of five") - 0.047274).abs() < 1e-5, "{half:?}");
        assert_eq!(mean(&[0.5]), (0.5, None));
        let many: Vec<f64> = (0..101).map(|i| f64::from(i % 2)).collect();
        // t(100) = 1.98397.
        let s = (50.0 * 51.0 / 101.0 / 100.0f64).sqrt();
        let wanted = 1.98397 * s / 101f64.sqrt();
        assert!((mean(&many).1.expect("of many") - wanted).abs() < 1e-4 * wanted);
    }
}
