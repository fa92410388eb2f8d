//! What `xtask/tidy.toml` holds.

use crate::tree::Tree;
use std::collections::BTreeMap;
use toml::{Table, Value};

/// Where the exceptions are written.
pub const PATH: &str = "xtask/tidy.toml";

/// A file that may hold unsafe code.
#[derive(Debug, PartialEq)]
pub struct Unsafe {
    /// How often the word may stand there.
    pub count: usize,
    /// Which of the permitted places it is.
    pub place: String,
}

/// Limits and the exceptions from them.
#[derive(Default, Debug)]
pub struct Config {
    /// Functions longer than the limit: `path::name` and their lines.
    pub function_lines: BTreeMap<String, usize>,
    /// Files longer than the limit, and their lines.
    pub file_lines: BTreeMap<String, usize>,
    /// Files larger than the limit, and their bytes.
    pub file_bytes: BTreeMap<String, usize>,
    /// Files with unsafe code.
    pub unsafe_files: BTreeMap<String, Unsafe>,
    /// A word and what to write instead.
    pub words: BTreeMap<String, String>,
    /// Files in which no words are looked for, and why.
    pub words_skip: BTreeMap<String, String>,
}

impl Config {
    /// Reads the tree's own.
    ///
    /// # Errors
    /// The file is missing or not of the form that its head describes.
    pub fn of(tree: &Tree) -> Result<Config, String> {
        let file = tree.find(PATH).ok_or(format!("{PATH} is missing"))?;
        Config::parse(&file.text)
    }

    /// Reads a text.
    ///
    /// # Errors
    /// The text is not of the form that the file's head describes.
    pub fn parse(text: &str) -> Result<Config, String> {
        let table: Table = text.parse().map_err(|e| format!("{PATH}: {e}"))?;
        let mut config = Config::default();
        for (name, value) in &table {
            let rows = value.as_table().ok_or(format!("{PATH}: `{name}` must be a table"))?;
            match name.as_str() {
                "function_lines" => config.function_lines = numbers(name, rows)?,
                "file_lines" => config.file_lines = numbers(name, rows)?,
                "file_bytes" => config.file_bytes = numbers(name, rows)?,
                "unsafe" => config.unsafe_files = unsafe_files(rows)?,
                "words" => config.words = texts(name, rows)?,
                "words_skip" => config.words_skip = texts(name, rows)?,
                _ => return Err(format!("{PATH}: unknown table `{name}`")),
            }
        }
        Ok(config)
    }

    /// The text of these exceptions, under the head of the text that was there.
    pub fn text(&self, old: &str) -> String {
        let mut text: String =
            old.lines().take_while(|line| !line.starts_with('[')).map(|l| format!("{l}\n")).collect();
        let mut table = |name: &str, rows: Vec<String>| {
            let space = if text.ends_with("\n\n") { "" } else { "\n" };
            text.push_str(&format!("{space}[{name}]\n"));
            rows.iter().for_each(|row| text.push_str(&format!("{row}\n")));
        };
        let number = |(key, n): (&String, &usize)| format!("{key:?} = {n}");
        let string = |(key, value): (&String, &String)| format!("{key:?} = {value:?}");
        table("function_lines", self.function_lines.iter().map(number).collect());
        table("file_lines", self.file_lines.iter().map(number).collect());
        table("file_bytes", self.file_bytes.iter().map(number).collect());
        let file = |(key, u): (&String, &Unsafe)| format!("{key:?} = {{ count = {}, place = {:?} }}", u.count, u.place);
        table("unsafe", self.unsafe_files.iter().map(file).collect());
        table("words", self.words.iter().map(string).collect());
        table("words_skip", self.words_skip.iter().map(string).collect());
        text
    }
}

fn numbers(table: &str, rows: &Table) -> Result<BTreeMap<String, usize>, String> {
    let number = |(key, value): (&String, &Value)| match value.as_integer().and_then(|n| usize::try_from(n).ok()) {
        Some(n) => Ok((key.clone(), n)),
        None => Err(format!("{PATH}: [{table}] `{key}` must be a whole number")),
    };
    rows.iter().map(number).collect()
}

fn texts(table: &str, rows: &Table) -> Result<BTreeMap<String, String>, String> {
    let text = |(key, value): (&String, &Value)| match value.as_str() {
        Some(text) => Ok((key.clone(), text.to_string())),
        None => Err(format!("{PATH}: [{table}] `{key}` must be a text")),
    };
    rows.iter().map(text).collect()
}

fn unsafe_files(rows: &Table) -> Result<BTreeMap<String, Unsafe>, String> {
    let file = |(key, value): (&String, &Value)| {
        let count = value.get("count").and_then(Value::as_integer).and_then(|n| usize::try_from(n).ok());
        let place = value.get("place").and_then(Value::as_str);
        match (count, place) {
            (Some(count), Some(place)) => Ok((key.clone(), Unsafe { count, place: place.to_string() })),
            _ => Err(format!("{PATH}: [unsafe] `{key}` must be {{ count = N, place = \"...\" }}")),
        }
    };
    rows.iter().map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_and_unknown_ones_refused() {
        let text = "[file_lines]\n\"a.rs\" = 1200\n[unsafe]\n\"b.rs\" = { count = 2, place = \"simd\" }\n";
        let config = Config::parse(text).expect("a good file");
        assert_eq!(config.file_lines["a.rs"], 1200);
        assert_eq!(config.unsafe_files["b.rs"], Unsafe { count: 2, place: "simd".to_string() });
        let again = Config::parse(&config.text("# head\n\n[x]\n")).expect("what was written is read");
        assert_eq!(again.text("# head\n"), config.text("# head\n"));
        assert!(
            config.text("# head\n\n[x]\n").starts_with("# head\n\n[function_lines]\n\n[file_lines]\n\"a.rs\" = 1200\n")
        );
        assert!(Config::parse("[lines]\n").is_err());
        assert!(Config::parse("[unsafe]\n\"b.rs\" = 2\n").is_err());
    }
}
