//! Text to graphs and programs. Every finding is reported with its line; nothing panics.

use crate::ir::attrs::{Attr, Attrs};
use crate::ir::graph::{Graph, Kind, Node, Region, Value, ValueInfo};
use crate::ir::ops::Op;
use crate::ir::program::{Call, Decl, Operand, Program};
use crate::ir::types::Type;
use crate::ir::verify;
use std::collections::HashMap;
use std::fmt;
use tinyforge_plan::DType;

/// Something wrong in a text, and where.
#[derive(Clone, PartialEq, Debug)]
pub struct Diagnostic {
    /// The line, counted from 1; 0 when no single line is at fault.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// Reads a graph and verifies it.
pub fn parse_graph(text: &str) -> Result<Graph, Vec<Diagnostic>> {
    let mut parser = GraphParser::new();
    let mut diagnostics = Vec::new();
    let mut lines = Vec::new();
    for (number, line) in code_lines(text) {
        if let Err(message) = parser.line(line) {
            diagnostics.push(Diagnostic { line: number, message });
        }
        lines.resize(parser.graph.nodes.len(), number);
    }
    if diagnostics.is_empty() {
        let at = |node: Option<usize>| node.and_then(|n| lines.get(n).copied()).unwrap_or(0);
        let found = verify::verify(&parser.graph).into_iter();
        diagnostics.extend(found.map(|f| Diagnostic { line: at(f.node), message: f.message }));
    }
    if diagnostics.is_empty() { Ok(parser.graph) } else { Err(diagnostics) }
}

/// Reads a program and verifies it.
pub fn parse_program(text: &str) -> Result<Program, Vec<Diagnostic>> {
    let mut program = Program { rows: 1, ..Program::default() };
    let mut body: Option<(String, GraphParser)> = None;
    let mut diagnostics = Vec::new();
    for (number, line) in code_lines(text) {
        let result = match (&mut body, line) {
            (Some(_), "end") => {
                let (name, parser) = body.take().expect("matched above");
                program.bodies.push((name, parser.graph));
                Ok(())
            }
            (Some((_, parser)), line) => parser.line(line),
            (None, line) => match line.strip_prefix("body ") {
                Some(name) => {
                    let mut parser = GraphParser::new();
                    parser.graph.rows = program.rows;
                    body = Some((name.trim().to_string(), parser));
                    Ok(())
                }
                None => program_line(&mut program, line),
            },
        };
        if let Err(message) = result {
            diagnostics.push(Diagnostic { line: number, message });
        }
    }
    if body.is_some() {
        diagnostics.push(Diagnostic { line: 0, message: "the last body has no `end`".to_string() });
    }
    if diagnostics.is_empty() {
        let found = verify::verify_program(&program).into_iter();
        diagnostics.extend(found.map(|f| Diagnostic { line: 0, message: f.message }));
    }
    if diagnostics.is_empty() { Ok(program) } else { Err(diagnostics) }
}

fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let strip = |line: &'_ str| line.find('#').map_or(line.len(), |at| at);
    text.lines().enumerate().map(move |(i, line)| (i + 1, line[..strip(line)].trim())).filter(|(_, l)| !l.is_empty())
}

fn program_line(program: &mut Program, line: &str) -> Result<(), String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    if let Some(kind) = kind_of(word) {
        let (name, ty) = declaration(rest)?;
        program.decls.push(Decl { kind, name, ty });
        return Ok(());
    }
    match word {
        "program" => Ok(()),
        "rows" => rows(rest).map(|rows| program.rows = rows),
        "call" => {
            let (name, rest) = rest.split_once('=').ok_or("a call is `call NAME = BODY OPERANDS`")?;
            let (body_name, args) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
            let body = program.bodies.iter().position(|(n, _)| n == body_name);
            let body = body.ok_or_else(|| format!("there is no body `{body_name}`"))? as u32;
            let args = commas(args).map(|a| program_operand(program, a)).collect::<Result<_, _>>()?;
            program.calls.push(Call { name: name.trim().to_string(), body, args });
            Ok(())
        }
        "return" => {
            let (name, value) = rest.split_once('=').ok_or("a result is `return NAME = VALUE`")?;
            let operand = program_operand(program, value.trim())?;
            program.results.push((name.trim().to_string(), operand));
            Ok(())
        }
        _ => Err(format!("`{word}` starts no line of a program")),
    }
}

fn program_operand(program: &Program, text: &str) -> Result<Operand, String> {
    if let Some(name) = text.strip_prefix(['%', '@']) {
        let found = program.decls.iter().position(|d| d.name == name);
        return found.map(|d| Operand::Decl(d as u32)).ok_or_else(|| format!("`{text}` is not declared"));
    }
    let (name, result) = text.rsplit_once(':').ok_or_else(|| format!("`{text}` is no operand"))?;
    let call = program.calls.iter().position(|c| c.name == name).ok_or_else(|| format!("there is no call `{name}`"))?;
    let result = result.parse().map_err(|_| format!("`{result}` is no result's number"))?;
    Ok(Operand::Call(call as u32, result))
}

struct GraphParser {
    graph: Graph,
    names: HashMap<String, Value>,
    block: u32,
    region: Region,
}

impl GraphParser {
    fn new() -> GraphParser {
        GraphParser { graph: Graph::new(1), names: HashMap::new(), block: 0, region: Region::Forward }
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if let Some(kind) = kind_of(word) {
            let (name, ty) = declaration(rest)?;
            let v = self.define(&name, ty)?;
            self.graph.values[v.index()].decl = Some(kind);
            return Ok(());
        }
        match word {
            "rows" => rows(rest).map(|rows| self.graph.rows = rows),
            "block" => self.start_block(rest),
            "return" => {
                let (name, value) = rest.split_once('=').ok_or("a result is `return NAME = VALUE`")?;
                let v = self.value(value.trim())?;
                self.graph.results.push((name.trim().to_string(), v));
                Ok(())
            }
            _ => self.node(line),
        }
    }

    fn start_block(&mut self, rest: &str) -> Result<(), String> {
        let (name, region) = rest.split_once(' ').ok_or("a block is `block NAME REGION`")?;
        let found = Region::ALL.iter().find(|(_, word)| *word == region.trim());
        self.region = found.ok_or_else(|| format!("`{region}` is no region"))?.0;
        self.block = self.graph.block(if name == "-" { "" } else { name });
        Ok(())
    }

    fn define(&mut self, name: &str, ty: Type) -> Result<Value, String> {
        if self.names.contains_key(name) {
            return Err(format!("`{name}` is defined twice"));
        }
        let v = self.graph.add_value(ValueInfo { name: name.to_string(), ty, decl: None });
        self.names.insert(name.to_string(), v);
        Ok(v)
    }

    fn value(&self, text: &str) -> Result<Value, String> {
        let name = text.strip_prefix(['%', '@']).ok_or_else(|| format!("`{text}` is no value"))?;
        self.names.get(name).copied().ok_or_else(|| format!("`{text}` is not defined"))
    }

    /// `%a, %b = op %x, @w {k=1} : f32[2], f32[3]`, where results, operands and attributes may be absent.
    fn node(&mut self, line: &str) -> Result<(), String> {
        let (code, tys) = match line.rsplit_once(" : ") {
            Some((code, tys)) => (code, types(tys)?),
            None => (line, Vec::new()),
        };
        let (outs, code) = match code.split_once(" = ") {
            Some((outs, code)) => (outs, code.trim()),
            None => ("", code),
        };
        let (code, attrs) = match code.split_once('{') {
            Some((code, attrs)) => (code.trim(), attrs.trim().strip_suffix('}').ok_or("`{` without `}`")?),
            None => (code, ""),
        };
        let (name, args) = code.split_once(' ').unwrap_or((code, ""));
        let op = Op::from_name(name).ok_or_else(|| format!("there is no op `{name}`"))?;
        let args = commas(args).map(|a| self.value(a)).collect::<Result<Vec<_>, _>>()?;
        let attrs = attributes(op, attrs)?;
        let outs: Vec<&str> = commas(outs).collect();
        if outs.len() != tys.len() {
            return Err(format!("{} results, {} types", outs.len(), tys.len()));
        }
        let outs = outs.iter().zip(tys).map(|(out, ty)| {
            let name = out.strip_prefix('%').ok_or_else(|| format!("result `{out}` must start with %"))?;
            check_name(name)?;
            self.define(name, ty)
        });
        let outs = outs.collect::<Result<_, _>>()?;
        self.graph.nodes.push(Node { op, args, attrs, outs, block: self.block, region: self.region });
        Ok(())
    }
}

fn kind_of(word: &str) -> Option<Kind> {
    Kind::ALL.iter().find(|(_, w)| *w == word).map(|(k, _)| *k)
}

fn rows(text: &str) -> Result<u32, String> {
    match text.trim().parse() {
        Ok(rows) if rows > 0 => Ok(rows),
        _ => Err(format!("`{text}` is no number of rows")),
    }
}

fn declaration(rest: &str) -> Result<(String, Type), String> {
    let (name, ty) = rest.split_once(" : ").ok_or("a declaration is `KIND NAME : TYPE`")?;
    let name = name.trim().strip_prefix(['%', '@']).ok_or("a declared name starts with % or @")?;
    check_name(name)?;
    Ok((name.to_string(), ty_of(ty.trim())?))
}

/// Refuses names that would not read back.
fn check_name(name: &str) -> Result<(), String> {
    let is_mark = |c: char| c.is_whitespace() || ",:{}=%@#".contains(c);
    if name.is_empty() || name.contains(is_mark) { Err(format!("`{name}` is no name")) } else { Ok(()) }
}

fn commas(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|s| !s.is_empty())
}

/// Types separated by commas; the commas inside brackets belong to a type.
fn types(text: &str) -> Result<Vec<Type>, String> {
    text.split_inclusive(']').map(|t| ty_of(t.trim_start_matches(',').trim())).collect()
}

fn ty_of(text: &str) -> Result<Type, String> {
    let bad = || format!("`{text}` is no type");
    let (name, dims) = text.split_once('[').ok_or_else(bad)?;
    let dtype = DType::from_name(name.trim()).ok_or_else(bad)?;
    let dims = dims.trim().strip_suffix(']').ok_or_else(bad)?;
    let shape = dims.split(',').map(|d| d.trim().parse::<u32>().map_err(|_| bad())).collect::<Result<Vec<_>, _>>()?;
    let ty = Type { dtype, shape };
    verify::check_type(&ty)?;
    Ok(ty)
}

fn attributes(op: Op, text: &str) -> Result<Attrs, String> {
    let mut attrs = Attrs::of(op.def().attrs, &[]);
    for pair in commas(text) {
        let (name, value) = pair.split_once('=').ok_or_else(|| format!("`{pair}` is no attribute"))?;
        let (name, value) = (name.trim(), value.trim());
        let parsed = match (value.parse::<i64>(), value.parse::<f64>()) {
            (Ok(v), _) => Attr::Int(v),
            (_, Ok(v)) if v.is_finite() => Attr::Float(v),
            _ => return Err(format!("`{value}` is no number")),
        };
        if !attrs.set(name, parsed) {
            return Err(format!("{} has no attribute `{name}` that takes {value}", op.name()));
        }
    }
    Ok(attrs)
}
