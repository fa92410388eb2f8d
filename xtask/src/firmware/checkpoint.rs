//! The newest checkpoint of a flash, as the boards leave it in a file: see `firmware/src/checkpoint.rs`.

const HEADER_BYTES: usize = 32;
/// Bytes of the counters before the model's state.
const COUNTER_BYTES: usize = 32;

/// What a checkpoint says of the run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counters {
    /// The run's seed.
    pub seed: u64,
    /// Examples learnt from.
    pub examples: u64,
    /// Steps.
    pub steps: u32,
    /// Times loaded.
    pub loads: u32,
}

impl Counters {
    /// The bytes at the head of the payload.
    fn encode(&self) -> [u8; COUNTER_BYTES] {
        let words = [self.seed, self.examples, u64::from(self.steps) | u64::from(self.loads) << 32, 0];
        let mut bytes = [0; COUNTER_BYTES];
        bytes.chunks_exact_mut(8).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
        bytes
    }
}

/// The payload of the slot with the highest number.
fn newest(flash: &[u8], slot_bytes: usize) -> Option<&[u8]> {
    let word = |slot: &[u8], at: usize| slot.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let slots = flash.chunks_exact(slot_bytes.max(1)).filter(|slot| slot.starts_with(b"TFCP"));
    let newest = slots.max_by_key(|slot| word(slot, 4))?;
    newest.get(HEADER_BYTES..)?.get(..word(newest, 8)? as usize)
}

/// Says where the newest checkpoint of a flash of two slots is not these counters and this state, byte for byte.
pub fn compare(flash: &[u8], counters: &Counters, state: &[u8]) -> Result<(), String> {
    let found = newest(flash, flash.len() / 2).ok_or("the flash holds no checkpoint")?;
    let wanted = [&counters.encode()[..], state].concat();
    if found.len() != wanted.len() {
        return Err(format!("the checkpoint has {} bytes, wanted {}", found.len(), wanted.len()));
    }
    let different: Vec<usize> = (0..wanted.len()).filter(|&i| found[i] != wanted[i]).collect();
    match different.first() {
        None => Ok(()),
        Some(first) => Err(format!("{} bytes of the checkpoint differ, the first is byte {first}", different.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_slot_counts() {
        let counters = Counters { seed: 3, examples: 5, steps: 2, loads: 1 };
        let slot = |number: u32, state: u8| {
            let mut slot = [&b"TFCP"[..], &number.to_le_bytes(), &34u32.to_le_bytes(), &[0; 20]].concat();
            slot.extend(counters.encode());
            slot.extend([state, 9]);
            slot.resize(128, 0xff);
            slot
        };
        let flash = [slot(8, 1), slot(7, 2)].concat();
        assert_eq!(compare(&flash, &counters, &[1, 9]), Ok(()));
        assert!(compare(&flash, &counters, &[2, 9]).is_err());
        assert!(compare(&flash, &counters, &[1, 9, 0]).is_err());
        assert!(compare(&flash, &Counters { loads: 0, ..counters }, &[1, 9]).is_err());
        assert!(compare(&[0xff; 64], &counters, &[]).is_err());
    }
}
