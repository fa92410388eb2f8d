//! As much of a 32-bit little-endian ELF file as sizes and symbols need. Never panics on foreign bytes.

const ALLOC: u32 = 2;
const SYMBOL_TABLE: u32 = 2;
const LOAD: u32 = 1;
const RAM_START: u32 = 0x2000_0000;

/// A file in memory.
pub struct Elf<'a> {
    bytes: &'a [u8],
}

/// A section's header.
#[derive(Clone, Copy)]
struct Section {
    kind: u32,
    flags: u32,
    address: u32,
    at: u32,
    len: u32,
    link: u32,
}

impl<'a> Elf<'a> {
    /// Takes the file if it begins as one.
    pub fn parse(bytes: &'a [u8]) -> Option<Elf<'a>> {
        bytes.starts_with(b"\x7fELF\x01\x01").then_some(Elf { bytes })
    }

    fn half(&self, at: u32) -> u32 {
        let bytes = self.bytes.get(at as usize..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |b| u32::from(u16::from_le_bytes(*b)))
    }

    fn word(&self, at: u32) -> u32 {
        let bytes = self.bytes.get(at as usize..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |b| u32::from_le_bytes(*b))
    }

    fn sections(&self) -> impl Iterator<Item = Section> {
        let (table, size, count) = (self.word(32), self.half(46), self.half(48));
        (0..count).map(move |i| {
            let word = |k: u32| self.word(table.saturating_add(i * size).saturating_add(4 * k));
            Section { kind: word(1), flags: word(2), address: word(3), at: word(4), len: word(5), link: word(6) }
        })
    }

    /// Bytes that are programmed: code, constants, and what start-up copies to RAM.
    pub fn flash_bytes(&self) -> u64 {
        let (table, size, count) = (self.word(28), self.half(42), self.half(44));
        let headers = (0..count).map(|i| table.saturating_add(i * size));
        let loads = headers.filter(|header| self.word(*header) == LOAD);
        loads.map(|header| u64::from(self.word(header.saturating_add(16)))).sum()
    }

    /// Bytes of statics, without the stack.
    pub fn ram_bytes(&self) -> u64 {
        let statics = self.sections().filter(|s| s.flags & ALLOC != 0 && s.address >= RAM_START);
        statics.map(|s| u64::from(s.len)).sum()
    }

    /// Bytes that the linker script keeps for the stack.
    pub fn stack_bytes(&self) -> u64 {
        let find = |wanted: &str| self.symbols().find(|(name, _)| *name == wanted).map(|(_, value)| u64::from(value));
        match (find("_stack_start"), find("_stack_end")) {
            (Some(top), Some(bottom)) => top.saturating_sub(bottom),
            _ => 0,
        }
    }

    /// Names and values.
    pub fn symbols(&self) -> impl Iterator<Item = (&'a str, u32)> {
        let table = self.sections().find(|s| s.kind == SYMBOL_TABLE);
        let (at, len, link) = table.map_or((0, 0, 0), |s| (s.at, s.len, s.link));
        let names = self.sections().nth(link as usize).map_or(0, |s| s.at);
        (0..len / 16).filter_map(move |i| {
            let entry = at.saturating_add(16 * i);
            let name = self.bytes.get(names.saturating_add(self.word(entry)) as usize..)?;
            let name = std::str::from_utf8(name.split(|byte| *byte == 0).next()?).ok()?;
            (!name.is_empty()).then_some((name, self.word(entry.saturating_add(4))))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_bytes_are_harmless() {
        assert!(Elf::parse(b"MZ").is_none());
        for byte in [0u8, 1, 0x7f, 0xff] {
            let mut bytes = b"\x7fELF\x01\x01".to_vec();
            bytes.resize(200, byte);
            let elf = Elf::parse(&bytes).expect("it begins as one");
            let _ = (elf.flash_bytes(), elf.ram_bytes(), elf.stack_bytes(), elf.symbols().count());
        }
    }
}
