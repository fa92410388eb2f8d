//! Weights and biases of one layer: folded in f64, then stored.

use super::bytes::Input;
use super::units::moves;
use super::{Request, image_shape};
use crate::import::int8::{Image, Window};
use crate::ir::graph::{Node, Value};
use crate::ir::ops::Op;

type Result<T> = std::result::Result<T, String>;

/// The largest bias that a scale is chosen for: half of what an accumulator holds.
const BIAS_MAX: f64 = (1u64 << 30) as f64;

/// A layer as a convolution.
pub(super) struct Product {
    pub window: Window,
    pub multiplier: Option<u32>,
    pub folded: Folded,
}

/// Weights `[O,R,S,I]`, depthwise ones `[R,S,O]`, and biases, in real units.
pub(super) struct Folded {
    weight: Vec<f64>,
    bias: Vec<f64>,
    /// Input channels that each output channel reads: all, or with a multiplier its own.
    inputs: usize,
    multiplier: Option<usize>,
}

/// The same as int8 and i32, with a scale an output channel.
pub(super) struct Stored {
    pub weight: Vec<u8>,
    pub bias: Vec<i32>,
    pub scales: Vec<f32>,
    empty: usize,
    widened: usize,
}

fn values(request: &Request, v: Value) -> Result<Vec<f64>> {
    let name = &request.graph.info(v).name;
    let values = (request.weights)(name).ok_or_else(|| format!("`{name}` has no contents"))?;
    if values.len() as u64 != request.graph.ty(v).elems() {
        return Err(format!("`{name}` has {} elements, must be {}", values.len(), request.graph.ty(v)));
    }
    Ok(values.into_iter().map(f64::from).collect())
}

impl Product {
    /// The layer of a node that reads `x`; `order` is the image that a linear layer reads flattened.
    pub fn of(request: &Request, node: &Node, x: &Image, order: Option<&[u32; 3]>) -> Result<Product> {
        match node.op {
            Op::Conv2d => Product::conv(request, node),
            Op::Linear => Product::linear(request, node, order),
            _ => Product::norm(request, node, x),
        }
    }

    fn conv(request: &Request, node: &Node) -> Result<Product> {
        let graph = request.graph;
        let &[o, i, r, s] = &graph.ty(node.args[1]).shape[..] else {
            return Err("weights have not four dimensions".into());
        };
        let channels = image_shape(graph.ty(node.args[0])).map_or(0, |[_, _, c]| c);
        let groups = node.attrs.size("groups") as u32;
        let multiplier = match groups {
            1 => None,
            g if g == channels => Some(o / channels),
            g => return Err(format!("{g} groups of {channels} channels; 1, or one a channel, are taken")),
        };
        let (file, bias) = (values(request, node.args[1])?, bias(request, node, o)?);
        let [o, i, r, s] = [o, i, r, s].map(|d| d as usize);
        let mut weight = vec![0.0; file.len()];
        for (at, &w) in file.iter().enumerate() {
            let (tap, i_at, o_at) = (at % (r * s), at / (r * s) % i, at / (r * s * i));
            weight[if multiplier.is_some() { tap * o + o_at } else { (o_at * r * s + tap) * i + i_at }] = w;
        }
        let folded = Folded { weight, bias, inputs: i, multiplier: multiplier.map(|m| m as usize) };
        Ok(Product { window: moves(node, [r as u32, s as u32])?, multiplier, folded })
    }

    fn linear(request: &Request, node: &Node, order: Option<&[u32; 3]>) -> Result<Product> {
        let &[o, i] = &request.graph.ty(node.args[1]).shape[..] else { return Err("weights are no matrix".into()) };
        let (mut weight, bias) = (values(request, node.args[1])?, bias(request, node, o)?);
        if let Some(&[h, w, c]) = order {
            let (area, c) = (h as usize * w as usize, c as usize);
            for row in weight.chunks_exact_mut(i as usize) {
                let file = row.to_vec();
                row.iter_mut().enumerate().for_each(|(at, w)| *w = file[at % c * area + at / c]);
            }
        }
        let folded = Folded { weight, bias, inputs: i as usize, multiplier: None };
        Ok(Product { window: Window::POINT, multiplier: None, folded })
    }

    /// A batch norm by itself: a depthwise convolution of 1 x 1.
    fn norm(request: &Request, node: &Node, x: &Image) -> Result<Product> {
        let channels = x.shape[2] as usize;
        let mut folded =
            Folded { weight: vec![1.0; channels], bias: vec![0.0; channels], inputs: 1, multiplier: Some(1) };
        folded.fold_norm(request, node)?;
        Ok(Product { window: Window::POINT, multiplier: Some(1), folded })
    }
}

fn bias(request: &Request, node: &Node, outs: u32) -> Result<Vec<f64>> {
    match node.args.get(2) {
        Some(&v) => values(request, v),
        None => Ok(vec![0.0; outs as usize]),
    }
}

impl Folded {
    /// Output and input channel of an element of the weight.
    fn channels(&self, at: usize) -> (usize, usize) {
        let outs = self.bias.len();
        match self.multiplier {
            Some(m) => (at % outs, at % outs / m),
            None => (at / (self.weight.len() / outs), at % self.inputs),
        }
    }

    /// Takes over what the input's bytes mean by channel; of a flattened image the channels lie innermost.
    pub fn fold_input(&mut self, input: &Input) {
        for at in 0..self.weight.len() {
            let (o, i) = self.channels(at);
            let channel = i % input.factors.len();
            self.bias[o] += self.weight[at] * input.offsets[channel];
            self.weight[at] *= input.factors[channel];
        }
    }

    /// Folds a batch norm that stands behind.
    pub fn fold_norm(&mut self, request: &Request, node: &Node) -> Result<()> {
        let part = |i: usize| values(request, node.args[i]);
        let (w, b, mean, var) = (part(1)?, part(2)?, part(3)?, part(4)?);
        let factor: Vec<f64> = w.iter().zip(&var).map(|(w, var)| w / (var + node.attrs.float("eps")).sqrt()).collect();
        for at in 0..self.weight.len() {
            let (o, _) = self.channels(at);
            self.weight[at] *= factor[o];
        }
        for (o, bias) in self.bias.iter_mut().enumerate() {
            *bias = (*bias - mean[o]) * factor[o] + b[o];
        }
        Ok(())
    }

    /// As int8 and i32, for an input of this scale.
    ///
    /// A channel's scale is its largest weight over 127, but large enough for its bias; a channel of zeros has the
    /// layer's largest.
    pub fn store(&self, x_scale: f64) -> Result<Stored> {
        if self.weight.iter().chain(&self.bias).any(|w| !w.is_finite()) {
            return Err("a weight, with its batch norm, is not finite".into());
        }
        let mut reach = vec![0.0f64; self.bias.len()];
        for (at, w) in self.weight.iter().enumerate() {
            let (o, _) = self.channels(at);
            reach[o] = reach[o].max(w.abs());
        }
        let largest = reach.iter().fold(0.0f64, |a, &b| a.max(b));
        let largest = if largest > 0.0 { largest } else { 1.0 };
        let (mut empty, mut widened, mut scales) = (0, 0, Vec::new());
        for (reach, bias) in reach.iter().zip(&self.bias) {
            let wanted = if *reach > 0.0 { *reach } else { largest } / 127.0;
            let needed = bias.abs() / (x_scale * BIAS_MAX);
            empty += usize::from(*reach == 0.0);
            widened += usize::from(needed > wanted);
            scales.push(wanted.max(needed) as f32);
        }
        if scales.iter().any(|s| !s.is_normal()) {
            return Err("weights of a channel are too small, or too large, for a scale".into());
        }
        let weight = self.weight.iter().enumerate().map(|(at, w)| {
            let scale = f64::from(scales[self.channels(at).0]);
            (w / scale).round_ties_even().clamp(-127.0, 127.0) as i8 as u8
        });
        let weight = weight.collect();
        // Inside of i32 by the choice of the scale.
        let bias = self.bias.iter().zip(&scales).map(|(b, &s)| (b / (x_scale * f64::from(s))).round_ties_even() as i32);
        let bias = bias.collect();
        Ok(Stored { weight, bias, scales, empty, widened })
    }
}

impl Stored {
    /// What the user should know.
    pub fn notes(&self, layer: &str) -> Vec<String> {
        let mut notes = Vec::new();
        if self.empty > 0 {
            notes.push(format!(
                "{layer}: {} channels have only zeros as weights; they keep the layer's scale",
                self.empty
            ));
        }
        if self.widened > 0 {
            notes.push(format!(
                "{layer}: {} channels have a scale for their bias, which their weights are small beside",
                self.widened
            ));
        }
        notes
    }
}
