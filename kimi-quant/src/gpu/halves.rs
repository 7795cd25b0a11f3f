//! How codes are read as 16-bit floats that are denormal (shaders/dot_half.wgsl).
//!
//! A 16-bit float below 2^-13 is a whole number times 2^-24: its lower 11 bits as they are. So a code that is cut out of
//! the lower 11 bits of either half of a word, by one mask for both halves, is code * 2^(place - 24) without another
//! instruction. The activation is multiplied by 2^(24 - place) to compensate.

use std::fmt::Write as _;

/// Bits of a half that are a number as they are.
const LINEAR: usize = 11;

/// A code within its half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placed {
    code: usize,
    /// Bits below it in the half.
    place: usize,
}

/// 32 bits, from bit `start` of a unit on, and the codes that are read out of their halves.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Window {
    start: usize,
    halves: [Vec<Placed>; 2],
}

impl Window {
    /// With those of the codes `left` that are wholly in the linear bits of a half.
    fn at(start: usize, bits: usize, left: &[bool]) -> Self {
        let half = |upper: usize| {
            let first = start + 16 * upper;
            let codes = first.div_ceil(bits)..=(first + LINEAR).saturating_sub(bits) / bits;
            let codes = codes.filter(|code| left.get(*code) == Some(&true));
            codes.map(|code| Placed { code, place: code * bits - first }).collect()
        };
        Self { start, halves: [half(0), half(1)] }
    }

    fn codes(&self) -> impl Iterator<Item = &Placed> {
        self.halves.iter().flatten()
    }

    /// Whether a code reaches into the word after the one in which the window begins.
    fn crosses(&self, bits: usize) -> bool {
        let end = (self.start / 32 + 1) * 32;
        self.codes().any(|placed| (placed.code + 1) * bits > end)
    }

    /// Masks: each has a code of either half, as long as there are both.
    fn reads(&self) -> usize {
        self.halves[0].len().max(self.halves[1].len())
    }

    /// The most codes count; then the fewest masks and shifts.
    fn score(&self, bits: usize) -> usize {
        let shifts = if self.start.is_multiple_of(32) { 0 } else { 1 + 2 * usize::from(self.crosses(bits)) };
        (1000 + 100 * self.codes().count()).saturating_sub(30 * self.reads() + 10 * shifts)
    }
}

/// Windows that have every one of `codes` codes once, for codes of 2 to 8 bits.
fn windows(bits: usize, codes: usize) -> Vec<Window> {
    let mut left = vec![true; codes];
    let mut all = Vec::new();
    while left.contains(&true) {
        let candidates = (0..codes * bits).map(|start| Window::at(start, bits, &left));
        // The last of equal candidates is taken by `max_by_key`: reversed, the first.
        let Some(best) = candidates.rev().max_by_key(|window| window.score(bits)) else { break };
        best.codes().for_each(|placed| left[placed.code] = false);
        all.push(best);
    }
    all
}

/// dot_half.wgsl for units of `codes` codes of `bits` bits, of which a group of scales has `codes / parts`.
pub(crate) fn shader(template: &str, bits: usize, codes: usize, parts: usize) -> String {
    let windows = windows(bits, codes);
    let mut places = vec![0; codes];
    windows.iter().flat_map(Window::codes).for_each(|placed| places[placed.code] = placed.place);
    let mut multiply = String::new();
    let factors = |places: &[usize]| {
        let factors: Vec<_> =
            places.iter().map(|place| format!("{:?}", f64::from(1 << (24 - place)))).collect();
        format!("vec4<f32>({})", factors.join(", "))
    };
    let quads: Vec<_> = places.chunks(4).map(factors).collect();
    let part = |code: usize| code * parts / codes;
    let activation = |code: usize| format!("x.values[{}].{}", code / 4, ["x", "y", "z", "w"][code % 4]);
    for (i, window) in windows.iter().enumerate() {
        let (word, shift) = (window.start / 32, window.start % 32);
        let bits32 = match (shift, window.crosses(bits)) {
            (0, _) => format!("words[{word}]"),
            (_, false) => format!("words[{word}] >> {shift}u"),
            (_, true) => format!("(words[{word}] >> {shift}u) | (words[{}] << {}u)", word + 1, 32 - shift),
        };
        let _ = writeln!(multiply, "let w{i} = {bits32};");
        for read in 0..window.reads() {
            let placed = [0, 1].map(|half| window.halves[half].get(read));
            let mask =
                placed.iter().zip([0, 16]).filter_map(|(placed, half)| Some((placed.as_ref()?.place, half)));
            let mask: u32 = mask.map(|(place, half)| ((1 << bits) - 1) << (place + half)).sum();
            let _ = writeln!(multiply, "let h{i}_{read} = unpack2x16float(w{i} & {mask}u);");
            for (placed, (sum, half)) in placed.iter().zip([("a", "x"), ("b", "y")]) {
                if let Some(Placed { code, .. }) = placed {
                    let (x, part) = (activation(*code), part(*code));
                    let _ = writeln!(multiply, "{sum}{part} = fma({x}, h{i}_{read}.{half}, {sum}{part});");
                }
            }
        }
    }
    let sums: String = (0..parts).map(|part| format!("var a{part} = 0.0; var b{part} = 0.0;\n")).collect();
    let result = (0..parts).fold("0.0".to_owned(), |before, part| {
        let bias = match part {
            0 => format!("groups[{part}].y * x.sums[{part}]"),
            _ => format!("fma(groups[{part}].y, x.sums[{part}], {before})"),
        };
        format!("fma(groups[{part}].x, a{part} + b{part}, {bias})")
    });
    template
        .replace("QUADS_PLACES", &quads.join(", "))
        .replace("MULTIPLY_WINDOWS", &(sums + &multiply))
        .replace("RESULT", &result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_have_every_code_once_within_linear_bits() {
        for (bits, max_masks, max_shifts) in
            [(2, 16, 2), (3, 17, 5), (4, 16, 4), (5, 20, 11), (6, 16, 10), (8, 16, 8)]
        {
            let windows = windows(bits, 32);
            let masks: usize = windows.iter().map(Window::reads).sum();
            let shifts = windows.iter().filter(|window| !window.start.is_multiple_of(32)).count();
            assert!(
                masks <= max_masks && shifts <= max_shifts,
                "{bits} bits: {masks} masks, {shifts} shifts"
            );
            let mut codes: Vec<usize> =
                windows.iter().flat_map(Window::codes).map(|placed| placed.code).collect();
            codes.sort_unstable();
            assert_eq!(codes, (0..32).collect::<Vec<_>>(), "{bits} bits");
            for window in &windows {
                for (upper, half) in window.halves.iter().enumerate() {
                    for Placed { code, place } in half {
                        assert_eq!(window.start + 16 * upper + place, code * bits, "{bits} bits: {window:?}");
                        assert!(place + bits <= LINEAR, "{bits} bits: {window:?}");
                    }
                }
            }
        }
    }
}
