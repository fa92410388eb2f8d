//! Replays the cases of a file: `conformance FILE`. Ends with 0 if every buffer is bit for bit what the host computed.
#![no_std]
#![no_main]

use tinyforge_conformance::{BUFFERS, CASE_BYTES, Case, LABEL_BYTES, MAGIC, call, scratch_bytes};
use tinyforge_firmware::{Arena, Place};
use tinyforge_mps2::host::{self, Arguments, File, Mode};
use tinyforge_mps2::{Line, count, entry, stack};

const MEMORY_BYTES: usize = 200 * 1024;
const ALIGN_BYTES: usize = 16;

static MEMORY: Place<Arena<MEMORY_BYTES>> = Place::new(Arena::new());

/// What ends the run.
enum Stop {
    /// No file, or not one of cases.
    File = 2,
    /// A case needs more memory than there is.
    Memory = 3,
}

#[entry]
fn main() -> ! {
    let arguments = Arguments::read();
    let (Some(memory), Some(timer)) = (MEMORY.take(), count::timer()) else { host::exit(Stop::Memory as u32) };
    let mut timer = timer;
    let Some(mut file) = arguments.words().next().and_then(|path| File::open(path, Mode::Read)) else {
        host::exit(Stop::File as u32)
    };
    let mut head = [0; 8];
    if !file.fill(&mut head) || !head.starts_with(&MAGIC) {
        host::exit(Stop::File as u32);
    }
    let [_, _, _, _, count @ ..] = head;
    let cases = u32::from_le_bytes(count);
    let mut different = 0;
    for _ in 0..cases {
        let mut bytes = [0; CASE_BYTES];
        let case = if file.fill(&mut bytes) { Case::decode(&bytes) } else { None };
        let Some(case) = case else { host::exit(Stop::File as u32) };
        match replay(&mut file, &case, memory.bytes_mut(), &mut timer) {
            Ok((instructions, same)) => {
                report(&case, instructions, same);
                different += u32::from(!same);
            }
            Err(stop) => host::exit(stop as u32),
        }
    }
    Line::new().text("cases=").number(cases.into()).text(" different=").number(different.into()).print();
    Line::new().text("stack=").number(stack::used_bytes() as u64).print();
    host::exit(u32::from(different != 0))
}

fn report(case: &Case, instructions: u64, same: bool) {
    let label = case.label.split(|byte| *byte == 0).next().unwrap_or(&[]);
    let mut line = Line::new();
    line.text("case ").text(case.kernel.name()).text(" ");
    line.text(core::str::from_utf8(label).unwrap_or("?")).text(" work=").number(case.work.into());
    line.text(" instructions=").number(instructions).text(if same { " same" } else { " DIFFERENT" }).print();
}

/// Runs one case; gives its instructions and whether all is as the file says.
fn replay(
    file: &mut File,
    case: &Case,
    memory: &mut [u8],
    timer: &mut cortex_m::peripheral::SYST,
) -> Result<(u64, bool), Stop> {
    let mut buffers: [&mut [u8]; BUFFERS] = Default::default();
    let mut rest = memory;
    for (buffer, (_, len)) in buffers.iter_mut().zip(case.buffers).take(case.count) {
        *buffer = take(&mut rest, len as usize)?;
    }
    let scratch = take(&mut rest, scratch_bytes(case.kernel, &case.params))?;
    let buffers = buffers.get_mut(..case.count).unwrap_or(&mut []);
    for (buffer, (role, _)) in buffers.iter_mut().zip(case.buffers) {
        if role.is_read() {
            fill(file, buffer)?;
        } else {
            // What a kernel leaves as it was would differ.
            buffer.fill(0x5a);
        }
    }
    scratch.fill(0xa5);
    count::start(timer);
    let before = count::instructions();
    let called = call(case.kernel, &case.params, buffers, scratch);
    let instructions = count::instructions() - before;
    let mut same = called;
    for (buffer, (role, _)) in buffers.iter().zip(case.buffers).filter(|(_, (role, _))| role.is_written()) {
        let _ = role;
        same &= compare(file, buffer)?;
    }
    Ok((instructions, same))
}

/// The next `len` bytes of the memory, from a multiple of 16.
fn take<'a>(rest: &mut &'a mut [u8], len: usize) -> Result<&'a mut [u8], Stop> {
    let all = core::mem::take(rest);
    let (now, later) = all.split_at_mut_checked(len.next_multiple_of(ALIGN_BYTES)).ok_or(Stop::Memory)?;
    *rest = later;
    now.get_mut(..len).ok_or(Stop::Memory)
}

/// Zeros behind contents, to whole words.
fn skip_padding(file: &mut File, len: usize) -> Result<(), Stop> {
    let mut padding = [0; 4];
    let padding = padding.get_mut(..len.next_multiple_of(4) - len).unwrap_or(&mut []);
    if file.fill(padding) { Ok(()) } else { Err(Stop::File) }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> Result<(), Stop> {
    if !file.fill(buffer) {
        return Err(Stop::File);
    }
    skip_padding(file, buffer.len())
}

fn compare(file: &mut File, buffer: &[u8]) -> Result<bool, Stop> {
    let mut same = true;
    for part in buffer.chunks(256) {
        let mut wanted = [0; 256];
        let wanted = wanted.get_mut(..part.len()).unwrap_or(&mut []);
        if !file.fill(wanted) {
            return Err(Stop::File);
        }
        same &= wanted == part;
    }
    skip_padding(file, buffer.len())?;
    Ok(same)
}

const _: () = assert!(LABEL_BYTES <= 64, "a label fits into a line");
