//! Windows: kernels, strides, padding and what an exporter says of them in words.

use super::convert::Refused;
use super::schema::{Node, short};
use crate::ir::attrs::Attr;

/// The largest kernel, stride, padding or number of channels.
const LEN_MAX: u64 = 1 << 16;

/// How a window moves, `[down, across]`.
pub(super) struct Window {
    stride: [u32; 2],
    pad: [u32; 2],
    /// Zeros behind the last pixel, more than before the first.
    extra: [i64; 2],
}

/// A length of a part of a window or weight.
pub(super) fn len(what: &str, len: u64) -> Refused<u32> {
    match u32::try_from(len) {
        Ok(d) if (1..=LEN_MAX).contains(&len) => Ok(d),
        _ => Err(format!("{what} of {len}; between 1 and {LEN_MAX} are taken").into()),
    }
}

/// A number of zeros.
pub(super) fn pad(pad: i64) -> Refused<u32> {
    match u32::try_from(pad) {
        Ok(d) if u64::from(d) <= LEN_MAX => Ok(d),
        _ => Err(format!("padding of {pad}; between 0 and {LEN_MAX} is taken").into()),
    }
}

/// Two numbers of an attribute, or 1 and 1.
fn pair(node: &Node, name: &str) -> Refused<[u32; 2]> {
    match node.ints(name) {
        None => Ok([1, 1]),
        Some(&[a, b]) => {
            let of = |v: i64| len(name, u64::try_from(v).unwrap_or(0));
            Ok([of(a)?, of(b)?])
        }
        Some(other) => Err(format!("its {name} are {} numbers, two are taken", other.len()).into()),
    }
}

impl Window {
    /// The window of a node over an image of `size`, which has `around` zeros above, left, below and right already.
    pub(super) fn of(node: &Node, kernel: [u32; 2], size: [u32; 2], around: [u32; 4]) -> Refused<Window> {
        let (stride, dilation) = (pair(node, "strides")?, pair(node, "dilations")?);
        if dilation != [1, 1] {
            return Err(format!("its dilations are {dilation:?}, only 1 is taken").into());
        }
        let [top, left, bottom, right] = around;
        let mut pads = [[top, left], [bottom, right]];
        let side = |d: usize| u64::from(size[d]) + u64::from(pads[0][d]) + u64::from(pads[1][d]);
        let sides = [side(0), side(1)];
        match node.text("auto_pad", "NOTSET") {
            "NOTSET" | "" => {
                let given = node.ints("pads").unwrap_or(&[0; 4]);
                let &[top, left, bottom, right] = given else {
                    return Err(format!("its pads are {} numbers, four are taken", given.len()).into());
                };
                for (to, add) in pads.iter_mut().flatten().zip([top, left, bottom, right]) {
                    *to += pad(add)?;
                }
            }
            "VALID" => {}
            same @ ("SAME_UPPER" | "SAME_LOWER") => {
                for d in 0..2 {
                    let (step, k) = (u64::from(stride[d]), u64::from(kernel[d]));
                    let all = ((sides[d].div_ceil(step) - 1) * step + k).saturating_sub(sides[d]);
                    let before = if same == "SAME_UPPER" { all / 2 } else { all.div_ceil(2) };
                    // No more than a kernel.
                    pads[0][d] += before as u32;
                    pads[1][d] += (all - before) as u32;
                }
            }
            other => return Err(format!("its auto_pad is `{}`", short(other)).into()),
        }
        if node.int("ceil_mode", 0) != 0 {
            for d in 0..2 {
                let padded = u64::from(size[d]) + u64::from(pads[0][d]) + u64::from(pads[1][d]);
                let Some(room) = padded.checked_sub(u64::from(kernel[d])) else { continue };
                let step = u64::from(stride[d]);
                let windows = room.div_ceil(step) + 1;
                // A window that would start behind the image and the zeros before it is none.
                let is_empty = (windows - 1) * step >= u64::from(size[d]) + u64::from(pads[0][d]);
                let reach = (windows - 1 - u64::from(is_empty)) * step + u64::from(kernel[d]);
                pads[1][d] += reach.saturating_sub(padded) as u32;
            }
        }
        let extra = [0, 1].map(|d| i64::from(pads[1][d]) - i64::from(pads[0][d]));
        Ok(Window { stride, pad: pads[0], extra })
    }

    /// Whether there are zeros around the image.
    pub(super) fn is_padded(&self) -> bool {
        self.pad != [0, 0] || self.extra != [0, 0]
    }

    /// The attributes of the float rows.
    pub(super) fn attrs(&self) -> [(&'static str, Attr); 6] {
        let one_stride = self.stride[0] == self.stride[1];
        let one_pad = self.pad[0] == self.pad[1];
        [
            ("stride", self.stride[0].into()),
            ("stride_w", if one_stride { 0 } else { i64::from(self.stride[1]) }.into()),
            ("pad", self.pad[0].into()),
            ("pad_w", if one_pad { -1 } else { i64::from(self.pad[1]) }.into()),
            ("extra_h", self.extra[0].into()),
            ("extra_w", self.extra[1].into()),
        ]
    }
}
