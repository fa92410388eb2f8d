//! Which blocks stream: all of them in memory, or a window, by hand or by what it costs.

use crate::fixed::PLAN_PART;
use crate::model::Model;
use crate::planning::{Settings, Wanted, compile_window, needs, weight_bytes_min};
use crate::profile;
use std::cell::Cell;
use std::ops::Range;
use tinyforge::far::{CHUNK_BYTES, MOVING_STACK_BYTES, MOVING_THREADS};
use tinyforge_compiler::compile::{CompileError, Compiled, Embeddings};
use tinyforge_compiler::machine::Machine;
use tinyforge_compiler::passes::pipeline::Window;
use tinyforge_plan::{Fixed, Plan, Stored, StoredKind};

/// What streams from disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Streaming {
    /// Nothing.
    Never,
    /// What the budget leaves no room for; with a machine's profile, what it predicts to be fastest.
    Auto {
        /// Blocks that come in together.
        prefetch: u32,
        /// Parts that a block comes in; `None` takes several where a block is too much, or they are predicted to be
        /// faster.
        parts: Option<u32>,
    },
    /// All but so many blocks, or parts of them.
    Window(Window),
}

/// What one plan is made for.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) model: &'a Model,
    pub(crate) settings: &'a Settings,
    pub(crate) wanted: Wanted,
    /// Parts of the process outside the arena.
    pub(crate) fixed: &'a [Fixed],
    /// Packed rows a micro-batch.
    pub(crate) rows: u32,
    /// Plans that the process holds.
    pub(crate) phases: u64,
}

/// A plan with its window, and what was considered.
pub(crate) struct Streamed {
    pub(crate) compiled: Compiled,
    pub(crate) window: Option<Window>,
    /// Windows that fit with the seconds a step that they were predicted to take, where a profile says.
    pub(crate) considered: Vec<(Option<Window>, f64)>,
    /// The same of updates by the device and by the host, where either would do.
    pub(crate) optimizers: Option<[f64; 2]>,
}

/// The window that takes least: a model that is smaller than the buffers of moving copies does not stream.
pub fn least_window(model: &Model, settings: &Settings) -> u32 {
    if weight_bytes_min(model, settings) > MOVING_BYTES { 1 } else { model.config.layers as u32 }
}

/// What moving copies takes: a buffer and a stack of every moving thread, and a buffer for calls between runs.
const MOVING_BYTES: u64 = (MOVING_THREADS * (CHUNK_BYTES + MOVING_STACK_BYTES) + CHUNK_BYTES) as u64;

/// The fixed part that a window adds; not to a card's memory, whose copies pass through the process's.
pub(crate) fn moving(asked: &Asked, window: Option<Window>) -> Option<Fixed> {
    let streams = window.is_some_and(|w| w.blocks < asked.model.config.layers as u32 * w.parts);
    (streams && asked.settings.gpu.is_none()).then(|| Fixed { name: "transfers".to_string(), bytes: MOVING_BYTES })
}

/// A plan in the way that the settings ask for. Where nobody says who updates what rests in the host's memory, the host
/// does if that is predicted to be faster.
pub(crate) fn plan(asked: &Asked) -> Result<Streamed, CompileError> {
    let by_device = of_window(asked)?;
    let plan = &by_device.compiled.plan;
    let is_trained_there = |s: &Stored| s.kind == StoredKind::Weight && s.changes && plan.is_in_host(s.tensor.value);
    let is_open = asked.settings.host_optimizer.is_none() && plan.stored.iter().any(is_trained_there);
    let Some(machine) = asked.settings.machine.as_ref().filter(|_| is_open) else { return Ok(by_device) };
    let settings = Settings { host_optimizer: Some(true), ..asked.settings.clone() };
    let by_host = match of_window(&Asked { settings: &settings, ..*asked }) {
        Err(CompileError::Budget { .. } | CompileError::HostMemory { .. }) => return Ok(by_device),
        result => result?,
    };
    let optimizers = [&by_device, &by_host].map(|found| predicted_s(asked, machine, &found.compiled));
    let found = if optimizers[1] < optimizers[0] { by_host } else { by_device };
    Ok(Streamed { optimizers: Some(optimizers), ..found })
}

/// Seconds a step that a plan is predicted to take.
fn predicted_s(asked: &Asked, machine: &Machine, compiled: &Compiled) -> f64 {
    let cost = profile::plan_cost(machine, &compiled.plan, asked.rows, asked.settings.batch);
    cost.map_or(f64::INFINITY, |cost| cost.prediction_s)
}

/// A plan of the window that the settings ask for.
fn of_window(asked: &Asked) -> Result<Streamed, CompileError> {
    let heap = Cell::new(0);
    let one = |window| {
        let compiled = fitting(asked, window, &heap)?;
        Ok(Streamed { compiled, window, considered: Vec::new(), optimizers: None })
    };
    match asked.settings.window {
        Streaming::Never => one(None),
        Streaming::Window(window) => one(Some(window)),
        Streaming::Auto { prefetch, parts } => cheapest(asked, (prefetch, parts), &heap),
    }
}

/// A plan with its window.
type Found = (Compiled, Option<Window>);

/// The most parts that a block is cut in unasked: with more, the largest would still be its largest matrix.
const PARTS: u32 = 4;
/// Of windows of so many blocks one of parts may be faster: less of it waits.
const FEW_BLOCKS: u32 = 2;

/// The parts of a block that take least, where blocks stream.
pub fn least_parts(streaming: Streaming) -> u32 {
    match streaming {
        Streaming::Never => 1,
        Streaming::Auto { parts, .. } => parts.unwrap_or(PARTS),
        Streaming::Window(window) => window.parts,
    }
}

/// Of the plans that fit the one that is predicted to be fastest; without a profile the one that streams least.
fn cheapest(asked: &Asked, (prefetch, parts): (u32, Option<u32>), heap: &Cell<u64>) -> Result<Streamed, CompileError> {
    let can_cut = parts.is_none() && least_window(asked.model, asked.settings) == 1;
    let first = match most(asked, (prefetch, parts.unwrap_or(1)), heap) {
        // Where a block is too much, parts of one may not be.
        Err(whole) if can_cut && needs(&whole).is_some() => match widest(asked, (prefetch, PARTS), heap) {
            Err(cut) if needs(&cut) >= needs(&whole) => Err(whole),
            result => result,
        },
        result => result,
    }?;
    let is_train = asked.wanted == Wanted::Train;
    let Some(machine) = asked.settings.machine.as_ref().filter(|_| is_train) else {
        let is_alone = can_cut && first.1.is_some_and(|w| w.blocks == 1 && w.parts == 1);
        let (compiled, window) = if is_alone { beside(asked, first, prefetch, heap)? } else { first };
        return Ok(Streamed { compiled, window, considered: Vec::new(), optimizers: None });
    };
    let cuts = if can_cut { cuts(first.1) } else { 0..0 };
    let narrower = narrower(asked, &first, prefetch).into_iter().map(Some);
    let others = narrower.map(|window| fitting(asked, window, heap).map(|compiled| (compiled, window)));
    let mut plans = vec![first];
    for other in others.chain(cuts.map(|parts| widest(asked, (prefetch, parts), heap))) {
        match other {
            Ok(found) => plans.push(found),
            Err(error) if needs(&error).is_some() => {}
            Err(error) => return Err(error),
        }
    }
    let considered = plans.iter().map(|(compiled, window)| (*window, predicted_s(asked, machine, compiled)));
    let considered: Vec<_> = considered.collect();
    let best = (0..plans.len()).min_by(|&a, &b| considered[a].1.total_cmp(&considered[b].1)).unwrap_or(0);
    let considered = if considered.len() > 1 { considered } else { Vec::new() };
    let (compiled, window) = plans.swap_remove(best);
    Ok(Streamed { compiled, window, considered, optimizers: None })
}

/// A window of parts where there is room for several beside one another, in place of a block that nothing comes in
/// beside.
fn beside(asked: &Asked, block: Found, prefetch: u32, heap: &Cell<u64>) -> Result<Found, CompileError> {
    match widest(asked, (prefetch, PARTS), heap) {
        Ok(found) if found.1.is_some_and(|w| w.blocks > 1) && found.0.choice.spills <= block.0.choice.spills => {
            Ok(found)
        }
        Err(error) if needs(&error).is_none() => Err(error),
        _ => Ok(block),
    }
}

/// Narrower windows, which leave room to recompute less, where something is recomputed and blocks can stream.
fn narrower(asked: &Asked, (compiled, window): &Found, prefetch: u32) -> Vec<Window> {
    let layers = asked.model.config.layers as u32;
    let can_gain = compiled.choice.recompute_step > 0 && least_window(asked.model, asked.settings) < layers;
    let widest = window.unwrap_or(Window::whole(layers, prefetch));
    let blocks = if can_gain { widest.blocks } else { 0 };
    let mut fewer: Vec<u32> = [3 * blocks / 4, blocks / 2, blocks / 4].into_iter().filter(|b| *b > 0).collect();
    fewer.dedup();
    fewer.into_iter().map(|blocks| Window { blocks, prefetch: prefetch.min(blocks), ..widest }).collect()
}

/// In how many parts blocks may come with gain, where this was found first.
fn cuts(first: Option<Window>) -> Range<u32> {
    match first {
        Some(Window { blocks, parts: 1, .. }) if blocks <= FEW_BLOCKS => 2..PARTS + 1,
        Some(Window { parts, .. }) => 2..parts,
        None => 0..0,
    }
}

/// All blocks in memory where that fits, else the widest window that does, of blocks in so many parts.
fn most(asked: &Asked, (prefetch, parts): (u32, u32), heap: &Cell<u64>) -> Result<Found, CompileError> {
    let &Asked { model, settings, .. } = asked;
    let streams = least_window(model, settings) < model.config.layers as u32;
    // Weights alone may be too much.
    let is_hopeless = streams && settings.memory.is_some_and(|limit| weight_bytes_min(model, settings) > limit);
    let all = match (!is_hopeless).then(|| fitting(asked, None, heap)) {
        Some(Err(error)) if needs(&error).is_some() && (streams || is_cut(asked)) => Some(error),
        None => None,
        Some(result) => return result.map(|compiled| (compiled, None)),
    };
    match (widest(asked, (prefetch, parts), heap), all) {
        (Err(error), Some(all)) if needs(&error) >= needs(&all) => Err(all),
        (result, _) => result,
    }
}

/// Whether a step has several micro-batches. Then a window that holds all blocks still visits each once for all of
/// them, and sums gradients block by block.
fn is_cut(asked: &Asked) -> bool {
    asked.wanted == Wanted::Train && asked.rows < asked.settings.batch
}

/// The widest window that fits, of blocks in so many parts.
fn widest(asked: &Asked, (prefetch, parts): (u32, u32), heap: &Cell<u64>) -> Result<Found, CompileError> {
    let &Asked { model, settings, .. } = asked;
    let layers = model.config.layers as u32;
    let of = |blocks: u32| Some(Window { blocks, prefetch: prefetch.min(blocks), parts });
    let least = if least_window(model, settings) < layers { 1 } else { layers * parts };
    // What does not fit with the least window fits with none; and what fits at all does when it takes least.
    let mut frugal = frugal(settings);
    let probe = |frugal: &Settings, blocks| fitting(&Asked { settings: frugal, ..*asked }, of(blocks), heap);
    let narrowest = probe(&frugal, least)?;
    // Activations go only where they must, not for a wider window.
    if !narrowest.choice.spills {
        frugal.spill = Some(false);
    }
    let (mut fits, mut over) = (least, layers * parts + u32::from(is_cut(asked)));
    over = over.min(least.saturating_add(places(asked, &narrowest.plan, parts)));
    while over - fits > 1 {
        let middle = fits + (over - fits) / 2;
        match probe(&frugal, middle) {
            Ok(_) => fits = middle,
            Err(error) if needs(&error).is_some() => over = middle,
            Err(error) => return Err(error),
        }
    }
    // What a plan takes itself may differ a little where less is computed again.
    loop {
        match fitting(asked, of(fits), heap) {
            Err(error) if needs(&error).is_some() && fits > least => fits -= 1,
            result => return result.map(|compiled| (compiled, of(fits))),
        }
    }
}

/// At least as many blocks, or parts of them, as the budget has room for beside what stays near in this plan.
fn places(asked: &Asked, plan: &Plan, parts: u32) -> u32 {
    let Some(limit) = asked.settings.memory else { return u32::MAX };
    let is_of_block = |s: &Stored| asked.model.weights.get(&s.name).is_some_and(|binding| binding.block.is_some());
    let streamed = plan.stored_bytes(|s| plan.is_far(&s.tensor) && is_of_block(s));
    let near = plan.stored_bytes(|s| !plan.is_far(&s.tensor)) + plan.fixed_bytes();
    let each = streamed / (asked.model.config.layers as u64 * u64::from(parts)).max(1);
    // Parts are not of one size: as many more as make up a block.
    let count = limit.saturating_sub(near) / each.max(1) + 1 + u64::from(parts);
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The settings with which a plan takes least, of those that are left to the budget.
pub(crate) fn frugal(settings: &Settings) -> Settings {
    Settings {
        recompute: settings.recompute.least(),
        embeddings: settings.embeddings.or(Some(Embeddings::Parts)),
        panels: settings.panels.or(Some(true)),
        ..settings.clone()
    }
}

/// A plan that fits together with what it takes on the heap itself, which is known when it is there. A refusal counts
/// all that it stands beside. `known` is the largest heap that a plan had before, and is expected of this one: plans of
/// one search are alike.
fn fitting(asked: &Asked, window: Option<Window>, known: &Cell<u64>) -> Result<Compiled, CompileError> {
    let own: Vec<Fixed> = asked.fixed.iter().cloned().chain(moving(asked, window)).collect();
    let bytes = |fixed: &[Fixed]| fixed.iter().map(|part| part.bytes).sum::<u64>();
    let with_room = |heap: u64| {
        let mut fixed = own.clone();
        raise(&mut fixed, heap_part(heap, asked.phases).saturating_sub(IN_HEAP_BYTES));
        fixed
    };
    let mut fixed = with_room(known.get());
    let mut is_exact = false;
    loop {
        let mut compiled = match compile_window(&Asked { fixed: &fixed, ..*asked }, window) {
            Ok(compiled) => compiled,
            Err(CompileError::Budget { need, limit, entry, peak, at, steps, stored, heap, .. }) => {
                let exact = with_room(heap);
                // It may be what was expected that is too much.
                if !is_exact && need + bytes(&exact) <= limit + bytes(&fixed) {
                    (fixed, is_exact) = (exact, true);
                    continue;
                }
                let limit = limit + bytes(&fixed) - bytes(asked.fixed);
                let beside = bytes(&exact) - bytes(asked.fixed);
                let need = (need + beside).max(limit + 1);
                return Err(CompileError::Budget { need, limit, entry, peak, at, steps, stored, heap, beside });
            }
            Err(error) => return Err(error),
        };
        let heap = compiled.plan.heap_bytes();
        known.set(known.get().max(heap));
        let exact = with_room(heap);
        let enough = if bytes(&exact) > bytes(&fixed) { exact } else { fixed.clone() };
        compiled.plan.fixed = enough;
        if asked.settings.memory.is_none_or(|limit| compiled.plan.total_bytes() <= limit) {
            return Ok(compiled);
        }
        // With less room for the arena more is computed again, which takes more on the heap.
        let needed = heap_part(heap, asked.phases);
        raise(&mut fixed, needed + needed / 16);
    }
}

/// Of a plan's own bytes what the part for the heap has room for.
const IN_HEAP_BYTES: u64 = 3 << 20;

/// Makes the part of the plans at least so large, where there is one.
fn raise(fixed: &mut [Fixed], bytes: u64) {
    let part = fixed.iter_mut().find(|f| f.name == PLAN_PART);
    part.into_iter().for_each(|part| part.bytes = part.bytes.max(bytes));
}

/// What plans of `heap` bytes take of the process in all.
fn heap_part(heap: u64, phases: u64) -> u64 {
    // What steps are bound to takes less than half of that again; and what making a plan took is not given back.
    heap * (3 * phases + 4) / 2
}
