//! How codes are cut out of packed words for integer dot products (shaders/dot_integer.wgsl).
//!
//! A cut takes four codes, one in each byte of a 32-bit window of the packed bits. A code may lie anywhere within its
//! byte as long as the byte stays below 128, since bytes are signed. The activation is divided by 2^place to
//! compensate.

use std::fmt::Write as _;

/// A code within its byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placed {
    code: usize,
    /// Bits below it in the byte.
    place: usize,
}

/// Four codes, one in each byte of a window of 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    /// First bit of the window.
    start: usize,
    codes: [Option<Placed>; 4],
}

impl Cut {
    fn codes(&self) -> impl Iterator<Item = (usize, Placed)> {
        self.codes.into_iter().enumerate().filter_map(|(byte, code)| Some((byte, code?)))
    }

    /// The bits of all codes.
    fn mask(&self, bits: usize) -> u32 {
        self.codes().map(|(byte, code)| ((1 << bits) - 1) << (8 * byte + code.place)).sum()
    }

    /// Whether a code reaches into the word after the one in which the window begins.
    fn crosses(&self, bits: usize) -> bool {
        let end = (self.start / 32 + 1) * 32;
        self.codes().any(|(_, code)| (code.code + 1) * bits > end)
    }

    /// The most codes count; then the fewest shifts; then the lowest places, which keep more of the activations.
    fn score(&self, bits: usize) -> i64 {
        let shifts = if self.start.is_multiple_of(32) { 0 } else { 1 + i64::from(self.crosses(bits)) };
        let places: usize = self.codes().map(|(_, code)| code.place).sum();
        100 * self.codes().count() as i64 - 10 * shifts - places as i64
    }
}

/// The cut with the most codes of those `left` that begins at bit `start`.
fn cut_at(start: usize, bits: usize, left: &[bool]) -> Cut {
    let places = if bits == 8 { 0..=0 } else { 0..=7 - bits };
    let in_byte = |byte: usize| {
        places.clone().find_map(|place| {
            let bit = start + 8 * byte + place;
            let code = bit / bits;
            let whole = bit.is_multiple_of(bits) && left.get(code) == Some(&true);
            whole.then_some(Placed { code, place })
        })
    };
    Cut { start, codes: std::array::from_fn(in_byte) }
}

/// Cuts that have every one of `codes` codes once, for codes of 2 to 8 bits.
fn cuts(bits: usize, codes: usize) -> Vec<Cut> {
    let mut left = vec![true; codes];
    let mut all = Vec::new();
    while left.contains(&true) {
        let candidates = (0..codes * bits).map(|start| cut_at(start, bits, &left));
        // The last of equal candidates is taken by `max_by_key`: reversed, the first.
        let Some(best) = candidates.rev().max_by_key(|cut| cut.score(bits)) else { break };
        best.codes().for_each(|(_, code)| left[code.code] = false);
        all.push(best);
    }
    all
}

/// dot_integer.wgsl for units of `codes` codes of `bits` bits.
pub(crate) fn shader(template: &str, bits: usize, codes: usize) -> String {
    let cuts = cuts(bits, codes);
    let (mut prepare, mut multiply) = (String::new(), String::new());
    for (i, cut) in cuts.iter().enumerate() {
        let argument = |code: Option<Placed>| match code {
            None => "0.0".to_owned(),
            Some(Placed { code, place }) => {
                let lane = ["x", "y", "z", "w"][code % 4];
                format!("all[{}].{lane} * (up * {:?})", code / 4, 1.0 / f64::from(1 << place))
            }
        };
        let [a, b, c, d] = cut.codes.map(argument);
        let _ = writeln!(prepare, "prepared.planes[{i}] = planes({a}, {b}, {c}, {d});");
        let (word, shift) = (cut.start / 32, cut.start % 32);
        let window = match (shift, cut.crosses(bits)) {
            (0, _) => format!("words[{word}]"),
            (_, false) => format!("(words[{word}] >> {shift}u)"),
            (_, true) => format!("((words[{word}] >> {shift}u) | (words[{}] << {}u))", word + 1, 32 - shift),
        };
        // Codes of eight bits become signed: see CODE_OFFSET.
        let bytes = if bits == 8 {
            format!("{window} ^ 0x80808080u")
        } else {
            format!("{window} & {}u", cut.mask(bits))
        };
        let _ = writeln!(multiply, "let cut{i} = {bytes};");
        for (sum, plane) in [("low", "x"), ("middle", "y"), ("high", "z")] {
            let _ = writeln!(multiply, "{sum} += dot4I8Packed(cut{i}, x.planes[{i}].{plane});");
        }
    }
    let offset = if bits == 8 { "128.0" } else { "0.0" };
    format!("const CUTS = {}u;\nconst CODE_OFFSET = {offset};\n", cuts.len())
        + &template.replace("PREPARE_CUTS", &prepare).replace("MULTIPLY_CUTS", &multiply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_have_every_code_once_within_signed_bytes() {
        let narrow =
            [(2, 8), (3, 9), (4, 8), (5, 12), (6, 16), (8, 8)].map(|(bits, max_cuts)| (32, bits, max_cuts));
        let wide = [(2, 16), (3, 18), (4, 16), (5, 24), (6, 32), (8, 16)]
            .map(|(bits, max_cuts)| (64, bits, max_cuts));
        for (unit, bits, max_cuts) in narrow.into_iter().chain(wide) {
            let cuts = cuts(bits, unit);
            assert!(cuts.len() <= max_cuts, "{bits} bits: {} cuts", cuts.len());
            let mut codes: Vec<usize> = cuts.iter().flat_map(|c| c.codes().map(|(_, p)| p.code)).collect();
            codes.sort_unstable();
            assert_eq!(codes, (0..unit).collect::<Vec<_>>(), "{bits} bits");
            for cut in &cuts {
                for (byte, Placed { code, place }) in cut.codes() {
                    assert_eq!(cut.start + 8 * byte + place, code * bits, "{bits} bits: {cut:?}");
                    assert!(bits == 8 || ((1 << bits) - 1) << place < 128, "{bits} bits: {cut:?}");
                }
            }
        }
    }
}
