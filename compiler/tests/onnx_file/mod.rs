//! Writes small ONNX files: as much of the format as the tests need.

/// A message being written.
#[derive(Clone, Default)]
pub struct Message(pub Vec<u8>);

impl Message {
    fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.0.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.0.push(v as u8);
    }

    pub fn int(mut self, field: u64, v: i64) -> Message {
        self.varint(field << 3);
        self.varint(v as u64);
        self
    }

    pub fn float(mut self, field: u64, v: f32) -> Message {
        self.varint(field << 3 | 5);
        self.0.extend(v.to_le_bytes());
        self
    }

    pub fn bytes(mut self, field: u64, bytes: &[u8]) -> Message {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    pub fn text(self, field: u64, text: &str) -> Message {
        self.bytes(field, text.as_bytes())
    }

    pub fn message(self, field: u64, message: Message) -> Message {
        self.bytes(field, &message.0)
    }

    pub fn all(self, field: u64, messages: Vec<Message>) -> Message {
        messages.into_iter().fold(self, |all, m| all.message(field, m))
    }
}

/// An attribute of one number.
pub fn int(name: &str, v: i64) -> Message {
    Message::default().text(1, name).int(3, v).int(20, 2)
}

pub fn float(name: &str, v: f32) -> Message {
    Message::default().text(1, name).float(2, v).int(20, 1)
}

pub fn text(name: &str, v: &str) -> Message {
    Message::default().text(1, name).text(4, v).int(20, 3)
}

/// An attribute of several numbers, each in a field of its own, as writers do.
pub fn ints(name: &str, v: &[i64]) -> Message {
    v.iter().fold(Message::default().text(1, name), |m, &v| m.int(8, v)).int(20, 7)
}

/// A node: operator, operands, results, attributes.
pub fn node(op: &str, inputs: &[&str], outputs: &[&str], attrs: Vec<Message>) -> Message {
    let m = inputs.iter().fold(Message::default(), |m, name| m.text(1, name));
    let m = outputs.iter().fold(m, |m, name| m.text(2, name));
    m.text(3, &format!("the_{}", outputs.first().unwrap_or(&""))).text(4, op).all(5, attrs)
}

fn dims(dims: &[i64]) -> Message {
    dims.iter().fold(Message::default(), |m, &d| m.int(1, d))
}

/// A constant with its elements as raw bytes.
pub fn raw(name: &str, shape: &[i64], values: &[f32]) -> Message {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    dims(shape).int(2, 1).text(8, name).bytes(9, &bytes)
}

/// A constant with its elements as one packed field.
pub fn packed(name: &str, shape: &[i64], values: &[f32]) -> Message {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    dims(shape).int(2, 1).bytes(4, &bytes).text(8, name)
}

/// A constant with a field for every element.
pub fn spread(name: &str, shape: &[i64], values: &[f32]) -> Message {
    values.iter().fold(dims(shape).int(2, 1).text(8, name), |m, &v| m.float(4, v))
}

/// A constant of whole numbers.
pub fn whole(name: &str, values: &[i64]) -> Message {
    values.iter().fold(dims(&[values.len() as i64]).int(2, 7).text(8, name), |m, &v| m.int(7, v))
}

/// A constant in another file.
pub fn external(name: &str, shape: &[i64], location: &str, offset: &str) -> Message {
    let entry = |key: &str, value: &str| Message::default().text(1, key).text(2, value);
    dims(shape)
        .int(2, 1)
        .text(8, name)
        .message(13, entry("location", location))
        .message(13, entry("offset", offset))
        .int(14, 1)
}

/// An input of this name; `None` is a dimension with a name instead of a number.
pub fn input(name: &str, shape: &[Option<i64>]) -> Message {
    let dim = |d: &Option<i64>| match d {
        Some(d) => Message::default().int(1, *d),
        None => Message::default().text(2, "N"),
    };
    let shape = Message::default().all(1, shape.iter().map(dim).collect());
    let ty = Message::default().message(1, Message::default().int(1, 1).message(2, shape));
    Message::default().text(1, name).message(2, ty)
}

/// A file: input, nodes, constants, the result's name.
pub struct File {
    pub input: Message,
    pub nodes: Vec<Message>,
    pub constants: Vec<Message>,
    pub output: &'static str,
}

impl File {
    pub fn bytes(&self) -> Vec<u8> {
        let graph = Message::default()
            .all(1, self.nodes.clone())
            .all(5, self.constants.clone())
            .message(11, self.input.clone())
            .message(12, Message::default().text(1, self.output));
        let opset = Message::default().text(1, "").int(2, 13);
        Message::default().int(1, 8).text(2, "tests").message(7, graph).message(8, opset).0
    }
}

/// Numbers between -1 and 1 that depend on `seed`.
pub fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mix = |i: u32| {
        let x = (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
        (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35) >> 8
    };
    (0..count as u32).map(|i| mix(i + 1) as f32 / (1u32 << 23) as f32 - 1.0).collect()
}

/// Images of 8 x 6 x 2 to 3 logits: a convolution with batch norm and ReLU6, a depthwise one, a sum, a flattened
/// image, a linear layer and a softmax; constants of every form.
pub fn small() -> File {
    let one = |at: &[f32]| at.iter().map(|x| 1.0 + x / 4.0).collect::<Vec<f32>>();
    let nodes = vec![
        node("Conv", &["x", "w0"], &["c0"], vec![ints("pads", &[1, 1, 1, 1]), ints("strides", &[2, 1])]),
        node("BatchNormalization", &["c0", "g", "b", "m", "v"], &["n0"], vec![float("epsilon", 1e-3)]),
        node("Clip", &["n0", "zero", "six"], &["r0"], vec![]),
        node("Conv", &["r0", "w1", "b1"], &["c1"], vec![int("group", 4), text("auto_pad", "SAME_UPPER")]),
        node("Relu", &["c1"], &["r1"], vec![]),
        node("Add", &["r0", "r1"], &["s"], vec![]),
        node("MaxPool", &["s"], &["p"], vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])]),
        node("Reshape", &["p", "shape"], &["f"], vec![]),
        node("Gemm", &["f", "w2", "b2"], &["l"], vec![int("transB", 1)]),
        node("Softmax", &["l"], &["y"], vec![int("axis", 1)]),
    ];
    let constants = vec![
        raw("w0", &[4, 2, 3, 3], &numbers(1, 72)),
        packed("g", &[4], &one(&numbers(2, 4))),
        spread("b", &[4], &numbers(3, 4)),
        raw("m", &[4], &numbers(4, 4)),
        raw("v", &[4], &one(&numbers(5, 4))),
        raw("zero", &[], &[0.0]),
        packed("six", &[], &[6.0]),
        raw("w1", &[4, 1, 3, 3], &numbers(6, 36)),
        spread("b1", &[4], &numbers(7, 4)),
        whole("shape", &[0, -1]),
        raw("w2", &[3, 24], &numbers(8, 72)),
        raw("b2", &[3], &numbers(9, 3)),
    ];
    File { input: input("x", &[None, Some(2), Some(8), Some(6)]), nodes, constants, output: "y" }
}
