//! `config.json` and `generation_config.json` of any bytes.
#![no_main]

use kimi_core::config::ModelConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    match ModelConfig::from_json(input) {
        Ok(config) => {
            // What was accepted can be computed with.
            let _ = (config.router_shape(), config.qk_head_dim(), config.cache_width());
            let _ = kimi_core::plan::cache_bytes(&config, 1 << 20);
            let _ = (0..config.num_hidden_layers.min(1000)).filter(|l| config.is_moe(*l)).count();
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
