//! P6, nothing is lost: a run that is killed at any moment goes on to the same bytes, an interrupt finishes the step,
//! a damaged checkpoint is refused, and a loss that is not finite stops the run.

mod made;

use made::{Llama, Ran, SMALL, Scratch, TIED, VOCAB, arg, program, run, write_text};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tinyforge_kernels::random::Stream;

/// A model, a text and folders for runs.
struct Desk {
    scratch: Scratch,
    flags: Vec<String>,
}

impl Desk {
    fn new(name: &str, flags: &[&str]) -> Desk {
        Desk::of(SMALL, name, flags)
    }

    fn of(llama: Llama, name: &str, flags: &[&str]) -> Desk {
        let scratch = Scratch::new(name);
        llama.write(&scratch.join("model"));
        write_text(&scratch.join("text.txt"), 3000);
        let common = ["--seq", "16", "--batch", "2", "--threads", "1", "--lr", "1e-3", "--seed", "5"];
        let flags = common.iter().chain(flags).map(|f| f.to_string()).collect();
        Desk { scratch, flags }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn train_args(&self, out: &Path) -> Vec<String> {
        let (model, text) = (self.scratch.join("model"), self.scratch.join("text.txt"));
        let paths = ["train", arg(&model), "--data", arg(&text), "--out", arg(out)].map(str::to_string);
        paths.into_iter().chain(self.flags.clone()).collect()
    }

    /// The arguments that go on with whatever is in the folder.
    fn go_on(&self, out: &Path) -> Vec<String> {
        if out.join("run.json").exists() {
            vec!["resume".to_string(), arg(out).to_string()]
        } else {
            self.train_args(out)
        }
    }

    fn undisturbed(&self) -> (PathBuf, Duration) {
        let (out, started) = (self.out("undisturbed"), Instant::now());
        run(self.train_args(&out)).ok();
        (out, started.elapsed())
    }
}

/// The file of what does not stay in memory.
const WORK: &str = "work.bin";

const MODEL: [&str; 3] = ["model/model.safetensors", "model/config.json", "checkpoint.bin"];
const ADAPTER: [&str; 3] = ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "checkpoint.bin"];

/// What two runs must agree in: weights, checkpoint, and the losses of all steps, each there once.
#[track_caller]
fn agree(out: &Path, wanted: &Path) {
    agree_in(&MODEL, out, wanted);
}

/// The same, of these files.
#[track_caller]
fn agree_in(names: &[&str], out: &Path, wanted: &Path) {
    for name in names {
        let [a, b] = [out, wanted].map(|f| std::fs::read(f.join(name)).expect("a finished run has it"));
        assert!(a == b, "{name} differs from the undisturbed run's");
    }
    assert_eq!(steps(out), steps(wanted));
    let is_passing = |f: &PathBuf| f.extension().is_some_and(|e| e == "partial" || e == "part") || f.ends_with(WORK);
    let left: Vec<_> = files(out).into_iter().filter(is_passing).collect();
    assert!(left.is_empty(), "{left:?} are left over");
}

/// Step and loss of every line of the metrics, the loss as it is written.
fn steps(out: &Path) -> Vec<(u64, String)> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).expect("metrics");
    let lines = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).expect("whole lines"));
    lines.filter_map(|l| Some((l["step"].as_u64()?, l.get("loss")?.to_string()))).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Kills a run and goes on with it until it is done, again and again, at least `kills` times. How often a work
/// file was left.
fn survives_kills(desk: &Desk, kills: u32) -> u32 {
    let (wanted, whole) = desk.undisturbed();
    let stream = Stream { seed: 99, step: 0, tensor: 0 };
    let (mut killed, mut round, mut started, mut deepest, mut works) = (0, 0, 0, 0, 0);
    while killed < kills {
        let out = desk.out(&format!("killed{round}"));
        round += 1;
        loop {
            let mut child = program(desk.go_on(&out)).spawn().expect("the program starts");
            // Any moment from the start of the process to a little after its usual end, another one every time: the run
            // that was not disturbed may have been a slow one.
            std::thread::sleep(whole.mul_f32(1.1 * stream.uniform(started)));
            started += 1;
            let ended = child.try_wait().expect("a child");
            if ended.is_none() {
                child.kill().expect("a signal");
                killed += 1;
            }
            works += u32::from(out.join(WORK).exists());
            let ran = Ran::of(child.wait_with_output().expect("a child"));
            let from = ran.stderr.split("going on from step ").nth(1).and_then(|s| s.lines().next()?.parse().ok());
            deepest = from.unwrap_or(0).max(deepest);
            match ended {
                None if killed % 8 != 0 => {}
                // Now and then a run may go to its end.
                None => {
                    run(desk.go_on(&out)).ok();
                    break;
                }
                Some(_) => {
                    ran.ok();
                    break;
                }
            }
        }
        agree(&out, &wanted);
        std::fs::remove_dir_all(&out).expect("removed");
    }
    assert!(deepest > 0, "no kill of {killed} left a checkpoint to go on from");
    works
}

#[test]
fn a_killed_run_ends_with_the_same_bytes() {
    let flags = ["--scheme", "full", "--steps", "24", "--checkpoint-every", "2", "--valid-fraction", "0.2"];
    let more = ["--eval-every", "5", "--optimizer", "adamw8", "--dtype", "bf16"];
    survives_kills(&Desk::new("p6-full", &[&flags[..], &more].concat()), 30);
}

#[test]
fn a_killed_run_of_groups_that_take_turns_ends_with_the_same_bytes() {
    let flags = ["--scheme", "cycle:1", "--cycle-steps", "3", "--steps", "24"];
    // Checkpoints right before and right after a turn, and in between.
    for (name, more) in [
        ("p6-cycle1", &["--checkpoint-every", "1"][..]),
        ("p6-cycle3", &["--checkpoint-every", "3"]),
        ("p6-cycle-keep", &["--checkpoint-every", "2", "--keep-state", "--micro-batch", "1"]),
    ] {
        survives_kills(&Desk::new(name, &[&flags[..], more].concat()), 15);
    }
}

#[test]
fn an_interrupt_finishes_the_step() {
    for signal in ["-INT", "-TERM"] {
        let desk = Desk::new("p6-interrupt", &["--scheme", "last:1", "--steps", "400", "--checkpoint-every", "0"]);
        let (wanted, _) = desk.undisturbed();
        let out = desk.out("interrupted");
        let child = program(desk.train_args(&out)).spawn().expect("the program starts");
        let has_steps = || std::fs::read_to_string(out.join("metrics.jsonl")).is_ok_and(|t| t.lines().count() >= 3);
        let started = Instant::now();
        while !has_steps() {
            assert!(started.elapsed() < Duration::from_secs(60), "no step is done");
            std::thread::sleep(Duration::from_millis(2));
        }
        let id = child.id().to_string();
        assert!(std::process::Command::new("kill").args([signal, &id]).status().expect("a signal").success());
        let ran = Ran::of(child.wait_with_output().expect("a child")).ok();
        assert!(ran.stdout.contains("interrupted"), "{ran:?}");
        let done = steps(&out).len();
        assert!((3..400).contains(&done), "{done} steps were done");
        assert!(!out.join("model").exists(), "an interrupted run has no result");
        let resumed = run(["resume", arg(&out)]).ok();
        assert!(resumed.stderr.contains(&format!("going on from step {done}")), "{resumed:?}");
        agree(&out, &wanted);
        // A run that is done stays done.
        run(["resume", arg(&out)]).ok();
        agree(&out, &wanted);
    }
}

/// With the work file in use: what a kill leaves of it is worth nothing, and in nobody's way.
#[test]
fn a_killed_run_with_a_work_file_ends_with_the_same_bytes() {
    let flags = ["--window", "1", "--steps", "16", "--checkpoint-every", "2"];
    let parts = ["--block-parts", "3", "--embeddings", "parts", "--gradients", "panels", "--scheme", "full"];
    let large = Llama { vocab: 2 * VOCAB + 300, layers: 2, ..TIED };
    for (name, llama, more) in [
        ("p6-window", SMALL, &["--scheme", "full", "--optimizer", "adamw8", "--dtype", "bf16"][..]),
        ("p6-window-cycle", SMALL, &["--scheme", "cycle:1", "--cycle-steps", "3", "--micro-batch", "1"]),
        ("p6-window-parts", large, &parts),
    ] {
        let desk = Desk::of(llama, name, &[&flags[..], more].concat());
        let works = survives_kills(&desk, 10);
        assert!(works > 0, "{name}: no kill came while there was a work file");
        // A streamed run is what one with everything resident is. That one's checkpoint may hold sums of gradients.
        let out = desk.out("resident");
        let mut args = desk.train_args(&out);
        let at = args.iter().position(|a| a == "--window").expect("given");
        args[at + 1] = "all".to_string();
        std::fs::create_dir_all(&out).expect("a folder");
        std::fs::write(out.join(WORK), "left by a kill").expect("written");
        run(args).ok();
        agree_in(&MODEL[..2], &out, &desk.out("undisturbed"));
    }
}

/// Starts a run, does something to it behind a few steps, and waits for its end.
fn meanwhile(desk: &Desk, out: &Path, act: impl FnOnce()) -> Ran {
    let mut child = program(desk.train_args(out)).spawn().expect("the program starts");
    let started = Instant::now();
    while !std::fs::read_to_string(out.join("metrics.jsonl")).is_ok_and(|t| t.lines().count() >= 3) {
        assert!(started.elapsed() < Duration::from_secs(60), "no step is done");
        assert!(child.try_wait().expect("a child").is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(2));
    }
    act();
    Ran::of(child.wait_with_output().expect("a child"))
}

#[test]
fn a_model_that_changes_under_a_streamed_run_stops_it() {
    let flags = ["--window", "1", "--steps", "150", "--checkpoint-every", "1"];
    for (name, scheme) in [("p6-model-lora", "lora"), ("p6-model-last", "last:1"), ("p6-model-cycle", "cycle:1")] {
        let desk = Desk::new(name, &[&flags[..], &["--scheme", scheme]].concat());
        let (wanted, _) = desk.undisturbed();
        let path = desk.scratch.join("model").join("model.safetensors");
        let whole = std::fs::read(&path).expect("a model");
        let cut = |len: usize| {
            let file = std::fs::File::options().write(true).open(&path).expect("opens");
            file.set_len(len as u64).expect("cut");
        };
        let changes: [(&str, &dyn Fn(), &str); 5] = [
            ("cut in the middle", &|| cut(whole.len() / 2), "bytes and has"),
            ("cut to nothing", &|| cut(0), "and has 0"),
            ("made longer", &|| cut(whole.len() + 1), "bytes and has"),
            (
                "written anew",
                &|| std::fs::write(&path, vec![0; whole.len()]).expect("written"),
                "changed under the run",
            ),
            ("removed", &|| std::fs::remove_file(&path).expect("removed"), "changed under the run"),
        ];
        for (what, change, word) in changes {
            let what = format!("{scheme}: {what}");
            let out = desk.out("changed");
            let ran = meanwhile(&desk, &out, change);
            one_error(&ran, &what);
            let told = ran.stderr.contains("model.safetensors") && ran.stderr.contains("changed under the run");
            assert!(ran.code == Some(1) && told && ran.stderr.contains(word), "{what}: {ran:?}");
            assert!(!out.join(WORK).exists() && !out.join("model").exists(), "{what}");
            assert!(!out.join("adapter").exists(), "{what}");
            std::fs::write(&path, &whole).expect("put back");
            run(["resume", arg(&out)]).ok();
            agree_in(if scheme == "lora" { &ADAPTER } else { &MODEL }, &out, &wanted);
            std::fs::remove_dir_all(&out).expect("removed");
        }
    }
}

/// Asserts that a run failed with one clear error.
#[track_caller]
fn one_error(ran: &Ran, what: &str) {
    assert!(matches!(ran.code, Some(1 | 2)), "{what}: {ran:?}");
    assert_eq!(ran.stderr.matches("error:").count(), 1, "{what}: {ran:?}");
    assert!(!ran.stderr.contains("panicked"), "{what}: {ran:?}");
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let desk = Desk::new("p6-damaged", &["--scheme", "bias", "--steps", "3", "--checkpoint-every", "1"]);
    let (out, _) = desk.undisturbed();
    let path = out.join("checkpoint.bin");
    let whole = std::fs::read(&path).expect("a checkpoint");
    let header = u64::from_le_bytes(whole[8..16].try_into().expect("eight bytes")) as usize;
    let mut damaged: Vec<(String, Vec<u8>)> = Vec::new();
    for at in [0, 7, 8, 12, 15, 16, 16 + header / 2, 15 + header, 16 + header, whole.len() - 5, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        damaged.push((format!("byte {at} flipped"), bytes));
    }
    for len in [0, 1, 15, 16, 19, 20, 16 + header, whole.len() / 2, whole.len() - 1] {
        damaged.push((format!("cut to {len}"), whole[..len].to_vec()));
    }
    damaged.push(("a byte too many".to_string(), [&whole[..], &[0]].concat()));
    damaged.push(("zeros".to_string(), vec![0; whole.len()]));
    damaged.push(("a header as long as can be".to_string(), {
        let mut bytes = whole.clone();
        bytes[8..16].fill(0xFF);
        bytes
    }));
    // The checkpoint of a run with another seed, and of one with another scheme.
    for (what, flags) in
        [("seed", ["--scheme", "bias", "--seed", "6"]), ("scheme", ["--scheme", "last:1", "--seed", "5"])]
    {
        let other = desk.out(what);
        let mut args = desk.train_args(&other);
        for pair in flags.chunks(2) {
            let at = args.iter().position(|a| a == pair[0]).expect("given");
            args[at + 1] = pair[1].to_string();
        }
        run(args).ok();
        damaged.push((format!("of another {what}"), std::fs::read(other.join("checkpoint.bin")).expect("one")));
    }
    for (what, bytes) in damaged {
        std::fs::write(&path, &bytes).expect("written");
        let ran = run(["resume", arg(&out)]);
        one_error(&ran, &what);
        assert!(ran.stderr.contains("checkpoint.bin"), "{what}: {ran:?}");
        assert!(std::fs::read(&path).expect("still there") == bytes, "{what}: the file was changed");
        let inspected = run(["inspect", arg(&path)]);
        assert!(!inspected.stderr.contains("panicked"), "{what}: {inspected:?}");
    }
    std::fs::write(&path, whole).expect("written");
    run(["resume", arg(&out)]).ok();
}

#[test]
fn a_run_goes_on_with_the_model_that_it_began_with() {
    let desk = Desk::new("p6-other-model", &["--scheme", "lora", "--steps", "3", "--checkpoint-every", "1"]);
    let (wanted, _) = desk.undisturbed();
    let out = desk.out("other");
    run(desk.train_args(&out)).ok();
    for name in ["model.safetensors", "config.json"] {
        let path = desk.scratch.join("model").join(name);
        let whole = std::fs::read(&path).expect("a file of the model");
        let mut other = whole.clone();
        let last = other.len() - 2;
        match name {
            "config.json" => other.push(b'\n'),
            _ => other[last] ^= 1,
        }
        std::fs::write(&path, other).expect("written");
        let ran = run(["resume", arg(&out)]);
        one_error(&ran, name);
        assert!(ran.code == Some(2) && ran.stderr.contains(name) && ran.stderr.contains("--overwrite"), "{ran:?}");
        std::fs::write(&path, whole).expect("put back");
    }
    run(["resume", arg(&out)]).ok();
    agree_in(&ADAPTER, &out, &wanted);
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run() {
    let flags = ["--scheme", "full", "--optimizer", "sgd", "--beta1", "0", "--steps", "50", "--checkpoint-every", "1"];
    let desk = Desk::new("p6-diverges", &[&flags[..], &["--decay", "constant", "--warmup", "3"]].concat());
    let out = desk.out("diverges");
    let mut args = desk.train_args(&out);
    let at = args.iter().position(|a| a == "--lr").expect("given");
    args[at + 1] = "1000".to_string();
    let ran = run(args);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    one_error(&ran, "a huge learning rate");
    assert!(ran.stderr.contains("not finite") || ran.stderr.contains("loss of step"), "{ran:?}");
    assert!(!out.join("model").exists());
    // The checkpoint is of the last step that was whole, and goes on to the same error.
    let done = steps(&out).len();
    if done > 0 {
        let shown = run(["inspect", arg(&out.join("checkpoint.bin"))]).ok();
        assert!(shown.stdout.contains(&format!("step: {done},")), "{done} steps done: {shown:?}");
        let again = run(["resume", arg(&out)]);
        assert_eq!((again.code, steps(&out).len()), (Some(1), done), "{again:?}");
    }
}
