//! A convolution, a depthwise one and a 1 x 1 one in a single kernel, some rows at a time.
//!
//! ```text
//! for some rows of the output: expand the input rows that their windows need and that are not there yet into a ring;
//!                              depthwise them from the ring; project them to the output
//! ```
//! Every expanded row is computed once, so there are no more products than in the three kernels, and their results are
//! the same bits; but of the two large tensors between them only a ring of the rows under these windows and the rows
//! themselves exist. Rows of the output may be written over rows of the input that are no longer needed
//! ([`i8_bottleneck_overlay`]).

use super::conv::{conv_rows, i8_conv2d_scratch_bytes};
use super::depthwise::{depthwise_rows, i8_depthwise_scratch_bytes};
use super::scratch::{Scratch, piece_bytes};
use super::{Bits, Conv, Quant, Rows, Weights, lengths, part, part_mut};
use core::ops::Range;

/// Rows of the output at a time, as long as they and what they add to the ring take no more than so many bytes.
const BAND: (usize, usize) = (4, 8192);

/// One of the convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its geometry.
    pub conv: Conv,
    /// Its zero points and limits.
    pub quant: Quant,
}

/// The stages; each one's output is the next one's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bottleneck {
    /// Any convolution, most often 1 x 1 to more channels; without it the depthwise one reads the input.
    pub expand: Option<Stage>,
    /// The depthwise convolution.
    pub depthwise: Stage,
    /// A 1 x 1 convolution of stride 1.
    pub project: Stage,
}

impl Bottleneck {
    /// Elements of the input.
    pub const fn x_len(&self) -> usize {
        self.first().x_len()
    }

    /// Elements of the output.
    pub const fn y_len(&self) -> usize {
        self.project.conv.y_len()
    }

    const fn first(&self) -> &Conv {
        match &self.expand {
            Some(stage) => &stage.conv,
            None => &self.depthwise.conv,
        }
    }

    fn fits(&self, weights: &[Weights; 3]) -> bool {
        let (middle, last) = (&self.depthwise.conv, &self.project.conv);
        let joined =
            |a: &Conv, b: &Conv| a.images == b.images && a.out_size == b.in_size && a.out_channels == b.in_channels;
        let expand = self.expand.is_none_or(|s| joined(&s.conv, middle) && weights[0].fit(&s.conv, s.conv.w_len()));
        let fits = expand
            && joined(middle, last)
            && last.is_pointwise()
            && middle.multiplier() * middle.in_channels == middle.out_channels;
        debug_assert!(fits, "stages that do not join: {self:?}");
        fits && weights[1].fit(middle, middle.depthwise_w_len()) && weights[2].fit(last, last.w_len())
    }

    /// Elements of an input row.
    const fn x_row(&self) -> usize {
        self.first().in_size[1] * self.first().in_channels
    }

    const fn y_row(&self) -> usize {
        self.project.conv.out_size[1] * self.project.conv.out_channels
    }

    /// Elements of an expanded row.
    const fn ring_row(&self) -> usize {
        self.depthwise.conv.in_size[1] * self.depthwise.conv.in_channels
    }

    /// Rows of the output at a time.
    const fn band(&self) -> usize {
        let conv = &self.depthwise.conv;
        let each = self.middle_row() + if self.expand.is_some() { conv.stride[0] * self.ring_row() } else { 0 };
        let mut rows = if conv.out_size[0] < BAND.0 { conv.out_size[0] } else { BAND.0 };
        while rows > 1 && (rows - 1) * each > BAND.1 {
            rows -= 1;
        }
        rows
    }

    /// Rows of the ring.
    const fn ring_rows(&self) -> usize {
        let conv = &self.depthwise.conv;
        let window = conv.kernel[0] + self.band().saturating_sub(1) * conv.stride[0];
        if self.expand.is_none() {
            0
        } else if window < conv.in_size[0] {
            window
        } else {
            conv.in_size[0]
        }
    }

    /// Elements of a row after the depthwise convolution.
    const fn middle_row(&self) -> usize {
        self.depthwise.conv.out_size[1] * self.depthwise.conv.out_channels
    }

    /// The rows of its input that row `out` of the depthwise convolution reads.
    fn window(&self, out: usize) -> Range<usize> {
        let conv = &self.depthwise.conv;
        let taps = conv.taps_inside(0, out);
        let first = (out * conv.stride[0] + taps.start).saturating_sub(conv.pad[0]);
        first..first + taps.len()
    }

    /// The first input row that is still read after row `out` of the output was written; none when no row is.
    fn needed_after(&self, out: usize) -> Option<usize> {
        let done = (0..=out).map(|out| self.window(out)).filter(|rows| !rows.is_empty()).map(|rows| rows.end).max();
        let later = (out + 1..self.depthwise.conv.out_size[0]).map(|out| self.window(out)).filter(|w| !w.is_empty());
        match &self.expand {
            None => later.map(|rows| rows.start).min(),
            // What is expanded already is in the ring.
            Some(stage) => later
                .filter(|rows| rows.end > done.unwrap_or(0))
                .map(|rows| rows.start.max(done.unwrap_or(0)))
                .min()
                .map(|row| (row * stage.conv.stride[0]).saturating_sub(stage.conv.pad[0])),
        }
    }
}

/// Bytes of scratch that [`i8_bottleneck`] needs, beginning at a multiple of 8.
pub const fn i8_bottleneck_scratch_bytes(dims: &Bottleneck) -> usize {
    let mut stages = i8_depthwise_scratch_bytes(&dims.depthwise.conv);
    let project = i8_conv2d_scratch_bytes(&rows_of(&dims.project.conv, dims.band()));
    if project > stages {
        stages = project;
    }
    if let Some(stage) = &dims.expand {
        let expand = i8_conv2d_scratch_bytes(&stage.conv);
        if expand > stages {
            stages = expand;
        }
    }
    piece_bytes::<i8>(dims.ring_rows() * dims.ring_row()) + piece_bytes::<i8>(dims.band() * dims.middle_row()) + stages
}

/// A 1 x 1 convolution on some rows of one image.
const fn rows_of(conv: &Conv, rows: usize) -> Conv {
    Conv { images: 1, in_size: [rows, conv.in_size[1]], out_size: [rows, conv.out_size[1]], ..*conv }
}

/// How many bytes before its input the output must begin so that [`i8_bottleneck_overlay`] never writes a byte that is
/// still to be read: the most by which a written row ends after the first row still needed begins, one row at a time.
pub fn i8_bottleneck_lead_bytes(dims: &Bottleneck) -> usize {
    let (x_row, y_row) = (dims.x_row(), dims.y_row());
    let (x_image, rows) = (dims.first().in_size[0] * x_row, dims.project.conv.out_size[0]);
    let mut lead = 0;
    for n in 0..dims.project.conv.images {
        for out in 0..rows {
            let needed = match dims.needed_after(out) {
                Some(row) => n * x_image + row * x_row,
                None if n + 1 < dims.project.conv.images => (n + 1) * x_image,
                None => continue,
            };
            lead = lead.max(((n * rows + out + 1) * y_row).saturating_sub(needed));
        }
    }
    lead
}

/// Bytes of the one buffer of [`i8_bottleneck_overlay`], against input plus output when they lie apart.
pub fn i8_bottleneck_overlay_bytes(dims: &Bottleneck, lead: usize) -> usize {
    dims.y_len().max(lead + dims.x_len())
}

/// The stages, bit for bit as by [`super::i8_conv2d`], [`super::i8_depthwise`] and [`super::i8_conv2d`]: `x` of
/// `dims.x_len()` to `y` of `dims.y_len()`. `weights` are those of the stages in order; the first is not read without
/// an `expand` stage.
pub fn i8_bottleneck(dims: &Bottleneck, x: &[i8], weights: &[Weights; 3], y: &mut [i8], scratch: &mut [u8]) {
    if dims.fits(weights) && lengths([(x.len(), dims.x_len()), (y.len(), dims.y_len())]) {
        run(dims, weights, &mut Place::Apart(x, y), scratch);
    }
}

/// [`i8_bottleneck`] in one buffer of `i8_bottleneck_overlay_bytes(dims, lead)`: the input begins at `lead`, which is
/// no less than `i8_bottleneck_lead_bytes(dims)`, and is destroyed, the output begins at 0.
pub fn i8_bottleneck_overlay(
    dims: &Bottleneck,
    lead: usize,
    weights: &[Weights; 3],
    buffer: &mut [i8],
    scratch: &mut [u8],
) {
    debug_assert!(lead >= i8_bottleneck_lead_bytes(dims), "a lead of {lead} writes over what is still read");
    if dims.fits(weights) && lengths([(buffer.len(), i8_bottleneck_overlay_bytes(dims, lead))]) {
        run(dims, weights, &mut Place::Over(buffer, lead), scratch);
    }
}

/// Where input and output lie.
enum Place<'a> {
    Apart(&'a [i8], &'a mut [i8]),
    Over(&'a mut [i8], usize),
}

impl Place<'_> {
    fn x(&self, at: usize, len: usize) -> &[i8] {
        match self {
            Place::Apart(x, _) => part(x, at, len),
            Place::Over(buffer, lead) => part(buffer, lead + at, len),
        }
    }

    fn y(&mut self, at: usize, len: usize) -> &mut [i8] {
        match self {
            Place::Apart(_, y) => part_mut(y, at, len),
            Place::Over(buffer, _) => part_mut(buffer, at, len),
        }
    }
}

fn run(dims: &Bottleneck, weights: &[Weights; 3], place: &mut Place, scratch: &mut [u8]) {
    let mut pieces = Scratch::new(scratch);
    let (ring_rows, ring_row) = (dims.ring_rows(), dims.ring_row());
    let ring = pieces.take::<i8>(ring_rows * ring_row);
    let middle = pieces.take::<i8>(dims.band() * dims.middle_row());
    let scratch = pieces.rest();
    let (depthwise, project) = (&dims.depthwise, &dims.project);
    let x_image = dims.first().in_size[0] * dims.x_row();
    let height = project.conv.out_size[0];
    for n in 0..project.conv.images {
        let mut expanded = 0;
        for out in (0..height).step_by(dims.band().max(1)) {
            let band = out..height.min(out + dims.band());
            let x = place.x(n * x_image, x_image);
            let rows = match &dims.expand {
                None => Rows { data: x, rows: depthwise.conv.in_size[0], len: ring_row },
                Some(stage) => {
                    let end = band.clone().map(|out| dims.window(out).end).max().unwrap_or(0);
                    let first =
                        band.clone().map(|out| dims.window(out)).find(|w| !w.is_empty()).map_or(end, |w| w.start);
                    expand(stage, x, &weights[0], first.max(expanded)..end, (ring, ring_rows), scratch);
                    expanded = expanded.max(end);
                    Rows { data: ring, rows: ring_rows, len: ring_row }
                }
            };
            let middle = part_mut(middle, 0, band.len() * dims.middle_row());
            let (conv, quant) = (&depthwise.conv, &depthwise.quant);
            depthwise_rows(conv, quant, rows, &weights[1], band.clone(), middle, Bits::none(), scratch);
            let last = rows_of(&project.conv, band.len());
            let y = place.y((n * height + out) * dims.y_row(), band.len() * dims.y_row());
            conv_rows(&last, &project.quant, middle, &weights[2], 0..band.len(), y, Bits::none(), scratch);
        }
    }
}

/// Expands some rows into the ring, as many at a time as follow each other there.
fn expand(
    stage: &Stage,
    x: &[i8],
    weights: &Weights,
    rows: Range<usize>,
    (ring, ring_rows): (&mut [i8], usize),
    scratch: &mut [u8],
) {
    let len = stage.conv.out_size[1] * stage.conv.out_channels;
    let mut row = rows.start;
    while row < rows.end {
        let at = row % ring_rows.max(1);
        let next = rows.end.min(row + ring_rows.max(1) - at);
        let to = part_mut(ring, at * len, (next - row) * len);
        conv_rows(&stage.conv, &stage.quant, x, weights, row..next, to, Bits::none(), scratch);
        row = next;
    }
}
