//! The exponential function, for many values at once.
//!
//! It is computed in f64 without a branch, so that the compiler makes vectors of it, and rounded once: as exact as libm's,
//! and the same bits on every machine.

/// `ln(2)^n / n!`: the series of `2^r`, which `r` from -1/2 to 1/2 needs no more of for f32.
const SERIES: [f64; 10] = [
    1.0,
    std::f64::consts::LN_2,
    0.240_226_506_959_100_7,
    0.055_504_108_664_821_58,
    0.009_618_129_107_628_477,
    0.001_333_355_814_642_844_3,
    0.000_154_035_303_933_816_1,
    0.000_015_252_733_804_059_84,
    0.000_001_321_548_679_014_431,
    0.000_000_101_780_860_092_396_99,
];

/// `e^x`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Added, it leaves no bit for a fraction: the lowest bits are the integer.
    const WHOLE: f64 = 6_755_399_441_055_744.0;
    let power = f64::from(x) * std::f64::consts::LOG2_E;
    // Where f32 has ended already. In this form a maximum and a minimum of vectors that pass NaNs on.
    let power = if power < -160.0 { -160.0 } else { power };
    let power = if power > 130.0 { 130.0 } else { power };
    let shifted = power + WHOLE;
    let rest = power - (shifted - WHOLE);
    let mut sum = SERIES[SERIES.len() - 1];
    for term in SERIES.iter().rev().skip(1) {
        sum = sum * rest + term;
    }
    let power_of_two = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    (sum * power_of_two) as f32
}

/// Partial sums.
const LANES: usize = 16;

/// Replaces each score by `exp(scale * score - max)`; returns the largest scaled score and the sum.
#[inline(always)]
pub(crate) fn exponentials(scores: &mut [f32], scale: f32) -> (f32, f32) {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    scores.iter_mut().for_each(|score| *score *= scale);
    let (chunks, rest) = scores.as_chunks::<LANES>();
    let mut largest = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        largest.iter_mut().zip(chunk).for_each(|(largest, &score)| *largest = larger(*largest, score));
    }
    let max = largest.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b));
    scores.iter_mut().for_each(|score| *score = exp(*score - max));
    let (chunks, rest) = scores.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, score)| *sum += score);
    }
    (max, sums.iter().sum::<f32>() + rest.iter().sum::<f32>())
}

/// `gate = silu(gate) * up`.
#[inline(always)]
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    gate.iter_mut().zip(up).for_each(|(gate, up)| *gate = *gate / (1.0 + exp(-*gate)) * up);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside the true value, in units in the last place of f32.
    fn error(x: f32) -> f64 {
        let exact = f64::from(x).exp();
        let unit = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
        (f64::from(exp(x)) - exact).abs() / unit
    }

    #[test]
    fn values_are_rounded_once() {
        // Steps of a prime over all floats from 2^-40 to 88, either sign.
        let mut largest = 0f64;
        for bits in (0x2b80_0000..0x42b0_0000u32).step_by(1009) {
            let x = f32::from_bits(bits);
            largest = largest.max(error(x)).max(error(-x));
        }
        assert!(largest < 0.5001, "{largest}");
    }

    #[test]
    fn ends_and_special_values_are_those_of_libm() {
        for x in [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 88.8, 200.0, 1e30, -104.0, -1e30, 1e-40] {
            assert_eq!(exp(x).to_bits(), x.exp().to_bits(), "{x}");
        }
        assert_eq!(exp(-100.0), (-100f32).exp()); // a subnormal
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn a_softmax_has_the_largest_score_and_the_sum() {
        for count in [1, 15, 16, 17, 128] {
            let mut scores: Vec<f32> = (0..count).map(|i| ((i * 37) % 41) as f32 - 20.0).collect();
            let expected: Vec<f64> = scores.iter().map(|s| f64::from(*s) * 0.5).collect();
            let largest = expected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let (max, sum) = exponentials(&mut scores, 0.5);
            assert_eq!(f64::from(max), largest);
            let exact: f64 = expected.iter().map(|s| (s - largest).exp()).sum();
            assert!((f64::from(sum) - exact).abs() <= exact * 1e-6, "{count}: {sum} {exact}");
        }
    }
}
