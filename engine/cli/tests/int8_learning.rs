//! The training of int8 networks by the command: what a user can choose beside the rule itself changes no bit, states
//! are counted, and a comparison is the trainings that it is made of.

#[path = "../../../compiler/tests/mcu_file/mod.rs"]
mod mcu_file;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tinyforge::files::ReadAt;
use tinyforge::runner::{RunOptions, Runner};
use tinyforge::samples::{self, Location};
use tinyforge::simulate::{SimulateError, SimulateOptions, Simulation};
use tinyforge::train::schedule::{Decay, LrSchedule};
use tinyforge_build::planning;
use tinyforge_build::settings::{Int8Settings, Rounding, target};
use tinyforge_compiler::import::mcu;
use tinyforge_compiler::scheme::Scheme;
use tinyforge_plan::{Number, Plan, Source, Stored};

const ELEMS: usize = 6 * 6 * 3;
const SAMPLES: usize = 30;

/// A folder with a network and labelled samples, which goes with its value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("tinyforge-int8-learning-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary folder takes a folder");
        let (json, weights) = mcu_file::tiny();
        let folder = Folder(path);
        folder.write("net.json", json.as_bytes());
        folder.write("net.safetensors", &weights);
        // Noise around a pattern of each class.
        let value = |i: usize, e: usize| ((e * (i % 3 + 1) / 5 % 4) * 50 + (e * 31 + i * 17) % 40) as u8;
        let images: Vec<u8> = (0..SAMPLES).flat_map(|i| (0..ELEMS).map(move |e| value(i, e))).collect();
        folder.write("images.bin", &images);
        folder.write("labels.bin", &(0..SAMPLES).map(|i| (i % 3) as u8).collect::<Vec<_>>());
        folder
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.join(name), bytes).expect("the folder takes a file");
    }

    /// `tinyforge simulate` on the network and the samples.
    fn simulate(&self, args: &[&str]) -> Output {
        let at = |name: &str| self.0.join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_tinyforge"));
        command.arg("simulate").arg(at("net.json")).arg("--data").arg(at("images.bin"));
        command.arg("--labels").arg(at("labels.bin")).args(["--classes", "3", "--json"]);
        for usual in [["--scheme", "full"], ["--epochs", "2"], ["--lr", "0.02"]] {
            if !args.contains(&usual[0]) {
                command.args(usual);
            }
        }
        command.args(args).output().expect("the command starts")
    }

    /// The same, which must succeed: its object.
    fn found(&self, args: &[&str]) -> Value {
        let output = self.simulate(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(text.lines().last().unwrap_or_default()).expect("the last line is an object")
    }

    /// The bytes that training left.
    fn state(&self, args: &[&str]) -> Vec<u8> {
        let path = self.0.join("state.bin");
        let path_text = path.to_string_lossy();
        self.found(&[args, &["--state", &path_text]].concat());
        std::fs::read(Path::new(&path)).expect("the state was written")
    }

    /// What is said of a request that is refused.
    fn refusal(&self, args: &[&str]) -> String {
        let output = self.simulate(args);
        assert_eq!(output.status.code(), Some(2), "{args:?} is refused");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that is left in the temporary folder harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The rules that change the result.
const RULES: [&[&str]; 5] = [
    &[],
    &["--update", "accumulate"],
    &["--momentum", "0.9", "--batch", "3"],
    &["--momentum", "0.5", "--update", "accumulate"],
    &["--no-qas", "--lr", "50", "--batch", "2"],
];

#[test]
fn budgets_threads_and_targets_change_no_bit() {
    let folder = Folder::new("bits");
    let mut states = Vec::new();
    for rule in RULES {
        let first = folder.state(rule);
        for choice in [
            &["--memory", "1MiB", "--stack", "2KiB"][..],
            &["--target", "cortex-m4", "--flash", "64KiB"],
            &["--threads", "3"],
            &["--threads", "1", "--memory", "40KiB"],
        ] {
            assert!(folder.state(&[rule, choice].concat()) == first, "{rule:?} with {choice:?}");
        }
        assert!(!states.contains(&first), "{rule:?} trains as another rule does");
        states.push(first);
    }
}

#[test]
fn states_are_counted() {
    let folder = Folder::new("counted");
    let of = |rule: &[&str], what: &str| {
        let found = folder.found(&[rule, &["--epochs", "1"]].concat());
        found["uses"][what].as_u64().expect("a number of bytes")
    };
    // 4x3x3x3, 5x5x4 and 3x1x1x4 weights, with 4, 4 and 3 biases: 4 bytes for each.
    let trained = 4 * (108 + 100 + 12 + 11);
    assert_eq!(of(&[], "optimizer_state"), 0);
    assert_eq!(of(&["--momentum", "0.9"], "optimizer_state"), trained);
    assert_eq!(of(&["--update", "accumulate"], "optimizer_state"), trained);
    assert_eq!(of(&["--momentum", "0.9", "--update", "accumulate"], "optimizer_state"), 2 * trained);
    assert_eq!(of(&["--batch", "2"], "gradient_sums"), trained);
    assert_eq!(of(&["--batch", "2"], "optimizer_state"), 0);
}

#[test]
fn a_comparison_is_the_trainings_that_it_is_made_of() {
    let folder = Folder::new("compare");
    let rows = "[[row]]\nname = \"plain\"\n[[row]]\nname = \"kept\"\nupdate = \"accumulate\"\nlr = 0.05\nbatch = 2\n\
                [[row]]\nname = \"head\"\nscheme = \"head.toml\"\nqas = false\nbias_lr_ratio = 1.0\nmomentum = 0.5\n";
    folder.write("rows.toml", rows.as_bytes());
    let head = "[update]\nkind = \"sparse\"\nbias_last = 0\n[[update.weight]]\nlayer = 0\nratio = 0.0\n";
    folder.write("head.toml", head.as_bytes());
    let (rows, curves) = (folder.0.join("rows.toml"), folder.0.join("curves.csv"));
    let (rows, curves) = (rows.to_string_lossy().into_owned(), curves.to_string_lossy().into_owned());
    let all = folder.found(&["--compare", &rows, "--seeds", "2", "--seed", "7", "--curves", &curves]);
    let head = folder.0.join("head.toml").to_string_lossy().into_owned();
    let alone: [&[&str]; 3] = [
        &[],
        &["--update", "accumulate", "--lr", "0.05", "--batch", "2"],
        &["--scheme", &head, "--no-qas", "--bias-lr-ratio", "1", "--momentum", "0.5"],
    ];
    for (row, args) in all["rows"].as_array().expect("rows").iter().zip(alone) {
        let runs = ["7", "8"].map(|seed| folder.found(&[args, &["--seed", seed]].concat()));
        for (i, run) in runs.iter().enumerate() {
            assert_eq!(row["accuracy"]["values"][i], run["accuracy"], "{}", row["name"]);
            let losses: Vec<&Value> =
                row["curves"][i]["epochs"].as_array().expect("epochs").iter().map(|e| &e["loss"]).collect();
            assert_eq!(losses, run["losses"].as_array().expect("losses").iter().collect::<Vec<_>>(), "{}", row["name"]);
        }
        assert_eq!((&row["plan"], &row["sram_bytes"]), (&runs[0]["plan"], &runs[0]["sram_bytes"]));
    }
    let text = std::fs::read_to_string(&curves).expect("curves were written");
    // A line of names; for 3 rows and 2 seeds, a line before the first step and one an epoch.
    assert_eq!(text.lines().count(), 1 + 3 * 2 * (1 + 2), "{text}");
    assert!(text.starts_with("row,seed,epoch,loss,accuracy\n\"plain\",7,0,,"), "{text}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = Folder::new("refused");
    let path = folder.0.join("rows.toml").to_string_lossy().into_owned();
    let with = |text: &str| {
        folder.write("rows.toml", text.as_bytes());
        folder.refusal(&["--compare", &path])
    };
    assert!(with("[[row]]\nname = \"a\"\n[[row]]\nname = \"a\"\n").contains("two rows are named `a`"));
    assert!(with("row = []\n").contains("there is no [[row]]"));
    assert!(with("[[row]]\nname = \"a\"\nrate = 3\n").contains("unknown field `rate`"));
    assert!(with("[[row]]\nname = \"a\"\nmomentum = 1.5\n").contains("row `a`: --momentum 1.5"));
    assert!(with("[[row]]\nname = \"a\"\nscheme = \"last:99999999999\"\n").contains("row `a`"));
    assert!(folder.refusal(&["--momentum", "1"]).contains("at least 0 and below 1"));
    assert!(folder.refusal(&["--seeds", "0"]).contains("--seeds"));
    assert!(folder.refusal(&["--seeds", "2", "--state", "x"]).contains("--state"));
}

/// A scheme that trains two weights, the second at this rate.
fn rated(rate: &str) -> String {
    format!(
        "[update]\nkind = \"sparse\"\nbias_last = 1\n[[update.weight]]\nlayer = 0\n[[update.weight]]\nlayer = 1\n{rate}"
    )
}

/// The plan of the tiny network with a scheme.
fn planned(scheme: &str) -> Plan {
    let (json, weights) = mcu_file::tiny();
    let model = mcu::import(json.as_bytes(), &weights, "tiny").expect("a network");
    let settings = Int8Settings {
        scheme: Scheme::parse_file(scheme).expect("a scheme"),
        target: target("cortex-m4").expect("a target"),
        memory: 1 << 20,
        flash: 1 << 20,
        stack: 4096,
        batch: 1,
        is_scaled: true,
        update: Rounding::Stochastic,
        momentum: 0.0,
    };
    planning::plan("tiny", &model, &settings).expect("it fits").plan
}

/// The tables of numbers of its plan, by name.
fn tables(scheme: &str) -> Vec<(String, Vec<f32>)> {
    let table = |s: &Stored| match &s.source {
        Source::Table(values) => Some((s.name.clone(), values.clone())),
        _ => None,
    };
    planned(scheme).stored.iter().filter_map(table).collect()
}

#[test]
fn a_weight_s_rate_is_in_its_factors_and_costs_nothing() {
    let (plain, rated_by) = (tables(&rated("")), tables(&rated("rate = 3.5")));
    let mut changed = Vec::new();
    for ((name, values), (_, others)) in plain.iter().zip(&rated_by) {
        if values != others {
            let wanted: Vec<f32> = values.iter().map(|&v| (3.5 * f64::from(v)) as f32).collect();
            assert_eq!(others, &wanted, "{name}");
            changed.push(name.as_str());
        }
    }
    assert_eq!((plain.len(), changed.len()), (rated_by.len(), 1), "{changed:?}");
    assert!(changed[0].ends_with("weight.factor"), "{changed:?}");

    let folder = Folder::new("rates");
    let mut found = Vec::new();
    for (name, rate) in [("none", ""), ("one", "rate = 1.0"), ("more", "rate = 30.0")] {
        folder.write(&format!("{name}.toml"), rated(rate).as_bytes());
        let path = folder.0.join(format!("{name}.toml")).to_string_lossy().into_owned();
        let request = ["--scheme", &path, "--epochs", "1"];
        found.push((folder.state(&request), folder.found(&request)["sram_bytes"].clone()));
    }
    assert!(found[0] == found[1], "a rate of 1 changes something");
    assert!(found[0].0 != found[2].0 && found[0].1 == found[2].1, "a rate of 30 changes nothing, or its memory");
    folder.write("bad.toml", rated("rate = 0.0").as_bytes());
    let said = folder.refusal(&["--scheme", &folder.0.join("bad.toml").to_string_lossy()]);
    assert!(said.contains("a rate above 0"), "{said}");
}

#[test]
fn a_loss_that_is_not_finite_changes_nothing() {
    let folder = Folder::new("infinite");
    let mut plan = planned(&rated(""));
    // Logits so far apart that the loss of all but the largest is beyond f32.
    for step in plan.entries.iter_mut().flat_map(|e| &mut e.steps).filter(|s| s.kernel == "i8_cross_entropy") {
        let scale = step.attrs.iter_mut().find(|(name, _)| name == "scale").expect("the logits have one");
        scale.1 = Number::Float(3e38);
    }
    let mut runner = Runner::new(plan, RunOptions::default()).expect("a compiled plan runs");
    runner.load(&[ReadAt::open(&folder.0.join("net.safetensors")).expect("weights")], 1).expect("they are whole");
    let location = Location { data: folder.0.join("images.bin"), labels: Some(folder.0.join("labels.bin")) };
    let samples = samples::read(&location, [6, 6, 3]).expect("samples");
    let options = SimulateOptions {
        batch: 1,
        schedule: LrSchedule { peak: 0.02, floor: 0.02, warmup_steps: 0, steps: 100, decay: Decay::Constant },
        bias_lr_ratio: 0.5,
        seed: 1,
        is_shuffled: false,
    };
    let mut simulation = Simulation::new(runner, options, samples.len()).expect("a simulation");
    let state = |simulation: &Simulation| -> Vec<Vec<u8>> {
        let runner = simulation.runner();
        runner.plan().stored.iter().map(|s| runner.arena().tensor(&s.tensor).to_vec()).collect()
    };
    for _ in 0..samples.len() {
        let before = state(&simulation);
        match simulation.step(&samples) {
            Ok(loss) => assert!(loss.is_finite()),
            Err(SimulateError::NotFinite { loss, .. }) => {
                assert!(!loss.is_finite() && state(&simulation) == before, "{loss}");
                return;
            }
            Err(error) => panic!("{error}"),
        }
        assert!(state(&simulation) != before, "a step that succeeds changes something");
    }
    panic!("every sample has the largest logit");
}
