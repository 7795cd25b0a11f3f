//! The first mistake of a text that should be JSON, of those that people and editors make.

use super::Mistake;

/// Words that Python and JavaScript have, and JSON's for them.
const WORDS: [(&str, &str); 6] = [
    ("True", "true"),
    ("False", "false"),
    ("None", "null"),
    ("undefined", "null"),
    ("NaN", "null (JSON has no NaN)"),
    ("Infinity", "a number (JSON has no infinity)"),
];

/// The first mistake, by a scan that knows strings and little else. `None` where the text has none of those known.
pub(super) fn first_mistake(text: &str) -> Option<Mistake> {
    let mut scan = Scan { text, at: 0, line: 1, last: None };
    while scan.at < text.len() {
        let what = scan.step();
        if let Some(what) = what {
            return Some(Mistake { line: scan.line, what });
        }
    }
    None
}

struct Scan<'a> {
    text: &'a str,
    /// Byte offset of what comes next.
    at: usize,
    /// Its line, from 1.
    line: usize,
    /// The last part that was no white space: `"` stands for a string, `w` for a word or number, else the character.
    last: Option<char>,
}

impl Scan<'_> {
    /// Goes past one part, or says what is wrong with it.
    fn step(&mut self) -> Option<String> {
        let rest = &self.text[self.at..];
        let c = rest.chars().next()?;
        match c {
            '\n' => self.line += 1,
            ' ' | '\t' | '\r' => {}
            '"' => return self.string(rest),
            '/' if rest.starts_with("//") || rest.starts_with("/*") => return Some(comment(&rest[..2])),
            '#' => return Some(comment("#")),
            '\'' => return Some("' marks a text; JSON takes double quotes, \"like this\"".to_owned()),
            '\0' => return Some("zeros follow: a download was broken off; download it again".to_owned()),
            _ if is_smart_quote(c) => return Some(smart_quote(c)),
            '}' | ']' if self.last == Some(',') => {
                return Some(format!("a comma stands before {c}; remove it"));
            }
            '{' | '[' if self.follows_value() => return Some(self.no_comma()),
            '{' | '}' | '[' | ']' | ',' | ':' => {}
            _ if c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.' | '_' | '$') => {
                return self.word(rest);
            }
            _ => {
                return Some(format!(
                    "{c:?} (U+{:04X}) can't stand outside of quotes; remove it",
                    u32::from(c)
                ));
            }
        }
        self.at += c.len_utf8();
        if !c.is_whitespace() {
            self.last = Some(c);
        }
        None
    }

    fn string(&mut self, rest: &str) -> Option<String> {
        if self.follows_value() {
            return Some(self.no_comma());
        }
        let mut escaped = false;
        for (i, c) in rest.char_indices().skip(1) {
            match c {
                '\n' if rest[..i].contains(is_smart_quote) => {
                    return rest[..i].chars().find(|c| is_smart_quote(*c)).map(smart_quote);
                }
                '\n' => return Some("a text is not closed by \" on its line".to_owned()),
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => {
                    self.at += i + 1;
                    self.last = Some('"');
                    return None;
                }
                _ => {}
            }
        }
        let smart = rest.chars().find(|c| is_smart_quote(*c)).map(smart_quote);
        self.at = self.text.len();
        smart
    }

    fn word(&mut self, rest: &str) -> Option<String> {
        let ends =
            |c: char| c.is_whitespace() || matches!(c, ',' | ':' | '}' | ']' | '{' | '[' | '"' | '/' | '\0');
        let word = &rest[..rest.find(ends).unwrap_or(rest.len())];
        self.at += word.len().max(1); // its first character is ASCII
        if self.follows_value() {
            return Some(self.no_comma());
        }
        if let Some((_, right)) = WORDS.iter().find(|(wrong, _)| word.trim_start_matches('-') == *wrong) {
            return Some(format!("{word} is not JSON; write {right}"));
        }
        let known = matches!(word, "true" | "false" | "null");
        if word.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '$')) && !known {
            let cut_off = rest.len() == word.len();
            let short: String = word.chars().take(40).collect();
            return (!cut_off).then(|| format!("{short} stands without quotes; write \"{short}\""));
        }
        self.last = Some('w');
        None
    }

    /// Whether a value ended before, so that nothing but a comma, a colon or a bracket may come.
    fn follows_value(&self) -> bool {
        matches!(self.last, Some('"' | 'w' | '}' | ']'))
    }

    fn no_comma(&self) -> String {
        "a comma or a colon is missing before this, or something follows the end".to_owned()
    }
}

fn comment(mark: &str) -> String {
    format!("{mark} begins a comment, which JSON does not have; remove it")
}

fn is_smart_quote(c: char) -> bool {
    matches!(c, '\u{2018}'..='\u{201f}' | '\u{ab}' | '\u{bb}' | '\u{ff02}' | '\u{300c}' | '\u{300d}')
}

fn smart_quote(c: char) -> String {
    format!(
        "{c} is a typographic quotation mark; JSON takes the straight \" (in TextEdit: Edit, Substitutions, Smart \
         Quotes off)"
    )
}
