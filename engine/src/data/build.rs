//! Makes the rows of a data set, or finds them made already.

use super::DataError;
use super::cache::{Header, RowFile, RowReader, RowTable, RowWriter, SEQ_MAX};
use super::document::DocumentEncoder;
use super::files::{DataFile, content_digest, list};
use super::inspect::{Counts, Example, Inspection};
use super::making::Job;
use super::pack::OPEN_ROWS;
use super::record::Kind;
use crate::text::fingerprint::Fingerprint;
use crate::text::{ChatTemplate, ChatWarning, Tokenizer};
use std::ops::ControlFlow;
use std::path::Path;

/// How rows are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DataOptions {
    /// Positions of a row.
    pub seq: usize,
    /// Several documents share a row.
    pub pack: bool,
    /// Prompts are not trained. Has no effect on text.
    pub mask_prompt: bool,
    /// Share of the documents held out for validation, by lot; of a text file, of its rows. 0 holds out none.
    pub valid_fraction: f64,
    /// Decides the lot.
    pub seed: u64,
}

impl DataOptions {
    /// Rows of `seq` positions, one document each, prompts masked, nothing held out.
    pub fn new(seq: usize) -> DataOptions {
        DataOptions { seq, pack: false, mask_prompt: true, valid_fraction: 0.0, seed: 0 }
    }

    fn check(&self) -> Result<(), DataError> {
        if !(1..=SEQ_MAX).contains(&self.seq) {
            return Err(DataError::Settings(format!("a row of {} tokens; 1 to {SEQ_MAX} are possible", self.seq)));
        }
        if !(0.0..1.0).contains(&self.valid_fraction) {
            let message = format!("the validation share is {}; it must be at least 0 and below 1", self.valid_fraction);
            return Err(DataError::Settings(message));
        }
        Ok(())
    }
}

/// How far reading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the data files read.
    pub done_bytes: u64,
    /// Bytes of all data files.
    pub total_bytes: u64,
}

/// The rows of a data set.
pub struct DataSet {
    /// Rows to train on, at least one.
    pub train: Box<dyn RowReader + Send + Sync>,
    /// Rows held out, at least one where there are any.
    pub valid: Option<Box<dyn RowReader + Send + Sync>>,
    /// What the records are.
    pub kind: Kind,
    /// Counts of `train`.
    pub train_counts: Counts,
    /// Counts of `valid`.
    pub valid_counts: Option<Counts>,
    /// Whether the rows were found made already.
    pub is_from_cache: bool,
    /// What the user should hear about the chat template.
    pub warning: Option<ChatWarning>,
}

impl DataSet {
    /// Counts and the first example, for people.
    pub fn inspect(&self, tokenizer: &Tokenizer) -> Result<Inspection, DataError> {
        Ok(Inspection {
            kind: self.kind.to_string(),
            seq: self.train.seq(),
            train: self.train_counts,
            valid: self.valid_counts,
            example: Example::read(&*self.train, 0, tokenizer)?,
        })
    }
}

/// Memory that making rows takes at most beside the tokenizer, in bytes, for lines up to `line_bytes`: the line and
/// its parsed form, its tokens, one part of text being read, the open rows.
pub fn buffer_bytes(seq: usize, pack: bool, line_bytes: usize) -> usize {
    let open_rows = if pack { 2 * OPEN_ROWS } else { 2 };
    14 * line_bytes + (1 << 20) + 5 * seq + 20 * seq * open_rows + 16 * seq
}

/// Makes the rows of the file or directory `data` and of `valid`, the held-out data if it is a file of its own.
///
/// With `out`, rows go to `out/data.rows` and `out/valid.rows`, and are taken from there when those were made from the
/// same data with the same settings; without, they are kept in memory. `on_progress` is told how far it is and may
/// stop it. Errors: whatever is wrong with the data, by file and line; no row to train on.
pub fn prepare(
    data: &Path,
    valid: Option<&Path>,
    out: Option<&Path>,
    options: &DataOptions,
    tokenizer: &Tokenizer,
    on_progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<DataSet, DataError> {
    options.check()?;
    if valid.is_some() && options.valid_fraction > 0.0 {
        let message = "held-out data is given both as a file and as a share of the training data".to_owned();
        return Err(DataError::Settings(message));
    }
    let (template, warning) = ChatTemplate::for_tokenizer(tokenizer).map_err(DataError::Template)?;
    let encoder = DocumentEncoder { tokenizer, template: &template, mask_prompt: options.mask_prompt };
    let job = Job { options, encoder };
    let mut set = match out {
        Some(out) => job.cached(data, out, ["data.rows", "valid.rows"], on_progress)?,
        None => job.in_memory(data, on_progress)?,
    };
    if let Some(valid) = valid {
        let options = DataOptions { valid_fraction: 0.0, ..*options };
        let job = Job { options: &options, encoder: job.encoder };
        let held = match out {
            Some(out) => job.cached(valid, out, ["valid.rows", ""], on_progress)?,
            None => job.in_memory(valid, on_progress)?,
        };
        set.is_from_cache &= held.is_from_cache;
        (set.valid, set.valid_counts) = (Some(held.train), Some(held.train_counts));
    }
    let uses_template = matches!(set.kind, Kind::Messages);
    set.warning = warning.filter(|_| uses_template);
    Ok(set)
}

impl Job<'_> {
    fn in_memory(
        &self,
        data: &Path,
        on_progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<DataSet, DataError> {
        let files = list(data)?;
        let sinks = [RowTable::new(self.options.seq), RowTable::new(self.options.seq)];
        let made = self.make(data, &files, sinks, on_progress)?;
        let [train, valid] = made.sinks;
        let has_valid = self.options.valid_fraction > 0.0;
        Ok(DataSet {
            train: Box::new(train),
            valid: has_valid.then(|| Box::new(valid) as Box<dyn RowReader + Send + Sync>),
            kind: made.kind,
            train_counts: made.counts[0],
            valid_counts: has_valid.then_some(made.counts[1]),
            is_from_cache: false,
            warning: None,
        })
    }

    fn cached(
        &self,
        data: &Path,
        out: &Path,
        names: [&str; 2],
        on_progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<DataSet, DataError> {
        let files = list(data)?;
        std::fs::create_dir_all(out).map_err(|error| DataError::io(out, error))?;
        let has_valid = self.options.valid_fraction > 0.0;
        let (settings, stat) = (self.settings_digest(&files), stat_digest(&files));
        let open = |name: &str| -> Result<Option<RowFile>, DataError> {
            let Some(file) = RowFile::open(&out.join(name))? else { return Ok(None) };
            let header = *file.header();
            let is_fresh =
                header.settings == settings && (header.stat == stat || header.content == contents_digest(&files)?);
            Ok(is_fresh.then_some(file))
        };
        let found = match open(names[0])? {
            Some(train) if has_valid => open(names[1])?.map(|valid| (train, Some(valid))),
            train => train.map(|train| (train, None)),
        };
        let is_from_cache = found.is_some();
        let (train, valid) = match found {
            Some(found) => found,
            None => {
                let create = |name: &str| RowWriter::create(&out.join(name));
                let held_out = if has_valid { Some(create(names[1])?) } else { None };
                let made = self.make(data, &files, [Some(create(names[0])?), held_out], on_progress)?;
                let header = |counts| Header {
                    seq: self.options.seq as u32,
                    rows: 0,
                    kind: made.kind,
                    settings,
                    stat,
                    content: made.content,
                    counts,
                };
                let [train, valid] = made.sinks;
                let finish = |writer: Option<RowWriter>, counts| writer.map(|w| w.finish(header(counts))).transpose();
                let valid = finish(valid, made.counts[1])?;
                let train = finish(train, made.counts[0])?.ok_or_else(|| DataError::file(data, "no rows"))?;
                (train, valid)
            }
        };
        Ok(DataSet {
            kind: train.header().kind,
            train_counts: train.header().counts,
            valid_counts: valid.as_ref().map(|valid| valid.header().counts),
            train: Box::new(train),
            valid: valid.map(|valid| Box::new(valid) as Box<dyn RowReader + Send + Sync>),
            is_from_cache,
            warning: None,
        })
    }

    /// Digest of all that decides the rows but the files' content.
    fn settings_digest(&self, files: &[DataFile]) -> u64 {
        let mut digest = Fingerprint::new();
        let seed = if self.options.valid_fraction > 0.0 { self.options.seed } else { 0 };
        digest.field(format!("{:?}", DataOptions { seed, ..*self.options }).as_bytes());
        digest.update(&self.encoder.tokenizer.fingerprint().to_le_bytes());
        for file in files {
            digest.field(format!("{:?}", file.format).as_bytes());
        }
        digest.finish()
    }
}

fn stat_digest(files: &[DataFile]) -> u64 {
    let mut digest = Fingerprint::new();
    for file in files {
        digest.field(file.path.as_os_str().as_encoded_bytes());
        digest.update(&file.len.to_le_bytes());
        digest.update(&file.modified_ns.to_le_bytes());
    }
    digest.finish()
}

fn contents_digest(files: &[DataFile]) -> Result<u64, DataError> {
    let mut digest = Fingerprint::new();
    for file in files {
        digest.update(&content_digest(&file.path)?.to_le_bytes());
    }
    Ok(digest.finish())
}
