//! A program: bodies and calls of them. Equal blocks of a model share one body.

use super::graph::{Graph, Kind, Node, Value, ValueInfo};
use super::types::Type;

/// A tensor declared by the program.
#[derive(Clone, PartialEq, Debug)]
pub struct Decl {
    /// What it is.
    pub kind: Kind,
    /// The name without its sigil.
    pub name: String,
    /// Storage and shape.
    pub ty: Type,
}

/// What a call hands to a body: a declared tensor or an earlier call's result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operand {
    /// Index into [`Program::decls`].
    Decl(u32),
    /// Index of an earlier call, and which of its results.
    Call(u32, u32),
}

/// One use of a body: a block of the model.
#[derive(Clone, PartialEq, Debug)]
pub struct Call {
    /// The block's name: `layers.3`.
    pub name: String,
    /// Index into [`Program::bodies`].
    pub body: u32,
    /// One operand for every declared tensor of the body, in order.
    pub args: Vec<Operand>,
}

/// Bodies, calls, and what the calls are about.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Program {
    /// Packed rows in a micro-batch.
    pub rows: u32,
    /// Inputs, weights, state and constants.
    pub decls: Vec<Decl>,
    /// The bodies with their names; what a body declares is what a call must hand over.
    pub bodies: Vec<(String, Graph)>,
    /// The blocks, in order.
    pub calls: Vec<Call>,
    /// Named results.
    pub results: Vec<(String, Operand)>,
}

impl Program {
    /// Declares a tensor and returns the operand that names it.
    pub fn declare(&mut self, kind: Kind, name: &str, ty: Type) -> Operand {
        self.decls.push(Decl { kind, name: name.to_string(), ty });
        Operand::Decl(self.decls.len() as u32 - 1)
    }

    /// The body of this name, added by `make` when new.
    pub fn body(&mut self, name: &str, make: impl FnOnce() -> Graph) -> u32 {
        match self.bodies.iter().position(|(n, _)| n == name) {
            Some(i) => i as u32,
            None => {
                self.bodies.push((name.to_string(), make()));
                self.bodies.len() as u32 - 1
            }
        }
    }

    /// Appends a call and returns its index.
    pub fn call(&mut self, name: &str, body: u32, args: Vec<Operand>) -> u32 {
        self.calls.push(Call { name: name.to_string(), body, args });
        self.calls.len() as u32 - 1
    }

    /// Writes every call's body out in full: one graph with a block per call. Values are named
    /// `<call>.<name in the body>`.
    pub fn inline(&self) -> Graph {
        let mut graph = Graph::new(self.rows);
        let decls: Vec<Value> = self.decls.iter().map(|d| graph.declare(d.kind, &d.name, d.ty.clone())).collect();
        let mut results: Vec<Vec<Value>> = Vec::new();
        for call in &self.calls {
            let body = &self.bodies[call.body as usize].1;
            let block = graph.block(&call.name);
            let mut map = vec![Value(u32::MAX); body.values.len()];
            let mut args = call.args.iter();
            for (i, info) in body.values.iter().enumerate() {
                map[i] = match info.decl {
                    Some(_) => match *args.next().expect("verified: one operand per declared tensor") {
                        Operand::Decl(d) => decls[d as usize],
                        Operand::Call(c, r) => results[c as usize][r as usize],
                    },
                    None => graph.add_value(ValueInfo { name: format!("{}.{}", call.name, info.name), ..info.clone() }),
                };
            }
            let at = |v: &Value| map[v.index()];
            graph.nodes.extend(body.nodes.iter().map(|n| Node {
                args: n.args.iter().map(at).collect(),
                outs: n.outs.iter().map(at).collect(),
                block,
                ..n.clone()
            }));
            results.push(body.results.iter().map(|(_, v)| at(v)).collect());
        }
        graph.results = self
            .results
            .iter()
            .map(|(name, operand)| match *operand {
                Operand::Decl(d) => (name.clone(), decls[d as usize]),
                Operand::Call(c, r) => (name.clone(), results[c as usize][r as usize]),
            })
            .collect();
        graph
    }
}
