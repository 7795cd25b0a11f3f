//! What is published of chips, as rates for predictions of machines that nobody has measured.

use kimi_core::plan::predict::{Rate, RateSource};
use kimi_quant::Chip;

/// The rate of the chip that a name of a device has in it.
pub fn rate_of(device: &str) -> Option<Rate> {
    Chip::of_device(device).map(|chip| Rate {
        bytes_per_second: f64::from(chip.gigabytes) * 1e9,
        flops: chip.gigaflops.map(|n| f64::from(n) * 1e9),
        source: RateSource::Chip(chip.name.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chip_has_its_published_rate() {
        let rate = rate_of("Apple M2 Ultra (Metal)").unwrap();
        assert_eq!((rate.bytes_per_second, rate.flops), (800e9, Some(27.2e12)));
        assert!(matches!(rate.source, RateSource::Chip(name) if name == "Apple M2 Ultra"));
        assert!(rate_of("Apple M22").is_none());
    }
}
