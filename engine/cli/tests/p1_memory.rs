//! P1, if it plans, it fits: a run touches exactly what was planned, a budget that cannot be met is refused before
//! anything is written, and the process stays below the plan's total.

mod made;

use made::{Llama, MadeRows, SMALL, Scratch, TIED, VOCAB, arg, knobs, run, runner, write_text};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tinyforge::data::{Row, RowReader};
use tinyforge::runner::Runner;
use tinyforge_build::sizes::show;
use tinyforge_cli::model::Model;
use tinyforge_cli::planning::Wanted;
use tinyforge_cli::request;
const ALIGN_BYTES: u64 = 64;

/// Fills every input of an entry with something that suits it.
fn fill(runner: &mut Runner, entry: usize, seq: usize) {
    let rows = MadeRows { rows: 8, seq, vocab: made::VOCAB };
    let inputs = runner.plan().entries[entry].inputs.clone();
    let is_cached = inputs.iter().any(|input| input.name == "last");
    for input in inputs {
        let (name, (_, base)) = (&input.name, input.micro_batch());
        match base {
            "hyper" => runner.input::<f32>(entry, "hyper").copy_from_slice(&[1e-3, 0.1, 0.001, 0.0]),
            "rng" => runner.input::<u32>(entry, "rng").copy_from_slice(&[1, 2, 3, 0]),
            "last" => runner.input::<i32>(entry, "last").fill(0),
            "tokens" if is_cached => runner.input::<i32>(entry, "tokens").fill(5),
            "positions" if is_cached => {
                let positions = runner.input::<i32>(entry, "positions");
                positions.iter_mut().enumerate().for_each(|(i, p)| *p = i as i32);
            }
            _ => {
                let input = runner.input::<u32>(entry, name);
                for (r, part) in input.chunks_exact_mut(seq).enumerate() {
                    let mut row = Row::padding(seq, 0);
                    rows.read(r as u64, &mut row.buf()).expect("made up");
                    part.copy_from_slice(match base {
                        "tokens" => &row.tokens,
                        "labels" => bytemuck::cast_slice(&row.labels),
                        "positions" => bytemuck::cast_slice(&row.positions),
                        "segments" => bytemuck::cast_slice(&row.segments),
                        "loss_weights" => bytemuck::cast_slice(&row.loss_weight),
                        other => panic!("an input `{other}` that this test does not know"),
                    });
                }
            }
        }
    }
}

/// Runs every entry of every phase over a poisoned arena and returns what the stored tensors hold at the end. Bytes
/// that changed are marked in `touched`, entry by entry.
fn run_poisoned(model: &Model, pairs: &[&str], poison: u8, touched: &mut Vec<Vec<bool>>) -> Vec<u8> {
    let knobs = knobs(pairs);
    let (mut runner, options) = runner(model, &knobs);
    runner.arena_mut().bytes_mut().fill(poison);
    runner.load(&model.files, 3).expect("loads");
    let mut at = 0;
    let mut kept = Vec::new();
    for phase in 0..runner.plans().count() {
        runner.activate(phase);
        runner.clear_states().expect("clears");
        let stored = (runner.plan().stored_end() - runner.plan().arena_start()) as usize;
        for entry in 0..runner.plan().entries.len() {
            runner.arena_mut().bytes_mut()[stored..].fill(poison);
            fill(&mut runner, entry, options.seq);
            let before = runner.arena().bytes().to_vec();
            runner.run(entry).expect("runs");
            let after = runner.arena().bytes();
            touched.resize(touched.len().max(at + 1), vec![false; after.len()]);
            // Inputs are touched by being filled; they differ from the poison, not from before.
            let changes =
                after.iter().zip(&before).enumerate().map(|(i, (a, b))| a != b || i >= stored && *a != poison);
            touched[at].iter_mut().zip(changes).for_each(|(t, changed)| *t |= changed);
            at += 1;
        }
        for s in runner.plan().stored.clone() {
            kept.extend_from_slice(runner.fetch(&s.tensor).expect("is there"));
        }
    }
    kept
}

fn touches_what_is_planned(model: &Model, pairs: &[&str]) {
    // A byte may happen to be written as the poison is; never with both.
    let mut touched = Vec::new();
    let kept = run_poisoned(model, pairs, 0xA5, &mut touched);
    assert!(kept == run_poisoned(model, pairs, 0x5B, &mut touched), "{pairs:?}: something reads what nothing wrote");
    let (runner, _) = runner(model, &knobs(pairs));
    let peaks = runner.plans().flat_map(|p| p.entries.iter().map(move |e| (p, e)));
    for (touched, (plan, entry)) in touched.iter().zip(peaks) {
        let highest = touched.iter().rposition(|t| *t).expect("something is touched") as u64 + 1;
        let (start, stored) = (plan.arena_start(), plan.stored_end());
        let (highest, planned) = (start + highest, entry.peak.bytes);
        assert!(
            highest.max(stored).next_multiple_of(ALIGN_BYTES) == planned.next_multiple_of(ALIGN_BYTES),
            "{pairs:?} {}: the highest byte touched is {highest}, the plan's peak {planned}",
            entry.name
        );
    }
}

fn small(name: &str) -> (Scratch, Model) {
    let scratch = Scratch::new(name);
    SMALL.write(&scratch.join("model"));
    let model = Model::open(&scratch.join("model")).expect("opens");
    (scratch, model)
}

#[test]
fn every_scheme_touches_what_is_planned() {
    let (_scratch, model) = small("p1-touch");
    for scheme in ["full", "lora", "last:1", "sparse", "bias", "cycle:1"] {
        let scheme = format!("scheme=\"{scheme}\"");
        touches_what_is_planned(&model, &[&scheme]);
        touches_what_is_planned(&model, &[&scheme, "micro_batch=1", "recompute=\"all\"", "sample=[\"a\"]"]);
    }
}

#[test]
fn every_setting_touches_what_is_planned() {
    let (_scratch, model) = small("p1-settings");
    for pairs in [
        &["optimizer=\"sgd\"", "dtype=\"bf16\""][..],
        &["optimizer=\"adamw8\"", "threads=3"],
        &["clip=1.0", "clip_by=\"keep\"", "scheme=\"full\""],
        &["clip=1.0", "clip_by=\"second\"", "scheme=\"full\"", "dtype=\"bf16\"", "threads=2"],
        &["clip=1.0", "micro_batch=2", "scheme=\"last:2+head+embed\""],
        &["scheme=\"cycle:2\"", "keep_state=true", "micro_batch=2"],
    ] {
        touches_what_is_planned(&model, pairs);
    }
}

#[test]
fn every_window_touches_what_is_planned() {
    let (_scratch, model) = small("p1-windows");
    for scheme in ["full", "lora", "last:1", "sparse", "cycle:1"] {
        let scheme = format!("scheme=\"{scheme}\"");
        touches_what_is_planned(&model, &[&scheme, "window=\"1\""]);
        touches_what_is_planned(&model, &[&scheme, "window=\"1\"", "micro_batch=1", "recompute=\"all\""]);
        touches_what_is_planned(&model, &[&scheme, "window=\"2\"", "prefetch=2", "micro_batch=2"]);
    }
    for scheme in ["full", "lora"] {
        let scheme = format!("scheme=\"{scheme}\"");
        touches_what_is_planned(&model, &[&scheme, "window=\"1\"", "activations=\"far\"", "recompute=\"all\""]);
    }
    // A model whose tables come in parts as well.
    let scratch = Scratch::new("p1-parts");
    Llama { layers: 3, vocab: 2 * VOCAB + 300, ..TIED }.write(scratch.path());
    let model = Model::open(scratch.path()).expect("opens");
    let parts = ["embeddings=\"parts\"", "gradients=\"panels\"", "block_parts=3"];
    for scheme in ["full", "lora", "last:1+head"] {
        let scheme = format!("scheme=\"{scheme}\"");
        for window in ["window=\"1\"", "window=\"4\""] {
            touches_what_is_planned(&model, &[&[scheme.as_str(), window, "recompute=\"all\""][..], &parts].concat());
        }
    }
}

/// A model, a text and an output folder for runs of the program.
struct Desk {
    scratch: Scratch,
}

impl Desk {
    fn new(name: &str, llama: Llama) -> Desk {
        let scratch = Scratch::new(name);
        llama.write(&scratch.join("model"));
        write_text(&scratch.join("text.txt"), 8000);
        Desk { scratch }
    }

    fn train(&self, flags: &[&str]) -> made::Ran {
        let paths = ["model", "text.txt", "out"].map(|name| self.scratch.join(name));
        let [model, text, out] = paths.each_ref().map(|p| arg(p));
        run(["train", model, "--data", text, "--out", out, "--json"].iter().chain(flags))
    }

    fn plan(&self, flags: &[&str]) -> made::Ran {
        let model = self.scratch.join("model");
        run(["plan", arg(&model), "--json"].iter().chain(flags))
    }

    fn total_bytes(&self, flags: &[&str]) -> u64 {
        let planned = self.plan(flags);
        assert_eq!(planned.code, Some(0), "{flags:?}: {planned:?}");
        planned.json()["total_bytes"].as_u64().expect("a size")
    }
}

/// How long this thread has run: other processes take no part in it, where the system tells.
fn busy() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = stat.and_then(|s| s.split(' ').next()?.parse().ok());
    nanoseconds.map_or_else(|| START.elapsed(), Duration::from_nanos)
}

/// What the hints of a refusal propose, as flags.
fn proposals(stderr: &str) -> Vec<Vec<String>> {
    let hints = stderr.lines().filter_map(|l| l.trim().strip_prefix("help: "));
    hints.map(|h| h.split('`').nth(1).expect("flags").split(' ').map(str::to_string).collect()).collect()
}

/// Asks for what cannot be: the refusal says why, and all that it proposes can be planned. Returns how many proposals
/// there were.
fn refuses(desk: &Desk, flags: &[&str], budget: u64) -> usize {
    let memory = budget.to_string();
    let flags = [flags, &["--memory", &memory]].concat();
    let refused = desk.train(&flags);
    assert_eq!(refused.code, Some(2), "{flags:?}: {refused:?}");
    assert!(!desk.scratch.join("out").exists(), "something was written before the refusal");
    let error = &refused.stderr;
    assert!(error.starts_with("error: plan needs ") && error.contains(" over)"), "{error}");
    assert!(error.contains("peak at ") && error.contains("outside the arena"), "{error}");
    assert!(error.contains(&format!("the budget is {} (", show(budget))), "the budget that was asked for: {error}");
    let proposals = proposals(error);
    assert!(proposals.iter().any(|p| p[0] == "--memory"), "{flags:?}: a refusal says what would fit");
    for proposal in &proposals {
        let changed: Vec<&str> = proposal.iter().map(String::as_str).collect();
        // A flag given later would be a repetition: the proposal takes the place of what it changes.
        let kept = flags.chunks(2).filter(|pair| pair[0] != changed[0]).flatten().copied();
        let total = desk.total_bytes(&kept.chain(changed.iter().copied()).collect::<Vec<_>>());
        let limit = if changed[0] == "--memory" { u64::MAX } else { budget };
        assert!(total <= limit, "{changed:?} takes {total} of {limit}");
    }
    proposals.len()
}

#[test]
fn a_budget_that_is_too_small_is_refused_with_what_would_fit() {
    let desk = Desk::new("p1-refusal", SMALL);
    let settings = ["--seq", "128", "--scheme", "full", "--threads", "2"];
    // One micro-batch or many, layer by layer or with sums of gradients, activations near or far, gradients whole or by
    // panels.
    let windows = [&[][..], &["--window", "99"], &["--window", "99", "--activations", "far"]];
    let ways = ["1", "4"].into_iter().flat_map(|micro| windows.map(|window| (micro, window)));
    let ways = ways.flat_map(|(micro, window)| ["whole", "panels"].map(|gradients| (micro, window, gradients)));
    let bytes = |(micro, window, gradients): (&str, &[&str], &str)| {
        let way = ["--recompute", "all", "--micro-batch", micro, "--gradients", gradients];
        desk.total_bytes(&[&settings[..], &way, window].concat())
    };
    let least_bytes = ways.map(bytes).min().expect("there are ways");
    for budget in [1 << 20, least_bytes - (64 << 10), least_bytes - 1] {
        refuses(&desk, &settings, budget);
    }
    assert_eq!(refuses(&desk, &settings, least_bytes - 1), 3, "shorter rows, another scheme and more memory");
    for flags in [
        &["--scheme", "lora", "--seq", "256", "--batch", "6"][..],
        &["--scheme", "full", "--seq", "64", "--batch", "8", "--clip", "1"],
        &["--scheme", "full", "--seq", "64", "--recompute", "nothing"],
        &["--scheme", "cycle:1", "--seq", "128"],
        &["--scheme", "cycle:2+head", "--seq", "128", "--batch", "3"],
    ] {
        let most = desk.total_bytes(flags);
        refuses(&desk, flags, most / 2);
        let refused = desk.train(&[flags, &["--memory", "1MiB"]].concat());
        let least = proposals(&refused.stderr).pop().expect("the memory that is needed").remove(1);
        let mib: u64 = least.trim_end_matches("MiB").parse().expect("a number of MiB");
        refuses(&desk, flags, (mib - 1) << 20);
    }
    desk.train(&[&settings[..], &["--memory", &least_bytes.to_string(), "--steps", "1"]].concat()).ok();
}

/// A real model's shape, whose plans take longer to make.
#[test]
fn a_real_models_budget_is_refused_in_time() {
    let desk = Desk::new("p1-smol", SMALL);
    let config = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152,
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": true, "eos_token_id": 0}"#;
    std::fs::write(desk.scratch.join("model/config.json"), config).expect("written");
    let flags = ["--from-scratch", "true", "--batch", "4"];
    let model = Model::new(&desk.scratch.join("model")).expect("a configuration");
    for (scheme, memory_mib) in [("lora", 100), ("lora", 140), ("full", 120), ("last:2", 120)] {
        refuses(&desk, &[&flags[..], &["--scheme", scheme]].concat(), memory_mib << 20);
        let pairs = [format!("scheme=\"{scheme}\""), format!("memory=\"{memory_mib}MiB\"")];
        let knobs = knobs(&["batch=4", "seq=256", &pairs[0], &pairs[1]]);
        let settings = knobs.settings().expect("settings");
        let started = busy();
        let refused = request::plan_phases(&model, &settings, Wanted::Train, &[]);
        let taken = busy() - started;
        // The compiler's passes take several times as long where they are not optimised.
        let limit = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 });
        assert!(refused.is_err() && taken < limit, "{scheme}: refused after {taken:?}");
    }
}

#[test]
fn the_process_stays_below_its_total() {
    let desk = Desk::new("p1-rss", SMALL);
    for flags in [
        &["--scheme", "full", "--threads", "1", "--seq", "32", "--steps", "2"][..],
        &["--scheme", "lora", "--threads", "2", "--seq", "256", "--steps", "2"],
        &["--scheme", "cycle:1", "--cycle-steps", "1", "--threads", "4", "--seq", "64", "--steps", "4"],
        &["--scheme", "last:1", "--valid-fraction", "0.3", "--seq", "64", "--steps", "2", "--sample", "Day"],
    ] {
        let ran = desk.train(&[flags, &["--overwrite"]].concat()).ok().json();
        let [rss, total] = ["peak_rss_bytes", "plan_total_bytes"].map(|k| ran[k].as_u64().expect("a size"));
        assert!(rss <= total, "{flags:?}: {rss} bytes were resident, {total} planned");
    }
}

#[test]
fn most_of_the_total_is_used() {
    // 90 MB of weights: what is fixed plays a small part.
    let llama = Llama { vocab: 8192, hidden: 1024, layers: 2, ff: 2048, tied: true };
    let desk = Desk::new("p1-large", llama);
    let flags = ["--scheme", "last:1", "--optimizer", "sgd", "--seq", "32", "--batch", "1", "--steps", "1"];
    let ran = desk.train(&flags).ok().json();
    let [rss, total] = ["peak_rss_bytes", "plan_total_bytes"].map(|k| ran[k].as_u64().expect("a size"));
    assert!(rss <= total, "{rss} bytes were resident, {total} planned");
    assert!(20 * rss >= 17 * total, "{rss} bytes were resident, {total} planned: below 85 %");
}
