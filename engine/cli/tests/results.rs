//! What a run leaves is the same wherever its tensors live: the model or the adapter, and the checkpoint, from which a
//! run in other parts goes on.

mod made;

use made::{Llama, Ran, Scratch, TIED, VOCAB, arg, run};
use std::path::{Path, PathBuf};

const TEXT: &str = "The tide comes in and goes out again. What is carried away comes back in parts, in order.\n";

/// A model whose embedding and head are larger than its blocks, and a text.
struct Desk {
    scratch: Scratch,
}

impl Desk {
    fn new(name: &str, tied: bool) -> Desk {
        let scratch = Scratch::new(name);
        Llama { layers: 3, vocab: 2 * VOCAB + 300, tied, ..TIED }.write(&scratch.join("model"));
        std::fs::write(scratch.join("text.txt"), TEXT.repeat(20)).expect("written");
        Desk { scratch }
    }

    fn train(&self, flags: &[&str], out: &str) -> Ran {
        let path = |name: &str| self.scratch.join(name);
        let (model, text, out) = (path("model"), path("text.txt"), path(out));
        let fixed = ["--seq", "32", "--batch", "2", "--threads", "2", "--overwrite"];
        run([&["train", arg(&model), "--data", arg(&text), "--out", arg(&out)][..], &fixed, flags].concat())
    }
}

/// The files below a folder, with their bytes.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("a file");
        found.push((path.file_name().expect("a name").into(), bytes));
    }
    found.sort();
    found
}

const PARTS: [&str; 8] = ["--window", "2", "--block-parts", "3", "--embeddings", "parts", "--gradients", "panels"];

#[test]
fn parts_leave_what_wholes_leave() {
    for tied in [true, false] {
        let desk = Desk::new("results", tied);
        for (scheme, result) in
            [("full", "model"), ("last:1", "model"), ("last:1+head", "model"), ("lora+head+embed", "adapter")]
        {
            let flags = ["--scheme", scheme, "--steps", "2", "--clip", "0.1"];
            desk.train(&flags, "whole").ok();
            desk.train(&[&flags[..], &PARTS].concat(), "parts").ok();
            let [whole, parts] = ["whole", "parts"].map(|out| desk.scratch.join(out));
            assert!(
                files(&whole.join(result)) == files(&parts.join(result)),
                "{scheme}, tied {tied}: another {result}"
            );
            let [a, b] = [&whole, &parts].map(|out| std::fs::read(out.join("checkpoint.bin")).expect("a checkpoint"));
            assert!(a == b, "{scheme}, tied {tied}: another checkpoint");
        }
    }
}
