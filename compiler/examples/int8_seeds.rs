//! Writes the small TFLite files of the tests, for peers to read: `int8_seeds DIR`.

#[expect(dead_code, reason = "shared with tests that use more of it")]
#[path = "../tests/tflite_file/mod.rs"]
mod tflite_file;

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let models = [
        ("small", tflite_file::small()),
        ("everything", tflite_file::everything()),
        ("residual", tflite_file::residual()),
        ("ties", tflite_file::ties()),
        ("between_floats", tflite_file::between_floats()),
    ];
    for (name, model) in models {
        std::fs::write(format!("{folder}/{name}.tflite"), model.bytes())?;
    }
    Ok(())
}
