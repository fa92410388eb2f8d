//! P6, malformed input of any kind: one clear error, exit code 1 or 2, no panic, and what was there before intact.

mod made;

use made::{Llama, Ran, SMALL, Scratch, arg, program, run, write_tensors, write_text};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A model, data, and an output folder that holds an earlier run.
struct Desk {
    scratch: Scratch,
    earlier: BTreeMap<PathBuf, Vec<u8>>,
    /// What was not as it must be.
    faults: Vec<String>,
}

/// Rows of the table: what is wrong, and how it is made.
type Case = (&'static str, Box<dyn Fn(&Path)>);

fn case(what: &'static str, make: impl Fn(&Path) + 'static) -> Case {
    (what, Box::new(make))
}

fn files(folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.insert(path.clone(), std::fs::read(&path).expect("a file"));
        }
    }
}

impl Desk {
    fn new(name: &str) -> Desk {
        let scratch = Scratch::new(name);
        SMALL.write(&scratch.join("model"));
        write_text(&scratch.join("text.txt"), 2000);
        let mut desk = Desk { scratch, earlier: BTreeMap::new(), faults: Vec::new() };
        desk.train(&[]).ok();
        files(&desk.path("out"), &mut desk.earlier);
        assert!(desk.earlier.len() >= 6, "{:?}", desk.earlier.keys());
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// Trains with flags of which the later win.
    fn train(&self, flags: &[&str]) -> Ran {
        let paths = ["model", "text.txt", "out"].map(|name| self.path(name));
        let [model, text, out] = paths.each_ref().map(|p| arg(p));
        let given = ["--data", text, "--out", out, "--scheme", "bias", "--seq", "16", "--steps", "1", "--threads", "1"];
        let is_model = flags.first().is_some_and(|f| !f.starts_with("--"));
        let (model, flags) = if is_model { (flags[0], &flags[1..]) } else { (model, flags) };
        let kept = given.chunks(2).filter(|pair| !flags.contains(&pair[0])).flatten();
        run(["train", model].iter().chain(kept).chain(flags))
    }

    /// A run that must fail with one clear error, in time, and leave the earlier run as it was; what is not so is
    /// noted.
    fn refused(&mut self, what: &str, attempt: impl FnOnce(&Desk) -> Ran) -> Ran {
        let started = Instant::now();
        let ran = attempt(self);
        let errors = ran.stderr.lines().filter(|l| l.starts_with("error:")).count();
        let message = ran.stderr.split("error:").nth(1).unwrap_or_default().trim();
        let mut now = BTreeMap::new();
        files(&self.path("out"), &mut now);
        // Rows are made again when they are needed.
        let is_cache = |path: &Path| path.extension().is_some_and(|e| e == "rows");
        let is_changed = |(path, bytes): &(&PathBuf, &Vec<u8>)| !is_cache(path) && now.get(*path) != Some(*bytes);
        let changed: Vec<_> = self.earlier.iter().filter(is_changed).map(|(path, _)| path).collect();
        let new: Vec<_> = now.keys().filter(|p| !self.earlier.contains_key(*p)).collect();
        let checks = [
            (matches!(ran.code, Some(1 | 2)), "its exit code is neither 1 nor 2".to_string()),
            (errors == 1, format!("there are {errors} errors")),
            (message.len() > 15, "the error says too little".to_string()),
            (!ran.stderr.contains("panicked"), "it panicked".to_string()),
            (started.elapsed() < Duration::from_secs(60), format!("it took {:?}", started.elapsed())),
            (changed.is_empty(), format!("{changed:?} are not as they were")),
            (new.is_empty(), format!("{new:?} are left behind")),
        ];
        for (holds, fault) in checks {
            if !holds {
                self.faults.push(format!("{what}: {fault}: {ran:?}"));
            }
        }
        new.into_iter().for_each(|path| std::fs::remove_file(path).expect("removed"));
        ran
    }

    /// Refuses every kind of damage to a copy of the model, in training; two other commands may do with what is left.
    fn refuses_models(&mut self, cases: Vec<Case>) {
        for (what, make) in cases {
            let damaged = self.path("damaged");
            let _ = std::fs::remove_dir_all(&damaged);
            copy(&self.path("model"), &damaged);
            make(&damaged);
            self.refused(what, |desk| desk.train(&[arg(&damaged), "--overwrite"]));
            for command in ["plan", "inspect"] {
                let ran = run([command, arg(&damaged)]);
                if ran.code.is_none_or(|code| code > 2) {
                    self.faults.push(format!("{command} {what}: {ran:?}"));
                }
            }
        }
    }

    /// Refuses every kind of bad data in a file of this name.
    fn refuses_data(&mut self, name: &str, cases: &[(&str, &[u8])]) {
        let (data, model) = (self.path(name), self.path("model"));
        for (what, bytes) in cases {
            std::fs::write(&data, bytes).expect("written");
            self.refused(what, |desk| desk.train(&["--data", arg(&data), "--overwrite"]));
            self.refused(what, |_| run(["inspect", arg(&data), "--model", arg(&model), "--seq", "16"]));
            self.refused(what, |_| run(["eval", arg(&model), "--data", arg(&data), "--seq", "16"]));
        }
    }

    /// Fails with all that was noted.
    #[track_caller]
    fn done(self) {
        assert!(self.faults.is_empty(), "{} faults:\n{}", self.faults.len(), self.faults.join("\n"));
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
    }
}

/// Replaces a text in a file, which must be there.
fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).expect("text");
    assert!(text.contains(from), "{} has no {from}", path.display());
    std::fs::write(path, text.replacen(from, to, 1)).expect("written");
}

fn cut(path: &Path, len: impl Fn(usize) -> usize) {
    let bytes = std::fs::read(path).expect("a file");
    std::fs::write(path, &bytes[..len(bytes.len())]).expect("written");
}

/// Writes a safetensors file with this header and so many zero bytes behind it.
fn with_header(path: &Path, header: &str, bytes: usize) {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + bytes, 0);
    std::fs::write(path, file).expect("written");
}

/// Puts a value over the first element of the last tensor.
fn poke(path: &Path, value: f32) {
    let mut bytes = std::fs::read(path).expect("a file");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&value.to_le_bytes());
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn safetensors() {
    const NAME: &str = "model.safetensors";
    let header = |what: &'static str, text: String, bytes: usize| {
        case(what, move |dir| with_header(&dir.join(NAME), &text, bytes))
    };
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let cases = vec![
        case("no file", |dir| std::fs::remove_file(dir.join(NAME)).expect("removed")),
        case("empty", |dir| cut(&dir.join(NAME), |_| 0)),
        case("seven bytes", |dir| cut(&dir.join(NAME), |_| 7)),
        case("cut in the header", |dir| cut(&dir.join(NAME), |_| 300)),
        case("cut in the last tensor", |dir| cut(&dir.join(NAME), |len| len - 1)),
        case("a byte too many", |dir| {
            let bytes = std::fs::read(dir.join(NAME)).expect("a file");
            std::fs::write(dir.join(NAME), [&bytes[..], &[0]].concat()).expect("written");
        }),
        case("a header as long as can be", |dir| {
            let mut bytes = std::fs::read(dir.join(NAME)).expect("a file");
            bytes[..8].fill(0xFF);
            std::fs::write(dir.join(NAME), bytes).expect("written");
        }),
        header("no JSON", "{\"a\":".to_string(), 8),
        header("a list", "[]".to_string(), 8),
        header("deep", deep, 8),
        header("no UTF-8", "{\"\u{0}\": 3}".to_string(), 8),
        header("no tensors", "{}".to_string(), 0),
        header(
            "an end before the start",
            r#"{"model.norm.weight":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#.to_string(),
            8,
        ),
        header(
            "a tensor past the end",
            r#"{"model.norm.weight":{"dtype":"F32","shape":[32],"data_offsets":[0,18446744073709551615]}}"#.to_string(),
            8,
        ),
        header(
            "a shape that overflows",
            r#"{"model.norm.weight":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}"#
                .to_string(),
            8,
        ),
        header(
            "an unknown dtype",
            r#"{"model.norm.weight":{"dtype":"F13","shape":[2],"data_offsets":[0,8]}}"#.to_string(),
            8,
        ),
        header(
            "two tensors in one place",
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,8]}}"#
                .to_string(),
            8,
        ),
        case("a tensor is missing", |dir| {
            let mut tensors = SMALL.tensors();
            tensors.retain(|t| t.name != "model.layers.1.mlp.up_proj.weight");
            write_tensors(&dir.join(NAME), &tensors);
        }),
        case("a tensor of another shape", |dir| {
            let mut tensors = SMALL.tensors();
            tensors.iter_mut().filter(|t| t.name.ends_with("down_proj.weight")).for_each(|t| t.shape.reverse());
            write_tensors(&dir.join(NAME), &tensors);
        }),
        case("a vector for a matrix", |dir| {
            let mut tensors = SMALL.tensors();
            tensors[1].shape = vec![1, 32];
            write_tensors(&dir.join(NAME), &tensors);
        }),
        case("NaN", |dir| poke(&dir.join(NAME), f32::NAN)),
        case("infinity", |dir| poke(&dir.join(NAME), f32::INFINITY)),
        case("an index that leaves the folder", |dir| {
            let index = r#"{"weight_map": {"model.norm.weight": "../model/model.safetensors"}}"#;
            std::fs::write(dir.join("model.safetensors.index.json"), index).expect("written");
        }),
        case("an index of a file that is not there", |dir| {
            let index = r#"{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}"#;
            std::fs::write(dir.join("model.safetensors.index.json"), index).expect("written");
        }),
        case("an index that is no JSON", |dir| {
            std::fs::write(dir.join("model.safetensors.index.json"), "{").expect("written");
        }),
        case("a folder for the file", |dir| {
            std::fs::remove_file(dir.join(NAME)).expect("removed");
            std::fs::create_dir(dir.join(NAME)).expect("a folder");
        }),
    ];
    let mut desk = Desk::new("bad-safetensors");
    desk.refuses_models(cases);
    desk.done();
}

#[test]
fn configurations_and_tokenizers() {
    let config = |what: &'static str, from: &'static str, to: &'static str| {
        case(what, move |dir| edit(&dir.join("config.json"), from, to))
    };
    let replace = |what: &'static str, name: &'static str, bytes: Vec<u8>| {
        case(what, move |dir| std::fs::write(dir.join(name), &bytes).expect("written"))
    };
    let deep = format!("{{\"hidden_size\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes();
    let cases = vec![
        case("no configuration", |dir| std::fs::remove_file(dir.join("config.json")).expect("removed")),
        replace("an empty configuration", "config.json", Vec::new()),
        replace("a configuration that is no JSON", "config.json", b"hidden_size = 32".to_vec()),
        replace("a configuration that is a list", "config.json", b"[1, 2]".to_vec()),
        replace("a deep configuration", "config.json", deep),
        replace("a configuration of bytes", "config.json", vec![0xFF, 0xFE, 0, 1]),
        config("an unknown family", r#""model_type": "llama""#, r#""model_type": "parrot""#),
        config("no family", r#""model_type": "llama","#, ""),
        config("no width", r#""hidden_size": 32,"#, ""),
        config("a negative width", r#""hidden_size": 32"#, r#""hidden_size": -32"#),
        config("a width of nothing", r#""hidden_size": 32"#, r#""hidden_size": 0"#),
        config("a width past all bounds", r#""hidden_size": 32"#, r#""hidden_size": 18446744073709551615"#),
        config("a width that is text", r#""hidden_size": 32"#, r#""hidden_size": "wide""#),
        config("no heads", r#""num_attention_heads": 4"#, r#""num_attention_heads": 0"#),
        config("heads that do not divide", r#""num_key_value_heads": 2"#, r#""num_key_value_heads": 3"#),
        config("more blocks than there are", r#""num_hidden_layers": 3"#, r#""num_hidden_layers": 4"#),
        config("blocks past all bounds", r#""num_hidden_layers": 3"#, r#""num_hidden_layers": 4000000000"#),
        config("another vocabulary", r#""vocab_size": 1024"#, r#""vocab_size": 1000"#),
        config("an odd head", r#""head_dim": 8"#, r#""head_dim": 7"#),
        config("an unknown activation", r#""hidden_act": "silu""#, r#""hidden_act": "zelu""#),
        config("a context of nothing", r#""max_position_embeddings": 256"#, r#""max_position_embeddings": 0"#),
        case("no tokenizer", |dir| std::fs::remove_file(dir.join("tokenizer.json")).expect("removed")),
        case("half a tokenizer", |dir| cut(&dir.join("tokenizer.json"), |len| len / 2)),
        replace("an empty tokenizer", "tokenizer.json", Vec::new()),
        replace("a tokenizer of nothing", "tokenizer.json", b"{}".to_vec()),
        case("an unknown tokenizer", |dir| edit(&dir.join("tokenizer.json"), r#""BPE""#, r#""Guess""#)),
        replace("a chat template that does not end", "chat_template.jinja", b"{% for m in messages %}".to_vec()),
        replace("a template of bytes", "chat_template.jinja", vec![0xFF, 0xFE]),
        replace("tokenizer settings that are no JSON", "tokenizer_config.json", b"{".to_vec()),
        case("a tokenizer for a larger vocabulary", |dir| {
            Llama { vocab: 300, ..SMALL }.write(dir);
        }),
    ];
    let mut desk = Desk::new("bad-config");
    desk.refuses_models(cases);
    desk.done();
}

fn gguf_string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// The first bytes of a GGUF file: magic, version, number of tensors and of settings.
fn gguf(version: u32, tensors: u64, settings: u64, rest: &[u8]) -> Vec<u8> {
    [b"GGUF", &version.to_le_bytes()[..], &tensors.to_le_bytes(), &settings.to_le_bytes(), rest].concat()
}

#[test]
fn gguf_files() {
    let mut desk = Desk::new("bad-gguf");
    let architecture = [gguf_string("general.architecture"), vec![8, 0, 0, 0], gguf_string("llama")].concat();
    let list = |count: u64| [gguf_string("a"), vec![9, 0, 0, 0, 4, 0, 0, 0], count.to_le_bytes().to_vec()].concat();
    let nested = gguf_string("a").into_iter().chain([9, 0, 0, 0].repeat(1000)).collect::<Vec<u8>>();
    let tensor = |dims: u32, size: u64, kind: u32, offset: u64| {
        let sizes = size.to_le_bytes().repeat(dims.min(8) as usize);
        let start = [gguf_string("token_embd.weight"), dims.to_le_bytes().to_vec(), sizes].concat();
        [&start[..], &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("another format", b"PK\x03\x04 and so on and so forth".to_vec()),
        ("the magic alone", b"GGUF".to_vec()),
        ("an unknown version", gguf(99, 0, 0, &[])),
        ("a big-endian file", gguf(3 << 24, 0, 0, &[])),
        ("nothing inside", gguf(3, 0, 0, &[])),
        ("as many tensors as can be", gguf(3, u64::MAX, 0, &[0; 64])),
        ("as many settings as can be", gguf(3, 0, u64::MAX, &[0; 64])),
        ("a name as long as can be", gguf(3, 0, 1, &[0xFF; 64])),
        ("a list as long as can be", gguf(3, 0, 1, &list(u64::MAX))),
        ("a list longer than the file", gguf(3, 0, 1, &list(1 << 40))),
        ("lists of lists of lists", gguf(3, 0, 1, &nested)),
        ("settings that end", gguf(3, 0, 5, &architecture)),
        ("no tensors", gguf(3, 0, 1, &architecture)),
        ("an unknown storage", gguf(3, 1, 1, &[&architecture[..], &tensor(2, 32, 999, 0), &[0; 64]].concat())),
        ("too many dimensions", gguf(3, 1, 1, &[&architecture[..], &tensor(u32::MAX, 32, 0, 0), &[0; 64]].concat())),
        ("sizes that overflow", gguf(3, 1, 1, &[&architecture[..], &tensor(4, 1 << 62, 0, 0), &[0; 64]].concat())),
        ("a tensor past the end", gguf(3, 1, 1, &[&architecture[..], &tensor(2, 32, 0, 1 << 50), &[0; 64]].concat())),
    ];
    for (what, bytes) in cases {
        let path = desk.path("model.gguf");
        std::fs::write(&path, bytes).expect("written");
        desk.refused(what, |desk| desk.train(&[arg(&path), "--overwrite"]));
        desk.refused(what, |_| run(["plan", arg(&path)]));
        desk.refused(what, |_| run(["inspect", arg(&path)]));
    }
    desk.done();
}

#[test]
fn data() {
    let mut desk = Desk::new("bad-data");
    let deep = format!("{{\"messages\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    desk.refuses_data(
        "bad.jsonl",
        &[
            ("empty", b""),
            ("white space", b"\n  \n\t\n"),
            ("no UTF-8", b"{\"text\": \"\xFF\xFE\"}\n"),
            ("no object", b"hello\n"),
            ("a list", b"[{\"text\": \"a\"}]\n"),
            ("cut off", b"{\"text\": \"a\"}\n{\"text\": \"b"),
            ("no known field", b"{\"story\": \"a\"}\n"),
            ("text that is a number", b"{\"text\": 5}\n"),
            ("two kinds", b"{\"text\": \"some words\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}\n"),
            ("deep", deep.as_bytes()),
            ("no role", b"{\"messages\": [{\"content\": \"a\"}]}\n"),
            ("no messages", b"{\"messages\": []}\n"),
            ("all rows masked", b"{\"messages\": [{\"role\": \"user\", \"content\": \"a question alone\"}]}\n"),
            ("all weights nothing", b"{\"text\": \"some words\", \"weight\": 0}\n"),
            ("a weight below nothing", b"{\"text\": \"some words\", \"weight\": -1}\n"),
            ("a weight past all bounds", b"{\"text\": \"some words\", \"weight\": 1e300}\n"),
            ("NUL", b"\0\0\0\0\0\0\0\0"),
        ],
    );
    desk.refuses_data(
        "bad.txt",
        &[("empty text", b""), ("bytes", b"a text and then \xC3\x28 not"), ("cut", b"abc\xE2\x82")],
    );
    let folder = desk.path("folder");
    std::fs::create_dir(&folder).expect("a folder");
    for (what, path) in [("a folder without data", arg(&folder)), ("no file", "/nowhere/at/all.jsonl")] {
        desk.refused(what, |desk| desk.train(&["--data", path, "--overwrite"]));
    }
    let text = desk.path("text.txt");
    desk.refused("held out twice", |desk| {
        desk.train(&["--valid", arg(&text), "--valid-fraction", "0.1", "--overwrite"])
    });
    desk.refused("held-out data that is not there", |desk| desk.train(&["--valid", "/nowhere.txt", "--overwrite"]));
    // A word of the vocabulary that the model has not.
    let small = desk.path("small");
    Llama { vocab: 300, ..SMALL }.write(&small);
    desk.refused("tokens that the model has not", |desk| desk.train(&[arg(&small), "--overwrite"]));
    desk.done();
}

#[test]
fn requests() {
    let mut desk = Desk::new("bad-request");
    let cases: Vec<&[&str]> = vec![
        &["--bogus"],
        &["--bogus", "1"],
        &["--seq", "many"],
        &["--seq", "0"],
        &["--seq", "100000"],
        &["--seq", "-4"],
        &["--batch", "0"],
        &["--host-memory", "1GiB"],
        &["--host-memory", "much"],
        &["--host-optimizer"],
        &["--host-optimizer", "maybe"],
        &["--batch", "16777216", "--seq", "256", "--micro-batch", "16777216"],
        &["--batch", "99999999999"],
        &["--batch", "16777216", "--seq", "100"],
        &["--batch", "4", "--micro-batch", "3"],
        &["--steps", "0"],
        &["--steps", "18446744073709551615"],
        &["--epochs", "-1"],
        &["--epochs", "nan"],
        &["--epochs", "1e300"],
        &["--lr", "-1"],
        &["--lr", "nan"],
        &["--lr", "inf"],
        &["--lr-floor", "2"],
        &["--decay", "sudden"],
        &["--optimizer", "magic"],
        &["--beta1", "2"],
        &["--clip", "-1"],
        &["--dtype", "f8"],
        &["--memory", "lots"],
        &["--memory", "0"],
        &["--memory", "1KiB"],
        &["--threads", "0"],
        &["--recompute", "some"],
        &["--clip-by", "luck"],
        &["--valid-fraction", "1"],
        &["--valid-fraction", "nan"],
        &["--scheme", "bogus"],
        &["--scheme", "last"],
        &["--scheme", "last:0"],
        &["--scheme", "last:-1"],
        &["--scheme", "last:99"],
        &["--scheme", "last:4294967296"],
        &["--scheme", "cycle:0"],
        &["--scheme", "cycle:99"],
        &["--scheme", "full:3"],
        &["--scheme", "lora:0"],
        &["--scheme", "lora+nonsense"],
        &["--scheme", ""],
        &["--scheme", "nowhere.toml"],
        &["--scheme", "lora", "--rank", "0"],
        &["--scheme", "lora", "--rank", "4000000000"],
        &["--scheme", "lora", "--targets", "nothing"],
        &["--scheme", "full", "--rank", "4"],
        &["--set", "nonsense"],
        &["--set", "nonsense=1"],
        &["--set", "seq=many"],
    ];
    for flags in cases {
        let what = flags.join(" ");
        let ran = desk.refused(&what, |desk| desk.train(&[flags, &["--overwrite"]].concat()));
        if ran.code != Some(2) {
            desk.faults.push(format!("{what}: a wrong request has exit code 2: {ran:?}"));
        }
    }
    for (what, name, text) in [
        ("no TOML", "a.toml", "model = "),
        ("an unknown key", "b.toml", "model = 'm'\nspeed = 3"),
        ("no model", "c.toml", "seq = 3"),
        ("a key of another type", "d.toml", "model = 'm'\nseq = 'many'"),
    ] {
        let path = desk.path(name);
        std::fs::write(&path, text).expect("written");
        desk.refused(what, |_| run(["train", arg(&path)]));
        desk.refused(what, |_| run(["plan", arg(&path)]));
    }
    for (what, text) in [
        ("a scheme of nothing", ""),
        ("an unknown scheme", "[update]\nkind = 'magic'"),
        ("a ratio past one", "[update]\nkind = 'sparse'\n[[update.weight]]\nlayer = 0\nratio = 7.0"),
        ("a tensor that is not there", "[update]\nkind = 'sparse'\n[[update.weight]]\ntensor = 'x'\nratio = 0.5"),
        ("neither tensor nor layer", "[update]\nkind = 'sparse'\n[[update.weight]]\nratio = 0.5"),
        ("an unknown key of a scheme", "[update]\nkind = 'sparse'\nspeed = 3"),
        ("more biases than blocks", "[update]\nkind = 'sparse'\nbias_last = 99"),
    ] {
        let path = desk.path("scheme.toml");
        std::fs::write(&path, text).expect("written");
        desk.refused(what, |desk| desk.train(&["--scheme", arg(&path), "--overwrite"]));
    }
    desk.done();
}

#[test]
fn commands_without_what_they_need() {
    let mut desk = Desk::new("bad-command");
    std::fs::write(desk.path("plan.bin"), b"TFPL and then nothing good").expect("written");
    std::fs::create_dir(desk.path("broken")).expect("a folder");
    std::fs::write(desk.path("broken").join("run.json"), "{\"model\": 3}").expect("written");
    // Words that begin with `@` are files of the desk.
    let cases = [
        "bogus",
        "train",
        "train @model",
        "train @model --data @text.txt",
        "train @model --out @out",
        "train /nowhere --data @text.txt --out @out --overwrite",
        "train @text.txt --data @text.txt --out @out --overwrite",
        "train @broken --data @text.txt --out @out --overwrite",
        "train @model --data @text.txt --out @out",
        "plan /nowhere",
        "plan @text.txt",
        "plan @model --emit /nowhere/plan.bin",
        "resume /nowhere",
        "resume @model",
        "resume @broken",
        "eval @model",
        "eval @model --data /nowhere.txt",
        "eval @model --data @text.txt --adapter /nowhere",
        "eval @model --data @text.txt --memory 1KiB",
        "inspect /nowhere",
        "inspect @text.txt",
        "inspect @plan.bin",
    ];
    for line in cases {
        let word = |w: &str| match w.strip_prefix('@') {
            Some(name) => arg(&desk.path(name)).to_string(),
            None => w.to_string(),
        };
        let args: Vec<String> = line.split(' ').map(word).collect();
        desk.refused(line, |_| run(args));
    }
    desk.done();
}

#[test]
fn outputs_that_cannot_be_written() {
    let mut desk = Desk::new("bad-output");
    let file = desk.path("text.txt");
    let below_a_file = file.join("out");
    desk.refused("a folder below a file", |desk| desk.train(&["--out", arg(&below_a_file)]));
    desk.refused("a file for a folder", |desk| desk.train(&["--out", arg(&file)]));
    desk.refused("a system's folder", |desk| desk.train(&["--out", "/proc/tinyforge"]));
    desk.refused("an earlier run", |desk| desk.train(&[]));
    desk.done();
}

/// Runs the program with files limited to so many blocks of 1024 bytes: that stands for a disk that is full, and writes
/// fail in the middle.
#[cfg(target_os = "linux")]
fn limited(blocks: u64, args: &[&str]) -> Ran {
    let quoted: Vec<String> = program(args).get_args().map(|a| format!("'{}'", a.to_string_lossy())).collect();
    let (name, args) = (env!("CARGO_BIN_EXE_tinyforge"), quoted.join(" "));
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec '{name}' {args}");
    Ran::of(Command::new("bash").args(["-c", &script]).output().expect("a shell"))
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let mut desk = Desk::new("bad-disk");
    let out = desk.path("full");
    let (model, text) = (desk.path("model"), desk.path("text.txt"));
    let flags = ["--scheme", "full", "--seq", "16", "--steps", "4", "--checkpoint-every", "1", "--threads", "1"];
    let args = [&["train", arg(&model), "--data", arg(&text), "--out", arg(&out)], &flags[..]].concat();
    // In blocks of 1024 bytes: no room for rows, for the first checkpoint, for the result.
    for blocks in [1, 8, 500] {
        let _ = std::fs::remove_dir_all(&out);
        let ran = desk.refused(&format!("room for {blocks} KiB"), |_| limited(blocks, &args));
        assert_eq!(ran.code, Some(1), "{ran:?}");
        let mut left = BTreeMap::new();
        files(&out, &mut left);
        let partial: Vec<_> = left.keys().filter(|p| !p.ends_with(".json")).collect();
        assert!(!out.join("checkpoint.bin").exists() && !out.join("model").exists(), "{partial:?}");
        assert!(left.values().all(|bytes| bytes.len() <= 1024 * blocks as usize));
        // With room again the run is done, from where it can be.
        let has_record = out.join("run.json").exists();
        let again = if has_record { run(["resume", arg(&out)]) } else { run(&args) };
        again.ok();
        assert!(out.join("model/model.safetensors").exists());
    }
    // A checkpoint stands; the next one does not fit.
    let _ = std::fs::remove_dir_all(&out);
    run(&args).ok();
    let before = std::fs::read(out.join("checkpoint.bin")).expect("a checkpoint");
    std::fs::remove_dir_all(out.join("model")).expect("removed");
    desk.refused("a checkpoint that does not fit", |_| limited(200, &["resume", arg(&out)]));
    assert!(std::fs::read(out.join("checkpoint.bin")).expect("it stands") == before);
    assert!(!out.join("checkpoint.partial").exists(), "half a checkpoint is left");
    desk.done();
}

/// A disk without room for the work file, and one without room for a checkpoint beside it.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_under_a_streamed_run() {
    let mut desk = Desk::new("bad-work");
    let (model, text, out) = (desk.path("model"), desk.path("text.txt"), desk.path("full"));
    let (work, checkpoint) = (out.join("work.bin"), out.join("checkpoint.bin"));
    let flags = ["--scheme", "full", "--window", "1", "--seq", "16", "--checkpoint-every", "1", "--threads", "1"];
    let data = ["train", arg(&model), "--data", arg(&text), "--out"];
    let args = [&data[..], &[arg(&out), "--steps", "4"], &flags].concat();
    let undisturbed = desk.path("undisturbed");
    run([&data[..], &[arg(&undisturbed), "--steps", "4"], &flags].concat()).ok();
    // The rows of the data fit, the work file does not: at a run's beginning, and when it goes on.
    let ran = desk.refused("no room for the work file", |_| limited(64, &args));
    let told = ran.stderr.contains("work.bin") && ran.stderr.contains("cannot reserve space for the work file");
    assert!(ran.code == Some(1) && told, "{ran:?}");
    assert!(!work.exists() && !checkpoint.exists(), "something is left");
    // Its size, of which the error tells; the first checkpoint is larger.
    let size = ran.stderr.split("work file: ").nth(1).and_then(|s| s.split(' ').next()?.parse().ok());
    let blocks = size.map(|bytes: u64| bytes.next_multiple_of(4096) / 1024).expect("the error tells the size");
    let ran = desk.refused("a block too little", |_| limited(blocks - 1, &args));
    assert!(ran.stderr.contains("work.bin") && !work.exists(), "{ran:?}");
    let ran = desk.refused("room for the work file alone", |_| limited(blocks, &args));
    assert!(ran.code == Some(1) && ran.stderr.contains("checkpoint"), "{ran:?}");
    assert!(!work.exists() && !checkpoint.exists(), "something is left");
    run(["resume", arg(&out)]).ok();
    let same = |desk: &Desk, name: &str| {
        let [a, b] = [&out, &undisturbed].map(|f| std::fs::read(f.join(name)).expect("a finished run has it"));
        assert!(a == b, "{name} is not the undisturbed run's: {:?}", desk.faults);
    };
    same(&desk, "model/model.safetensors");
    same(&desk, "checkpoint.bin");
    // A checkpoint stands, and the disk is full when its run goes on.
    for room in [64, blocks] {
        std::fs::remove_dir_all(&out).expect("removed");
        run([&data[..], &[arg(&out), "--steps", "2"], &flags].concat()).ok();
        std::fs::remove_dir_all(out.join("model")).expect("removed");
        let before = std::fs::read(&checkpoint).expect("a checkpoint");
        let ran = desk.refused(&format!("{room} KiB for going on"), |_| limited(room, &["resume", arg(&out)]));
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(std::fs::read(&checkpoint).expect("it stands") == before && !work.exists(), "{ran:?}");
        run(["resume", arg(&out)]).ok();
        assert!(out.join("model/model.safetensors").exists());
    }
    desk.done();
}

/// A device that is always full takes the place of single files.
#[cfg(target_os = "linux")]
#[test]
fn a_full_device_is_an_error() {
    let mut desk = Desk::new("bad-device");
    for name in ["data.rows.part", "checkpoint.partial", "run.partial", "model/model.partial"] {
        let out = desk.path(&format!("out-{}", name.replace('/', "-")));
        std::fs::create_dir_all(out.join(name).parent().expect("a folder")).expect("a folder");
        std::os::unix::fs::symlink("/dev/full", out.join(name)).expect("a link");
        let ran = desk.refused(name, |desk| desk.train(&["--out", arg(&out)]));
        assert_eq!(ran.code, Some(1), "{name}: {ran:?}");
        assert!(!out.join("model/model.safetensors").exists(), "{name}");
        // The way is free now: nothing is in the way of going on.
        let has_record = out.join("run.json").exists();
        let again = if has_record { run(["resume", arg(&out)]) } else { desk.train(&["--out", arg(&out)]) };
        again.ok();
    }
    desk.done();
}
