//! Checkpoints in flash that survive a loss of power at any moment.
//!
//! Invariant: the newest complete checkpoint is never erased or written; a checkpoint counts only when its header, the
//! last thing written, is whole and its checksums hold. So a load gives the last complete one, never a mix. Words are
//! written once between erasures, as flash with error correction demands. Not a file system: one region, slots of one
//! size (two are enough, more spread the wear), used in turn.
//!
//! A slot: the header, padded to what one write or read takes, then the payload (the counters, then the spans of the
//! state in order). The header, little-endian:
//!
//! | bytes | meaning |
//! |---|---|
//! | 0..4 | `TFCP` |
//! | 4..8 | sequence number: the newest is the one that is ahead, modulo 2^32 |
//! | 8..12 | bytes of the payload |
//! | 12..16 | CRC-32 of the payload |
//! | 16..24 | the model's hash |
//! | 24..28 | version of this layout: 1 |
//! | 28..32 | CRC-32 of the 28 bytes before |

use crate::arena::Span;
use crate::crc::Crc;
use crate::fault::Fault;
use core::ops::Range;
use embedded_storage::nor_flash::NorFlash;

const MAGIC: [u8; 4] = *b"TFCP";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;

/// Bytes that are read or written at one time, and the most that one write or read of the flash may take.
const BLOCK_BYTES: usize = 256;

/// Bytes of the counters at the head of every payload.
pub const COUNTER_BYTES: usize = 32;

/// What is saved: the counters and spans of the memory.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Tells models apart.
    pub hash: u64,
    /// The parts of the memory, ascending.
    pub spans: &'static [Span],
}

impl Layout {
    /// Bytes of the payload.
    fn payload_bytes(&self) -> u32 {
        self.spans.iter().fold(COUNTER_BYTES as u32, |sum, span| sum.saturating_add(span.len as u32))
    }
}

/// A complete checkpoint: which slot, and its sequence number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Newest {
    slot: u32,
    sequence: u32,
}

/// The checkpoints of one model in a region of a flash.
pub struct Checkpoints<F> {
    flash: F,
    layout: Layout,
    start: u32,
    slot_bytes: u32,
    slots: u32,
    /// The slot that must not be touched: the newest complete checkpoint of this model, else of any. And the newest
    /// sequence number of all.
    newest: Option<Newest>,
}

impl<F: NorFlash> Checkpoints<F> {
    /// Bytes before the payload.
    const PAYLOAD_AT: u32 = {
        assert!(BLOCK_BYTES.is_multiple_of(F::WRITE_SIZE), "one write of this flash takes more than a block");
        assert!(BLOCK_BYTES.is_multiple_of(F::READ_SIZE), "one read of this flash takes more than a block");
        assert!(F::ERASE_SIZE.is_multiple_of(F::WRITE_SIZE) && F::ERASE_SIZE.is_multiple_of(F::READ_SIZE));
        let unit = if F::WRITE_SIZE > F::READ_SIZE { F::WRITE_SIZE } else { F::READ_SIZE };
        assert!(unit.is_multiple_of(F::WRITE_SIZE) && unit.is_multiple_of(F::READ_SIZE));
        HEADER_BYTES.next_multiple_of(unit) as u32
    };

    /// Bytes that one checkpoint takes in the flash: header and payload in whole erase units.
    pub fn slot_bytes(layout: &Layout) -> u32 {
        let bytes = Self::PAYLOAD_AT.saturating_add(layout.payload_bytes());
        bytes.checked_next_multiple_of(F::ERASE_SIZE as u32).unwrap_or(u32::MAX)
    }

    /// Looks through the region for what is there; writes nothing.
    ///
    /// # Errors
    /// [`Fault::Region`]: `region` is not made of whole erase units, is not inside the flash, or holds fewer than two
    /// slots. [`Fault::FlashRead`].
    #[inline(never)]
    pub fn open(flash: F, region: Range<u32>, layout: Layout) -> Result<Self, Fault> {
        let slot_bytes = Self::slot_bytes(&layout);
        let unit = F::ERASE_SIZE as u32;
        let len = region.end.saturating_sub(region.start);
        // `max(1)`: for the eye of the optimizer only, a slot is never empty.
        let slots = len / slot_bytes.max(1);
        let aligned = region.start.is_multiple_of(unit) && region.end.is_multiple_of(unit);
        if !aligned || slots < 2 || region.end as usize > flash.capacity() {
            return Err(Fault::Region);
        }
        let mut all = Checkpoints { flash, layout, start: region.start, slot_bytes, slots, newest: None };
        // Another model's checkpoint may be the newer one: it gives way, but its number is counted on from.
        all.newest = match (all.find(Some(layout.hash))?, all.find(None)?) {
            (Some(own), Some(any)) => Some(Newest { slot: own.slot, sequence: any.sequence }),
            (own, any) => own.or(any),
        };
        Ok(all)
    }

    /// The newest sequence number in the region, of any model.
    pub fn sequence(&self) -> Option<u32> {
        self.newest.map(|newest| newest.sequence)
    }

    /// The flash again.
    pub fn into_flash(self) -> F {
        self.flash
    }

    /// Saves; gives the sequence number. On an error, and if power fails before the end, the older one still stands.
    ///
    /// Never inlined, like `open` and `load`: their blocks would lie on the caller's stack while the model runs.
    ///
    /// # Errors
    /// [`Fault::FlashErase`], [`Fault::FlashWrite`], [`Fault::FlashRead`], [`Fault::FlashVerify`].
    #[inline(never)]
    pub fn save(&mut self, counters: &[u8; COUNTER_BYTES], memory: &[u8]) -> Result<u32, Fault> {
        let next = match self.newest {
            Some(newest) => Newest {
                slot: if newest.slot + 1 < self.slots { newest.slot + 1 } else { 0 },
                sequence: newest.sequence.wrapping_add(1),
            },
            None => Newest { slot: 0, sequence: 0 },
        };
        let at = self.slot_at(next.slot);
        let end = at.saturating_add(self.slot_bytes);
        self.flash.erase(at, end).map_err(|_| Fault::FlashErase)?;
        let crc = self.write_payload(at.saturating_add(Self::PAYLOAD_AT), counters, memory)?;
        if self.payload_crc(at, self.layout.payload_bytes())? != crc {
            return Err(Fault::FlashVerify);
        }
        let header = Header {
            sequence: next.sequence,
            payload_bytes: self.layout.payload_bytes(),
            payload_crc: crc,
            hash: self.layout.hash,
        };
        self.write_header(at, &header)?;
        if self.header(next.slot)? != Some(header) {
            return Err(Fault::FlashVerify);
        }
        self.newest = Some(next);
        Ok(next.sequence)
    }

    /// Loads the newest complete checkpoint of this model; gives its sequence number.
    ///
    /// # Errors
    /// [`Fault::Empty`], [`Fault::Foreign`], [`Fault::FlashRead`]. On the last, and when the flash read differently a
    /// second time, counters and memory hold nothing of use.
    #[inline(never)]
    pub fn load(&mut self, counters: &mut [u8; COUNTER_BYTES], memory: &mut [u8]) -> Result<u32, Fault> {
        // What was found is read again, into memory: the checksum that counts is the one of these bytes.
        for _ in 0..self.slots {
            let Some(found) = self.find(Some(self.layout.hash))? else { break };
            let Some(header) = self.header(found.slot)? else { continue };
            let at = self.slot_at(found.slot).saturating_add(Self::PAYLOAD_AT);
            if self.read_payload(at, counters, memory)? == header.payload_crc {
                return Ok(found.sequence);
            }
        }
        match self.find(None)? {
            Some(_) => Err(Fault::Foreign),
            None => Err(Fault::Empty),
        }
    }

    fn slot_at(&self, slot: u32) -> u32 {
        self.start.saturating_add(slot.saturating_mul(self.slot_bytes))
    }

    /// The newest complete checkpoint, of this hash if one is given.
    fn find(&mut self, hash: Option<u64>) -> Result<Option<Newest>, Fault> {
        let mut newest: Option<Newest> = None;
        for slot in 0..self.slots {
            let Some(header) = self.header(slot)? else { continue };
            if hash.is_some_and(|hash| hash != header.hash || self.layout.payload_bytes() != header.payload_bytes) {
                continue;
            }
            let ahead = newest.is_none_or(|n| (header.sequence.wrapping_sub(n.sequence) as i32) > 0);
            if ahead && self.payload_crc(self.slot_at(slot), header.payload_bytes)? == header.payload_crc {
                newest = Some(Newest { slot, sequence: header.sequence });
            }
        }
        Ok(newest)
    }

    /// The header of a slot, if it is whole and its payload fits into the slot.
    fn header(&mut self, slot: u32) -> Result<Option<Header>, Fault> {
        let mut block = [0; BLOCK_BYTES];
        let at = self.slot_at(slot);
        let Some(bytes) = block.get_mut(..Self::PAYLOAD_AT as usize) else { return Ok(None) };
        self.flash.read(at, bytes).map_err(|_| Fault::FlashRead)?;
        let header = bytes.first_chunk().and_then(Header::decode);
        Ok(header.filter(|h| h.payload_bytes <= self.slot_bytes.saturating_sub(Self::PAYLOAD_AT)))
    }

    fn write_header(&mut self, at: u32, header: &Header) -> Result<(), Fault> {
        let mut block = [0xff; BLOCK_BYTES];
        if let Some(bytes) = block.first_chunk_mut() {
            *bytes = header.encode();
        }
        let bytes = block.get(..Self::PAYLOAD_AT as usize).unwrap_or(&[]);
        self.flash.write(at, bytes).map_err(|_| Fault::FlashWrite)
    }

    /// The checksum of the payload that lies in the slot at `at`.
    fn payload_crc(&mut self, at: u32, payload_bytes: u32) -> Result<u32, Fault> {
        let mut crc = Crc::new();
        let mut reader = Reader::new(&mut self.flash, at.saturating_add(Self::PAYLOAD_AT), payload_bytes);
        while let Some(bytes) = reader.next()? {
            crc.add(bytes);
        }
        Ok(crc.value())
    }

    /// Copies the payload at `at` out of the flash; gives the checksum of what was copied.
    fn read_payload(&mut self, at: u32, counters: &mut [u8; COUNTER_BYTES], memory: &mut [u8]) -> Result<u32, Fault> {
        let mut crc = Crc::new();
        let mut reader = Reader::new(&mut self.flash, at, self.layout.payload_bytes());
        reader.fill(counters, &mut crc)?;
        for span in self.layout.spans {
            if let Some(part) = memory.get_mut(span.at..).and_then(|rest| rest.get_mut(..span.len)) {
                reader.fill(part, &mut crc)?;
            }
        }
        Ok(crc.value())
    }

    /// Writes the payload from `at`; gives its checksum.
    fn write_payload(&mut self, at: u32, counters: &[u8; COUNTER_BYTES], memory: &[u8]) -> Result<u32, Fault> {
        let mut crc = Crc::new();
        let mut writer = Writer { flash: &mut self.flash, at, block: [0xff; BLOCK_BYTES], len: 0 };
        let spans = self.layout.spans.iter();
        let parts = spans.map(|span| memory.get(span.at..).and_then(|rest| rest.get(..span.len)).unwrap_or(&[]));
        for part in core::iter::once(&counters[..]).chain(parts) {
            crc.add(part);
            writer.write(part)?;
        }
        writer.finish()?;
        Ok(crc.value())
    }
}

/// What a slot begins with.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Header {
    sequence: u32,
    payload_bytes: u32,
    payload_crc: u32,
    hash: u64,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let hash = [self.hash as u32, (self.hash >> 32) as u32];
        let magic = u32::from_le_bytes(MAGIC);
        let words = [magic, self.sequence, self.payload_bytes, self.payload_crc, hash[0], hash[1], VERSION]
            .map(u32::to_le_bytes);
        let mut bytes = [0; HEADER_BYTES];
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *to = word;
        }
        let crc = bytes.split_last_chunk::<4>().map_or(0, |(rest, _)| Crc::of(rest));
        if let Some(last) = bytes.last_chunk_mut() {
            *last = crc.to_le_bytes();
        }
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        let mut words = [0; HEADER_BYTES / 4];
        for (word, from) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_le_bytes(*from);
        }
        let [_, sequence, payload_bytes, payload_crc, low, high, ..] = words;
        let header = Header { sequence, payload_bytes, payload_crc, hash: u64::from(high) << 32 | u64::from(low) };
        // Magic, version and checksum are right exactly if writing it out again gives the same bytes.
        (header.encode() == *bytes).then_some(header)
    }
}

/// Bytes of the flash, block by block, read in whole units.
struct Reader<'a, F> {
    flash: &'a mut F,
    at: u32,
    /// Bytes that are still in the flash.
    left: u32,
    block: [u8; BLOCK_BYTES],
    /// What of the block has been read and not yet given out.
    ready: Range<usize>,
}

impl<'a, F: NorFlash> Reader<'a, F> {
    fn new(flash: &'a mut F, at: u32, bytes: u32) -> Reader<'a, F> {
        Reader { flash, at, left: bytes, block: [0; BLOCK_BYTES], ready: 0..0 }
    }

    fn refill(&mut self) -> Result<(), Fault> {
        let len = self.left.min(BLOCK_BYTES as u32);
        // Within the slot: the payload ends in a whole erase unit, which is made of whole read units.
        let units = (len as usize).next_multiple_of(F::READ_SIZE);
        let bytes = self.block.get_mut(..units).ok_or(Fault::FlashRead)?;
        self.flash.read(self.at, bytes).map_err(|_| Fault::FlashRead)?;
        (self.at, self.left) = (self.at.saturating_add(len), self.left - len);
        self.ready = 0..len as usize;
        Ok(())
    }

    /// The next bytes; `None` at the end.
    fn next(&mut self) -> Result<Option<&[u8]>, Fault> {
        if self.ready.is_empty() {
            if self.left == 0 {
                return Ok(None);
            }
            self.refill()?;
        }
        let ready = core::mem::replace(&mut self.ready, 0..0);
        Ok(self.block.get(ready))
    }

    /// Copies the next bytes into all of `to`.
    fn fill(&mut self, to: &mut [u8], crc: &mut Crc) -> Result<(), Fault> {
        let mut to = to;
        while !to.is_empty() {
            if self.ready.is_empty() {
                if self.left == 0 {
                    return Err(Fault::FlashRead);
                }
                self.refill()?;
            }
            let from = self.block.get(self.ready.clone()).unwrap_or(&[]);
            let len = from.len().min(to.len());
            let Some((now, later)) = core::mem::take(&mut to).split_at_mut_checked(len) else { break };
            now.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            crc.add(now);
            self.ready.start = self.ready.start.saturating_add(len);
            to = later;
        }
        Ok(())
    }
}

/// Bytes on their way to the flash, written in whole units.
struct Writer<'a, F> {
    flash: &'a mut F,
    at: u32,
    block: [u8; BLOCK_BYTES],
    len: usize,
}

impl<F: NorFlash> Writer<'_, F> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let free = self.block.get_mut(self.len..).unwrap_or(&mut []);
            let len = free.len().min(bytes.len());
            let Some((now, later)) = bytes.split_at_checked(len) else { break };
            free.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
            self.len += len;
            bytes = later;
            if self.len == BLOCK_BYTES {
                self.flush(BLOCK_BYTES)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self, len: usize) -> Result<(), Fault> {
        let bytes = self.block.get(..len).unwrap_or(&[]);
        self.flash.write(self.at, bytes).map_err(|_| Fault::FlashWrite)?;
        self.at = self.at.saturating_add(len as u32);
        self.block = [0xff; BLOCK_BYTES];
        self.len = 0;
        Ok(())
    }

    /// Writes what is left, padded to a whole unit with the value of erased flash.
    fn finish(mut self) -> Result<(), Fault> {
        match self.len {
            0 => Ok(()),
            len => self.flush(len.next_multiple_of(F::WRITE_SIZE).min(BLOCK_BYTES)),
        }
    }
}
