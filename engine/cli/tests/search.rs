//! `tinyforge search`: the found scheme is the best that fits, and a search that was cut short goes on as if it had
//! not been.

mod made;

use made::Scratch;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tinyforge::runner::{RunOptions, Runner};
use tinyforge::samples::Location;
use tinyforge::simulate::contribution::Trials;
use tinyforge::simulate::{Evaluator, SimulateOptions, Simulation};
use tinyforge::train::schedule::{Decay, LrSchedule};
use tinyforge_build::settings::{Int8Settings, Rounding, target};
use tinyforge_cli::search::candidates::{self, Candidate, Network, Part, Wanted};
use tinyforge_compiler::scheme::select::select;
use tinyforge_kernels::random::Stream;

/// A network of six convolutions for images of 16 x 16 in four classes.
fn striped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/graph-export/model/striped.json")
}

/// Noise around one brightness a class, as raw arrays.
fn samples(scratch: &Scratch, count: usize) -> [PathBuf; 2] {
    let stream = Stream { seed: 3, step: 0, tensor: 0 };
    let noise = |i: usize| (stream.uniform(i as u64) * 60.0) as i32 - 30;
    let value = |i: usize| (noise(i) + 40 * ((i / 768 % 4) as i32) - 60) as i8 as u8;
    let paths = [scratch.join("images.bin"), scratch.join("labels.bin")];
    std::fs::write(&paths[0], (0..count * 768).map(value).collect::<Vec<u8>>()).expect("a file");
    std::fs::write(&paths[1], (0..count).map(|i| (i % 4) as u8).collect::<Vec<u8>>()).expect("a file");
    paths
}

fn search(scratch: &Scratch, out: &str, more: &[&str]) -> Output {
    let [data, labels] = samples(scratch, 60);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tinyforge"));
    command.arg("search").arg(striped()).arg("--data").arg(data).arg("--labels").arg(labels);
    command.arg("--out").arg(scratch.join(out)).args(["--steps", "25", "--stack", "1KiB", "--json"]).args(more);
    command.output().expect("the command can be run")
}

fn settings(memory: u64) -> Int8Settings {
    Int8Settings {
        scheme: candidates::scheme(&[]),
        target: target("cortex-m7").expect("a target"),
        memory,
        flash: 1 << 20,
        stack: 1024,
        batch: 1,
        is_scaled: true,
        update: Rounding::Stochastic,
        momentum: 0.0,
    }
}

#[test]
fn a_search_that_was_cut_short_ends_with_the_same_scheme() {
    let scratch = Scratch::new("search-resume");
    let read = |name: &str| std::fs::read_to_string(scratch.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let whole = search(&scratch, "a.toml", &["--memory", "20KiB", "--threads", "1"]);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    // Half of the measurements, as after a kill; then the rest by more workers.
    let all = read("a.measured.json");
    let mut half: serde_json::Value = serde_json::from_str(&all).expect("JSON");
    let trials = half["trials"].as_object_mut().expect("trials");
    let count = trials.len();
    let lost: Vec<String> = trials.keys().step_by(2).cloned().collect();
    lost.iter().for_each(|name| drop(trials.remove(name)));
    assert!(count > 10 && trials.len() < count);
    std::fs::write(scratch.join("b.measured.json"), half.to_string()).expect("a file");
    let resumed = search(&scratch, "b.toml", &["--memory", "20KiB", "--threads", "3"]);
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    assert_eq!(read("b.measured.json"), all);
    assert_eq!(read("b.toml"), read("a.toml"));
    let again = String::from_utf8_lossy(&resumed.stderr).matches(" of ").count();
    assert!(again <= lost.len(), "{again} trials, {} were lost", lost.len());
    // The measurements are of these samples and steps alone.
    let other = search(&scratch, "b.toml", &["--memory", "20KiB", "--seed", "9"]);
    assert_eq!(other.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&other.stderr).contains("of another search"));
}

#[test]
fn the_scheme_fits_and_is_what_compile_reads() {
    let scratch = Scratch::new("search-fits");
    let found = search(&scratch, "s.toml", &["--memory", "18KiB", "--ratios", "1,0.5"]);
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let stdout = String::from_utf8_lossy(&found.stdout).into_owned();
    let said: serde_json::Value = serde_json::from_str(stdout.lines().last().unwrap_or_default()).expect("JSON");
    assert!(said["sram_bytes"].as_u64().is_some_and(|bytes| bytes <= 18 << 10), "{said}");
    assert_eq!(said["contribution"], said["contribution_max"]);
    let mut compile = Command::new(env!("CARGO_BIN_EXE_tinyforge"));
    compile.arg("compile").arg(striped()).arg("--scheme").arg(scratch.join("s.toml"));
    let compiled = compile.args(["--memory", "18KiB", "--stack", "1KiB", "--json"]).output().expect("it runs");
    let stdout = String::from_utf8_lossy(&compiled.stdout).into_owned();
    let plan: serde_json::Value = serde_json::from_str(stdout.lines().last().unwrap_or_default()).expect("JSON");
    assert_eq!(plan["sram_bytes"], said["sram_bytes"]);
}

#[test]
fn what_cannot_be_searched_is_refused() {
    let scratch = Scratch::new("search-refused");
    let small = search(&scratch, "s.toml", &["--memory", "4KiB"]);
    let said = String::from_utf8_lossy(&small.stderr);
    assert!(small.status.code() == Some(2) && said.contains("plan needs") && said.contains("help:"), "{said}");
    let ratio = search(&scratch, "s.toml", &["--ratios", "1.5"]);
    assert!(ratio.status.code() == Some(2) && String::from_utf8_lossy(&ratio.stderr).contains("--ratios 1.5"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_tinyforge"));
    command.arg("search").arg(scratch.path()).arg("--data").arg(scratch.path()).args(["--out", "s.toml"]);
    let folder = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&folder.stderr);
    assert!(folder.status.code() == Some(2) && said.contains("int8 networks"), "{said}");
}

#[test]
fn trials_from_features_are_trials_from_the_samples() {
    let scratch = Scratch::new("search-features");
    let [data, labels] = samples(&scratch, 40);
    let location = Location { data, labels: Some(labels) };
    let all = tinyforge::samples::read(&location, [16, 16, 3]).expect("samples");
    let (train, held) = all.split(5);
    let opened = tinyforge_build::model::open(&striped(), None).expect("the example's network");
    let settings = settings(1 << 20);
    let network = Network { name: "striped".to_string(), model: &opened.model, settings: &settings };
    let loaded = |part: Part| {
        let plan = network.plan(&[part]).expect("a plan");
        let mut runner = Runner::new(plan, RunOptions::default()).expect("it runs");
        runner.load(&opened.files, 5).expect("it loads");
        runner
    };
    let schedule = LrSchedule { peak: 0.01, floor: 0.0, warmup_steps: 2, steps: 20, decay: Decay::Cosine };
    let options = SimulateOptions { batch: 1, schedule, bias_lr_ratio: 0.5, seed: 5, is_shuffled: true };
    let lowest = Part::Weight(1, 1.0);
    let trials = Trials::new(loaded(lowest), options, 20, [train.clone(), held.clone()]).expect("trials");
    let untrained = trials.untrained().expect("a loss");
    for part in [lowest, Part::Bias(3), Part::Weight(2, 1.0), Part::Weight(4, 0.5)] {
        let found = trials.measure(loaded(part)).expect("a trial");
        let mut simulation = Simulation::new(loaded(part), options, train.len()).expect("a simulation");
        for _ in 0..20 {
            simulation.step(&train).expect("a step");
        }
        let plan = simulation.runner().plan().clone();
        let mut evaluator = Evaluator::new(&plan, held.len(), 3).expect("an evaluator");
        let (accuracy, loss) = evaluator.measure(simulation.runner(), &held).expect("a loss");
        assert_eq!((found.accuracy, found.loss), (accuracy, loss), "{part:?}");
        assert_ne!(found.loss, untrained.loss);
    }
}

/// Every selection of some groups.
fn all(offered: &[Vec<Candidate>]) -> Vec<Vec<usize>> {
    offered.iter().fold(vec![Vec::new()], |all: Vec<Vec<usize>>, group| {
        let longer = |s: &Vec<usize>| (0..=group.len()).map(|l| [&s[..], &[l]].concat()).collect::<Vec<_>>();
        all.iter().flat_map(longer).collect()
    })
}

#[test]
fn the_selection_is_the_best_of_all_that_are_planned_for_real() {
    let opened = tinyforge_build::model::open(&striped(), None).expect("the example's network");
    let settings = settings(1 << 20);
    let network = Network { name: "striped".to_string(), model: &opened.model, settings: &settings };
    let wanted = Wanted { ratios: vec![0.5, 1.0], depths: 2, weights: Some(4) };
    let (head, offered) = candidates::offered(&network, &wanted).expect("everything fits");
    let selections = all(&offered);
    let bytes: Vec<u64> = selections
        .iter()
        .map(|s| network.plan(&candidates::parts(&offered, s)).expect("a plan").total_bytes())
        .collect();
    let (least, most) = (head.total_bytes(), bytes.iter().copied().max().unwrap_or(0));
    assert!(selections.len() > 200 && most > least + 3000, "{} selections, {least} to {most}", selections.len());
    let mut asked = 0;
    for case in 0..24 {
        let stream = Stream { seed: case, step: 1, tensor: 0 };
        let gain = |part: Part| {
            let at = match part {
                Part::Bias(depth) => u64::from(depth),
                Part::Weight(layer, ratio) => 100 + 10 * u64::from(layer) + (8.0 * ratio) as u64,
            };
            f64::from(stream.uniform(at)) - 0.1
        };
        let groups = candidates::groups(&offered, gain);
        let value =
            |s: &[usize]| -> i64 { s.iter().zip(&groups).filter(|(l, _)| **l > 0).map(|(l, g)| g[l - 1].gain).sum() };
        let limit = least + (most - least) * (case + 1) / 26;
        let fitting = selections.iter().zip(&bytes).filter(|(_, bytes)| **bytes <= limit);
        let best = fitting.map(|(s, _)| value(s)).max().expect("the head fits");
        let ask = |s: &[usize]| {
            let at = selections.iter().position(|other| other == s).expect("all of them are there");
            Ok::<_, std::convert::Infallible>(Some(bytes[at]))
        };
        let found = select(&groups, limit, 0, ask).expect("the head fits");
        assert_eq!((found.gain, found.gain_max), (best, best), "budget {limit}: {found:?}");
        assert!(found.memory_bytes <= limit);
        asked += found.asked;
    }
    assert!(asked < 24 * selections.len() / 3, "{asked} questions");
}

/// Bytes of a plan beside what it trains.
fn rest(network: &Network, parts: &[Part]) -> u64 {
    let plan = network.plan(parts).expect("a plan");
    let own: u64 = plan.stored.iter().filter(|s| s.changes).map(|s| s.tensor.bytes().next_multiple_of(8)).sum();
    plan.near_bytes() - own
}

#[test]
fn plans_of_less_take_no_more_beside_what_they_train() {
    let opened = tinyforge_build::model::open(&striped(), None).expect("the example's network");
    let settings = settings(1 << 20);
    let network = Network { name: "striped".to_string(), model: &opened.model, settings: &settings };
    let chain = [Part::Weight(4, 1.0), Part::Weight(3, 0.5), Part::Bias(4), Part::Weight(1, 1.0), Part::Weight(0, 1.0)];
    let rests: Vec<u64> = (0..=chain.len()).map(|n| rest(&network, &chain[..n])).collect();
    assert!(rests.is_sorted(), "{rests:?}");
}

#[test]
fn plans_of_a_published_network_break_that_by_less_than_the_slack() {
    let assets = std::env::var_os("TINYFORGE_ASSETS").map(PathBuf::from);
    let assets = assets.unwrap_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/assets"));
    let file = assets.join("mcu/mcunet-5fps.json");
    if !file.exists() {
        println!("skipped: there is no {}; TINYFORGE_ASSETS names the folder of assets", file.display());
        return;
    }
    let opened = tinyforge_build::model::open(&file, Some(5)).expect("the network");
    let settings = settings(1 << 22);
    let network = Network { name: "mcunet-5fps".to_string(), model: &opened.model, settings: &settings };
    for case in 0..5 {
        let stream = Stream { seed: case, step: 2, tensor: 0 };
        let mut chain = vec![Part::Bias((stream.uniform(100) * 30.0) as u32 + 1)];
        while chain.len() < 9 {
            let layer = 12 + (stream.uniform(chain.len() as u64 + 200 * case) * 30.0) as u32;
            let layer = (layer..42).find(|l| !chain.contains(&Part::Weight(*l, 1.0)));
            chain.push(Part::Weight(layer.unwrap_or(11), 1.0));
        }
        let rests: Vec<u64> = (0..=chain.len()).map(|n| rest(&network, &chain[..n])).collect();
        let fallen = rests.windows(2).map(|pair| pair[0].saturating_sub(pair[1])).sum::<u64>();
        assert!(fallen <= candidates::SLACK_BYTES, "{chain:?}: {rests:?}");
    }
}
