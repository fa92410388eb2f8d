//! Writes small TFLite files: FlatBuffers from a tree of tables, and models that use every operator that is read.
//! Shared with the seeds of the fuzzers.

/// What a table's field, or an element of a vector, is.
pub enum Node {
    /// Little-endian bytes of a number.
    Number(Vec<u8>),
    /// Fields by their numbers.
    Table(Vec<(u16, Node)>),
    /// Plain elements: their size and bytes.
    Plain(usize, Vec<u8>),
    /// Tables.
    Tables(Vec<Node>),
}

pub fn i8s(values: &[i8]) -> Node {
    Node::Plain(1, values.iter().map(|&v| v as u8).collect())
}

pub fn i32s(values: &[i32]) -> Node {
    Node::Plain(4, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn f32s(values: &[f32]) -> Node {
    Node::Plain(4, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn i64s(values: &[i64]) -> Node {
    Node::Plain(8, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn string(text: &str) -> Node {
    Node::Plain(1, text.as_bytes().to_vec())
}

fn byte(v: i8) -> Node {
    Node::Number(vec![v as u8])
}

fn int(v: i32) -> Node {
    Node::Number(v.to_le_bytes().to_vec())
}

fn float(v: f32) -> Node {
    Node::Number(v.to_le_bytes().to_vec())
}

fn align(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

fn patch(out: &mut [u8], at: usize, target: usize) {
    out[at..at + 4].copy_from_slice(&((target - at) as u32).to_le_bytes());
}

/// Appends a node that offsets lead to; returns where it begins.
fn write(node: &Node, out: &mut Vec<u8>) -> usize {
    match node {
        Node::Number(_) => unreachable!("numbers lie inside their table"),
        Node::Plain(size, bytes) => {
            // The elements, behind the four bytes of their count, are aligned to their size.
            while !(out.len() + 4).is_multiple_of((*size).max(4)) {
                out.push(0);
            }
            let at = out.len();
            out.extend(((bytes.len() / size) as u32).to_le_bytes());
            out.extend(bytes);
            out.push(0);
            at
        }
        Node::Tables(tables) => {
            align(out, 4);
            let at = out.len();
            out.extend((tables.len() as u32).to_le_bytes());
            out.resize(at + 4 + 4 * tables.len(), 0);
            for (i, table) in tables.iter().enumerate() {
                let target = write(table, out);
                patch(out, at + 4 + 4 * i, target);
            }
            at
        }
        Node::Table(fields) => write_table(fields, out),
    }
}

fn write_table(fields: &[(u16, Node)], out: &mut Vec<u8>) -> usize {
    let slots = fields.iter().map(|(id, _)| id + 1).max().unwrap_or(0);
    // Every field has eight bytes, so that each is aligned; the table begins four before them.
    let (list, object) = (4 + 2 * slots, 4 + 8 * fields.len() as u16);
    align(out, 8);
    let vtable = out.len();
    let mut offsets = vec![0u16; usize::from(slots)];
    fields.iter().enumerate().for_each(|(i, (id, _))| offsets[usize::from(*id)] = 4 + 8 * i as u16);
    out.extend([list, object].iter().chain(&offsets).flat_map(|v| v.to_le_bytes()));
    align(out, 8);
    out.extend([0; 4]);
    let at = out.len();
    out.extend(((at - vtable) as i32).to_le_bytes());
    out.resize(at + usize::from(object), 0);
    for (i, (_, node)) in fields.iter().enumerate() {
        let slot = at + 4 + 8 * i;
        match node {
            Node::Number(bytes) => out[slot..slot + bytes.len()].copy_from_slice(bytes),
            node => {
                let target = write(node, out);
                patch(out, slot, target);
            }
        }
    }
    at
}

/// A tensor of a model.
pub struct Tensor {
    pub shape: Vec<i32>,
    /// 0 f32, 2 i32, 3 u8, 9 i8.
    pub ty: i8,
    pub data: Option<Vec<u8>>,
    pub scales: Vec<f32>,
    pub zero: i64,
    pub quantized_dimension: i32,
}

/// Code, inputs (-1: absent), outputs, options.
pub type Operator = (i32, Vec<i32>, Vec<i32>, Vec<(u16, Node)>);

/// A model being written.
#[derive(Default)]
pub struct Model {
    pub tensors: Vec<Tensor>,
    pub operators: Vec<Operator>,
    pub inputs: Vec<i32>,
    pub outputs: Vec<i32>,
}

impl Model {
    /// An int8 image.
    pub fn image(&mut self, shape: &[i32], scale: f32, zero: i64) -> i32 {
        self.tensor(Tensor {
            shape: shape.to_vec(),
            ty: 9,
            data: None,
            scales: vec![scale],
            zero,
            quantized_dimension: 0,
        })
    }

    pub fn tensor(&mut self, tensor: Tensor) -> i32 {
        self.tensors.push(tensor);
        self.tensors.len() as i32 - 1
    }

    /// Constant int8 weights with a scale for every channel of `dim`, and their values from `seed`.
    pub fn weights(&mut self, shape: &[i32], dim: usize, seed: u32) -> i32 {
        let count = shape.iter().product::<i32>() as u32;
        let data = (0..count).map(|i| (mixed(seed * 1000 + i) % 255) as u8).map(|b| b.wrapping_sub(127)).collect();
        let scales = (0..shape[dim]).map(|o| 0.002 + 0.0007 * o as f32).collect();
        let shape = shape.to_vec();
        self.tensor(Tensor { shape, ty: 9, data: Some(data), scales, zero: 0, quantized_dimension: dim as i32 })
    }

    /// A constant list of i32.
    pub fn ints(&mut self, values: &[i32]) -> i32 {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = vec![values.len() as i32];
        self.tensor(Tensor { shape, ty: 2, data: Some(data), scales: Vec::new(), zero: 0, quantized_dimension: 0 })
    }

    /// Constant biases of the weights `w` on the image `x`, whose scales are theirs multiplied.
    pub fn biases(&mut self, x: i32, w: i32, values: &[i32]) -> i32 {
        let b = self.ints(values);
        let x = self.tensors[x as usize].scales[0];
        self.tensors[b as usize].scales = self.tensors[w as usize].scales.iter().map(|w| x * w).collect();
        b
    }

    pub fn operator(&mut self, code: i32, inputs: &[i32], output: i32, options: Vec<(u16, Node)>) {
        self.operators.push((code, inputs.to_vec(), vec![output], options));
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut codes: Vec<i32> = self.operators.iter().map(|op| op.0).collect();
        codes.sort_unstable();
        codes.dedup();
        let code = |&code: &i32| Node::Table(vec![(0, byte(code.min(127) as i8)), (2, int(1)), (3, int(code))]);
        // Buffer 0 is the empty one by convention.
        let mut buffers = vec![Node::Table(Vec::new())];
        let tensors = self.tensors.iter().enumerate().map(|(i, t)| {
            let buffer = t.data.as_ref().map_or(0, |data| {
                buffers.push(Node::Table(vec![(0, Node::Plain(1, data.clone()))]));
                buffers.len() as i32 - 1
            });
            let name = string(&format!("t{i}"));
            let mut fields = vec![(0, i32s(&t.shape)), (1, byte(t.ty)), (2, int(buffer)), (3, name)];
            if !t.scales.is_empty() {
                let zeros = i64s(&vec![t.zero; t.scales.len()]);
                let quant = vec![(2, f32s(&t.scales)), (3, zeros), (6, int(t.quantized_dimension))];
                fields.push((4, Node::Table(quant)));
            }
            Node::Table(fields)
        });
        let tensors = Node::Tables(tensors.collect());
        let operators = self.operators.iter().map(|(code, inputs, outputs, options)| {
            // `codes` holds every operator's code.
            let at = codes.binary_search(code).expect("a listed code") as i32;
            let mut fields = vec![(0, int(at)), (1, i32s(inputs)), (2, i32s(outputs))];
            if !options.is_empty() {
                fields.push((3, byte(options_type(*code))));
                fields.push((4, Node::Table(options.iter().map(|(id, node)| (*id, copy(node))).collect())));
            }
            Node::Table(fields)
        });
        let operators = Node::Tables(operators.collect());
        let (inputs, outputs) = (i32s(&self.inputs), i32s(&self.outputs));
        let graph = Node::Table(vec![(0, tensors), (1, inputs), (2, outputs), (3, operators), (4, string("main"))]);
        let codes = Node::Tables(codes.iter().map(code).collect());
        let root = [(0, int(3)), (1, codes), (2, Node::Tables(vec![graph])), (4, Node::Tables(buffers))];
        let mut out = b"\0\0\0\0TFL3".to_vec();
        let at = write_table(&root, &mut out);
        patch(&mut out, 0, at);
        out
    }
}

fn copy(node: &Node) -> Node {
    match node {
        Node::Number(bytes) => Node::Number(bytes.clone()),
        Node::Plain(size, bytes) => Node::Plain(*size, bytes.clone()),
        Node::Table(_) | Node::Tables(_) => unreachable!("options hold numbers and lists"),
    }
}

/// The schema's number of the table of an operator's options.
fn options_type(code: i32) -> i8 {
    match code {
        0 => 11,
        1 | 17 => 5,
        3 => 1,
        4 => 2,
        9 => 8,
        25 => 9,
        40 => 27,
        _ => 0,
    }
}

/// A mixing function for repeatable weights.
pub fn mixed(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

pub const SAME: i8 = 0;
pub const VALID: i8 = 1;
pub const NONE: i8 = 0;
pub const RELU: i8 = 1;
pub const RELU6: i8 = 3;

pub fn conv_options(padding: i8, stride: i32, activation: i8) -> Vec<(u16, Node)> {
    vec![(0, byte(padding)), (1, int(stride)), (2, int(stride)), (3, byte(activation))]
}

pub fn depthwise_options(padding: i8, stride: i32, multiplier: i32, activation: i8) -> Vec<(u16, Node)> {
    vec![(0, byte(padding)), (1, int(stride)), (2, int(stride)), (3, int(multiplier)), (4, byte(activation))]
}

pub fn pool_options(padding: i8, stride: i32, size: i32) -> Vec<(u16, Node)> {
    vec![(0, byte(padding)), (1, int(stride)), (2, int(stride)), (3, int(size)), (4, int(size))]
}

pub fn activation_options(activation: i8) -> Vec<(u16, Node)> {
    vec![(0, byte(activation))]
}

/// A network of one fully connected layer: the smallest that trains.
pub fn small() -> Model {
    let mut m = Model::default();
    let x = m.image(&[1, 4], 0.05, 3);
    let y = m.image(&[1, 3], 0.1, -5);
    let p = m.image(&[1, 3], 1.0 / 256.0, -128);
    let w = m.weights(&[3, 4], 0, 1);
    let b = m.biases(x, w, &[100, -200, 300]);
    m.operator(9, &[x, w, b], y, activation_options(NONE));
    m.operator(25, &[y], p, vec![(0, float(1.0))]);
    (m.inputs, m.outputs) = (vec![x], vec![p]);
    m
}

/// A network of every operator that is read, on an image of 12 x 10 x 2.
pub fn everything() -> Model {
    let mut m = Model::default();
    let x = m.image(&[1, 12, 10, 2], 0.02, -7);
    let a = m.image(&[1, 6, 5, 4], 0.03, -128);
    let w = m.weights(&[4, 3, 3, 2], 0, 1);
    let b = m.biases(x, w, &[40, -90, 500, 7]);
    m.operator(3, &[x, w, b], a, conv_options(SAME, 2, RELU6));
    let d = m.image(&[1, 6, 5, 8], 0.06, -11);
    let w = m.weights(&[1, 3, 3, 8], 3, 2);
    let b = m.biases(a, w, &[0, 10, -10, 20, 30, 5, 6, -70]);
    m.operator(4, &[a, w, b], d, depthwise_options(SAME, 1, 2, NONE));
    let padded = m.image(&[1, 8, 6, 8], 0.06, -11);
    let pads = m.ints(&[0, 0, 1, 1, 0, 1, 0, 0]);
    m.tensors[pads as usize].shape = vec![4, 2];
    m.operator(34, &[d, pads], padded, Vec::new());
    let c = m.image(&[1, 6, 5, 8], 0.15, 4);
    let w = m.weights(&[8, 3, 2, 8], 0, 3);
    let b = m.biases(d, w, &[9, 8, 7, 6, 5, -4, -3, -2]);
    m.operator(3, &[padded, w, b], c, conv_options(VALID, 1, NONE));
    let sum = m.image(&[1, 6, 5, 8], 0.16, -100);
    m.operator(0, &[d, c], sum, activation_options(RELU));
    let most = m.image(&[1, 3, 3, 8], 0.16, -100);
    m.operator(17, &[sum], most, pool_options(SAME, 2, 2));
    let mean = m.image(&[1, 3, 3, 8], 0.16, -100);
    m.operator(1, &[most], mean, pool_options(SAME, 1, 3));
    let other = m.image(&[1, 3, 3, 8], 0.12, -90);
    m.operator(114, &[mean], other, Vec::new());
    let positive = m.image(&[1, 3, 3, 8], 0.1, -128);
    m.operator(19, &[other], positive, Vec::new());
    let features = m.image(&[1, 8], 0.04, -128);
    let axes = m.ints(&[1, 2]);
    m.operator(40, &[positive, axes], features, vec![(0, byte(0))]);
    let y = m.image(&[1, 5], 0.05, 20);
    let w = m.weights(&[5, 8], 0, 4);
    let b = m.biases(features, w, &[1, -2, 3, -4, 5]);
    m.operator(9, &[features, w, b], y, activation_options(NONE));
    let shaped = m.image(&[1, 1, 1, 5], 0.05, 20);
    let shape = m.ints(&[1, 1, 1, 5]);
    m.operator(22, &[y, shape], shaped, Vec::new());
    let p = m.image(&[1, 1, 1, 5], 1.0 / 256.0, -128);
    m.operator(25, &[shaped], p, vec![(0, float(1.0))]);
    (m.inputs, m.outputs) = (vec![x], vec![p]);
    m
}

/// A network with the parts that LiteRT's kernels round in ways of their own: a residual sum, an average pool over an
/// even count, a mean whose zero point is odd, a change of scale. Its scales, like those of calibrated models, give no
/// ties in sums.
pub fn residual() -> Model {
    let mut m = Model::default();
    let x = m.image(&[1, 11, 8, 3], 0.020317, -7);
    let a = m.image(&[1, 11, 8, 8], 0.031733, -128);
    let w = m.weights(&[8, 3, 3, 3], 0, 11);
    let b = m.biases(x, w, &[400, -900, 1500, 77, 0, 3, -2000, 950]);
    m.operator(3, &[x, w, b], a, conv_options(SAME, 1, RELU));
    let d = m.image(&[1, 6, 4, 8], 0.061719, -11);
    let w = m.weights(&[1, 3, 3, 8], 3, 12);
    let b = m.biases(a, w, &[0, 100, -10, 200, 30, 500, 6, -700]);
    m.operator(4, &[a, w, b], d, depthwise_options(SAME, 2, 1, NONE));
    let c = m.image(&[1, 6, 4, 8], 0.152941, 5);
    let w = m.weights(&[8, 1, 1, 8], 0, 13);
    let b = m.biases(a, w, &[900, 800, 700, 60, 50, -4, -300, -2]);
    m.operator(3, &[a, w, b], c, conv_options(SAME, 2, NONE));
    let sum = m.image(&[1, 6, 4, 8], 0.160791, -37);
    m.operator(0, &[d, c], sum, activation_options(NONE));
    let means = m.image(&[1, 3, 2, 8], 0.160791, -37);
    m.operator(1, &[sum], means, pool_options(VALID, 2, 2));
    let other = m.image(&[1, 3, 2, 8], 0.117351, -91);
    m.operator(114, &[means], other, Vec::new());
    let features = m.image(&[1, 8], 0.117351, -91);
    let axes = m.ints(&[1, 2]);
    m.operator(40, &[other, axes], features, vec![(0, byte(0))]);
    let y = m.image(&[1, 6], 0.051927, 19);
    let w = m.weights(&[6, 8], 0, 14);
    let b = m.biases(features, w, &[1, -2, 300, -4, 5, 60]);
    m.operator(9, &[features, w, b], y, activation_options(NONE));
    let p = m.image(&[1, 6], 1.0 / 256.0, -128);
    m.operator(25, &[y], p, vec![(0, float(1.0))]);
    (m.inputs, m.outputs) = (vec![x], vec![p]);
    m
}

/// A network of numbers on ties: a change of scale by 1/2, sums of equal and of doubled scales, average pools over the
/// border and of more than 256 elements, means over even areas that are no squares.
pub fn ties() -> Model {
    let mut m = Model::default();
    let x = m.image(&[1, 20, 18, 4], 0.05, 3);
    let half = m.image(&[1, 20, 18, 4], 0.1, -7);
    m.operator(114, &[x], half, Vec::new());
    let sum = m.image(&[1, 20, 18, 4], 0.1, 5);
    m.operator(0, &[x, half], sum, activation_options(NONE));
    let near = m.image(&[1, 10, 9, 4], 0.1, 5);
    m.operator(1, &[sum], near, pool_options(SAME, 2, 3));
    let far = m.image(&[1, 3, 1, 4], 0.1, 5);
    m.operator(1, &[sum], far, pool_options(VALID, 1, 18));
    let axes = m.ints(&[1, 2]);
    let (a, b) = (m.image(&[1, 4], 0.01, 11), m.image(&[1, 4], 0.01, -40));
    m.operator(40, &[near, axes], a, vec![(0, byte(0))]);
    m.operator(40, &[far, axes], b, vec![(0, byte(0))]);
    let features = m.image(&[1, 4], 0.02, -1);
    m.operator(0, &[a, b], features, activation_options(RELU6));
    let y = m.image(&[1, 5], 0.02, 20);
    let w = m.weights(&[5, 4], 0, 21);
    let b = m.biases(features, w, &[1, -2, 3, -4, 5]);
    m.operator(9, &[features, w, b], y, activation_options(NONE));
    let p = m.image(&[1, 5], 1.0 / 256.0, -128);
    m.operator(25, &[y], p, vec![(0, float(1.0))]);
    (m.inputs, m.outputs) = (vec![x], vec![p]);
    m
}

/// [`small`] between floats: QUANTIZE before it, DEQUANTIZE behind.
pub fn between_floats() -> Model {
    let mut m = small();
    let float = |shape: &[i32]| Tensor {
        shape: shape.to_vec(),
        ty: 0,
        data: None,
        scales: Vec::new(),
        zero: 0,
        quantized_dimension: 0,
    };
    let (given, wanted) = (m.tensor(float(&[1, 4])), m.tensor(float(&[1, 3])));
    let (x, p) = (m.inputs[0], m.outputs[0]);
    m.operators.insert(0, (114, vec![given], vec![x], Vec::new()));
    m.operator(6, &[p], wanted, Vec::new());
    (m.inputs, m.outputs) = (vec![given], vec![wanted]);
    m
}
