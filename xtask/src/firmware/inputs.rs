//! What networks are compiled and trained from: files of a network, its scheme, and images.
//!
//! A published network and real images come from the folder that `TINYFORGE_ASSETS` names, where they are there;
//! otherwise the weights and the images are made here.

use super::{Bench, output};
use std::path::{Path, PathBuf};
use std::process::Command;

const FLOWERS: &str = "flowers128/flowers5_128px_train1500_test500.tar.gz";
/// Images of every class that are learnt from and tested on.
const COUNTS: [(&str, usize); 2] = [("train", 16), ("test", 2)];

/// Where everything is.
pub struct Inputs {
    made: PathBuf,
    assets: Option<PathBuf>,
    images: PathBuf,
}

impl Inputs {
    /// Makes what is made, and unpacks what is there.
    pub fn prepare(bench: &Bench) -> Result<Inputs, String> {
        let made = bench.place.join("made");
        output(Command::new(bench.host("examples/published")).arg(&made))?;
        let assets = std::env::var_os("TINYFORGE_ASSETS").map(PathBuf::from);
        let assets = assets.unwrap_or(crate::tree::root().join("../shared/assets"));
        let assets = assets.exists().then_some(assets);
        let flowers = assets.as_ref().map(|a| a.join(FLOWERS)).filter(|archive| archive.exists());
        let images = match flowers {
            Some(archive) => pick(&archive, &bench.place.join("flowers"))?,
            None => made.clone(),
        };
        Ok(Inputs { made, assets, images })
    }

    /// The structure of a network, its weights beside it, and whether they are the published ones.
    pub fn network(&self, name: &str) -> (PathBuf, bool) {
        let file = format!("{name}.json");
        let published = self.assets.as_ref().map(|a| a.join("mcu").join(&file)).filter(|path| path.exists());
        match published {
            Some(path) => (path, true),
            None => (self.made.join(file), false),
        }
    }

    /// A scheme: the file of a published one, whose name is its label, or the name as it is.
    pub fn scheme(&self, network: &str, name: &str) -> String {
        let file = self.made.join(format!("{network}-{name}.toml"));
        if file.exists() { file.display().to_string() } else { name.to_string() }
    }

    /// The folders of images to learn from and to test on.
    pub fn images(&self) -> [PathBuf; 2] {
        COUNTS.map(|(part, _)| self.images.join(part))
    }

    /// What the images are, in a word.
    pub fn images_name(&self) -> &str {
        if self.images == self.made { "patterns" } else { "flowers" }
    }
}

/// Unpacks an archive of images and links the first of every class into folders of their own.
fn pick(archive: &Path, to: &Path) -> Result<PathBuf, String> {
    let failed = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    let _ = std::fs::remove_dir_all(to);
    let all = to.join("all");
    std::fs::create_dir_all(&all).map_err(|e| failed(&all, e))?;
    output(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(&all))?;
    for (part, count) in COUNTS {
        let from = find(&all, part).ok_or_else(|| format!("{} has no folder `{part}`", archive.display()))?;
        for class in entries(&from)?.into_iter().filter(|class| class.is_dir()) {
            let folder = to.join(part).join(class.file_name().unwrap_or_default());
            std::fs::create_dir_all(&folder).map_err(|e| failed(&folder, e))?;
            for image in entries(&class)?.into_iter().take(count) {
                let copy = folder.join(image.file_name().unwrap_or_default());
                std::fs::copy(&image, &copy).map_err(|e| failed(&copy, e))?;
            }
        }
    }
    Ok(to.to_path_buf())
}

/// The first folder of this name at or below `folder`.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let inside: Vec<PathBuf> = entries(folder).ok()?.into_iter().filter(|path| path.is_dir()).collect();
    let here = inside.iter().find(|path| path.file_name().is_some_and(|n| n == name)).cloned();
    here.or_else(|| inside.iter().find_map(|path| find(path, name)))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", folder.display());
    let all = std::fs::read_dir(folder).map_err(failed)?;
    let mut paths = all.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    paths.sort();
    Ok(paths)
}
