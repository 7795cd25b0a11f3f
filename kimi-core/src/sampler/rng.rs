//! Random numbers by position, so that a seed gives the same text on any number of stages and after a
//! restart.

/// A number in `[0, 1)`, uniform in steps of 2^-24, that depends only on the seed and the position in the
/// sequence.
///
/// Two rounds of SplitMix64's mixing function (Steele, Lea, Flood 2014): the seed is mixed first, so that
/// neighbouring seeds do not give shifted copies of one another.
pub fn uniform(seed: u64, position: u64) -> f32 {
    let stream = mix(seed.wrapping_add(GAMMA));
    let bits = mix(stream.wrapping_add(position.wrapping_add(1).wrapping_mul(GAMMA)));
    (bits >> 40) as f32 / (1u32 << 24) as f32
}

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_is_splitmix64() {
        // The first outputs for seed 0 that are published with the algorithm.
        assert_eq!(mix(GAMMA), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(GAMMA.wrapping_mul(2)), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn uniform_over_positions_and_over_seeds() {
        for by_seed in [false, true] {
            let mut counts = [0; 16];
            let mut sum = 0.0;
            for i in 0..16_000 {
                let u = if by_seed { uniform(i, 3) } else { uniform(42, i) };
                assert!((0.0..1.0).contains(&u));
                counts[(u * 16.0) as usize] += 1;
                sum += f64::from(u);
            }
            // Five standard deviations of a bin of 1000 and of the mean.
            assert!(counts.iter().all(|c| (850..1150).contains(c)), "{counts:?}");
            assert!((sum / 16_000.0 - 0.5).abs() < 0.0115);
        }
    }
}
