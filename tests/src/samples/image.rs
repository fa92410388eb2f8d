//! Samples of convolutions, pools and batch norms.

use super::{Fill, Sample, Size, one};
use tinyforge_compiler::ir::attrs::Attr;
use tinyforge_compiler::ir::ops::Op;
use tinyforge_compiler::ir::types::Type;

/// Samples of this family's ops.
pub fn family(op: Op, z: Size) -> Vec<Sample> {
    [convolutions(op, z), channels(op, z), pools(op, z)].concat()
}

/// A convolution: channels, groups, output channels, kernel, stride, padding.
#[derive(Clone, Copy)]
struct Conv {
    channels: u32,
    groups: u32,
    outs: u32,
    kernel: [u32; 2],
    stride: u32,
    pad: u32,
}

fn out_len(len: u32, kernel: u32, stride: u32, pad: u32) -> u32 {
    (len + 2 * pad - kernel) / stride + 1
}

/// Height and width of the images: not square, and wide enough for the kernels below.
fn sides(z: Size) -> (u32, u32) {
    (z.t.min(17) + 3, z.t.min(17) + 4)
}

fn convolutions(op: Op, z: Size) -> Vec<Sample> {
    if !matches!(op, Op::Conv2d | Op::Conv2dGradX | Op::Conv2dGradW) {
        return vec![];
    }
    let (c, o) = (z.k.min(16), z.n.min(17));
    let conv = |channels, groups, outs, kernel, stride, pad| Conv { channels, groups, outs, kernel, stride, pad };
    let all = [
        conv(c, 1, o, [1, 1], 1, 0),
        conv(c, 1, o, [3, 3], 1, 1),
        conv(c, 1, o, [3, 2], 2, 1),
        conv(2, 2, 4, [3, 3], 2, 0),
        conv(c, c, c, [3, 3], 1, 1),
        conv(c, c, c, [3, 3], 2, 1),
        conv(2, 1, 3, [4, 4], 3, 2),
    ];
    all.iter().flat_map(|&c| [convolution(op, z, c, false), convolution(op, z, c, true)]).collect()
}

/// `optional` adds the bias or accumulator, where the op takes one.
fn convolution(op: Op, z: Size, c: Conv, optional: bool) -> Sample {
    let (h, w) = sides(z);
    let x = [z.rows, c.channels, h, w];
    let weight = [c.outs, c.channels / c.groups, c.kernel[0], c.kernel[1]];
    let y_sides = [(h, c.kernel[0]), (w, c.kernel[1])].map(|(len, kernel)| out_len(len, kernel, c.stride, c.pad));
    let y = [z.rows, c.outs, y_sides[0], y_sides[1]];
    let shared = [("stride", Attr::from(c.stride)), ("pad", c.pad.into()), ("groups", c.groups.into())];
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
    let windows = [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0)];
    let make = |(kernel, stride, pad): (u32, u32, u32)| {
        let y = [x[0], x[1], out_len(h, kernel, stride, pad), out_len(w, kernel, stride, pad)];
        let shared = [("kernel", Attr::from(kernel)), ("stride", stride.into()), ("pad", pad.into())];
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
