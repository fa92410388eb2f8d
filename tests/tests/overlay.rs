//! Results over operands that die: the checker accepts exactly what the kernel can do, and finds what it cannot.

use tinyforge_compiler::target::Target;
use tinyforge_kernels::int8::{Bottleneck, Conv, Quant, Stage, i8_bottleneck_lead_bytes};
use tinyforge_plan::check::check;
use tinyforge_plan::{DType, Named, Number, Part, Plan, Source, Space, Step, Stored, StoredKind, Tensor};
use tinyforge_tests::convnets::{MCUNET, graph, rows};
use tinyforge_tests::device::compile_entry;
use tinyforge_tests::random::Random;

fn conv(images: usize, size: [usize; 2], channels: [usize; 2], window: [[usize; 2]; 3]) -> Conv {
    let [kernel, stride, pad] = window;
    let out = |d: usize| (size[d] + 2 * pad[d] - kernel[d]) / stride[d] + 1;
    let [in_channels, out_channels] = channels;
    Conv { images, in_size: size, in_channels, out_size: [out(0), out(1)], out_channels, kernel, stride, pad }
}

/// A block of which any row count, window and step may be.
fn block(random: &mut Random) -> Bottleneck {
    let mut below = |n: usize| random.below(n);
    let images = 1 + below(2);
    let [a, b] = [0, 1].map(|_| {
        let kernel = [1 + below(4), 1 + below(3)];
        [kernel, [1 + below(3), 1 + below(2)], [below(kernel[0]), below(kernel[1])]]
    });
    let (size, channels) = ([5 + below(8), 5 + below(5)], [1 + below(9), 1 + below(6), 1 + below(9)]);
    let first = conv(images, size, [channels[0], channels[1]], a);
    // A window may be taller than what the first convolution leaves.
    let kernel = [0, 1].map(|d| b[0][d].min(first.out_size[d]));
    let b = [kernel, b[1], [0, 1].map(|d| b[2][d].min(kernel[d] - 1))];
    let second = conv(images, first.out_size, [channels[1]; 2], b);
    let third = conv(images, second.out_size, [channels[1], channels[2]], [[1, 1], [1, 1], [0, 0]]);
    let stage = |conv| Stage { conv, quant: Quant { zero_x: 0, zero_y: 0, lo: -128, hi: 127 } };
    Bottleneck { expand: Some(stage(first)), depthwise: stage(second), project: stage(third) }
}

/// A plan of one step, its result `lead` bytes before the input.
fn plan(dims: &Bottleneck, lead: u64) -> Plan {
    let first = dims.expand.expect("every block here has one").conv;
    let convs = [first, dims.depthwise.conv, dims.project.conv];
    let mut at = 0;
    let mut tensor = |dtype, shape: &[usize]| {
        let shape = shape.iter().map(|&d| d as u32).collect();
        let tensor = Tensor { dtype, shape, offset: at, value: at as u32 };
        at = tensor.end();
        tensor
    };
    let mut weights = Vec::new();
    for (i, c) in convs.iter().enumerate() {
        let [r, s] = c.kernel;
        let full = [c.out_channels, r, s, c.in_channels];
        let w = if i == 1 { vec![r, s, c.out_channels] } else { full.to_vec() };
        weights.push(tensor(DType::I8, &w));
        weights.push(tensor(DType::I32, &[c.out_channels]));
        weights.push(tensor(DType::F32, &[c.out_channels]));
    }
    let image = |size: [usize; 2], channels: usize, offset: u64, value: u32| Tensor {
        dtype: DType::I8,
        shape: [first.images, size[0], size[1], channels].map(|d| d as u32).to_vec(),
        offset,
        value,
    };
    let y = image(convs[2].out_size, convs[2].out_channels, at, u32::MAX);
    let x = image(first.in_size, first.in_channels, at + lead, u32::MAX - 1);
    let end = x.end().max(y.end());
    let mut attrs = Vec::new();
    for (prefix, c) in ["a", "b", "c"].iter().zip(&convs) {
        let names = ["stride_h", "stride_w", "pad_top", "pad_left", "out_h", "out_w"];
        let values = [c.stride, c.pad, c.out_size].concat();
        attrs.extend(names.iter().zip(values).map(|(n, v)| (format!("{prefix}_{n}"), Number::Int(v as i64))));
    }
    let named = |name: &str, tensor: &Tensor| Named { name: name.to_string(), tensor: tensor.clone() };
    let stored = weights.iter().enumerate().map(|(i, t)| Stored {
        name: format!("w{i}"),
        kind: StoredKind::Weight,
        changes: false,
        tensor: t.clone(),
        source: Source::Zero,
    });
    let stored = stored.collect();
    let step = Step {
        kernel: "i8_bottleneck".to_string(),
        args: [vec![x.clone()], weights].concat(),
        outs: vec![y.clone()],
        changes: 0,
        attrs,
        scratch_offset: 0,
        scratch_bytes: 0,
        block: 0,
        part: Part::Forward,
        flops: 0,
        label: "y".to_string(),
    };
    let entry = tinyforge_plan::Entry {
        name: "infer".to_string(),
        inputs: vec![named("x", &x)],
        results: vec![named("y", &y)],
        steps: vec![step],
        transfers: Vec::new(),
        residents: Vec::new(),
        blocks: vec!["all".to_string()],
        peak: tinyforge_plan::Peak { bytes: end, ..Default::default() },
    };
    let space =
        Space { name: "ram".to_string(), first_byte: 0, bytes: end, is_written: true, is_far: false, is_host: false };
    Plan { spaces: vec![space], align_bytes: 1, entries: vec![entry], stored, ..Plan::default() }
}

#[test]
fn a_lead_is_accepted_where_the_kernel_can_do_with_it() {
    let mut tight = 0;
    for seed in 0..400 {
        let dims = block(&mut Random::new(seed));
        let lead = i8_bottleneck_lead_bytes(&dims) as u64;
        let apart = dims.y_len() as u64;
        for more in [lead, lead + 1, (lead + 8).min(apart), apart] {
            assert_eq!(check(&plan(&dims, more)), Vec::<String>::new(), "{seed}: {more} of {lead}: {dims:?}");
        }
        if lead > 0 {
            tight += 1;
            let faults = check(&plan(&dims, lead - 1));
            assert!(faults.iter().any(|f| f.contains("operand 0 in part")), "{seed}: {lead}: {faults:?}");
        }
    }
    assert!(tight > 40, "{tight} blocks need a lead");
}

/// A network whose first block lies over its image.
fn network() -> Plan {
    let graph = graph(&rows(MCUNET), 1, 10);
    let mut plan = compile_entry("infer", graph, Target::CORTEX_M7, 1).unwrap_or_else(|e| panic!("{e}"));
    plan.stored.iter_mut().for_each(|s| s.source = Source::Zero);
    plan
}

fn overlaid(plan: &mut Plan) -> &mut Step {
    let lies_over = |s: &&mut Step| {
        let (x, y) = (&s.args[0], &s.outs[0]);
        s.kernel == "i8_bottleneck" && y.offset < x.end() && x.offset < y.end()
    };
    plan.entries[0].steps.iter_mut().find(lies_over).expect("the image is overwritten")
}

#[test]
fn a_result_over_bytes_still_to_be_read_is_found() {
    assert_eq!(check(&network()), Vec::<String>::new());
    type Plant = fn(&mut Step);
    let faults: [(&str, Plant); 5] = [
        ("another kernel", |s| s.kernel = "i8_conv2d".to_string()),
        ("a result after its operand's start", |s| s.outs[0].offset = s.args[0].offset + 8),
        ("rows read later", |s| set(s, "a_stride_h", 1)),
        ("more padding", |s| set(s, "a_pad_top", 60)),
        ("an operand read twice", |s| s.args[1] = s.args[0].clone()),
    ];
    for (what, plant) in faults {
        let mut plan = network();
        plant(overlaid(&mut plan));
        let found = check(&plan);
        assert!(found.iter().any(|f| f.contains("in part")), "{what}: {found:?}");
    }
}

fn set(step: &mut Step, name: &str, value: i64) {
    let attr = step.attrs.iter_mut().find(|(n, _)| n == name).expect("a bottleneck has it");
    attr.1 = Number::Int(value);
}
