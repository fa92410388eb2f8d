//! Which blocks stream: all of them in memory, or a window, by hand or by what it costs.

use crate::fixed::PLAN_PART;
use crate::model::Model;
use crate::planning::{Settings, Wanted, compile_window, needs, weight_bytes_min};
use crate::profile;
use std::cell::Cell;
use tinyforge::far::{CHUNK_BYTES, MOVING_STACK_BYTES, MOVING_THREADS};
use tinyforge_compiler::compile::{CompileError, Compiled, Embeddings};
use tinyforge_compiler::passes::pipeline::Window;
use tinyforge_plan::Fixed;

/// What streams from disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Streaming {
    /// Nothing.
    Never,
    /// What the budget leaves no room for; with a machine's profile, what it predicts to be fastest.
    Auto {
        /// Blocks that come in together.
        prefetch: u32,
    },
    /// All but so many blocks.
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
}

/// The window that takes least: a model that is smaller than the buffers of moving copies does not stream.
pub fn least_window(model: &Model, settings: &Settings) -> u32 {
    if weight_bytes_min(model, settings) > MOVING_BYTES { 1 } else { model.config.layers as u32 }
}

/// What moving copies takes: a buffer and a stack of every moving thread, and a buffer for calls between runs.
const MOVING_BYTES: u64 = (MOVING_THREADS * (CHUNK_BYTES + MOVING_STACK_BYTES) + CHUNK_BYTES) as u64;

/// The fixed part that a window adds; not to a card's memory, whose copies pass through the process's.
pub(crate) fn moving(asked: &Asked, window: Option<Window>) -> Option<Fixed> {
    let streams = window.is_some_and(|w| w.blocks < asked.model.config.layers as u32);
    (streams && asked.settings.gpu.is_none()).then(|| Fixed { name: "transfers".to_string(), bytes: MOVING_BYTES })
}

/// A plan in the way that the settings ask for.
pub(crate) fn plan(asked: &Asked) -> Result<Streamed, CompileError> {
    let heap = Cell::new(0);
    let one = |window| {
        let compiled = fitting(asked, window, &heap)?;
        Ok(Streamed { compiled, window, considered: Vec::new() })
    };
    match asked.settings.window {
        Streaming::Never => one(None),
        Streaming::Window(window) => one(Some(window)),
        Streaming::Auto { prefetch } => cheapest(asked, prefetch, &heap),
    }
}

/// Of the plans that fit the one that is predicted to be fastest; without a profile the one that streams least.
fn cheapest(asked: &Asked, prefetch: u32, heap: &Cell<u64>) -> Result<Streamed, CompileError> {
    let layers = asked.model.config.layers as u32;
    let widest = widest(asked, prefetch, heap)?;
    let blocks = widest.1.map_or(layers, |w| w.blocks);
    let is_train = asked.wanted == Wanted::Train;
    let Some(machine) = asked.settings.machine.as_ref().filter(|_| is_train && can_gain(asked, &widest.0)) else {
        return Ok(Streamed { compiled: widest.0, window: widest.1, considered: Vec::new() });
    };
    // A narrower window leaves room to recompute less.
    let mut narrower: Vec<u32> = [3 * blocks / 4, blocks / 2, blocks / 4].into_iter().filter(|b| *b > 0).collect();
    narrower.dedup();
    let mut plans = vec![widest];
    for blocks in narrower {
        let window = Some(Window { blocks, prefetch: prefetch.min(blocks) });
        match fitting(asked, window, heap) {
            Ok(compiled) => plans.push((compiled, window)),
            Err(error) if needs(&error).is_some() => {}
            Err(error) => return Err(error),
        }
    }
    let seconds = |compiled: &Compiled| {
        let cost = profile::plan_cost(machine, &compiled.plan, asked.rows, asked.settings.batch);
        cost.map_or(f64::INFINITY, |cost| cost.prediction_s)
    };
    let considered: Vec<_> = plans.iter().map(|(compiled, window)| (*window, seconds(compiled))).collect();
    let best = (0..plans.len()).min_by(|&a, &b| considered[a].1.total_cmp(&considered[b].1)).unwrap_or(0);
    let (compiled, window) = plans.swap_remove(best);
    Ok(Streamed { compiled, window, considered })
}

/// Whether another window may be faster: where something is recomputed, and blocks can stream.
fn can_gain(asked: &Asked, widest: &Compiled) -> bool {
    widest.choice.recompute_step > 0 && least_window(asked.model, asked.settings) < asked.model.config.layers as u32
}

/// All blocks in memory where that fits, else the widest window that does.
fn widest(asked: &Asked, prefetch: u32, heap: &Cell<u64>) -> Result<(Compiled, Option<Window>), CompileError> {
    let &Asked { model, settings, wanted, rows, .. } = asked;
    let layers = model.config.layers as u32;
    let attempt = |window: Option<Window>| fitting(asked, window, heap).map(|compiled| (compiled, window));
    let of = |blocks: u32| Some(Window { blocks, prefetch: prefetch.min(blocks) });
    let least = least_window(model, settings);
    // A window that holds all blocks still visits each once for all micro-batches, and sums gradients block by block.
    let is_cut = wanted == Wanted::Train && rows < settings.batch;
    // Weights alone may be too much.
    let is_hopeless = least < layers && settings.memory.is_some_and(|limit| weight_bytes_min(model, settings) > limit);
    let all = match (!is_hopeless).then(|| attempt(None)) {
        Some(Err(error)) if needs(&error).is_some() && (least < layers || is_cut) => Some(error),
        None => None,
        Some(result) => return result,
    };
    // What does not fit with the least window fits with none; and what fits at all does when it takes least.
    let mut frugal = frugal(settings);
    let probe = |frugal: &Settings, blocks| fitting(&Asked { settings: frugal, ..*asked }, of(blocks), heap);
    let narrowest = match (probe(&frugal, least), all) {
        (Err(error), Some(all)) if needs(&error) >= needs(&all) => return Err(all),
        (result, _) => result?,
    };
    // Activations go only where they must, not for a wider window.
    if !narrowest.choice.spills {
        frugal.spill = Some(false);
    }
    let (mut fits, mut over) = (least, layers + u32::from(is_cut));
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
        match attempt(of(fits)) {
            Err(error) if needs(&error).is_some() && fits > least => fits -= 1,
            result => return result,
        }
    }
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
    let mut fixed = own.clone();
    raise(&mut fixed, known.get(), asked.phases);
    let bytes = |fixed: &[Fixed]| fixed.iter().map(|part| part.bytes).sum::<u64>();
    let mut expected = bytes(&fixed) - bytes(&own);
    loop {
        let mut compiled = match compile_window(&Asked { fixed: &fixed, ..*asked }, window) {
            Ok(compiled) => compiled,
            // It may be what was expected that is too much.
            Err(CompileError::Budget { need, limit, .. }) if need - limit <= expected => {
                (fixed, expected) = (own.clone(), 0);
                continue;
            }
            Err(CompileError::Budget { need, limit, entry, peak, at, steps, stored, heap, .. }) => {
                let limit = limit + bytes(&fixed) - bytes(asked.fixed);
                let mut own = own;
                raise(&mut own, heap, asked.phases);
                let beside = bytes(&own) - bytes(asked.fixed);
                let need = need + beside;
                return Err(CompileError::Budget { need, limit, entry, peak, at, steps, stored, heap, beside });
            }
            Err(error) => return Err(error),
        };
        known.set(known.get().max(compiled.plan.heap_bytes()));
        let is_raised = raise(&mut fixed, compiled.plan.heap_bytes(), asked.phases);
        compiled.plan.fixed.clone_from(&fixed);
        let fits = asked.settings.memory.is_none_or(|limit| compiled.plan.total_bytes() <= limit);
        if !is_raised || fits {
            return Ok(compiled);
        }
    }
}

/// Of a plan's own bytes what the part for the heap has room for.
const IN_HEAP_BYTES: u64 = 3 << 20;

/// Makes the part of the plans large enough for a plan of `heap` bytes, where there is one and it is not.
fn raise(fixed: &mut [Fixed], heap: u64, phases: u64) -> bool {
    // What steps are bound to takes less than half of that again; and what making a plan took is not given back.
    let needed = heap * (3 * phases + 4) / 2;
    let part = fixed.iter_mut().find(|f| f.name == PLAN_PART && f.bytes + IN_HEAP_BYTES < needed);
    part.map(|part| part.bytes = needed + needed / 16).is_some()
}
