//! Power fails at every single byte that several saves write or erase: what is loaded is the last complete checkpoint.

mod common;

use common::Flash;
use tinyforge_firmware::checkpoint::{COUNTER_BYTES, Checkpoints, Layout};
use tinyforge_firmware::{Fault, Span};

const MEMORY: usize = 120;
const LAYOUT: Layout =
    Layout { hash: 0x1234_5678_9abc_def0, spans: &[Span { at: 8, len: 70 }, Span { at: 100, len: 3 }] };

/// State number `n`: every byte depends on `n`, so that no mix passes for one.
fn state(n: u32) -> ([u8; COUNTER_BYTES], [u8; MEMORY]) {
    let byte = |i: usize| (n.wrapping_mul(97) as u8).wrapping_add((i as u8).wrapping_mul(29)) ^ n as u8;
    let mut memory = std::array::from_fn(byte);
    // Not part of the state: not loaded.
    memory[..8].fill(0);
    memory[78..100].fill(0);
    memory[103..].fill(0);
    (std::array::from_fn(|i| byte(i + 200)), memory)
}

type Loaded = Result<([u8; COUNTER_BYTES], [u8; MEMORY]), Fault>;

fn load<const W: usize, const E: usize>(flash: &mut Flash<W, E>) -> Loaded {
    let len = flash.bytes.len() as u32;
    let (mut counters, mut memory) = ([0; COUNTER_BYTES], [0; MEMORY]);
    Checkpoints::open(flash, 0..len, LAYOUT)?.load(&mut counters, &mut memory)?;
    Ok((counters, memory))
}

/// Saves states `from..to` in turn; gives how many came to their end.
fn save<const W: usize, const E: usize>(flash: &mut Flash<W, E>, from: u32, to: u32) -> u32 {
    let len = flash.bytes.len() as u32;
    let mut checkpoints = Checkpoints::open(flash, 0..len, LAYOUT).expect("a good region");
    let saved = (from..to).take_while(|&n| {
        let (counters, memory) = state(n);
        checkpoints.save(&counters, &memory).is_ok()
    });
    saved.count() as u32
}

/// Which of the states it is, or that there is none yet.
fn which(loaded: &Loaded, wanted: &[u32]) -> Option<u32> {
    match loaded {
        Err(fault) => {
            assert_eq!(*fault, Fault::Empty);
            None
        }
        Ok(loaded) => Some(*wanted.iter().find(|&&n| state(n) == *loaded).expect("no mix, and none but the last")),
    }
}

/// Cuts the power at every byte of `saves` saves, and after each cut again in the next save at every `stride`th byte.
fn cut_everywhere<const W: usize, const E: usize>(units: usize, saves: u32, stride: usize) {
    let mut whole = Flash::<W, E>::new(units);
    assert_eq!(save(&mut whole, 1, saves + 1), saves);
    for cut in 1..=whole.done {
        let mut flash = Flash::<W, E>::new(units);
        flash.left = cut;
        let done = save(&mut flash, 1, saves + 1);
        flash.left = u64::MAX;
        // The last byte of a save may be there: then the checkpoint is there though nobody was told.
        let last = which(&load(&mut flash), &[done, done + 1]);
        assert!(last.is_some() || done == 0, "cut {cut}: {done} saves came to their end, none is there");
        // It goes on from there.
        let mut after = flash.clone();
        after.done = 0;
        assert_eq!(save(&mut after, 50, 53), 3);
        assert_eq!(which(&load(&mut after), &[52]), Some(52), "cut {cut}");
        for second in (1..=after.done / 3).step_by(stride) {
            let mut twice = flash.clone();
            twice.left = second;
            let told = save(&mut twice, 50, 51);
            twice.left = u64::MAX;
            let wanted: Vec<u32> = if told == 1 { vec![50] } else { last.into_iter().chain([50]).collect() };
            let found = which(&load(&mut twice), &wanted);
            assert!(found.is_some() || last.is_none(), "cuts {cut}, {second}: the older one is gone");
        }
    }
}

#[test]
fn bytes() {
    cut_everywhere::<1, 64>(6, 5, 3);
}

#[test]
fn words() {
    cut_everywhere::<4, 128>(4, 5, 3);
}

#[test]
fn double_words_and_a_spare_slot() {
    cut_everywhere::<8, 160>(3, 7, 5);
}

#[test]
fn wide_words() {
    cut_everywhere::<32, 256>(2, 5, 5);
}

#[test]
fn a_whole_block_at_a_time() {
    cut_everywhere::<256, 512>(2, 3, 11);
}

#[test]
fn damage_brings_the_older_one_back() {
    let mut flash = Flash::<4, 128>::new(4);
    assert_eq!(save(&mut flash, 1, 4), 3);
    // Checkpoint 3 lies in the first slot again.
    let whole = flash.clone();
    for at in 0..32 + COUNTER_BYTES + 73 {
        for bit in 0..8 {
            flash.bytes[at] ^= 1 << bit;
            assert_eq!(which(&load(&mut flash), &[2]), Some(2), "byte {at}, bit {bit}");
            flash.bytes[at] ^= 1 << bit;
        }
    }
    assert_eq!(which(&load(&mut flash), &[3]), Some(3));
    assert!(flash.bytes == whole.bytes);
}

#[test]
fn another_model_is_told_from_none() {
    let mut flash = Flash::<4, 128>::new(4);
    let len = flash.bytes.len() as u32;
    let other = Layout { hash: 1, ..LAYOUT };
    let (counters, memory) = state(1);
    assert_eq!(load(&mut flash), Err(Fault::Empty));
    let mut checkpoints = Checkpoints::open(&mut flash, 0..len, other).expect("a good region");
    assert_eq!(checkpoints.save(&counters, &memory), Ok(0));
    assert_eq!(load(&mut flash), Err(Fault::Foreign));
    // Both stand beside one another, and each model keeps its own.
    assert_eq!(save(&mut flash, 2, 3), 1);
    let mut checkpoints = Checkpoints::open(&mut flash, 0..len, other).expect("a good region");
    assert_eq!(checkpoints.load(&mut { counters }, &mut { memory }), Ok(0));
    assert_eq!(checkpoints.save(&counters, &memory), Ok(2));
    assert_eq!(load(&mut flash), Err(Fault::Foreign));
}

#[test]
fn regions_that_cannot_work_are_refused() {
    let mut flash = Flash::<4, 128>::new(4);
    for (start, end) in [(0, 128), (4, 388), (0, 300), (0, 1024), (256, 128)] {
        let region = start..end;
        assert_eq!(Checkpoints::open(&mut flash, region.clone(), LAYOUT).err(), Some(Fault::Region), "{region:?}");
    }
    assert_eq!(Checkpoints::<&mut Flash<4, 128>>::slot_bytes(&LAYOUT), 256);
}

#[test]
fn the_sequence_number_may_wrap() {
    let mut flash = Flash::<4, 128>::new(4);
    assert_eq!(save(&mut flash, 1, 2), 1);
    // The header of the first checkpoint, as if it were number 2^32 - 1.
    flash.bytes[4..8].fill(0xff);
    let crc = tinyforge_firmware::crc::Crc::of(&flash.bytes[..28]);
    flash.bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(save(&mut flash, 2, 3), 1);
    assert_eq!(which(&load(&mut flash), &[2]), Some(2));
}

#[test]
fn headers_that_lie_are_harmless() {
    use tinyforge_firmware::crc::Crc;
    // A header whose own checksum holds, with every length there can be.
    for payload_bytes in [0u32, 1, 31, 105, 106, 224, 225, 256, 1 << 16, u32::MAX - 32, u32::MAX] {
        for sequence in [0u32, 7, u32::MAX] {
            let mut flash = Flash::<4, 128>::new(4);
            assert_eq!(save(&mut flash, 1, 2), 1);
            let header =
                [u32::from_le_bytes(*b"TFCP"), sequence, payload_bytes, Crc::of(b""), 0x9abc_def0, 0x1234_5678, 1];
            let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.extend(Crc::of(&bytes).to_le_bytes());
            flash.bytes[256..288].copy_from_slice(&bytes);
            assert_eq!(which(&load(&mut flash), &[1]), Some(1), "{payload_bytes} bytes, number {sequence}");
            // It is no reason not to save, either.
            flash.forget();
            assert_eq!(save(&mut flash, 2, 4), 2);
            assert_eq!(which(&load(&mut flash), &[3]), Some(3));
        }
    }
}

#[test]
fn a_bit_that_does_not_take_is_seen() {
    let (counters, memory) = state(9);
    for at in [256 + 40, 256 + 32 + 104] {
        let mut flash = Flash::<4, 128>::new(4);
        assert_eq!(save(&mut flash, 1, 2), 1);
        flash.stuck = Some(at);
        let len = flash.bytes.len() as u32;
        let mut checkpoints = Checkpoints::open(&mut flash, 0..len, LAYOUT).expect("a good region");
        assert_eq!(checkpoints.save(&counters, &memory), Err(Fault::FlashVerify));
        assert_eq!(which(&load(&mut flash), &[1]), Some(1));
    }
}

#[test]
fn a_flash_that_fails_is_a_fault() {
    let (counters, memory) = state(9);
    let mut flash = Flash::<4, 128>::new(4);
    assert_eq!(save(&mut flash, 1, 2), 1);
    for (left, fault) in [(0, Fault::FlashErase), (100, Fault::FlashErase), (256 + 2, Fault::FlashWrite)] {
        let mut broken = flash.clone();
        broken.left = left;
        let len = broken.bytes.len() as u32;
        let mut checkpoints = Checkpoints::open(&mut broken, 0..len, LAYOUT).expect("a good region");
        assert_eq!(checkpoints.save(&counters, &memory), Err(fault));
        assert_eq!(checkpoints.sequence(), Some(0));
    }
}
