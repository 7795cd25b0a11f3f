//! Texts of a peer, made safe to show.

use std::borrow::Cow;

/// A text as it may be written to a log or a terminal: line ends, escape sequences, and marks that hide text or turn its
/// direction around are written as numbers, such as `\u{1b}`.
///
/// Texts in received messages are in this form already.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match acts(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

pub(super) fn make_printable(text: &mut String) {
    if let Cow::Owned(shown) = printable(text) {
        *text = shown;
    }
}

/// Whether a character does something to a terminal or a line of text besides being seen.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' // soft hyphen
            | '\u{61c}' | '\u{200b}'..='\u{200f}' // Arabic mark; zero width, left-to-right and right-to-left marks
            | '\u{2028}'..='\u{202e}' // line and paragraph ends, direction of text
            | '\u{2060}'..='\u{206f}' // word joiner, invisible operators, isolates
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' // byte order mark, annotations
            | '\u{e0000}'..='\u{e007f}') // tags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_written_as_a_number() {
        for (text, shown) in [
            ("a\nb\r", "a\\nb\\r"),
            ("\x1b[31mred\x1b[0m", "\\u{1b}[31mred\\u{1b}[0m"),
            ("\u{9b}2J", "\\u{9b}2J"),
            ("bell\x07 back\x08 del\x7f nul\0", "bell\\u{7} back\\u{8} del\\u{7f} nul\\u{0}"),
            ("\u{202e}txt.exe\u{2066}", "\\u{202e}txt.exe\\u{2066}"),
            ("a\u{200b}b\u{feff}", "a\\u{200b}b\\u{feff}"),
            ("two\u{2028}lines", "two\\u{2028}lines"),
            ("\u{e0041}", "\\u{e0041}"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn other_text_stays_as_it_is() {
        for text in ["", "M3 Ultra (512 GB)", "Rechner-Süd", "机器一", "C:\\models\\kimi", "🦀 é"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }
}
