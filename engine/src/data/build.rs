//! Makes the rows of a data set, or finds them made already.

use super::DataError;
use super::cache::{Header, RowFile, RowReader, RowTable, RowWriter, SEQ_MAX, trained_labels};
use super::document::{Document, DocumentEncoder};
use super::files::{DataFile, Format, Lines, TextParts, content_digest, list};
use super::inspect::{Counts, Example, Inspection, filled};
use super::pack::{OPEN_ROWS, Packer, RowSink};
use super::record::{Body, Kind, parse};
use super::rows::{Piece, Row};
use super::split::is_held_out;
use crate::text::fingerprint::Fingerprint;
use crate::text::{ChatTemplate, ChatWarning, Join, TextError, Tokenizer};
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

struct Job<'a> {
    options: &'a DataOptions,
    encoder: DocumentEncoder<'a>,
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

    /// Reads all files and puts their rows into the sinks: those to train on, and those held out.
    fn make<S: RowSink>(
        &self,
        data: &Path,
        files: &[DataFile],
        sinks: [S; 2],
        on_progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Made<S>, DataError> {
        let total_bytes = files.iter().map(|file| file.len).sum();
        let pad = self.encoder.tokenizer.pad().or(self.encoder.tokenizer.eos()).unwrap_or(0);
        let mut making = Making {
            options: self.options,
            encoder: &self.encoder,
            sides: sinks.map(|sink| Side {
                sink: Counting { sink, counts: Counts::default() },
                packer: Packer::new(self.options.seq, pad, self.options.pack),
            }),
            unit: 0,
            kind: None,
            done_bytes: 0,
            total_bytes,
            on_progress,
        };
        let mut contents = Fingerprint::new();
        for file in files {
            let digest = match file.format {
                Format::Lines => making.lines(file)?,
                Format::Text => making.text(file)?,
            };
            contents.update(&digest.to_le_bytes());
            making.done_bytes += file.len;
        }
        making.finish(data, contents.finish())
    }
}

/// Rows made, with what was counted.
struct Made<S> {
    sinks: [S; 2],
    counts: [Counts; 2],
    kind: Kind,
    content: u64,
}

/// A sink that counts what goes through it.
struct Counting<S> {
    sink: S,
    counts: Counts,
}

impl<S: RowSink> RowSink for Counting<S> {
    fn push(&mut self, row: &Row) -> Result<(), DataError> {
        self.counts.rows += 1;
        self.counts.tokens += filled(row);
        self.counts.trained_tokens += trained_labels(row);
        self.sink.push(row)
    }
}

/// Where the rows of one side, trained or held out, go.
struct Side<S> {
    sink: Counting<S>,
    packer: Packer,
}

impl<S: RowSink> Side<S> {
    fn piece(&mut self, piece: Piece<'_>) -> Result<(), DataError> {
        self.packer.push(piece, &mut self.sink)
    }
}

struct Making<'a, S> {
    options: &'a DataOptions,
    encoder: &'a DocumentEncoder<'a>,
    sides: [Side<S>; 2],
    /// Documents, or rows of a text file, met so far: what the lot is drawn for.
    unit: u64,
    kind: Option<Kind>,
    done_bytes: u64,
    total_bytes: u64,
    on_progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
}

impl<S: RowSink> Making<'_, S> {
    fn lines(&mut self, file: &DataFile) -> Result<u64, DataError> {
        let mut lines = Lines::open(&file.path)?;
        let mut is_empty = true;
        while let Some((line, text)) = lines.next_line()? {
            let record =
                parse(text, self.kind).map_err(|message| DataError::Line { path: file.path.clone(), line, message })?;
            let text_error = |error| DataError::Text { path: file.path.clone(), line, error };
            is_empty = false;
            self.kind = Some(record.kind);
            self.record(&record.body, record.weight).map_err(|error| error.at(text_error))?;
            self.report(lines.read_bytes())?;
        }
        if is_empty {
            return Err(DataError::file(&file.path, "the file has no line with a record"));
        }
        Ok(lines.digest())
    }

    fn record(&mut self, body: &Body, weight: f32) -> Result<(), MakeError> {
        let side = self.draw();
        match body {
            Body::Text(text) if text.is_empty() => self.single(Document::default(), side, weight),
            Body::Text(text) => {
                let mut window = Window::new(self.encoder.start(), side, weight);
                // Long texts are cut as a text file is, so that no more than a part of the tokens exists at once.
                let mut join = Join::Start;
                let mut rest = text.as_str();
                while !rest.is_empty() {
                    let (part, tail) = rest.split_at(crate::text::chunk::part_len(rest));
                    self.encoder.append(&mut window.document, part, join, true)?;
                    self.drain(&mut window, false)?;
                    (rest, join) = (tail, Join::Continue);
                }
                self.close(window, false)
            }
            _ => {
                let document = self.encoder.encode(body)?;
                self.single(document, side, weight)
            }
        }
    }

    fn text(&mut self, file: &DataFile) -> Result<u64, DataError> {
        if let Some(kind) = self.kind.filter(|&kind| kind != Kind::Text) {
            let message = format!("a text file among files with {kind}; a data set is of one kind");
            return Err(DataError::file(&file.path, message));
        }
        self.kind = Some(Kind::Text);
        let mut parts = TextParts::open(&file.path)?;
        let mut window = Window::new(self.encoder.start(), 0, 1.0);
        let mut join = Join::Start;
        while let Some((line, part)) = parts.next_part()? {
            let text_error = |error| DataError::Text { path: file.path.clone(), line, error };
            self.encoder.append(&mut window.document, part, join, true).map_err(text_error)?;
            join = Join::Continue;
            self.drain(&mut window, true).map_err(|error| error.at(text_error))?;
            self.report(parts.read_bytes())?;
        }
        let text_error = |error| DataError::Text { path: file.path.clone(), line: 1, error };
        self.close(window, true).map_err(|error| error.at(text_error))?;
        Ok(parts.digest())
    }

    /// Draws the side of the next unit: 0 to train on, 1 held out.
    fn draw(&mut self) -> usize {
        let is_held_out = is_held_out(self.options.seed, self.options.valid_fraction, self.unit);
        self.unit += 1;
        usize::from(is_held_out)
    }

    fn report(&mut self, file_bytes: u64) -> Result<(), DataError> {
        let progress = Progress { done_bytes: self.done_bytes + file_bytes, total_bytes: self.total_bytes };
        match (self.on_progress)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(DataError::Stopped),
        }
    }

    /// A document that has at most one row: what is longer is cut and counted.
    fn single(&mut self, mut document: Document, side: usize, weight: f32) -> Result<(), MakeError> {
        let counts = &mut self.sides[side].sink.counts;
        counts.documents += 1;
        counts.longest_tokens = counts.longest_tokens.max(document.tokens.len() as u64);
        let kept = document.tokens.len().min(self.options.seq + 1);
        let lost = document.tokens.len() - kept;
        document.tokens.truncate(kept);
        document.is_trained.truncate(kept);
        let piece = Piece { tokens: &document.tokens, is_trained: &document.is_trained, weight };
        if !piece.is_trained() {
            counts.dropped_documents += 1;
            return Ok(());
        }
        counts.truncated_documents += u64::from(lost > 0);
        counts.truncated_tokens += lost as u64;
        Ok(self.sides[side].piece(piece)?)
    }

    /// Turns the full rows of a window into pieces. The last token of a piece is the first of the next, so that every
    /// token but the first is a label once.
    fn drain(&mut self, window: &mut Window, draws_each: bool) -> Result<(), MakeError> {
        let seq = self.options.seq;
        let mut at = 0;
        while window.document.tokens.len() - at > seq {
            self.window_piece(window, at..at + seq + 1, draws_each)?;
            at += seq;
        }
        window.document.tokens.drain(..at);
        window.document.is_trained.drain(..at);
        window.done_tokens += at as u64;
        Ok(())
    }

    fn window_piece(
        &mut self,
        window: &mut Window,
        range: std::ops::Range<usize>,
        draws_each: bool,
    ) -> Result<(), MakeError> {
        if draws_each {
            window.side = self.draw();
        }
        let document = &window.document;
        let piece = Piece {
            tokens: &document.tokens[range.clone()],
            is_trained: &document.is_trained[range],
            weight: window.weight,
        };
        if piece.is_trained() {
            window.has_piece = true;
            self.sides[window.side].piece(piece)?;
        }
        Ok(())
    }

    /// Ends a text: the end-of-text token, then what is left as a last, shorter piece.
    fn close(&mut self, mut window: Window, draws_each: bool) -> Result<(), MakeError> {
        self.encoder.end(&mut window.document);
        self.drain(&mut window, draws_each)?;
        let len = window.document.tokens.len();
        if len > 1 {
            self.window_piece(&mut window, 0..len, draws_each)?;
        }
        let side = if draws_each { 0 } else { window.side };
        let counts = &mut self.sides[side].sink.counts;
        counts.documents += 1;
        counts.dropped_documents += u64::from(!window.has_piece);
        counts.longest_tokens = counts.longest_tokens.max(window.done_tokens + len as u64);
        Ok(())
    }

    fn finish(mut self, data: &Path, content: u64) -> Result<Made<S>, DataError> {
        for side in &mut self.sides {
            side.packer.finish(&mut side.sink)?;
        }
        let [train, valid] = self.sides.map(|side| side.sink);
        let (counts, kind) = ([train.counts, valid.counts], self.kind.unwrap_or(Kind::Text));
        if counts[0].rows == 0 {
            let message = format!(
                "no row is left to train on: of {} documents {} have nothing to train, {} are held out",
                counts[0].documents + counts[1].documents,
                counts[0].dropped_documents,
                counts[1].documents
            );
            return Err(DataError::file(data, message));
        }
        if self.options.valid_fraction > 0.0 && counts[1].rows == 0 {
            let message = format!(
                "a share of {} of {} documents holds out none; give a larger share or a file of its own",
                self.options.valid_fraction, counts[0].documents
            );
            return Err(DataError::file(data, message));
        }
        Ok(Made { sinks: [train.sink, valid.sink], counts, kind, content })
    }
}

/// A text being cut into rows.
struct Window {
    document: Document,
    side: usize,
    weight: f32,
    done_tokens: u64,
    has_piece: bool,
}

impl Window {
    fn new(document: Document, side: usize, weight: f32) -> Window {
        Window { document, side, weight, done_tokens: 0, has_piece: false }
    }
}

/// An error met while making rows, before file and line are put to it.
enum MakeError {
    Text(TextError),
    Data(DataError),
}

impl MakeError {
    fn at(self, text_error: impl FnOnce(TextError) -> DataError) -> DataError {
        match self {
            MakeError::Text(error) => text_error(error),
            MakeError::Data(error) => error,
        }
    }
}

impl From<TextError> for MakeError {
    fn from(error: TextError) -> MakeError {
        MakeError::Text(error)
    }
}

impl From<DataError> for MakeError {
    fn from(error: DataError) -> MakeError {
        MakeError::Data(error)
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
