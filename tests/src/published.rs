//! The published networks as files in the form that `tinyforge` reads, with generated weights.

use crate::convnets::Row;
use crate::random::Random;
use std::fmt::Write;
use tinyforge_compiler::scheme::published::Published;

/// Step and zero point of an image.
type Quant = (f64, i32);

/// Pixels less 128: `-1..1`.
const PIXELS: Quant = (2.0 / 255.0, 0);
/// Behind a rectifier: `0..6`.
const RECTIFIED: Quant = (6.0 / 255.0, -128);
/// What ends a block, and sums of those.
const PLAIN: Quant = (0.06, 3);

/// The standard deviation of a weight's whole numbers, uniform within +-127.
const WEIGHT_STD: f64 = 73.3;

/// The two files of a network.
pub struct Files {
    /// The structure.
    pub json: String,
    /// The tensors, as safetensors.
    pub weights: Vec<u8>,
}

#[derive(Default)]
struct Writer {
    header: String,
    data: Vec<u8>,
}

impl Writer {
    /// Adds a tensor; gives its mention in the structure.
    fn tensor(&mut self, name: &str, (dtype, form): (&str, &str), shape: &[u32], bytes: &[u8]) -> String {
        let start = self.data.len();
        self.data.extend_from_slice(bytes);
        let comma = if self.header.is_empty() { "" } else { "," };
        let end = self.data.len();
        let _ = write!(
            self.header,
            "{comma}\"{name}\":{{\"dtype\":\"{form}\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}"
        );
        format!("{{\"tensor\":\"{name}\",\"dtype\":\"{dtype}\",\"shape\":{shape:?}}}")
    }

    /// A convolution. Its sums have a standard deviation of about `reach` where its input has one of `spread`.
    fn conv(&mut self, name: &str, row: &Row, [x, y]: [Quant; 2], [spread, reach]: [f64; 2]) -> String {
        let seed = name.bytes().fold(7u64, |seed, b| seed.wrapping_mul(31).wrapping_add(u64::from(b)));
        let mut random = Random::new(seed);
        let ([ins, outs], k) = (row.channels, row.kernel);
        let inputs = if row.is_depthwise { 1 } else { ins };
        let taps = inputs * k * k;
        let weight: Vec<u8> = (0..outs * taps).map(|_| (random.below(255) as i64 - 127) as i8 as u8).collect();
        let scales: Vec<f32> = (0..outs)
            .map(|_| (random.within(0.7, 1.3) * reach / (WEIGHT_STD * spread * f64::from(taps).sqrt())) as f32)
            .collect();
        let biases = scales.iter().map(|&s| (random.within(-0.3, 0.3) * reach / (x.0 * f64::from(s))) as i32);
        let biases: Vec<u8> = biases.flat_map(i32::to_le_bytes).collect();
        let scales: Vec<u8> = scales.into_iter().flat_map(f32::to_le_bytes).collect();
        let place = |part: &str| format!("{name}.params.{part}");
        let weight = self.tensor(&place("weight"), ("int8", "I8"), &[outs, inputs, k, k], &weight);
        let bias = self.tensor(&place("bias"), ("int32", "I32"), &[outs], &biases);
        let scales = self.tensor(&place("w_scales"), ("float32", "F32"), &[outs], &scales);
        format!(
            "{{\"in_channel\":{ins},\"in_shape\":{},\"out_channel\":{outs},\"out_shape\":{},\"kernel_size\":[{k},{k}],\
             \"stride\":{},\"groups\":{},\"depthwise\":{},\"act\":null,\
             \"params\":{{\"weight\":{weight},\"bias\":{bias},\
             \"w_scales\":{scales},\"x_scale\":{:?},\"x_zero\":{},\"y_scale\":{:?},\"y_zero\":{}}}}}",
            row.sides[0],
            row.sides[1],
            row.stride,
            if row.is_depthwise { ins } else { 1 },
            row.is_depthwise,
            x.0,
            x.1,
            y.0,
            y.1
        )
    }

    /// A block from its rows: an expanding convolution where there are three, a depthwise one, a projecting one.
    fn block(&mut self, index: usize, rows: &[Row]) -> String {
        let (plain, rectified) = (1.4, 1.05);
        let name = |part: &str| format!("blocks.{index}.{part}");
        let (expand, [depthwise, project]) = match rows {
            [expand, depthwise, project] => (Some(expand), [depthwise, project]),
            [depthwise, project] => (None, [depthwise, project]),
            _ => panic!("a block has two or three convolutions, not {}", rows.len()),
        };
        let expand = expand
            .map_or("null".to_string(), |row| self.conv(&name("pointwise1"), row, [PLAIN, RECTIFIED], [plain, 1.5]));
        let depthwise = self.conv(&name("depthwise"), depthwise, [RECTIFIED; 2], [rectified, 1.5]);
        let residual = match project.is_residual {
            true => format!(
                "{{\"in_channel\":{},\"in_shape\":{},\"params\":{{\"x_scale\":{:?},\"x_zero\":{},\"y_scale\":{:?},\
                 \"y_zero\":{}}}}}",
                rows[0].channels[0], rows[0].sides[0], PLAIN.0, PLAIN.1, PLAIN.0, PLAIN.1
            ),
            false => "null".to_string(),
        };
        let project = self.conv(&name("pointwise2"), project, [RECTIFIED, PLAIN], [rectified, plain]);
        format!(
            "{{\"pointwise1\":{expand},\"depthwise\":{depthwise},\"pointwise2\":{project},\"residual\":{residual},\
             \"se\":null}}"
        )
    }
}

/// The files of a network without a head, from its table.
pub fn files(rows: &[Row]) -> Files {
    let mut writer = Writer::default();
    let first = writer.conv("first_conv", &rows[0], [PIXELS, RECTIFIED], [0.5, 1.5]);
    let ends = |pair: &[Row]| pair[0].is_depthwise && !pair[1].is_depthwise;
    let (mut blocks, mut start) = (Vec::new(), 1);
    for at in 1..rows.len() {
        if ends(&rows[at - 1..=at]) {
            blocks.push(writer.block(blocks.len(), &rows[start..=at]));
            start = at + 1;
        }
    }
    let blocks = blocks.join(",");
    let json = format!("{{\"first_conv\":{first},\"blocks\":[{blocks}],\"feature_mix\":null,\"classifier\":null}}\n");
    let header = format!("{{{}}}", writer.header);
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header.bytes());
    weights.extend(writer.data);
    Files { json, weights }
}

/// A scheme as a file.
pub fn scheme(published: &Published) -> String {
    let mut text = format!("[update]\nkind = \"sparse\"\nbias_last = {}\n", published.bias_last);
    for (layer, ratio) in published.weights {
        let _ = write!(text, "\n[[update.weight]]\nlayer = {layer}\nratio = {ratio:?}\n");
    }
    text
}
