//! `tinyforge eval`: the mean loss of a model over data.

use super::Common;
use crate::error::CommandError;
use crate::host;
use crate::knobs::Knobs;
use crate::planning::Wanted;
use crate::request;
use std::ops::ControlFlow;
use std::path::PathBuf;
use tinyforge::data::{self, DataOptions, Row};
use tinyforge::runner::Runner;
use tinyforge::train;
use tinyforge_compiler::scheme::Scheme;

/// Measures a model's loss on data
#[derive(clap::Args, Debug)]
pub struct EvalArgs {
    /// A model: a Hugging Face directory or a GGUF file
    pub model: PathBuf,
    #[command(flatten)]
    knobs: Knobs,
    /// An adapter in PEFT's form
    #[arg(long)]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// Evaluates.
///
/// # Errors
/// The request cannot be met, or reading failed.
pub fn run(args: &EvalArgs) -> Result<(), CommandError> {
    let mut settings = args.knobs.settings()?;
    let data_path = args.knobs.data.as_ref().ok_or_else(|| CommandError::request("evaluation needs --data FILE"))?;
    let model = request::open(&args.model, &args.knobs)?;
    settings.scheme = match &args.adapter {
        Some(adapter) => crate::adapter::scheme(adapter)?,
        None => Scheme::frozen(),
    };
    settings.micro_batch = Some(settings.micro_batch.unwrap_or(1));
    let tokenizer = model.tokenizer()?;
    let fixed = request::fixed_parts(&model, &settings, tokenizer.estimated_bytes() as u64);
    let mut plans = request::plan_phases(&model, &settings, Wanted::Eval, &fixed)?;
    host::check(&plans)?;
    let planned = plans.remove(0);
    let options = DataOptions {
        pack: args.knobs.pack.unwrap_or(true),
        mask_prompt: args.knobs.mask_prompt.unwrap_or(true),
        seed: args.knobs.seed.unwrap_or(0),
        ..DataOptions::new(settings.seq as usize)
    };
    let mut quiet = |_| ControlFlow::Continue(());
    let set = data::prepare(data_path, None, None, &options, &tokenizer, &mut quiet)?;
    let mut runner = Runner::new(planned.compiled.plan, settings.run_options())?;
    runner.load(&model.files, 0)?;
    if let Some(adapter) = &args.adapter {
        crate::adapter::load(&mut runner, &model, adapter)?;
    }
    let micro_rows = planned.micro_rows as usize;
    let mut rows: Vec<Row> = (0..micro_rows).map(|_| Row::padding(settings.seq as usize, 0)).collect();
    let most = args.knobs.eval_rows.unwrap_or(u64::MAX);
    let threads = runner.threads();
    let loss = threads.enter(|| train::evaluate(&mut runner, &*set.train, most, micro_rows, &mut rows))?;
    let count = set.train.rows().min(most);
    println!("loss {loss:.4}, perplexity {:.2}, over {count} rows of {} tokens", loss.exp(), settings.seq);
    if args.common.json {
        println!("{}", serde_json::json!({ "loss": loss, "perplexity": loss.exp(), "rows": count }));
    }
    Ok(())
}
