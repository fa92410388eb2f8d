//! `tinyforge generate`: continues a text, or answers in a chat.

use super::Common;
use crate::error::CommandError;
use crate::fixed;
use crate::host;
use crate::knobs::Knobs;
use crate::model::Model;
use crate::planning::{Settings, Wanted};
use crate::request;
use crate::sizes::show;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;
use tinyforge::generate::{Ended, Generator, Request, Sampling, StopTexts};
use tinyforge::runner::Runner;
use tinyforge::text::{ChatTemplate, Conversation, TextStream, Tokenizer};
use tinyforge_compiler::scheme::Scheme;
use tinyforge_plan::Fixed;

/// Continues a text
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("text").required(true)))]
pub struct GenerateArgs {
    /// A model: a Hugging Face directory or a GGUF file
    pub model: PathBuf,
    /// An adapter in PEFT's form
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// The text to continue
    #[arg(long, group = "text")]
    prompt: Option<String>,
    /// A file with the text to continue
    #[arg(long, group = "text")]
    prompt_file: Option<PathBuf>,
    /// Put the text as a question, by the model's chat template
    #[arg(long)]
    chat: bool,
    /// The most tokens
    #[arg(long, default_value_t = 128)]
    max_tokens: u32,
    /// 0 takes the likeliest token; 1 draws by the model's probabilities
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Draw from so many of the likeliest tokens; 0 is all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Draw from the likeliest tokens that have this probability together
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Makes tokens less likely that the text already has; 1 does not
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End before this text; may be given several times
    #[arg(long)]
    stop: Vec<String>,
    /// Tokens that prompt and answer may have together [what they need]
    #[arg(long)]
    context: Option<u32>,
    /// Memory for everything: 64MiB, 2GiB [no limit]
    #[arg(long)]
    memory: Option<String>,
    /// The host's memory that holds what streams to a device with memory of its own; 0 leaves all of it in files [three
    /// quarters of what is free]
    #[arg(long)]
    host_memory: Option<String>,
    /// What runs the kernels: cpu, wgpu, cuda, or auto for a graphics card where there is one; without the flag the
    /// processor, so that memory limits and results mean the same on every machine [cpu]
    #[arg(long)]
    device: Option<String>,
    /// Worker threads [the cores]
    #[arg(long)]
    threads: Option<u32>,
    #[command(flatten)]
    common: Common,
}

/// How a generation went.
#[derive(serde::Serialize)]
struct Outcome {
    text: String,
    prompt_tokens: usize,
    tokens: usize,
    ended: &'static str,
    prompt_seconds: f64,
    seconds: f64,
    plan_total_bytes: u64,
    peak_rss_bytes: Option<u64>,
}

/// Generates: the text to stdout as it comes, how fast to stderr.
///
/// # Errors
/// The request cannot be met, or the run failed.
pub fn run(args: &GenerateArgs) -> Result<(), CommandError> {
    let model = Model::open(&args.model)?;
    let tokenizer = model.tokenizer()?;
    let prompt = prompt_ids(args, &tokenizer)?;
    let settings = settings(args, &model, prompt.len())?;
    let mut fixed = request::fixed_parts(&model, &settings, tokenizer.estimated_bytes() as u64);
    let bytes = Generator::bytes(model.config.vocab, settings.context as usize) as u64;
    fixed.push(Fixed { name: "sampler".to_string(), bytes });
    let mut plans = request::plan_phases(&model, &settings, Wanted::Generate, &fixed)?;
    host::check(&plans)?;
    let planned = plans.remove(0);
    let plan_total_bytes = planned.compiled.plan.total_bytes();
    let mut runner = Runner::new(planned.compiled.plan, settings.run_options())?;
    runner.load(&model.files, 0)?;
    if let Some(adapter) = &args.adapter {
        crate::adapter::load(&mut runner, &model, adapter)?;
    }
    let mut end_ids = tokenizer.end_ids().to_vec();
    end_ids.extend(&model.config.eos);
    let mut outcome = generate(args, &mut runner, &tokenizer, &prompt, &end_ids)?;
    outcome.plan_total_bytes = plan_total_bytes;
    report(&outcome);
    if args.common.json {
        println!("{}", serde_json::json!(outcome));
    }
    Ok(())
}

fn prompt_ids(args: &GenerateArgs, tokenizer: &Tokenizer) -> Result<Vec<u32>, CommandError> {
    let text = match &args.prompt_file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|e| CommandError::request(format!("--prompt-file {}: {e}", path.display())))?,
        None => args.prompt.clone().unwrap_or_default(),
    };
    if !args.chat {
        let mut ids = tokenizer.encode(&text, true, true).map_err(CommandError::request)?;
        if ids.is_empty() {
            ids.extend(tokenizer.bos());
        }
        return Ok(ids);
    }
    let (template, warning) = ChatTemplate::for_tokenizer(tokenizer).map_err(CommandError::request)?;
    if let Some(warning) = warning {
        eprintln!("warning: {warning}");
    }
    let text = template.render(&Conversation::pair(&text, None), true).map_err(CommandError::request)?;
    // A template writes the begin-of-text token itself where the model wants one.
    tokenizer.encode(&text, false, true).map_err(CommandError::request)
}

/// The planner's settings; without `--context` the text has room for the prompt and what may follow it, at most the
/// model's own context.
fn settings(args: &GenerateArgs, model: &Model, prompt: usize) -> Result<Settings, CommandError> {
    let longest = model.config.max_positions as u64;
    let context = match args.context {
        Some(context) if context == 0 || u64::from(context) > longest => {
            let why = format!("--context {context}: the model's is {longest}, and at least 1 is needed");
            return Err(CommandError::request(why));
        }
        Some(context) => u64::from(context),
        None => (prompt as u64 + u64::from(args.max_tokens)).clamp(1, longest),
    };
    let knobs = Knobs {
        seq: Some(context as u32),
        batch: Some(1),
        memory: args.memory.clone(),
        host_memory: args.host_memory.clone(),
        device: args.device.clone(),
        threads: args.threads,
        ..Knobs::default()
    };
    let scheme = match &args.adapter {
        Some(adapter) => crate::adapter::scheme(adapter)?,
        None => Scheme::frozen(),
    };
    Ok(Settings { scheme, ..knobs.settings()? })
}

/// Writes text to stdout as it becomes certain.
struct Printer<'t> {
    stream: TextStream<'t>,
    stops: StopTexts,
    /// All of the text, of which the first `shown` bytes are out.
    text: String,
    shown: usize,
}

impl Printer<'_> {
    /// Takes one id and tells whether a stop text appeared.
    fn push(&mut self, id: u32) -> Result<bool, CommandError> {
        let piece = self.stream.push(id).map_err(CommandError::run)?;
        let is_stopped = self.stops.push(&piece, &mut self.text);
        self.show()?;
        Ok(is_stopped)
    }

    /// Writes what was held back and ends the line.
    fn finish(&mut self, is_stopped: bool) -> Result<(), CommandError> {
        if !is_stopped {
            let piece = self.stream.finish().map_err(CommandError::run)?;
            if !self.stops.push(&piece, &mut self.text) {
                self.stops.finish(&mut self.text);
            }
        }
        self.show()?;
        writeln!(std::io::stdout()).map_err(CommandError::run)
    }

    fn show(&mut self) -> Result<(), CommandError> {
        let mut out = std::io::stdout().lock();
        let result = out.write_all(&self.text.as_bytes()[self.shown..]).and_then(|()| out.flush());
        self.shown = self.text.len();
        result.map_err(CommandError::run)
    }
}

fn generate(
    args: &GenerateArgs,
    runner: &mut Runner,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    end_ids: &[u32],
) -> Result<Outcome, CommandError> {
    let mut generator = Generator::new(runner)?;
    let sampling = Sampling {
        repetition_penalty: args.repetition_penalty,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
    };
    let request = Request { tokens_max: args.max_tokens as usize, end_ids, sampling };
    let stops = StopTexts::new(args.stop.iter().cloned());
    let mut printer = Printer { stream: TextStream::new(tokenizer, true), stops, text: String::new(), shown: 0 };
    let started = Instant::now();
    let (mut first, mut tokens, mut printed) = (None, 0, Ok(false));
    let ended = generator.generate(prompt, &request, |id| {
        first.get_or_insert_with(Instant::now);
        tokens += 1;
        printed = if end_ids.contains(&id) { Ok(false) } else { printer.push(id) };
        if matches!(printed, Ok(false)) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let first = first.unwrap_or_else(Instant::now);
    let seconds = first.elapsed().as_secs_f64();
    printer.finish(printed?)?;
    let ended = match ended {
        Ended::EndToken => "end token",
        Ended::TokensMax => "max tokens",
        Ended::Context => "context full",
        Ended::Caller => "stop text",
    };
    Ok(Outcome {
        text: printer.text,
        prompt_tokens: prompt.len(),
        tokens,
        ended,
        prompt_seconds: (first - started).as_secs_f64(),
        seconds,
        plan_total_bytes: 0,
        peak_rss_bytes: fixed::peak_rss_bytes(),
    })
}

fn report(outcome: &Outcome) {
    let Outcome { prompt_tokens, tokens, ended, prompt_seconds, seconds, .. } = outcome;
    // The first token comes with the prompt.
    let rest = tokens.saturating_sub(1) as f64;
    eprintln!(
        "prompt: {prompt_tokens} tokens, {:.1} tokens/s; text: {tokens} tokens, {:.1} tokens/s; ended by: {ended}",
        *prompt_tokens as f64 / prompt_seconds.max(1e-9),
        rest / seconds.max(1e-9)
    );
    if let Some(peak) = outcome.peak_rss_bytes {
        eprintln!("memory: peak {}, planned {}", show(peak), show(outcome.plan_total_bytes));
    }
}
