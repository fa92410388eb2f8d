//! Writes a small network of the published backbones' form. Shared with the seeds of the fuzzers and with the tests
//! that run it.

use std::collections::BTreeMap;

use tinyforge_compiler::import::safetensors;
use tinyforge_compiler::import::source::NewTensor;
use tinyforge_plan::DType;

/// Name, shape and bytes of a tensor.
type Tensor = (String, DType, Vec<u64>, Vec<u8>);

fn conv(name: &str, shape: [u64; 4], groups: u64, sides: &str, tensors: &mut Vec<Tensor>) -> String {
    let named = |part: &str| format!("{name}.{part}");
    let [o, i, k, _] = shape;
    let weights = (0..o * i * k * k).map(|n| ((n * 37 + o) % 200) as u8).map(|b| b.wrapping_sub(100)).collect();
    let biases = (0..o as i32).flat_map(|n| (n * 90 - 100).to_le_bytes()).collect();
    let scales = (0..o).flat_map(|n| (0.01 + 0.001 * n as f32).to_le_bytes()).collect();
    tensors.push((named("weight"), DType::I8, shape.to_vec(), weights));
    tensors.push((named("bias"), DType::I32, vec![o], biases));
    tensors.push((named("w_scales"), DType::F32, vec![o], scales));
    let reads = i * groups;
    format!(
        r#"{{"in_channel":{reads},"out_channel":{o},{sides}"kernel_size":[{k},{k}],"stride":1,"groups":{groups},"params":{{"weight":{{"tensor":"{name}.weight","dtype":"int8","shape":{shape:?}}},"bias":{{"tensor":"{name}.bias","dtype":"int32","shape":[{o}]}},"w_scales":{{"tensor":"{name}.w_scales","dtype":"float32","shape":[{o}]}},"x_scale":0.1,"x_zero":0,"y_scale":0.1,"y_zero":0}}}}"#
    )
}

/// Structure and weights: a first convolution, a block of one depthwise convolution with a sum, a classifier.
pub fn tiny() -> (String, Vec<u8>) {
    let (mut tensors, sides) = (Vec::new(), r#""in_shape":6,"out_shape":6,"#);
    let first = conv("a", [4, 3, 3, 3], 1, sides, &mut tensors);
    let depthwise = conv("b", [4, 1, 5, 5], 4, sides, &mut tensors);
    let classifier = conv("c", [3, 4, 1, 1], 1, "", &mut tensors);
    let residual = r#"{"in_channel":4,"in_shape":6,"params":{"x_scale":0.1,"x_zero":0,"y_scale":0.15,"y_zero":0}}"#;
    let classifier = classifier.replacen("\"x_scale\":0.1", "\"x_scale\":0.15", 1);
    let json = format!(
        r#"{{"first_conv":{first},"blocks":[{{"depthwise":{depthwise},"residual":{residual}}}],"feature_mix":null,"classifier":{classifier}}}"#
    );
    let new: Vec<NewTensor> = tensors.iter().map(|t| NewTensor::new(t.0.as_str(), t.1, &t.2)).collect();
    let layout = safetensors::layout(&new, &BTreeMap::new()).expect("a valid layout");
    let mut file = layout.header.clone();
    file.resize(layout.file_bytes as usize, 0);
    for (name, _, _, bytes) in &tensors {
        let at = layout.get(name).expect("laid out").offset as usize;
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    (json, file)
}
