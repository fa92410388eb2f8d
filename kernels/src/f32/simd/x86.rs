//! Vectors on x86-64: one 512-bit register, or two of 256 bits.
#![expect(unsafe_code, reason = "intrinsics, behind a value that proves the instruction set is there")]

use super::{LANES, Simd};
use core::arch::x86_64::*;

/// Proof of AVX-512 F, BW, DQ and VL, AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// Proof of AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx512 {
    /// Safe to call only where the features are enabled.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    #[inline]
    pub(crate) fn new() -> Self {
        Avx512(())
    }
}

impl Avx2 {
    /// Safe to call only where the features are enabled.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) fn new() -> Self {
        Avx2(())
    }
}

/// Calls intrinsics under the proof that `self` is.
macro_rules! proven {
    ($body:expr) => {{
        // SAFETY: `self` can only be made where the instruction set is enabled; loads and stores go through
        // references to whole arrays.
        unsafe { $body }
    }};
}

/// The sum of eight lanes along the tree of [`Simd::sum`].
#[target_feature(enable = "avx2")]
#[inline]
fn sum8(a: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

impl Simd for Avx512 {
    type V = __m512;
    type M = __mmask16;
    const IS_WIDE: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        proven!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        proven!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn store(self, v: __m512, y: &mut [f32; LANES]) {
        proven!(_mm512_storeu_ps(y.as_mut_ptr(), v))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        proven!(_mm512_abs_ps(a))
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        proven!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn scale2(self, a: __m512, n: __m512) -> __m512 {
        proven!(_mm512_scalef_ps(a, n))
    }
    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        proven!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    fn eq_i32(self, a: &[i32; LANES], b: i32) -> __mmask16 {
        proven!(_mm512_cmpeq_epi32_mask(_mm512_loadu_epi32(a.as_ptr()), _mm512_set1_epi32(b)))
    }
    #[inline(always)]
    fn gt_i32(self, a: &[i32; LANES], b: i32) -> __mmask16 {
        proven!(_mm512_cmpgt_epi32_mask(_mm512_loadu_epi32(a.as_ptr()), _mm512_set1_epi32(b)))
    }
    #[inline(always)]
    fn and(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }
    #[inline(always)]
    fn select(self, m: __mmask16, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mask_blend_ps(m, b, a))
    }
    #[inline(always)]
    fn transpose(self, mut rows: [__m512; LANES]) -> [__m512; LANES] {
        proven!({
            // Each round pairs rows twice as far apart and doubles the transposed blocks: 2 x 2, 4 x 4, and so on.
            for i in (0..LANES).step_by(2) {
                let (a, b) = (rows[i], rows[i + 1]);
                (rows[i], rows[i + 1]) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            }
            let mut out = rows;
            for i in (0..LANES).step_by(4) {
                let [a, b, c, d] = [rows[i], rows[i + 1], rows[i + 2], rows[i + 3]].map(|x| _mm512_castps_pd(x));
                out[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
                out[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
                out[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
                out[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
            }
            // Vector `i` now holds, in its quarter `q`, four rows of column `4 q + i % 4`.
            for i in 0..4 {
                let (a, b, c, d) = (out[i], out[i + 4], out[i + 8], out[i + 12]);
                let low = [_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d)];
                let high = [_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(c, d)];
                rows[i] = _mm512_shuffle_f32x4::<0x88>(low[0], low[1]);
                rows[i + 4] = _mm512_shuffle_f32x4::<0xdd>(low[0], low[1]);
                rows[i + 8] = _mm512_shuffle_f32x4::<0x88>(high[0], high[1]);
                rows[i + 12] = _mm512_shuffle_f32x4::<0xdd>(high[0], high[1]);
            }
            rows
        })
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        proven!(sum8(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a))))
    }
}

/// Sixteen lanes in two registers.
type Pair = [__m256; 2];

/// `2^n` of integers in -126..=127.
#[target_feature(enable = "avx2")]
#[inline]
fn power2(n: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))))
}

#[target_feature(enable = "avx2")]
#[inline]
fn scale2(a: __m256, n: __m256) -> __m256 {
    let n = _mm256_cvtps_epi32(n);
    let half = _mm256_srai_epi32::<1>(n);
    _mm256_mul_ps(_mm256_mul_ps(a, power2(half)), power2(_mm256_sub_epi32(n, half)))
}

/// Calls a three-register intrinsic on both halves.
macro_rules! both {
    ($f:ident, $($x:expr),+) => { proven!([$f($($x[0]),+), $f($($x[1]),+)]) };
}

impl Simd for Avx2 {
    type V = Pair;
    type M = Pair;
    const IS_WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        proven!([_mm256_set1_ps(x); 2])
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Pair {
        proven!([_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))])
    }
    #[inline(always)]
    fn store(self, v: Pair, y: &mut [f32; LANES]) {
        proven!({
            _mm256_storeu_ps(y.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(y.as_mut_ptr().add(8), v[1]);
        })
    }
    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        both!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn abs(self, a: Pair) -> Pair {
        let sign = self.splat(-0.0);
        both!(_mm256_andnot_ps, sign, a)
    }
    #[inline(always)]
    fn round(self, a: Pair) -> Pair {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        proven!([_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])])
    }
    #[inline(always)]
    fn scale2(self, a: Pair, n: Pair) -> Pair {
        both!(scale2, a, n)
    }
    #[inline(always)]
    fn lt(self, a: Pair, b: Pair) -> Pair {
        proven!([_mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])])
    }
    #[inline(always)]
    fn eq_i32(self, a: &[i32; LANES], b: i32) -> Pair {
        proven!({
            let [low, high] = load_i32(a);
            let b = _mm256_set1_epi32(b);
            [_mm256_cmpeq_epi32(low, b), _mm256_cmpeq_epi32(high, b)].map(|m| _mm256_castsi256_ps(m))
        })
    }
    #[inline(always)]
    fn gt_i32(self, a: &[i32; LANES], b: i32) -> Pair {
        proven!({
            let [low, high] = load_i32(a);
            let b = _mm256_set1_epi32(b);
            [_mm256_cmpgt_epi32(low, b), _mm256_cmpgt_epi32(high, b)].map(|m| _mm256_castsi256_ps(m))
        })
    }
    #[inline(always)]
    fn and(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_and_ps, a, b)
    }
    #[inline(always)]
    fn select(self, m: Pair, a: Pair, b: Pair) -> Pair {
        both!(_mm256_blendv_ps, b, a, m)
    }
    #[inline(always)]
    fn transpose(self, rows: [Pair; LANES]) -> [Pair; LANES] {
        let block = |row: usize, half: usize| core::array::from_fn(|i| rows[row + i][half]);
        let blocks = [block(0, 0), block(8, 0), block(0, 1), block(8, 1)];
        proven!({
            let [a, b] = [transpose8(blocks[0]), transpose8(blocks[1])];
            let [c, d] = [transpose8(blocks[2]), transpose8(blocks[3])];
            core::array::from_fn(|j| if j < 8 { [a[j], b[j]] } else { [c[j - 8], d[j - 8]] })
        })
    }
    #[inline(always)]
    fn sum(self, a: Pair) -> f32 {
        proven!(sum8(_mm256_add_ps(a[0], a[1])))
    }
}

/// Transposes 8 x 8.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose8(mut rows: [__m256; 8]) -> [__m256; 8] {
    for i in (0..8).step_by(2) {
        let (a, b) = (rows[i], rows[i + 1]);
        (rows[i], rows[i + 1]) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    }
    let mut out = rows;
    for i in [0, 4] {
        let [a, b, c, d] = [rows[i], rows[i + 1], rows[i + 2], rows[i + 3]].map(|x| _mm256_castps_pd(x));
        out[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
        out[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
        out[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
        out[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
    }
    for i in 0..4 {
        rows[i] = _mm256_permute2f128_ps::<0x20>(out[i], out[i + 4]);
        rows[i + 4] = _mm256_permute2f128_ps::<0x31>(out[i], out[i + 4]);
    }
    rows
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_i32(a: &[i32; LANES]) -> [__m256i; 2] {
    let at = a.as_ptr().cast::<__m256i>();
    // SAFETY: both halves lie inside the array of sixteen.
    unsafe { [_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))] }
}
