//! ONNX files: what is read, what is refused, hostile ones; and the int8 networks made of them.

mod onnx_file;

use onnx_file::{File, Message, external, float, input, int, ints, node, numbers, packed, raw, small, spread, whole};
use tinyforge_compiler::compile;
use tinyforge_compiler::import::int8::{Entry, Int8Model, LayerOp};
use tinyforge_compiler::import::onnx::{FloatModel, OnnxError, import};
use tinyforge_compiler::ir::graph::Kind;
use tinyforge_compiler::ir::ops::{Op, Tensor};
use tinyforge_compiler::ir::reference::Memory;
use tinyforge_compiler::ir::verify::verify;
use tinyforge_compiler::passes::quantize::{self, Bytes, Clipping, Observer, Range};

fn read(bytes: &[u8]) -> Result<FloatModel, OnnxError> {
    import(bytes, "m.onnx", &|_| None, 1)
}

fn model(file: &File) -> FloatModel {
    let model = read(&file.bytes()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(verify(&model.graph), []);
    model
}

fn error(file: &File) -> String {
    read(&file.bytes()).expect_err("a refused file").to_string()
}

/// The float network's values for one image `[C,H,W]`.
fn run(model: &FloatModel, bytes: &[u8], image: &[f64]) -> Memory {
    Memory::run(&model.graph, |v| match model.graph.info(v).decl {
        Some(Kind::Input) => {
            let mut x = Tensor::zeros(model.graph.ty(v));
            x.data.copy_from_slice(image);
            x
        }
        _ => model.contents(v, &[bytes.to_vec()]).expect("a weight has contents"),
    })
}

fn result(model: &FloatModel, bytes: &[u8], image: &[f64]) -> Vec<f64> {
    let output = model.graph.result("output").expect("a result");
    run(model, bytes, image).get(output).data.clone()
}

/// A file of one input and these nodes.
fn file(shape: &[i64], nodes: Vec<Message>, constants: Vec<Message>) -> File {
    let shape: Vec<Option<i64>> = [None].into_iter().chain(shape.iter().map(|&d| Some(d))).collect();
    File { input: input("x", &shape), nodes, constants, output: "y" }
}

#[test]
fn a_network_with_constants_of_every_form() {
    let bytes = small().bytes();
    let model = model(&small());
    assert_eq!((model.shape, model.files.len()), ([8, 6, 2], 1));
    let ops: Vec<Op> = model.graph.nodes.iter().map(|n| n.op).collect();
    assert_eq!(ops[..4], [Op::Conv2d, Op::BatchNormEval, Op::Relu6, Op::Conv2d]);
    let image: Vec<f64> = numbers(20, 96).into_iter().map(f64::from).collect();
    let y = result(&model, &bytes, &image);
    assert!(y.len() == 3 && (y.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{y:?} are probabilities");
    let v = model.graph.find("layers.1.bias").expect("a bias");
    let bias = model.contents(v, &[bytes]).expect("contents");
    assert_eq!(bias.data, numbers(7, 4).into_iter().map(f64::from).collect::<Vec<_>>());
}

#[test]
fn a_product_by_hand() {
    // y = 2 x0 + 3 x1 - 1, as a matrix with a column an output, and a constant behind it.
    for constant in [raw, packed, spread] {
        let file = file(
            &[2],
            vec![node("MatMul", &["x", "w"], &["p"], vec![]), node("Add", &["p", "b"], &["y"], vec![])],
            vec![constant("w", &[2, 1], &[2.0, 3.0]), constant("b", &[1], &[-1.0])],
        );
        assert_eq!(result(&model(&file), &file.bytes(), &[5.0, 7.0]), [30.0]);
        let matrix = self::file(
            &[2],
            vec![node("MatMul", &["x", "w"], &["y"], vec![])],
            vec![constant("w", &[2, 2], &[1.0, 2.0, 3.0, 4.0])],
        );
        assert_eq!(result(&model(&matrix), &matrix.bytes(), &[5.0, 7.0]), [26.0, 38.0]);
    }
}

#[test]
fn external_data_lie_beside_the_model() {
    let of = |location: &str, offset: &str| {
        let nodes = vec![node("MatMul", &["x", "w"], &["y"], vec![])];
        let file = file(&[2], nodes, vec![external("w", &[2, 1], location, offset)]);
        import(&file.bytes(), "m.onnx", &|name| (name == "data.bin").then_some(24), 1)
    };
    let model = of("data.bin", "16").expect("a model");
    assert_eq!(model.files, ["m.onnx", "data.bin"]);
    let files = [vec![], [[0; 16].to_vec(), 2f32.to_le_bytes().to_vec(), 3f32.to_le_bytes().to_vec()].concat()];
    let w = model.graph.find("layers.0.weight").expect("a weight");
    assert_eq!(model.contents(w, &files).expect("contents").data, [2.0, 3.0]);
    for (location, offset, why) in [
        ("data.bin", "17", "has 24 bytes"),
        ("data.bin", "18446744073709551615", "has 24 bytes"),
        ("data.bin", "-1", "is no number"),
        ("other.bin", "0", "not beside the model"),
        ("../data.bin", "0", "outside of the model's folder"),
        ("/etc/passwd", "0", "outside of the model's folder"),
        ("C:\\data.bin", "0", "outside of the model's folder"),
    ] {
        let error = of(location, offset).expect_err("refused").to_string();
        assert!(error.contains(why), "{location} {offset}: {error}");
    }
}

#[test]
fn what_is_refused_names_the_node() {
    let conv = |attrs| {
        let w = raw("w", &[2, 2, 3, 3], &numbers(1, 36));
        file(&[2, 8, 8], vec![node("Conv", &["x", "w"], &["y"], attrs)], vec![w])
    };
    let one = |op: &str, attrs| file(&[2, 8, 8], vec![node(op, &["x"], &["y"], attrs)], vec![]);
    for (file, why) in [
        (one("HardSwish", vec![]), "node 0 (HardSwish `the_y`): no op stands for it"),
        (conv(vec![ints("dilations", &[2, 2])]), "dilations are [2, 2]"),
        (conv(vec![ints("pads", &[-1, 0, 0, 0])]), "padding of -1"),
        (conv(vec![ints("strides", &[0, 1])]), "strides of 0"),
        (conv(vec![ints("strides", &[1])]), "strides are 1 numbers"),
        (conv(vec![int("group", 3)]), "in 3 groups do not read 2 channels"),
        (one("Clip", vec![float("min", -1.0), float("max", 1.0)]), "clips to -1..1"),
        (one("Softmax", vec![]), "along axis"),
        (one("MaxPool", vec![ints("kernel_shape", &[9, 9])]), "does not fit"),
        (
            one(
                "AveragePool",
                vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1]), int("count_include_pad", 1)],
            ),
            "count the padding",
        ),
        (one("Transpose", vec![ints("perm", &[0, 2, 3, 1])]), "must stay in their order"),
        (one("Flatten", vec![int("axis", 2)]), "its axis is 2"),
    ] {
        let error = error(&file);
        assert!(error.contains(why) && error.contains("node 0"), "{error}\n  lacks {why}");
    }
    // All that cannot be taken is told at once; what reads it is not told again.
    let nodes = vec![
        node("Sigmoid", &["x"], &["a"], vec![]),
        node("Relu", &["a"], &["b"], vec![]),
        node("LSTM", &["x"], &["c"], vec![]),
        node("Relu", &["b"], &["y"], vec![]),
    ];
    let error = error(&file(&[2, 8, 8], nodes, vec![]));
    assert!(error.contains("2 parts") && error.contains("Sigmoid") && error.contains("LSTM"), "{error}");
    assert!(!error.contains("Relu"), "{error}");
}

#[test]
fn hostile_graphs_give_an_error() {
    let relu = |i: &str, o: &str| node("Relu", &[i], &[o], vec![]);
    let cycle = file(&[1, 2, 2], vec![relu("b", "a"), relu("a", "b"), relu("b", "y")], vec![]);
    assert!(error(&cycle).contains("nothing before gives"), "{}", error(&cycle));
    let twice = file(&[1, 2, 2], vec![relu("x", "y"), relu("x", "y")], vec![]);
    assert!(error(&twice).contains("given twice"));
    let nothing = file(&[1, 2, 2], vec![], vec![]);
    assert!(error(&nothing).contains("no node computes `y`"));
    for (shape, why) in [
        (vec![None, None, Some(2), Some(2)], "dimension 1 is not a number"),
        (vec![None, Some(-1), Some(2), Some(2)], "dimension 1 is not a number"),
        (vec![None, Some(0), Some(2), Some(2)], "dimension 1 is not a number"),
        (vec![None, Some(1 << 31), Some(1 << 31), Some(2)], "must be between 1 and"),
        (vec![None, Some(1 << 20), Some(1 << 20), Some(1 << 20)], "more than 2^40"),
        (vec![None, Some(2), Some(2)], "has 3 dimensions"),
        (vec![], "has 0 dimensions"),
    ] {
        let file = File { input: input("x", &shape), nodes: vec![relu("x", "y")], constants: vec![], output: "y" };
        assert!(error(&file).contains(why), "{shape:?}: {}", error(&file));
    }
    let lies = |w: Message| {
        let error = error(&file(&[2], vec![node("MatMul", &["x", "w"], &["y"], vec![])], vec![w]));
        assert!(error.contains("damaged at `tensor"), "{error}");
    };
    lies(raw("w", &[2, 2], &[1.0]));
    lies(packed("w", &[1 << 40, 1 << 40], &[1.0]));
    lies(spread("w", &[2, 1], &[1.0, 2.0, 3.0]));
    lies(raw("w", &[-2, -1], &[1.0, 2.0]));
    lies(raw("w", &[1; 9], &[1.0]));
    // A shape of many parts, a reshape that overflows, a batch that is lost.
    for shape in [vec![0; 17], vec![0, i64::MAX, i64::MAX], vec![7, 8], vec![0, -1, -1], vec![0, -2], vec![]] {
        let nodes = vec![node("Reshape", &["x", "s"], &["y"], vec![])];
        assert!(error(&file(&[2, 2, 2], nodes, vec![whole("s", &shape)])).contains("node 0"), "{shape:?}");
    }
}

/// Many nodes that each copy one large constant would make a small file cost much.
#[test]
fn copies_are_counted() {
    let count = 4096;
    let names: Vec<String> = (0..count).map(|i| format!("v{i}")).collect();
    let nodes = (1..count).map(|i| {
        node(
            "Mul",
            &[if i == 1 { "x" } else { &names[i - 1] }, "k"],
            &[if i + 1 == count { "y" } else { &names[i] }],
            vec![],
        )
    });
    let file = file(&[1024, 1, 1], nodes.collect(), vec![spread("k", &[1024, 1, 1], &numbers(1, 1024))]);
    assert!(error(&file).contains("more constants than the file can hold"));
}

#[test]
fn truncated_and_changed_files_never_panic() {
    let bytes = small().bytes();
    for len in 0..bytes.len() {
        let _ = read(&bytes[..len]).map(|m| assert_eq!(verify(&m.graph), []));
    }
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 0x08, bytes[at].wrapping_add(1)] {
            let mut changed = bytes.clone();
            changed[at] = value;
            let Ok(model) = read(&changed) else { continue };
            assert_eq!(verify(&model.graph), [], "byte {at} as {value}");
            if let Ok(values) = quantize::observed(&model.graph) {
                let _ = to_int8(&model, &changed, &vec![Range::of(-1.0, 1.0); values.len()], &Bytes::default());
            }
        }
    }
    for hostile in [&[0xff; 32][..], &[0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f], &[0x3b, 0x3c], &[]] {
        assert!(read(hostile).is_err());
    }
}

fn to_int8(
    model: &FloatModel,
    bytes: &[u8],
    ranges: &[Range],
    meaning: &Bytes,
) -> Result<Int8Model, tinyforge_compiler::import::Int8Error> {
    let weights = |name: &str| {
        let v = model.graph.find(name)?;
        Some(model.contents(v, &[bytes.to_vec()])?.data.iter().map(|&x| x as f32).collect())
    };
    let request = quantize::Request {
        name: "m",
        graph: &model.graph,
        shape: model.shape,
        bytes: meaning,
        weights: &weights,
        ranges,
    };
    compile::to_int8(&request)
}

/// The bytes of a sample `[H,W,C]`, and the image `[C,H,W]` that the float network gets for them.
fn sample(shape: [u32; 3], meaning: &Bytes, seed: u32) -> (Vec<i8>, Vec<f64>) {
    let [h, w, c] = shape.map(|d| d as usize);
    let bytes: Vec<i8> = numbers(seed, h * w * c).iter().map(|x| (x * 127.9) as i8).collect();
    let at = |i: usize| {
        let (channel, pixel) = (i / (h * w), i % (h * w));
        f64::from(meaning.real(bytes[pixel * c + channel], channel))
    };
    let image = (0..bytes.len()).map(at).collect();
    (bytes, image)
}

/// An int8 network of a float one, with ranges from some samples, and how far its results lie from the float ones, in
/// its own steps, on others.
fn far(file: &File, meaning: &Bytes, clipping: Clipping) -> (Int8Model, f64) {
    let (bytes, model) = (file.bytes(), model(file));
    let values = quantize::observed(&model.graph).expect("a network for int8");
    let mut observers = vec![Observer::default(); values.len()];
    for counts in [false, true] {
        for seed in 0..8 {
            let memory = run(&model, &bytes, &sample(model.shape, meaning, 100 + seed).1);
            for (observer, &v) in observers.iter_mut().zip(&values) {
                let seen: Vec<f32> = memory.get(v).data.iter().map(|&x| x as f32).collect();
                if counts { observer.count(&seen) } else { assert!(observer.widen(&seen)) }
            }
        }
    }
    let ranges: Vec<Range> = observers.iter().map(|o| o.range(clipping)).collect();
    let int8 = to_int8(&model, &bytes, &ranges, meaning).unwrap_or_else(|e| panic!("{e}"));
    let graph = int8.graph(Entry::Whole, 1).expect("a graph");
    assert_eq!(verify(&graph), []);
    let (quant, mut worst) = (int8.result().quant, 0.0f64);
    for seed in 0..8 {
        let (stored, image) = sample(model.shape, meaning, 200 + seed);
        let memory = Memory::run(&graph, |v| match graph.info(v).decl {
            Some(Kind::Input) => {
                let mut x = Tensor::zeros(graph.ty(v));
                x.data = stored.iter().map(|&b| f64::from(b)).collect();
                x
            }
            _ => int8.contents(&graph, v, &[], 0).expect("contents"),
        });
        let wanted = result(&model, &bytes, &image);
        // Channels lie innermost in int8, outermost in float.
        let channels = int8.result().shape[2] as usize;
        let area = wanted.len() / channels;
        for (i, y) in memory.get(graph.results[0].1).data.iter().enumerate() {
            let wanted = wanted[i % channels * area + i / channels];
            worst = worst.max((quant.scale * (y - f64::from(quant.zero)) - wanted).abs() / quant.scale);
        }
    }
    (int8, worst)
}

#[test]
fn int8_is_close_to_float() {
    let (int8, worst) = far(&small(), &Bytes::default(), Clipping::MinMax);
    // Eight layers of half a step each, amplified on the way: a mistake of order, scale or sign gives over 50.
    assert!(worst < 8.0, "{worst} steps");
    let names: Vec<&str> = int8.convs().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["layers.0", "layers.1", "head"]);
    let first = int8.convs().next().expect("a layer");
    assert_eq!((first.limits.lo, first.window.stride), (-128, [2, 1]));
    assert!(matches!(int8.layers.last().expect("a layer").op, LayerOp::Softmax));
    let head = int8.with_classes(5).expect("a new head");
    assert_eq!(head.result().shape, [1, 1, 5]);
}

#[test]
fn what_a_byte_means_goes_into_the_first_layer() {
    let meaning = Bytes { scale: 1.0 / 255.0, mean: vec![0.48, 0.41], std: vec![0.2, 0.3] };
    let pads = |pad| ints("pads", &[pad; 4]);
    let net = |pad| {
        let nodes = vec![
            node("Conv", &["x", "w", "b"], &["c"], vec![pads(pad)]),
            node("GlobalAveragePool", &["c"], &["y"], vec![]),
        ];
        file(&[2, 12, 12], nodes, vec![raw("w", &[3, 2, 3, 3], &numbers(1, 54)), raw("b", &[3], &numbers(2, 3))])
    };
    let (int8, worst) = far(&net(0), &meaning, Clipping::MinMax);
    assert!(worst < 1.0, "{worst} steps");
    // One zero point for both channels: between 255 * 0.48 and 255 * 0.41, less 128.
    assert_eq!((int8.input().quant.zero, int8.notes.len()), (-15, 1), "{:?}", int8.notes);
    let wrong = Bytes { mean: vec![0.1; 3], ..meaning };
    assert!(to_int8(&model(&net(0)), &[], &[Range::of(0.0, 1.0)], &wrong).is_err());
}

#[test]
fn a_batch_norm_by_itself_is_a_depthwise_convolution() {
    let one = |name, seed| raw(name, &[2], &numbers(seed, 2).iter().map(|x| 1.5 + x).collect::<Vec<_>>());
    let nodes = vec![
        node("BatchNormalization", &["x", "g", "b", "m", "v"], &["n"], vec![]),
        node("Relu", &["n"], &["y"], vec![]),
    ];
    let (int8, worst) = far(
        &file(&[2, 5, 5], nodes, vec![one("g", 1), one("b", 2), one("m", 3), one("v", 4)]),
        &Bytes::default(),
        Clipping::MinMax,
    );
    assert!(worst <= 1.5, "{worst} steps");
    assert_eq!(int8.convs().next().expect("a layer").multiplier, Some(1));
}

#[test]
fn channels_without_weights_keep_their_bias() {
    let w: Vec<f32> = numbers(1, 27).into_iter().enumerate().map(|(i, x)| if i / 9 == 1 { 0.0 } else { x }).collect();
    let nodes = vec![node("Conv", &["x", "w", "b"], &["y"], vec![])];
    let net = file(&[1, 6, 6], nodes, vec![raw("w", &[3, 1, 3, 3], &w), raw("b", &[3], &[0.0, 1.5, 300.0])]);
    let (int8, worst) = far(&net, &Bytes::default(), Clipping::MinMax);
    assert!(worst <= 1.0, "{worst} steps");
    assert!(int8.notes.iter().any(|n| n.contains("1 channels have only zeros")), "{:?}", int8.notes);
    assert!(int8.weight_factors_are_finite());
}

trait Factors {
    fn weight_factors_are_finite(&self) -> bool;
}

impl Factors for Int8Model {
    fn weight_factors_are_finite(&self) -> bool {
        self.convs().all(|c| c.weight_factors().iter().chain(&c.bias_factors()).all(|f| f.is_finite()))
    }
}
