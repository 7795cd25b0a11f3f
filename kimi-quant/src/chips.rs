//! What is published of chips: what kernels' sizes follow from, and predictions for machines that nobody has measured.

/// A chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chip {
    /// As drivers call it; devices may say more before and after it.
    pub name: &'static str,
    /// Gigabytes a second of its memory; of variants with one name the slower.
    pub gigabytes: u32,
    /// Its peak in f32, in GFLOP/s. Apple publishes none since the M3: that of the M3 Ultra is 80 cores x 128 lanes x 2 x
    /// 1.4 GHz, others are left out.
    pub gigaflops: Option<u32>,
    /// Cores of its GPU (multiprocessors, on NVIDIA's); of variants with one name the most.
    pub cores: u32,
}

const fn chip(name: &'static str, gigabytes: u32, gigaflops: Option<u32>, cores: u32) -> Chip {
    Chip { name, gigabytes, gigaflops, cores }
}

const CHIPS: [Chip; 29] = [
    chip("Apple M1", 68, Some(2_600), 8),
    chip("Apple M1 Pro", 200, Some(5_200), 16),
    chip("Apple M1 Max", 400, Some(10_400), 32),
    chip("Apple M1 Ultra", 800, Some(21_000), 64),
    chip("Apple M2", 100, Some(3_600), 10),
    chip("Apple M2 Pro", 200, None, 19),
    chip("Apple M2 Max", 400, Some(13_600), 38),
    chip("Apple M2 Ultra", 800, Some(27_200), 76),
    chip("Apple M3", 100, None, 10),
    chip("Apple M3 Pro", 150, None, 18),
    chip("Apple M3 Max", 300, None, 40),
    chip("Apple M3 Ultra", 819, Some(28_700), 80),
    chip("Apple M4", 120, None, 10),
    chip("Apple M4 Pro", 273, None, 20),
    chip("Apple M4 Max", 410, None, 40),
    chip("Apple M5", 153, None, 10),
    chip("Apple M5 Pro", 307, None, 20),
    chip("Apple M5 Max", 460, None, 40),
    chip("H100 PCIe", 2_000, Some(51_000), 114),
    chip("H100 NVL", 3_900, Some(60_000), 132),
    chip("H100 80GB HBM3", 3_350, Some(67_000), 132),
    chip("H200", 4_800, Some(67_000), 132),
    chip("A100-SXM4-40GB", 1_555, Some(19_500), 108),
    chip("A100-PCIE-40GB", 1_555, Some(19_500), 108),
    chip("A100-SXM4-80GB", 2_039, Some(19_500), 108),
    chip("A100 80GB PCIe", 1_935, Some(19_500), 108),
    chip("RTX 3090", 936, Some(35_600), 82),
    chip("RTX 4090", 1_008, Some(82_600), 128),
    chip("RTX 5090", 1_792, Some(104_800), 170),
];

const APPLE: &str = "Apple ";

impl Chip {
    /// The short name of the one of Apple's that is taken where none is named: of the largest Mac.
    pub const DEFAULT_APPLE: &'static str = "M3 Ultra";

    /// The chip that a name of a device has in it: the longest such name, in any case.
    pub fn of_device(device: &str) -> Option<&'static Self> {
        let device = device.to_lowercase();
        let stands_in = |name: &str| {
            let name = name.to_lowercase();
            let after = device.find(&name).map(|at| &device[at + name.len()..]);
            after.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
        };
        CHIPS.iter().filter(|chip| stands_in(chip.name)).max_by_key(|chip| chip.name.len())
    }

    /// Apple's chip of this name, with or without `Apple` before it, in any case.
    ///
    /// # Errors
    /// A sentence with all of the names.
    pub fn of_apple(name: &str) -> Result<&'static Self, String> {
        let apple = || CHIPS.iter().filter(|chip| chip.name.starts_with(APPLE));
        let wanted = name.trim();
        let is_wanted = |chip: &&Self| {
            [chip.name, chip.short_name()].iter().any(|known| known.eq_ignore_ascii_case(wanted))
        };
        apple().find(is_wanted).ok_or_else(|| {
            let names: Vec<_> = apple().map(Self::short_name).collect();
            format!("found {name:?}, expected a chip of Apple's: {}", names.join(", "))
        })
    }

    /// Its name without its maker's.
    pub fn short_name(&self) -> &'static str {
        self.name.strip_prefix(APPLE).unwrap_or(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chips_are_known_by_the_names_that_devices_have() {
        let found =
            |device: &str| Chip::of_device(device).map(|chip| (chip.name, chip.gigabytes, chip.cores));
        assert_eq!(found("Apple M3 Ultra"), Some(("Apple M3 Ultra", 819, 80)));
        assert_eq!(found("apple m2 (Metal)"), Some(("Apple M2", 100, 10)));
        assert_eq!(found("NVIDIA H100 80GB HBM3 (Vulkan)"), Some(("H100 80GB HBM3", 3350, 132)));
        for unknown in ["", "cpu (AVX-512 VNNI, 2 threads)", "Apple M22", "NVIDIA H100", "Unknown Chip"] {
            assert_eq!(found(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn apples_chips_are_named_with_or_without_apple() {
        for name in ["M3 Ultra", "apple m3 ultra", " m3 ultra "] {
            assert_eq!(Chip::of_apple(name).map(|chip| chip.name), Ok("Apple M3 Ultra"), "{name}");
        }
        let wrong = Chip::of_apple("H200").unwrap_err();
        assert!(wrong.starts_with("found \"H200\", expected a chip of Apple's: M1, M1 Pro, "), "{wrong}");
        assert!(wrong.ends_with(", M5 Max"), "{wrong}");
    }
}
