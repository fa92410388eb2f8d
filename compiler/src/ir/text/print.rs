//! Graphs and programs to text.

use crate::ir::graph::{Graph, Node, Region, Value};
use crate::ir::program::{Operand, Program};
use std::fmt::Write;

/// The text of a graph.
pub fn print_graph(graph: &Graph) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "rows {}", graph.rows);
    graph_lines(&mut out, graph, "");
    out
}

/// The text of a program.
pub fn print_program(program: &Program) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "program\nrows {}", program.rows);
    for d in &program.decls {
        let sigil = if d.kind.word() == "input" { '%' } else { '@' };
        let _ = writeln!(out, "{} {sigil}{} : {}", d.kind.word(), d.name, d.ty);
    }
    for (name, body) in &program.bodies {
        let _ = writeln!(out, "body {name}");
        graph_lines(&mut out, body, "  ");
        out.push_str("end\n");
    }
    for call in &program.calls {
        let args: Vec<String> = call.args.iter().map(|&a| operand(program, a)).collect();
        let _ = writeln!(out, "call {} = {} {}", call.name, program.bodies[call.body as usize].0, args.join(", "));
    }
    for (name, o) in &program.results {
        let _ = writeln!(out, "return {name} = {}", operand(program, *o));
    }
    out
}

fn operand(program: &Program, operand: Operand) -> String {
    match operand {
        Operand::Decl(d) => {
            let d = &program.decls[d as usize];
            format!("{}{}", if d.kind.word() == "input" { '%' } else { '@' }, d.name)
        }
        Operand::Call(c, r) => format!("{}:{r}", program.calls[c as usize].name),
    }
}

fn graph_lines(out: &mut String, graph: &Graph, indent: &str) {
    for (i, info) in graph.values.iter().enumerate() {
        if let Some(kind) = info.decl {
            let _ = writeln!(out, "{indent}{} {} : {}", kind.word(), graph.display(Value(i as u32)), info.ty);
        }
    }
    let mut at = (0, Region::Forward);
    for node in &graph.nodes {
        if at != (node.block, node.region) {
            at = (node.block, node.region);
            let name = &graph.blocks[node.block as usize];
            let name = if name.is_empty() { "-" } else { name };
            let _ = writeln!(out, "{indent}block {name} {}", node.region.word());
        }
        let _ = writeln!(out, "{indent}{}", node_line(graph, node));
    }
    for (name, v) in &graph.results {
        let _ = writeln!(out, "{indent}return {name} = {}", graph.display(*v));
    }
}

/// One node as a line of text.
pub(crate) fn node_line(graph: &Graph, node: &Node) -> String {
    let names = |vs: &[Value]| vs.iter().map(|&v| graph.display(v)).collect::<Vec<_>>().join(", ");
    let mut line = String::new();
    if !node.outs.is_empty() {
        let _ = write!(line, "{} = ", names(&node.outs));
    }
    line.push_str(node.op.name());
    if !node.args.is_empty() {
        let _ = write!(line, " {}", names(&node.args));
    }
    let given: Vec<String> = node
        .attrs
        .iter()
        .zip(node.op.def().attrs)
        .filter(|((_, value), def)| *value != def.default)
        .map(|((name, value), _)| format!("{name}={value}"))
        .collect();
    if !given.is_empty() {
        let _ = write!(line, " {{{}}}", given.join(", "));
    }
    if !node.outs.is_empty() {
        let tys: Vec<String> = node.outs.iter().map(|&v| graph.ty(v).to_string()).collect();
        let _ = write!(line, " : {}", tys.join(", "));
    }
    line
}
