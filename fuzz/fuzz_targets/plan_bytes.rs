//! Plans as bytes. The input is what follows the header, which is put before it with the right checksum.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tinyforge_plan::Plan;
use tinyforge_plan::check::check;
use tinyforge_plan::encode::{crc32, decode, encode};

fuzz_target!(|data: &[u8]| {
    let _ = decode(data);
    let header = encode(&Plan::default());
    let bytes = [&header[..8], &crc32(data).to_le_bytes(), data].concat();
    let Ok(plan) = decode(&bytes) else { return };
    let again = encode(&plan);
    let read = decode(&again).expect("what was written can be read");
    // NaN differs from itself; its bytes do not.
    assert_eq!(encode(&read), again);
    let faults = check(&plan);
    let _ = (plan.total_bytes(), plan.stored_bytes(|_| true));
    for entry in &plan.entries {
        let _ = (entry.flops(), entry.input("tokens"), entry.result("loss"));
    }
    if faults.is_empty() {
        for step in plan.entries.iter().flat_map(|e| &e.steps) {
            assert!(step.args.iter().chain(&step.outs).all(|t| t.bytes() > 0 && t.end() <= plan.arena_bytes()));
        }
    }
});
