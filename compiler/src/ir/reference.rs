//! The reference interpreter: every op by its naive f64 definition. Slow, simple, and the meaning of the language.

use super::graph::{Graph, Kind, Node, Value, ValueInfo};
use super::ops::{Eval, Tensor};

/// The contents of all values after a run; `None` for values nothing has computed.
pub struct Memory(Vec<Option<Tensor>>);

impl Memory {
    /// Runs a graph. `declared` gives the contents of every declared tensor.
    pub fn run(graph: &Graph, declared: impl FnMut(Value) -> Tensor) -> Memory {
        let mut memory = Memory::with(graph, declared);
        memory.step(graph);
        memory
    }

    /// Runs a graph with the definitions that do not round, where ops have one: what finite differences are taken of.
    pub fn run_smooth(graph: &Graph, declared: impl FnMut(Value) -> Tensor) -> Memory {
        let mut memory = Memory::with(graph, declared);
        graph
            .nodes
            .iter()
            .for_each(|node| memory.node(graph, node, node.op.def().smooth.unwrap_or(node.op.def().eval)));
        memory
    }

    fn with(graph: &Graph, mut declared: impl FnMut(Value) -> Tensor) -> Memory {
        let of = |(i, info): (usize, &ValueInfo)| info.decl.map(|_| declared(Value(i as u32)));
        Memory(graph.values.iter().enumerate().map(of).collect())
    }

    /// Runs the graph's nodes again over what is there: another step with the same inputs.
    pub fn step(&mut self, graph: &Graph) {
        graph.nodes.iter().for_each(|node| self.node(graph, node, node.op.def().eval));
    }

    fn node(&mut self, graph: &Graph, node: &Node, eval: Eval) {
        let mut args: Vec<Tensor> = node.args.iter().map(|&v| self.get(v).clone()).collect();
        let mut outs: Vec<Tensor> = node.outs.iter().map(|&v| Tensor::zeros(graph.ty(v))).collect();
        eval(&mut args, &mut outs, &node.attrs);
        let changed = (node.op.def().mutates)(&node.attrs);
        for (&v, tensor) in node.args.iter().zip(args).take(changed) {
            self.0[v.index()] = Some(tensor);
        }
        for (&v, tensor) in node.outs.iter().zip(outs) {
            self.0[v.index()] = Some(tensor);
        }
    }

    /// The contents of a value.
    ///
    /// # Panics
    /// When nothing computed it, which the verifier excludes.
    pub fn get(&self, v: Value) -> &Tensor {
        self.0[v.index()].as_ref().expect("verified: defined before it is read")
    }

    /// Replaces the contents of a declared tensor.
    pub fn set(&mut self, v: Value, tensor: Tensor) {
        self.0[v.index()] = Some(tensor);
    }
}

/// Contents for a declared tensor that suit what reads it: small reals for floats (positive for states), and for
/// `i32` inputs numbers below `limit(value)`. Repeatable: they depend on `seed` and the value's index.
pub fn sample(graph: &Graph, v: Value, seed: u64, limit: impl Fn(Value) -> u64) -> Tensor {
    let ty = graph.ty(v);
    let mut tensor = Tensor::zeros(ty);
    let is_state = graph.info(v).decl == Some(Kind::State);
    for (i, x) in tensor.data.iter_mut().enumerate() {
        let bits = mix(seed ^ mix(u64::from(v.0) << 32 | i as u64));
        let unit = (bits >> 11) as f64 / (1u64 << 53) as f64;
        *x = match (ty.dtype.is_float(), is_state) {
            (true, false) => 2.0 * unit - 1.0,
            (true, true) => 0.5 + unit,
            (false, _) => (bits % limit(v).max(1)) as f64,
        };
    }
    tensor
}

/// A 64-bit mixing function. Source: Steele et al. 2014 (SplitMix64).
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
