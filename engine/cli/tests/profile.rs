//! Machines' profiles: measured by `bench`, read by `plan` and `train`.

mod common;
mod made;

use common::{Folder, MODELS, fixtures, row_settings};
use made::{SMALL, Scratch};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tinyforge_cli::bench::{self, Options};
use tinyforge_cli::model::Model;
use tinyforge_cli::planning::{self, Settings, Wanted};
use tinyforge_cli::profile;
use tinyforge_compiler::machine::Machine;
use tinyforge_compiler::scheme::Scheme;
use tinyforge_plan::DType;

const PROFILE: &str = r#"
name = "slow"
figures = "made up"
near = "ram"
[traits]
shares_cores = true
[rates]
f32 = 1e6
near_bytes_per_second = 1e9
optimizer_bytes_per_second = 1e9
[[space]]
name = "ram"
"#;

/// Exit code, stdout, stderr of the command, in a home of its own.
fn tinyforge(home: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tinyforge"));
    let output = command.args(args).env("XDG_CONFIG_HOME", home).output().expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_plan_says_what_a_step_takes() {
    let folder = Folder::new("profile-plan");
    let model = fixtures().join("llama").display().to_string();
    let plan = |more: &[&str]| tinyforge(&folder.0, &[&["plan", &model, "--seq", "16", "--json"], more].concat());
    let (code, out, _) = plan(&[]);
    assert!(code == Some(0) && out.contains("\"bound_s\":null") && !out.contains("speed on"), "{out}");
    std::fs::create_dir_all(folder.0.join("tinyforge")).expect("a folder");
    std::fs::write(folder.0.join("tinyforge/machine.toml"), PROFILE).expect("written");
    let (code, out, _) = plan(&[]);
    assert_eq!(code, Some(0));
    assert!(out.contains("speed on `slow`") && out.contains("machine.toml; made up"), "{out}");
    let json: serde_json::Value = serde_json::from_str(out.lines().last().expect("a line")).expect("JSON");
    let (flops, bound) = (json["entries"][0]["flops"].as_f64(), json["bound_s"].as_f64().expect("a number"));
    let update_s = bound - flops.expect("a number") / 1e6;
    assert!((0.0..0.01).contains(&update_s), "the bound is arithmetic and updates: {update_s} over");
    assert!(json["predicted_s"].as_f64() >= Some(bound));
    assert_eq!(json["bound_by"], "compute");
    let (code, out, _) = plan(&["--dtype", "bf16"]);
    assert!(
        code == Some(0) && out.contains("no predicted time: the profile `slow` does not say FLOP/s in bf16"),
        "{out}"
    );
}

#[test]
fn a_target_gives_memory_and_rates() {
    let folder = Folder::new("profile-target");
    let model = fixtures().join("llama").display().to_string();
    let plan = |more: &[&str]| tinyforge(&folder.0, &[&["plan", &model, "--seq", "16"], more].concat());
    let card = common::workspace().join("examples/targets/24GB-card.toml").display().to_string();
    let (code, out, said) = plan(&["--target", &card]);
    assert_eq!(code, Some(0), "{said}");
    assert!(out.contains("vram total") && out.contains("at the rates as they are given"), "{out}");
    let small = folder.0.join("small.toml");
    std::fs::write(&small, PROFILE.replace("name = \"ram\"", "name = \"ram\"\nbytes = 100_000")).expect("written");
    let (code, _, said) = plan(&["--target", &small.display().to_string()]);
    assert!(code == Some(2) && said.contains("plan needs") && said.contains("the budget is"), "{said}");
    std::fs::write(&small, PROFILE.replace("1e6", "0")).expect("written");
    let (code, _, said) = plan(&["--target", &small.display().to_string()]);
    assert!(code == Some(2) && said.contains("small.toml: rates: f32 is 0, must be above 0"), "{said}");
    let (code, _, said) = plan(&["--target", "abacus"]);
    assert!(code == Some(2) && said.contains("abacus: neither a file nor one of cpu, wgpu"), "{said}");
    let (code, _, said) = plan(&["--profile", "none.toml"]);
    assert!(code == Some(2) && said.contains("none.toml"), "{said}");
}

/// Who updates what rests in the host's memory: who is told to, else who is predicted to be faster.
#[test]
fn the_faster_optimizer_is_taken() {
    let folder = Folder::new("profile-optimizer");
    let path = |name: &str| common::workspace().join(name).display().to_string();
    let (shape, card) = (path("examples/shapes/llama-3.2-1b"), path("examples/targets/24GB-card.toml"));
    let plan = |optimizer: &str, more: &[&str]| {
        let run = ["--scheme", "full", "--dtype", "bf16", "--batch", "1", "--memory", "3GB", "--window", "4"];
        let given = ["plan", &shape, "--target", &card, "--optimizer", optimizer];
        tinyforge(&folder.0, &[&given, &run[..], more].concat())
    };
    let (by_device, by_host) = ("optimizer: the device updates all", "optimizer: the host updates 112 tensors");
    for (optimizer, host_optimizer, expected) in [
        ("adamw", None, by_host),
        ("adamw8", None, by_device),
        ("adamw8", Some("--host-optimizer"), by_host),
        ("adamw", Some("--host-optimizer=false"), "schedule: window 4"),
    ] {
        let more: Vec<&str> = host_optimizer.into_iter().collect();
        let (code, out, said) = plan(optimizer, &more);
        assert_eq!(code, Some(0), "{said}");
        assert!(out.contains(expected), "{optimizer} {host_optimizer:?}: {out}");
        assert_eq!(out.contains("predicted: with updates by the device"), host_optimizer.is_none(), "{out}");
        assert_eq!(out.contains("the host updates"), expected == by_host, "{out}");
    }
    let (code, _, said) = plan("adamw", &["--host-optimizer", "--host-memory", "4GB"]);
    assert!(code == Some(2) && said.contains("the host's updates need") && said.contains("--host-memory "), "{said}");
    let (code, _, said) = tinyforge(&folder.0, &["plan", &shape, "--target", "cpu", "--host-optimizer"]);
    assert!(code == Some(2) && said.contains("--host-optimizer is for a device with memory of its own"), "{said}");
}

#[test]
fn a_run_says_where_its_time_went() {
    let scratch = Scratch::new("profile-train");
    let (model, data) = (scratch.join("model"), scratch.join("data.txt"));
    SMALL.write(&model);
    std::fs::write(&data, "A short text about a ship and its log.\n".repeat(40)).expect("written");
    std::fs::write(scratch.join("slow.toml"), PROFILE).expect("written");
    let [model, data, out, slow] =
        [&model, &data, &scratch.join("out"), &scratch.join("slow.toml")].map(|p| p.display().to_string());
    let args = ["train", &model, "--data", &data, "--out", &out, "--seq", "24", "--steps", "3", "--batch", "1"];
    let more = ["--threads", "1", "--profile", &slow, "--json"];
    let (code, text, said) = tinyforge(scratch.path(), &[&args[..], &more].concat());
    assert_eq!(code, Some(0), "{said}");
    assert!(text.contains("time: ") && text.contains("of the bound"), "{text}");
    let json: serde_json::Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    let number = |name: &str| json["speed"][name].as_f64().expect("a number");
    let sum = number("compute_s") + number("update_s") + number("waiting_s");
    assert!((sum / number("step_s") - 1.0).abs() < 1e-6, "{json}");
    assert!((number("efficiency") - number("bound_s") / number("step_s")).abs() < 1e-9, "{json}");
    assert!(number("predicted_s") >= number("bound_s"));
}

#[test]
fn what_bench_measures_covers_training() {
    let folder = Folder::new("profile-bench");
    let times = [Duration::from_millis(1), Duration::from_millis(30)];
    // As few blocks as there can be: which kernels are measured does not depend on how many.
    let options = Options { threads: 1, folder: folder.0.clone(), file: None, times, weight_bytes: 0 };
    let mut told = Vec::new();
    let measured = bench::measure(&options, &mut |what| told.push(what.to_string())).expect("measured");
    assert_eq!(told, ["products", "memory", "disk", "kernels"]);
    let machine = measured.machine;
    assert_eq!(Machine::parse(&machine.print()).expect("a machine"), machine);
    assert!(measured.one_thread.iter().all(|&f| f > 1e8) && measured.adamw_bytes_per_second > 1e7);
    let scheme = |name: &str| Scheme::parse(name).expect("a scheme");
    for name in MODELS {
        let model = Model::open(&fixtures().join(name)).expect("opens");
        for (scheme, dtype) in
            [("full", DType::F32), ("lora", DType::F32), ("last:1", DType::BF16)].map(|(s, d)| (scheme(s), d))
        {
            let settings = Settings { dtype, ..row_settings(scheme, 16) };
            let planned = planning::plan(&model, &settings, Wanted::Train, &[]).expect("plans");
            let cost = profile::step_cost(&machine, &[planned], 1).expect("costs");
            assert!(cost.measured_share > 0.95, "{name} {}: {} is measured", settings.scheme, cost.measured_share);
            assert!(cost.bound.seconds() <= cost.prediction_s);
        }
    }
}

/// Products of every storage type, attention, and a copy: the arithmetic is the shapes', and no product is faster than
/// the fastest one.
fn check_kernels(json: &serde_json::Value, tokens: f64) {
    let rows = json["rows"].as_array().expect("rows");
    let number = |row: &serde_json::Value, key: &str| row[key].as_f64().expect("a number");
    for row in rows {
        let (seconds, ratio) = (number(row, "seconds"), number(row, "ratio"));
        assert!(seconds > 0.0 && number(row, "runs") >= 1.0, "{row}");
        assert!((ratio - number(row, "bound_s") / seconds).abs() < 1e-9 * ratio, "{row}");
        if row["kernel"].as_str().expect("a name").starts_with("linear") {
            let flops = number(row, "flops_per_second") * seconds;
            let shape = row["shape"].as_str().expect("words").split([' ', ',']).filter_map(|w| w.parse::<f64>().ok());
            let wanted = 2.0 * shape.product::<f64>();
            assert!(
                (flops / wanted - 1.0).abs() < 1e-9 && row["shape"].to_string().contains(&tokens.to_string()),
                "{row}"
            );
            assert!(ratio <= 1.0 || row["limit"] == "bytes", "faster than the fastest: {row}");
        }
    }
    let has = |kernel: &str, weights: &str| rows.iter().any(|r| r["kernel"] == kernel && r["weights"] == weights);
    for weights in ["f32", "f16", "bf16", "q8_0", "q4_0"] {
        assert!(has("linear", weights) && has("linear_grad_x", weights), "{weights}");
    }
    assert!(
        has("linear_grad_w", "f32") && has("attention", "f32") && has("attention_grad", "f32") && has("scale", "f32")
    );
}

#[test]
fn kernels_stand_beside_their_bounds() {
    let folder = Folder::new("profile-kernels");
    let bench = |more: &[&str]| {
        let few = ["bench", "--kernels", "--tokens", "16", "--seconds", "0", "--threads", "1", "--json"];
        let (code, out, said) = tinyforge(&folder.0, &[&few, more].concat());
        assert_eq!(code, Some(0), "{said}");
        serde_json::from_str::<serde_json::Value>(out.lines().last().expect("a line")).expect("JSON")
    };
    let json = bench(&[]);
    check_kernels(&json, 16.0);
    assert!(json["bounds"].as_str().expect("words").contains("measured here"));
    // Larger shapes of a kind are left out, since none can take less than no time; they are named.
    let left_out = json["left_out"].as_array().expect("a list");
    assert!(
        left_out.iter().any(|l| l[0].to_string().contains("4096 to 14336") && l[1].to_string().contains("take about"))
    );
    let card = common::workspace().join("examples/targets/24GB-card.toml").display().to_string();
    let by_card = bench(&["--profile", &card]);
    let product =
        by_card["rows"].as_array().expect("rows").iter().find(|r| r["kernel"] == "linear").expect("a product");
    // 16 rows of 576 to 1536: its weights at the card's rate of memory take longer than the arithmetic.
    let bytes = 4.0 * f64::from(16 * 576 + 576 * 1536 + 16 * 1536);
    assert!(product["limit"] == "bytes", "{product}");
    assert!((product["bound_s"].as_f64().expect("a number") - bytes / 1008e9).abs() < 1e-12, "{product}");
    let (code, _, said) = tinyforge(&folder.0, &["bench", "--device", "cpu"]);
    assert!(code == Some(2) && said.contains("--kernels"), "{said}");
}
