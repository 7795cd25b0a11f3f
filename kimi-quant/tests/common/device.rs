//! The GPU that tests run on, and free buffers of it.

use std::sync::OnceLock;

use bytes::Bytes;
use kimi_quant::gpu::GpuOptions;
use kimi_quant::{Backend, FloatType, Format, Gpu, PackedMatrix};

/// The device with subgroups, if it has them.
pub fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| open(GpuOptions::default())).as_ref()
}

/// `None` (with a line on stdout) where there is no adapter, unless `KIMI_REQUIRE_GPU` is set.
pub fn open(options: GpuOptions) -> Option<Gpu> {
    match Gpu::new(&options) {
        Ok(gpu) => Some(gpu),
        Err(e) if std::env::var_os("KIMI_REQUIRE_GPU").is_none() => {
            println!("skipped: no adapter ({e})");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// Fills free buffers of these sizes with a sentinel, so that a value that is not written shows: results of the device
/// get what the last results of their size gave back.
pub fn spoil(gpu: &Gpu, sizes: &[usize]) {
    for &size in sizes {
        let sentinel: Vec<u8> = (0..size.max(1)).flat_map(|_| 1e30f32.to_le_bytes()).collect();
        let float = Format::Float(FloatType::F32);
        let row =
            PackedMatrix::new(1, size.max(1), float, sentinel.into(), Bytes::new(), Bytes::new()).unwrap();
        let table = gpu.load_matrix(row).unwrap();
        let all: Vec<_> = (0..4).map(|_| gpu.embed(&table, &[0]).unwrap()).collect();
        drop(all);
        gpu.wait().unwrap();
    }
}
