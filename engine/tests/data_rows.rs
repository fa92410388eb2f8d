//! Properties of rows: nothing lost, nothing doubled, nothing crosses documents; the same from memory and from disk.

mod data_common;

use data_common::{EOS, PAD, Scratch, assets, byte_tokenizer, make, read_all, segments};
use proptest::prelude::*;
use std::ops::ControlFlow;
use tinyforge::data::{DataOptions, Row, prepare};

/// What every row must satisfy, whatever it holds.
fn check_row(row: &Row) {
    let seq = row.tokens.len();
    for at in 0..seq {
        let is_padding = row.segments[at] < 0;
        if is_padding {
            assert_eq!((row.tokens[at], row.labels[at], row.positions[at]), (PAD, -100, 0));
            assert!(row.segments[at..].iter().all(|&segment| segment == -1));
        }
        assert_eq!(row.loss_weight[at] > 0.0, row.labels[at] >= 0);
        let starts = at == 0 || row.segments[at] != row.segments[at - 1];
        if !is_padding {
            assert_eq!(row.positions[at], if starts { 0 } else { row.positions[at - 1] + 1 });
            assert_eq!(row.segments[at], if at == 0 { 0 } else { row.segments[at - 1] + i32::from(starts) });
        }
    }
}

fn json_lines(pairs: &[(String, String)]) -> String {
    let line = |(prompt, completion): &(String, String)| {
        serde_json::json!({"prompt": prompt, "completion": completion}).to_string()
    };
    pairs.iter().map(line).collect::<Vec<_>>().join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pairs_come_back_whole_but_for_what_is_counted(
        pairs in prop::collection::vec(("[a-z]{0,12}", "[a-z]{0,20}"), 1..200),
        seq in 4usize..40,
        pack: bool,
    ) {
        let tokenizer = byte_tokenizer(false, None);
        let scratch = Scratch::new("pairs");
        let data = scratch.file("a.jsonl", json_lines(&pairs));
        let options = DataOptions { pack, ..DataOptions::new(seq) };
        let Ok(set) = make(&data, None, &options, &tokenizer) else { return Ok(()) };
        let mut found = Vec::new();
        for row in read_all(&*set.train) {
            check_row(&row);
            found.extend(segments(&row));
        }
        let mut expected = Vec::new();
        let (mut lost, mut dropped) = (0, 0);
        for (prompt, completion) in &pairs {
            let mut tokens = tokenizer.encode(&format!("{prompt}{completion}"), false, false).unwrap();
            tokens.push(EOS);
            let cut = tokens.len().saturating_sub(seq + 1);
            tokens.truncate(seq + 1);
            let trained: Vec<bool> = (0..tokens.len()).map(|at| at >= prompt.len().max(1)).collect();
            if trained.iter().any(|&is_trained| is_trained) {
                lost += cut;
                expected.push((tokens, trained));
            } else {
                dropped += 1;
            }
        }
        prop_assert_eq!(set.train_counts.truncated_tokens, lost as u64);
        prop_assert_eq!(set.train_counts.dropped_documents, dropped);
        found.sort();
        expected.sort();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn texts_come_back_whole(
        texts in prop::collection::vec("[a-z \n]{1,90}", 1..40),
        seq in 2usize..50,
        pack: bool,
    ) {
        let tokenizer = byte_tokenizer(true, None);
        let scratch = Scratch::new("texts");
        let lines: Vec<String> = texts.iter().map(|text| serde_json::json!({"text": text}).to_string()).collect();
        let data = scratch.file("a.jsonl", lines.join("\n"));
        let set = make(&data, None, &DataOptions { pack, ..DataOptions::new(seq) }, &tokenizer).unwrap();
        let mut labels = 0;
        let mut pieces = Vec::new();
        for row in read_all(&*set.train) {
            check_row(&row);
            labels += row.labels.iter().filter(|&&label| label >= 0).count();
            pieces.extend(segments(&row));
        }
        let tokens: usize = texts.iter().map(|text| text.len() + 1).sum();
        prop_assert_eq!(labels, tokens);
        let mut expected = Vec::new();
        for text in &texts {
            let mut ids = tokenizer.encode(text, true, false).unwrap();
            ids.push(EOS);
            let mut at = 0;
            while at + 1 < ids.len() {
                let end = (at + seq + 1).min(ids.len());
                expected.push((ids[at..end].to_vec(), (at..end).map(|i| i > at).collect::<Vec<_>>()));
                at = end - 1;
            }
        }
        pieces.sort();
        expected.sort();
        prop_assert_eq!(pieces, expected);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), is_text: bool) {
        let tokenizer = byte_tokenizer(false, None);
        let scratch = Scratch::new("bytes");
        let data = scratch.file(if is_text { "a.txt" } else { "a.jsonl" }, bytes);
        let _ = make(&data, None, &DataOptions::new(16), &tokenizer);
    }
}

#[test]
fn rows_from_disk_are_those_from_memory_and_are_made_once() {
    let tokenizer = byte_tokenizer(false, None);
    let scratch = Scratch::new("cache");
    let pairs: Vec<(String, String)> = (0..300).map(|i| (format!("p{i}"), "c".repeat(i % 23))).collect();
    let data = scratch.file("a.jsonl", json_lines(&pairs));
    let out = scratch.path().join("out");
    let options = DataOptions { pack: true, valid_fraction: 0.2, seed: 5, ..DataOptions::new(32) };
    let memory = make(&data, None, &options, &tokenizer).unwrap();
    let disk = make(&data, Some(&out), &options, &tokenizer).unwrap();
    assert!(!disk.is_from_cache);
    let again = make(&data, Some(&out), &options, &tokenizer).unwrap();
    assert!(again.is_from_cache);
    for set in [&disk, &again] {
        assert_eq!(
            (set.kind, set.train_counts, set.valid_counts),
            (memory.kind, memory.train_counts, memory.valid_counts)
        );
        assert_eq!(read_all(&*set.train), read_all(&*memory.train));
        assert_eq!(read_all(set.valid.as_deref().unwrap()), read_all(memory.valid.as_deref().unwrap()));
    }
    let counts = (memory.train_counts.documents, memory.valid_counts.unwrap().documents);
    assert!(counts.0 + counts.1 == 300 && (30..90).contains(&counts.1), "{counts:?}");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 2);

    let is_remade = |options: &DataOptions| !make(&data, Some(&out), options, &tokenizer).unwrap().is_from_cache;
    assert!(is_remade(&DataOptions { seed: 6, ..options }));
    assert!(is_remade(&DataOptions { mask_prompt: false, ..options }));
    assert!(!is_remade(&DataOptions { mask_prompt: false, ..options }));
    let other = byte_tokenizer(true, None);
    assert!(!make(&data, Some(&out), &options, &other).unwrap().is_from_cache);
}

#[test]
fn touched_data_is_kept_and_changed_data_is_read_again() {
    let tokenizer = byte_tokenizer(false, None);
    let scratch = Scratch::new("stale");
    let out = scratch.path().join("out");
    let data = scratch.file("a.txt", "one text");
    let options = DataOptions::new(8);
    let is_cached = || make(&data, Some(&out), &options, &tokenizer).unwrap().is_from_cache;
    assert!(!is_cached());
    let file = std::fs::File::options().append(true).open(&data).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(is_cached());
    std::fs::write(&data, "two text").unwrap();
    assert!(!is_cached());
    assert!(is_cached());
}

#[test]
fn a_damaged_row_file_is_made_again_or_named() {
    let tokenizer = byte_tokenizer(false, None);
    let scratch = Scratch::new("damaged");
    let out = scratch.path().join("out");
    let data = scratch.file("a.txt", "some text of more than one row");
    let options = DataOptions::new(8);
    let set = || make(&data, Some(&out), &options, &tokenizer).unwrap();
    let rows = read_all(&*set().train);
    let path = out.join("data.rows");
    let good = std::fs::read(&path).unwrap();
    for len in [0, 7, 255, 256, good.len() - 1] {
        std::fs::write(&path, &good[..len]).unwrap();
        let made = set();
        assert!(!made.is_from_cache);
        assert_eq!(read_all(&*made.train), rows);
    }
    for at in 0..256 {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        std::fs::write(&path, &bad).unwrap();
        assert!(!set().is_from_cache, "byte {at}");
    }
    let mut bad = good.clone();
    bad[300] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    let made = set();
    let error = made.train.read(0, &mut Row::padding(8, 0).buf()).unwrap_err().to_string();
    assert!(made.is_from_cache && error.contains("row 0 is damaged"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap().len(), good.len());
}

#[test]
fn held_out_data_can_be_a_file_of_its_own() {
    let tokenizer = byte_tokenizer(false, None);
    let scratch = Scratch::new("valid");
    let (data, valid) = (scratch.file("a.txt", "train"), scratch.file("b.txt", "valid"));
    let options = DataOptions::new(16);
    for out in [None, Some(scratch.path().join("out"))] {
        let go = &mut |_| ControlFlow::Continue(());
        let set = prepare(&data, Some(&valid), out.as_deref(), &options, &tokenizer, go).unwrap();
        assert_eq!(set.valid_counts.unwrap().rows, 1);
        let rows = read_all(set.valid.as_deref().unwrap());
        assert_eq!(rows[0].tokens[0], tokenizer.encode("v", false, false).unwrap()[0]);
    }
    let both = DataOptions { valid_fraction: 0.5, ..options };
    let go = &mut |_| ControlFlow::Continue(());
    assert!(prepare(&data, Some(&valid), None, &both, &tokenizer, go).is_err());
    let stopped = prepare(&data, None, None, &options, &tokenizer, &mut |_| ControlFlow::Break(()));
    assert_eq!(stopped.err().unwrap().to_string(), "stopped while reading the data");
}

#[test]
fn a_whole_play_is_cut_into_rows() {
    let Some(assets) = assets() else { return };
    let tokenizer = byte_tokenizer(false, None);
    let path = assets.join("text/tinyshakespeare.txt");
    let text = std::fs::read_to_string(&path).unwrap();
    let set = make(&path, None, &DataOptions::new(1024), &tokenizer).unwrap();
    assert_eq!(set.train_counts.trained_tokens, text.len() as u64);
    let mut ids = vec![tokenizer.encode(&text[..1], false, false).unwrap()[0]];
    for row in read_all(&*set.train) {
        check_row(&row);
        ids.extend(row.labels.iter().filter(|&&label| label >= 0).map(|&label| label as u32));
    }
    assert_eq!(ids.pop(), Some(EOS));
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
}
