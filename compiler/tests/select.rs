//! Selections against trying all of them, for memories that add, that peak, and that have to be asked for.

use std::convert::Infallible;
use tinyforge_compiler::scheme::select::{Choice, Group, SelectError, Selection, select};

/// Numbers that repeat.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Bytes of a made-up plan: what is trained, and the fullest of some moments, at each of which some of what the chosen
/// options save is live.
struct Model {
    groups: Vec<Group>,
    base: Vec<u64>,
    /// `saved[group][option][moment]`.
    saved: Vec<Vec<Vec<u64>>>,
}

impl Model {
    fn random(random: &mut Random, groups: usize) -> Model {
        const MOMENTS: usize = 4;
        let mut model = Model {
            groups: Vec::new(),
            base: (0..MOMENTS).map(|_| 200 + random.below(300)).collect(),
            saved: Vec::new(),
        };
        for _ in 0..groups {
            let options = 1 + random.below(3) as usize;
            let (mut own, mut live) = (random.below(20), vec![0; MOMENTS]);
            let (mut group, mut saved) = (Vec::new(), Vec::new());
            for _ in 0..options {
                own += random.below(60);
                live.iter_mut().for_each(|l| *l += random.below(2) * random.below(90));
                group.push(Choice { gain: random.below(1000) as i64 - 200, own_bytes: own });
                saved.push(live.clone());
            }
            model.groups.push(group);
            model.saved.push(saved);
        }
        model
    }

    fn bytes(&self, levels: &[usize]) -> u64 {
        let chosen = || levels.iter().enumerate().filter(|(_, l)| **l > 0);
        let own: u64 = chosen().map(|(g, l)| self.groups[g][l - 1].own_bytes).sum();
        let at = |m: usize| self.base[m] + chosen().map(|(g, l)| self.saved[g][l - 1][m]).sum::<u64>();
        own + (0..self.base.len()).map(at).max().unwrap_or(0)
    }

    fn gain(&self, levels: &[usize]) -> i64 {
        levels.iter().enumerate().filter(|(_, l)| **l > 0).map(|(g, l)| self.groups[g][l - 1].gain).sum()
    }

    fn all(&self) -> Vec<Vec<usize>> {
        self.groups.iter().fold(vec![Vec::new()], |all, group| {
            let longer = |s: &Vec<usize>| (0..=group.len()).map(|l| [&s[..], &[l]].concat()).collect::<Vec<_>>();
            all.iter().flat_map(longer).collect()
        })
    }

    fn select(&self, limit: u64) -> Result<Selection, SelectError<Infallible>> {
        select(&self.groups, limit, 0, |levels| Ok(Some(self.bytes(levels))))
    }

    /// Adds what is worth most a byte as long as it fits.
    fn greedy(&self, limit: u64) -> i64 {
        let mut levels = vec![0; self.groups.len()];
        loop {
            let steps =
                (0..self.groups.len()).flat_map(|g| (levels[g] + 1..=self.groups[g].len()).map(move |l| (g, l)));
            let better = steps.filter_map(|(g, l)| {
                let mut more = levels.clone();
                more[g] = l;
                let (gain, bytes) = (self.gain(&more) - self.gain(&levels), self.bytes(&more));
                let cost = bytes.saturating_sub(self.bytes(&levels)).max(1);
                (bytes <= limit && gain > 0).then_some((gain as f64 / cost as f64, more))
            });
            match better.max_by(|a, b| a.0.total_cmp(&b.0)) {
                Some((_, more)) => levels = more,
                None => return self.gain(&levels),
            }
        }
    }
}

#[test]
fn it_is_what_trying_all_of_them_finds() {
    let mut random = Random(1);
    let (mut asked, mut tried) = (0, 0);
    for case in 0..300 {
        let groups = 2 + random.below(5) as usize;
        let model = Model::random(&mut random, groups);
        let none = model.bytes(&vec![0; model.groups.len()]);
        let limit = none + random.below(400);
        let all = model.all();
        let fitting = all.iter().filter(|s| model.bytes(s) <= limit);
        let best = fitting.map(|s| model.gain(s)).max();
        let found = model.select(limit).expect("the empty selection fits");
        assert_eq!(Some(found.gain), best, "case {case}: {found:?}");
        assert_eq!((found.memory_bytes, found.gain_max), (model.bytes(&found.levels), found.gain));
        assert!(found.memory_bytes <= limit && found.gain >= model.greedy(limit));
        (asked, tried) = (asked + found.asked, tried + all.len());
    }
    assert!(asked * 5 < tried, "{asked} were asked for of {tried}");
}

#[test]
fn slack_makes_up_for_a_planner_that_breaks_the_rule() {
    const SLACK: u64 = 40;
    let mut random = Random(5);
    for case in 0..100 {
        let model = Model::random(&mut random, 5);
        let bytes = |levels: &[usize]| {
            let mixed = levels.iter().fold(case, |sum: u64, &l| sum.wrapping_mul(31).wrapping_add(l as u64 + 7));
            model.bytes(levels) + mixed.wrapping_mul(2_654_435_761) % SLACK
        };
        let limit = bytes(&[0; 5]) + random.below(400);
        let all = model.all();
        let best = all.iter().filter(|s| bytes(s) <= limit).map(|s| model.gain(s)).max();
        let ask = |levels: &[usize]| Ok::<_, Infallible>(Some(bytes(levels)));
        let found = select(&model.groups, limit, SLACK, ask).expect("the empty selection fits");
        assert_eq!((Some(found.gain), found.gain_max), (best, found.gain), "case {case}: {found:?}");
        assert_eq!(found.memory_bytes, bytes(&found.levels));
    }
}

/// As in networks: the higher a weight, the larger it is; what it saves lies there until the backward part is down at
/// it; the deeper that goes, the larger are the gradients.
fn network(random: &mut Random, layers: usize) -> Model {
    let mut model = Model { groups: Vec::new(), base: vec![90_000; layers + 1], saved: Vec::new() };
    for layer in 0..layers {
        let own = 1000 + 60 * (layer * layer) as u64 + random.below(3000);
        let gain = random.below(1000) as i64;
        let shares = [2, 3, 4].map(|quarters| Choice { gain: gain * quarters / 4, own_bytes: own });
        let gradients = 4000 * (layers - layer) as u64;
        let image = 2000 + random.below(3000);
        let live: Vec<u64> =
            (0..=layers).map(|m| if m == layer { gradients + image } else { image * u64::from(m > layer) }).collect();
        model.groups.push(shares.to_vec());
        model.saved.push(vec![live; 3]);
    }
    model
}

#[test]
fn networks_of_many_layers_are_solved() {
    let mut random = Random(7);
    for case in 0..6 {
        let model = network(&mut random, 20 + 4 * case);
        let levels = vec![0; model.groups.len()];
        let found = model.select(model.bytes(&levels) + 150_000).expect("the empty selection fits");
        assert_eq!(found.gain_max, found.gain, "case {case}: {found:?}");
        assert!(found.asked < 1_000, "case {case}: {} were asked for", found.asked);
    }
}

#[test]
fn what_is_not_proven_is_bounded() {
    let mut random = Random(7);
    let model = Model::random(&mut random, 40);
    let limit = model.bytes(&[0; 40]) + 900;
    let found = model.select(limit).expect("the empty selection fits");
    assert!(found.memory_bytes <= limit && found.gain <= found.gain_max, "{found:?}");
    assert!(5 * found.gain >= 4 * found.gain_max, "{found:?}");
}

#[test]
fn what_cannot_be_planned_is_not_taken() {
    let choice = |gain, own_bytes| Choice { gain, own_bytes };
    let groups = vec![vec![choice(1, 1), choice(3, 2)], vec![choice(2, 1)]];
    // The second option of the first group, or both groups, cannot be planned.
    let ask = |levels: &[usize]| {
        Ok::<_, Infallible>((levels[0] < 2 && levels.iter().filter(|l| **l > 0).count() < 2).then_some(5))
    };
    let found = select(&groups, 100, 0, ask).expect("the others can");
    assert_eq!((found.levels, found.gain), (vec![0, 1], 2));
}

#[test]
fn a_budget_below_nothing_is_refused_with_numbers() {
    let model = Model::random(&mut Random(3), 3);
    let need = model.bytes(&[0; 3]);
    let refused = model.select(need - 7).expect_err("nothing fits").to_string();
    assert_eq!(refused, format!("with nothing chosen {need} bytes are needed, {} are there (7 over)", need - 7));
}
