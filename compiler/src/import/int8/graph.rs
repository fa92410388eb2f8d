//! An int8 network as a program: a graph of the op table's int8 rows.

use tinyforge_plan::DType;

use super::{Conv, Int8Error, Int8Model, Layer, LayerOp, Limits, Window};
use crate::ir::attrs::Attr;
use crate::ir::graph::{Builder, Graph, Kind, Region, Value};
use crate::ir::ops::Op;
use crate::ir::types::Type;

/// What a graph is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Input `images`, result `output`: all that the file describes, softmax included.
    Whole,
    /// Input `images`, result `logits`: a softmax at the end is left out.
    Infer,
    /// Inputs `images`, `labels: i32[N]` (negative: not counted) and `loss_weights: f32[N]`, result `loss: f32[N]`.
    Train,
}

/// Most elements of a batch of images.
const ELEMS_MAX: u64 = i32::MAX as u64;

type Attrs<'a> = Vec<(&'a str, Attr)>;

impl Int8Model {
    /// The program of an entry for `batch` images at a time.
    ///
    /// # Errors
    /// The batch is empty or too large; for [`Entry::Infer`] and [`Entry::Train`], the model has no classifier; for
    /// [`Entry::Train`], its results are no classes.
    pub fn graph(&self, entry: Entry, batch: u32) -> Result<Graph, Int8Error> {
        let elems = self.images.iter().map(|i| i.elems()).max().unwrap_or(0);
        if batch == 0 || elems.saturating_mul(u64::from(batch)) > ELEMS_MAX {
            return Err(Int8Error::Batch { batch, elems, most: ELEMS_MAX });
        }
        let result = match entry {
            Entry::Whole => self.output,
            Entry::Infer | Entry::Train => {
                let head = self.head()?;
                if entry == Entry::Train {
                    self.check_classes(head)?;
                }
                self.layers[head].output
            }
        };
        let needed = self.needed(result);
        let mut graph = Graph::new(batch);
        let builder = Builder::new(&mut graph);
        let mut writer = Writer { model: self, builder, values: vec![None; self.images.len()], batch };
        let images = writer.builder.declare(Kind::Input, "images", writer.ty(0));
        writer.values[0] = Some(images);
        for (layer, _) in self.layers.iter().zip(&needed).filter(|(_, needed)| **needed) {
            writer.layer(layer);
        }
        let value = writer.value(result);
        let named = match entry {
            Entry::Whole => ("output", value),
            Entry::Infer => ("logits", value),
            Entry::Train => ("loss", writer.loss(result, value)),
        };
        graph.results.push((named.0.to_owned(), named.1));
        Ok(graph)
    }

    /// Which layers the image `result` depends on.
    pub(super) fn needed(&self, result: u32) -> Vec<bool> {
        let mut wanted = vec![false; self.images.len()];
        wanted[result as usize] = true;
        let mut needed = vec![false; self.layers.len()];
        for (layer, needed) in self.layers.iter().zip(&mut needed).rev() {
            if wanted[layer.output as usize] {
                *needed = true;
                layer.inputs.iter().for_each(|&i| wanted[i as usize] = true);
            }
        }
        needed
    }
}

struct Writer<'a> {
    model: &'a Int8Model,
    builder: Builder<'a>,
    values: Vec<Option<Value>>,
    batch: u32,
}

impl Writer<'_> {
    fn ty(&self, image: u32) -> Type {
        let [h, w, c] = self.model.images[image as usize].shape;
        Type::new(DType::I8, &[self.batch, h, w, c])
    }

    fn value(&self, image: u32) -> Value {
        self.values[image as usize].expect("a layer's inputs are the model's or an earlier layer's")
    }

    fn zero(&self, image: u32) -> Attr {
        i64::from(self.model.images[image as usize].quant.zero).into()
    }

    fn scale(&self, image: u32) -> f64 {
        self.model.images[image as usize].quant.scale
    }

    fn layer(&mut self, layer: &Layer) {
        let block = self.builder.graph.block(&layer.block);
        self.builder.at(block, Region::Forward);
        let name = &self.model.images[layer.output as usize].name;
        let args: Vec<Value> = layer.inputs.iter().map(|&i| self.value(i)).collect();
        let (x, y) = (layer.inputs[0], layer.output);
        let out = match &layer.op {
            LayerOp::Conv(conv) => self.conv(conv, layer, args[0]),
            LayerOp::Add { factors, limits, is_up } => {
                let [ra, rb] = factors.map(f64::from);
                let mut attrs: Attrs = vec![("ra", ra.into()), ("rb", rb.into())];
                attrs.extend([("zero_a", self.zero(x)), ("zero_b", self.zero(layer.inputs[1]))]);
                attrs.push(("zero_y", self.zero(y)));
                attrs.extend(limit_attrs(*limits));
                self.builder.push1(name, if *is_up { Op::I8AddUp } else { Op::I8Add }, &args, &attrs)
            }
            LayerOp::AvgPool { window, limits, is_away: false } => {
                self.pool(Op::I8AvgPool, layer, (*window, *limits), &[("zero", self.zero(y))])
            }
            LayerOp::AvgPool { window, limits, is_away: true } => {
                self.pool(Op::I8AvgPoolAway, layer, (*window, *limits), &[])
            }
            LayerOp::MaxPool(window, limits) => {
                self.pool(Op::I8MaxPool, layer, (*window, *limits), &[("zero", self.zero(y))])
            }
            LayerOp::SumPool { window, line, limits } => {
                let line = [("scale", f64::from(line.scale).into()), ("offset", f64::from(line.offset).into())];
                self.pool(Op::I8SumPool, layer, (*window, *limits), &line)
            }
            LayerOp::Softmax => {
                let mut attrs: Attrs = vec![("scale_x", self.scale(x).into()), ("zero_x", self.zero(x))];
                attrs.extend([("scale_y", self.scale(y).into()), ("zero_y", self.zero(y))]);
                self.builder.push1(name, Op::I8Softmax, &args, &attrs)
            }
            LayerOp::Reshape => {
                let shape = self.ty(y).shape;
                let attrs: Attrs = ["d0", "d1", "d2", "d3"].into_iter().zip(shape.iter().map(|&d| d.into())).collect();
                self.builder.push1(name, Op::Reshape, &args, &attrs)
            }
        };
        self.values[y as usize] = Some(out);
    }

    fn conv(&mut self, conv: &Conv, layer: &Layer, x: Value) -> Value {
        let kind = if conv.is_trainable { Kind::Weight } else { Kind::Const };
        let weight = self.builder.declare(kind, &conv.weight_name(), Type::new(DType::I8, &conv.weight_shape));
        let bias = self.builder.declare(kind, &conv.bias_name(), Type::i32(&[conv.channels()]));
        let scale = self.builder.declare(Kind::Const, &conv.scale_name(), Type::f32(&[conv.channels()]));
        let (x_image, y) = (layer.inputs[0], layer.output);
        let mut attrs = self.window_attrs(conv.window, y);
        attrs.extend([("zero_x", self.zero(x_image)), ("zero_y", self.zero(y))]);
        attrs.extend(limit_attrs(conv.limits));
        let op = match conv.multiplier {
            Some(m) => {
                attrs.push(("multiplier", m.into()));
                Op::I8Depthwise
            }
            None => Op::I8Conv2d,
        };
        self.builder.push1(&self.model.images[y as usize].name, op, &[x, weight, bias, scale], &attrs)
    }

    fn pool(&mut self, op: Op, layer: &Layer, (window, limits): (Window, Limits), more: &[(&str, Attr)]) -> Value {
        let mut attrs = self.window_attrs(window, layer.output);
        attrs.extend([("kh", window.size[0].into()), ("kw", window.size[1].into())]);
        attrs.extend(more);
        attrs.extend(limit_attrs(limits));
        let x = self.value(layer.inputs[0]);
        self.builder.push1(&self.model.images[layer.output as usize].name, op, &[x], &attrs)
    }

    fn window_attrs(&self, window: Window, y: u32) -> Attrs<'static> {
        let [h, w, _] = self.model.images[y as usize].shape;
        vec![
            ("stride_h", window.stride[0].into()),
            ("stride_w", window.stride[1].into()),
            ("pad_top", window.pad[0].into()),
            ("pad_left", window.pad[1].into()),
            ("out_h", h.into()),
            ("out_w", w.into()),
        ]
    }

    fn loss(&mut self, image: u32, logits: Value) -> Value {
        let labels = self.builder.declare(Kind::Input, "labels", Type::i32(&[self.batch]));
        let weights = self.builder.declare(Kind::Input, "loss_weights", Type::f32(&[self.batch]));
        let attrs = [("scale", self.scale(image).into()), ("zero", self.zero(image))];
        self.builder.push1("loss", Op::I8CrossEntropy, &[logits, labels, weights], &attrs)
    }
}

fn limit_attrs(limits: Limits) -> [(&'static str, Attr); 2] {
    [("lo", i64::from(limits.lo).into()), ("hi", i64::from(limits.hi).into())]
}
