//! `config.json` and `generation_config.json`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tinyforge_compiler::import::weight_map::bind_hf;
use tinyforge_compiler::import::{Catalog, hf};
use tinyforge_plan::DType;

fuzz_target!(|data: &[u8]| {
    let mut config = match hf::config(data) {
        Ok(config) => config,
        Err(error) => {
            assert!(error.to_string().len() < 10_000 + 4 * data.len());
            return;
        }
    };
    config.check().expect("an importer returns what checks");
    if let Some(rope) = &config.rope {
        assert!(rope.inv_freq.iter().all(|x| x.is_finite() && *x > 0.0));
    }
    let written = hf::config_json(&config, DType::F32).expect("what was read can be written");
    assert_eq!(hf::config(written.as_bytes()).as_ref(), Ok(&config), "{written}");
    if config.layers <= 64 {
        let params = config.params();
        let error = bind_hf(&mut config, &Catalog::new()).expect_err("nothing is there");
        assert_eq!(error.missing.len() + usize::from(config.tied && params.len() > error.missing.len()), params.len());
    }
    let _ = hf::apply_generation_config(&mut config, data);
});
