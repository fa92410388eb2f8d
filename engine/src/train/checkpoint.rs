//! Checkpoints: everything that a run changes, in one file that is there whole or not at all.
//!
//! Layout: magic, version, length and JSON of a [`Header`], then the tensors in the header's order, then the CRC-32
//! of all before it. The file is written beside the old one, synced and renamed over it, so that a kill or a power
//! loss leaves the old or the new one.

use crate::files::{FileError, ReadAt, write_atomic};
use crate::runner::{RunError, Runner, common_states};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use tinyforge_plan::encode::crc32_more;
use tinyforge_plan::{Plan, Stored, StoredKind, Tensor, part_of};

const MAGIC: &[u8; 8] = b"TFCKPT01";
/// The longest header that is read.
const HEADER_BYTES_MAX: u64 = 64 << 20;
/// Bytes that are read at one time to check a file.
const CHUNK_BYTES: usize = 1 << 20;

/// Where a run stands.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Tokens with a label seen so far.
    pub trained_tokens: u64,
    /// Tokens seen so far, padding not counted.
    pub seen_tokens: u64,
    /// Active phase of the run.
    pub phase: u64,
    /// Steps of the active phase since its state was new.
    pub phase_step: u64,
    /// Lowest validation loss so far, as bits, so that it comes back exactly.
    pub best_valid_bits: Option<u64>,
}

/// A tensor in a checkpoint.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Item {
    name: String,
    dtype: String,
    shape: Vec<u32>,
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Header {
    progress: Progress,
    /// What the run was asked for: a checkpoint fits no other.
    run: String,
    tensors: Vec<Item>,
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Reading or writing failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The work file cannot be written.
    #[error(transparent)]
    Run(#[from] Box<RunError>),
    /// The file is no checkpoint, or damaged.
    #[error("{path}: {why}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
}

fn damaged(path: &Path, why: impl ToString) -> CheckpointError {
    CheckpointError::Damaged { path: path.display().to_string(), why: why.to_string() }
}

/// A tensor that is saved, at its place or, where it is stored in parts, places.
#[derive(Clone, PartialEq, Debug)]
pub struct Saved {
    /// The name of the whole.
    pub name: String,
    /// The parts, in order: rows of the whole.
    pub parts: Vec<Tensor>,
}

impl Saved {
    fn item(&self) -> Item {
        let mut shape = self.parts[0].shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows = self.parts.iter().map(|t| t.shape[0]).sum();
        }
        let bytes = self.parts.iter().map(Tensor::bytes).sum();
        Item { name: self.name.clone(), dtype: self.parts[0].dtype.name().to_string(), shape, bytes }
    }
}

/// What is saved of a run: every weight and common state that some phase changes, and the active phase's own states,
/// each at its place, in order of name. It is the same for every budget and window.
pub fn tensors<'a>(plans: impl Iterator<Item = &'a Plan> + Clone, active: usize) -> Vec<Saved> {
    let mut found: Vec<((&str, u32), &Tensor)> = Vec::new();
    let common: BTreeSet<&str> = common_states(plans.clone()).map(|s| s.name.as_str()).collect();
    for (i, plan) in plans.enumerate() {
        let shared = |s: &&Stored| s.kind == StoredKind::Weight || common.contains(s.name.as_str());
        let lasts = |s: &&Stored| s.changes && !s.is_gradient_sum() && !s.is_spilled();
        let saved = plan.stored.iter().filter(lasts).filter(|s| i == active || shared(s));
        found.extend(saved.map(|s| (part_of(&s.name).unwrap_or((&s.name, 0)), &s.tensor)));
    }
    found.sort_by_key(|&(part, _)| part);
    found.dedup_by_key(|&mut (part, _)| part);
    let whole = found.chunk_by(|(a, _), (b, _)| a.0 == b.0);
    let saved = |parts: &[((&str, u32), &Tensor)]| Saved {
        name: parts[0].0.0.to_string(),
        parts: parts.iter().map(|&(_, t)| t.clone()).collect(),
    };
    whole.map(saved).collect()
}

/// Writes a checkpoint of these tensors.
///
/// # Errors
/// The disk is full or the folder cannot be written; an older checkpoint is as it was.
pub fn save(
    path: &Path,
    run: &str,
    progress: &Progress,
    list: &[Saved],
    runner: &mut Runner,
) -> Result<(), CheckpointError> {
    let tensors = list.iter().map(Saved::item).collect();
    let header = Header { progress: progress.clone(), run: run.to_string(), tensors };
    let json = serde_json::to_vec(&header).map_err(|e| damaged(path, e))?;
    let result = write_atomic(path, |out| {
        let mut out = Summed { out, crc: 0 };
        out.write_all(MAGIC)?;
        out.write_all(&(json.len() as u64).to_le_bytes())?;
        out.write_all(&json)?;
        for t in list.iter().flat_map(|s| &s.parts) {
            out.write_all(runner.fetch(t).map_err(io::Error::other)?)?;
        }
        let crc = out.crc;
        out.out.write_all(&crc.to_le_bytes())
    });
    Ok(result?)
}

struct Summed<'a> {
    out: &'a mut dyn Write,
    crc: u32,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.crc = crc32_more(self.crc, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A checkpoint that was opened and checked.
pub struct Checkpoint {
    file: ReadAt,
    header: Header,
    data: u64,
}

/// Opens a checkpoint and checks every byte of it.
///
/// # Errors
/// It is not there, cut off or damaged.
pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let file = ReadAt::open(path)?;
    let mut first = [0; 16];
    if file.len() < 20 {
        return Err(damaged(path, "the file is too short for a checkpoint"));
    }
    file.read(0, &mut first)?;
    let (magic, len) = first.split_at(8);
    let len = u64::from_le_bytes(len.try_into().expect("eight bytes"));
    if magic != MAGIC {
        return Err(damaged(path, "this is no checkpoint"));
    }
    if len > HEADER_BYTES_MAX.min(file.len() - 20) {
        return Err(damaged(path, "the header is longer than the file"));
    }
    let mut json = vec![0; len as usize];
    file.read(16, &mut json)?;
    let header: Header = serde_json::from_slice(&json).map_err(|e| damaged(path, e))?;
    let data = 16 + len;
    let total = header.tensors.iter().try_fold(data, |sum, t| sum.checked_add(t.bytes));
    if total.and_then(|t| t.checked_add(4)) != Some(file.len()) {
        return Err(damaged(path, "the file is cut off or has been changed"));
    }
    check_sum(&file, path)?;
    Ok(Checkpoint { file, header, data })
}

fn check_sum(file: &ReadAt, path: &Path) -> Result<(), CheckpointError> {
    let (end, mut at, mut crc) = (file.len() - 4, 0, 0);
    let mut chunk = vec![0; CHUNK_BYTES];
    while at < end {
        let n = CHUNK_BYTES.min((end - at) as usize);
        file.read(at, &mut chunk[..n])?;
        crc = crc32_more(crc, &chunk[..n]);
        at += n as u64;
    }
    let mut wanted = [0; 4];
    file.read(end, &mut wanted)?;
    if crc == u32::from_le_bytes(wanted) { Ok(()) } else { Err(damaged(path, "the checksum does not match")) }
}

impl Checkpoint {
    /// Where the run stood.
    pub fn progress(&self) -> &Progress {
        &self.header.progress
    }

    /// Name, storage and shape of every tensor.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &str, &[u32])> {
        self.header.tensors.iter().map(|t| (t.name.as_str(), t.dtype.as_str(), &t.shape[..]))
    }

    /// What the run was asked for.
    pub fn run(&self) -> &str {
        &self.header.run
    }

    /// Reads the tensors to their places.
    ///
    /// # Errors
    /// The checkpoint is of another plan, or reading failed.
    pub fn restore(&self, list: &[Saved], runner: &mut Runner) -> Result<(), CheckpointError> {
        let path = self.file.path();
        if self.header.tensors.len() != list.len() {
            let why = format!("it holds {} tensors, the run changes {}", self.header.tensors.len(), list.len());
            return Err(damaged(path, why));
        }
        let mut at = self.data;
        for (item, saved) in self.header.tensors.iter().zip(list) {
            if *item != saved.item() {
                return Err(damaged(path, format!("it holds `{}` where the run has `{}`", item.name, saved.name)));
            }
            for t in &saved.parts {
                runner.change(t, |bytes| self.file.read(at, bytes)).map_err(Box::new)??;
                at += t.bytes();
            }
        }
        Ok(())
    }
}
