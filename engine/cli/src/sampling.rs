//! Short samples during a run: greedy continuation through the entries `prefill` and `decode`.

use crate::error::CommandError;
use std::ops::ControlFlow;
use tinyforge::generate::{Generator, Request, Sampling};
use tinyforge::runner::Runner;
use tinyforge::text::Tokenizer;

/// The most probable continuation of a text; nothing where the plan cannot continue any.
///
/// # Errors
/// The prompt is empty or does not fit the context.
pub fn continue_text(
    runner: &mut Runner,
    tokenizer: &Tokenizer,
    prompt: &str,
    tokens: u32,
) -> Result<String, CommandError> {
    if runner.entry("prefill").is_none() {
        return Ok(String::new());
    }
    let prompt = tokenizer.encode(prompt, true, true).map_err(CommandError::request)?;
    let end_ids = tokenizer.end_ids();
    let request = Request { tokens_max: tokens as usize, end_ids, sampling: Sampling::default() };
    let mut made = Vec::new();
    Generator::new(runner)?.generate(&prompt, &request, |id| {
        made.extend((!end_ids.contains(&id)).then_some(id));
        ControlFlow::Continue(())
    })?;
    tokenizer.decode(&made, true).map_err(CommandError::run)
}
