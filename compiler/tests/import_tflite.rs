//! TFLite files: small ones of every operator, hostile ones, and the published ones where they are at hand.

#[expect(dead_code, reason = "shared with programs that use more of it")]
mod tflite_file;

use std::path::PathBuf;
use tflite_file::{Model, NONE, Tensor, VALID, activation_options, conv_options, depthwise_options, everything, mixed};
use tinyforge_compiler::import::Int8Error;
use tinyforge_compiler::import::int8::{Entry, Int8Model, LayerOp, Limits};
use tinyforge_compiler::import::tflite::import;
use tinyforge_compiler::ir::graph::{Graph, Kind};
use tinyforge_compiler::ir::ops::Tensor as Numbers;
use tinyforge_compiler::ir::reference::Memory;
use tinyforge_compiler::ir::verify::verify;
use tinyforge_plan::{DType, Source};

fn error(bytes: &[u8]) -> String {
    import(bytes, "m.tflite").expect_err("a refused file").to_string()
}

/// Runs an entry over one image.
fn run(model: &Int8Model, entry: Entry, file: &[u8], image: &[i8]) -> Vec<i64> {
    let graph = verified(model, entry, 1);
    let memory = Memory::run(&graph, |v| {
        let mut x = Numbers::zeros(graph.ty(v));
        match (graph.info(v).decl, graph.info(v).name.as_str()) {
            (Some(Kind::Input), "images") => x.data = image.iter().map(|&b| f64::from(b)).collect(),
            (Some(Kind::Input), "labels") => x.data.fill(1.0),
            (Some(Kind::Input), _) => x.data.fill(1.0),
            _ => return model.contents(&graph, v, file, 5).expect("a stored tensor has a source"),
        }
        x
    });
    let (_, result) = graph.results[0];
    memory.get(result).data.iter().map(|&y| (y * 1e6).round() as i64 / 1_000_000).collect()
}

fn verified(model: &Int8Model, entry: Entry, batch: u32) -> Graph {
    let graph = model.graph(entry, batch).expect("a graph");
    assert_eq!(verify(&graph), []);
    graph
}

fn sample(elems: u64) -> Vec<i8> {
    (0..elems as u32).map(|i| (mixed(i + 77) % 256) as u8 as i8).collect()
}

#[test]
fn every_operator() {
    let bytes = everything().bytes();
    let model = import(&bytes, "m.tflite").expect("a model");
    assert_eq!(model.files, ["m.tflite"]);
    assert_eq!((model.input().shape, model.result().shape), ([12, 10, 2], [1, 1, 5]));
    assert_eq!(
        model.convs().map(|c| c.name.as_str()).collect::<Vec<_>>(),
        ["layers.0", "layers.1", "layers.2", "head"]
    );
    let depthwise = model.convs().nth(1).expect("the second");
    assert_eq!((depthwise.multiplier, &depthwise.weight_shape[..]), (Some(2), &[3, 3, 8][..]));
    // SAME by 3 with stride 2 over 12 x 10 pads one row below and one column to the right only.
    assert_eq!(model.convs().next().expect("the first").window.pad, [0, 0]);
    // PAD by one row above and below, one column to the right.
    assert_eq!(model.convs().nth(2).expect("the third").window.pad, [1, 0]);
    assert_eq!(model.convs().next().expect("the first").limits, Limits { lo: -128, hi: 72 });
    let LayerOp::Add { limits, .. } = model.layers[3].op else { panic!("{:?}", model.layers[3]) };
    assert_eq!(limits, Limits { lo: -100, hi: 127 });
    let image = sample(model.input().elems());
    let whole = run(&model, Entry::Whole, &bytes, &image);
    assert!((whole.iter().sum::<i64>() - (256 - 5 * 128)).abs() <= 2, "{whole:?} are probabilities");
    let logits = run(&model, Entry::Infer, &bytes, &image);
    let far = logits.iter().zip(PEER_LOGITS).map(|(a, b)| (a - b).abs()).max();
    assert!(far <= Some(2), "{logits:?} are not {PEER_LOGITS:?}");
    let graph = verified(&model, Entry::Train, 3);
    assert_eq!(graph.results[0].0, "loss");
    assert_eq!(graph.ty(graph.results[0].1).shape, [3]);
}

/// Logits of `everything` over `sample` by LiteRT's reference kernels, which round otherwise: each of the ten layers
/// may differ by a step.
const PEER_LOGITS: [i64; 5] = [29, 54, 81, 54, 77];

#[test]
fn weights_are_named_by_place() {
    let m = tflite_file::small();
    let (bytes, w) = (m.bytes(), m.operators[0].1[1] as usize);
    let model = import(&bytes, "m.tflite").expect("a model");
    let Some(Source::File { file: 0, offset, dtype: DType::I8, transpose: false }) = model.source("head.weight", true)
    else {
        panic!("{:?}", model.source("head.weight", true))
    };
    let weights = &bytes[offset as usize..][..12];
    assert!(weights.iter().enumerate().all(|(i, &b)| b == ((mixed(1000 + i as u32) % 255) as u8).wrapping_sub(127)));
    let Some(Source::Table(scales)) = model.source("head.scale", true) else { panic!("no scales") };
    assert_eq!(scales, m.tensors[w].scales.iter().map(|s| 0.05f32 * s / 0.1f32).collect::<Vec<_>>());
    let Some(Source::Table(factors)) = model.source("head.bias.factor", true) else { panic!("no factors") };
    let expected = 1.0 / (f64::from(0.002f32) * f64::from(0.05f32)).powi(2);
    assert!((f64::from(factors[0]) / expected - 1.0).abs() < 1e-6);
    assert_eq!(model.source("head.weight.factor", false), Some(Source::Table(vec![1.0; 3])));
    assert_eq!(model.source("head.nothing", true), None);
    assert_eq!(model.source("images", true), None);
}

#[test]
fn floats_at_the_ends_are_left_out() {
    let (small, between) = (tflite_file::small().bytes(), tflite_file::between_floats().bytes());
    let models = [&small, &between].map(|bytes| import(bytes, "m.tflite").expect("a model"));
    let image = sample(4);
    let results = [(0, &small), (1, &between)].map(|(i, bytes)| run(&models[i], Entry::Whole, bytes, &image));
    assert_eq!(results[0], results[1]);
}

#[test]
fn a_new_head() {
    let bytes = everything().bytes();
    let model = import(&bytes, "m.tflite").expect("a model").with_classes(3).expect("a new head");
    assert_eq!(model.result().shape, [1, 1, 3]);
    assert_eq!(model.source("head.weight", true), Some(Source::Uniform { bound: 127.0 }));
    assert_eq!(model.source("head.bias", true), Some(Source::Zero));
    let head = model.convs().last().expect("the head");
    assert_eq!(head.w_scales, [(1.0 / (127.0 * 8f64.sqrt())) as f32; 3]);
    // Features reach 0.04 * 255 = 10.2, so the logits' reach is the least, 8.
    assert_eq!(model.result().quant.scale, 8.0 / 127.0);
    let logits = run(&model, Entry::Infer, &bytes, &sample(240));
    assert!(logits.iter().any(|&y| y != 0) && logits.iter().all(|y| (-128..128).contains(y)), "{logits:?}");
    // A softmax is no part of a new head.
    assert_eq!(run(&model, Entry::Whole, &bytes, &sample(240)), logits);
    verified(&model, Entry::Train, 2);
    let again = model.with_classes(7).expect("another head");
    assert_eq!((again.layers.len(), again.result().shape), (model.layers.len(), [1, 1, 7]));
    for classes in [0, 1, 4097, u32::MAX] {
        let refused = model.with_classes(classes).expect_err("too few or many");
        assert_eq!(refused.to_string(), format!("{classes} classes are asked for; a head has between 2 and 4096"));
    }
}

#[test]
fn a_head_behind_images() {
    let mut m = Model::default();
    let (x, y) = (m.image(&[1, 5, 4, 3], 0.1, 0), m.image(&[1, 5, 4, 6], 0.5, 9));
    let w = m.weights(&[6, 1, 1, 3], 0, 3);
    m.operator(3, &[x, w], y, conv_options(VALID, 1, NONE));
    (m.inputs, m.outputs) = (vec![x], vec![y]);
    let bytes = m.bytes();
    let model = import(&bytes, "m.tflite").expect("a model");
    assert!(model.source("layers.0.bias", true) == Some(Source::Zero), "an absent bias is zero");
    let refused = model.graph(Entry::Train, 1).expect_err("no classifier").to_string();
    assert!(refused.contains("it ends in a convolution over an image") && refused.contains("--classes N"), "{refused}");
    let model = model.with_classes(2).expect("a head behind the mean");
    assert_eq!(model.layers.len(), 3);
    // Features reach 0.5 * 137, whose part 1/sqrt(3) is more than 8.
    assert_eq!(model.result().quant.scale, 0.5 * 137.0 / 3f64.sqrt() / 127.0);
    verified(&model, Entry::Train, 4);
}

/// An autoencoder and a network of one result run, but labels cannot teach them; a new head they can.
#[test]
fn results_that_are_no_classes() {
    for (outputs, expected) in [(4, "the model gives 4 numbers for the 4 of its input"), (1, "gives 1 numbers")] {
        let mut m = Model::default();
        let (x, y) = (m.image(&[1, 4], 0.05, 3), m.image(&[1, outputs], 0.1, -5));
        let w = m.weights(&[outputs, 4], 0, 1);
        m.operator(9, &[x, w], y, activation_options(NONE));
        (m.inputs, m.outputs) = (vec![x], vec![y]);
        let bytes = m.bytes();
        let model = import(&bytes, "m.tflite").expect("a model");
        assert_eq!(run(&model, Entry::Infer, &bytes, &sample(4)).len(), outputs as usize);
        let refused = model.graph(Entry::Train, 1).expect_err("no classes").to_string();
        assert!(refused.contains(expected) && refused.contains("`--classes N`"), "{refused}");
        // As many classes as inputs.
        verified(&model.with_classes(4).expect("a head"), Entry::Train, 2);
    }
}

#[test]
fn batches() {
    let bytes = tflite_file::small().bytes();
    let model = import(&bytes, "m.tflite").expect("a model");
    for batch in [0, u32::MAX] {
        assert!(matches!(model.graph(Entry::Whole, batch), Err(Int8Error::Batch { .. })), "{batch}");
    }
}

/// A network of one convolution of these shapes and options, to be broken.
fn one_conv(change: impl Fn(&mut Model)) -> Vec<u8> {
    let mut m = Model::default();
    let (x, y) = (m.image(&[1, 6, 6, 2], 0.1, 0), m.image(&[1, 4, 4, 3], 0.1, 0));
    let (w, b) = (m.weights(&[3, 3, 3, 2], 0, 1), m.ints(&[1, 2, 3]));
    m.operator(3, &[x, w, b], y, conv_options(VALID, 1, NONE));
    (m.inputs, m.outputs) = (vec![x], vec![y]);
    change(&mut m);
    m.bytes()
}

#[test]
fn wrong_quantized_dimensions_are_read() {
    let right = one_conv(|_| {});
    let wrong = one_conv(|m| m.tensors.iter_mut().for_each(|t| t.quantized_dimension = 3));
    let run = |bytes: &[u8]| run(&import(bytes, "m").expect("a model"), Entry::Whole, bytes, &sample(72));
    assert_eq!(run(&right), run(&wrong));
}

type Change = Box<dyn Fn(&mut Model)>;

#[test]
fn refused_models() {
    let data = |i: usize, bytes: Vec<u8>| -> Change { Box::new(move |m| m.tensors[i].data = Some(bytes.clone())) };
    let cases: Vec<(&str, Change)> = vec![
        ("there are 2 inputs", Box::new(|m| m.inputs.push(0))),
        ("there are 0 results", Box::new(|m| m.outputs.clear())),
        ("no operator gives `t2`", Box::new(|m| m.outputs = vec![2])),
        ("the input: it is u8, int8 is taken", Box::new(|m| m.tensors[0].ty = 3)),
        ("convert the model for a batch of 1", Box::new(|m| m.tensors[1].shape[0] = 2)),
        ("all dimensions must be known", Box::new(|m| m.tensors[1].shape[1] = -1)),
        ("`t0` has 2 scales", Box::new(|m| m.tensors[0].scales = vec![0.1, 0.2])),
        ("scale NaN with zero point 0 is no int8 quantisation", Box::new(|m| m.tensors[0].scales = vec![f32::NAN])),
        ("`t1` has 1 scales", Box::new(|m| m.tensors[1].zero = 128)),
        ("weights have the shape [54]", Box::new(|m| m.tensors[2].shape = vec![54])),
        ("groups are not supported", Box::new(|m| m.tensors[2].shape = vec![3, 3, 6, 1])),
        ("its result measures 4 where a window of 2 gives 5", Box::new(|m| m.tensors[2].shape = vec![3, 2, 3, 2])),
        ("weights [3, 3, 3, 2] need as many bytes, the file has 53", data(2, vec![1; 53])),
        ("operand 1 (`t2`) is not constant", Box::new(|m| m.tensors[2].data = None)),
        ("has a zero point; weights must be symmetric", Box::new(|m| m.tensors[2].zero = 1)),
        ("2 scales for 3 output channels", Box::new(|m| m.tensors[2].scales = vec![0.1, 0.2])),
        ("0 is no scale for weights", Box::new(|m| m.tensors[2].scales = vec![0.0])),
        (
            "an effective scale is inf",
            Box::new(|m| (m.tensors[0].scales, m.tensors[2].scales) = (vec![100.0], vec![3e38; 3])),
        ),
        ("3 biases need 12 bytes, the file has 8", data(3, vec![0; 8])),
        (
            "the sum of channel 1 reaches 214",
            data(3, [0i32, i32::MAX - 9, 0].iter().flat_map(|b| b.to_le_bytes()).collect()),
        ),
        ("its options are missing", Box::new(|m| m.operators[0].3.clear())),
        ("its stride is not positive", Box::new(|m| m.operators[0].3 = conv_options(VALID, 0, NONE))),
        ("its fused activation has the code 4", Box::new(|m| m.operators[0].3 = conv_options(VALID, 1, 4))),
        (
            "dilation_w_factor is 2",
            Box::new(|m| m.operators[0].3.push((4, tflite_file::Node::Number(2i32.to_le_bytes().to_vec())))),
        ),
        ("operator code 99", Box::new(|m| m.operators[0].0 = 99)),
        ("it has 0 results", Box::new(|m| m.operators[0].2.clear())),
        ("operand 0 is missing", Box::new(|m| m.operators[0].1.clear())),
        (
            "computes in f32 (operator 0 (CONV_2D `t1`)); int8 is needed: convert it",
            Box::new(|m| m.tensors.iter_mut().for_each(|t| t.ty = if t.ty == 9 { 0 } else { t.ty })),
        ),
        (
            "do not turn 2 channels into 3",
            Box::new(|m| {
                m.operators[0].0 = 4;
                m.operators[0].3 = depthwise_options(VALID, 1, 1, NONE);
            }),
        ),
        (
            "two dimensions are taken",
            Box::new(|m| {
                m.operators[0].0 = 9;
                m.operators[0].3 = activation_options(NONE);
            }),
        ),
    ];
    for (expected, change) in cases {
        let found = error(&one_conv(change));
        assert!(found.contains(expected), "expected `{expected}`, found `{found}`");
    }
}

#[test]
fn all_that_is_refused_is_told() {
    let mut m = everything();
    m.operators[4].0 = 100;
    m.operators[7].0 = 101;
    let found = error(&m.bytes());
    assert!(found.starts_with("the model has 2 parts that cannot be imported: operator 4"), "{found}");
    assert!(found.contains("operator code 101"), "{found}");
}

/// A dead channel's bias at the limits of 32 bits is moved so that no sum overflows, and its factor is 0.
#[test]
fn dead_channels() {
    let bytes = one_conv(|m| {
        let biases = [i32::MIN, 5, i32::MAX];
        m.tensors[3].data = Some(biases.iter().flat_map(|b| b.to_le_bytes()).collect());
        m.tensors[2].scales = vec![4e-9, 0.01, 0.02];
    });
    let model = import(&bytes, "m.tflite").expect("a model");
    let dead: Vec<_> = model.dead_channels().map(|(_, dead)| *dead).collect();
    assert_eq!(dead.iter().map(|d| d.channel).collect::<Vec<_>>(), [0, 2]);
    assert!(dead[0].bias_used > i32::MIN + 1 && dead[1].bias_used < i32::MAX);
    let Some(Source::Bytes(biases)) = model.source("layers.0.bias", true) else { panic!("not moved") };
    assert_eq!(biases[4..8], 5i32.to_le_bytes());
    for scaled in [true, false] {
        let Some(Source::Table(factors)) = model.source("layers.0.weight.factor", scaled) else { panic!("no factors") };
        assert!(factors[0] == 0.0 && factors[1] > 0.0 && factors[2] == 0.0);
    }
    assert!(model.notes.iter().any(|n| n.contains("2 dead channels in 1 layers are frozen")), "{:?}", model.notes);
}

/// No prefix of a file is read as one, and none panics.
#[test]
fn every_truncation() {
    for bytes in [tflite_file::small().bytes(), everything().bytes()] {
        for end in 0..bytes.len() {
            let cut = &bytes[..end];
            if let Ok(model) = import(cut, "m") {
                // The last bytes may be padding or an unused end.
                assert!(end + 8 >= bytes.len(), "{end} of {} bytes were enough", bytes.len());
                verified(&model, Entry::Whole, 1);
            }
        }
    }
}

/// Whatever bytes are changed, a file is refused or gives a program that verifies.
#[test]
fn flipped_bytes() {
    for (seed, bytes) in [tflite_file::small().bytes(), everything().bytes()].into_iter().enumerate() {
        let mut accepted = 0;
        for i in 0..bytes.len() {
            for (round, value) in [0u8, 1, 0x7f, 0x80, 0xff].into_iter().enumerate() {
                let mut changed = bytes.clone();
                changed[i] = value;
                if round % 2 == 1 {
                    let other = mixed((seed * 7919 + i) as u32) as usize % bytes.len();
                    changed[other] ^= 1 << (i % 8);
                }
                if let Ok(model) = import(&changed, "m") {
                    accepted += 1;
                    check(&model, &changed);
                }
            }
        }
        assert!(accepted > 0, "weights and scales may be anything");
    }
}

/// Sources lie inside the file and programs verify.
fn check(model: &Int8Model, file: &[u8]) {
    let graph = verified(model, Entry::Whole, 1);
    for kind in [Kind::Weight, Kind::Const] {
        for v in graph.declared(kind) {
            assert!(model.contents(&graph, v, file, 0).is_some(), "{}", graph.info(v).name);
        }
    }
}

/// One vector that a thousand tables name cannot make a small file cost much.
#[test]
fn shared_vectors_are_counted() {
    // A long shape by itself is no harm.
    let long = one_conv(|m| {
        let shape = vec![1; 200_000];
        m.tensor(Tensor { shape, ty: 9, data: None, scales: vec![], zero: 0, quantized_dimension: 0 });
    });
    assert!(import(&long, "m").is_ok());
    // The same tensor's table a thousand times.
    let mut many = long.clone();
    let at = repeat_tensors(&mut many, 1000);
    assert!(error(&many).contains("describes more than"), "{at}: {}", error(&many));
    // Five thousand operators that name one code and one set of weights of a megabyte.
    let shared = one_conv(|m| {
        m.tensors[2].data = Some(vec![1; 1 << 20]);
        m.tensors[2].shape = vec![1 << 19, 1, 1, 2];
        m.tensors[1].shape = vec![1, 6, 6, 1 << 19];
        m.tensors[2].scales = vec![0.1];
        m.operators[0].1.truncate(2);
        let (x, w, y) = (0, 2, 1);
        (0..5000).for_each(|_| m.operator(3, &[x, w], y, conv_options(VALID, 1, NONE)));
    });
    assert!(error(&shared).contains("the file describes more weights than it holds"), "{}", error(&shared));
}

/// Replaces the vector of tensors by one that names the last tensor so many times; returns where it begins.
fn repeat_tensors(bytes: &mut Vec<u8>, times: u32) -> usize {
    let u32_at = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let follow = |bytes: &[u8], at: usize| at + u32_at(bytes, at) as usize;
    let field = |bytes: &[u8], table: usize, id: usize| {
        let list = (table as i64 - i64::from(u32_at(bytes, table) as i32)) as usize;
        table + usize::from(u16::from_le_bytes([bytes[list + 4 + 2 * id], bytes[list + 5 + 2 * id]]))
    };
    let root = follow(bytes, 0);
    let graphs = follow(bytes, field(bytes, root, 2));
    let graph = follow(bytes, graphs + 4);
    let slot = field(bytes, graph, 0);
    let tensors = follow(bytes, slot);
    let last = tensors + 4 * u32_at(bytes, tensors) as usize;
    let table = follow(bytes, last);
    // Offsets lead forward, so the vector stands before a copy of the table's field list and fields.
    let (list, fields) = ((table as i64 - i64::from(u32_at(bytes, table) as i32)) as usize, table);
    let targets: Vec<(usize, usize)> =
        [0, 3].map(|id| field(bytes, table, id)).map(|at| (at, follow(bytes, at))).to_vec();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let at = bytes.len();
    let shape_len = u32_at(bytes, targets[0].1) as usize;
    let shape = bytes[targets[0].1..targets[0].1 + 4 + 4 * shape_len].to_vec();
    let copied = bytes[list..fields + 36].to_vec();
    let copy = at + 4 + 4 * times as usize;
    let new_table = copy + (fields - list);
    bytes.extend(times.to_le_bytes());
    (0..times as usize).for_each(|i| bytes.extend(((new_table - (at + 4 + 4 * i)) as u32).to_le_bytes()));
    bytes.extend(&copied);
    let shape_at = bytes.len();
    bytes.extend(&shape);
    for (old, _) in targets {
        let moved = new_table + (old - fields);
        let target = (shape_at - moved) as u32;
        bytes[moved..moved + 4].copy_from_slice(&target.to_le_bytes());
    }
    bytes[slot..slot + 4].copy_from_slice(&((at - slot) as u32).to_le_bytes());
    at
}

/// The folder of published models, where there is one.
fn assets() -> Option<PathBuf> {
    let named = std::env::var_os("TINYFORGE_ASSETS").map(PathBuf::from);
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/assets"));
    let folder = named.unwrap_or(beside).join("tflite");
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: no published models ({} is not there)", folder.display());
    None
}

#[test]
fn published_models() {
    let Some(folder) = assets() else { return };
    let cases = [
        ("kws_ref_model", [49, 10, 1], 12, 10),
        ("pretrainedResnet_quant", [32, 32, 3], 10, 10),
        ("person_detect", [96, 96, 1], 2, 28),
        ("ad01_int8", [1, 1, 640], 640, 10),
        ("sine", [1, 1, 1], 1, 3),
        ("speech", [1, 1, 1960], 4, 2),
    ];
    for (name, input, classes, convs) in cases {
        let bytes = std::fs::read(folder.join(format!("{name}.tflite"))).expect("a file");
        let model = import(&bytes, name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((model.input().shape, model.result().shape), (input, [1, 1, classes]), "{name}");
        assert_eq!(model.convs().count(), convs, "{name}");
        check(&model, &bytes);
        verified(&model.with_classes(3).expect("a head"), Entry::Train, 2);
        let is_classifier = !["ad01_int8", "sine"].contains(&name);
        assert_eq!(model.graph(Entry::Train, 1).is_ok(), is_classifier, "{name}");
    }
    for name in ["ad01_fp32", "pretrainedResnet"] {
        let bytes = std::fs::read(folder.join(format!("{name}.tflite"))).expect("a file");
        let found = error(&bytes);
        assert!(
            found.starts_with("the model computes in f32 (operator 0 (") && found.contains("full-integer"),
            "{found}"
        );
    }
}

#[test]
fn published_models_cut_and_changed() {
    let Some(folder) = assets() else { return };
    for name in ["sine", "speech", "kws_ref_model"] {
        let bytes = std::fs::read(folder.join(format!("{name}.tflite"))).expect("a file");
        let step = (bytes.len() / 400).max(1);
        for end in (0..bytes.len()).step_by(step) {
            let _ = import(&bytes[..end], name);
        }
        for i in 0..400u32 {
            let mut changed = bytes.clone();
            let at = mixed(i) as usize % bytes.len();
            changed[at] ^= 1 << (i % 8);
            if let Ok(model) = import(&changed, name) {
                check(&model, &changed);
            }
        }
    }
}
