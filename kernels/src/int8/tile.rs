//! Tiles of f32 sums: some columns of the last dimension for some rows, each one chain of fused multiply-adds.
//!
//! Integers are turned into floats once for a tile and serve all of its sums. The order of a sum is the order of the
//! calls and, in a call, of the last parameter.

use super::fma::fma;
use super::part;

/// Columns of a tile: what the registers hold, or a vector.
#[cfg(not(feature = "std"))]
pub(crate) const COLUMNS: usize = 4;
/// Columns of a tile: what the registers hold, or a vector.
#[cfg(feature = "std")]
pub(crate) const COLUMNS: usize = 16;
/// Elements of a sum that are turned into floats at a time, and rows of sums held at a time.
pub(crate) const DEPTH: usize = 64;

/// Bytes of `tiles` tiles on a microcontroller; elsewhere they lie on the stack.
pub(crate) const fn tile_bytes(tiles: usize) -> usize {
    tiles * DEPTH * 4 * size_of::<f32>()
}

/// `sums[m pitch + t] += sum over k of gc[m gc_pitch + k] wt[k][t]` for `m` below `pixels` and `t` below `width`.
#[inline(always)]
pub(crate) fn add_rows(
    sums: &mut [f32],
    pitch: usize,
    pixels: usize,
    width: usize,
    gc: &[f32],
    gc_pitch: usize,
    wt: &[[f32; COLUMNS]],
) {
    #[cfg(all(has_dsp, has_fpu, not(feature = "std")))]
    if width == COLUMNS {
        return super::dsp::add_rows(sums, pitch, pixels, gc, gc_pitch, wt);
    }
    let row = |m: usize| part(gc, m * gc_pitch, wt.len());
    let mut at = 0;
    while at + 8 <= pixels {
        let mut acc = [[0.0; COLUMNS]; 8];
        for (m, acc) in acc.iter_mut().enumerate() {
            copy(acc, part(sums, (at + m) * pitch, width));
        }
        let pairs = |m: usize| row(at + m).iter().zip(row(at + m + 1));
        let factors = pairs(0).zip(pairs(2)).zip(pairs(4)).zip(pairs(6));
        for (w, ((((a, b), (c, d)), (e, f)), (g, h))) in wt.iter().zip(factors) {
            for (acc, gc) in acc.iter_mut().zip([*a, *b, *c, *d, *e, *f, *g, *h]) {
                for (acc, w) in acc.iter_mut().zip(w) {
                    *acc = fma(gc, *w, *acc);
                }
            }
        }
        for (m, acc) in acc.iter().enumerate() {
            copy(super::part_mut(sums, (at + m) * pitch, width), acc);
        }
        at += 8;
    }
    for m in at..pixels {
        let mut acc = [0.0; COLUMNS];
        let sums = super::part_mut(sums, m * pitch, width);
        copy(&mut acc, sums);
        for (w, gc) in wt.iter().zip(row(m)) {
            for (acc, w) in acc.iter_mut().zip(w) {
                *acc = fma(*gc, *w, *acc);
            }
        }
        copy(sums, &acc);
    }
}

#[inline(always)]
fn copy(to: &mut [f32], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// `sums[o][t] += sum over p of xt[p][t] gc[p gc_pitch + o]`.
#[inline(always)]
pub(crate) fn add_outer(sums: &mut [[f32; COLUMNS]], gc: &[f32], gc_pitch: usize, xt: &[[f32; COLUMNS]]) {
    #[cfg(all(has_dsp, has_fpu, not(feature = "std")))]
    let done = super::dsp::add_outer(sums, gc, gc_pitch, xt);
    #[cfg(not(all(has_dsp, has_fpu, not(feature = "std"))))]
    let done = 0;
    let rows = || gc.chunks(gc_pitch.max(1));
    let mut at = done;
    let (eights, ones) = sums.get_mut(done..).unwrap_or(&mut []).as_chunks_mut::<8>();
    for sums in eights {
        let mut acc = *sums;
        for (x, gc) in xt.iter().zip(rows()) {
            let gc = part(gc, at, 8).first_chunk::<8>().copied().unwrap_or_default();
            for (acc, gc) in acc.iter_mut().zip(gc) {
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = fma(*x, gc, *acc);
                }
            }
        }
        *sums = acc;
        at += 8;
    }
    for (i, sums) in ones.iter_mut().enumerate() {
        for (x, gc) in xt.iter().zip(rows()) {
            let gc = gc.get(at + i).copied().unwrap_or_default();
            for (acc, x) in sums.iter_mut().zip(x) {
                *acc = fma(*x, gc, *acc);
            }
        }
    }
}
