//! What an int8 network offers to be trained: its biases to some depth, and each weight at some shares of its input
//! channels; each alone with the trained head.

use crate::error::CommandError;
use tinyforge_build::settings::Int8Settings;
use tinyforge_build::{BuildError, planning};
use tinyforge_compiler::import::int8::{HEAD, Int8Model, LayerOp};
use tinyforge_compiler::scheme::select::{Choice, Group};
use tinyforge_compiler::scheme::{Scheme, SchemeKind, Sparse, SparseWeight};
use tinyforge_plan::Plan;

/// What losses are counted in where they have to be whole numbers.
pub const UNIT: f64 = 1e-9;

/// Bytes by which a plan may take less, beside what it trains, than one that trains less: the planner runs bottlenecks
/// by rows and by channels where that lowers the peak it sees.
pub const SLACK_BYTES: u64 = 8192;

/// One thing to train beside the head.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Part {
    /// The biases of so many convolutions from the top.
    Bias(u32),
    /// The weight of a convolution, counted from the input, at a share of its input channels.
    Weight(u32, f64),
}

impl Part {
    /// Its name in files and on the screen.
    pub fn name(self) -> String {
        match self {
            Part::Bias(depth) => format!("bias {depth}"),
            Part::Weight(layer, ratio) => format!("layer {layer} ratio {ratio}"),
        }
    }

    /// The lowest convolution that is trained, of so many.
    pub fn lowest(self, convs: u32) -> u32 {
        match self {
            Part::Bias(depth) => convs - depth.min(convs),
            Part::Weight(layer, _) => layer,
        }
    }
}

/// The scheme that trains the head and these parts.
pub fn scheme(parts: &[Part]) -> Scheme {
    let bias_last = parts.iter().find_map(|p| if let Part::Bias(depth) = p { Some(*depth) } else { None });
    let weight = |p: &Part| match *p {
        Part::Weight(layer, ratio) => Some(SparseWeight::of_layer(layer, ratio)),
        Part::Bias(_) => None,
    };
    let mut weights: Vec<SparseWeight> = parts.iter().filter_map(weight).collect();
    if weights.is_empty() {
        // An empty list leaves the choice to the scheme; a share of nothing chooses nothing.
        weights.push(SparseWeight::of_layer(0, 0.0));
    }
    let kind = SchemeKind::Sparse(Sparse { bias_last: Some(bias_last.unwrap_or(0)), weights });
    Scheme { kind, head: true, embed: false }
}

/// A network that plans are made of.
pub struct Network<'a> {
    /// Its name.
    pub name: String,
    /// What it computes.
    pub model: &'a Int8Model,
    /// What the plans are made for; the scheme in it is not looked at.
    pub settings: &'a Int8Settings,
}

impl Network<'_> {
    /// Names of the weights of the convolutions that schemes count, from the input.
    pub fn convs(&self) -> Vec<String> {
        let body = self.model.layers.iter().filter(|layer| layer.block != HEAD);
        let conv = body.filter_map(|layer| match &layer.op {
            LayerOp::Conv(conv) if conv.is_trainable => Some(conv.weight_name()),
            _ => None,
        });
        conv.collect()
    }

    /// The plan that trains these parts, whatever memory it takes.
    ///
    /// # Errors
    /// It cannot be planned at all.
    pub fn plan(&self, parts: &[Part]) -> Result<Plan, BuildError> {
        let free = Int8Settings { scheme: scheme(parts), memory: u64::MAX, flash: u64::MAX, ..self.settings.clone() };
        Ok(planning::plan(&self.name, self.model, &free)?.plan)
    }

    /// What a plan takes of SRAM; `None` where the flash is too small for it.
    pub fn memory(&self, plan: &Plan) -> Option<u64> {
        (planning::flash_bytes(plan) <= self.settings.flash).then(|| plan.total_bytes())
    }

    fn fits(&self, plan: &Plan) -> bool {
        self.memory(plan).is_some_and(|bytes| bytes <= self.settings.memory)
    }

    /// Bytes of the tensors that a plan changes, each with its padding.
    fn own_bytes(plan: &Plan) -> u64 {
        let align = u64::from(plan.align_bytes);
        plan.stored.iter().filter(|s| s.changes).map(|s| s.tensor.bytes().next_multiple_of(align)).sum()
    }
}

/// How many candidates there are to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Shares of the input channels, ascending.
    pub ratios: Vec<f64>,
    /// Depths of biases at most.
    pub depths: u32,
    /// Weights at most, those nearest to the result; `None` for all.
    pub weights: Option<u32>,
}

/// A part with its plan.
pub struct Candidate {
    /// What it trains.
    pub part: Part,
    /// The plan that trains it and the head.
    pub plan: Plan,
    /// Bytes of the tensors that it trains.
    pub own_bytes: u64,
}

/// The candidates that fit alone, in groups of which one is taken; the plan of the head alone.
///
/// # Errors
/// Not even the head can be trained in the memory.
pub fn offered(network: &Network, wanted: &Wanted) -> Result<(Plan, Vec<Vec<Candidate>>), CommandError> {
    let head = network.plan(&[])?;
    if !network.fits(&head) {
        // The planner's words, with what would fit.
        let settings = Int8Settings { scheme: scheme(&[]), ..network.settings.clone() };
        planning::plan(&network.name, network.model, &settings)?;
    }
    let base = Network::own_bytes(&head);
    let candidate = |part: Part| -> Result<Option<Candidate>, CommandError> {
        let plan = network.plan(&[part])?;
        let own_bytes = Network::own_bytes(&plan).saturating_sub(base);
        // A share of less than one channel trains nothing.
        Ok((network.fits(&plan) && own_bytes > 0).then_some(Candidate { part, plan, own_bytes }))
    };
    let convs = network.convs().len() as u32;
    // More depth takes more memory: the deepest that fits is looked for by halving.
    let (mut deepest, mut beyond) = (0, convs + 1);
    while beyond - deepest > 1 {
        let middle = deepest + (beyond - deepest) / 2;
        match candidate(Part::Bias(middle))? {
            Some(_) => deepest = middle,
            None => beyond = middle,
        }
    }
    let mut depths = Vec::new();
    for depth in spread(deepest, wanted.depths) {
        depths.extend(candidate(Part::Bias(depth))?);
    }
    let mut groups = vec![depths];
    for layer in (0..convs).rev() {
        let mut group = Vec::new();
        for &ratio in &wanted.ratios {
            group.extend(candidate(Part::Weight(layer, ratio))?);
        }
        if !group.is_empty() {
            groups.push(group);
        }
        if wanted.weights.is_some_and(|most| groups.len() > most as usize) {
            break;
        }
    }
    Ok((head, groups))
}

/// At most `count` depths from 1 to `deepest`, each about as many times the one before, the deepest among them.
fn spread(deepest: u32, count: u32) -> Vec<u32> {
    let mut depths: Vec<u32> =
        (1..=count).map(|i| f64::from(deepest).powf(f64::from(i) / f64::from(count)).round() as u32).collect();
    depths.retain(|&depth| depth > 0);
    depths.dedup();
    depths
}

/// The candidates as the selection wants them: `gain` is what one contributes.
pub fn groups(offered: &[Vec<Candidate>], gain: impl Fn(Part) -> f64) -> Vec<Group> {
    let choice = |c: &Candidate| Choice { gain: (gain(c.part) / UNIT).round() as i64, own_bytes: c.own_bytes };
    offered.iter().map(|group| group.iter().map(choice).collect()).collect()
}

/// The parts at these levels.
pub fn parts(offered: &[Vec<Candidate>], levels: &[usize]) -> Vec<Part> {
    let taken = offered.iter().zip(levels).filter(|(_, level)| **level > 0);
    taken.map(|(group, level)| group[level - 1].part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_grow_by_a_factor() {
        assert_eq!(spread(29, 6), [2, 3, 5, 9, 17, 29]);
        assert_eq!(spread(3, 8), [1, 2, 3]);
        assert_eq!(spread(0, 8), [0; 0]);
    }

    #[test]
    fn schemes_name_the_parts() {
        let Scheme { kind: SchemeKind::Sparse(sparse), .. } = scheme(&[Part::Bias(7), Part::Weight(3, 0.5)]) else {
            panic!("a sparse scheme")
        };
        assert_eq!((sparse.bias_last, sparse.weights.len()), (Some(7), 1));
        let Scheme { kind: SchemeKind::Sparse(head), .. } = scheme(&[]) else { panic!("a sparse scheme") };
        assert!(head.bias_last == Some(0) && head.weights.iter().all(|w| w.ratio == 0.0));
    }
}
