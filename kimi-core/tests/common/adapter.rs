//! The device of tests that need one.

use std::sync::Arc;

use kimi_quant::Gpu;
use kimi_quant::gpu::GpuOptions;

/// Whatever adapter there is; `None`, with a message, without one, unless `KIMI_REQUIRE_GPU` is set.
pub(crate) fn gpu() -> Option<Arc<Gpu>> {
    match Gpu::new(&GpuOptions::default()) {
        Ok(gpu) => Some(Arc::new(gpu)),
        Err(e) if std::env::var_os("KIMI_REQUIRE_GPU").is_none() => {
            println!("skipped: no adapter ({e})");
            None
        }
        Err(e) => panic!("{e}"),
    }
}
