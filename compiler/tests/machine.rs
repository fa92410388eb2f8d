//! Descriptions of machines: those that are built in, those in examples/, and what is wrong with others.

use std::path::Path;
use tinyforge_compiler::machine::{Machine, MachineError};
use tinyforge_compiler::target::Target;

const SMALL: &str = r#"
name = "small"
figures = "made up"
near = "ram"
[rates]
f32 = 1e9
[[space]]
name = "ram"
bytes = 1_000_000
[[space]]
name = "disk"
[[link]]
from = "disk"
to = "ram"
bytes_per_second = 1e9
[[kernel]]
kernel = "linear"
factors = "f32"
weights = "f32"
limit = "flops"
ideal_s = [1e-6, 1e-3]
efficiency = [0.5, 0.9]
"#;

#[test]
fn a_description_is_what_was_written() {
    let machine = Machine::parse(SMALL).expect("a machine");
    assert_eq!(Machine::parse(&machine.print()), Ok(machine.clone()));
    assert_eq!(machine.link("disk", "ram"), Some(0));
    assert_eq!(machine.link("ram", "disk"), None);
    assert_eq!(machine.target(), Target::CPU);
    assert_eq!(machine.near_space().bytes, Some(1_000_000));
}

#[test]
fn built_in_machines_have_the_targets_of_their_names() {
    for name in Machine::names() {
        let machine = Machine::from_name(name).expect("built in");
        assert_eq!(machine.name, name);
        assert!(machine.rates.f32.is_none(), "{name} has no figures");
    }
    assert_eq!(Machine::from_name("cpu").expect("built in").target(), Target::CPU);
    let small = Machine::from_name("cortex-m7").expect("built in").target();
    assert_eq!((small.near, small.fixed, small.align_bytes), ("sram", Some("flash"), 8));
    let card = Machine::from_name("cuda").expect("built in").target();
    assert_eq!((card.near, card.fixed, card.align_bytes), ("vram", None, 256));
    assert_eq!(Machine::from_name("abacus"), None);
}

#[test]
fn examples_are_machines_with_rates() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/targets");
    let mut count = 0;
    for file in std::fs::read_dir(folder).expect("a folder") {
        let path = file.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("read");
        let machine = Machine::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(machine.rates.bf16 > machine.rates.f32, "{}", path.display());
        assert!(machine.links.iter().all(|l| l.bytes_per_second.is_some()), "{}", path.display());
        assert!(machine.figures.contains("stated"), "{}", path.display());
        count += 1;
    }
    assert!(count >= 2);
}

#[test]
fn faults_are_named_all_at_once() {
    let changes = [
        ("near = \"ram\"", "near = \"attic\"", "near is `attic`, of which there is no [[space]]"),
        ("near = \"ram\"", "near = \"disk\"", "kernels work in ram, vram, sram"),
        ("name = \"disk\"", "name = \"ram\"", "space `ram` is described twice"),
        ("name = \"disk\"", "name = \"tape\"", "space `tape`: the names are"),
        ("bytes = 1_000_000", "bytes = 0", "space `ram` has 0 bytes"),
        ("bytes = 1_000_000", "align_bytes = 48", "align_bytes 48 is no power of two"),
        ("from = \"disk\"", "from = \"moon\"", "link from `moon` to `ram`: no such [[space]]"),
        ("from = \"disk\"", "from = \"ram\"", "leads nowhere"),
        ("f32 = 1e9", "f32 = -1", "rates: f32 is -1"),
        ("f32 = 1e9", "bf16 = nan", "rates: bf16 is NaN"),
        ("bytes_per_second = 1e9", "latency_s = inf", "latency_s is inf, must be from 0 to 3600"),
        ("[1e-6, 1e-3]", "[1e-3, 1e-6]", "kernel `linear`: ideal_s must be positive and ascend"),
        ("[1e-6, 1e-3]", "[1e-6]", "kernel `linear`: 1 sizes and 2 efficiencies"),
        ("[0.5, 0.9]", "[0.5, 0.0]", "kernel `linear`: an efficiency of 0"),
    ];
    for (from, to, expected) in changes {
        let said = Machine::parse(&SMALL.replace(from, to)).expect_err(to).to_string();
        assert!(said.contains(expected), "{to}: {said}");
    }
    let two = SMALL.replace("f32 = 1e9", "f32 = 0").replace("bytes = 1_000_000", "bytes = 0");
    assert!(matches!(Machine::parse(&two), Err(MachineError::Figures(faults)) if faults.len() == 2));
    for bad in ["", "name = 3", "[", &SMALL.replace("f32 = 1e9", "f31 = 1e9")] {
        assert!(matches!(Machine::parse(bad), Err(MachineError::Form(_))), "{bad}");
    }
}
