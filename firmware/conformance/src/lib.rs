//! Calls of int8 kernels as data: the host writes operands and results into a file, the board calls the same kernels
//! on the same operands and compares bit for bit.
//!
//! Invariant: [`call`] and [`scratch_bytes`] are all that host and board run, so a difference is one of the kernels,
//! their variants or the processor. Not a test of what the kernels compute: that is `kernels/tests`.
#![no_std]
#![forbid(unsafe_code)]

mod call;

pub use call::{call, scratch_bytes};
use tinyforge_kernels::int8::{Bottleneck, BottleneckGrad, Conv, Quant, Stage};

/// What a file of cases begins with, before the number of cases in 4 bytes.
pub const MAGIC: [u8; 4] = *b"TFCV";

/// Words of parameters.
pub const PARAM_WORDS: usize = 26;
/// Buffers of one call, at most.
pub const BUFFERS: usize = 16;
/// Bytes of a label.
pub const LABEL_BYTES: usize = 48;

macro_rules! kernels {
    ($($Name:ident $name:literal,)*) => {
        /// A kernel under test.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[expect(missing_docs, reason = "each is the kernel of its name")]
        pub enum Kernel { $($Name,)* }

        impl Kernel {
            /// All of them; the place is the number in a file.
            pub const ALL: &[Kernel] = &[$(Kernel::$Name,)*];

            /// The function's name.
            pub const fn name(self) -> &'static str {
                match self { $(Kernel::$Name => $name,)* }
            }
        }
    };
}

kernels! {
    Conv2d "i8_conv2d",
    Depthwise "i8_depthwise",
    Add "i8_add",
    AvgPool "i8_avg_pool",
    MaxPool "i8_max_pool",
    Softmax "i8_softmax",
    CrossEntropy "i8_cross_entropy",
    CrossEntropyGrad "i8_cross_entropy_grad",
    ScaleGrad "i8_scale_grad",
    Conv2dGradX "i8_conv2d_grad_x",
    Conv2dGradW "i8_conv2d_grad_w",
    Conv2dGradWUpdate "i8_conv2d_grad_w_update",
    DepthwiseGradX "i8_depthwise_grad_x",
    DepthwiseGradW "i8_depthwise_grad_w",
    DepthwiseGradWUpdate "i8_depthwise_grad_w_update",
    GradB "i8_grad_b",
    GradBUpdate "i8_grad_b_update",
    AvgPoolGrad "i8_avg_pool_grad",
    MaxPoolGrad "i8_max_pool_grad",
    Update "i8_update",
    Update32 "i32_update",
    Conv2dGradWUpdateWith "i8_conv2d_grad_w_update_with",
    DepthwiseGradWUpdateWith "i8_depthwise_grad_w_update_with",
    GradBUpdateWith "i8_grad_b_update_with",
    UpdateWith "i8_update_with",
    Update32With "i32_update_with",
    Bottleneck "i8_bottleneck",
    BottleneckOverlay "i8_bottleneck_overlay",
    BottleneckGradUpdate "i8_bottleneck_grad_update",
    AddTo "f32_add_to",
    Scale "f32_scale",
    AddUp "i8_add_up",
    AvgPoolAway "i8_avg_pool_away",
    SumPool "i8_sum_pool",
}

/// Parameters of a call: a convolution's geometry, limits, and numbers by place.
#[derive(Clone, Copy, Default, Debug)]
pub struct Params(pub [u32; PARAM_WORDS]);

impl Params {
    /// With this geometry and these limits.
    pub fn new(dims: &Conv, quant: &Quant) -> Params {
        let Conv { images, in_size, in_channels, out_size, out_channels, kernel, stride, pad } = *dims;
        let [in_h, in_w] = in_size;
        let [out_h, out_w] = out_size;
        let ([kh, kw], [sh, sw], [ph, pw]) = (kernel, stride, pad);
        let sizes = [images, in_h, in_w, in_channels, out_h, out_w, out_channels, kh, kw, sh, sw, ph, pw];
        let mut params = Params::default();
        for (to, size) in params.0.iter_mut().zip(sizes) {
            *to = size as u32;
        }
        for (to, limit) in params.0.iter_mut().skip(13).zip([quant.zero_x, quant.zero_y, quant.lo, quant.hi]) {
            *to = limit as u32;
        }
        params
    }

    /// The geometry.
    pub fn conv(&self) -> Conv {
        let [images, in_h, in_w, in_channels, out_h, out_w, out_channels, kh, kw, sh, sw, ph, pw, ..] =
            self.0.map(|word| word as usize);
        Conv {
            images,
            in_size: [in_h, in_w],
            in_channels,
            out_size: [out_h, out_w],
            out_channels,
            kernel: [kh, kw],
            stride: [sh, sw],
            pad: [ph, pw],
        }
    }

    /// The limits.
    pub fn quant(&self) -> Quant {
        let word = |at: usize| self.0.get(at).map_or(0, |word| *word as i32);
        Quant { zero_x: word(13), zero_y: word(14), lo: word(15), hi: word(16) }
    }

    /// A bottleneck around the geometry, which is that of its depthwise convolution: number 6 is the channels of the
    /// input before a 1 x 1 convolution, 0 for none; number 7 the channels of the output.
    pub fn bottleneck(&self) -> Bottleneck {
        let (conv, quant) = (self.conv(), self.quant());
        let stage = |conv| Stage { conv, quant };
        let point = |size, in_channels, out_channels| Conv {
            images: conv.images,
            in_size: size,
            in_channels,
            out_size: size,
            out_channels,
            kernel: [1, 1],
            stride: [1, 1],
            pad: [0, 0],
        };
        let expand = point(conv.in_size, self.number(6) as usize, conv.in_channels);
        Bottleneck {
            expand: (expand.in_channels > 0).then_some(stage(expand)),
            depthwise: stage(conv),
            project: stage(point(conv.out_size, conv.out_channels, self.number(7) as usize)),
        }
    }

    /// The same block's backward pass.
    pub fn bottleneck_grad(&self) -> BottleneckGrad {
        let (in_channels, out_channels) = (self.number(6) as usize, self.number(7) as usize);
        BottleneckGrad { depthwise: self.conv(), in_channels, out_channels }
    }

    /// Number `i` of the nine further ones.
    pub fn number(&self, i: usize) -> u32 {
        self.0.get(17 + i).copied().unwrap_or_default()
    }

    /// The same as a float.
    pub fn float(&self, i: usize) -> f32 {
        f32::from_bits(self.number(i))
    }

    /// Sets number `i`.
    pub fn with(mut self, i: usize, number: u32) -> Params {
        if let Some(word) = self.0.get_mut(17 + i) {
            *word = number;
        }
        self
    }
}

/// What happens to a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It is read: its contents are in the file.
    In,
    /// It is written: what it must hold afterwards is in the file.
    Out,
    /// Both.
    InOut,
}

impl Role {
    /// Whether the file has its contents before the call.
    pub const fn is_read(self) -> bool {
        !matches!(self, Role::Out)
    }

    /// Whether the file has its contents after the call.
    pub const fn is_written(self) -> bool {
        !matches!(self, Role::In)
    }
}

/// One call, without the contents of its buffers.
///
/// In a file the contents follow: first of those that are read, then of those that are written, each padded with zeros
/// to whole words.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Which.
    pub kernel: Kernel,
    /// Multiply-accumulates; elements where there are none.
    pub work: u32,
    /// The shape for people; zeros behind.
    pub label: [u8; LABEL_BYTES],
    /// Parameters.
    pub params: Params,
    /// Number of buffers.
    pub count: usize,
    /// Role and bytes of each.
    pub buffers: [(Role, u32); BUFFERS],
}

/// Bytes of an encoded [`Case`].
pub const CASE_BYTES: usize = 4 * WORDS;
const WORDS: usize = 3 + LABEL_BYTES / 4 + PARAM_WORDS + 2 * BUFFERS;

impl Case {
    /// As in a file.
    pub fn encode(&self) -> [u8; CASE_BYTES] {
        let mut words = [0u32; WORDS];
        let head = [self.kernel as u32, self.work, self.count as u32];
        let label = self.label.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
        let buffers = self.buffers.iter().flat_map(|(role, len)| [*role as u32, *len]);
        let all = head.into_iter().chain(label).chain(self.params.0).chain(buffers);
        words.iter_mut().zip(all).for_each(|(to, word)| *to = word);
        let mut bytes = [0; CASE_BYTES];
        bytes.as_chunks_mut().0.iter_mut().zip(words).for_each(|(to, word)| *to = word.to_le_bytes());
        bytes
    }

    /// From a file.
    pub fn decode(bytes: &[u8; CASE_BYTES]) -> Option<Case> {
        let mut words = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
        let kernel = *Kernel::ALL.get(words.next()? as usize)?;
        let (work, count) = (words.next()?, words.next()? as usize);
        let mut label = [0; LABEL_BYTES];
        for to in label.as_chunks_mut().0 {
            *to = words.next()?.to_le_bytes();
        }
        let mut params = Params::default();
        for to in &mut params.0 {
            *to = words.next()?;
        }
        let mut buffers = [(Role::In, 0); BUFFERS];
        for to in &mut buffers {
            let role = *[Role::In, Role::Out, Role::InOut].get(words.next()? as usize)?;
            *to = (role, words.next()?);
        }
        (count <= BUFFERS).then_some(Case { kernel, work, label, params, count, buffers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_comes_back() {
        let dims = Conv {
            images: 1,
            in_size: [2, 3],
            in_channels: 4,
            out_size: [5, 6],
            out_channels: 7,
            kernel: [8, 9],
            stride: [10, 11],
            pad: [12, 13],
        };
        let quant = Quant { zero_x: -128, zero_y: 3, lo: -1, hi: 127 };
        let params = Params::new(&dims, &quant).with(8, 0.5f32.to_bits());
        assert_eq!((params.conv(), params.quant(), params.float(8)), (dims, quant, 0.5));
        let case = Case {
            kernel: Kernel::Scale,
            work: 99,
            label: [b'x'; LABEL_BYTES],
            params,
            count: BUFFERS,
            buffers: [(Role::InOut, 5); BUFFERS],
        };
        let back = Case::decode(&case.encode()).expect("a case");
        assert_eq!(back.encode(), case.encode());
        assert!(Case::decode(&[0xff; CASE_BYTES]).is_none());
    }
}
