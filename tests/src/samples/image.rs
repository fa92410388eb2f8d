//! Samples of convolutions, pools and batch norms.

use super::{Fill, Sample, Size, one};
use tinyforge_compiler::ir::attrs::Attr;
use tinyforge_compiler::ir::ops::Op;
use tinyforge_compiler::ir::types::Type;

/// Samples of this family's ops.
pub fn family(op: Op, z: Size) -> Vec<Sample> {
    [convolutions(op, z), channels(op, z), pools(op, z)].concat()
}

/// A convolution: channels, groups, output channels, kernel, and how it moves.
#[derive(Clone, Copy)]
struct Conv {
    channels: u32,
    groups: u32,
    outs: u32,
    kernel: [u32; 2],
    moves: Moves,
}

/// Strides, zeros before and zeros behind, down and across.
#[derive(Clone, Copy)]
struct Moves {
    stride: [u32; 2],
    pad: [u32; 2],
    end: [u32; 2],
}

impl Moves {
    /// Alike in both directions and at both ends.
    fn even(stride: u32, pad: u32) -> Moves {
        Moves { stride: [stride; 2], pad: [pad; 2], end: [pad; 2] }
    }

    fn out_len(&self, d: usize, len: u32, kernel: u32) -> u32 {
        (len + self.pad[d] + self.end[d] - kernel) / self.stride[d] + 1
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        let (stride, pad) = (self.stride, self.pad);
        let extra = [0, 1].map(|d| i64::from(self.end[d]) - i64::from(pad[d]));
        let is_even = (stride[0] == stride[1], pad[0] == pad[1]);
        vec![
            ("stride", stride[0].into()),
            ("stride_w", if is_even.0 { 0 } else { stride[1] }.into()),
            ("pad", pad[0].into()),
            ("pad_w", if is_even.1 { -1 } else { i64::from(pad[1]) }.into()),
            ("extra_h", extra[0].into()),
            ("extra_w", extra[1].into()),
        ]
    }
}

/// Different in everything.
const UNEVEN: Moves = Moves { stride: [2, 1], pad: [0, 1], end: [1, 0] };

/// Height and width of the images: not square, and wide enough for the kernels below.
fn sides(z: Size) -> (u32, u32) {
    (z.t.min(17) + 3, z.t.min(17) + 4)
}

fn convolutions(op: Op, z: Size) -> Vec<Sample> {
    if !matches!(op, Op::Conv2d | Op::Conv2dGradX | Op::Conv2dGradW) {
        return vec![];
    }
    let (c, o) = (z.k.min(16), z.n.min(17));
    let conv = |channels, groups, outs, kernel, stride, pad| {
        let moves = Moves::even(stride, pad);
        Conv { channels, groups, outs, kernel, moves }
    };
    let all = [
        conv(c, 1, o, [1, 1], 1, 0),
        conv(c, 1, o, [3, 3], 1, 1),
        conv(c, 1, o, [3, 2], 2, 1),
        conv(2, 2, 4, [3, 3], 2, 0),
        conv(c, c, c, [3, 3], 1, 1),
        conv(c, c, c, [3, 3], 2, 1),
        conv(2, 1, 3, [4, 4], 3, 2),
        Conv { channels: c, groups: c, outs: c, kernel: [3, 2], moves: UNEVEN },
        Conv { channels: 2, groups: 1, outs: 3, kernel: [2, 3], moves: UNEVEN },
    ];
    all.iter().flat_map(|&c| [convolution(op, z, c, false), convolution(op, z, c, true)]).collect()
}

/// `optional` adds the bias or accumulator, where the op takes one.
fn convolution(op: Op, z: Size, c: Conv, optional: bool) -> Sample {
    let (h, w) = sides(z);
    let x = [z.rows, c.channels, h, w];
    let weight = [c.outs, c.channels / c.groups, c.kernel[0], c.kernel[1]];
    let y = [z.rows, c.outs, c.moves.out_len(0, h, c.kernel[0]), c.moves.out_len(1, w, c.kernel[1])];
    let shared = [c.moves.attrs(), vec![("groups", c.groups.into())]].concat();
    match op {
        Op::Conv2d => one(op, z, &shared, |m| {
            let mut args = vec![m.real(&x), m.real(&weight)];
            args.extend(optional.then(|| m.real(&[c.outs])));
            args
        }),
        Op::Conv2dGradX => {
            let extra = [("h", Attr::from(h)), ("w", w.into())];
            one(op, z, &[&shared[..], &extra].concat(), |m| vec![m.real(&y), m.real(&weight)])
        }
        _ => {
            let extra = [("kh", Attr::from(c.kernel[0])), ("kw", c.kernel[1].into())];
            one(op, z, &[&shared[..], &extra].concat(), |m| {
                let mut args = vec![m.real(&y), m.real(&x)];
                args.extend(optional.then(|| m.real(&weight)));
                args
            })
        }
    }
}

fn channels(op: Op, z: Size) -> Vec<Sample> {
    let (h, w) = sides(z);
    let c = z.k.min(17);
    let x = [z.rows, c, h, w];
    let eps = ("eps", Attr::from(1e-3));
    match op {
        Op::SumChannels => vec![
            one(op, z, &[("rows", z.rows.into())], |m| vec![m.real(&x)]),
            one(op, z, &[("rows", z.rows.into())], |m| vec![m.real(&x), m.real(&[c])]),
        ],
        Op::BatchNorm => vec![one(op, z, &[eps, ("momentum", 0.25.into())], |m| {
            let running = [Fill::Real, Fill::Positive].map(|fill| m.state(Type::f32(&[c]), fill));
            vec![running[0], running[1], m.real(&x), m.real(&[c]), m.real(&[c])]
        })],
        Op::BatchNormGrad => vec![one(op, z, &[], |m| {
            let running = [Fill::Real, Fill::Positive].map(|fill| m.state(Type::f32(&[c]), fill));
            let (x, w, b, dy) = (m.real(&x), m.real(&[c]), m.real(&[c]), m.real(&x));
            let forward = m.node("forward", Op::BatchNorm, &[running[0], running[1], x, w, b], &[eps]);
            vec![x, w, forward[1], forward[2], dy]
        })],
        Op::BatchNormEval => vec![one(op, z, &[eps], |m| {
            let operands = [m.real(&x), m.real(&[c]), m.real(&[c]), m.real(&[c])];
            [&operands[..], &[m.given(&[c], Fill::Positive)]].concat()
        })],
        _ => vec![],
    }
}

fn pools(op: Op, z: Size) -> Vec<Sample> {
    let (h, w) = sides(z);
    let x = [z.rows, z.k.min(5), h, w];
    let side = [("h", Attr::from(h)), ("w", w.into())];
    let windows = [
        ([2, 2], Moves::even(2, 0)),
        ([3, 3], Moves::even(2, 1)),
        ([3, 3], Moves::even(1, 1)),
        ([2, 2], Moves::even(3, 0)),
        ([3, 2], UNEVEN),
    ];
    let make = |(kernel, moves): ([u32; 2], Moves)| {
        let y = [x[0], x[1], moves.out_len(0, h, kernel[0]), moves.out_len(1, w, kernel[1])];
        let sides = vec![("kernel", Attr::from(kernel[0])), ("kernel_w", kernel[1].into())];
        let shared = [moves.attrs(), sides].concat();
        let all = [&shared[..], &side].concat();
        match op {
            Op::MaxPool | Op::AvgPool => one(op, z, &shared, |m| vec![m.real(&x)]),
            Op::MaxPoolGrad => one(op, z, &all, |m| vec![m.real(&y), m.real(&x)]),
            _ => one(op, z, &all, |m| vec![m.real(&y)]),
        }
    };
    match op {
        Op::MaxPool | Op::AvgPool | Op::MaxPoolGrad | Op::AvgPoolGrad => windows.map(make).into(),
        Op::GlobalAvgPool => vec![one(op, z, &[], |m| vec![m.real(&x)])],
        Op::GlobalAvgPoolGrad => vec![one(op, z, &side, |m| vec![m.real(&x[..2])])],
        _ => vec![],
    }
}
