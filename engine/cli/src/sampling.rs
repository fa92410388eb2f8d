//! Short samples during a run: greedy continuation through the entries `prefill` and `decode`.

use crate::error::CommandError;
use tinyforge::runner::Runner;
use tinyforge::text::Tokenizer;

/// The most probable continuation of a text.
///
/// # Errors
/// The prompt is empty or does not fit the context.
pub fn continue_text(
    runner: &mut Runner,
    tokenizer: &Tokenizer,
    prompt: &str,
    tokens: u32,
) -> Result<String, CommandError> {
    let (Some(prefill), Some(decode)) = (runner.entry("prefill"), runner.entry("decode")) else {
        return Ok(String::new());
    };
    let prompt = tokenizer.encode(prompt, true, true).map_err(CommandError::request)?;
    let chunk = runner.input::<i32>(prefill, "tokens").len();
    let context = runner.plan().stored.iter().find(|s| s.name.ends_with(".k_cache")).map_or(0, |s| s.tensor.rows());
    if prompt.is_empty() || prompt.len() + tokens as usize > context {
        let why = format!("a sample of {} + {tokens} tokens does not fit the row of {context}", prompt.len());
        return Err(CommandError::request(why));
    }
    let mut next = 0;
    for (i, part) in prompt.chunks(chunk).enumerate() {
        next = feed(runner, prefill, part, i * chunk)?;
    }
    let mut made = Vec::new();
    while made.len() < tokens as usize && !tokenizer.end_ids().contains(&next) {
        made.push(next);
        next = feed(runner, decode, &[next], prompt.len() + made.len() - 1)?;
    }
    tokenizer.decode(&made, true).map_err(CommandError::run)
}

/// Feeds tokens from position `at` and returns the most probable next one.
fn feed(runner: &mut Runner, entry: usize, tokens: &[u32], at: usize) -> Result<u32, CommandError> {
    let input = runner.input::<i32>(entry, "tokens");
    input.fill(0);
    input.iter_mut().zip(tokens).for_each(|(i, &t)| *i = t as i32);
    let positions = runner.input::<i32>(entry, "positions");
    positions.fill(-1);
    positions.iter_mut().take(tokens.len()).enumerate().for_each(|(i, p)| *p = (at + i) as i32);
    runner.input::<i32>(entry, "last")[0] = tokens.len() as i32 - 1;
    runner.run(entry)?;
    let logits = runner.result::<f32>(entry, "logits");
    let best = logits.iter().enumerate().fold(0, |best, (i, &x)| if x > logits[best] { i } else { best });
    Ok(best as u32)
}
