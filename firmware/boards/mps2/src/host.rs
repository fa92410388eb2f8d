//! The host behind the emulator: console, command line, files, exit code, by semihosting.
#![expect(unsafe_code, reason = "semihosting calls hand addresses to the host")]

use cortex_m_semihosting::{nr, syscall};

/// Writes text up to its first 0, which must be there.
pub fn print(text: &[u8; 160]) {
    if text.last() == Some(&0) {
        // SAFETY: the host reads up to the 0 that has just been seen.
        unsafe { cortex_m_semihosting::syscall1(nr::WRITE0, text.as_ptr() as usize) };
    }
}

/// Ends the emulator with this exit code.
pub fn exit(code: u32) -> ! {
    const EXIT_EXTENDED: usize = 0x20;
    const APPLICATION_EXIT: usize = 0x2_0026;
    let block = [APPLICATION_EXIT, code as usize];
    loop {
        // SAFETY: the host reads two words.
        unsafe { cortex_m_semihosting::syscall1(EXIT_EXTENDED, block.as_ptr() as usize) };
    }
}

/// The command line's words, the program's name first.
pub struct Arguments {
    bytes: [u8; 512],
    len: usize,
}

impl Arguments {
    /// Asks the host.
    pub fn read() -> Arguments {
        let mut arguments = Arguments { bytes: [0; 512], len: 0 };
        let mut block = [arguments.bytes.as_mut_ptr() as usize, arguments.bytes.len()];
        // SAFETY: the block says where the host may write and how much; it writes the length back.
        let result = unsafe { cortex_m_semihosting::syscall1(nr::GET_CMDLINE, block.as_mut_ptr() as usize) };
        if result == 0 {
            arguments.len = block[1].min(arguments.bytes.len());
        }
        arguments
    }

    /// The words after the program's name.
    pub fn words(&self) -> impl Iterator<Item = &[u8]> {
        let text = self.bytes.get(..self.len).unwrap_or(&[]);
        text.split(|byte| *byte == b' ' || *byte == 0).filter(|word| !word.is_empty()).skip(1)
    }

    /// What follows `name=` in the first word that begins so.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        self.words().find_map(|word| word.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    }

    /// The number after `name=`.
    pub fn number(&self, name: &str, default: u32) -> u32 {
        let Some(digits) = self.value(name) else { return default };
        digits.iter().fold(0u32, |n, digit| n.wrapping_mul(10).wrapping_add(u32::from(digit.wrapping_sub(b'0'))))
    }
}

/// How a file is opened.
#[derive(Clone, Copy)]
pub enum Mode {
    /// To be read; it must exist.
    Read,
    /// To be read and written; it must exist.
    Change,
    /// To be read and written; made anew.
    Create,
}

/// A file of the host, at paths from the emulator's folder.
pub struct File(usize);

impl File {
    /// Opens it; `None` when the host refuses.
    pub fn open(path: &[u8], mode: Mode) -> Option<File> {
        let mut name = [0u8; 256];
        name.get_mut(..path.len())?.iter_mut().zip(path).for_each(|(to, from)| *to = *from);
        if path.len() >= name.len() {
            return None;
        }
        let mode = match mode {
            Mode::Read => nr::open::R_BINARY,
            Mode::Change => nr::open::RW_BINARY,
            Mode::Create => nr::open::RW_TRUNC_BINARY,
        };
        // SAFETY: the name ends in a 0 behind `path.len()` bytes.
        let handle = unsafe { syscall!(OPEN, name.as_ptr(), mode, path.len()) };
        (handle as isize != -1).then_some(File(handle))
    }

    /// Its length.
    pub fn len_bytes(&self) -> usize {
        // SAFETY: the host reads one word.
        unsafe { syscall!(FLEN, self.0) }
    }

    /// Goes to a place from the start.
    pub fn seek(&mut self, at: usize) -> bool {
        // SAFETY: the host reads two words.
        unsafe { syscall!(SEEK, self.0, at) == 0 }
    }

    /// Reads up to all of `to`; gives how many bytes there were.
    pub fn read(&mut self, to: &mut [u8]) -> usize {
        if to.is_empty() {
            return 0;
        }
        // SAFETY: pointer and length are one slice's.
        let left = unsafe { syscall!(READ, self.0, to.as_mut_ptr(), to.len()) };
        to.len().saturating_sub(left)
    }

    /// Reads all of `to`, or says that there was less.
    pub fn fill(&mut self, to: &mut [u8]) -> bool {
        self.read(to) == to.len()
    }

    /// Writes all of it, or says that it did not.
    pub fn write(&mut self, from: &[u8]) -> bool {
        // SAFETY: pointer and length are one slice's.
        from.is_empty() || unsafe { syscall!(WRITE, self.0, from.as_ptr(), from.len()) } == 0
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: the host reads one word.
        unsafe { syscall!(CLOSE, self.0) };
    }
}
