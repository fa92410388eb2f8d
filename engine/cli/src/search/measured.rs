//! What was measured so far, in a file: a search that was interrupted goes on from it.
//!
//! The file is written anew after every trial, whole or not at all. It belongs to one network, one set of samples and
//! one way of training; the budget plays no part, so that searches under other budgets use the same measurements.

use crate::error::CommandError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tinyforge::files::{read_if_there, write_atomic};
use tinyforge::simulate::contribution::Outcome;

/// What a trial found.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Mean loss over the samples that were held out.
    pub loss: f64,
    /// The share of them that is right.
    pub accuracy: f64,
}

impl From<Outcome> for Row {
    fn from(outcome: Outcome) -> Row {
        Row { loss: outcome.loss, accuracy: outcome.accuracy.share() }
    }
}

#[derive(Serialize, Deserialize)]
struct Contents {
    /// What the measurements are of.
    search: String,
    /// Trials by name.
    trials: BTreeMap<String, Row>,
}

/// The measurements of one search.
pub struct Measured {
    path: PathBuf,
    contents: Contents,
}

impl Measured {
    /// Reads what there is.
    ///
    /// # Errors
    /// The file is of another search, or damaged.
    pub fn open(path: &Path, search: String) -> Result<Measured, CommandError> {
        let path = path.to_path_buf();
        let Some(bytes) = read_if_there(&path)? else {
            return Ok(Measured { path, contents: Contents { search, trials: BTreeMap::new() } });
        };
        let request = |why: String| CommandError::request(format!("{}: {why}", path.display()));
        let contents: Contents =
            serde_json::from_slice(&bytes).map_err(|e| request(format!("no measurements: {e}")))?;
        if contents.search != search {
            return Err(request(format!(
                "holds measurements of another search; remove it, or name another file with --measured\n  there: {}\n  \
                 asked: {search}",
                contents.search
            )));
        }
        Ok(Measured { path, contents })
    }

    /// A trial that was made.
    pub fn get(&self, name: &str) -> Option<Row> {
        self.contents.trials.get(name).copied()
    }

    /// Keeps a trial.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&mut self, name: &str, row: Row) -> Result<(), CommandError> {
        self.contents.trials.insert(name.to_string(), row);
        // Nothing in it cannot be written as JSON: losses are finite, or the trial would have failed.
        let text = serde_json::to_vec_pretty(&self.contents).expect("names and numbers");
        Ok(write_atomic(&self.path, |file| file.write_all(&text))?)
    }
}
