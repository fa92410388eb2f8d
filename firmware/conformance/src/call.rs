//! One call: buffers of bytes to the slices of the kernel's parameters.

use crate::{Kernel, Params};
use bytemuck::{AnyBitPattern, NoUninit, try_cast_slice, try_cast_slice_mut};
use tinyforge_kernels::int8::*;

/// The elements of a buffer; none if it is not aligned for them.
fn read<T: AnyBitPattern>(bytes: &[u8]) -> &[T] {
    try_cast_slice(bytes).unwrap_or(&[])
}

/// The elements of a buffer, to be written.
fn write<T: AnyBitPattern + NoUninit>(bytes: &mut [u8]) -> &mut [T] {
    try_cast_slice_mut(bytes).unwrap_or(&mut [])
}

/// An index or mask that may be left out.
fn index(bytes: &[u8]) -> Option<&[i32]> {
    (!bytes.is_empty()).then(|| read(bytes))
}

/// Bytes of scratch of a call.
pub fn scratch_bytes(kernel: Kernel, params: &Params) -> usize {
    let dims = &params.conv();
    match kernel {
        Kernel::Conv2d => i8_conv2d_scratch_bytes(dims),
        Kernel::Depthwise => i8_depthwise_scratch_bytes(dims),
        Kernel::Conv2dGradX => i8_conv2d_grad_x_scratch_bytes(dims),
        Kernel::Conv2dGradW | Kernel::Conv2dGradWUpdate | Kernel::Conv2dGradWUpdateWith => {
            i8_conv2d_grad_w_scratch_bytes(dims)
        }
        Kernel::DepthwiseGradX => i8_depthwise_grad_x_scratch_bytes(dims),
        Kernel::DepthwiseGradW | Kernel::DepthwiseGradWUpdate | Kernel::DepthwiseGradWUpdateWith => {
            i8_depthwise_grad_w_scratch_bytes(dims)
        }
        Kernel::Bottleneck | Kernel::BottleneckOverlay => i8_bottleneck_scratch_bytes(&params.bottleneck()),
        Kernel::BottleneckGradUpdate => i8_bottleneck_grad_update_scratch_bytes(&params.bottleneck_grad()),
        _ => 0,
    }
}

/// Calls the kernel. `buffers`: its slices in the order of its parameters, each beginning at a multiple of 16; an
/// empty mask or index is none. Numbers beside geometry and limits, by kernel:
///
/// | kernel | numbers |
/// |---|---|
/// | `i8_add`, `i8_add_up` | ra, rb, zero of b (that of a is the input's) |
/// | `i8_sum_pool` | scale, offset |
/// | `i8_softmax` | scale of x, scale of y |
/// | cross-entropy | scale |
/// | updates | learning rate, seed low, seed high, step, (first) tensor; 5: 1 when the channel is the last dimension |
/// | updates with states | 6: momentum |
/// | bottlenecks | 6, 7: see [`Params::bottleneck`] |
/// | `f32_scale` | factor |
///
/// False when there are not as many buffers as the kernel has.
pub fn call(kernel: Kernel, params: &Params, buffers: &mut [&mut [u8]], scratch: &mut [u8]) -> bool {
    let (dims, quant) = (&params.conv(), &params.quant());
    match (kernel, buffers) {
        (Kernel::Conv2d | Kernel::Depthwise, [x, w, bias, scale, y, mask]) => {
            let weights = Weights { w: read(w), bias: read(bias), scale: read(scale) };
            let mask = (!mask.is_empty()).then_some(&mut **mask);
            match kernel {
                Kernel::Conv2d => i8_conv2d(dims, quant, read(x), &weights, write(y), mask, scratch),
                _ => i8_depthwise(dims, quant, read(x), &weights, write(y), mask, scratch),
            }
        }
        (Kernel::Add | Kernel::AddUp, [a, b, y, mask]) => {
            let Quant { zero_x, zero_y, lo, hi } = *quant;
            let (ra, rb, zero_b) = (params.float(0), params.float(1), params.number(2) as i32);
            let mask = (!mask.is_empty()).then_some(&mut **mask);
            let add = &Add { ra, rb, zero_a: zero_x, zero_b, zero_y, lo, hi };
            match kernel {
                Kernel::Add => i8_add(add, read(a), read(b), write(y), mask),
                _ => i8_add_up(add, read(a), read(b), write(y), mask),
            }
        }
        (Kernel::AvgPool, [x, y]) => i8_avg_pool(dims, quant, read(x), write(y)),
        (Kernel::AvgPoolAway, [x, y]) => i8_avg_pool_away(dims, quant, read(x), write(y)),
        (Kernel::SumPool, [x, y, mask]) => {
            let pool = SumPool { scale: params.float(0), offset: params.float(1), lo: quant.lo, hi: quant.hi };
            i8_sum_pool(dims, &pool, read(x), write(y), (!mask.is_empty()).then_some(&mut **mask));
        }
        (Kernel::MaxPool, [x, y]) => i8_max_pool(dims, quant, read(x), write(y)),
        (Kernel::AvgPoolGrad, [g, gx]) => i8_avg_pool_grad(dims, read(g), write(gx)),
        (Kernel::MaxPoolGrad, [g, x, gx]) => i8_max_pool_grad(dims, read(g), read(x), write(gx)),
        (Kernel::Softmax, [x, y]) => {
            let (scale_x, scale_y) = (params.float(0), params.float(1));
            let softmax = Softmax { scale_x, zero_x: quant.zero_x, scale_y, zero_y: quant.zero_y };
            i8_softmax(&softmax, dims.out_channels, read(x), write(y));
        }
        (Kernel::ScaleGrad, [g, mask, scale]) => {
            i8_scale_grad(write(g), (!mask.is_empty()).then_some(&**mask), read(scale));
        }
        (Kernel::AddTo, [a, b]) => f32_add_to(write(a), read(b)),
        (Kernel::Scale, [x, y]) => f32_scale(params.float(0), read(x), write(y)),
        (Kernel::Bottleneck, [x, w1, b1, s1, w2, b2, s2, w3, b3, s3, y]) => {
            let stages = [(w1, b1, s1), (w2, b2, s2), (w3, b3, s3)];
            let weights = stages.map(|(w, bias, scale)| Weights { w: read(w), bias: read(bias), scale: read(scale) });
            i8_bottleneck(&params.bottleneck(), read(x), &weights, write(y), scratch);
        }
        (Kernel::BottleneckOverlay, [buffer, w1, b1, s1, w2, b2, s2, w3, b3, s3]) => {
            let stages = [(w1, b1, s1), (w2, b2, s2), (w3, b3, s3)];
            let weights = stages.map(|(w, bias, scale)| Weights { w: read(w), bias: read(bias), scale: read(scale) });
            let dims = params.bottleneck();
            i8_bottleneck_overlay(&dims, i8_bottleneck_lead_bytes(&dims), &weights, write(buffer), scratch);
        }
        (_, buffers) => {
            return loss(kernel, params, buffers)
                || learn(kernel, params, buffers, scratch)
                || learn_with_states(kernel, params, buffers, scratch);
        }
    }
    true
}

/// The calls of the loss.
fn loss(kernel: Kernel, params: &Params, buffers: &mut [&mut [u8]]) -> bool {
    let dims =
        CrossEntropy { classes: params.conv().out_channels, scale: params.float(0), zero: params.quant().zero_x };
    match (kernel, buffers) {
        (Kernel::CrossEntropy, [x, label, weight, loss]) => {
            i8_cross_entropy(&dims, read(x), read(label), read(weight), write(loss));
        }
        (Kernel::CrossEntropyGrad, [x, label, weight, dloss, g]) => {
            i8_cross_entropy_grad(&dims, read(x), read(label), read(weight), read(dloss), write(g));
        }
        _ => return false,
    }
    true
}

/// Makes the update that the numbers describe, over these factors.
fn update_of<'a>(params: &Params, factor: &'a [u8]) -> Update<'a> {
    let rng = [params.number(1), params.number(2), params.number(3), 0];
    Update { lr: params.float(0), factor: read(factor), stream: update_stream(&rng, params.number(4)) }
}

fn shape_of(params: &Params) -> Shape {
    let Conv { in_channels: inner, out_channels: channels, .. } = params.conv();
    if params.number(5) == 0 { Shape::ChannelFirst { channels, inner } } else { Shape::ChannelLast { channels } }
}

/// The calls of the backward pass and of the update.
fn learn(kernel: Kernel, params: &Params, buffers: &mut [&mut [u8]], scratch: &mut [u8]) -> bool {
    let (dims, zero) = (&params.conv(), params.quant().zero_x);
    match (kernel, buffers) {
        (Kernel::Conv2dGradX, [gc, w, gx]) => i8_conv2d_grad_x(dims, read(gc), read(w), write(gx), scratch),
        (Kernel::DepthwiseGradX, [gc, w, gx]) => i8_depthwise_grad_x(dims, read(gc), read(w), write(gx), scratch),
        (Kernel::Conv2dGradW | Kernel::DepthwiseGradW, [gc, x, at, gw]) => {
            let from = WeightGrad { zero, gc: read(gc), x: read(x), index: index(at) };
            match kernel {
                Kernel::Conv2dGradW => i8_conv2d_grad_w(dims, &from, write(gw), scratch),
                _ => i8_depthwise_grad_w(dims, &from, write(gw), scratch),
            }
        }
        (Kernel::Conv2dGradWUpdate | Kernel::DepthwiseGradWUpdate, [gc, x, at, factor, w]) => {
            let from = WeightGrad { zero, gc: read(gc), x: read(x), index: index(at) };
            match kernel {
                Kernel::Conv2dGradWUpdate => {
                    i8_conv2d_grad_w_update(dims, &from, &update_of(params, factor), write(w), scratch);
                }
                _ => i8_depthwise_grad_w_update(dims, &from, &update_of(params, factor), write(w), scratch),
            }
        }
        (
            Kernel::BottleneckGradUpdate,
            [gc, w3, w2, w1, mask1, scale1, factor1, bias1, mask2, scale2, factor2, bias2, x, at, factor, gx],
        ) => {
            let rng = [params.number(1), params.number(2), params.number(3), 0];
            let update = |factor, tensor| Update { lr: params.float(0), factor, stream: update_stream(&rng, tensor) };
            let expand = Hidden {
                mask: mask1,
                scale: read(scale1),
                bias: write(bias1),
                update: update(read(factor1), params.number(4)),
            };
            let depthwise = Hidden {
                mask: mask2,
                scale: read(scale2),
                bias: write(bias2),
                update: update(read(factor2), params.number(4) + 1),
            };
            let weight = update(read(factor), params.number(4) + 2);
            let expand_w = match factor.is_empty() {
                true => Expand::Frozen(read(w1)),
                false => Expand::Trained { w: write(w1), update: weight, x: read(x), zero, index: index(at) },
            };
            let (project_w, depthwise_w) = (read(w3), read(w2));
            let mut layers = BottleneckLayers { project_w, depthwise_w, depthwise, expand_w, expand };
            i8_bottleneck_grad_update(&params.bottleneck_grad(), read(gc), &mut layers, write(gx), scratch);
        }
        (Kernel::GradB, [gc, gb]) => i8_grad_b(read(gc), write(gb)),
        (Kernel::GradBUpdate, [gc, factor, bias]) => {
            i8_grad_b_update(&update_of(params, factor), read(gc), write(bias));
        }
        (Kernel::Update, [w, g, factor, at]) => {
            i8_update(shape_of(params), &update_of(params, factor), write(w), read(g), index(at));
        }
        (Kernel::Update32, [w, g, factor, at]) => {
            i32_update(shape_of(params), &update_of(params, factor), write(w), read(g), index(at));
        }
        _ => return false,
    }
    true
}

/// The calls of updates that keep momentum, the error of rounding, or both: an empty buffer is none.
fn learn_with_states(kernel: Kernel, params: &Params, buffers: &mut [&mut [u8]], scratch: &mut [u8]) -> bool {
    let (dims, zero, momentum) = (&params.conv(), params.quant().zero_x, params.float(6));
    match (kernel, buffers) {
        (Kernel::Conv2dGradWUpdateWith | Kernel::DepthwiseGradWUpdateWith, [gc, x, at, factor, w, sum, error]) => {
            let from = WeightGrad { zero, gc: read(gc), x: read(x), index: index(at) };
            let mut states = States { momentum, sum: write(sum), error: write(error) };
            let update = update_of(params, factor);
            match kernel {
                Kernel::Conv2dGradWUpdateWith => {
                    i8_conv2d_grad_w_update_with(dims, &from, &update, &mut states, write(w), scratch);
                }
                _ => i8_depthwise_grad_w_update_with(dims, &from, &update, &mut states, write(w), scratch),
            }
        }
        (Kernel::GradBUpdateWith, [gc, factor, bias, sum, error]) => {
            let mut states = States { momentum, sum: write(sum), error: write(error) };
            i8_grad_b_update_with(&update_of(params, factor), &mut states, read(gc), write(bias));
        }
        (Kernel::UpdateWith | Kernel::Update32With, [w, g, factor, at, sum, error]) => {
            let mut states = States { momentum, sum: write(sum), error: write(error) };
            let (shape, update) = (shape_of(params), update_of(params, factor));
            match kernel {
                Kernel::UpdateWith => i8_update_with(shape, &update, &mut states, write(w), read(g), index(at)),
                _ => i32_update_with(shape, &update, &mut states, write(w), read(g), index(at)),
            }
        }
        _ => return false,
    }
    true
}
