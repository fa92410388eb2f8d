//! Float networks: run on the CPU, measured, quantised.

use super::model::{self, Opened};
use super::{FloatArgs, Int8Args, Ranges};
use crate::error::CommandError;
use std::path::Path;
use tinyforge::cpu::CpuKernels;
use tinyforge::files::{ReadAt, read_whole};
use tinyforge::runner::{RunOptions, Runner};
use tinyforge::samples::{self, Samples};
use tinyforge::simulate::largest;
use tinyforge_compiler::compile::{self, Entry, Request, Role};
use tinyforge_compiler::import::int8::Int8Model;
use tinyforge_compiler::import::onnx::{self, FloatModel};
use tinyforge_compiler::ir::graph::Graph;
use tinyforge_compiler::passes::quantize::{self, Bytes, Clipping, Observer, Range};
use tinyforge_plan::{Plan, Source};

/// Worker threads: networks for microcontrollers are small.
const THREADS: u32 = 2;
/// The share of values inside a range that is cut by percentile.
const PERCENTILE: f64 = 0.9999;

/// A float network that runs one sample at a time.
pub struct Float {
    name: String,
    model: FloatModel,
    bytes: Bytes,
    runner: Runner,
    /// Values whose ranges are measured: results `range.0`, `range.1`, ...
    observed: usize,
}

/// Samples that a network is quantised with where the user named none: the data that it is trained on.
pub struct Fallback<'a> {
    /// The data.
    pub data: &'a Path,
    /// Whether every tenth is held out.
    pub holds_out: bool,
}

/// Opens an int8 network, or makes one of a float network, which is given as well.
///
/// # Errors
/// A file is not there or damaged, the network has parts that are not supported, or a float one lacks samples.
pub fn open(args: &Int8Args, fallback: Option<Fallback>) -> Result<(Opened, Option<Float>), CommandError> {
    let path = &args.model;
    if !model::is_onnx(path) {
        return Ok((model::open(path, args.classes)?, None));
    }
    let bytes = read_whole(path).map_err(CommandError::request)?;
    let mut float = Float::open(path, &bytes, &args.float)?;
    let samples = calibration(args, fallback, float.shape())?;
    let mut model = float.quantize(&samples, args.float.ranges)?;
    if let Some(classes) = args.classes {
        let why = |e| CommandError::request(format!("{}: {e}", path.display()));
        model = model.with_classes(classes).map_err(why)?;
    }
    Ok((Opened { model, files: vec![ReadAt::open(path)?] }, Some(float)))
}

/// The samples that a float network is quantised with.
fn calibration(args: &Int8Args, fallback: Option<Fallback>, shape: [usize; 3]) -> Result<Samples, CommandError> {
    let named = args.float.calibrate.as_deref().map(|data| Fallback { data, holds_out: false });
    let Some(from) = named.or(fallback) else {
        return Err(CommandError::request(format!(
            "{} is a float network; its values' ranges are measured on samples: `--calibrate DIR` with some hundred \
             images like those that it will see, an IDX file, or raw int8 arrays",
            args.model.display()
        )));
    };
    if args.float.calibrate_samples == 0 {
        return Err(CommandError::request("--calibrate-samples must be at least 1"));
    }
    let all = samples::read_unlabelled(from.data, shape).map_err(CommandError::request)?;
    let all = if from.holds_out { all.split(10).0 } else { all };
    let count = args.float.calibrate_samples.min(all.len());
    let bytes = (0..count).flat_map(|i| all.sample(i * all.len() / count)).copied().collect();
    Ok(Samples::new(shape, bytes, vec![0; count], Vec::new()))
}

/// Reads the description of an ONNX file; its external data lie beside it.
///
/// # Errors
/// The file is damaged, or has parts that are not supported.
pub fn read(path: &Path, bytes: &[u8]) -> Result<FloatModel, CommandError> {
    let len_of =
        |name: &str| std::fs::metadata(path.with_file_name(name)).ok().filter(|m| m.is_file()).map(|m| m.len());
    let found = onnx::import(bytes, &path.to_string_lossy(), &len_of, 1);
    found.map_err(|e| CommandError::request(format!("{}: {e}", path.display())))
}

impl Float {
    /// Opens an ONNX file, of which `bytes` is all, and loads its weights.
    ///
    /// # Errors
    /// The file is damaged, has parts that are not supported, or there is not memory enough.
    pub fn open(path: &Path, bytes: &[u8], args: &FloatArgs) -> Result<Float, CommandError> {
        let name = path.display().to_string();
        let model = read(path, bytes)?;
        let request = |why: &dyn std::fmt::Display| CommandError::request(format!("{name}: {why}"));
        let bytes = Bytes { scale: args.input_scale, mean: args.input_mean.clone(), std: args.input_std.clone() };
        bytes.check(model.shape[2]).map_err(|e| request(&e))?;
        let observed = quantize::observed(&model.graph).map_err(|e| request(&e))?;
        let mut graph = model.graph.clone();
        graph.results.extend(observed.iter().enumerate().map(|(i, &v)| (format!("range.{i}"), v)));
        let plan = plan(&name, graph, &model).map_err(|e| request(&e))?;
        let mut files = Vec::new();
        for (i, file) in model.files.iter().enumerate() {
            files.push(ReadAt::open(&if i == 0 { path.to_path_buf() } else { path.with_file_name(file) })?);
        }
        let mut runner = Runner::new(plan, RunOptions::default())?;
        runner.load(&files, 0)?;
        Ok(Float { name, model, bytes, runner, observed: observed.len() })
    }

    /// Height, width and channels of a sample.
    pub fn shape(&self) -> [usize; 3] {
        self.model.shape.map(|d| d as usize)
    }

    /// Runs one sample, whose bytes lie as `[H,W,C]`.
    fn run(&mut self, sample: &[i8]) -> Result<(), CommandError> {
        let [height, width, channels] = self.shape();
        let area = height * width;
        let bytes = &self.bytes;
        for (i, x) in self.runner.input::<f32>(0, "images").iter_mut().enumerate() {
            let (c, pixel) = (i / area, i % area);
            *x = bytes.real(sample[pixel * channels + c], c);
        }
        Ok(self.runner.run(0)?)
    }

    /// The int8 network, with ranges measured on samples.
    ///
    /// # Errors
    /// A value is not finite, or int8 has no layer for a part of the network.
    pub fn quantize(&mut self, samples: &Samples, ranges: Ranges) -> Result<Int8Model, CommandError> {
        let clipping = match ranges {
            Ranges::MinMax => Clipping::MinMax,
            Ranges::Mse => Clipping::LeastSquares,
            Ranges::Percentile => Clipping::Percentile(PERCENTILE),
        };
        let mut observers = vec![Observer::default(); self.observed];
        for counts in [false, true] {
            for i in 0..samples.len() {
                self.run(samples.sample(i))?;
                for (k, observer) in observers.iter_mut().enumerate() {
                    let values = self.runner.result::<f32>(0, &format!("range.{k}"));
                    if counts {
                        observer.count(values);
                    } else if !observer.widen(values) {
                        return Err(CommandError::run(format!(
                            "{}: sample {i} gives a value that is not finite",
                            self.name
                        )));
                    }
                }
            }
        }
        let ranges: Vec<Range> = observers.iter().map(|o| o.range(clipping)).collect();
        let runner = &self.runner;
        let weights = |name: &str| runner.stored(name).map(|(_, bytes)| bytemuck::cast_slice(bytes).to_vec());
        let request = quantize::Request {
            name: &self.name,
            graph: &self.model.graph,
            shape: self.model.shape,
            bytes: &self.bytes,
            weights: &weights,
            ranges: &ranges,
        };
        let model = compile::to_int8(&request).map_err(|e| CommandError::request(format!("{}: {e}", self.name)))?;
        eprintln!("quantised with {} samples", samples.len());
        Ok(Int8Model { notes: [self.model.notes.clone(), model.notes].concat(), ..model })
    }

    /// The share of samples whose largest result is their label.
    ///
    /// # Errors
    /// A kernel refused its data.
    pub fn accuracy(&mut self, samples: &Samples) -> Result<f64, CommandError> {
        let mut right = 0;
        for i in 0..samples.len() {
            self.run(samples.sample(i))?;
            let named = largest(self.runner.result::<f32>(0, "output"));
            right += usize::from(named == samples.labels[i] as usize);
        }
        Ok(right as f64 / samples.len().max(1) as f64)
    }
}

/// The plan of one sample's forward pass.
fn plan(name: &str, graph: Graph, model: &FloatModel) -> Result<Plan, CommandError> {
    let compiled = compile::compile(&Request {
        source: &|tensor: &str| model.source(tensor).unwrap_or(Source::Zero),
        files: model.files.clone(),
        threads: THREADS,
        ..Request::plain(
            name,
            vec![Entry { name: "infer".to_string(), graph, role: Role::Forward }],
            &CpuKernels { threads: THREADS },
        )
    });
    Ok(compiled.map_err(CommandError::request)?.plan)
}
