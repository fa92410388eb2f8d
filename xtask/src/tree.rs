//! The files of the project as they lie in the work tree: tracked ones and new ones that git does not ignore.

use crate::source::Source;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One text file.
pub struct File {
    /// Path from the root, with `/`.
    pub path: String,
    /// Its contents.
    pub text: String,
    /// The contents taken apart, for Rust.
    pub source: Option<Source>,
    /// Whether all of it is test, bench or example code.
    pub is_test: bool,
}

impl File {
    /// A file with these contents.
    pub fn new(path: &str, text: String) -> File {
        let source = path.ends_with(".rs").then(|| Source::new(&text));
        let is_test = ["tests", "benches", "examples"].iter().any(|dir| path.split('/').any(|part| part == *dir));
        File { path: path.to_string(), text, source, is_test }
    }

    /// Whether the place belongs to tests.
    pub fn is_test_at(&self, at: usize) -> bool {
        self.is_test || self.source.as_ref().is_some_and(|s| s.is_test(at))
    }
}

/// All files.
pub struct Tree {
    /// The folder of the workspace.
    pub root: PathBuf,
    /// Text files, by path.
    pub files: Vec<File>,
    /// Every file with its size in bytes, text or not.
    pub sizes: Vec<(String, u64)>,
}

impl Tree {
    /// Reads the tree around this program.
    ///
    /// # Errors
    /// Git cannot be asked, or a file cannot be read.
    pub fn read() -> Result<Tree, String> {
        let root = root();
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(&root)
            .output()
            .map_err(|e| format!("git is needed to list the files: {e}"))?;
        if !listed.status.success() {
            return Err(format!("git ls-files failed: {}", String::from_utf8_lossy(&listed.stderr).trim()));
        }
        let names = String::from_utf8_lossy(&listed.stdout).into_owned();
        let mut tree = Tree { root, files: Vec::new(), sizes: Vec::new() };
        for path in names.split('\0').filter(|p| !p.is_empty()).collect::<BTreeSet<_>>() {
            // A file that was deleted but not yet staged is still listed.
            let Ok(bytes) = std::fs::read(tree.root.join(path)) else { continue };
            tree.sizes.push((path.to_string(), bytes.len() as u64));
            if let Ok(text) = String::from_utf8(bytes) {
                tree.files.push(File::new(path, text));
            }
        }
        Ok(tree)
    }

    /// A tree of these files, for tests of the rules.
    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Tree {
        let files: Vec<File> = files.iter().map(|(path, text)| File::new(path, text.to_string())).collect();
        Tree {
            root: PathBuf::new(),
            sizes: files.iter().map(|f| (f.path.clone(), f.text.len() as u64)).collect(),
            files,
        }
    }

    /// The file of this path.
    pub fn find(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|f| f.path == path)
    }

    /// The Rust files with their parts.
    pub fn rust(&self) -> impl Iterator<Item = (&File, &Source)> {
        self.files.iter().filter_map(|f| f.source.as_ref().map(|s| (f, s)))
    }
}

/// The folder of the workspace.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Invariant: this package is a folder of the workspace.
    here.parent().expect("xtask lies in the workspace").to_path_buf()
}
