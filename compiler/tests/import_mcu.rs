//! The published backbones' form: a small network of it, broken ones, and the real ones where they are at hand.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value as Json, json};
use tinyforge_compiler::import::int8::{Entry, Int8Model};
use tinyforge_compiler::import::mcu::{import, is_structure};
use tinyforge_compiler::import::safetensors::layout;
use tinyforge_compiler::import::source::NewTensor;
use tinyforge_compiler::ir::graph::Kind;
use tinyforge_compiler::ir::verify::verify;
use tinyforge_plan::{DType, Source};

/// A file of tensors being written.
#[derive(Default)]
struct Tensors(Vec<(String, DType, Vec<u64>, Vec<u8>)>);

impl Tensors {
    fn add(&mut self, name: &str, dtype: DType, shape: &[u64], bytes: Vec<u8>) -> Json {
        self.0.push((name.to_owned(), dtype, shape.to_vec(), bytes));
        let dtype = match dtype {
            DType::I8 => "int8",
            DType::I32 => "int32",
            _ => "float32",
        };
        json!({"tensor": name, "dtype": dtype, "shape": shape})
    }

    fn file(&self) -> Vec<u8> {
        let tensors: Vec<NewTensor> = self.0.iter().map(|t| NewTensor::new(t.0.as_str(), t.1, &t.2)).collect();
        let layout = layout(&tensors, &BTreeMap::new()).expect("a layout");
        let mut file = layout.header.clone();
        file.resize(layout.file_bytes as usize, 0);
        for (name, _, _, bytes) in &self.0 {
            let at = layout.get(name).expect("laid out").offset as usize;
            file[at..at + bytes.len()].copy_from_slice(bytes);
        }
        file
    }
}

/// Scale and zero point of input and result.
type Quants = [(f64, i32); 2];

struct Net {
    tensors: Tensors,
    seed: u8,
}

impl Net {
    /// A convolution of `[in, out, kernel, stride, side, groups]`.
    fn conv(&mut self, name: &str, [i, o, k, stride, side, groups]: [u64; 6], [x, y]: Quants) -> Json {
        self.seed += 1;
        let seed = self.seed;
        let shape = [o, i / groups, k, k];
        let count = shape.iter().product::<u64>();
        let weight =
            (0..count).map(|n| (n as u8).wrapping_mul(37).wrapping_add(seed) % 200).map(|b| b.wrapping_sub(100));
        let t = &mut self.tensors;
        let biases = (0..o as i32).flat_map(|n| (n * 50 - 80).to_le_bytes()).collect();
        let scales = (0..o).flat_map(|n| (0.01 + 0.001 * n as f32).to_le_bytes()).collect();
        let params = json!({
            "weight": t.add(&format!("{name}.params.weight"), DType::I8, &shape, weight.collect()),
            "bias": t.add(&format!("{name}.params.bias"), DType::I32, &[o], biases),
            "w_scales": t.add(&format!("{name}.params.w_scales"), DType::F32, &[o], scales),
            "x_scale": x.0, "x_zero": x.1, "y_scale": y.0, "y_zero": y.1,
        });
        json!({
            "in_channel": i, "in_shape": side, "out_channel": o, "out_shape": side.div_ceil(stride),
            "kernel_size": [k, k], "stride": stride, "groups": groups, "depthwise": groups > 1, "act": null,
            "params": params,
        })
    }
}

/// A first convolution, one block with a residual, a classifier.
fn small() -> (Json, Tensors) {
    let mut net = Net { tensors: Tensors::default(), seed: 0 };
    let (x, a, b, c, d, e) = ((0.01, 0), (0.05, -128), (0.04, -128), (0.03, -128), (0.06, 7), (0.08, -3));
    let first = net.conv("first_conv", [3, 4, 3, 2, 8, 1], [x, a]);
    let block = json!({
        "pointwise1": net.conv("blocks.0.pointwise1", [4, 6, 1, 1, 4, 1], [a, b]),
        "depthwise": net.conv("blocks.0.depthwise", [6, 6, 5, 1, 4, 6], [b, c]),
        "pointwise2": net.conv("blocks.0.pointwise2", [6, 4, 1, 1, 4, 1], [c, d]),
        "residual": {"in_channel": 4, "in_shape": 4,
            "params": {"x_scale": a.0, "x_zero": a.1, "y_scale": e.0, "y_zero": e.1}},
        "se": null,
    });
    let mut classifier = net.conv("classifier", [4, 5, 1, 1, 1, 1], [e, (0.1, 2)]);
    for key in ["in_shape", "out_shape", "depthwise", "act"] {
        classifier.as_object_mut().expect("an object").remove(key);
    }
    let json = json!({"first_conv": first, "blocks": [block], "feature_mix": null, "classifier": classifier});
    (json, net.tensors)
}

fn read(json: &Json, tensors: &Tensors) -> Result<Int8Model, String> {
    import(json.to_string().as_bytes(), &tensors.file(), "w.safetensors").map_err(|error| error.to_string())
}

fn check(model: &Int8Model, file: &[u8]) {
    let graph = model.graph(Entry::Whole, 2).expect("a graph");
    assert_eq!(verify(&graph), []);
    for kind in [Kind::Weight, Kind::Const] {
        for v in graph.declared(kind) {
            assert!(model.contents(&graph, v, file, 0).is_some(), "{}", graph.info(v).name);
        }
    }
    assert_eq!(verify(&model.graph(Entry::Train, 2).expect("a graph")), []);
}

#[test]
fn a_small_network() {
    let (json, tensors) = small();
    assert!(is_structure(json.to_string().as_bytes()) && is_structure(b" {\n \"first_conv\": 1"));
    assert!(!is_structure(b"{\"model_type\": \"llama\"}") && !is_structure(b""));
    let model = read(&json, &tensors).expect("a network");
    check(&model, &tensors.file());
    let names: Vec<&str> = model.convs().map(|c| c.name.as_str()).collect();
    let blocks = ["blocks.0.pointwise1", "blocks.0.depthwise", "blocks.0.pointwise2"];
    assert_eq!(names, [&["first_conv"], &blocks[..], &["classifier"]].concat());
    assert_eq!(
        model.layers.iter().map(|l| l.block.as_str()).collect::<Vec<_>>(),
        ["first_conv", "blocks.0", "blocks.0", "blocks.0", "blocks.0", "head", "head"]
    );
    assert_eq!(model.dead_channels().count(), 0);
    let graph = model.graph(Entry::Infer, 1).expect("a graph");
    let sum = graph.nodes.iter().find(|n| n.op.name() == "i8_add").expect("the residual's sum");
    assert_eq!(sum.attrs.float("ra"), f64::from((0.05f64 / 0.08) as f32));
    assert_eq!(sum.attrs.float("rb"), f64::from((0.06f64 / 0.08) as f32));
    assert_eq!((sum.attrs.int("zero_a"), sum.attrs.int("zero_b"), sum.attrs.int("zero_y")), (-128, 7, -3));
}

/// The program's weights are the file's with the input channel last, depthwise ones with the channel last.
#[test]
fn weights_are_permuted() {
    let (json, tensors) = small();
    let (model, file) = (read(&json, &tensors).expect("a network"), tensors.file());
    let graph = model.graph(Entry::Infer, 1).expect("a graph");
    let contents =
        |name: &str| model.contents(&graph, graph.find(name).expect("a weight"), &file, 0).expect("contents");
    let bytes = |name: &str| &tensors.0.iter().find(|t| t.0 == name).expect("a tensor").3;
    let (first, raw) = (contents("first_conv.weight"), bytes("first_conv.params.weight"));
    assert_eq!(first.shape, [4, 3, 3, 3]);
    for (o, r, s, i) in [(0, 0, 0, 1), (3, 2, 1, 0), (2, 1, 2, 2)] {
        let stored = first.data[((o * 3 + r) * 3 + s) * 3 + i];
        assert_eq!(stored, f64::from(raw[((o * 3 + i) * 3 + r) * 3 + s] as i8));
    }
    let (depthwise, raw) = (contents("blocks.0.depthwise.weight"), bytes("blocks.0.depthwise.params.weight"));
    assert_eq!(depthwise.shape, [5, 5, 6]);
    for (r, s, c) in [(0, 0, 5), (4, 1, 2), (2, 3, 0)] {
        assert_eq!(depthwise.data[(r * 5 + s) * 6 + c], f64::from(raw[(c * 5 + r) * 5 + s] as i8));
    }
    assert!(matches!(model.source("blocks.0.pointwise1.weight", true), Some(Source::File { transpose: false, .. })));
}

type Change = Box<dyn Fn(&mut Json)>;

#[test]
fn refused_networks() {
    let set = |path: &'static str, value: Json| -> Change {
        Box::new(move |json| *json.pointer_mut(path).expect("a place") = value.clone())
    };
    let cases: Vec<(&str, Change)> = vec![
        ("missing field `blocks`", Box::new(|json| drop(json.as_object_mut().expect("an object").remove("blocks")))),
        ("unknown field `padding`", Box::new(|json| json["first_conv"]["padding"] = json!(1))),
        ("first_conv: `in_shape` is missing", set("/first_conv/in_shape", json!(null))),
        ("squeeze and excitation", set("/blocks/0/se", json!({"a": 1}))),
        ("an activation of its own", set("/first_conv/act", json!("relu6"))),
        ("it gives 4 x 4, not Some(5)", set("/first_conv/out_shape", json!(5))),
        ("what stands before it gives 4 x 4 x 4", set("/blocks/0/pointwise1/in_channel", json!(5))),
        ("reads scale 0.2 and zero point -128", set("/blocks/0/pointwise1/params/x_scale", json!(0.2))),
        ("blocks.0.residual: it reads scale", set("/blocks/0/residual/params/x_zero", json!(1))),
        ("2 groups of 6 channels", set("/blocks/0/depthwise/groups", json!(2))),
        ("weights are [6, 1, 5, 5], must be [6, 1, 3, 3]", set("/blocks/0/depthwise/kernel_size", json!([3, 3]))),
        ("it gives 5 x 5, not Some(4)", set("/first_conv/kernel_size", json!([0, 0]))),
        ("does not fit", set("/first_conv/stride", json!(0))),
        ("names `nothing`, which is not in the file", set("/first_conv/params/bias/tensor", json!("nothing"))),
        ("is I32 [4], first_conv wants", set("/first_conv/params/w_scales/tensor", json!("first_conv.params.bias"))),
        ("an effective scale is inf", set("/first_conv/params/y_scale", json!(0.0))),
        ("the block is empty", Box::new(|json| json["blocks"][0] = json!({}))),
        ("4294967295", set("/first_conv/in_shape", json!(u32::MAX))),
    ];
    for (expected, change) in cases {
        let (mut json, tensors) = small();
        change(&mut json);
        let found = read(&json, &tensors).expect_err(expected);
        assert!(found.contains(expected), "expected `{expected}`, found `{found}`");
    }
}

#[test]
fn truncations() {
    let (json, tensors) = small();
    let (json, file) = (json.to_string(), tensors.file());
    for end in 0..json.len() {
        assert!(import(&json.as_bytes()[..end], &file, "w").is_err(), "{end} bytes of the structure were enough");
    }
    for end in 0..file.len() {
        assert!(import(json.as_bytes(), &file[..end], "w").is_err(), "{end} bytes of the weights were enough");
    }
    for i in 0..json.len() {
        let mut changed = json.clone().into_bytes();
        changed[i] ^= 1 << (i % 7);
        if let Ok(model) = import(&changed, &file, "w") {
            assert_eq!(verify(&model.graph(Entry::Whole, 1).expect("a graph")), []);
        }
    }
}

#[test]
fn published_networks() {
    let named = std::env::var_os("TINYFORGE_ASSETS").map(PathBuf::from);
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/assets"));
    let folder = named.unwrap_or(beside).join("mcu");
    if !folder.is_dir() {
        println!("skipped: no published networks ({} is not there)", folder.display());
        return;
    }
    for (name, convs, features, dead) in [("mcunet-5fps", 42, 160, Some(55)), ("mbv2-w0.35", 51, 112, Some(0))] {
        let json = std::fs::read(folder.join(format!("{name}.json"))).expect("a structure");
        let file = std::fs::read(folder.join(format!("{name}.safetensors"))).expect("weights");
        let model = import(&json, &file, name).expect("a network");
        check(&model, &file);
        assert_eq!((model.input().shape, model.result().shape), ([128, 128, 3], [1, 1, 1000]));
        assert_eq!(model.convs().count(), convs + 1);
        assert_eq!(model.convs().last().expect("a head").weight_shape, [1000, 1, 1, features]);
        assert_eq!(Some(model.dead_channels().count()), dead, "{name}: {:?}", model.notes);
        let trained = model.with_classes(5).expect("a head");
        check(&trained, &file);
        assert_eq!(trained.convs().count(), convs + 1);
    }
}

/// The factors of quantisation-aware scaling that the released code has.
#[test]
fn published_factors() {
    let named = std::env::var_os("TINYFORGE_ASSETS").map(PathBuf::from);
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/assets"));
    let folder = named.unwrap_or(beside).join("mcu");
    if !folder.is_dir() {
        println!("skipped: no published networks ({} is not there)", folder.display());
        return;
    }
    let json = std::fs::read(folder.join("mcunet-5fps.json")).expect("a structure");
    let file = std::fs::read(folder.join("mcunet-5fps.safetensors")).expect("weights");
    let model = import(&json, &file, "w").expect("a network");
    let conv = model.convs().find(|c| c.name == "blocks.10.pointwise1").expect("block 10");
    // The convolution that expands block 10 is number 30 from the input; as f32, to the last bit.
    assert_eq!(model.convs().position(|c| c.name == conv.name), Some(30));
    let golden = [670_545.875_f64, 719_452.81].map(|factor| factor as f32);
    assert_eq!(conv.weight_factors()[..2], golden);
}
