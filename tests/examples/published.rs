//! Writes what an int8 network is compiled and trained from: `published FOLDER` puts there the published networks with
//! generated weights, their schemes, and images of five kinds to learn from (`train`) and to test on (`test`).

use std::error::Error;
use std::path::PathBuf;
use tinyforge_compiler::scheme::published::PUBLISHED;
use tinyforge_tests::convnets::{MBV2, MCUNET, PROXYLESS, rows};
use tinyforge_tests::{images, published};

const SIDE: usize = 128;
/// Images a class.
const TRAINING: usize = 16;
const TEST: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: published FOLDER")?);
    std::fs::create_dir_all(&folder)?;
    for (name, table) in [("mcunet-5fps", MCUNET), ("mbv2-w0.35", MBV2), ("proxyless-w0.3", PROXYLESS)] {
        let files = published::files(&rows(table));
        std::fs::write(folder.join(format!("{name}.json")), files.json)?;
        std::fs::write(folder.join(format!("{name}.safetensors")), files.weights)?;
    }
    for row in &PUBLISHED {
        std::fs::write(folder.join(format!("{}-{}kb.toml", row.net, row.label_kib)), published::scheme(row))?;
    }
    images::write(&folder.join("train"), 0, TRAINING, SIDE)?;
    images::write(&folder.join("test"), TRAINING, TEST, SIDE)?;
    Ok(())
}
