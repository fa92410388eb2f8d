//! Writes the cases that a board replays: `conformance-vectors FILE`. What each must give is what the kernels of this
//! machine give, with whatever variants it chooses.

use std::process::ExitCode;
use tinyforge_conformance::{BUFFERS, Case, Kernel, LABEL_BYTES, MAGIC, Params, Role, call, scratch_bytes};
use tinyforge_kernels::int8::{Conv, Quant, i8_bottleneck_lead_bytes, i8_bottleneck_overlay_bytes, mask_bytes};
use tinyforge_kernels::random::Stream;

/// What the random numbers of cases are for, apart from their place in the file.
const SEED: u64 = 0x7e57;

const QUANT: Quant = Quant { zero_x: -3, zero_y: 5, lo: -128, hi: 127 };
const RELU6: Quant = Quant { zero_x: -128, zero_y: -128, lo: -128, hi: 120 };

#[expect(clippy::too_many_arguments, reason = "a table's columns")]
const fn conv(
    images: usize,
    in_size: [usize; 2],
    in_channels: usize,
    out_channels: usize,
    kernel: [usize; 2],
    stride: [usize; 2],
    pad: [usize; 2],
    out_size: [usize; 2],
) -> Conv {
    Conv { images, in_size, in_channels, out_size, out_channels, kernel, stride, pad }
}

/// Shapes as in small networks for images, a head, and odd ones.
const CONVS: &[Conv] = &[
    conv(1, [32, 32], 3, 16, [3, 3], [2, 2], [1, 1], [16, 16]),
    conv(1, [16, 16], 16, 48, [1, 1], [1, 1], [0, 0], [16, 16]),
    conv(1, [8, 8], 96, 24, [1, 1], [1, 1], [0, 0], [8, 8]),
    conv(1, [1, 1], 160, 10, [1, 1], [1, 1], [0, 0], [1, 1]),
    conv(1, [5, 7], 5, 7, [3, 3], [1, 1], [1, 1], [5, 7]),
    conv(2, [6, 5], 9, 3, [2, 3], [2, 1], [1, 0], [3, 3]),
    conv(1, [2, 2], 1, 1, [5, 5], [1, 1], [2, 2], [2, 2]),
];

const DEPTHWISE: &[Conv] = &[
    conv(1, [16, 16], 24, 24, [3, 3], [1, 1], [1, 1], [16, 16]),
    conv(1, [16, 16], 16, 16, [5, 5], [2, 2], [2, 2], [8, 8]),
    conv(1, [8, 8], 32, 32, [7, 7], [1, 1], [3, 3], [8, 8]),
    conv(2, [5, 4], 3, 6, [3, 3], [1, 2], [1, 0], [5, 2]),
    conv(1, [3, 3], 1, 1, [3, 3], [2, 2], [1, 1], [2, 2]),
];

/// The depthwise convolutions of bottlenecks.
const BOTTLENECKS: &[Conv] = &[
    conv(1, [8, 8], 48, 48, [3, 3], [1, 1], [1, 1], [8, 8]),
    conv(1, [12, 12], 24, 24, [3, 3], [1, 1], [1, 1], [12, 12]),
    conv(1, [10, 10], 20, 20, [5, 5], [2, 2], [2, 2], [5, 5]),
    conv(2, [4, 5], 6, 6, [3, 3], [2, 1], [1, 0], [2, 3]),
];

const POOLS: &[Conv] = &[
    conv(1, [8, 8], 40, 40, [8, 8], [1, 1], [0, 0], [1, 1]),
    conv(1, [8, 8], 16, 16, [2, 2], [2, 2], [0, 0], [4, 4]),
    conv(2, [5, 5], 3, 3, [3, 3], [2, 2], [1, 1], [3, 3]),
];

/// One case being put together.
struct Builder {
    case: Case,
    contents: Vec<Vec<u8>>,
    stream: Stream,
    next: u64,
}

impl Builder {
    fn new(number: usize, kernel: Kernel, dims: &Conv, quant: &Quant, note: &str) -> Builder {
        let Conv { images, in_size, in_channels, out_size, out_channels, kernel: taps, stride, .. } = dims;
        let text = format!(
            "{images}x{}x{}x{in_channels}-{}x{}x{out_channels} k{}x{} s{}{note}",
            in_size[0], in_size[1], out_size[0], out_size[1], taps[0], taps[1], stride[0]
        );
        let mut label = [0; LABEL_BYTES];
        label.iter_mut().zip(text.bytes().map(|b| if b == b' ' { b',' } else { b })).for_each(|(to, b)| *to = b);
        let buffers = [(Role::In, 0); BUFFERS];
        let case = Case { kernel, work: 0, label, params: Params::new(dims, quant), count: 0, buffers };
        let stream = Stream { seed: SEED, step: 0, tensor: number as u32 };
        Builder { case, contents: Vec::new(), stream, next: 0 }
    }

    fn work(mut self, work: usize) -> Builder {
        self.case.work = work as u32;
        self
    }

    fn number(mut self, i: usize, number: u32) -> Builder {
        self.case.params = self.case.params.with(i, number);
        self
    }

    fn float(self, i: usize, float: f32) -> Builder {
        self.number(i, float.to_bits())
    }

    fn random(&mut self) -> u32 {
        self.next += 1;
        self.stream.block(self.next)[0]
    }

    fn buffer(mut self, role: Role, bytes: Vec<u8>) -> Builder {
        self.case.buffers[self.case.count] = (role, bytes.len() as u32);
        self.case.count += 1;
        self.contents.push(bytes);
        self
    }

    fn out(self, bytes: usize) -> Builder {
        self.buffer(Role::Out, vec![0; bytes])
    }

    fn bytes(self, role: Role, len: usize) -> Builder {
        self.i8s(role, len, -128)
    }

    /// i8 from `lo` to 127.
    fn i8s(mut self, role: Role, len: usize, lo: i32) -> Builder {
        let bytes = (0..len).map(|_| (lo + (self.random() % (128 - lo) as u32) as i32) as u8).collect();
        self.buffer(role, bytes)
    }

    /// i32 within +-`size`.
    fn i32s(mut self, role: Role, len: usize, size: i32) -> Builder {
        let one = |b: &mut Builder| (b.random() % (2 * size as u32 + 1)) as i32 - size;
        let numbers: Vec<i32> = (0..len).map(|_| one(&mut self)).collect();
        self.buffer(role, bytemuck::cast_slice(&numbers).to_vec())
    }

    /// f32 from `lo` to `hi`.
    fn f32s(mut self, role: Role, len: usize, lo: f32, hi: f32) -> Builder {
        let one = |b: &mut Builder| lo + (hi - lo) * ((b.random() >> 8) as f32 / (1 << 24) as f32);
        let numbers: Vec<f32> = (0..len).map(|_| one(&mut self)).collect();
        self.buffer(role, bytemuck::cast_slice(&numbers).to_vec())
    }

    /// Every third of `n` channels, from the last, or no index.
    fn index(self, n: usize, is_sub: bool) -> Builder {
        let numbers: Vec<i32> = if is_sub { (0..n as i32).rev().step_by(3).collect() } else { Vec::new() };
        self.buffer(Role::In, bytemuck::cast_slice(&numbers).to_vec())
    }

    /// Learning rate, seed, step and tensor of an update.
    fn update(self) -> Builder {
        self.float(0, 0.01).number(1, 0x1234_5678).number(2, 7).number(3, 41).number(4, 3)
    }

    /// States of so many trained elements: with a twist the error of rounding alone, else momentum too.
    fn states(self, trained: usize, twist: bool) -> Builder {
        let momentum = if twist { 0.0f32 } else { 0.9 };
        let case = self.float(6, momentum);
        case.f32s(Role::InOut, if twist { 0 } else { trained }, -1.0, 1.0).f32s(Role::InOut, trained, -0.5, 0.5)
    }

    /// Runs it, and appends operands and results.
    fn write(self, file: &mut Vec<u8>) {
        file.extend(self.case.encode());
        let put = |file: &mut Vec<u8>, bytes: &[u8]| {
            file.extend(bytes);
            file.resize(file.len().next_multiple_of(4), 0);
        };
        let roles = || self.case.buffers.iter().map(|(role, _)| *role);
        for (bytes, _) in self.contents.iter().zip(roles()).filter(|(_, role)| role.is_read()) {
            put(file, bytes);
        }
        // Words of 16 bytes, so that every buffer is aligned.
        let words = |len: usize| vec![0u128; len.div_ceil(16)];
        let mut places: Vec<Vec<u128>> = self.contents.iter().map(|bytes| words(bytes.len())).collect();
        let mut buffers: Vec<&mut [u8]> = Vec::new();
        for (place, bytes) in places.iter_mut().zip(&self.contents) {
            let buffer = &mut bytemuck::cast_slice_mut(place)[..bytes.len()];
            buffer.copy_from_slice(bytes);
            buffers.push(buffer);
        }
        let scratch_len = scratch_bytes(self.case.kernel, &self.case.params);
        let mut scratch = words(scratch_len);
        let scratch = &mut bytemuck::cast_slice_mut(&mut scratch)[..scratch_len];
        let called = call(self.case.kernel, &self.case.params, &mut buffers, scratch);
        assert!(called, "{:?} takes other buffers", self.case.kernel);
        for (bytes, _) in buffers.iter().zip(roles()).filter(|(_, role)| role.is_written()) {
            put(file, bytes);
        }
    }
}

/// The buffers of a bottleneck: with a 1 x 1 convolution before it, or without.
fn bottleneck(case: Builder, dims: &Conv, is_narrow: bool) -> Builder {
    use Role::{In, InOut};
    if case.case.kernel == Kernel::BottleneckGradUpdate {
        return bottleneck_grad(case, dims, is_narrow);
    }
    let case = case.number(6, if is_narrow { 0 } else { dims.in_channels as u32 / 3 }).number(7, 9);
    let all = case.case.params.bottleneck();
    let is_over = case.case.kernel == Kernel::BottleneckOverlay;
    let expand = all.expand.map(|stage| stage.conv);
    let weights = [expand.map_or(0, |c| c.w_len()), all.depthwise.conv.depthwise_w_len(), all.project.conv.w_len()];
    let channels = [expand.map_or(0, |c| c.out_channels), dims.out_channels, all.project.conv.out_channels];
    let macs = expand.map_or(0, |c| c.y_len() * c.depth()) + dims.y_len() * dims.taps();
    let work = macs + all.project.conv.y_len() * all.project.conv.depth();
    let mut case = case.work(work);
    case = if is_over {
        case.bytes(InOut, i8_bottleneck_overlay_bytes(&all, i8_bottleneck_lead_bytes(&all)))
    } else {
        case.bytes(In, all.x_len())
    };
    for (w, o) in weights.into_iter().zip(channels) {
        case = case.i8s(In, w, -127).i32s(In, o, 3000).f32s(In, o, 0.001, 0.01);
    }
    if is_over { case } else { case.out(all.y_len()) }
}

/// The buffers of a bottleneck's backward pass: with a weight that is trained in part, or that stays.
fn bottleneck_grad(case: Builder, dims: &Conv, is_frozen: bool) -> Builder {
    use Role::{In, InOut};
    let (inner, ins, outs) = (dims.in_channels, dims.in_channels / 3, 9);
    let case = case.update().number(6, ins as u32).number(7, outs as u32);
    let pixels = |len: usize| len / inner;
    let trained = if is_frozen { 0 } else { ins.div_ceil(3) };
    let (wide, narrow) = (dims.x_len(), dims.y_len());
    let case = case.work(narrow * (outs + dims.taps()) + wide * (ins + trained));
    let case = case.f32s(In, pixels(narrow) * outs, -1.0, 1.0).i8s(In, outs * inner, -127);
    let mut case = case.i8s(In, dims.depthwise_w_len(), -127).i8s(InOut, inner * ins, -127);
    for len in [wide, narrow] {
        case = case.bytes(In, mask_bytes(len)).f32s(In, inner, 0.001, 0.01).f32s(In, inner, 0.0, 100.0);
        case = case.i32s(InOut, inner, 1_000_000);
    }
    let case = case.bytes(In, pixels(wide) * ins).index(ins, !is_frozen);
    case.f32s(In, if is_frozen { 0 } else { inner }, 0.0, 0.2).out(4 * pixels(wide) * ins)
}

/// The shapes that a kernel is tried on.
fn shapes(kernel: Kernel, is_depthwise: bool) -> &'static [Conv] {
    match kernel {
        Kernel::AvgPool | Kernel::MaxPool | Kernel::AvgPoolGrad | Kernel::MaxPoolGrad => POOLS,
        Kernel::AvgPoolAway | Kernel::SumPool => POOLS,
        Kernel::Bottleneck | Kernel::BottleneckOverlay | Kernel::BottleneckGradUpdate => BOTTLENECKS,
        _ if is_depthwise => DEPTHWISE,
        _ => CONVS,
    }
}

/// What a case is tried with beside its shape.
fn note(kernel: Kernel, twist: bool) -> &'static str {
    match (kernel, twist) {
        (Kernel::Conv2d | Kernel::Depthwise | Kernel::Add | Kernel::ScaleGrad, true) => " mask",
        (Kernel::AddUp | Kernel::SumPool, true) => " mask",
        (Kernel::Conv2dGradW | Kernel::DepthwiseGradW, true) => " index",
        (Kernel::Conv2dGradWUpdate | Kernel::DepthwiseGradWUpdate, true) => " index",
        (Kernel::Conv2dGradWUpdateWith | Kernel::DepthwiseGradWUpdateWith, true) => " index",
        (Kernel::Update | Kernel::Update32 | Kernel::UpdateWith | Kernel::Update32With, true) => " index",
        _ => "",
    }
}

/// The buffers of the loss and of its gradient.
fn cross_entropy(case: Builder, y: usize, o: usize) -> Builder {
    use Role::In;
    let (rows, kernel) = (y / o, case.case.kernel);
    let labels: Vec<i32> = (0..rows as i32).map(|row| row * 5 % (o as i32 + 1) - 1).collect();
    let case = case.work(y).float(0, 0.09).bytes(In, y).buffer(In, bytemuck::cast_slice(&labels).to_vec());
    let case = case.f32s(In, rows, 0.0, 1.0);
    match kernel {
        Kernel::CrossEntropy => case.out(4 * rows),
        _ => case.f32s(In, rows, 0.5, 1.5).out(4 * y),
    }
}

/// The buffers of a sum by these factors, of a result and a mask of these bytes.
fn sum(case: Builder, [ra, rb]: [f32; 2], [y, mask]: [usize; 2]) -> Builder {
    let case = case.work(y).float(0, ra).float(1, rb).number(2, 9);
    case.bytes(Role::In, y).bytes(Role::In, y).out(y).out(mask)
}

/// All cases of one kernel.
fn cases(kernel: Kernel, number: &mut usize, file: &mut Vec<u8>) {
    use Role::{In, InOut};
    let is_depthwise = matches!(
        kernel,
        Kernel::Depthwise
            | Kernel::DepthwiseGradX
            | Kernel::DepthwiseGradW
            | Kernel::DepthwiseGradWUpdate
            | Kernel::DepthwiseGradWUpdateWith
    );
    for (dims, twist) in shapes(kernel, is_depthwise).iter().flat_map(|dims| [(dims, false), (dims, true)]) {
        let quant = if twist { RELU6 } else { QUANT };
        let case = Builder::new(*number, kernel, dims, &quant, note(kernel, twist));
        *number += 1;
        let (x, y, o) = (dims.x_len(), dims.y_len(), dims.out_channels);
        let w = if is_depthwise { dims.depthwise_w_len() } else { dims.w_len() };
        let macs = if is_depthwise { y * dims.taps() } else { y * dims.depth() };
        let mask = if twist { mask_bytes(y) } else { 0 };
        let columns = if is_depthwise { o } else { dims.in_channels };
        let picked = if twist { columns.div_ceil(3) } else { columns };
        let sums = (dims.depth() as f32).sqrt() * 5000.0;
        let case = match kernel {
            Kernel::Conv2d | Kernel::Depthwise => case
                .work(macs)
                .bytes(In, x)
                .i8s(In, w, -127)
                .i32s(In, o, 3000)
                .f32s(In, o, 20.0 / sums, 200.0 / sums)
                .out(y)
                .out(mask),
            Kernel::Add => sum(case, [0.7, 1.1], [y, mask]),
            Kernel::AddUp => sum(case, [0.75, 1.125], [y, mask]),
            Kernel::AvgPool | Kernel::AvgPoolAway | Kernel::MaxPool => case.work(y * dims.taps()).bytes(In, x).out(y),
            Kernel::SumPool => case.work(y * dims.taps()).float(0, 0.25).float(1, 1.5).bytes(In, x).out(y).out(mask),
            Kernel::AvgPoolGrad => case.work(y * dims.taps()).f32s(In, y, -1.0, 1.0).out(4 * x),
            Kernel::MaxPoolGrad => case.work(y * dims.taps()).f32s(In, y, -1.0, 1.0).bytes(In, x).out(4 * x),
            Kernel::Softmax => case.work(y).float(0, 0.1).float(1, 1.0 / 256.0).bytes(In, y).out(y),
            Kernel::CrossEntropy | Kernel::CrossEntropyGrad => cross_entropy(case, y, o),
            Kernel::ScaleGrad => case.work(y).f32s(InOut, y, -1.0, 1.0).bytes(In, mask).f32s(In, o, 0.001, 0.1),
            Kernel::Conv2dGradX | Kernel::DepthwiseGradX => {
                case.work(macs).f32s(In, y, -1.0, 1.0).i8s(In, w, -127).out(4 * x)
            }
            Kernel::Conv2dGradW | Kernel::DepthwiseGradW => case
                .work(macs / columns * picked)
                .f32s(In, y, -1.0, 1.0)
                .bytes(In, x)
                .index(columns, twist)
                .out(4 * w / columns * picked),
            Kernel::Conv2dGradWUpdate
            | Kernel::DepthwiseGradWUpdate
            | Kernel::Conv2dGradWUpdateWith
            | Kernel::DepthwiseGradWUpdateWith => {
                let case = case.work(macs / columns * picked).update().f32s(In, y, -1.0, 1.0).bytes(In, x);
                let case = case.index(columns, twist).f32s(In, o, 0.0, 0.2).i8s(InOut, w, -127);
                match kernel {
                    Kernel::Conv2dGradWUpdate | Kernel::DepthwiseGradWUpdate => case,
                    _ => case.states(w / columns * picked, twist),
                }
            }
            Kernel::GradB => case.work(y).f32s(In, y, -1.0, 1.0).out(4 * o),
            Kernel::GradBUpdate | Kernel::GradBUpdateWith => {
                let case = case.work(y).update().f32s(In, y, -1.0, 1.0);
                let case = case.f32s(In, o, 0.0, 100.0).i32s(InOut, o, 1_000_000);
                if kernel == Kernel::GradBUpdate { case } else { case.states(o, twist) }
            }
            Kernel::Update | Kernel::Update32 | Kernel::UpdateWith | Kernel::Update32With => {
                let (columns, picked) = if twist { (o, o.div_ceil(3)) } else { (columns, columns) };
                let trained = w / columns * picked;
                let case = case.work(w).update().number(5, twist as u32);
                let case = match kernel {
                    Kernel::Update | Kernel::UpdateWith => case.i8s(InOut, w, -127),
                    _ => case.i32s(InOut, w, 1 << 30),
                };
                let case = case.f32s(In, trained, -90.0, 90.0).f32s(In, o, 0.0, 1.5).index(columns, twist);
                match kernel {
                    Kernel::Update | Kernel::Update32 => case,
                    _ => case.states(trained, twist),
                }
            }
            Kernel::Bottleneck | Kernel::BottleneckOverlay | Kernel::BottleneckGradUpdate => {
                bottleneck(case, dims, twist)
            }
            Kernel::AddTo => case.work(y).f32s(InOut, y, -1.0, 1.0).f32s(In, y, -1.0, 1.0),
            Kernel::Scale => case.work(y).float(0, 1.25).f32s(In, y, -1.0, 1.0).out(4 * y),
        };
        case.write(file);
    }
}

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else { return ExitCode::from(2) };
    let (mut number, mut body) = (0, Vec::new());
    for kernel in Kernel::ALL {
        cases(*kernel, &mut number, &mut body);
    }
    let mut file = MAGIC.to_vec();
    file.extend((number as u32).to_le_bytes());
    file.extend(body);
    match std::fs::write(&path, file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
