//! The classifier at the end of a network, and a new one in its place.

use tinyforge_plan::Source;

use super::{Conv, Image, Int8Error, Int8Model, Layer, LayerOp, Limits, Quant, Window};

/// Most classes of a new head.
pub const CLASSES_MAX: u32 = 4096;
/// Name of a new head: its weights are `head.weight` and `head.bias`.
pub const HEAD: &str = "head";
/// Logits reach at least this far from 0: beyond it a softmax has nothing left to tell apart.
const LOGIT_REACH: f64 = 8.0;

impl Int8Model {
    /// The layer that gives the logits: the last fully connected one, behind it nothing but softmax and reshapes.
    ///
    /// # Errors
    /// [`Int8Error::NoHead`] when the network ends in something else.
    pub fn head(&self) -> Result<usize, Int8Error> {
        let mut image = self.output;
        loop {
            let layer = self.layers.iter().position(|l| l.output == image);
            let no_head = |ends_in: &str| Err(Int8Error::NoHead { ends_in: ends_in.to_owned() });
            let Some(at) = layer else { return no_head("its input") };
            match &self.layers[at].op {
                LayerOp::Softmax | LayerOp::Reshape => image = self.layers[at].inputs[0],
                LayerOp::Conv(conv) if conv.is_trainable && conv.multiplier.is_none() => {
                    let [h, w, _] = self.images[image as usize].shape;
                    return if (h, w) == (1, 1) { Ok(at) } else { no_head("a convolution over an image") };
                }
                LayerOp::Conv(conv) if conv.is_trainable => return no_head("a depthwise convolution"),
                LayerOp::Conv(conv) if conv.window.area() == 1 => return no_head("a change of scale"),
                LayerOp::Add { .. } => return no_head("a sum"),
                LayerOp::SumPool { window, .. } if window.area() == 1 => return no_head("a change of scale"),
                LayerOp::AvgPool { .. } | LayerOp::SumPool { .. } | LayerOp::MaxPool(..) | LayerOp::Conv(_) => {
                    return no_head("a pool");
                }
            }
        }
    }

    /// Refuses a network whose results are no classes: fewer than two, or, without a softmax, as many as the input has
    /// elements, as those of an autoencoder. A new head always has classes.
    pub(super) fn check_classes(&self, head: usize) -> Result<(), Int8Error> {
        let (inputs, results) = (self.input().elems(), self.images[self.layers[head].output as usize].elems());
        let is_new = match &self.layers[head].op {
            LayerOp::Conv(conv) => matches!(conv.weight, Source::Uniform { .. }),
            _ => false,
        };
        let has_softmax = self.layers[head..].iter().any(|l| l.op == LayerOp::Softmax);
        if !is_new && (results < 2 || (results == inputs && !has_softmax)) {
            return Err(Int8Error::NoClasses { inputs, results });
        }
        Ok(())
    }

    /// Calls the layer that gives the logits, and all behind it, the head.
    pub(crate) fn name_head(&mut self, at: usize) {
        for layer in &mut self.layers[at..] {
            layer.block = HEAD.to_owned();
        }
        let image = self.layers[at].output as usize;
        self.images[image].name = format!("{HEAD}.y");
        if let LayerOp::Conv(conv) = &mut self.layers[at].op {
            conv.name = HEAD.to_owned();
        }
    }

    /// The network with a new classifier of so many classes in place of its own, or behind it where it has none.
    ///
    /// The head is `y[o] = round((Σ (x - zero_x) w[o] + b[o]) s) + zero_y` over the same `C` features as the old one
    /// (means over the image, where a network without a head ends in one):
    /// - weights start uniform in `±1/sqrt(C)`, drawn as int8 by the run's seed over all of `±127`; so
    ///   `w_scale = 1 / (127 sqrt(C))`, one for all classes, which cannot be 0 as that of zero weights would be;
    /// - biases start at 0;
    /// - logits are symmetric, `zero_y = 0`, and reach `127 y_scale = max(8, R/sqrt(3))`, where `R` is the largest
    ///   magnitude of a feature. Features whose root mean square is `R/4` give logits of standard deviation
    ///   `R/(4 sqrt(3))` at the start, so that four of them fit.
    ///
    /// # Errors
    /// [`Int8Error::Classes`] for fewer than 2 classes or more than 4096.
    pub fn with_classes(&self, classes: u32) -> Result<Int8Model, Int8Error> {
        if !(2..=CLASSES_MAX).contains(&classes) {
            return Err(Int8Error::Classes { classes, most: CLASSES_MAX });
        }
        let features = match self.head() {
            Ok(at) => self.layers[at].inputs[0],
            Err(_) => self.output,
        };
        let mut model = self.up_to(features);
        model.rename_head();
        let features = model.pooled();
        let x = model.images[features as usize].clone();
        let channels = x.shape[2];
        let bound = 1.0 / f64::from(channels).sqrt();
        let w_scale = (bound / 127.0) as f32;
        let reach = x.quant.scale * f64::from((127 - x.quant.zero).max(x.quant.zero + 128));
        let y_scale = LOGIT_REACH.max(reach / 3f64.sqrt()) / 127.0;
        let scale = (x.quant.scale * f64::from(w_scale) / y_scale) as f32;
        let conv = Conv {
            name: HEAD.to_owned(),
            window: Window::POINT,
            multiplier: None,
            weight_shape: vec![classes, 1, 1, channels],
            weight: Source::Uniform { bound: 127.0 },
            bias: Source::Zero,
            w_scales: vec![w_scale; classes as usize],
            x_scale: x.quant.scale,
            scale: vec![scale; classes as usize],
            limits: Limits::ALL,
            dead: Vec::new(),
            is_trainable: true,
        };
        let quant = Quant { scale: y_scale, zero: 0 };
        let output = Image { name: format!("{HEAD}.y"), shape: [1, 1, classes], quant };
        model.output = model.push(LayerOp::Conv(Box::new(conv)), features, output);
        Ok(model)
    }

    /// The part of the network that an image depends on; the image is its result.
    fn up_to(&self, image: u32) -> Int8Model {
        let needed = self.needed(image);
        let mut model = self.clone();
        model.layers = self.layers.iter().zip(needed).filter(|(_, needed)| *needed).map(|(l, _)| l.clone()).collect();
        model.output = image;
        model
    }

    /// Frees the names that begin with `head` for a new head.
    fn rename_head(&mut self) {
        for layer in &mut self.layers {
            if let LayerOp::Conv(conv) = &mut layer.op
                && conv.name == HEAD
            {
                conv.name = "features".to_owned();
                layer.block = "features".to_owned();
            }
        }
        let taken = format!("{HEAD}.y");
        self.images.iter_mut().filter(|i| i.name == taken).for_each(|i| i.name = "features.y".to_owned());
    }

    /// The result as a vector of features: its mean over the image, where it is larger than 1 x 1.
    fn pooled(&mut self) -> u32 {
        let x = self.result().clone();
        let [h, w, c] = x.shape;
        if (h, w) == (1, 1) {
            return self.output;
        }
        let window = Window::whole(x.shape);
        let output = Image { name: "features.mean".to_owned(), shape: [1, 1, c], quant: x.quant };
        self.push(LayerOp::AvgPool { window, limits: Limits::ALL, is_away: false }, self.output, output)
    }

    fn push(&mut self, op: LayerOp, input: u32, output: Image) -> u32 {
        self.images.push(output);
        let output = self.images.len() as u32 - 1;
        self.layers.push(Layer { block: HEAD.to_owned(), op, inputs: vec![input], output });
        output
    }
}
