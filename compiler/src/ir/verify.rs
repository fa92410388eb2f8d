//! The verifier. What it accepts, nothing later panics on. It is the list of what holds of a graph:
//!
//! 1. Names are unique; dimensions, and the number of rows (all dimensions but the last), are between 1 and 2^31-1,
//!    and elements at most 2^40.
//! 2. Rows of block-quantised tensors are whole blocks.
//! 3. Every operand is declared or defined by an earlier node; every value is defined once.
//! 4. Operand counts, attributes and result types are what the op's row says; whole numbers fit 32 bits, others are
//!    finite.
//! 5. What a node changes is stored (weight, state or const). No forward or backward node reads a weight after it
//!    changed, and no update one that another update changed, but for the rows of a panel that are as they were.
//! 6. Blocks exist; results name existing values.

use super::attrs::Attr;
use super::graph::{Graph, Kind, Node, Value};
use super::ops::panel;
use super::program::{Operand, Program};
use super::types::Type;
use std::collections::HashSet;
use std::ops::Range;

/// Something wrong with a graph, and the node at which it shows.
#[derive(Clone, PartialEq, Debug)]
pub struct Finding {
    /// Index of the node, when one is at fault.
    pub node: Option<usize>,
    /// What is wrong.
    pub message: String,
}

/// Checks a type by rules 1 and 2.
pub fn check_type(ty: &Type) -> Result<(), String> {
    const MAX_ELEMS: u64 = 1 << 40;
    if ty.shape.is_empty() || ty.shape.iter().any(|&d| d == 0 || d > i32::MAX as u32) {
        return Err(format!("every dimension of {ty} must be between 1 and {}", i32::MAX));
    }
    let elems = ty.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::from(d)));
    if elems.is_none_or(|n| n > MAX_ELEMS) {
        return Err(format!("{ty} has more than 2^40 elements"));
    }
    let rows: u64 = ty.shape.iter().rev().skip(1).map(|&d| u64::from(d)).product();
    if rows > i32::MAX as u64 {
        return Err(format!("{ty} has more than {} rows", i32::MAX));
    }
    if u64::from(ty.cols()) % ty.dtype.block_elems() != 0 {
        return Err(format!("rows of {ty} are not whole blocks of {}", ty.dtype.block_elems()));
    }
    Ok(())
}

/// All that is wrong with a graph.
pub fn verify(graph: &Graph) -> Vec<Finding> {
    let mut check = Check { graph, defined: vec![false; graph.values.len()], findings: Vec::new() };
    check.values();
    if !check.findings.is_empty() {
        // Shape rules count elements, which is safe for types that pass only.
        return check.findings;
    }
    let mut changed = vec![Vec::new(); graph.values.len()];
    for i in 0..graph.nodes.len() {
        check.node(i);
        check.changes(i, &mut changed);
    }
    check.results();
    check.findings
}

struct Check<'g> {
    graph: &'g Graph,
    defined: Vec<bool>,
    findings: Vec<Finding>,
}

impl Check<'_> {
    fn report(&mut self, node: Option<usize>, message: String) {
        self.findings.push(Finding { node, message });
    }

    fn values(&mut self) {
        let mut names: HashSet<&str> = HashSet::with_capacity(self.graph.values.len());
        for info in self.graph.values.iter().filter(|info| !names.insert(&info.name)) {
            self.findings.push(Finding { node: None, message: format!("`{}` is defined twice", info.name) });
        }
        for (i, info) in self.graph.values.iter().enumerate() {
            self.defined[i] = info.decl.is_some();
            if let Err(why) = check_type(&info.ty) {
                self.findings.push(Finding { node: None, message: format!("`{}`: {why}", info.name) });
            }
        }
    }

    fn node(&mut self, i: usize) {
        let node = &self.graph.nodes[i];
        let def = node.op.def();
        if node.block as usize >= self.graph.blocks.len() {
            self.report(Some(i), format!("block {} does not exist", node.block));
        }
        for &arg in &node.args {
            if !self.defined[arg.index()] {
                self.report(Some(i), format!("{} is read before it is defined", self.graph.display(arg)));
            }
        }
        if node.args.len() < def.arity.0 || node.args.len() > def.arity.1 {
            let (least, most) = def.arity;
            self.report(Some(i), format!("{} takes {least} to {most} operands, found {}", def.name, node.args.len()));
        } else {
            self.types(i);
        }
        for &out in &node.outs {
            if std::mem::replace(&mut self.defined[out.index()], true) {
                self.report(Some(i), format!("{} is defined twice", self.graph.display(out)));
            }
        }
    }

    fn types(&mut self, i: usize) {
        let node = &self.graph.nodes[i];
        let in_range = |value: Attr| match value {
            Attr::Int(v) => i32::try_from(v).is_ok(),
            Attr::Float(v) => v.is_finite(),
        };
        if let Some((name, value)) = node.attrs.iter().find(|(_, v)| !in_range(*v)) {
            return self.report(Some(i), format!("{}: {name}={value} is out of range", node.op.name()));
        }
        match (node.op.def().infer)(&self.graph.types(&node.args), &node.attrs) {
            Err(why) => self.report(Some(i), format!("{}: {why}", node.op.name())),
            Ok(tys) if !tys.iter().eq(node.outs.iter().map(|&v| self.graph.ty(v))) => {
                let (wanted, found) = (list(&tys), list(&self.graph.types(&node.outs)));
                self.report(Some(i), format!("{} gives ({wanted}), written is ({found})", node.op.name()));
            }
            Ok(_) => {}
        }
    }

    /// `changed`: of every tensor the rows that earlier nodes change.
    fn changes(&mut self, i: usize, changed: &mut [Vec<Range<usize>>]) {
        let node = &self.graph.nodes[i];
        let count = (node.op.def().mutates)(&node.attrs).min(node.args.len());
        let is_weight = |v: &Value| self.graph.info(*v).decl == Some(Kind::Weight);
        let is_late = |v: &Value| {
            let before = &changed[v.index()];
            if before.is_empty() || !is_weight(v) {
                return false;
            }
            let rows = self.rows(node, *v);
            before.iter().any(|r| !node.region.is_update() || (r.start < rows.end && rows.start < r.end))
        };
        // What an update changes it may change again.
        let read = if node.region.is_update() { &node.args[count..] } else { &node.args[..] };
        if let Some(&v) = read.iter().find(|v| is_late(v)) {
            self.report(Some(i), format!("{} is read after its update", self.graph.display(v)));
        }
        for &v in &self.graph.nodes[i].args[..count] {
            changed[v.index()].push(self.rows(&self.graph.nodes[i], v));
            if !matches!(self.graph.info(v).decl, Some(Kind::Weight | Kind::State | Kind::Const)) {
                self.report(Some(i), format!("{} is changed but not stored", self.graph.display(v)));
            }
        }
    }

    /// The rows of a stored tensor that a node is about.
    fn rows(&self, node: &Node, v: Value) -> Range<usize> {
        let has_panel = node.op.def().attrs.iter().any(|a| a.name == "panel_rows");
        let all = 0..self.graph.ty(v).rows() as usize;
        if has_panel { panel(all.end, &node.attrs).unwrap_or(all) } else { all }
    }

    fn results(&mut self) {
        for (name, v) in &self.graph.results {
            if !self.defined.get(v.index()).copied().unwrap_or(false) {
                self.findings.push(Finding { node: None, message: format!("result `{name}` is not defined") });
            }
        }
    }
}

/// Types with commas between them.
pub fn list(tys: &[Type]) -> String {
    tys.iter().map(Type::to_string).collect::<Vec<_>>().join(", ")
}

/// All that is wrong with a program: its bodies, and its calls (operand counts and types, order).
pub fn verify_program(program: &Program) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, body) in &program.bodies {
        findings
            .extend(verify(body).into_iter().map(|f| Finding { message: format!("body {name}: {}", f.message), ..f }));
    }
    for (i, call) in program.calls.iter().enumerate() {
        if let Err(why) = check_call(program, i) {
            findings.push(Finding { node: None, message: format!("call {}: {why}", call.name) });
        }
    }
    for (name, operand) in &program.results {
        if operand_type(program, program.calls.len(), *operand).is_none() {
            findings.push(Finding { node: None, message: format!("result `{name}` is not defined") });
        }
    }
    findings
}

/// The type of an operand of call `before`, or `None` when it names nothing earlier.
pub fn operand_type(program: &Program, before: usize, operand: Operand) -> Option<Type> {
    match operand {
        Operand::Decl(d) => program.decls.get(d as usize).map(|d| d.ty.clone()),
        Operand::Call(c, r) => {
            let call = program.calls[..before].get(c as usize)?;
            let body = &program.bodies.get(call.body as usize)?.1;
            body.results.get(r as usize).map(|(_, v)| body.ty(*v).clone())
        }
    }
}

fn check_call(program: &Program, i: usize) -> Result<(), String> {
    let call = &program.calls[i];
    let (name, body) = program.bodies.get(call.body as usize).ok_or("its body does not exist")?;
    let formals: Vec<_> = body.values.iter().filter(|v| v.decl.is_some()).collect();
    if formals.len() != call.args.len() {
        return Err(format!("{name} takes {} operands, found {}", formals.len(), call.args.len()));
    }
    for (formal, &arg) in formals.iter().zip(&call.args) {
        let found = operand_type(program, i, arg).ok_or(format!("operand for `{}` is not defined yet", formal.name))?;
        if found != formal.ty {
            return Err(format!("operand for `{}` is {found}, must be {}", formal.name, formal.ty));
        }
    }
    Ok(())
}
