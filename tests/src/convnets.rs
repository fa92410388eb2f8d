//! Int8 convolutional networks from tables of layers, with generated weights.

use crate::random::Random;
use tinyforge_compiler::ir::attrs::Attr;
use tinyforge_compiler::ir::graph::{Builder, Graph, Kind, Region, Value};
use tinyforge_compiler::ir::ops::{Op, Tensor};
use tinyforge_compiler::ir::types::Type;
use tinyforge_plan::DType;

/// A convolution of a table: `10: dw7/2 48->48 32-16 +` is number 10, depthwise, 7x7, stride 2, from 48 to 48 channels
/// and from 32x32 to 16x16; `+` adds the block's input to the result.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Row {
    /// Whether every channel is convolved for itself.
    pub is_depthwise: bool,
    /// Taps a side.
    pub kernel: u32,
    /// Pixels from one result to the next.
    pub stride: u32,
    /// Channels read and made.
    pub channels: [u32; 2],
    /// Sides of the image read and made.
    pub sides: [u32; 2],
    /// Whether the block's input is added.
    pub is_residual: bool,
}

/// Reads a table: rows behind each other, `|` between them.
///
/// # Panics
/// When a row is no convolution.
pub fn rows(table: &str) -> Vec<Row> {
    table.split('|').enumerate().map(|(i, text)| row(i, text.trim())).collect()
}

fn row(number: usize, text: &str) -> Row {
    let numbers = |text: &str, between: &str| {
        let (a, b) = text.split_once(between).unwrap_or_else(|| panic!("`{text}` has no {between}"));
        [a, b].map(|n| n.parse().unwrap_or_else(|_| panic!("`{n}` is no number")))
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let [label, form, channels, sides, rest @ ..] = &words[..] else { panic!("`{text}` is no row") };
    assert_eq!(*label, format!("{number}:"), "rows stand in order");
    let (taps, stride) = form.split_once('/').unwrap_or((form, "1"));
    let (is_depthwise, kernel) = match taps.strip_prefix("dw") {
        Some(kernel) => (true, kernel),
        None => (false, taps.split('x').next().unwrap_or_default()),
    };
    Row {
        is_depthwise,
        kernel: kernel.parse().expect("a kernel is a number"),
        stride: stride.parse().expect("a stride is a number"),
        channels: numbers(channels, "->"),
        sides: numbers(sides, "-"),
        is_residual: rest == ["+"],
    }
}

/// The graph of a network's losses: `rows`, an average over the last image, and a head of `classes`. Inputs `images`,
/// `labels`, `loss_weights`; convolution `i` has `convs.i.weight`, `.bias` and `.scale`, the head `head.weight` and so
/// on. A block ends with the 1x1 convolution behind a depthwise one.
pub fn graph(rows: &[Row], batch: u32, classes: u32) -> Graph {
    let mut graph = Graph::new(batch);
    let (first, last) = (&rows[0], &rows[rows.len() - 1]);
    let shape = [batch, first.sides[0], first.sides[0], first.channels[0]];
    let images = graph.declare(Kind::Input, "images", Type::new(DType::I8, &shape));
    let mut writer = Writer { b: Builder::new(&mut graph), x: images, zero: 0 };
    let (mut block, mut start) = (0, (images, 0));
    for (i, row) in rows.iter().enumerate() {
        writer.block(&format!("layers.{block}"));
        let before = i.checked_sub(1).map(|k| rows[k]);
        let ends = before.is_some_and(|b| b.is_depthwise) && !row.is_depthwise;
        writer.conv(&format!("convs.{i}"), row, !ends);
        if row.is_residual {
            writer.add(start);
        }
        if ends {
            (block, start) = (block + 1, (writer.x, writer.zero));
        }
    }
    writer.block("head");
    writer.pool(last.sides[1]);
    let head = Row {
        is_depthwise: false,
        kernel: 1,
        stride: 1,
        channels: [last.channels[1], classes],
        sides: [1, 1],
        is_residual: false,
    };
    writer.conv("head", &head, false);
    let (logits, zero) = (writer.x, writer.zero);
    let mut b = writer.b;
    let labels = b.declare(Kind::Input, "labels", Type::i32(&[batch]));
    let weights = b.declare(Kind::Input, "loss_weights", Type::f32(&[batch]));
    let attrs = [("scale", Attr::from(0.05)), ("zero", zero.into())];
    let loss = b.push1("loss", Op::I8CrossEntropy, &[logits, labels, weights], &attrs);
    graph.results.push(("loss".to_string(), loss));
    graph
}

struct Writer<'g> {
    b: Builder<'g>,
    /// The last image, and its zero point.
    x: Value,
    zero: i32,
}

impl Writer<'_> {
    fn block(&mut self, name: &str) {
        let block = self.b.graph.block(name);
        self.b.at(block, Region::Forward);
    }

    fn conv(&mut self, name: &str, row: &Row, is_rectified: bool) {
        let [ins, outs] = row.channels;
        let k = row.kernel;
        let shape = if row.is_depthwise { vec![k, k, outs] } else { vec![outs, k, k, ins] };
        let w = self.b.declare(Kind::Weight, &format!("{name}.weight"), Type::new(DType::I8, &shape));
        let bias = self.b.declare(Kind::Weight, &format!("{name}.bias"), Type::i32(&[outs]));
        let scale = self.b.declare(Kind::Const, &format!("{name}.scale"), Type::f32(&[outs]));
        let zero = if is_rectified { -128 } else { 3 };
        let pad = (k - 1) / 2;
        let attrs = [
            ("stride_h", Attr::from(row.stride)),
            ("stride_w", row.stride.into()),
            ("pad_top", pad.into()),
            ("pad_left", pad.into()),
            ("out_h", row.sides[1].into()),
            ("out_w", row.sides[1].into()),
            ("zero_x", self.zero.into()),
            ("zero_y", zero.into()),
        ];
        let op = if row.is_depthwise { Op::I8Depthwise } else { Op::I8Conv2d };
        self.x = self.b.push1(&format!("{name}.out"), op, &[self.x, w, bias, scale], &attrs);
        self.zero = zero;
    }

    fn add(&mut self, (start, zero): (Value, i32)) {
        let attrs = [
            ("ra", Attr::from(0.75)),
            ("rb", 0.5.into()),
            ("zero_a", self.zero.into()),
            ("zero_b", zero.into()),
            ("zero_y", (-2).into()),
        ];
        self.x = self.b.push1("sum", Op::I8Add, &[self.x, start], &attrs);
        self.zero = -2;
    }

    fn pool(&mut self, side: u32) {
        let attrs = [("kh", Attr::from(side)), ("kw", side.into()), ("zero", self.zero.into())];
        self.x = self.b.push1("features", Op::I8AvgPool, &[self.x], &attrs);
    }
}

/// What a network is given for a tensor that outlives a step: it depends on the name and the type alone; a scale leaves
/// most sums of `taps` products inside int8. Factors are 0 for some channels, and so large for the others that a few
/// steps move every tensor of a network of ten layers.
pub fn contents(name: &str, ty: &Type, taps: u32) -> Tensor {
    let seed = name.bytes().fold(5u64, |seed, b| seed.wrapping_mul(31).wrapping_add(u64::from(b)));
    let (mut random, mut tensor) = (Random::new(seed), Tensor::zeros(ty));
    let spread = 74.0 * 73.0 * f64::from(taps.max(1)).sqrt();
    // Gradients become smaller from layer to layer.
    let below = name.split('.').nth(1).and_then(|n| n.parse::<i32>().ok()).map_or(0, |conv| (9 - conv).max(0));
    let factor = if name.contains("bias") { 3e6 } else { 3e5 } * 3f64.powi(below);
    for x in &mut tensor.data {
        let part = name.rsplit('.').next().unwrap_or_default();
        *x = match part {
            "weight" => random.below(255) as f64 - 127.0,
            "bias" => random.below(4001) as f64 - 2000.0,
            "scale" => f64::from((random.within(30.0, 60.0) / spread) as f32),
            "factor" if random.below(8) == 0 => 0.0,
            "factor" => f64::from((random.within(0.5, 2.0) * factor) as f32),
            _ => 0.0,
        };
    }
    tensor
}

/// `mcunet-5fps`.
pub const MCUNET: &str = "
    0: 3x3/2 3->16 128-64 | 1: dw3 16->16 64-64 | 2: 1x1 16->8 64-64 | 3: 1x1 8->32 64-64 |
    4: dw3/2 32->32 64-32 | 5: 1x1 32->16 32-32 | 6: 1x1 16->48 32-32 | 7: dw3 48->48 32-32 |
    8: 1x1 48->16 32-32 + | 9: 1x1 16->48 32-32 | 10: dw7/2 48->48 32-16 | 11: 1x1 48->24 16-16 |
    12: 1x1 24->120 16-16 | 13: dw3 120->120 16-16 | 14: 1x1 120->24 16-16 + | 15: 1x1 24->120 16-16 |
    16: dw3/2 120->120 16-8 | 17: 1x1 120->40 8-8 | 18: 1x1 40->160 8-8 | 19: dw7 160->160 8-8 |
    20: 1x1 160->40 8-8 + | 21: 1x1 40->160 8-8 | 22: dw5 160->160 8-8 | 23: 1x1 160->48 8-8 |
    24: 1x1 48->144 8-8 | 25: dw3 144->144 8-8 | 26: 1x1 144->48 8-8 + | 27: 1x1 48->192 8-8 |
    28: dw3 192->192 8-8 | 29: 1x1 192->48 8-8 + | 30: 1x1 48->240 8-8 | 31: dw7/2 240->240 8-4 |
    32: 1x1 240->96 4-4 | 33: 1x1 96->384 4-4 | 34: dw5 384->384 4-4 | 35: 1x1 384->96 4-4 + |
    36: 1x1 96->384 4-4 | 37: dw5 384->384 4-4 | 38: 1x1 384->96 4-4 + | 39: 1x1 96->576 4-4 |
    40: dw3 576->576 4-4 | 41: 1x1 576->160 4-4";

/// `mbv2-w0.35`.
pub const MBV2: &str = "
    0: 3x3/2 3->16 128-64 | 1: dw3 16->16 64-64 | 2: 1x1 16->8 64-64 | 3: 1x1 8->48 64-64 |
    4: dw3/2 48->48 64-32 | 5: 1x1 48->8 32-32 | 6: 1x1 8->48 32-32 | 7: dw3 48->48 32-32 |
    8: 1x1 48->8 32-32 + | 9: 1x1 8->48 32-32 | 10: dw3/2 48->48 32-16 | 11: 1x1 48->16 16-16 |
    12: 1x1 16->96 16-16 | 13: dw3 96->96 16-16 | 14: 1x1 96->16 16-16 + | 15: 1x1 16->96 16-16 |
    16: dw3 96->96 16-16 | 17: 1x1 96->16 16-16 + | 18: 1x1 16->96 16-16 | 19: dw3/2 96->96 16-8 |
    20: 1x1 96->24 8-8 | 21: 1x1 24->144 8-8 | 22: dw3 144->144 8-8 | 23: 1x1 144->24 8-8 + |
    24: 1x1 24->144 8-8 | 25: dw3 144->144 8-8 | 26: 1x1 144->24 8-8 + | 27: 1x1 24->144 8-8 |
    28: dw3 144->144 8-8 | 29: 1x1 144->24 8-8 + | 30: 1x1 24->144 8-8 | 31: dw3 144->144 8-8 |
    32: 1x1 144->32 8-8 | 33: 1x1 32->192 8-8 | 34: dw3 192->192 8-8 | 35: 1x1 192->32 8-8 + |
    36: 1x1 32->192 8-8 | 37: dw3 192->192 8-8 | 38: 1x1 192->32 8-8 + | 39: 1x1 32->192 8-8 |
    40: dw3/2 192->192 8-4 | 41: 1x1 192->56 4-4 | 42: 1x1 56->336 4-4 | 43: dw3 336->336 4-4 |
    44: 1x1 336->56 4-4 + | 45: 1x1 56->336 4-4 | 46: dw3 336->336 4-4 | 47: 1x1 336->56 4-4 + |
    48: 1x1 56->336 4-4 | 49: dw3 336->336 4-4 | 50: 1x1 336->112 4-4";

/// `proxyless-w0.3`.
pub const PROXYLESS: &str = "
    0: 3x3/2 3->16 128-64 | 1: dw3 16->16 64-64 | 2: 1x1 16->8 64-64 | 3: 1x1 8->24 64-64 |
    4: dw5/2 24->24 64-32 | 5: 1x1 24->16 32-32 | 6: 1x1 16->48 32-32 | 7: dw3 48->48 32-32 |
    8: 1x1 48->16 32-32 + | 9: 1x1 16->48 32-32 | 10: dw7/2 48->48 32-16 | 11: 1x1 48->16 16-16 |
    12: 1x1 16->48 16-16 | 13: dw3 48->48 16-16 | 14: 1x1 48->16 16-16 + | 15: 1x1 16->48 16-16 |
    16: dw5 48->48 16-16 | 17: 1x1 48->16 16-16 + | 18: 1x1 16->48 16-16 | 19: dw5 48->48 16-16 |
    20: 1x1 48->16 16-16 + | 21: 1x1 16->96 16-16 | 22: dw7/2 96->96 16-8 | 23: 1x1 96->24 8-8 |
    24: 1x1 24->72 8-8 | 25: dw5 72->72 8-8 | 26: 1x1 72->24 8-8 + | 27: 1x1 24->72 8-8 | 28: dw5 72->72 8-8 |
    29: 1x1 72->24 8-8 + | 30: 1x1 24->72 8-8 | 31: dw5 72->72 8-8 | 32: 1x1 72->24 8-8 + |
    33: 1x1 24->144 8-8 | 34: dw5 144->144 8-8 | 35: 1x1 144->32 8-8 | 36: 1x1 32->96 8-8 |
    37: dw5 96->96 8-8 | 38: 1x1 96->32 8-8 + | 39: 1x1 32->96 8-8 | 40: dw5 96->96 8-8 |
    41: 1x1 96->32 8-8 + | 42: 1x1 32->96 8-8 | 43: dw5 96->96 8-8 | 44: 1x1 96->32 8-8 + |
    45: 1x1 32->192 8-8 | 46: dw7/2 192->192 8-4 | 47: 1x1 192->64 4-4 | 48: 1x1 64->384 4-4 |
    49: dw7 384->384 4-4 | 50: 1x1 384->64 4-4 + | 51: 1x1 64->192 4-4 | 52: dw7 192->192 4-4 |
    53: 1x1 192->64 4-4 + | 54: 1x1 64->192 4-4 | 55: dw7 192->192 4-4 | 56: 1x1 192->64 4-4 + |
    57: 1x1 64->384 4-4 | 58: dw7 384->384 4-4 | 59: 1x1 384->96 4-4";
