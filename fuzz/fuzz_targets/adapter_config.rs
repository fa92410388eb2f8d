//! `adapter_config.json` and the names of an adapter's tensors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tinyforge_compiler::import::peft::{AdapterConfig, parse_tensor_name, tensor_name};

fuzz_target!(|data: &[u8]| {
    if let Ok(name) = std::str::from_utf8(data)
        && let Some((module, side)) = parse_tensor_name(name)
    {
        assert_eq!(parse_tensor_name(&tensor_name(module, side)), Some((module, side)));
    }
    if let Ok(config) = AdapterConfig::parse(data) {
        assert_eq!(AdapterConfig::parse(config.to_json().as_bytes()).as_ref(), Ok(&config));
        assert!(config.scale("model.layers.0.self_attn.q_proj").is_finite());
    }
});
