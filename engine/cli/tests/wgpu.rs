//! Training on a graphics card by wgpu (in software, where there is none): the CPU's losses, the plan's memory, and
//! the same bytes whatever the budget.
#![cfg(feature = "wgpu")]

mod made;

use made::devices::{self, apart, made_model, train};
use made::trace::{Trace, difference};
use made::{MadeRows, SMALL, Scratch, TIED, arg, knobs, program, run, runner, trainer, write_text};
use std::time::Instant;
use tinyforge::data::RowReader;
use tinyforge::gpu::launches;
use tinyforge::runner::{DeviceChoice, RunOptions, Runner};
use tinyforge::train::Trainer;
use tinyforge_cli::fixed::{GpuSizes, gpu_parts};
use tinyforge_cli::model::Model;

fn has_wgpu() -> bool {
    let look = || tinyforge::gpu::wgpu::default_adapter().map(drop).map_err(|e| e.to_string());
    devices::is_there("TINYFORGE_WGPU", "mesa-vulkan-drivers, libvulkan1", look)
}

const WGPU: &str = "device=\"wgpu\"";

#[test]
fn losses_are_the_cpus() {
    if has_wgpu() {
        devices::losses_are_the_cpus(WGPU, &train);
    }
}

/// Training without some traits of the adapter.
fn train_without(without: &'static [&'static str], model: &Model, pairs: &[&str], steps: usize) -> Trace {
    let knobs = knobs(pairs);
    let (plans, options) = made::planned(model, &knobs);
    let run = RunOptions { device: DeviceChoice::Wgpu, without, ..RunOptions::default() };
    let mut runner = Runner::with_phases(plans, run).expect("runs");
    runner.load(&model.files, options.seed).expect("loads");
    let rows = devices::rows_of(model, &knobs);
    Trace::of(&mut Trainer::new(runner, options, rows.rows()), &rows, steps).expect("trains")
}

/// Where the device's memory is the host's, bytes are written in place, and copied on all others.
fn train_by_copies(model: &Model, pairs: &[&str], steps: usize) -> Trace {
    train_without(&["mappable buffers"], model, pairs, steps)
}

#[test]
fn budgets_do_not_change_the_result() {
    if has_wgpu() {
        devices::budgets_do_not_change_the_result(WGPU, &train, &train_by_copies);
    }
}

#[test]
fn windows_do_not_change_the_result() {
    if has_wgpu() {
        devices::windows_do_not_change_the_result(WGPU, &train_by_copies, &train);
    }
}

/// What the host updates beside the adapter's backward, which may round its divisions and roots otherwise.
#[test]
fn the_hosts_updates_are_near_the_adapters() {
    if !has_wgpu() {
        return;
    }
    let (_scratch, model) = made_model("wgpu-updates", TIED);
    let knobs = knobs(&["scheme=\"full\"", "window=\"1\"", "micro_batch=2", WGPU]);
    let rows = devices::rows_of(&model, &knobs);
    let losses = |host_optimizer| {
        let (plans, options) = made::planned_in_host(&model, &knobs, (u64::MAX, host_optimizer));
        let host_steps: usize = plans.iter().flat_map(|p| p.entries.iter().map(|e| p.host_steps(e).len())).sum();
        assert_eq!(host_steps > 0, host_optimizer);
        let run = RunOptions { device: DeviceChoice::Wgpu, ..RunOptions::default() };
        let mut runner = Runner::with_phases(plans, run).expect("runs");
        runner.load(&model.files, options.seed).expect("loads");
        Trace::of(&mut Trainer::new(runner, options, rows.rows()), &rows, 6).expect("trains").losses
    };
    let [by_adapter, by_host] = [false, true].map(losses);
    assert!(apart(&by_adapter, &by_host) < 1e-5, "{by_adapter:?} and {by_host:?}");
    assert!(by_host[5] < by_host[0], "{by_host:?}");
}

#[test]
fn copies_give_the_bytes_that_are_written_in_place() {
    if !has_wgpu() {
        return;
    }
    let (_scratch, model) = made_model("wgpu-copies", SMALL);
    for way in [&["scheme=\"full\"", WGPU][..], &["scheme=\"full\"", "window=\"1\"", "micro_batch=2", WGPU]] {
        let [in_place, copied] = [train(&model, way, 3), train_by_copies(&model, way, 3)];
        assert_eq!(difference(&in_place, &copied), None, "{way:?}");
    }
}

/// The shape of SmolLM2, a tenth of it: nine query heads, three key heads, embeddings tied; and stories260K itself
/// where the folder of assets is named.
#[test]
fn real_shapes_learn_as_on_the_cpu() {
    if !has_wgpu() {
        return;
    }
    let scratch = Scratch::new("wgpu-smol");
    TIED.write(scratch.path());
    let config = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1024,
        "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 9,
        "num_key_value_heads": 3, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
        "hidden_act": "silu", "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0}"#;
    std::fs::write(scratch.join("config.json"), config).expect("written");
    let mut models = vec![Model::new(scratch.path()).expect("a configuration")];
    match std::env::var_os("TINYFORGE_ASSETS").map(|a| std::path::PathBuf::from(a).join("stories260K")) {
        Some(stories) if stories.exists() => models.push(Model::open(&stories).expect("opens")),
        _ => println!("stories260K skipped: not in the folder that TINYFORGE_ASSETS names"),
    }
    for model in &models {
        for scheme in ["scheme=\"lora\"", "scheme=\"last:1\"", "scheme=\"full\""] {
            let base = [scheme, "batch=2", "seq=40"];
            let [cpu, gpu] = [train(model, &base, 20), train(model, &[&base[..], &[WGPU]].concat(), 20)];
            let far = apart(&cpu.losses, &gpu.losses);
            println!(
                "{} {scheme}: losses {:.4} to {:.4}, at most {far:.1e} apart",
                model.path.display(),
                cpu.losses[0],
                cpu.losses[19]
            );
            assert!(far < 1e-3, "{scheme}: {:?} and {:?}", cpu.losses, gpu.losses);
        }
    }
}

#[test]
fn the_highest_byte_touched_is_the_planned_peak() {
    if !has_wgpu() {
        return;
    }
    let (_scratch, model) = made_model("wgpu-p1", SMALL);
    for pairs in [&["scheme=\"full\"", WGPU][..], &["scheme=\"lora\"", "dtype=\"bf16\"", "micro_batch=1", WGPU]] {
        let mut highest = 0;
        for poison in [0xff, 0x55] {
            let knobs = knobs(pairs);
            let (mut runner, options) = runner(&model, &knobs);
            runner.fill(poison).expect("the device is there");
            runner.load(&model.files, options.seed).expect("loads");
            let rows = MadeRows { rows: 7, seq: 24, vocab: model.config.vocab as u32 };
            let mut trainer = Trainer::new(runner, options, rows.rows());
            trainer.step(&rows).expect("trains");
            trainer.evaluate(&rows, 4).expect("evaluates");
            let bytes = trainer.runner_mut().memory().expect("the device is there");
            highest = highest.max(bytes.iter().rposition(|b| *b != poison).map_or(0, |at| at as u64 + 1));
        }
        let plan = &made::planned(&model, &knobs(pairs)).0[0];
        let peak = plan.entries.iter().map(|e| e.peak.bytes).max().unwrap_or(0);
        // A tensor that ends within a word is copied with the rest of it.
        assert!(highest.abs_diff(peak) < 4, "{pairs:?}: byte {highest} was touched, {peak} planned");
        let settings = knobs(pairs).settings().expect("settings");
        let (seq, batch) = (settings.seq, settings.batch);
        let sizes = GpuSizes { seq, batch, layers: model.config.layers as u32, vocab: model.config.vocab as u32 };
        let planned: u64 = gpu_parts(&sizes).iter().find(|f| f.name == "launches").expect("a part").bytes;
        let count: usize = launches(plan).expect("rows").iter().flatten().map(|w| w.launches.len()).sum();
        assert!(256 * count as u64 <= planned, "{count} launches, room for {planned} bytes of them");
        let longest = plan.entries.iter().map(|e| e.steps.len()).max().unwrap_or(0);
        assert!(256 * longest as u64 <= planned, "{longest} steps, room for the times of {}", planned / 256);
    }
}

/// By the device's clock and, where it has none, by waiting for every step: all that ran is counted, in less time than
/// went by, and nothing else changes.
#[test]
fn every_step_is_timed() {
    if !has_wgpu() {
        return;
    }
    let (_scratch, model) = made_model("wgpu-times", SMALL);
    const STEPS: u64 = 3;
    for pairs in [&["scheme=\"full\"", "micro_batch=1", WGPU][..], &["scheme=\"full\"", "window=\"1\"", WGPU]] {
        let timed = |count_times, without| {
            let (plans, options) = made::planned(&model, &knobs(pairs));
            let run = RunOptions { count_times, device: DeviceChoice::Wgpu, without, ..RunOptions::default() };
            let mut runner = Runner::with_phases(plans, run).expect("runs");
            runner.load(&model.files, options.seed).expect("loads");
            let rows = MadeRows { rows: 7, seq: 24, vocab: model.config.vocab as u32 };
            let runs = [STEPS * (options.batch / options.micro_rows) as u64, STEPS];
            let mut trainer = Trainer::new(runner, options, rows.rows());
            let started = Instant::now();
            let losses: Vec<u64> = (0..STEPS).map(|_| trainer.step(&rows).expect("trains").loss.to_bits()).collect();
            let wall_ns = started.elapsed().as_nanos() as u64;
            let times: Vec<(u64, u64)> = trainer.runner().times().map(|(_, ns, runs)| (ns, runs)).collect();
            let steps = trainer.runner().plan().entries.iter().map(|e| e.steps.len()).sum::<usize>();
            assert_eq!(times.len(), if count_times { steps } else { 0 }, "{pairs:?}");
            let mut rest = &times[..];
            for entry in trainer.runner().plan().entries.iter().filter(|_| count_times) {
                let (of_entry, others) = rest.split_at(entry.steps.len());
                rest = others;
                let wanted = match entry.name.as_str() {
                    "train" => runs[0],
                    "update" => runs[1],
                    _ => 0,
                };
                assert!(of_entry.iter().all(|(_, runs)| *runs == wanted), "{pairs:?} {}: {of_entry:?}", entry.name);
                let is_timed = of_entry.iter().any(|(ns, _)| *ns > 0);
                assert_eq!(is_timed, wanted > 0, "{pairs:?} {}: {of_entry:?}", entry.name);
            }
            let sum_ns: u64 = times.iter().map(|(ns, _)| ns).sum();
            println!(
                "{pairs:?} without {without:?}: steps {:.1} of {:.1} ms",
                sum_ns as f64 / 1e6,
                wall_ns as f64 / 1e6
            );
            assert!(sum_ns <= wall_ns, "{pairs:?}: steps took {sum_ns} of {wall_ns} ns");
            losses
        };
        let plain = timed(false, &[]);
        assert_eq!(plain, timed(true, &[]), "{pairs:?}");
        assert_eq!(plain, timed(true, &["timestamps"]), "{pairs:?}");
    }
}

#[test]
fn what_is_wrong_with_the_data_is_said_as_on_the_cpu() {
    if !has_wgpu() {
        return;
    }
    let (_scratch, model) = made_model("wgpu-wrong", TIED);
    let fails = |pairs: &[&str], vocab: u32| {
        let knobs = knobs(pairs);
        let rows = MadeRows { rows: 7, seq: knobs.seq.expect("given") as usize, vocab };
        let mut trainer = trainer(&model, &knobs, rows.rows());
        (0..4).find_map(|_| trainer.step(&rows).err()).map(|e| e.to_string())
    };
    let vocab = model.config.vocab as u32;
    for (pairs, vocab) in [(&["scheme=\"full\""][..], 2 * vocab), (&["scheme=\"lora\"", "lr=1e30"], vocab)] {
        let (cpu, gpu) = (fails(pairs, vocab), fails(&[pairs, &[WGPU]].concat(), vocab));
        if pairs.len() == 1 {
            assert!(cpu.is_some(), "{pairs:?} must fail");
            assert_eq!(cpu, gpu, "{pairs:?}");
        }
    }
}

#[test]
fn a_gradient_that_is_not_finite_stops_before_the_update() {
    if !has_wgpu() {
        return;
    }
    let (_scratch, model) = made_model("wgpu-finite", TIED);
    let knobs = knobs(&["scheme=\"full\"", "optimizer=\"sgd\"", "beta1=0", WGPU]);
    let rows = MadeRows { rows: 7, seq: 24, vocab: model.config.vocab as u32 };
    let mut trainer = trainer(&model, &knobs, rows.rows());
    let runner = trainer.runner_mut();
    let changed: Vec<_> = runner.plan().stored.iter().filter(|s| s.changes).cloned().collect();
    let norm =
        changed.iter().find(|s| s.name.ends_with("model.norm.weight") || s.name.contains("norm")).expect("a norm");
    runner
        .change(&norm.tensor, |bytes| bytemuck::cast_slice_mut::<u8, f32>(bytes).fill(f32::INFINITY))
        .expect("is set");
    let bytes = |runner: &mut Runner| -> Vec<Vec<u8>> {
        changed.iter().map(|s| runner.fetch(&s.tensor).expect("is there").to_vec()).collect()
    };
    let before = bytes(trainer.runner_mut());
    let error = trainer.step(&rows).expect_err("nothing is finite").to_string();
    assert!(error.contains("not finite") || error.contains("the loss"), "{error}");
    assert!(before == bytes(trainer.runner_mut()), "weights changed after `{error}`");
}

/// Killed at some step and resumed, a run ends with the bytes of one that was not.
#[test]
fn a_killed_run_resumes() {
    if !has_wgpu() {
        return;
    }
    let scratch = Scratch::new("wgpu-kill");
    TIED.write(&scratch.join("model"));
    write_text(&scratch.join("text.txt"), 6000);
    let [model, text, whole, cut] = ["model", "text.txt", "whole", "cut"].map(|name| scratch.join(name));
    let flags = ["--device", "wgpu", "--scheme", "lora", "--seq", "32", "--steps", "12", "--checkpoint-every", "2"];
    let flagged = |out| ["train", arg(&model), "--data", arg(&text), "--out", arg(out)].into_iter().chain(flags);
    run(flagged(&whole)).ok();
    let mut child = program(flagged(&cut)).spawn().expect("the program starts");
    while !cut.join("checkpoint.bin").exists() && child.try_wait().expect("waits").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    run(["resume", arg(&cut)]).ok();
    for name in ["checkpoint.bin", "adapter/adapter_model.safetensors"] {
        let [a, b] = [&whole, &cut].map(|out| std::fs::read(out.join(name)).expect("written"));
        assert!(a == b, "{name} differs");
    }
}

#[test]
fn commands_run_on_the_device() {
    if !has_wgpu() {
        return;
    }
    let scratch = Scratch::new("wgpu-commands");
    TIED.write(&scratch.join("model"));
    write_text(&scratch.join("text.txt"), 3000);
    let [model, text] = ["model", "text.txt"].map(|name| scratch.join(name));
    let eval = ["eval", arg(&model), "--data", arg(&text), "--seq", "32", "--eval-rows", "4", "--json"];
    let losses = [&[][..], &["--device", "wgpu"]]
        .map(|device| run(eval.iter().chain(device)).ok().json()["loss"].as_f64().expect("a loss"));
    assert!(apart(&losses[..1], &losses[1..]) < 1e-4, "{losses:?}");
    let generate = ["generate", arg(&model), "--prompt", "The", "--max-tokens", "12", "--temperature", "0", "--json"];
    let texts =
        [&[][..], &["--device", "wgpu"]].map(|device| run(generate.iter().chain(device)).ok().json()["text"].clone());
    assert_eq!(texts[0], texts[1]);
    let plan = run(["plan", arg(&model), "--device", "wgpu"]).ok().stdout;
    assert!(plan.contains("vram total") && plan.contains("staging"), "{plan}");
    // An embedding of 256 MiB: more than drivers in software let a kernel address.
    let config = std::fs::read_to_string(scratch.join("model/config.json")).expect("written");
    std::fs::create_dir_all(scratch.join("wide")).expect("a folder");
    let wide = config.replace("\"vocab_size\": 1024", "\"vocab_size\": 2097152");
    std::fs::write(scratch.join("wide/config.json"), wide).expect("written");
    let adapter = tinyforge::gpu::wgpu::default_adapter().expect("looked for before");
    if adapter.operand_bytes_max < 256 << 20 {
        let refused = run(["plan", arg(&scratch.join("wide")), "--device", "wgpu"]);
        let why = format!("268435456 bytes; this device's kernels address at most {}", adapter.operand_bytes_max);
        assert!(refused.code == Some(2) && refused.stderr.contains(&why), "{refused:?}");
    }
    let devices = run(["devices", "--json"]).ok();
    assert!(devices.stdout.contains("wgpu: ") && devices.json()["devices"].as_array().expect("a list").len() > 1);
}

/// A driver in software is never taken, and what was taken is what a run goes on with.
#[test]
fn what_auto_takes_is_told_and_kept() {
    let scratch = Scratch::new("wgpu-auto");
    TIED.write(&scratch.join("model"));
    write_text(&scratch.join("text.txt"), 3000);
    let [model, text, out] = ["model", "text.txt", "out"].map(|name| scratch.join(name));
    let chosen = tinyforge::gpu::choose();
    let said = format!("device: {}, {}", chosen.device.name(), chosen.why);
    let best = tinyforge::gpu::wgpu::adapters().first();
    if tinyforge::gpu::cuda::cards().is_empty() && best.is_none_or(|a| a.kind != "discrete") {
        assert_eq!(chosen.device.name(), "cpu");
        assert!(best.is_none_or(|a| chosen.why.contains(&format!("{} is {}", a.name, a.kind))), "{}", chosen.why);
    }
    let train = ["train", arg(&model), "--data", arg(&text), "--out", arg(&out), "--seq", "32", "--steps", "3"];
    let by_auto = run(train.iter().chain(&["--device", "auto"])).ok();
    assert_eq!(by_auto.stderr.lines().filter(|line| *line == said).count(), 1, "{}", by_auto.stderr);
    let record = std::fs::read_to_string(out.join("run.json")).expect("written");
    let kept = format!("\"device\": \"{}\"", chosen.device.name());
    assert!(record.contains(&kept), "{record}");
    let result = || std::fs::read(out.join("adapter/adapter_model.safetensors")).expect("written");
    let first = result();
    run(["resume", arg(&out)]).ok();
    run(train.iter().chain(&["--device", chosen.device.name(), "--overwrite"])).ok();
    assert!(first == result(), "auto gives other bytes than the device that it takes");
    // Without any driver there is the processor.
    let mut without = program(["plan", arg(&model), "--device", "auto"]);
    let ran = without.env("VK_DRIVER_FILES", "/dev/null").env("CUDA_VISIBLE_DEVICES", "").output();
    let ran = made::Ran::of(ran.expect("the program starts"));
    if cfg!(target_os = "linux") {
        assert!(ran.code == Some(0) && ran.stderr.contains("device: cpu, no graphics card"), "{ran:?}");
    }
}

/// Small shapes of every kind run, each by its own plan; larger ones where the time allows.
#[test]
fn kernels_are_timed_one_at_a_time() {
    if !has_wgpu() {
        return;
    }
    let bench = ["bench", "--kernels", "--device", "wgpu", "--tokens", "16", "--seconds", "0", "--json"];
    let json = run(bench).ok().json();
    let rows = json["rows"].as_array().expect("rows");
    assert_eq!(json["device"], "wgpu");
    for (kernel, weights) in [("linear", "q4_0"), ("linear_grad_x", "f16"), ("linear_grad_w", "bf16")] {
        let of = |r: &&serde_json::Value| r["kernel"] == kernel && r["weights"] == weights;
        let is_there =
            kernel == "linear_grad_w" && rows.iter().any(|r| r["kernel"] == kernel && r["factors"] == weights);
        assert!(is_there || rows.iter().find(of).is_some(), "{kernel} {weights}: {json}");
    }
    for kernel in ["attention", "attention_grad"] {
        let row = rows.iter().find(|r| r["kernel"] == kernel).expect("attention is timed");
        assert!(row["seconds"].as_f64() > Some(0.0) && row["ratio"].as_f64() > Some(0.0), "{row}");
    }
}

/// What the driver made of shaders is kept in a file; one that is damaged or foreign is made anew.
#[test]
fn pipelines_are_kept() {
    if !has_wgpu() {
        return;
    }
    let scratch = Scratch::new("wgpu-kept");
    TIED.write(&scratch.join("model"));
    write_text(&scratch.join("text.txt"), 3000);
    let [model, text, folder] = ["model", "text.txt", "kept"].map(|name| scratch.join(name));
    let eval = || {
        let mut eval =
            program(["eval", arg(&model), "--data", arg(&text), "--seq", "32", "--eval-rows", "2", "--json"]);
        let output = eval.args(["--device", "wgpu"]).env("TINYFORGE_KERNEL_CACHE", &folder).output();
        made::Ran::of(output.expect("the program starts")).ok().json()["loss"].as_f64().expect("a loss")
    };
    let first = eval();
    let adapter = tinyforge::gpu::wgpu::default_adapter().expect("looked for before");
    if !adapter.traits.contains(&"pipeline cache") {
        assert!(!folder.exists(), "nothing can be kept");
        return;
    }
    let files = || -> Vec<_> { std::fs::read_dir(&folder).expect("made").map(|f| f.expect("read").path()).collect() };
    let [path] = &files()[..] else { panic!("one file: {:?}", files()) };
    let whole = std::fs::read(path).expect("written");
    assert_eq!(eval(), first);
    let half = whole[..whole.len() / 2].to_vec();
    let foreign = b"something else altogether".to_vec();
    for damaged in [half, foreign, Vec::new()] {
        std::fs::write(path, &damaged).expect("written");
        assert_eq!(eval(), first);
        let again = std::fs::read(path).expect("written");
        assert!(again != damaged && files().len() == 1, "a damaged file stays");
    }
}

/// Needs no adapter: a device that is not known is told with those that are.
#[test]
fn unknown_devices_are_refused() {
    let refused = run(["plan", "nowhere", "--device", "abacus"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("--device abacus: auto, cpu or wgpu"), "{}", refused.stderr);
    // No driver at all.
    let absent = program(["plan", "nowhere", "--device", "wgpu"]).env("VK_DRIVER_FILES", "/dev/null").output();
    let absent = made::Ran::of(absent.expect("the program starts"));
    assert_eq!(absent.code, Some(2), "{absent:?}");
    if cfg!(target_os = "linux") {
        assert!(absent.stderr.contains("there is no wgpu device"), "{}", absent.stderr);
    }
}
