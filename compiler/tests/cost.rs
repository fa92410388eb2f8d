//! Costs of schedules: small ones counted by hand, and what holds for all of them.

use tinyforge_compiler::cost::{self, CostError, Resource, Schedule, Transfer, Work};
use tinyforge_compiler::machine::Machine;
use tinyforge_kernels::random::Stream;
use tinyforge_plan::{DType, Part};

/// A card at 1 GFLOP/s, 10 GB/s of its own memory, 1 GB/s of the host's, 100 MB/s up and 50 MB/s down.
const CARD: &str = r#"
name = "card"
figures = "made up"
near = "vram"
[rates]
f32 = 1e9
bf16 = 2e9
near_bytes_per_second = 10e9
optimizer_bytes_per_second = 1e9
[[space]]
name = "vram"
[[space]]
name = "ram"
[[link]]
from = "ram"
to = "vram"
bytes_per_second = 100e6
latency_s = 0.5
[[link]]
from = "vram"
to = "ram"
bytes_per_second = 50e6
"#;

const UP: u32 = 0;
const DOWN: u32 = 1;

fn card(change: impl Fn(&str) -> String) -> Machine {
    Machine::parse(&change(CARD)).expect("a machine")
}

/// A product of so many GFLOP in f32.
fn product(gflop: f64) -> Work {
    Work {
        kernel: "linear".to_string(),
        factors: DType::F32,
        weights: DType::F32,
        flops: (gflop * 1e9) as u64,
        near_bytes: 0,
        optimizer_bytes: 0,
        on_host: false,
        block: 0,
        part: Part::Forward,
    }
}

/// An update of so many GB.
fn update(gb: f64, on_host: bool) -> Work {
    let bytes = (gb * 1e9) as u64;
    Work { flops: 0, near_bytes: bytes, optimizer_bytes: bytes, on_host, part: Part::Update, ..product(0.0) }
}

fn transfer(link: u32, mb: u64, begins: u32, ends: u32) -> Transfer {
    Transfer { link, files: None, bytes: mb * 1_000_000, begins, ends, follows: None }
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-9 * b.abs().max(1.0), "{a} is not {b}");
}

/// Predicted seconds, waiting seconds, the bound's seconds, and whose they are.
fn check(machine: &Machine, schedule: &Schedule, expected: (f64, f64, f64, Resource)) {
    let played = cost::simulate(machine, schedule).expect("plays");
    let bound = cost::bound(machine, schedule).expect("has a bound");
    close(played.seconds, expected.0);
    close(played.waiting_s, expected.1);
    close(bound.seconds(), expected.2);
    assert_eq!(*bound.resource(), expected.3);
}

fn up() -> Resource {
    Resource::Link("ram".to_string(), "vram".to_string())
}

#[test]
fn a_load_hides_behind_what_is_computed() {
    // 100 MB take 0.5 + 1 s. The first is waited for; the second crosses while work 0 runs.
    let schedule = Schedule {
        works: vec![product(2.0), product(1.5)],
        transfers: vec![transfer(UP, 100, 0, 0), transfer(UP, 100, 0, 1)],
    };
    check(&card(str::to_string), &schedule, (5.0, 1.5, 3.5, Resource::Compute));
}

#[test]
fn a_slow_link_sets_the_pace() {
    // Four loads of 1.5 s each, a second of work each: the link is never idle, the last work follows it.
    let schedule =
        Schedule { works: vec![product(1.0); 4], transfers: (0..4).map(|i| transfer(UP, 100, 0, i)).collect() };
    check(&card(str::to_string), &schedule, (7.0, 3.0, 6.0, up()));
}

#[test]
fn a_load_waits_until_its_place_is_free() {
    // The place of work 0 takes the load for work 1: nothing overlaps.
    let schedule = Schedule {
        works: vec![product(1.0), product(1.0)],
        transfers: vec![transfer(UP, 100, 0, 0), transfer(UP, 100, 1, 1)],
    };
    check(&card(str::to_string), &schedule, (5.0, 3.0, 3.0, up()));
}

/// A disk behind the card's host, at 40 MB/s.
const DISK: &str = r#"
[[space]]
name = "disk"
[[link]]
from = "disk"
to = "ram"
bytes_per_second = 40e6
"#;

#[test]
fn what_lies_in_files_crosses_both_links() {
    let of_file = |mb, begins, ends| Transfer { files: Some(2), ..transfer(UP, mb, begins, ends) };
    // The disk gives 100 MB in 2.5 s, of which the card's link is busy for 1.5; what the host's memory holds passes
    // between, and the next file waits for the disk.
    let schedule = Schedule {
        works: vec![product(1.0); 3],
        transfers: vec![of_file(100, 0, 1), transfer(UP, 100, 0, 0), of_file(100, 0, 2)],
    };
    let machine = card(|text| format!("{text}{DISK}"));
    let played = cost::simulate(&machine, &schedule).expect("plays");
    let ends: Vec<f64> = played.transfers.iter().map(|span| span.end_s).collect();
    assert_eq!(ends, [2.5, 3.0, 5.0]);
    let disk = Resource::Link("disk".to_string(), "ram".to_string());
    check(&machine, &schedule, (6.0, 3.0, 5.0, disk));
}

#[test]
fn gradients_leave_beside_loads_and_the_host_updates_them() {
    // 1 s of work, 50 MB of gradient down (1 s) while the second work runs, then 3 s of update on the host, then up.
    let works = vec![product(1.0), product(2.0), update(3.0, true)];
    let back = Transfer { follows: Some(2), ..transfer(UP, 100, 3, 3) };
    let transfers = vec![transfer(DOWN, 50, 1, 2), back];
    let schedule = Schedule { works, transfers };
    check(&card(str::to_string), &schedule, (7.5, 4.5, 3.0, Resource::Host));
    // What brings something else does not wait for the host.
    let mut other = schedule;
    other.transfers[1].follows = None;
    check(&card(str::to_string), &other, (6.0, 3.0, 3.0, Resource::Host));
}

#[test]
fn one_queue_makes_copies_and_kernels_take_turns() {
    let schedule = Schedule {
        works: vec![product(2.0), product(1.0)],
        transfers: vec![transfer(UP, 100, 0, 0), transfer(UP, 100, 0, 1)],
    };
    let machine = card(|text| text.replace("[rates]", "[traits]\nsingle_queue = true\n[rates]"));
    check(&machine, &schedule, (6.0, 0.0, 6.0, Resource::Compute));
}

#[test]
fn shared_cores_update_between_kernels() {
    let schedule = Schedule { works: vec![product(1.0), update(3.0, true), product(1.0)], transfers: vec![] };
    let alone = card(str::to_string);
    check(&alone, &schedule, (4.0, 2.0, 3.0, Resource::Host));
    let shared = card(|text| text.replace("[rates]", "[traits]\nshares_cores = true\n[rates]"));
    check(&shared, &schedule, (5.0, 0.0, 5.0, Resource::Compute));
}

#[test]
fn a_kernel_takes_the_longer_of_arithmetic_and_traffic() {
    let machine = card(str::to_string);
    let seconds = |work: &Work| cost::seconds(&machine, work).expect("rates").seconds;
    close(seconds(&Work { near_bytes: 5_000_000_000, ..product(1.0) }), 1.0);
    close(seconds(&Work { near_bytes: 20_000_000_000, ..product(1.0) }), 2.0);
    close(seconds(&Work { factors: DType::BF16, ..product(1.0) }), 0.5);
    // Weights that live on the card are updated at its own rate.
    close(seconds(&update(1.0, false)), 0.1);
}

/// The processor's attention rounds nothing, so its time is not that of bf16 products.
#[test]
fn attention_multiplies_in_bf16_on_cards_alone() {
    let machines = [("", 0.5), ("[traits]\nshares_cores = true\n", 1.0)];
    for (traits, wanted) in machines {
        let machine = card(|text| text.replace("[rates]", &format!("{traits}[rates]")));
        for kernel in ["attention", "attention_grad"] {
            let work = Work { kernel: kernel.to_string(), factors: DType::BF16, ..product(1.0) };
            close(cost::seconds(&machine, &work).expect("rates").seconds, wanted);
            assert_eq!(cost::factors(&machine, &work) == DType::F32, wanted == 1.0);
        }
        let product = Work { factors: DType::BF16, ..product(1.0) };
        close(cost::seconds(&machine, &product).expect("rates").seconds, 0.5);
    }
}

#[test]
fn measured_kernels_take_what_was_measured() {
    let machine = card(|text| {
        format!(
            "{text}\n[[kernel]]\nkernel = \"linear\"\nfactors = \"f32\"\nweights = \"f32\"\nlimit = \"flops\"\n\
             ideal_s = [0.01, 1.0]\nefficiency = [0.25, 1.0]"
        )
    });
    let seconds = |gflop| cost::seconds(&machine, &product(gflop)).expect("rates").seconds;
    close(seconds(4.0), 4.0);
    close(seconds(0.1), 0.2);
    close(seconds(0.001), 0.004);
    let other = cost::seconds(&machine, &Work { kernel: "attention".to_string(), ..product(1.0) }).expect("rates");
    assert!(!other.is_measured);
    close(other.seconds, 1.0);
}

#[test]
fn what_cannot_be_is_refused() {
    let machine = card(str::to_string);
    let works = vec![product(1.0), product(1.0)];
    for bad in [transfer(UP, 1, 1, 0), transfer(UP, 1, 0, 3), transfer(2, 1, 0, 0)] {
        let schedule = Schedule { works: works.clone(), transfers: vec![bad] };
        assert!(matches!(cost::simulate(&machine, &schedule), Err(CostError::Order { index: 0, .. })));
        assert!(matches!(cost::bound(&machine, &schedule), Err(CostError::Order { index: 0, .. })));
    }
    let crossed = Schedule { works: works.clone(), transfers: vec![transfer(UP, 1, 1, 1), transfer(UP, 1, 0, 0)] };
    assert_eq!(cost::simulate(&machine, &crossed), Err(CostError::Deadlock { work: 0, index: 1 }));
    let integer = Schedule { works: vec![Work { factors: DType::I8, ..product(1.0) }], transfers: vec![] };
    let said = cost::simulate(&machine, &integer).expect_err("no rate").to_string();
    assert!(said.contains("`card` does not say FLOP/s in i8"), "{said}");
    let blind = card(|text| text.replace("bytes_per_second = 50e6", ""));
    let down = Schedule { works, transfers: vec![transfer(DOWN, 1, 0, 1)] };
    let said = cost::bound(&blind, &down).expect_err("no rate").to_string();
    assert!(said.contains("does not say bytes_per_second from vram to ram"), "{said}");
}

/// A random schedule that can be played: transfers of a link ascend in both their indices.
fn random(stream: &Stream) -> Schedule {
    let mut drawn = 0;
    let mut draw = |most: u64| {
        drawn += 1;
        (f64::from(stream.uniform(drawn)) * most as f64) as u64
    };
    let count = draw(12) as u32;
    let works = (0..count).map(|_| {
        let mut work = product(draw(3000) as f64 / 1000.0);
        work.near_bytes = draw(20_000_000_000);
        work.optimizer_bytes = if draw(4) == 0 { draw(1_000_000_000) } else { 0 };
        work.on_host = draw(4) == 0;
        work
    });
    let works: Vec<Work> = works.collect();
    let mut transfers = Vec::new();
    let mut last = [(0, 0); 2];
    for _ in 0..draw(10) {
        let link = draw(2) as usize;
        let begins = last[link].0.max(draw(u64::from(count) + 1) as u32);
        let ends = last[link].1.max(begins).max(draw(u64::from(count) + 1) as u32);
        last[link] = (begins, ends);
        let updated = (0..begins).rev().find(|&work| works[work as usize].on_host);
        let follows = updated.filter(|_| link == UP as usize && draw(2) == 0);
        transfers.push(Transfer { follows, ..transfer(link as u32, draw(200), begins, ends) });
    }
    Schedule { works, transfers }
}

#[test]
fn the_bound_is_at_most_the_prediction() {
    let traits = ["", "single_queue = true", "shares_cores = true"];
    let with = |t| card(|text| format!("{}{DISK}", text.replace("[rates]", &format!("[traits]\n{t}\n[rates]"))));
    let machines = traits.map(with);
    for seed in 0..2000 {
        let mut schedule = random(&Stream { seed, step: 0, tensor: 0 });
        // Every second load of every second schedule comes from a file.
        let loads = schedule.transfers.iter_mut().filter(|t| t.link == UP).step_by(2);
        loads.filter(|_| seed % 2 == 1).for_each(|t| t.files = Some(2));
        for machine in &machines {
            let played = cost::simulate(machine, &schedule).expect("plays");
            let bound = cost::bound(machine, &schedule).expect("has a bound");
            let seconds = played.seconds * (1.0 + 1e-12);
            assert!(bound.seconds() <= seconds, "{seed}: bound {} of {seconds}", bound.seconds());
            assert!(played.waiting_s <= seconds);
            // A transfer runs between what it may begin after and what waits for it.
            for (transfer, span) in schedule.transfers.iter().zip(&played.transfers) {
                let followed = transfer.follows.map_or(0.0, |work| played.works[work as usize].end_s);
                assert!(span.start_s >= followed, "{seed}: {transfer:?} began at {}", span.start_s);
                let before = schedule.works.iter().zip(&played.works).take(transfer.begins as usize);
                let of_device = before.filter(|(work, _)| !work.on_host).map(|(_, span)| span.end_s);
                assert!(of_device.fold(0.0f64, f64::max) <= span.start_s);
                let after = played.works.get(transfer.ends as usize).map_or(played.seconds, |w| w.start_s);
                assert!(span.end_s <= after);
            }
        }
    }
}

#[test]
fn runs_add_up() {
    let machine = card(str::to_string);
    let train = Schedule { works: vec![product(1.0)], transfers: vec![transfer(UP, 100, 0, 1)] };
    let finish = Schedule { works: vec![update(10.0, false)], transfers: vec![] };
    let cost = cost::step(&machine, &[(&train, 3), (&finish, 1)]).expect("costs");
    close(cost.prediction_s, 3.0 * 1.5 + 1.0);
    close(cost.waiting_s, 3.0 * 0.5);
    close(cost.update_s, 1.0);
    close(cost.bound.seconds(), 4.5);
    assert_eq!(*cost.bound.resource(), up());
}
