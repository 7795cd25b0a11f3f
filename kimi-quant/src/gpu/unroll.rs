//! Loops of shaders written out as text: `@unroll for (var i = 0u; i < COUNT; i++) { … }`.
//!
//! A compiler that does not unroll a loop keeps every array that the loop's variable indexes in memory and not in
//! registers. Apple's is said not to by itself. Written out, an array is only ever indexed by numbers.

use std::collections::HashMap;

/// What begins a loop that is written out.
const MARK: &str = "@unroll for (var ";

/// `text` with its marked loops written out. Their bounds may be numbers, the text's constants, and variables of loops
/// around them. A loop whose bounds are unknown keeps its mark, with which no shader is valid.
pub(crate) fn unroll(text: &str) -> String {
    let mut constants = HashMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("const ")) {
        let definition = line.split_once(';').map_or(line, |(before, _)| before);
        if let Some((name, value)) = definition.split_once(" = ")
            && let Some(value) = evaluate(value, &constants)
        {
            constants.insert(name.to_owned(), value);
        }
    }
    expand(text, &constants)
}

fn expand(text: &str, constants: &HashMap<String, u32>) -> String {
    let Some(start) = text.find(MARK) else { return text.to_owned() };
    let (before, rest) = text.split_at(start);
    match Loop::parse(rest, constants) {
        None => {
            let (mark, after) = rest.split_at(MARK.len());
            [before, mark, &expand(after, constants)].concat()
        }
        Some(found) => {
            let mut out = before.to_owned();
            for value in found.values {
                let body = replace(found.body, found.name, &format!("{value}u"));
                out.push_str(&format!("{{{}}}\n", expand(&body, constants)));
            }
            out + &expand(found.after, constants)
        }
    }
}

/// A marked loop at the beginning of a text.
struct Loop<'a> {
    name: &'a str,
    values: Vec<u32>,
    body: &'a str,
    after: &'a str,
}

impl<'a> Loop<'a> {
    fn parse(text: &'a str, constants: &HashMap<String, u32>) -> Option<Self> {
        let (name, rest) = text.strip_prefix(MARK)?.split_once(" = ")?;
        let (first, rest) = rest.split_once("; ")?;
        let (end, rest) = rest.strip_prefix(name)?.strip_prefix(" < ")?.split_once("; ")?;
        let (step, rest) = rest.strip_prefix(name)?.split_once(") {")?;
        let [first, end] = [evaluate(first, constants)?, evaluate(end, constants)?];
        let next = |value: u32| match step.strip_prefix(" <<= ") {
            Some(bits) => value.checked_shl(evaluate(bits, constants)?),
            None if step == "++" => value.checked_add(1),
            None => value.checked_add(evaluate(step.strip_prefix(" += ")?, constants)?),
        };
        let mut values = Vec::new();
        let mut value = first;
        while value < end {
            values.push(value);
            value = next(value).filter(|next| *next > value)?;
        }
        let mut depth = 1;
        let close = rest.find(|c| {
            depth += match c {
                '{' => 1,
                '}' => -1,
                _ => 0,
            };
            depth == 0
        })?;
        Some(Self { name, values, body: &rest[..close], after: &rest[close + 1..] })
    }
}

fn in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// `text` with every name `name` replaced; not where it is a field's.
fn replace(text: &str, name: &str, by: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(name) {
        let (before, found) = rest.split_at(at);
        let after = &found[name.len()..];
        let joined = before.chars().next_back().or(out.chars().next_back());
        let whole = !joined.is_some_and(|c| in_name(c) || c == '.') && !after.starts_with(in_name);
        out.push_str(before);
        out.push_str(if whole { by } else { name });
        rest = after;
    }
    out + rest
}

/// The value of an expression of numbers and constants; `None` if it has anything else.
fn evaluate(text: &str, constants: &HashMap<String, u32>) -> Option<u32> {
    let mut parser = Parser { rest: text.trim(), constants };
    let value = parser.binary(0)?;
    parser.rest.is_empty().then_some(value)
}

/// Operators by how strongly they bind, those of WGSL that bounds have.
const OPERATORS: [&[&str]; 4] = [&["&"], &["<<", ">>"], &["+", "-"], &["*", "/", "%"]];

struct Parser<'a> {
    rest: &'a str,
    constants: &'a HashMap<String, u32>,
}

impl Parser<'_> {
    fn take(&mut self, what: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(what) else { return false };
        self.rest = rest.trim_start();
        true
    }

    fn binary(&mut self, level: usize) -> Option<u32> {
        let Some(operators) = OPERATORS.get(level) else { return self.operand() };
        let mut left = self.binary(level + 1)?;
        while let Some(operator) = operators.iter().find(|operator| self.take(operator)) {
            let right = self.binary(level + 1)?;
            left = match *operator {
                "&" => left & right,
                "<<" => left.checked_shl(right)?,
                ">>" => left.checked_shr(right)?,
                "+" => left.wrapping_add(right),
                "-" => left.wrapping_sub(right),
                "*" => left.wrapping_mul(right),
                "/" => left.checked_div(right)?,
                _ => left.checked_rem(right)?,
            };
        }
        Some(left)
    }

    fn operand(&mut self) -> Option<u32> {
        if self.take("(") {
            let value = self.binary(0)?;
            return self.take(")").then_some(value);
        }
        let end = self.rest.find(|c| !in_name(c)).unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        self.rest = self.rest[end..].trim_start();
        if word == "min" || word == "max" {
            let both = self.take("(").then(|| Some((self.binary(0)?, self.take(","), self.binary(0)?)))??;
            let (a, true, b) = both else { return None };
            return self.take(")").then_some(if word == "min" { a.min(b) } else { a.max(b) });
        }
        let number = word.strip_suffix('u').unwrap_or(word);
        match number.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => number.parse().ok().or_else(|| self.constants.get(word).copied()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_those_of_the_language() {
        let constants = [("BITS", 3), ("PARTS", 2)].map(|(name, value)| (name.to_owned(), value)).into();
        let value = |text| evaluate(text, &constants);
        assert_eq!(value("1u + 2u * 3u"), Some(7));
        assert_eq!(value("(1u + 2u) * BITS"), Some(9));
        assert_eq!(value("(55u - BITS) & 31u"), Some(20));
        assert_eq!(value("max(8u / PARTS, 1u) << 1u"), Some(8));
        assert_eq!(value("0x10u % 7u"), Some(2));
        for wrong in ["", "1u +", "p.steps", "1u / 0u", "(1u", "UNKNOWN", "min(1u)", "1u << 40u"] {
            assert_eq!(value(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn loops_are_written_out_with_their_numbers() {
        let text = "const N = 2u;\nconst M = N + 1u;\n\
            @unroll for (var i = 0u; i < N; i++) {\n    @unroll for (var j = i; j < M; j += 2u) { a[i].i = bits[j] + index; }\n}\nend";
        let expected = "const N = 2u;\nconst M = N + 1u;\n{\n    { a[0u].i = bits[0u] + index; }\n{ a[0u].i = bits[2u] + index; }\n\n}\n\
            {\n    { a[1u].i = bits[1u] + index; }\n\n}\n\nend";
        assert_eq!(unroll(text), expected);
        assert_eq!(unroll("@unroll for (var b = 1u; b < 8u; b <<= 1u) {b}"), "{1u}\n{2u}\n{4u}\n");
        assert_eq!(unroll("@unroll for (var b = 3u; b < 3u; b++) {b} after"), " after");
    }

    #[test]
    fn a_loop_without_known_bounds_keeps_its_mark() {
        for text in [
            "@unroll for (var i = 0u; i < p.steps; i++) { }",
            "@unroll for (var i = 0u; i < 2u; i += 0u) { }",
        ] {
            assert_eq!(unroll(text), text);
        }
    }
}
