//! A C program with a compiled network as a static library: one run of Cargo, one of the C compiler, and it learns.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tinyforge_build::{Build, CSettings, Emit};

/// Trains on stripes and on a checkerboard, tests, and compares what the header says with what the library says.
const PROGRAM: &str = r#"
#include <stdio.h>
#include "model.h"

_Static_assert(TINYFORGE_MODEL_INPUT_LEN == 16 * 16 * 3, "the example's images");
static int8_t image[TINYFORGE_MODEL_INPUT_LEN];

static int32_t draw(uint32_t index, int8_t *to) {
    uint32_t state = index * 2654435761u;
    int32_t label = (int32_t)(index % 2);
    for (uint32_t i = 0; i < TINYFORGE_MODEL_INPUT_LEN; i++) {
        uint32_t x = i / 3 % TINYFORGE_MODEL_INPUT_WIDTH, y = i / 3 / TINYFORGE_MODEL_INPUT_WIDTH;
        uint32_t is_light = label == 0 ? x / 2 % 2 : (x / 2 + y / 2) % 2;
        state = state * 1664525u + 1013904223u;
        to[i] = (int8_t)((is_light ? 60 : -60) + (int32_t)(state >> 27));
    }
    return label;
}

static int right(void) {
    int right = 0;
    for (uint32_t i = 0; i < 50; i++) {
        uint16_t found = 0;
        int32_t label = draw(100000 + i, tinyforge_input());
        right += tinyforge_infer(NULL, &found) == TINYFORGE_OK && found == label;
    }
    return right;
}

int main(void) {
    struct tinyforge_counters counters;
    if (tinyforge_input_len != TINYFORGE_MODEL_INPUT_LEN || tinyforge_classes != TINYFORGE_MODEL_CLASSES ||
        tinyforge_batch != TINYFORGE_MODEL_BATCH || tinyforge_write_bytes != TINYFORGE_MODEL_WRITE_BYTES ||
        tinyforge_erase_bytes != TINYFORGE_MODEL_ERASE_BYTES) {
        return 2;
    }
    if (tinyforge_start(1, 0.01f, 0.005f) != TINYFORGE_OK) {
        return 3;
    }
    int before = right();
    for (uint32_t i = 0; i < 200; i++) {
        int32_t label = draw(i, image);
        if (tinyforge_train(image, label, NULL) != TINYFORGE_OK) {
            return 4;
        }
    }
    if (tinyforge_counters(&counters) != TINYFORGE_OK || counters.steps != 200) {
        return 5;
    }
    printf("%d %d\n", before, right());
    return 0;
}
"#;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/graph-export/model/striped.json")
}

fn must(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn a_c_program_links_the_library_and_learns() {
    let compiler = std::env::var_os("CC").unwrap_or("cc".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        println!("skipped: there is no C compiler `cc`; CC names another one");
        return;
    }
    // Below the folder of this build, so that a second run finds what the first one built.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c-library");
    let settings = CSettings { units: [4, 256], ..CSettings::default() };
    let build = Build::new(model()).scheme("last:1").memory("32KiB").flash("64KiB").c(settings);
    let (_, files) = build.write(&[Emit::C], &folder).expect("the network fits");
    assert_eq!(files.len(), 7);
    // The versions that the workspace has: nothing is fetched.
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock");
    std::fs::copy(lock, folder.join("Cargo.lock")).expect("the lock file can be copied");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--release", "--offline", "--quiet", "--target-dir"]).arg(folder.join("target"));
    // Flags of this run are not the library's.
    cargo.current_dir(&folder).env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    must(&mut cargo);
    std::fs::write(folder.join("main.c"), PROGRAM).expect("the folder takes a file");
    let program = folder.join("main");
    let mut cc = Command::new(&compiler);
    cc.args(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror"]).arg("-I").arg(folder.join("include"));
    cc.arg(folder.join("main.c")).arg(folder.join("target/release/libmodel.a")).arg("-o").arg(&program);
    must(&mut cc);
    let said = String::from_utf8_lossy(&must(&mut Command::new(&program)).stdout).into_owned();
    let numbers: Vec<u32> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [before, after] = numbers[..] else { panic!("{said}") };
    assert!(before < 40 && after > 45, "{before} of 50 right before, {after} after");
}

#[test]
fn a_runtime_that_is_not_there_is_named() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c-nowhere");
    let settings = CSettings { runtime: PathBuf::from("/nowhere/firmware"), units: [4, 256] };
    let refused = Build::new(model()).c(settings).write(&[Emit::C], &folder).err().map(|e| e.to_string());
    assert!(refused.is_some_and(|e| e.contains("/nowhere/firmware") && e.contains("--runtime")));
    assert!(!folder.exists());
}
