//! Finds the model's markers in streamed text.

/// A piece of markup in the model's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    SectionBegin,
    SectionEnd,
    CallBegin,
    ArgumentBegin,
    CallEnd,
    ThinkBegin,
    ThinkEnd,
    EndOfTurn,
}

/// No marker is the beginning of another. The model writes the section's markers in the singular, too.
const MARKERS: [(&str, Marker); 10] = [
    ("<|tool_calls_section_begin|>", Marker::SectionBegin),
    ("<|tool_call_section_begin|>", Marker::SectionBegin),
    ("<|tool_calls_section_end|>", Marker::SectionEnd),
    ("<|tool_call_section_end|>", Marker::SectionEnd),
    ("<|tool_call_begin|>", Marker::CallBegin),
    ("<|tool_call_argument_begin|>", Marker::ArgumentBegin),
    ("<|tool_call_end|>", Marker::CallEnd),
    ("<think>", Marker::ThinkBegin),
    ("</think>", Marker::ThinkEnd),
    ("<|im_end|>", Marker::EndOfTurn),
];

/// Text, or a marker with its spelling.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lexeme {
    Text(String),
    Marker(Marker, &'static str),
}

/// Cuts a stream into text and markers; holds back an end that may still become a marker.
#[derive(Debug, Clone, Default)]
pub(super) struct Scanner {
    held: String,
}

impl Scanner {
    /// The lexemes that are certain now.
    pub(super) fn push(&mut self, text: &str) -> Vec<Lexeme> {
        let mut all = std::mem::take(&mut self.held);
        all.push_str(text);
        let mut lexemes = Vec::new();
        let (mut from, mut at) = (0, 0);
        while let Some(found) = all[at..].find('<') {
            let start = at + found;
            let rest = &all[start..];
            if let Some((name, marker)) = MARKERS.iter().find(|(name, _)| rest.starts_with(name)) {
                push_text(&mut lexemes, &all[from..start]);
                lexemes.push(Lexeme::Marker(*marker, name));
                at = start + name.len();
                from = at;
            } else if MARKERS.iter().any(|(name, _)| name.starts_with(rest)) {
                push_text(&mut lexemes, &all[from..start]);
                self.held = rest.to_owned();
                return lexemes;
            } else {
                at = start + 1;
            }
        }
        push_text(&mut lexemes, &all[from..]);
        lexemes
    }

    /// What was held back, now known to be text.
    pub(super) fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

fn push_text(lexemes: &mut Vec<Lexeme>, text: &str) {
    if !text.is_empty() {
        lexemes.push(Lexeme::Text(text.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_and_what_only_looks_like_one() {
        let mut scanner = Scanner::default();
        assert_eq!(scanner.push("a<<thi"), [Lexeme::Text("a<".into())]);
        assert_eq!(
            scanner.push("nk>b</b><|tool"),
            [Lexeme::Marker(Marker::ThinkBegin, "<think>"), Lexeme::Text("b</b>".into()),]
        );
        assert_eq!(scanner.push("s|>"), [Lexeme::Text("<|tools|>".into())]);
        assert_eq!(scanner.push("<"), []);
        assert_eq!(scanner.flush(), "<");
    }
}
