//! What every graphics card must show, whatever runs its kernels.

use super::trace::{Trace, difference};
use super::{Llama, MadeRows, Scratch, TIED, VOCAB, knobs};
use tinyforge::data::RowReader;
use tinyforge_cli::knobs::Knobs;
use tinyforge_cli::model::Model;

/// Trains so many steps with these settings, and looks at everything.
pub type Train<'a> = &'a dyn Fn(&Model, &[&str], usize) -> Trace;

/// Whether what tests of a device need was found. Where it must be (`VARIABLE=require`) and is not, the test fails;
/// elsewhere it says what is missing, and the Debian packages that have it. `VARIABLE=skip` leaves the tests out.
pub fn is_there(variable: &str, packages: &str, look: impl FnOnce() -> Result<(), String>) -> bool {
    let asked = std::env::var(variable).unwrap_or_default();
    if asked == "skip" {
        eprintln!("skipped: {variable}=skip");
        return false;
    }
    let Err(why) = look() else { return true };
    assert!(asked != "require", "{variable}=require, and {why}");
    eprintln!("skipped: {why} (Debian: {packages})");
    false
}

pub fn made_model(name: &str, llama: Llama) -> (Scratch, Model) {
    let scratch = Scratch::new(name);
    llama.write(scratch.path());
    let model = Model::open(scratch.path()).expect("opens");
    (scratch, model)
}

pub fn rows_of(model: &Model, knobs: &Knobs) -> MadeRows {
    MadeRows { rows: 7, seq: knobs.seq.expect("given") as usize, vocab: model.config.vocab as u32 }
}

/// Training on the device that the settings name; without one, on the CPU.
pub fn train(model: &Model, pairs: &[&str], steps: usize) -> Trace {
    let knobs = knobs(pairs);
    let rows = rows_of(model, &knobs);
    Trace::of(&mut super::trainer(model, &knobs, rows.rows()), &rows, steps).expect("trains")
}

/// The largest relative difference of two curves.
pub fn apart(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / a.abs()).fold(0.0, f64::max)
}

/// Losses and an evaluation near the CPU's, by every kind of scheme.
pub fn losses_are_the_cpus(device: &str, on_device: Train) {
    let (_scratch, model) = made_model(&format!("{}-losses", name(device)), TIED);
    for base in [
        &["scheme=\"lora\""][..],
        &["scheme=\"last:1\"", "optimizer=\"sgd\""],
        &["scheme=\"full\"", "clip=1.0"],
        &["scheme=\"full\"", "optimizer=\"adamw8\"", "micro_batch=1"],
        &["scheme=\"full+head\"", "dtype=\"bf16\""],
        &["scheme=\"sparse\"", "recompute=\"all\""],
    ] {
        let cpu = train(&model, base, 20);
        let gpu = on_device(&model, &[base, &[device]].concat(), 20);
        let far = apart(&cpu.losses, &gpu.losses);
        println!("{base:?}: losses {:.4} to {:.4}, at most {far:.1e} apart", cpu.losses[0], cpu.losses[19]);
        // bf16 products are rounded where sums of another order fall on the other side, and a device may round the
        // factors of attention, which the CPU does not: by a 256th.
        let limit = if base.iter().any(|b| b.contains("bf16")) { 1e-2 } else { 1e-3 };
        assert!(far < limit, "{base:?}: {:?} and {:?}", cpu.losses, gpu.losses);
        assert!(apart(&[cpu.eval], &[gpu.eval]) < limit, "{base:?}: evaluated {} and {}", cpu.eval, gpu.eval);
        assert!(cpu.losses[19] < cpu.losses[0], "{base:?} learns nothing");
    }
}

/// The same bytes whatever the micro-batch, the recomputation and the way of clipping; `again` may run in another
/// order of threads and copies.
pub fn budgets_do_not_change_the_result(device: &str, first: Train, again: Train) {
    let (_scratch, model) = made_model(&format!("{}-p2", name(device)), TIED);
    let ways = [&[][..], &["micro_batch=2"], &["micro_batch=1"], &["micro_batch=2", "recompute=\"all\""]];
    let second: &[&str] = &["clip_by=\"second\"", "recompute=\"all\""];
    let mut found = Vec::new();
    for base in [
        &["scheme=\"full\"", "clip=0.05", "clip_by=\"keep\""][..],
        &["scheme=\"lora\"", "dtype=\"bf16\""],
        &["scheme=\"full\"", "optimizer=\"adamw8\"", "dtype=\"bf16\""],
        &["scheme=\"last:1\"", "optimizer=\"sgd\""],
    ] {
        let clips = base.iter().any(|b| b.contains("clip_by"));
        let ways: Vec<&[&str]> = ways.into_iter().chain(clips.then_some(second)).collect();
        found.extend(differences(&model, &[base, &[device]].concat(), &ways, 2, (first, again)));
    }
    none(&found);
    let [a, b] = ["clip=0.05", "clip=0.06"].map(|clip| first(&model, &[clip, device], 2));
    assert!(difference(&a, &b).is_some(), "the comparison cannot fail");
}

/// Ways of a device with memory of its own: what streams rests in the host's memory unless it is said to rest in files,
/// or in both.
fn tiers(device: &str, way: &[&'static str]) -> Vec<Vec<&'static str>> {
    let has_own_memory = knobs(&[device]).settings().expect("settings").gpu.is_some_and(|gpu| gpu.has_own_memory);
    let most: &[&str] = if has_own_memory { &["host_memory=\"0\"", "host_memory=\"16KiB\""] } else { &[] };
    std::iter::once(way.to_vec()).chain(most.iter().map(|&most| [way, &[most]].concat())).collect()
}

/// Blocks that stream from the model's files, a work file and the host's memory, and activations that rest there.
pub fn windows_do_not_change_the_result(device: &str, first: Train, again: Train) {
    windows(device, (first, again), tiers);
}

/// The same where the device keeps what streams when nothing is said.
pub fn windows_in_one_tier_do_not_change_the_result(device: &str, first: Train, again: Train) {
    windows(device, (first, again), |_, way| vec![way.to_vec()]);
}

fn windows(device: &str, (first, again): (Train, Train), tiers: fn(&str, &[&'static str]) -> Vec<Vec<&'static str>>) {
    let (_scratch, model) = made_model(&format!("{}-window", name(device)), Llama { layers: 4, ..TIED });
    let ways: Vec<Vec<&str>> = [
        &["window=\"1\""][..],
        &["window=\"2\"", "prefetch=2"],
        &["window=\"3\"", "micro_batch=2"],
        &["window=\"1\"", "activations=\"far\"", "recompute=\"all\""],
        &["window=\"2\"", "embeddings=\"far\""],
    ]
    .into_iter()
    .flat_map(|way| tiers(device, way))
    .collect();
    let ways: Vec<&[&str]> = ways.iter().map(Vec::as_slice).collect();
    let mut found = Vec::new();
    for base in
        [&["scheme=\"full\""][..], &["scheme=\"full\"", "dtype=\"bf16\"", "optimizer=\"adamw8\""], &["scheme=\"lora\""]]
    {
        found.extend(differences(&model, &[base, &[device]].concat(), &ways, 3, (first, again)));
    }
    // Tables that come and go in parts, and so do blocks.
    let (_scratch, model) = made_model(&format!("{}-parts", name(device)), Llama { vocab: 2 * VOCAB + 300, ..TIED });
    let parts: [&[&str]; 2] =
        [&["window=\"1\"", "embeddings=\"parts\""], &["window=\"2\"", "embeddings=\"parts\"", "micro_batch=2"]];
    found.extend(differences(&model, &["scheme=\"lora\"", device], &parts, 2, (first, again)));
    let trained = ["window=\"2\"", "embeddings=\"parts\"", "gradients=\"panels\"", "block_parts=3"];
    for base in [["scheme=\"full\"", "dtype=\"bf16\""], ["scheme=\"last:1+head\"", "clip=0.05"]] {
        found.extend(differences(&model, &[&base[..], &[device]].concat(), &[&trained], 2, (first, again)));
    }
    none(&found);
}

/// What the host updates beside the device's backward is what the device would update.
pub fn the_hosts_updates_are_the_devices(device: &str, first: Train, again: Train) {
    let (_scratch, model) = made_model(&format!("{}-updates", name(device)), Llama { layers: 4, ..TIED });
    let ways = [
        &["window=\"1\"", "host_optimizer=true"][..],
        &["window=\"2\"", "host_optimizer=true", "micro_batch=2", "threads=2"],
    ];
    let mut found = Vec::new();
    for base in [
        &["scheme=\"full\""][..],
        &["scheme=\"full\"", "dtype=\"bf16\"", "optimizer=\"adamw8\""],
        &["scheme=\"last:2\"", "optimizer=\"sgd\"", "clip=0.05"],
    ] {
        found.extend(differences(&model, &[base, &[device]].concat(), &ways, 3, (first, again)));
    }
    none(&found);
}

/// What of `device="wgpu"` stands between the quotes.
fn name(device: &str) -> &str {
    device.split('"').nth(1).expect("a device is named in quotes")
}

fn differences(
    model: &Model,
    base: &[&str],
    ways: &[&[&str]],
    steps: usize,
    (first, again): (Train, Train),
) -> Vec<String> {
    let whole = first(model, base, steps);
    let differs = |way: &&[&str]| {
        let text = difference(&whole, &again(model, &[base, way].concat(), steps))?;
        Some(format!("{base:?} with {way:?}: {text}"))
    };
    ways.iter().filter_map(differs).collect()
}

#[track_caller]
fn none(found: &[String]) {
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
}
