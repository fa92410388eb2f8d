//! What the planner makes of the published schemes: memory above the stored tensors, as a snapshot.

use std::fmt::Write;
use std::path::Path;
use tinyforge::cpu::CpuKernels;
use tinyforge_compiler::compile::{Compiled, Entry, Recompute, Request, Role, compile};
use tinyforge_compiler::scheme::Scheme;
use tinyforge_compiler::scheme::published::PUBLISHED;
use tinyforge_plan::check::check;
use tinyforge_plan::{Kernels, Number, Plan, Shape, Source};
use tinyforge_tests::convnets::{MBV2, MCUNET, PROXYLESS, graph, rows};
use tinyforge_tests::golden::{HOW_TO_BLESS, blessing, difference};

/// Kernels whose scratch is what their results are made from, whatever the device: of a bottleneck the rows that a
/// depthwise window covers and one row of its result, of its gradient one inner channel, of a weight's gradient one
/// output channel. What may lie over what follows from the rows alone.
struct LeastScratch;

impl Kernels for LeastScratch {
    fn scratch_bytes(
        &self,
        kernel: &str,
        args: &[Shape],
        outs: &[Shape],
        attrs: &[(String, Number)],
    ) -> Result<u64, String> {
        let size = |name: &str| match attrs.iter().find(|(n, _)| n == name) {
            Some((_, Number::Int(v))) => *v as u64,
            _ => 0,
        };
        Ok(match kernel {
            "i8_bottleneck" => {
                let (window, channels) = (u64::from(args[4].dims[0]), u64::from(args[4].dims[2]));
                (window.min(size("a_out_h")) * size("a_out_w") + size("b_out_w")) * channels
            }
            "i8_bottleneck_grad_update" => {
                let pixels = |image: &[u32]| image[..3].iter().map(|&d| u64::from(d)).product::<u64>();
                4 * (pixels(args[3].dims) + pixels(outs[0].dims))
            }
            "i8_conv2d_grad_w_update" => args[0].dims[1..].iter().map(|&d| 4 * u64::from(d)).product(),
            _ => 0,
        })
    }

    fn lead_bytes(&self, kernel: &str, args: &[Shape], outs: &[Shape], attrs: &[(String, Number)]) -> Option<u64> {
        CpuKernels { threads: 1 }.lead_bytes(kernel, args, outs, attrs)
    }
}

fn plan(table: &str, scheme: &Scheme, recompute: Recompute) -> Plan {
    let request = Request {
        scheme: scheme.clone(),
        recompute,
        ..Request::plain(
            "snapshot",
            vec![Entry {
                name: "train".to_string(),
                graph: graph(&rows(table), 1, 10),
                role: Role::Train { micro_batches: 1 },
            }],
            &LeastScratch,
        )
    };
    let Compiled { mut plan, .. } = compile(&request).unwrap_or_else(|e| panic!("{scheme}: {e}"));
    // The values of channel lists play no part here.
    plan.stored.iter_mut().for_each(|s| s.source = Source::Zero);
    assert_eq!(check(&plan), Vec::<String>::new(), "{scheme}");
    plan
}

/// Bytes above the stored tensors, how far they are above what is live at the fullest step, and that step.
fn line(plan: &Plan) -> String {
    let stored = plan.stored.iter().map(|s| s.tensor.end()).max().unwrap_or(0);
    let (entry, changed) = (&plan.entries[0], plan.stored_bytes(|s| s.changes));
    let (above, least) = (entry.peak.bytes - stored, entry.peak.lower_bound_bytes - stored);
    let over = 100.0 * (above.max(least) - least) as f64 / least.max(1) as f64;
    let step = &entry.steps[entry.peak.step as usize];
    let count = |kernel: &str| entry.steps.iter().filter(|s| s.kernel == kernel).count();
    let (rows, channels) = (count("i8_bottleneck"), count("i8_bottleneck_grad_update"));
    let at = format!("{} {}", step.kernel, step.label);
    let by = format!("{rows} by rows, {channels} by channels");
    format!("{above} ({over:.2}%) at {at}, {changed} trained, {} steps, {by}", entry.steps.len())
}

fn snapshot() -> String {
    let mut out = String::from(
        "# net, scheme: bytes above the stored tensors (how far above what is live at the fullest step), that step, bytes\n\
         # of the trained tensors, steps, and how many bottlenecks run by rows, and backward by channels; then with\n\
         # everything recomputed. Frozen weights are not counted: they may stay in flash.\n",
    );
    for published in &PUBLISHED {
        let table = match published.net {
            "mcunet-5fps" => MCUNET,
            "mbv2-w0.35" => MBV2,
            _ => PROXYLESS,
        };
        let plan = |recompute| plan(table, &published.scheme(), recompute);
        let (net, label) = (published.net, published.label_kib);
        let _ = writeln!(out, "{net}, {label}kb: {}", line(&plan(Recompute::Nothing)));
        let _ = writeln!(out, "    recomputed: {}", line(&plan(Recompute::All)));
    }
    for scheme in ["full", "last:1", "bias", "sparse"] {
        let scheme = Scheme::parse(scheme).expect("a scheme");
        let _ = writeln!(out, "mcunet-5fps, {scheme}: {}", line(&plan(MCUNET, &scheme, Recompute::Nothing)));
    }
    out
}

#[test]
fn plans_of_published_schemes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("int8_plans.snap");
    let found = snapshot();
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    if found != wanted && blessing() {
        std::fs::write(&path, found).expect("the snapshot can be written");
        return;
    }
    assert!(found == wanted, "{}{HOW_TO_BLESS}", difference(&wanted, &found));
}
