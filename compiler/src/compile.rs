//! From imported graphs to a plan: the one place that knows the order of the passes.
//!
//! ```text
//! parameterize -> differentiate -> prune -> fuse -> update -> layer_major -> host_update -> fuse_update ->
//! split_update -> split_tables -> order -> recompute -> order -> fuse_rows -> fuse_channels -> host_update -> spill ->
//! pipeline -> place -> lower
//! ```
//! Every graph is verified after every pass; a fault there is ours and names the pass. Under a budget the choice
//! that costs least time is taken: keep gradients rather than compute them twice, recompute as little as fits.

use crate::import::int8::{self, Int8Error, Int8Model};
use crate::ir::graph::Graph;
use crate::ir::text::print_graph;
use crate::ir::types::Type;
use crate::ir::verify::{self, Finding};
use crate::lower::{self, Input, Placed};
use crate::passes::live::Life;
use crate::passes::parameterize::{Parameters, Storage};
use crate::passes::pipeline::{Pipeline, Stay, Window};
use crate::passes::place::{Guest, Needs, Placement};
use crate::passes::split_tables::Tables;
use crate::passes::update::{ClipBy, Optimizer};
use crate::passes::{
    differentiate, fuse, fuse_channels, fuse_rows, fuse_update, host_update, layer_major, order, parameterize,
    pipeline, place, prune, quantize, recompute, spill, split_tables, split_update, update,
};
use crate::scheme::{Scheme, SchemeError, SchemeKind};
use crate::target::Target;
use std::collections::HashSet;
use tinyforge_plan::{DType, Kernels, Peak, Plan, Source};

/// Makes an int8 network of a float one, before everything else: what it gives is compiled as an imported one is.
///
/// # Errors
/// The float network has a part that int8 has no layer for, or a number that int8 cannot hold.
pub fn to_int8(request: &quantize::Request) -> Result<Int8Model, Int8Error> {
    let model = quantize::run(request)?;
    let findings = verify::verify(&model.graph(int8::Entry::Whole, 1)?);
    assert!(findings.is_empty(), "pass quantize broke {}: {}", request.name, list(&findings));
    Ok(model)
}

/// What an entry is made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Forward, backward and update; the updates are an entry of their own, `update`, when a step has several
    /// micro-batches.
    Train {
        /// Micro-batches a step.
        micro_batches: u32,
    },
    /// Forward alone.
    Forward,
}

/// An entry to be compiled.
pub struct Entry {
    /// Its name in the plan.
    pub name: String,
    /// The forward graph, as imported.
    pub graph: Graph,
    /// What it is made for.
    pub role: Role,
}

/// How much is recomputed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Recompute {
    /// As little as the budget allows.
    Auto,
    /// Nothing.
    Nothing,
    /// Everything that can be.
    All,
    /// A step of the ladder, for tests: `0..=steps`.
    Step(u32),
}

impl Recompute {
    /// What takes least memory, of what it leaves open.
    pub fn least(self) -> Recompute {
        if self == Recompute::Auto { Recompute::All } else { self }
    }
}

/// Where embeddings and heads larger than a block live, in the order in which each takes less memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Embeddings {
    /// In the near memory.
    Near,
    /// In the far memory, from where they come and go as blocks do.
    Far,
    /// There too, in parts no larger than a block; what is trained, where its gradients are made by panels.
    Parts,
}

/// Receives a stage's text: `(entry, stage, text)`.
pub type Dump<'a> = &'a dyn Fn(&str, &str, &str);

/// All that a plan is made from.
pub struct Request<'a> {
    /// Name of the plan.
    pub name: String,
    /// Entries; they share weights and state by name.
    pub entries: Vec<Entry>,
    /// What is trained.
    pub scheme: Scheme,
    /// Active group of a `cycle`.
    pub group: u32,
    /// Whether a `cycle` keeps the states of all its groups, at the same places in all their plans.
    pub keep_states: bool,
    /// Storage of parameters.
    pub storage: Storage,
    /// The update rule.
    pub optimizer: Optimizer,
    /// How clipping knows the norm; `None` leaves the choice to the budget.
    pub clip_by: Option<ClipBy>,
    /// How much is recomputed.
    pub recompute: Recompute,
    /// The most that the plan may take of the near memory.
    pub arena_bytes_max: Option<u64>,
    /// The most of the host's memory that may hold what lives in a far memory; files hold the rest. Nothing where the
    /// host's memory is the near one.
    pub host_bytes_max: u64,
    /// Whether the host updates, beside the device's backward, the weights that come and go with their blocks: all of
    /// them, with their states and gradients, then rest in its memory.
    pub host_updates: bool,
    /// Blocks that the near memory holds at a time, the others living in the far one; `None` keeps all of them.
    pub window: Option<Window>,
    /// Where, with a window, embeddings and heads larger than a block live; `None` takes the first that fits, or under
    /// which no activations would have to go.
    pub embeddings: Option<Embeddings>,
    /// Whether, with a window, activations live in the far memory between forward and backward; `None` does that only
    /// where nothing else fits.
    pub spill: Option<bool>,
    /// Whether, with a window, the gradient of a tensor larger than a block is made a panel of rows at a time; `None`
    /// does that only where whole ones do not fit, or make more be computed again.
    pub panels: Option<bool>,
    /// What the plan is made for.
    pub target: Target,
    /// What the device's kernels can do.
    pub kernels: &'a dyn Kernels,
    /// Where a weight or constant comes from.
    pub source: &'a dyn Fn(&str) -> Source,
    /// The model's files.
    pub files: Vec<String>,
    /// Worker threads.
    pub threads: u32,
    /// Receives every stage's text, where asked for: `(entry, stage, text)`.
    pub dump: Option<Dump<'a>>,
}

impl<'a> Request<'a> {
    /// Everything in f32 trained by `sgd` on one thread of the CPU, all in the near memory without a limit and nothing
    /// computed twice, from zeros: what a caller changes who wants something else.
    pub fn plain(name: &str, entries: Vec<Entry>, kernels: &'a dyn Kernels) -> Request<'a> {
        Request {
            name: name.to_string(),
            entries,
            scheme: Scheme::full(),
            group: 0,
            keep_states: false,
            storage: Storage { trained: DType::F32, frozen: None },
            optimizer: Optimizer::plain("sgd"),
            clip_by: None,
            recompute: Recompute::Nothing,
            arena_bytes_max: None,
            host_bytes_max: 0,
            host_updates: false,
            window: None,
            embeddings: None,
            spill: None,
            panels: None,
            target: Target::CPU,
            kernels,
            source: &|_| Source::Zero,
            files: Vec::new(),
            threads: 1,
            dump: None,
        }
    }
}

/// What was chosen to meet the budget.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Choice {
    /// Step of the recomputation ladder that was taken.
    pub recompute_step: u32,
    /// Steps of the ladder.
    pub recompute_steps: u32,
    /// Where embeddings and heads live.
    pub embeddings: Embeddings,
    /// Whether activations live in the far memory between forward and backward.
    pub spills: bool,
    /// Whether large gradients are made by panels.
    pub panels: bool,
    /// How clipping knows the norm, where gradients are clipped.
    pub clip_by: Option<ClipBy>,
}

/// A plan with what was decided on the way.
pub struct Compiled {
    /// The plan.
    pub plan: Plan,
    /// What the scheme meant.
    pub parameters: Parameters,
    /// What the budget led to.
    pub choice: Choice,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The scheme does not suit the model.
    #[error(transparent)]
    Scheme(#[from] SchemeError),
    /// The model asks for something that cannot be compiled.
    #[error("{entry}: {}", list(.findings))]
    Model {
        /// The entry.
        entry: String,
        /// All that is wrong.
        findings: Vec<Finding>,
    },
    /// The device has no kernel for something.
    #[error("{entry}: no kernel: {why}")]
    NoKernel {
        /// The entry.
        entry: String,
        /// What, and why not.
        why: String,
    },
    /// The host cannot update what its memory has no room for.
    #[error("the host's updates need {need} bytes of its memory, the limit is {limit} ({} over)", .need - .limit)]
    HostMemory {
        /// Weights, states and gradients.
        need: u64,
        /// The most that the plan may take.
        limit: u64,
    },
    /// The budget cannot be met.
    #[error("plan needs an arena of {} bytes, the budget leaves {} ({} over)", .need, .limit, .need - .limit)]
    Budget {
        /// The smallest arena that was found.
        need: u64,
        /// What the budget leaves.
        limit: u64,
        /// The entry whose peak it is.
        entry: String,
        /// Where memory is fullest.
        peak: Box<Peak>,
        /// The step there: kernel and name.
        at: String,
        /// How many steps the entry has.
        steps: u32,
        /// Bytes of the near memory's stored tensors, below everything.
        stored: u64,
        /// What the plan itself takes on the heap.
        heap: u64,
        /// Of `need`, what a caller counts that is outside the arena; nothing at first.
        beside: u64,
    },
}

fn list(findings: &[Finding]) -> String {
    findings.iter().map(|f| f.message.as_str()).collect::<Vec<_>>().join("; ")
}

/// An entry on its way through the passes.
#[derive(Clone)]
struct Stage {
    name: String,
    graph: Graph,
}

impl Stage {
    /// Runs a pass and verifies what it left.
    fn pass<R>(&mut self, request: &Request, pass: &str, run: impl FnOnce(&mut Graph) -> R) -> R {
        let result = run(&mut self.graph);
        let findings = verify::verify(&self.graph);
        let first = &findings[..findings.len().min(3)];
        assert!(findings.is_empty(), "pass {pass} broke {}: {}", self.name, list(first));
        if let Some(dump) = request.dump {
            dump(&self.name, pass, &print_graph(&self.graph));
        }
        result
    }
}

/// Compiles a plan.
///
/// # Errors
/// See [`CompileError`]; nothing is allocated for the run before this returns.
pub fn compile(request: &Request) -> Result<Compiled, CompileError> {
    let front = front(request)?;
    let mut smallest: Option<CompileError> = None;
    for clip_by in clip_choices(request) {
        match fit(request, &front, clip_by) {
            Ok((plan, mut choice)) => {
                choice.clip_by = request.optimizer.clip.map(|_| clip_by);
                return Ok(Compiled { plan, parameters: front.parameters, choice });
            }
            Err(error @ CompileError::Budget { .. }) => {
                let need = |e: &CompileError| if let CompileError::Budget { need, .. } = e { *need } else { u64::MAX };
                if smallest.as_ref().is_none_or(|s| need(&error) < need(s)) {
                    smallest = Some(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(smallest.expect("at least one way of clipping was tried"))
}

fn clip_choices(request: &Request) -> Vec<ClipBy> {
    let several = request.entries.iter().any(|e| matches!(e.role, Role::Train { micro_batches } if micro_batches > 1));
    match request.clip_by {
        Some(by) => vec![by],
        None if request.optimizer.clip.is_some() && !several => vec![ClipBy::Keeping, ClipBy::SecondBackward],
        None => vec![ClipBy::Keeping],
    }
}

/// What does not depend on the budget.
struct Front {
    stages: Vec<Stage>,
    parameters: Parameters,
    /// States that outlive their group's turn.
    kept: Vec<(String, Type)>,
    /// Tables that can be stored in parts.
    tables: Tables,
}

/// The passes before anything depends on the budget.
fn front(request: &Request) -> Result<Front, CompileError> {
    let mut stages = Vec::new();
    let mut parameters = Parameters::default();
    for entry in &request.entries {
        let findings = verify::verify(&entry.graph);
        if !findings.is_empty() {
            return Err(CompileError::Model { entry: entry.name.clone(), findings });
        }
        let mut stage = Stage { name: entry.name.clone(), graph: entry.graph.clone() };
        let found = stage
            .pass(request, "parameterize", |g| parameterize::run(g, &request.scheme, request.storage, request.group))?;
        if let Role::Train { .. } = entry.role {
            stage
                .pass(request, "differentiate", differentiate::run)
                .map_err(|findings| CompileError::Model { entry: entry.name.clone(), findings })?;
            update::check(&stage.graph, &request.optimizer, &found.trained)
                .map_err(|findings| CompileError::Model { entry: entry.name.clone(), findings })?;
            stage.pass(request, "prune", |g| prune::run(g, |name| found.trained.iter().any(|t| t == name)));
        }
        stage.pass(request, "fuse", fuse::run);
        parameters = found;
        stages.push(stage);
    }
    let graphs: Vec<&Graph> = stages.iter().map(|s| &s.graph).collect();
    let is_open = |name: &str| split_tables::has_rows(&start_of(request, &parameters, name));
    let tables = request.window.map(|w| split_tables::tables(&graphs, w.parts, is_open)).unwrap_or_default();
    Ok(Front { stages, parameters, kept: kept_states(request)?, tables })
}

/// What a tensor holds at first.
fn start_of(request: &Request, parameters: &Parameters, name: &str) -> Source {
    parameters.start_of(name).unwrap_or_else(|| (request.source)(name))
}

/// The states that all groups of a `cycle` have together, in one order for all of them; none where they are dropped.
fn kept_states(request: &Request) -> Result<Vec<(String, Type)>, CompileError> {
    let trains = request.entries.iter().find(|e| matches!(e.role, Role::Train { .. }));
    let (true, Some(entry), &SchemeKind::Cycle(n)) = (request.keep_states, trains, &request.scheme.kind) else {
        return Ok(Vec::new());
    };
    let mut kept: Vec<(String, Type)> = Vec::new();
    for group in 0..parameterize::cycle_groups(&entry.graph, n) {
        let mut graph = entry.graph.clone();
        for name in parameterize::run(&mut graph, &request.scheme, request.storage, group)?.trained {
            let ty = graph.ty(graph.find(&name).expect("what is trained is declared"));
            let states = update::states(&request.optimizer).iter();
            kept.extend(states.map(|state| (format!("{name}.{}", state.name), (state.ty)(ty))));
        }
    }
    // Head and embedding belong to every group.
    let mut seen = HashSet::new();
    kept.retain(|(name, _)| seen.insert(name.clone()));
    Ok(kept)
}

/// Emits updates: the entries, and those that updates need; and of the way what has an effect: where embeddings live,
/// and whether gradients are made by panels.
fn updated(request: &Request, front: &Front, way: &Way) -> (Vec<Stage>, Embeddings, bool) {
    let Way { clip_by, panels, embeddings, .. } = *way;
    let (mut ready, mut splits) = (Vec::new(), false);
    let none = Tables::new();
    let tables = if embeddings == Embeddings::Parts { &front.tables } else { &none };
    for (entry, stage) in request.entries.iter().zip(&front.stages) {
        let mut stage = stage.clone();
        if let Role::Train { micro_batches } = entry.role {
            let finish = stage.pass(request, "update", |g| update::run(g, &request.optimizer, clip_by, micro_batches));
            let finish = match finish {
                // A window's blocks are visited once for all micro-batches.
                Some(update) if request.window.is_some() => {
                    stage.pass(request, "layer_major", |g| *g = layer_major::run(g, &update, micro_batches));
                    None
                }
                finish => finish,
            };
            if let Some(window) = request.window.filter(|_| request.host_updates && !rotates(request)) {
                let others = front.stages.iter().filter(|s| s.name != stage.name).map(|s| &s.graph);
                let graphs: Vec<&Graph> = std::iter::once(&stage.graph).chain(others).collect();
                let streamed = pipeline::streamed_weights(&graphs, window);
                stage.pass(request, "host_update", |g| host_update::mark(g, &streamed));
            }
            stage.pass(request, "fuse_update", fuse_update::run);
            // Where groups take turns, their states stay near.
            if let Some(window) = request.window.filter(|_| !rotates(request)) {
                let panels = split_update::Panels { gradients: panels, block_parts: window.parts, tables };
                splits |= stage.pass(request, "split_update", |g| split_update::run(g, &panels));
            }
            ready.push(stage);
            ready.extend(finish.map(|graph| Stage { name: "update".to_string(), graph }));
        } else {
            ready.push(stage);
        }
    }
    let tables = split_tables::splittable(&ready.iter().map(|s| &s.graph).collect::<Vec<_>>(), tables);
    for stage in &mut ready {
        if !tables.is_empty() {
            stage.pass(request, "split_tables", |g| split_tables::run(g, &tables));
        }
        // Updates must stand where they will run before it is known where a recomputed value is first read.
        if request.entries.iter().any(|e| e.name == stage.name && e.role != Role::Forward) {
            stage.pass(request, "order", order::run);
        }
    }
    (ready, if tables.is_empty() { embeddings.min(Embeddings::Far) } else { embeddings }, splits)
}

/// A way to meet the budget.
#[derive(Clone, Copy)]
struct Way {
    clip_by: ClipBy,
    recompute: Recompute,
    /// Where embeddings and heads live.
    embeddings: Embeddings,
    /// Whether large gradients are made by panels.
    panels: bool,
}

/// Finds the cheapest plan that fits, wherever embeddings live. What takes least is looked at first.
fn fit(request: &Request, front: &Front, clip_by: ClipBy) -> Result<(Plan, Choice), CompileError> {
    let graphs: Vec<&Graph> = front.stages.iter().map(|s| &s.graph).collect();
    let can_go = request.window.is_some_and(|w| pipeline::has_embeddings(&graphs, w.parts));
    let lowest = match (can_go, front.tables.is_empty()) {
        (false, _) => Embeddings::Near,
        (true, true) => Embeddings::Far,
        (true, false) => Embeddings::Parts,
    };
    let with = |embeddings| fit_gradients(request, front, (clip_by, embeddings));
    match request.embeddings {
        Some(embeddings) => return with(embeddings.min(lowest)),
        None if !can_go || request.arena_bytes_max.is_none() => return with(Embeddings::Near),
        None => {}
    }
    let (recompute, panels) = (request.recompute.least(), request.panels.unwrap_or(true));
    fit_recomputation(request, front, Way { clip_by, recompute, embeddings: lowest, panels })?;
    let (mut spilling, mut refused) = (None, None);
    for embeddings in [Embeddings::Near, Embeddings::Far, Embeddings::Parts].into_iter().filter(|e| *e <= lowest) {
        match with(embeddings) {
            Ok(found) if !found.1.spills => return Ok(found),
            Ok(found) => spilling = spilling.or(Some(found)),
            Err(error @ CompileError::Budget { .. }) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    spilling.ok_or_else(|| refused.expect("one place at least was looked at"))
}

/// Finds the cheapest plan that fits, with gradients whole or by panels. What takes least is looked at first.
fn fit_gradients(
    request: &Request,
    front: &Front,
    (clip_by, embeddings): (ClipBy, Embeddings),
) -> Result<(Plan, Choice), CompileError> {
    let is_open = request.window.is_some() && request.arena_bytes_max.is_some();
    let way = |panels| Way { clip_by, recompute: request.recompute, embeddings, panels };
    let first = fit_recomputation(request, front, way(request.panels.unwrap_or(is_open)))?;
    if request.panels.is_some() || !first.1.panels {
        return Ok(first);
    }
    let cost = |found: &(Plan, Choice)| (found.1.spills, found.0.entries.iter().map(|e| e.flops()).max());
    match fit_recomputation(request, front, way(false)) {
        Ok(whole) if cost(&whole) <= cost(&first) => Ok(whole),
        Ok(_) | Err(CompileError::Budget { .. }) => Ok(first),
        Err(error) => Err(error),
    }
}

/// Finds the cheapest recomputation that fits.
fn fit_recomputation(request: &Request, front: &Front, way: Way) -> Result<(Plan, Choice), CompileError> {
    let (ready, embeddings, panels) = updated(request, front, &way);
    let steps = ready.iter().map(|s| ladder_steps(&s.graph)).max().unwrap_or(0);
    let can_spill = request.window.is_some() && !rotates(request) && request.spill != Some(false);
    let always = can_spill && request.spill == Some(true);
    let planned = |stages: Vec<Stage>, spills| back(request, &spilled(request, stages, spills), front, embeddings);
    let at = |step: u32, spills: bool| planned(arranged(request, &ready, step), spills);
    let choice = |recompute_step, spills| Choice {
        recompute_step,
        recompute_steps: steps,
        embeddings,
        spills,
        panels,
        clip_by: None,
    };
    let limit = request.arena_bytes_max.unwrap_or(u64::MAX);
    // Spills only where it must. What takes least is looked at first, so that a refusal costs one plan.
    let fixed = |step: u32| {
        let stages = arranged(request, &ready, step);
        let largest = stages.iter().filter_map(|s| spill::largest_bytes(&s.graph)).max();
        let Some(largest) = largest.filter(|_| can_spill && !always && request.arena_bytes_max.is_some()) else {
            let plan = planned(stages, always)?;
            return Ok((bounded(request, plan)?, choice(step, always)));
        };
        let least = planned(stages.clone(), true)?;
        if least.near_bytes() > limit.saturating_add(largest) {
            return Ok((bounded(request, least)?, choice(step, true)));
        }
        let plain = planned(stages, false)?;
        match plain.near_bytes() <= limit || plain.near_bytes() <= least.near_bytes() {
            true => Ok((bounded(request, plain)?, choice(step, false))),
            false => Ok((bounded(request, least)?, choice(step, true))),
        }
    };
    match way.recompute {
        Recompute::Nothing => fixed(0),
        Recompute::All => fixed(steps),
        Recompute::Step(step) => fixed(step.min(steps)),
        Recompute::Auto => {
            let (mut low, mut high) = (0, steps);
            // A window is asked for where memory is short: then what takes least is looked at first.
            let is_short = request.window.is_some() && request.arena_bytes_max.is_some();
            let least = is_short.then(|| fixed(steps)).transpose()?;
            // Nothing fits without spilling, and then only this was looked at.
            if let Some((_, choice)) = &least
                && choice.spills
                && !always
            {
                return Ok(least.expect("it was just looked at"));
            }
            let first = at(0, always)?;
            if first.near_bytes() <= limit {
                return Ok((first, choice(0, always)));
            }
            let (mut best, _) = least.map_or_else(|| fixed(steps), Ok)?;
            // Invariant: step `high` fits, step `low` does not.
            while high - low > 1 {
                let middle = low + (high - low) / 2;
                let plan = at(middle, always)?;
                if plan.near_bytes() <= limit {
                    (high, best) = (middle, plan);
                } else {
                    low = middle;
                }
            }
            Ok((best, choice(high, always)))
        }
    }
}

/// Whether groups of blocks take turns in being trained.
fn rotates(request: &Request) -> bool {
    matches!(request.scheme.kind, SchemeKind::Cycle(_))
}

/// Steps of the recomputation ladder: for every rung, one step a block.
fn ladder_steps(graph: &Graph) -> u32 {
    (recompute::ladder(graph).len() as u32 - 1) * graph.blocks.len() as u32
}

/// Copies, places, and the plan they lead to.
fn back(request: &Request, stages: &[Stage], front: &Front, embeddings: Embeddings) -> Result<Plan, CompileError> {
    let graphs: Vec<&Graph> = stages.iter().map(|s| &s.graph).collect();
    let far = embeddings > Embeddings::Near;
    let streamed = request.window.map(|window| pipeline::run(&graphs, window, rotates(request), far));
    let pipeline = streamed.unwrap_or_default();
    let stays = |i: usize| pipeline.stays.get(i).map_or(&[][..], Vec::as_slice);
    let sizes = parcel_bytes(&graphs, &pipeline, &request.target);
    let mut placed: Vec<(Needs, Vec<Guest>, Placement)> = Vec::new();
    for (i, stage) in stages.iter().enumerate() {
        let no_kernel = |why| CompileError::NoKernel { entry: stage.name.clone(), why };
        let needs = lower::needs(&stage.graph, request.kernels).map_err(no_kernel)?;
        let guests: Vec<Guest> = stays(i).iter().map(|stay| guest(stay, &sizes)).collect();
        let placement = place::run(&stage.graph, &needs, &guests, &request.target);
        placed.push((needs, guests, placement));
    }
    let entries: Vec<Placed> = stages
        .iter()
        .zip(&placed)
        .enumerate()
        .map(|(i, (stage, (needs, guests, placement)))| Placed {
            name: &stage.name,
            graph: &stage.graph,
            scratch: &needs.scratch,
            placement,
            stays: stays(i),
            guests,
        })
        .collect();
    let whole = |name: &str| start_of(request, &front.parameters, name);
    let source = |name: &str| {
        let ty = graphs.iter().find_map(|g| Some(g.ty(g.find(name)?)));
        ty.map_or_else(|| whole(name), |ty| split_tables::source(name, ty, &front.tables, &whole))
    };
    let Request { name, threads, files, target, .. } = request;
    let (kept, parcels) = (&front.kept, &pipeline.parcels);
    let in_host = &pipeline::in_host(&graphs, &pipeline, request.host_bytes_max, |bytes| target.align(bytes));
    let of_host = host_update::tensors(&graphs);
    if of_host.iter().any(|name| !in_host.contains(*name)) {
        let bytes = |name: &&str| graphs.iter().find_map(|g| Some(target.align(g.ty(g.find(name)?).bytes())));
        let need: u64 = of_host.iter().filter_map(bytes).sum();
        return Err(CompileError::HostMemory {
            need: need.max(request.host_bytes_max + 1),
            limit: request.host_bytes_max,
        });
    }
    let (source, threads, target) = (&source, *threads, *target);
    Ok(lower::run(&Input { name, entries, source, threads, files, target, kept, parcels, in_host }))
}

/// Entries with so much recomputation, in the order in which they will run.
fn arranged(request: &Request, stages: &[Stage], step: u32) -> Vec<Stage> {
    stages.iter().map(|stage| arrange(request, stage, step)).collect()
}

/// The same with activations in the far memory, where they are to be.
fn spilled(request: &Request, mut stages: Vec<Stage>, spills: bool) -> Vec<Stage> {
    if spills {
        stages.iter_mut().for_each(|stage| stage.pass(request, "spill", spill::run));
    }
    stages
}

/// Recomputation and order of one entry.
fn arrange(request: &Request, stage: &Stage, step: u32) -> Stage {
    let mut stage = stage.clone();
    let rungs = recompute::ladder(&stage.graph);
    let blocks = stage.graph.blocks.len() as u32;
    let (rung, extra) = ((step / blocks) as usize, step % blocks);
    let at = |block: u32| rungs[(rung + usize::from(block < extra)).min(rungs.len() - 1)];
    stage.pass(request, "recompute", |g| recompute::run(g, at));
    stage.pass(request, "order", order::run);
    let profile = |g: &Graph| {
        let needs = lower::needs(g, request.kernels).ok()?;
        Some(place::profile(g, &needs, &request.target))
    };
    // Each may bring the peak to where the other helps.
    loop {
        let nodes = stage.graph.nodes.len();
        stage.pass(request, "fuse_rows", |g| fuse_rows::run(g, profile));
        stage.pass(request, "fuse_channels", |g| fuse_channels::run(g, profile));
        if stage.graph.nodes.len() == nodes {
            break;
        }
    }
    if request.window.is_some() {
        stage.pass(request, "pipeline", pipeline::gather);
    }
    if host_update::has_any(&stage.graph) {
        stage.pass(request, "host_update", host_update::run);
    }
    stage
}

/// Bytes of every parcel, its tensors aligned.
fn parcel_bytes(graphs: &[&Graph], pipeline: &Pipeline, target: &Target) -> Vec<u64> {
    let bytes = |name: &String| {
        let found = graphs.iter().find_map(|g| g.find(name).map(|v| g.ty(v).bytes()));
        target.align(found.expect("a parcel's tensors are declared"))
    };
    pipeline.parcels.iter().map(|p| p.tensors.iter().map(bytes).sum()).collect()
}

/// A stay with the bytes of its parcel.
fn guest(stay: &Stay, parcel_bytes: &[u64]) -> Guest {
    let life = |l: &[u32; 2]| Life { start: l[0], end: l[1] };
    let (bytes, again) = (parcel_bytes[stay.parcel as usize], stay.lives.get(1).map(life));
    Guest { bytes, life: life(&stay.lives[0]), again }
}

fn bounded(request: &Request, plan: Plan) -> Result<Plan, CompileError> {
    let limit = request.arena_bytes_max.unwrap_or(u64::MAX);
    if plan.near_bytes() <= limit {
        return Ok(plan);
    }
    let fullest = plan.entries.iter().max_by_key(|e| e.peak.bytes).expect("a plan has entries");
    let step = fullest.steps.get(fullest.peak.step as usize);
    Err(CompileError::Budget {
        need: plan.near_bytes(),
        limit,
        entry: fullest.name.clone(),
        peak: Box::new(fullest.peak.clone()),
        at: step.map_or(String::new(), |s| format!("{} {}", s.kernel, s.label)),
        steps: fullest.steps.len() as u32,
        stored: plan.stored_bytes(|s| !plan.is_far(&s.tensor)),
        heap: plan.heap_bytes(),
        beside: 0,
    })
}
