//! Counter-based random numbers: a pure function of a key and a counter.
//!
//! Philox4x32-10 of Salmon et al. 2011: ten rounds of two multiplications, of which the high and low halves are mixed
//! with the key. There is no state to save or to advance, so a number depends neither on threads nor on order.

const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const KEY_STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

/// `N` blocks of four random words at once: word `w` of block `i` is `[w][i]`, made from the counter whose word `w` is
/// `counter[w][i]`.
#[expect(clippy::needless_range_loop, reason = "lane i of several arrays at once")]
#[inline(always)]
pub fn philox<const N: usize>(key: [u32; 2], counter: [[u32; N]; 4]) -> [[u32; N]; 4] {
    let mut words = counter;
    let mut key = key;
    for _ in 0..10 {
        for i in 0..N {
            let a = u64::from(MULTIPLIERS[0]) * u64::from(words[0][i]);
            let b = u64::from(MULTIPLIERS[1]) * u64::from(words[2][i]);
            words[0][i] = (b >> 32) as u32 ^ words[1][i] ^ key[0];
            words[2][i] = (a >> 32) as u32 ^ words[3][i] ^ key[1];
            words[1][i] = b as u32;
            words[3][i] = a as u32;
        }
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    words
}

/// A stream of random numbers: which run, which step, which tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The run's seed.
    pub seed: u64,
    /// The optimizer step.
    pub step: u32,
    /// The tensor, or what else the numbers are for.
    pub tensor: u32,
}

impl Stream {
    /// The four words of block `block`.
    pub fn block(&self, block: u64) -> [u32; 4] {
        self.blocks::<1>(block).map(|word| word[0])
    }

    /// The words of the `N` blocks from `first`, word by word.
    #[expect(clippy::needless_range_loop, reason = "lane i of several arrays at once")]
    #[inline(always)]
    pub fn blocks<const N: usize>(&self, first: u64) -> [[u32; N]; 4] {
        let mut counter = [[0; N], [0; N], [self.tensor; N], [self.step; N]];
        for i in 0..N {
            let block = first + i as u64;
            counter[0][i] = block as u32;
            counter[1][i] = (block >> 32) as u32;
        }
        philox([self.seed as u32, (self.seed >> 32) as u32], counter)
    }

    /// Sixteen random bits for element `index`: half a word. Of 256 elements that belong together the first 32 take
    /// the low halves of the first words of 32 blocks, the next 32 their high halves, and so on, so that neighbours
    /// are computed side by side.
    pub fn bits16(&self, index: u64) -> u16 {
        let (group, part, lane) = (index / 256, index % 256 / 32, index % 32);
        let word = self.block(32 * group + lane)[(part / 2) as usize];
        (word >> (16 * (part % 2))) as u16
    }

    /// A number in `0..1` for element `index`, a multiple of 2^-24.
    pub fn uniform(&self, index: u64) -> f32 {
        let word = self.block(index / 4)[(index % 4) as usize];
        (word >> 8) as f32 / (1 << 24) as f32
    }
}
