//! Selection of what is trained: the most gain that fits a memory.
//!
//! A *group* is something that is trained to some degree: the biases, by depth, or one weight, by its share of
//! channels. At most one option of each group is taken; gains add. Memory does not: a plan's peak is where it is
//! fullest. So the real figure is asked for, selection by selection, and as seldom as can be:
//!
//! - `memory(S) = Σ own(o) + rest(S)`, where `own` are the bytes of the tensors that an option trains, which are there
//!   in every step, and `rest` all other bytes at the peak;
//! - `rest` does not fall when more is trained: another option, or a later one of a group. What is saved for the
//!   backward part, and how far that goes, only grows.
//!
//! Hence the rest of a selection that was asked for bounds that of every selection above it. The search begins with
//! what is worth most a byte as long as it fits. Then it takes the selection of most gain that no bound rules out and
//! asks: either it fits, and is the optimum, or its rest is a new bound. A planner whose heuristics break the second
//! rule by some bytes is given as many of slack: bounds are lowered by them, which costs questions and keeps the result
//! exact. Where it breaks the rule by more, a better selection can be missed only within those bytes of the limit. The
//! tests compare with asking for every selection.

use std::collections::BTreeMap;

/// Something that can be trained.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Choice {
    /// What it is worth, in any unit: whole numbers, so that sums are exact. Options without gain are never taken.
    pub gain: i64,
    /// Bytes of the tensors that it trains.
    pub own_bytes: u64,
}

/// Options of which at most one is taken, each training no less than the one before.
pub type Group = Vec<Choice>;

/// For every group the option that is taken, counted from 1; 0 takes none.
pub type Levels = Vec<usize>;

/// The best selection.
#[derive(Clone, PartialEq, Debug)]
pub struct Selection {
    /// What is taken.
    pub levels: Levels,
    /// The sum of its gains.
    pub gain: i64,
    /// No selection that fits gains more than this: the same as `gain` where the optimum is proven.
    pub gain_max: i64,
    /// What it takes, as asked.
    pub memory_bytes: u64,
    /// How many selections were asked for.
    pub asked: usize,
}

/// The most selections that one search asks for, and the most bounds that it looks at on the way: then the best so far
/// is given, with a bound on what may be better.
const ASKED_MAX: usize = 2_000;
const WORK_MAX: usize = 60_000_000;

/// Why there is no selection.
#[derive(Debug, thiserror::Error)]
pub enum SelectError<E> {
    /// A selection could not be planned.
    #[error(transparent)]
    Ask(E),
    /// Not even the empty selection fits.
    #[error("with nothing chosen {need} bytes are needed, {limit} are there ({} over)", .need - .limit)]
    Budget {
        /// What the empty selection takes.
        need: u64,
        /// What there is.
        limit: u64,
    },
}

/// What a selection leaves of memory for values: `rest` of everything above `levels` is no less.
struct Bound {
    levels: Levels,
    rest: u64,
}

/// Whether `a` trains nothing that `b` does not.
fn is_below(a: &[usize], b: &[usize]) -> bool {
    a.iter().zip(b).all(|(a, b)| a <= b)
}

/// Takes the selection of most gain whose memory, as `ask` gives it, is at most `limit`; of equal gains the first that
/// is found. `ask` gives `None` for a selection that cannot be planned at all, nor any above it. `slack` are the bytes
/// by which the rest of a selection may be less than that of one below it.
///
/// # Errors
/// See [`SelectError`].
pub fn select<E>(
    groups: &[Group],
    limit: u64,
    slack: u64,
    mut ask: impl FnMut(&[usize]) -> Result<Option<u64>, E>,
) -> Result<Selection, SelectError<E>> {
    let (bounds, asked) = (Vec::new(), BTreeMap::new());
    let mut search = Search { groups, limit, slack, bounds, asked, work: 0, best: None };
    let mut ask = |levels: &[usize], search: &mut Search| -> Result<u64, SelectError<E>> {
        if let Some(&known) = search.asked.get(levels) {
            return Ok(known);
        }
        let memory = ask(levels).map_err(SelectError::Ask)?;
        search.learn(levels, memory);
        Ok(memory.unwrap_or(u64::MAX))
    };
    let none = vec![0; groups.len()];
    let need = ask(&none, &mut search)?;
    if need > limit {
        return Err(SelectError::Budget { need, limit });
    }
    let mut levels = none;
    for step in search.increments() {
        let mut more = levels.clone();
        more[step.group] = step.level;
        if search.gain(&more) > search.gain(&levels) && ask(&more, &mut search)? <= limit {
            levels = more;
        }
    }
    search.forget();
    let mut gain_max = i64::MAX;
    loop {
        let (candidate, most) = search.candidate();
        gain_max = most.min(gain_max);
        let Some(candidate) = candidate.filter(|_| search.asked.len() < ASKED_MAX) else { break };
        if ask(&candidate, &mut search)? > limit {
            core(candidate, &mut search, &mut ask)?;
            search.forget();
        }
    }
    let (levels, memory_bytes) = search.best.clone().expect("the empty selection fits");
    let gain = search.gain(&levels);
    Ok(Selection { gain, gain_max: gain_max.max(gain), levels, memory_bytes, asked: search.asked.len() })
}

/// Takes away from a selection what its rest does not come from: what is left bounds more selections.
fn core<E>(
    mut levels: Levels,
    search: &mut Search,
    ask: &mut impl FnMut(&[usize], &mut Search) -> Result<u64, SelectError<E>>,
) -> Result<(), SelectError<E>> {
    let rest = search.rest(&levels);
    for group in 0..levels.len() {
        while levels[group] > 0 {
            let mut less = levels.clone();
            less[group] -= 1;
            ask(&less, search)?;
            if search.rest(&less) < rest {
                break;
            }
            levels = less;
        }
    }
    Ok(())
}

/// Branch and bound over what the bounds allow.
struct Search<'a> {
    groups: &'a [Group],
    limit: u64,
    slack: u64,
    bounds: Vec<Bound>,
    /// What was asked for, and its memory.
    asked: BTreeMap<Levels, u64>,
    /// Bounds that were looked at.
    work: usize,
    /// The best selection that is known to fit, and its memory.
    best: Option<(Levels, u64)>,
}

/// A step from one option of a group to another.
struct Increment {
    group: usize,
    level: usize,
    gain: i64,
    bytes: u64,
}

impl Increment {
    /// By gain a byte; what takes none is worth most.
    fn by_worth(&self, other: &Increment) -> std::cmp::Ordering {
        let product = |a: &Increment, b: &Increment| i128::from(a.gain) * i128::from(b.bytes.max(1));
        product(self, other).cmp(&product(other, self))
    }
}

impl Search<'_> {
    fn gain(&self, levels: &[usize]) -> i64 {
        levels.iter().zip(self.groups).filter(|(l, _)| **l > 0).map(|(l, g)| g[l - 1].gain).sum()
    }

    fn own(&self, levels: &[usize]) -> u64 {
        levels.iter().zip(self.groups).filter(|(l, _)| **l > 0).map(|(l, g)| g[l - 1].own_bytes).sum()
    }

    /// Notes what was asked for.
    fn learn(&mut self, levels: &[usize], memory: Option<u64>) {
        self.asked.insert(levels.to_vec(), memory.unwrap_or(u64::MAX));
        let own = self.own(levels);
        let rest = memory.map_or(u64::MAX, |memory| memory.saturating_sub(own + self.slack));
        self.bounds.push(Bound { levels: levels.to_vec(), rest });
        let gain = self.gain(levels);
        let is_better = self.best.as_ref().is_none_or(|(best, _)| gain > self.gain(best));
        if let Some(memory) = memory.filter(|&memory| memory <= self.limit && is_better) {
            self.best = Some((levels.to_vec(), memory));
        }
    }

    /// The largest rest that is known of a selection below.
    fn rest(&self, levels: &[usize]) -> u64 {
        self.bounds.iter().filter(|b| is_below(&b.levels, levels)).map(|b| b.rest).max().unwrap_or(0)
    }

    /// Drops bounds that others make superfluous.
    fn forget(&mut self) {
        let bounds = std::mem::take(&mut self.bounds);
        for bound in bounds {
            if self.bounds.iter().any(|b| b.rest >= bound.rest && is_below(&b.levels, &bound.levels)) {
                continue;
            }
            self.bounds.retain(|b| !(bound.rest >= b.rest && is_below(&bound.levels, &b.levels)));
            self.bounds.push(bound);
        }
    }

    /// The selection of most gain, above the best that fits, that no bound rules out; and what no selection exceeds.
    fn candidate(&mut self) -> (Option<Levels>, i64) {
        let increments = self.increments();
        // Groups whose first step is worth most a byte are decided first.
        let mut order: Vec<usize> = Vec::new();
        increments.iter().for_each(|i| {
            if !order.contains(&i.group) {
                order.push(i.group);
            }
        });
        let mut turn = vec![usize::MAX; self.groups.len()];
        order.iter().enumerate().for_each(|(i, &group)| turn[group] = i);
        let gain = self.best.as_ref().map_or(i64::MIN, |(best, _)| self.gain(best));
        let levels = vec![0; self.groups.len()];
        let rest = self.rest(&levels);
        let mut walk = Walk { search: self, order, turn, increments, levels, best: None, gain, work: self.work };
        walk.go(0, 0, 0);
        let is_through = walk.work <= WORK_MAX;
        let most = if is_through { walk.gain } else { walk.hope(0, self.limit.saturating_sub(rest)) };
        let found = walk.best.take().filter(|_| is_through);
        self.work = walk.work;
        (found, most)
    }

    /// The steps along every group's upper hull of gain over bytes, those worth most a byte first.
    fn increments(&self) -> Vec<Increment> {
        let mut all = Vec::new();
        for (group, options) in self.groups.iter().enumerate() {
            let (mut gain, mut bytes) = (0, 0);
            loop {
                let step = |(i, c): (usize, &Choice)| Increment {
                    group,
                    level: i + 1,
                    gain: c.gain - gain,
                    bytes: c.own_bytes.saturating_sub(bytes),
                };
                let better = options.iter().enumerate().filter(|(_, c)| c.gain > gain && c.own_bytes >= bytes);
                let Some(next) = better.map(step).max_by(Increment::by_worth) else { break };
                (gain, bytes) = (gain + next.gain, bytes + next.bytes);
                all.push(next);
            }
        }
        all.sort_by(|a, b| b.by_worth(a));
        all
    }
}

/// A depth-first walk over the groups in one order.
struct Walk<'a> {
    search: &'a Search<'a>,
    order: Vec<usize>,
    /// The place of a group in the order.
    turn: Vec<usize>,
    increments: Vec<Increment>,
    levels: Levels,
    best: Option<Levels>,
    gain: i64,
    work: usize,
}

impl Walk<'_> {
    fn go(&mut self, at: usize, gain: i64, own: u64) {
        self.work += 1 + self.search.bounds.len();
        if self.work > WORK_MAX {
            return;
        }
        let rest = self.search.rest(&self.levels);
        let Some(room) = self.search.limit.checked_sub(rest.saturating_add(own)) else { return };
        if gain + self.hope(at, room) <= self.gain {
            return;
        }
        let Some(&group) = self.order.get(at) else {
            // With slack no bound rules out what was asked for and is too large.
            if self.search.asked.contains_key(&self.levels) {
                return;
            }
            (self.gain, self.best) = (gain, Some(self.levels.clone()));
            return;
        };
        let options = &self.search.groups[group];
        let mut by_gain: Vec<usize> = (1..=options.len()).filter(|&l| options[l - 1].gain > 0).collect();
        by_gain.sort_by_key(|&l| std::cmp::Reverse(options[l - 1].gain));
        for level in by_gain {
            self.levels[group] = level;
            self.go(at + 1, gain + options[level - 1].gain, own + options[level - 1].own_bytes);
        }
        self.levels[group] = 0;
        self.go(at + 1, gain, own);
    }

    /// The most that groups from place `at` on can add in `room` bytes, the last of them in part.
    fn hope(&self, at: usize, room: u64) -> i64 {
        let (mut left, mut hope) = (room, 0);
        for step in self.increments.iter().filter(|i| self.turn[i.group] >= at) {
            if step.bytes > left {
                let part = i128::from(step.gain) * i128::from(left) / i128::from(step.bytes);
                // A part of a gain is no more than all of it.
                return hope + i64::try_from(part).unwrap_or(step.gain);
            }
            left -= step.bytes;
            hope += step.gain;
        }
        hope
    }
}
