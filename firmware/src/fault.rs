//! What can go wrong on the chip: one byte, no text.

/// A failure. The byte is the same in Rust, in C (`enum tinyforge_fault`) and in exit codes; 0 is success.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// An input does not have the length that the model was compiled for.
    Input = 1,
    /// A label is not below the number of classes, or the model does not learn.
    Label = 2,
    /// The loss is not finite: nothing was changed.
    Loss = 3,
    /// The region for checkpoints is not aligned to erase units, lies outside the flash, or holds fewer than two slots.
    Region = 4,
    /// The flash could not be read.
    FlashRead = 5,
    /// The flash could not be written.
    FlashWrite = 6,
    /// The flash could not be erased.
    FlashErase = 7,
    /// What was read back is not what was written: the older checkpoint still stands.
    FlashVerify = 8,
    /// There is no checkpoint: the flash is empty, or the first save never came to its end.
    Empty = 9,
    /// There are checkpoints, all of another model or scheme.
    Foreign = 10,
    /// The C interface was called with a null pointer.
    Null = 11,
    /// The C interface was called before `tinyforge_start`, or again inside one of its own calls.
    NotStarted = 12,
}

impl Fault {
    /// The byte.
    pub const fn code(self) -> u8 {
        self as u8
    }
}
