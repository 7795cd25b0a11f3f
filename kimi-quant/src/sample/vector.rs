//! The passes over a whole vocabulary, in a form that compilers make vectors of: one for each instruction set that a machine
//! may have beyond its baseline.

/// Values that are looked at together.
const LANES: usize = 16;

/// What one pass over logits tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Survey {
    /// The largest; minus infinity if there is none. NaNs are passed over.
    pub(crate) max: f32,
    /// Whether all are finite.
    pub(crate) finite: bool,
}

/// Looks for the largest value and for what is not finite.
pub(crate) fn survey(values: &[f32]) -> Survey {
    // Compilers make vectors of this for the baseline of every machine, and memory bounds it.
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut magnitude = [0u32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut look = |lane: usize, value: f32| {
        max[lane] = if value > max[lane] { value } else { max[lane] };
        magnitude[lane] = magnitude[lane].max(value.to_bits() & 0x7fff_ffff);
    };
    for chunk in chunks {
        for (lane, &value) in chunk.iter().enumerate() {
            look(lane, value);
        }
    }
    rest.iter().for_each(|&value| look(0, value));
    let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
    Survey { max, finite: magnitude.iter().all(|&m| m < 0x7f80_0000) }
}

/// The first place of a value that is there.
pub(crate) fn position(values: &[f32], wanted: f32) -> Option<usize> {
    const BLOCK: usize = 256;
    let has = |block: &&[f32]| block.iter().fold(false, |found, &v| found | (v == wanted));
    let block = values.chunks(BLOCK).position(|block| has(&block))?;
    let within = values[block * BLOCK..].iter().position(|&v| v == wanted)?;
    Some(block * BLOCK + within)
}

/// `sum(exp(l - max))` for values that are at most `max`.
pub(crate) fn sum_of_exponentials(values: &[f32], max: f32) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(values: &[f32], max: f32) -> f64 {
            sum::<true>(values, max)
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(values: &[f32], max: f32) -> f64 {
            sum::<true>(values, max)
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has the instructions.
            return unsafe { avx512(values, max) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the machine has the instructions.
            return unsafe { avx2(values, max) };
        }
    }
    sum::<{ cfg!(target_arch = "aarch64") }>(values, max)
}

#[inline(always)]
fn sum<const FUSED: bool>(values: &[f32], max: f32) -> f64 {
    let mut sums = [0.0; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += exp::<FUSED>(f64::from(value - max));
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&v| exp::<FUSED>(f64::from(v - max))).sum::<f64>()
}

/// `exp(x)` for `x` up to 0, to the last bit but one; what is too small for a float of full precision is next to zero.
#[inline(always)]
fn exp<const FUSED: bool>(x: f64) -> f64 {
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    /// Adding it leaves the nearest integer in the lowest bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// `1 / n!` from 13 down to 2.
    const TERMS: [f64; 12] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        1.0 / 2.0,
    ];
    // Without the instruction a fused one is a slow call.
    let fma = |a: f64, b: f64, c: f64| if FUSED { a.mul_add(b, c) } else { a * b + c };
    let x = if x > -708.0 { x } else { -708.0 };
    let rounded = x * std::f64::consts::LOG2_E + ROUND;
    let k = rounded - ROUND;
    let r = fma(k, -LN2_LOW, fma(k, -LN2_HIGH, x));
    let mut sum = TERMS[0];
    for term in &TERMS[1..] {
        sum = fma(sum, r, *term);
    }
    sum = fma(fma(sum, r, 1.0), r, 1.0);
    // The integer goes to the exponent.
    f64::from_bits(sum.to_bits().wrapping_add(rounded.to_bits() << 52))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_the_library() {
        let mut x = 0.0;
        while x > -700.0 {
            let (exact, fused, plain) = (f64::exp(x), exp::<true>(x), exp::<false>(x));
            assert!((fused - exact).abs() <= exact * 5e-16, "{x}: {fused} {exact}");
            assert!((plain - exact).abs() <= exact * 1e-15, "{x}: {plain} {exact}");
            x -= 0.0137;
        }
        assert_eq!(exp::<true>(0.0), 1.0);
        assert!(exp::<true>(f64::NEG_INFINITY) < 1e-300);
    }

    #[test]
    fn sums_and_surveys_agree_with_plain_loops_at_every_length() {
        for length in [1, 2, 15, 16, 17, 255, 256, 257, 5000] {
            let values: Vec<f32> = (0..length).map(|i| ((i * 7919) % 997) as f32 / 31.0 - 20.0).collect();
            let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(survey(&values), Survey { max, finite: true });
            assert_eq!(position(&values, max), values.iter().position(|&v| v == max));
            assert_eq!(position(&values, 1e9), None);
            let exact: f64 = values.iter().map(|&v| f64::from(v - max).exp()).sum();
            assert!((sum_of_exponentials(&values, max) - exact).abs() <= exact * 1e-14);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = values.clone();
                values[length / 2] = bad;
                assert!(!survey(&values).finite);
            }
        }
    }
}
