//! The `tinyforge` command. Progress goes to stderr, results to stdout; exit code 0 done, 1 the run failed, 2 the
//! request was wrong.
#![forbid(unsafe_code)]

use clap::Parser;
use std::process::ExitCode;
use tinyforge_cli::commands::{
    bench, compile, devices, eval, generate, inspect, make_model, plan, resume, search, simulate, train,
};

/// Trains neural networks where the memory is too small for it
#[derive(Parser)]
#[command(name = "tinyforge", version)]
enum Cli {
    Plan(plan::PlanArgs),
    Train(train::TrainArgs),
    Resume(resume::ResumeArgs),
    Eval(eval::EvalArgs),
    Generate(generate::GenerateArgs),
    Inspect(inspect::InspectArgs),
    #[command(hide = true)]
    MakeModel(make_model::MakeModelArgs),
    Compile(compile::CompileArgs),
    Simulate(simulate::SimulateArgs),
    Search(search::SearchArgs),
    Bench(bench::BenchArgs),
    Devices(devices::DevicesArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli {
        Cli::Plan(args) => plan::run(args),
        Cli::Train(args) => train::run(args),
        Cli::Resume(args) => resume::run(args),
        Cli::Eval(args) => eval::run(args),
        Cli::Generate(args) => generate::run(args),
        Cli::Inspect(args) => inspect::run(args),
        Cli::MakeModel(args) => make_model::run(args),
        Cli::Compile(args) => compile::run(args),
        Cli::Simulate(args) => simulate::run(args),
        Cli::Search(args) => search::run(args),
        Cli::Bench(args) => bench::run(args),
        Cli::Devices(args) => devices::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.code())
        }
    }
}
