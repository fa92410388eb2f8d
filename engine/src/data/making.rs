//! Reads data files and makes rows of them.
//!
//! Invariant: no more is held than a line, one part of a text, and the open rows. It is not for finding rows that are
//! made already; that is `build`.

use super::DataError;
use super::build::{DataOptions, Progress};
use super::cache::trained_labels;
use super::document::{Document, DocumentEncoder};
use super::files::{DataFile, Format, Lines, TextParts};
use super::inspect::{Counts, filled};
use super::pack::{Packer, RowSink};
use super::record::{Body, Kind, parse};
use super::rows::{Piece, Row};
use super::split::is_held_out;
use crate::text::chunk::part_len;
use crate::text::fingerprint::Fingerprint;
use crate::text::{Join, TextError};
use std::ops::{ControlFlow, Range};
use std::path::Path;

/// How rows are made, and with what.
pub(crate) struct Job<'a> {
    pub(crate) options: &'a DataOptions,
    pub(crate) encoder: DocumentEncoder<'a>,
}

impl Job<'_> {
    /// Reads all files and puts their rows into the sinks: those to train on, and those held out.
    pub(crate) fn make<S: RowSink>(
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
pub(crate) struct Made<S> {
    pub(crate) sinks: [S; 2],
    pub(crate) counts: [Counts; 2],
    pub(crate) kind: Kind,
    /// Digest of the files' content.
    pub(crate) content: u64,
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
                    let (part, tail) = rest.split_at(part_len(rest));
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

    fn window_piece(&mut self, window: &mut Window, range: Range<usize>, draws_each: bool) -> Result<(), MakeError> {
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
