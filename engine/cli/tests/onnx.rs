//! Float ONNX networks on the command line: inspected, quantised, simulated, compiled.

#[expect(dead_code, reason = "shared with the importer's own tests, which use more of it")]
#[path = "../../../compiler/tests/onnx_file/mod.rs"]
mod onnx_file;

use std::path::{Path, PathBuf};
use std::process::Command;
use tinyforge_compiler::import::onnx;
use tinyforge_compiler::ir::graph::Kind;
use tinyforge_compiler::ir::ops::Tensor;
use tinyforge_compiler::ir::reference::Memory;

/// Samples of the small network: 8 x 6 x 2.
const ELEMS: usize = 96;
const SAMPLES: usize = 64;

/// A folder with the network, samples, and labels: the classes that the float network names by its definition.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that is left among temporary ones harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("tinyforge-onnx-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        // Dark to light, and one channel darker the further the other is lighter, under noise.
        let level = |k: usize, channel: usize| {
            let (a, b) = ((k % 8) as f32 / 4.0 - 0.9, (k / 8) as f32 / 4.0 - 0.9);
            0.8 * if channel == 0 { a } else { b }
        };
        let noise = onnx_file::numbers(77, SAMPLES * ELEMS);
        let pixel = |(i, x): (usize, &f32)| ((level(i / ELEMS, i % 2) + 0.2 * x).clamp(-1.0, 1.0) * 127.9) as i8;
        let samples: Vec<i8> = noise.iter().enumerate().map(pixel).collect();
        let bytes = balanced(&samples);
        let labels: Vec<u8> = samples.chunks(ELEMS).map(|s| class(&bytes, s)).collect();
        assert!((0..3).all(|class| labels.contains(&class)), "not every class is named: {labels:?}");
        let raw: Vec<u8> = samples.iter().map(|&b| b as u8).collect();
        for (name, bytes) in [("net.onnx", &bytes), ("samples.bin", &raw), ("labels.bin", &labels)] {
            std::fs::write(folder.join(name), bytes).expect("the folder takes files");
        }
        Folder(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    /// Exit code, stdout and stderr of a command; `@name` is a file of the folder.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let args = args.iter().map(|a| a.strip_prefix('@').map_or_else(|| (*a).to_owned(), |name| self.path(name)));
        let out = Command::new(env!("CARGO_BIN_EXE_tinyforge")).args(args).output().expect("the command runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status.code().unwrap_or(-1), text(&out.stdout), text(&out.stderr))
    }
}

/// The small network with a bias of its last layer that makes every class as likely as the others.
fn balanced(samples: &[i8]) -> Vec<u8> {
    let mut file = onnx_file::small();
    let bytes = file.bytes();
    let all: Vec<Vec<f64>> = samples.chunks(ELEMS).map(|s| shares(&bytes, s)).collect();
    let mean = |class: usize| all.iter().map(|y| y[class].max(1e-300).ln()).sum::<f64>() / all.len() as f64;
    let bias: Vec<f32> = onnx_file::numbers(9, 3).iter().enumerate().map(|(k, b)| b - mean(k) as f32).collect();
    file.constants.pop();
    file.constants.push(onnx_file::raw("b2", &[3], &bias));
    file.bytes()
}

/// The float network's class of a sample.
fn class(bytes: &[u8], sample: &[i8]) -> u8 {
    let y = shares(bytes, sample);
    (0..y.len()).fold(0, |best, i| if y[i] > y[best] { i } else { best }) as u8
}

/// The softmax that the float network makes of a sample `[H,W,C]` of pixels less 128, which it takes as 0..1.
fn shares(bytes: &[u8], sample: &[i8]) -> Vec<f64> {
    let model = onnx::import(bytes, "net.onnx", &|_| None, 1).expect("a model");
    let graph = &model.graph;
    let memory = Memory::run(graph, |v| match graph.info(v).decl {
        Some(Kind::Input) => {
            let mut x = Tensor::zeros(graph.ty(v));
            let pixel = |i: usize| (f64::from(sample[i % 48 * 2 + i / 48]) + 128.0) / 255.0;
            x.data.iter_mut().enumerate().for_each(|(i, x)| *x = pixel(i));
            x
        }
        _ => model.contents(v, &[bytes.to_vec()]).expect("a weight has contents"),
    });
    memory.get(graph.result("output").expect("a result")).data.clone()
}

fn number(stdout: &str, key: &str) -> f64 {
    let json = stdout.lines().last().unwrap_or_default();
    let value: serde_json::Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{json}: {e}"));
    value[key].as_f64().unwrap_or_else(|| panic!("no {key} in {json}"))
}

#[test]
fn int8_names_what_float_names() {
    let folder = Folder::new("accuracy");
    let data =
        ["--data", "@samples.bin", "--labels", "@labels.bin", "--test", "@samples.bin", "--test-labels", "@labels.bin"];
    for ranges in ["min-max", "mse", "percentile"] {
        let args = [&["simulate", "@net.onnx", "--epochs", "0", "--json", "--ranges", ranges], &data[..]].concat();
        let (code, stdout, stderr) = folder.run(&args);
        assert_eq!(code, 0, "{stderr}");
        assert!(stderr.contains("quantised with 64 samples"), "{stderr}");
        // The engine's float network is the definition's.
        assert_eq!(number(&stdout, "accuracy_float"), 1.0);
        let int8 = number(&stdout, "accuracy");
        assert!(int8 > 0.9, "{ranges}: {int8}");
    }
    // Another meaning of the pixels is another network.
    let args = [&["simulate", "@net.onnx", "--epochs", "0", "--json", "--input-mean", "0.9,-0.9"], &data[..]].concat();
    assert!(number(&folder.run(&args).1, "accuracy_float") < 1.0);
    // A new head learns.
    let args = [
        &["simulate", "@net.onnx", "--epochs", "6", "--json", "--classes", "3", "--scheme", "full", "--lr", "0.02"],
        &data[..],
    ]
    .concat();
    let (code, stdout, stderr) = folder.run(&args);
    assert_eq!(code, 0, "{stderr}");
    assert!(number(&stdout, "accuracy") > number(&stdout, "accuracy_before"), "{stdout}");
}

#[test]
fn code_comes_of_it() {
    let folder = Folder::new("compile");
    let args =
        ["compile", "@net.onnx", "--calibrate", "@samples.bin", "--scheme", "full", "--emit", "rust", "-o", "@out"];
    let (code, stdout, stderr) = folder.run(&args);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("sram"), "{stdout}");
    let written = std::fs::read_to_string(Path::new(&folder.path("out")).join("model.rs")).expect("code");
    assert!(written.contains("depthwise"), "the code calls kernels by name");
    // The same samples give the same bytes.
    let again = [&args[..args.len() - 1], &["@again"]].concat();
    folder.run(&again);
    for name in ["model.rs", "flash.bin", "start.bin"] {
        let read = |of: &str| std::fs::read(Path::new(&folder.path(of)).join(name)).expect("a file");
        assert_eq!(read("out"), read("again"), "{name}");
    }
}

#[test]
fn what_is_missing_or_wrong_is_said() {
    let folder = Folder::new("errors");
    std::fs::write(folder.path("swish.onnx"), swish()).expect("a file");
    for (args, why) in [
        (vec!["compile", "@net.onnx"], "--calibrate DIR"),
        (vec!["compile", "@net.onnx", "--calibrate", "@labels.bin"], "are not whole samples of 8 x 6 x 2"),
        (vec!["compile", "@net.onnx", "--calibrate", "@samples.bin", "--calibrate-samples", "0"], "at least 1"),
        (
            vec!["compile", "@net.onnx", "--calibrate", "@samples.bin", "--input-std", "1,2,3"],
            "one for each of 2 channels",
        ),
        (vec!["compile", "@net.onnx", "--calibrate", "@samples.bin", "--input-std", "0"], "must be finite"),
        (vec!["compile", "@swish.onnx", "--calibrate", "@samples.bin"], "node 0 (HardSwish `the_y`)"),
        (vec!["inspect", "@swish.onnx"], "node 0 (HardSwish `the_y`)"),
    ] {
        let (code, _, stderr) = folder.run(&args);
        assert!(code == 2 && stderr.contains(why), "{args:?}: {code} {stderr}");
    }
    let (code, stdout, stderr) = folder.run(&["inspect", "@net.onnx", "--json"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("samples of 8 x 6 x 2") && stdout.contains("can become int8: 4 values"), "{stdout}");
    assert_eq!(number(&stdout, "parameters"), 203.0);
}

fn swish() -> Vec<u8> {
    let nodes = vec![onnx_file::node("HardSwish", &["x"], &["y"], vec![])];
    let input = onnx_file::input("x", &[None, Some(2), Some(8), Some(6)]);
    onnx_file::File { input, nodes, constants: vec![], output: "y" }.bytes()
}
