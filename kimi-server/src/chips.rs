//! What is published of chips, for predictions of machines that nobody has measured.

use kimi_core::plan::predict::{Rate, RateSource};

/// Name, memory bandwidth in GB/s and peak f32 TFLOP/s, as their makers publish them; of variants with one name the slower.
/// Apple publishes no arithmetic rate since the M3: that of the M3 Ultra is 80 cores x 128 lanes x 2 x 1.4 GHz, others are left
/// out.
const CHIPS: [(&str, f64, Option<f64>); 29] = [
    ("Apple M1", 68.0, Some(2.6)),
    ("Apple M1 Pro", 200.0, Some(5.2)),
    ("Apple M1 Max", 400.0, Some(10.4)),
    ("Apple M1 Ultra", 800.0, Some(21.0)),
    ("Apple M2", 100.0, Some(3.6)),
    ("Apple M2 Pro", 200.0, None),
    ("Apple M2 Max", 400.0, Some(13.6)),
    ("Apple M2 Ultra", 800.0, Some(27.2)),
    ("Apple M3", 100.0, None),
    ("Apple M3 Pro", 150.0, None),
    ("Apple M3 Max", 300.0, None),
    ("Apple M3 Ultra", 819.0, Some(28.7)),
    ("Apple M4", 120.0, None),
    ("Apple M4 Pro", 273.0, None),
    ("Apple M4 Max", 410.0, None),
    ("Apple M5", 153.0, None),
    ("Apple M5 Pro", 307.0, None),
    ("Apple M5 Max", 460.0, None),
    ("H100 PCIe", 2000.0, Some(51.0)),
    ("H100 NVL", 3900.0, Some(60.0)),
    ("H100 80GB HBM3", 3350.0, Some(67.0)),
    ("H200", 4800.0, Some(67.0)),
    ("A100-SXM4-40GB", 1555.0, Some(19.5)),
    ("A100-PCIE-40GB", 1555.0, Some(19.5)),
    ("A100-SXM4-80GB", 2039.0, Some(19.5)),
    ("A100 80GB PCIe", 1935.0, Some(19.5)),
    ("RTX 3090", 936.0, Some(35.6)),
    ("RTX 4090", 1008.0, Some(82.6)),
    ("RTX 5090", 1792.0, Some(104.8)),
];

/// The rate of the chip that a name of a device has in it: the longest such name.
pub fn rate_of(device: &str) -> Option<Rate> {
    let device = device.to_lowercase();
    let stands_in = |name: &str| {
        let name = name.to_lowercase();
        let after = device.find(&name).map(|at| &device[at + name.len()..]);
        after.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
    };
    let found = CHIPS.iter().filter(|(name, ..)| stands_in(name)).max_by_key(|(name, ..)| name.len());
    found.map(|(name, gigabytes, teraflops)| Rate {
        bytes_per_second: gigabytes * 1e9,
        flops: teraflops.map(|n| n * 1e12),
        source: RateSource::Chip((*name).to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chips_are_known_by_the_names_that_devices_have() {
        let found = |device: &str| {
            rate_of(device).map(|rate| match rate.source {
                RateSource::Chip(name) => (name, rate.bytes_per_second / 1e9),
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(found("Apple M3 Ultra"), Some(("Apple M3 Ultra".to_owned(), 819.0)));
        assert_eq!(found("apple m2 (Metal)"), Some(("Apple M2".to_owned(), 100.0)));
        assert_eq!(found("NVIDIA H100 80GB HBM3 (Vulkan)"), Some(("H100 80GB HBM3".to_owned(), 3350.0)));
        for unknown in ["", "cpu (AVX-512 VNNI, 2 threads)", "Apple M22", "NVIDIA H100", "Unknown Chip"] {
            assert_eq!(found(unknown), None, "{unknown}");
        }
    }
}
