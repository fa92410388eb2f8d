//! The CPU device: one row a kernel, each a thin call of `tinyforge-kernels`.
//!
//! A row's file has the stem of the kernel's family; elementwise kernels come without one ([`each`]). The registry is
//! what the compiler asks for scratch, and what a plan's steps are bound to at load; a step never searches for its
//! kernel.

mod activation;
mod attention;
mod call;
mod conv;
mod each;
mod elementwise;
mod embedding;
mod int8;
mod linear;
mod loss;
mod norm;
mod pool;
mod update;

pub use call::KernelError;

use crate::arena::{Arena, Cuts};
use call::Call;
use std::ops::Range;
use std::time::Instant;
use tinyforge_kernels::f32::Elementwise;
use tinyforge_kernels::par::Par;
use tinyforge_plan::{Kernels, Number, Plan, Shape, Step};

/// A kernel of this device.
pub(crate) struct Kernel {
    /// The op's name.
    name: &'static str,
    /// Runs one step.
    run: fn(&mut Call) -> Result<(), KernelError>,
    /// Bytes of scratch, or why the shapes are not supported.
    scratch: fn(&Query) -> Result<usize, String>,
}

/// Bytes by which the first result must begin before the first operand, at least.
type Lead = fn(&Query) -> usize;

/// Kernels that may write their first result over their first operand.
const LEADS: &[(&str, Lead)] = &[("i8_bottleneck", int8::bottleneck_lead)];

fn lead(name: &str) -> Option<Lead> {
    LEADS.iter().find(|(kernel, _)| *kernel == name).map(|(_, lead)| *lead)
}

/// A kernel that needs no scratch and takes every shape.
const fn plain(name: &'static str, run: fn(&mut Call) -> Result<(), KernelError>) -> Kernel {
    Kernel { name, run, scratch: |_| Ok(0) }
}

/// A call that is being planned.
pub(crate) struct Query<'a> {
    args: &'a [Shape<'a>],
    outs: &'a [Shape<'a>],
    attrs: &'a [(String, Number)],
    threads: usize,
}

impl Query<'_> {
    fn int(&self, name: &str) -> i64 {
        match self.attrs.iter().find(|(n, _)| n == name) {
            Some((_, Number::Int(v))) => *v,
            _ => 0,
        }
    }

    fn size(&self, name: &str) -> usize {
        usize::try_from(self.int(name)).unwrap_or(0)
    }

    fn float(&self, name: &str) -> f32 {
        match self.attrs.iter().find(|(n, _)| n == name) {
            Some((_, Number::Float(v))) => *v as f32,
            _ => 0.0,
        }
    }
}

fn rows(shape: &Shape) -> usize {
    shape.dims.iter().rev().skip(1).map(|&d| d as usize).product()
}

fn cols(shape: &Shape) -> usize {
    shape.dims.last().map_or(1, |&d| d as usize)
}

fn elems(shape: &Shape) -> usize {
    rows(shape) * cols(shape)
}

const FAMILIES: &[&[Kernel]] = &[
    activation::KERNELS,
    attention::KERNELS,
    conv::KERNELS,
    elementwise::KERNELS,
    embedding::KERNELS,
    int8::KERNELS,
    linear::KERNELS,
    loss::KERNELS,
    norm::KERNELS,
    pool::KERNELS,
    update::KERNELS,
];

/// What a step is run by.
#[derive(Clone, Copy)]
enum Found {
    /// Its op's row.
    Row(&'static Kernel),
    /// The elementwise kernel of its op's name.
    Each(Elementwise),
}

fn find(name: &str) -> Option<Found> {
    let row = FAMILIES.iter().flat_map(|f| f.iter()).find(|k| k.name == name);
    row.map(Found::Row).or_else(|| each::find(name).map(Found::Each))
}

/// What the CPU's kernels can do with so many worker threads.
pub struct CpuKernels {
    /// Worker threads.
    pub threads: u32,
}

impl CpuKernels {
    /// Names of all kernels.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FAMILIES.iter().flat_map(|f| f.iter()).map(|k| k.name).chain(each::names())
    }
}

impl Kernels for CpuKernels {
    fn scratch_bytes(
        &self,
        kernel: &str,
        args: &[Shape],
        outs: &[Shape],
        attrs: &[(String, Number)],
    ) -> Result<u64, String> {
        let found = find(kernel).ok_or_else(|| "the CPU has no such kernel".to_string())?;
        let query = Query { args, outs, attrs, threads: self.threads.max(1) as usize };
        let bytes = match found {
            Found::Row(row) => (row.scratch)(&query),
            Found::Each(kernel) => each::scratch(kernel, &query),
        };
        bytes.map(|bytes| bytes as u64)
    }

    fn lead_bytes(&self, kernel: &str, args: &[Shape], outs: &[Shape], attrs: &[(String, Number)]) -> Option<u64> {
        let query = Query { args, outs, attrs, threads: self.threads.max(1) as usize };
        lead(kernel).map(|lead| lead(&query) as u64)
    }
}

/// What a step is bound to; the step itself stays in the plan.
struct Bound {
    cuts: Cuts,
    kernel: Found,
}

impl Bound {
    /// Binds a step over memory of so many bytes from an address on.
    fn of(step: &Step, (start, bytes): (u64, u64)) -> Result<Bound, String> {
        let kernel = find(&step.kernel).ok_or_else(|| format!("the CPU has no kernel `{}`", step.kernel))?;
        let overlays = lead(&step.kernel).is_some();
        Ok(Bound { cuts: Cuts::of(step, start, bytes, overlays)?, kernel })
    }

    fn run(&self, step: &Step, memory: &mut Arena, par: &Par) -> Result<(), KernelError> {
        let pieces = memory.pieces(&self.cuts);
        let mut call = Call::new(step, par, &self.cuts, pieces);
        match self.kernel {
            Found::Row(row) => (row.run)(&mut call),
            Found::Each(kernel) => {
                each::run(&mut call, kernel);
                Ok(())
            }
        }
    }
}

/// The steps of a plan that the host carries out beside a device, bound to kernels over the host's part of the far
/// memory: those of each entry, in order.
pub(crate) struct HostCode {
    entries: Vec<Vec<(Step, Bound)>>,
}

impl HostCode {
    /// Binds them.
    ///
    /// # Errors
    /// A kernel is unknown, or the plan is damaged.
    pub(crate) fn bind(plan: &Plan) -> Result<HostCode, String> {
        let place = plan.spaces.iter().find(|s| s.is_host).map_or((0, 0), |s| (s.first_byte, s.bytes));
        let of_host = |step: &&Step| plan.is_on_host(step);
        let bind = |step: &Step| Ok((step.clone(), Bound::of(step, place)?));
        let entries = plan.entries.iter().map(|e| e.steps.iter().filter(of_host).map(bind).collect());
        Ok(HostCode { entries: entries.collect::<Result<_, String>>()? })
    }

    /// The most steps of an entry.
    pub(crate) fn most(&self) -> usize {
        self.entries.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Runs one of them.
    ///
    /// # Errors
    /// A kernel refused its data.
    pub(crate) fn step(&self, (entry, nth): (usize, usize), memory: &mut Arena, par: &Par) -> Result<(), KernelError> {
        let (step, bound) = &self.entries[entry][nth];
        bound.run(step, memory, par)
    }
}

/// The entries of a plan, bound to kernels.
pub(crate) struct Code {
    /// Nothing for what the host carries out beside.
    entries: Vec<Vec<Option<Bound>>>,
    /// Nanoseconds spent in every step, and how often it ran, where they are counted.
    times: Option<Vec<Vec<(u64, u64)>>>,
}

impl Code {
    /// Binds every step of a plan.
    ///
    /// # Errors
    /// A kernel is unknown, or the plan is damaged.
    pub(crate) fn bind(plan: &Plan, count_times: bool) -> Result<Code, String> {
        let arena = (plan.arena_start(), plan.arena_bytes());
        let bind = |step: &Step| (!plan.is_on_host(step)).then(|| Bound::of(step, arena)).transpose();
        let entries = plan.entries.iter().map(|e| e.steps.iter().map(bind).collect::<Result<Vec<_>, String>>());
        let entries = entries.collect::<Result<Vec<_>, String>>()?;
        let times = count_times.then(|| entries.iter().map(|e| vec![(0, 0); e.len()]).collect());
        Ok(Code { entries, times })
    }

    /// Runs some steps of an entry of the plan that was bound.
    ///
    /// # Errors
    /// A kernel refused its data; the arena is then as that step left it.
    pub(crate) fn run(
        &mut self,
        plan: &Plan,
        entry: usize,
        steps: Range<usize>,
        arena: &mut Arena,
        par: &Par,
    ) -> Result<(), KernelError> {
        let end = steps.end.min(self.entries[entry].len());
        (steps.start..end).try_for_each(|i| self.step(&plan.entries[entry].steps[i], (entry, i), arena, par))
    }

    /// The number of steps of an entry.
    pub(crate) fn len(&self, entry: usize) -> usize {
        self.entries[entry].len()
    }

    /// Runs one step of an entry, the `i`th.
    ///
    /// # Errors
    /// A kernel refused its data.
    pub(crate) fn step(
        &mut self,
        step: &Step,
        (entry, i): (usize, usize),
        arena: &mut Arena,
        par: &Par,
    ) -> Result<(), KernelError> {
        let Code { entries, times } = self;
        let Some(bound) = &entries[entry][i] else { return Ok(()) };
        let started = times.is_some().then(Instant::now);
        bound.run(step, arena, par)?;
        if let (Some(times), Some(started)) = (times.as_mut(), started) {
            times[entry][i].0 += started.elapsed().as_nanos() as u64;
            times[entry][i].1 += 1;
        }
        Ok(())
    }

    /// Steps with nanoseconds and runs so far, where they are counted.
    pub(crate) fn times<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = (&'a Step, u64, u64)> {
        let all = plan.entries.iter().zip(self.times.iter().flatten());
        all.flat_map(|(entry, times)| entry.steps.iter().zip(times).map(|(step, &(ns, runs))| (step, ns, runs)))
    }
}
