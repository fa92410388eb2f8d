//! A bound of a program's stack, from its code: frames added up along the deepest chain of calls.
//!
//! What a function takes is the sum of all that its instructions take off the stack pointer, on whichever path; what it
//! calls is what it branches to. Calls through a pointer are not followed and are named. Not a proof: code that moves
//! the stack pointer by a register is not seen.

use super::output;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

const DISASSEMBLER: &str = "arm-none-eabi-objdump";
/// Registers that the processor stacks for an exception with a floating-point unit, and the alignment before.
const EXCEPTION_BYTES: u64 = 26 * 4 + 4;
/// What interrupts the program while it counts.
const HANDLER: &str = "SysTick";

#[derive(Default)]
struct Function {
    frame: u64,
    calls: Vec<String>,
    is_indirect: bool,
}

/// The deepest chain.
struct Bound {
    bytes: u64,
    chain: Vec<String>,
    /// Functions on any chain that call through a pointer.
    indirect: Vec<String>,
    /// A function that calls itself by way of others.
    recursion: Option<String>,
}

/// Prints the bound; says what is missing where there is no disassembler.
pub fn print_bound(program: &Path) {
    let text = output(Command::new(DISASSEMBLER).args(["-d", "-C", "--no-show-raw-insn"]).arg(program));
    let Ok(text) = text else { return println!("stack bound: {DISASSEMBLER} is missing") };
    let functions = parse(&text);
    let Some(from) = ["Reset", "reset", "main"].into_iter().find(|name| functions.contains_key(*name)) else {
        return println!("stack bound: the program has no start");
    };
    let (bound, handler) = (bound(&functions, from), bound(&functions, HANDLER));
    let interrupt = if functions.contains_key(HANDLER) { EXCEPTION_BYTES + handler.bytes } else { 0 };
    println!("stack bound: {} bytes, of which {interrupt} for an interrupt", bound.bytes + interrupt);
    println!("  deepest: {}", bound.chain.join(" > "));
    if !bound.indirect.is_empty() {
        println!("  not followed: calls through a pointer in {}", bound.indirect.join(", "));
    }
    if let Some(name) = bound.recursion {
        println!("  no bound: {name} calls itself");
    }
}

/// Functions of a disassembly.
fn parse(text: &str) -> BTreeMap<String, Function> {
    let mut functions: BTreeMap<String, Function> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines() {
        if let Some(head) = line.strip_suffix(">:").and_then(|line| line.split_once(" <")) {
            name = head.1.to_string();
            functions.entry(name.clone()).or_default();
            continue;
        }
        let Some((_, code)) = line.split_once(":\t") else { continue };
        let Some(function) = functions.get_mut(&name) else { continue };
        let (operation, operands) = code.split_once('\t').unwrap_or((code, ""));
        function.frame += taken(operation, operands);
        if operation.starts_with("blx") && !operands.contains('<') {
            function.is_indirect = true;
        }
        if operation.starts_with('b')
            && let Some(target) = operands.split_once('<').and_then(|(_, rest)| rest.rsplit_once('>'))
            && target.0 != name
            && !target.0.starts_with(&format!("{name}+0x"))
        {
            let (target, _) = target.0.rsplit_once("+0x").unwrap_or(target);
            function.calls.push(target.to_string());
        }
    }
    functions
}

/// Bytes that an instruction takes off the stack pointer.
fn taken(operation: &str, operands: &str) -> u64 {
    let first = operands.split(',').next().unwrap_or_default().trim();
    let number =
        || operands.rsplit_once('#').and_then(|(_, n)| n.split([']', ' ', '!', ';', '\t']).next()?.parse::<i64>().ok());
    let registers = || {
        let list = operands.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(list, _)| list);
        list.split(',').map(str::trim).map(count).sum::<u64>()
    };
    match operation.split('.').next().unwrap_or_default() {
        "push" => 4 * registers(),
        "stmdb" if first == "sp!" => 4 * registers(),
        "vpush" => (if operands.contains('d') { 8 } else { 4 }) * registers(),
        "vstmdb" if first == "sp!" => (if operands.contains("{d") { 8 } else { 4 }) * registers(),
        "sub" | "subw" if first == "sp" => number().map_or(0, |n| n.max(0) as u64),
        "str" | "strd" if operands.contains("[sp, #-") && operands.ends_with("]!") => {
            number().map_or(0, |n| n.unsigned_abs())
        }
        _ => 0,
    }
}

/// Registers of `r4` or `d8-d15`.
fn count(part: &str) -> u64 {
    let number = |name: &str| name.trim_start_matches(|c: char| c.is_alphabetic()).parse::<u64>().ok();
    match part.split_once('-') {
        Some((first, last)) => match (number(first), number(last)) {
            (Some(first), Some(last)) => last.saturating_sub(first) + 1,
            _ => 1,
        },
        None => u64::from(!part.is_empty()),
    }
}

/// The deepest chain of calls from a function.
fn bound(functions: &BTreeMap<String, Function>, from: &str) -> Bound {
    let mut bound = Bound { bytes: 0, chain: Vec::new(), indirect: Vec::new(), recursion: None };
    let mut known = BTreeMap::new();
    let mut above = Vec::new();
    bound.bytes = depth(functions, from, &mut known, &mut above, &mut bound);
    let mut at = Some(from.to_string());
    while let Some(name) = at {
        at = known.get(&name).and_then(|(_, next): &(u64, Option<String>)| next.clone());
        let frame = functions.get(&name).map_or(0, |f| f.frame);
        bound.chain.push(format!("{} {frame}", name.split("::").last().unwrap_or_default()));
    }
    bound
}

fn depth(
    functions: &BTreeMap<String, Function>,
    name: &str,
    known: &mut BTreeMap<String, (u64, Option<String>)>,
    above: &mut Vec<String>,
    found: &mut Bound,
) -> u64 {
    if let Some((bytes, _)) = known.get(name) {
        return *bytes;
    }
    let Some(function) = functions.get(name) else { return 0 };
    if above.iter().any(|caller| caller == name) {
        found.recursion = Some(name.to_string());
        return 0;
    }
    if function.is_indirect {
        found.indirect.push(name.to_string());
    }
    above.push(name.to_string());
    let mut deepest = (0, None);
    for call in &function.calls {
        let bytes = depth(functions, call, known, above, found);
        if bytes > deepest.0 {
            deepest = (bytes, Some(call.clone()));
        }
    }
    above.pop();
    let bytes = function.frame + deepest.0;
    known.insert(name.to_string(), (bytes, deepest.1));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00000400 <main>:\n 400:\tpush\t{r4, r5, r6, lr}\n 402:\tsub\tsp, #24\n \
        404:\tbl\t500 <kernels::leaf>\n 408:\tb.n\t402 <main+0x2>\n\n00000500 <kernels::leaf>:\n \
        500:\tstmdb\tsp!, {r4, r5, r6, r7, r8, r9, sl, fp, lr}\n 504:\tvpush\t{d8-d15}\n \
        508:\tsub.w\tsp, sp, #1024\t@ 0x400\n 50c:\tblx\tr3\n";

    #[test]
    fn frames_add_up_along_calls() {
        let functions = parse(TEXT);
        let found = bound(&functions, "main");
        assert_eq!(found.bytes, 16 + 24 + 36 + 64 + 1024);
        assert_eq!(found.chain, ["main 40", "leaf 1124"]);
        assert_eq!((found.indirect, found.recursion), (vec!["kernels::leaf".to_string()], None));
    }

    #[test]
    fn recursion_is_named() {
        let text = "0 <a>:\n 0:\tpush\t{lr}\n 2:\tbl\t8 <b>\n0 <b>:\n 8:\tbl\t0 <a>\n";
        assert_eq!(bound(&parse(text), "a").recursion, Some("a".to_string()));
    }
}
