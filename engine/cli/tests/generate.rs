//! Texts continued through the cache against the same texts in whole rows; no file but the fixtures is needed.

mod common;
mod made;

use common::{Folder, MODELS, as_gguf, difference, fill_row, fixtures, row_settings, runner};
use std::ops::ControlFlow;
use tinyforge::generate::{Ended, GenerateError, Generator, Request, Sampling};
use tinyforge::runner::Runner;
use tinyforge_cli::model::Model;
use tinyforge_cli::planning::{PREFILL_TOKENS, Settings, Wanted};
use tinyforge_cli::streaming::Streaming;
use tinyforge_compiler::compile::Embeddings;
use tinyforge_compiler::passes::pipeline::Window;
use tinyforge_compiler::scheme::Scheme;
use tinyforge_plan::part_of;

const CHUNK: usize = PREFILL_TOKENS as usize;

fn open(name: &str) -> Model {
    Model::open(&fixtures().join(name)).expect("opens")
}

fn generating(model: &Model, context: usize) -> Runner {
    runner(model, &row_settings(Scheme::frozen(), context as u32), Wanted::Generate)
}

fn ids(model: &Model, count: usize) -> Vec<u32> {
    (0..count).map(|i| (i * i * 31 + i * 7 + 3) as u32 % model.config.vocab as u32).collect()
}

/// Logits after every token, from one run over the row.
fn whole(model: &Model, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut runner = runner(model, &row_settings(Scheme::frozen(), ids.len() as u32), Wanted::Logits);
    fill_row(&mut runner, 0, ids);
    runner.run(0).expect("runs");
    runner.result::<f32>(0, "logits").chunks(model.config.vocab).map(<[f32]>::to_vec).collect()
}

#[test]
fn the_cache_gives_the_logits_of_the_whole_row() {
    for name in MODELS {
        let model = open(name);
        let context = model.config.learned_positions.unwrap_or(3 * CHUNK - 20);
        let ids = ids(&model, context);
        let wanted = whole(&model, &ids);
        let mut runner = generating(&model, context);
        let mut generator = Generator::new(&mut runner).expect("generates");
        let lens = [1, 2, 5, context / 2, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + 2, 2 * CHUNK + 1, context];
        for len in lens.into_iter().filter(|&len| len <= context) {
            generator.reset();
            let off = difference(generator.feed(&ids[..len]).expect("feeds"), &wanted[len - 1]);
            assert!(off < 1e-5, "{name}: after a prompt of {len} logits differ by {off}");
            for at in len..context.min(len + 3) {
                let off = difference(generator.feed(&ids[at..=at]).expect("feeds"), &wanted[at]);
                assert!(off < 1e-5, "{name}: after a prompt of {len}, at {at}, logits differ by {off}");
            }
        }
    }
}

/// A table that is read in parts, with and without a cache, by blocks that stream.
#[test]
fn parts_of_a_table_give_the_same_logits() {
    for tied in [false, true] {
        let scratch = made::Scratch::new("generate-parts");
        made::Llama { vocab: 2 * made::VOCAB + 300, tied, ..made::TIED }.write(scratch.path());
        let model = Model::open(scratch.path()).expect("opens");
        let ids = ids(&model, 20);
        // Blocks come in parts too.
        let windowed = |wanted, window| {
            let window = Streaming::Window(Window { parts: 3, ..Window::whole(window, 1) });
            let embeddings = Some(Embeddings::Parts);
            runner(&model, &Settings { window, embeddings, ..row_settings(Scheme::frozen(), 20) }, wanted)
        };
        let wanted = whole(&model, &ids);
        let mut rows = windowed(Wanted::Logits, 2);
        assert!(rows.plan().stored.iter().any(|s| part_of(&s.name).is_some()), "there are no parts");
        fill_row(&mut rows, 0, &ids);
        rows.run(0).expect("runs");
        assert_eq!(rows.result::<f32>(0, "logits"), wanted.concat());
        let (mut near, mut far) = (generating(&model, 20), windowed(Wanted::Generate, 1));
        let [mut near, mut far] = [&mut near, &mut far].map(|r| Generator::new(r).expect("generates"));
        for ids in [&ids[..12], &ids[12..13], &ids[13..14]] {
            assert_eq!(far.feed(ids).expect("feeds"), near.feed(ids).expect("feeds"));
        }
    }
}

#[test]
fn a_gguf_file_gives_the_logits_of_the_directory_it_was_made_from() {
    for name in MODELS {
        let ids = ids(&open(name), 20);
        let folder = Folder::new(&format!("generate-gguf-{name}"));
        let [ours, theirs] =
            [as_gguf(name, &folder.0.join("model.gguf")), open(name)].map(|m| whole(&m, &ids).concat());
        let off = difference(&ours, &theirs);
        assert!(off < 1e-5, "{name}: logits differ by {off}");
    }
}

#[test]
fn a_prompt_in_parts_is_a_prompt() {
    for name in MODELS {
        let model = open(name);
        let ids = ids(&model, 40);
        let wanted = whole(&model, &ids);
        let mut runner = generating(&model, 40);
        let mut generator = Generator::new(&mut runner).expect("generates");
        for part in [&ids[..7], &ids[7..8], &ids[8..31], &ids[31..]] {
            generator.feed(part).expect("feeds");
        }
        let text = generator.text().to_vec();
        assert_eq!(text, ids);
        generator.reset();
        generator.feed(&ids[..39]).expect("feeds");
        let off = difference(generator.feed(&ids[39..]).expect("feeds"), &wanted[39]);
        assert!(off < 1e-5, "{name}: logits differ by {off}");
    }
}

/// The continuation of a prompt and what ended it.
fn continued(generator: &mut Generator, prompt: &[u32], request: &Request) -> (Vec<u32>, Ended) {
    generator.reset();
    let mut out = Vec::new();
    let ended = generator.generate(prompt, request, |id| {
        out.push(id);
        ControlFlow::Continue(())
    });
    (out, ended.expect("generates"))
}

#[test]
fn a_seed_repeats_and_greedy_is_the_likeliest() {
    let model = open("llama");
    let prompt = ids(&model, 9);
    let mut runner = generating(&model, 64);
    let mut generator = Generator::new(&mut runner).expect("generates");
    let greedy = Request { tokens_max: 20, end_ids: &[], sampling: Sampling::default() };
    let (text, ended) = continued(&mut generator, &prompt, &greedy);
    assert_eq!((text.len(), ended), (20, Ended::TokensMax));
    let row: Vec<u32> = prompt.iter().chain(&text).copied().collect();
    for (logits, &id) in whole(&model, &row)[prompt.len() - 1..].iter().zip(&text) {
        let most = logits.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
        assert!(most - logits[id as usize] < 1e-5, "{id} is not the likeliest");
    }
    let random = |seed| Request { sampling: Sampling { temperature: 1.5, seed, ..Sampling::default() }, ..greedy };
    let first = continued(&mut generator, &prompt, &random(1));
    assert_eq!(first, continued(&mut generator, &prompt, &random(1)));
    assert_ne!(first, continued(&mut generator, &prompt, &random(2)));
    assert_ne!(first.0, text);
}

#[test]
fn a_generation_ends_for_every_reason() {
    let model = open("gpt2");
    let prompt = ids(&model, 30);
    let mut runner = generating(&model, 40);
    let mut generator = Generator::new(&mut runner).expect("generates");
    let mut request = Request { tokens_max: 100, end_ids: &[], sampling: Sampling::default() };
    let (all, ended) = continued(&mut generator, &prompt, &request);
    assert_eq!((all.len(), ended), (11, Ended::Context), "ten more are read, and one is chosen after them");
    request.tokens_max = 11;
    assert_eq!(continued(&mut generator, &prompt, &request), (all.clone(), Ended::TokensMax));
    let first = all.iter().position(|id| *id == all[3]).expect("it is there");
    let end = [all[3]];
    request.end_ids = &end;
    assert_eq!(continued(&mut generator, &prompt, &request), (all[..=first].to_vec(), Ended::EndToken));
    generator.reset();
    let mut left = 2;
    let ended = generator.generate(&prompt, &Request { end_ids: &[], ..request }, |_| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(ended.expect("generates"), Ended::Caller);
    assert_eq!(generator.text().len(), 31, "the token at which it ended is not read");
}

#[test]
fn prompts_that_cannot_be_read_are_refused() {
    let model = open("llama");
    let mut runner = generating(&model, 16);
    let mut generator = Generator::new(&mut runner).expect("generates");
    assert!(matches!(generator.feed(&[]), Err(GenerateError::Empty)));
    assert!(matches!(generator.feed(&[1; 17]), Err(GenerateError::Full { text: 0, more: 17, context: 16 })));
    assert!(matches!(generator.feed(&[3, 101]), Err(GenerateError::Token { id: 101, vocab: 101 })));
    assert!(generator.feed(&[1; 16]).is_ok());
    assert!(matches!(generator.feed(&[1]), Err(GenerateError::Full { text: 16, more: 1, context: 16 })));
    let request = Request { tokens_max: 1, end_ids: &[], sampling: Sampling { top_p: 2.0, ..Sampling::default() } };
    assert!(matches!(
        generator.generate(&[1], &request, |_| ControlFlow::Continue(())),
        Err(GenerateError::Sampling(_))
    ));
    let mut logits = common::runner(&model, &row_settings(Scheme::frozen(), 16), Wanted::Logits);
    assert!(matches!(Generator::new(&mut logits), Err(GenerateError::Plan("prefill"))));
}
