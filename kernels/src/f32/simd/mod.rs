//! Sixteen lanes of f32 on whatever the machine has: AVX-512, AVX2 with FMA, or plain arrays.
//!
//! A kernel is written once, generic over [`Simd`], and compiled once for each instruction set; [`dispatch`] picks
//! the best one that the processor has. Invariant: every operation is defined lane by lane, a fused multiply-add is
//! always fused and sums over lanes run along one fixed tree, so all instruction sets give the same bits.
#![expect(unsafe_code, reason = "entering code compiled for an instruction set that was detected")]

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use core::sync::atomic::{AtomicU8, Ordering};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Vector operations. The value is a proof that the instruction set is there.
pub(crate) trait Simd: Copy {
    /// Sixteen f32.
    type V: Copy;
    /// Sixteen truth values.
    type M: Copy;
    /// Whether register tiles may use 8 x 2 vectors; otherwise 4 x 1.
    const IS_WIDE: bool;

    /// `x` in all lanes.
    fn splat(self, x: f32) -> Self::V;
    /// Reads sixteen elements.
    fn load(self, x: &[f32; LANES]) -> Self::V;
    /// Writes sixteen elements.
    fn store(self, v: Self::V, y: &mut [f32; LANES]);
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a > b ? a : b`; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `|a|`.
    fn abs(self, a: Self::V) -> Self::V;
    /// Nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `a * 2^n` for integral `n` in -252..=254 and `0.5 <= a < 2`.
    fn scale2(self, a: Self::V, n: Self::V) -> Self::V;
    /// `a < b`; false where either is NaN.
    fn lt(self, a: Self::V, b: Self::V) -> Self::M;
    /// Where `a == b`.
    fn eq_i32(self, a: &[i32; LANES], b: i32) -> Self::M;
    /// Where `a > b`.
    fn gt_i32(self, a: &[i32; LANES], b: i32) -> Self::M;
    /// `a` and `b`.
    fn and(self, a: Self::M, b: Self::M) -> Self::M;
    /// `m ? a : b`.
    fn select(self, m: Self::M, a: Self::V, b: Self::V) -> Self::V;
    /// Lane `j` of vector `i` becomes lane `i` of vector `j`.
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES];
    /// The sum of the lanes, halves first: `(v0 + v8) + (v4 + v12)` and so on down.
    fn sum(self, a: Self::V) -> f32;

    /// Zero in all lanes.
    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// `-a * b + c`, rounded once.
    #[inline(always)]
    fn neg_fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.fma(self.sub(self.splat(-0.0), a), b, c)
    }

    /// Reads fewer than sixteen elements; the lanes beyond are zero.
    #[inline(always)]
    fn load_tail(self, x: &[f32]) -> Self::V {
        let mut lanes = [0.0; LANES];
        lanes[..x.len()].copy_from_slice(x);
        self.load(&lanes)
    }

    /// Writes the first `y.len()` lanes.
    #[inline(always)]
    fn store_tail(self, v: Self::V, y: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        y.copy_from_slice(&lanes[..y.len()]);
    }

    /// The largest lane.
    #[inline(always)]
    fn max_lane(self, a: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// Work that is compiled once for each instruction set. Write `run` as `#[inline(always)]`.
pub(crate) trait Kernel {
    /// What it returns.
    type Out;
    /// Does the work.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Isa {
    /// Arrays of sixteen, compiled for the target's baseline (NEON on aarch64).
    Portable = 1,
    /// AVX2 with FMA.
    Avx2 = 2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512 = 3,
}

static ISA: AtomicU8 = AtomicU8::new(0);

/// The instruction set that kernels use on this machine.
pub fn isa() -> Isa {
    match ISA.load(Ordering::Relaxed) {
        3 => Isa::Avx512,
        2 => Isa::Avx2,
        1 => Isa::Portable,
        _ => {
            let found = detect();
            ISA.store(found as u8, Ordering::Relaxed);
            found
        }
    }
}

/// Makes kernels use at most `limit`, for the whole process. Results do not change; tests rely on that.
pub fn limit_isa(limit: Isa) {
    ISA.store(detect().min(limit) as u8, Ordering::Relaxed);
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let has_avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (has_avx2, has_avx512) {
        (true, true) => Isa::Avx512,
        (true, false) => Isa::Avx2,
        _ => Isa::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Portable
}

/// Runs `kernel` compiled for the instruction set of [`isa`].
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Out {
    match isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` returns this value only after the processor reported all of these features.
        Isa::Avx512 => unsafe { run_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` returns this value only after the processor reported both features.
        Isa::Avx2 => unsafe { run_avx2(kernel) },
        _ => kernel.run(portable::Portable),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(x86::Avx512::new())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(x86::Avx2::new())
}
