//! How text is cut before byte-pair encoding: first very long texts and runs, then by Kimi's pre-tokenizer
//! pattern.

use std::ops::Range;

use onig::{MatchParam, Regex, Region, SearchOptions};

use super::TokenizerError;

/// Kimi's pre-tokenizer pattern (`pat_str` of tokenization_kimi.py): runs of Han; words, cut where lower case
/// turns to upper case, with one leading other character and an English contraction; up to three digits;
/// punctuation; spaces.
const PATTERN: &str = concat!(
    r"[\p{Han}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);

/// The reference encodes at most this many characters at a time.
const WINDOW_CHARS: usize = 400_000;
/// Within a window, a run of white space or of anything else is cut before its next character once it is this
/// long.
const RUN_CHARS: usize = 25_000;

/// The pattern, compiled.
pub(super) struct PreTokenizer {
    regex: Regex,
}

impl PreTokenizer {
    pub(super) fn new() -> Result<Self, TokenizerError> {
        let regex = Regex::new(PATTERN)
            .map_err(|e| TokenizerError::Regex { at: 0, reason: e.description().to_owned() })?;
        Ok(Self { regex })
    }

    /// Calls `each` with the pieces of `text`, in order; together they are the text.
    pub(super) fn split<'t>(
        &self,
        text: &'t str,
        mut each: impl FnMut(&'t str) -> Result<(), TokenizerError>,
    ) -> Result<(), TokenizerError> {
        let mut region = Region::new();
        let mut at = 0;
        while at < text.len() {
            let range = self.find(text, at, &mut region)?;
            // Every character belongs to some branch of the pattern, so the gap before a match is empty; if a
            // regex library ever disagrees, the characters still must not be lost.
            let (gap, piece) = match range {
                Some(range) => (at..range.start, range),
                None => (at..text.len(), text.len()..text.len()),
            };
            at = piece.end;
            for part in [gap, piece] {
                if let Some(part) = text.get(part).filter(|p| !p.is_empty()) {
                    each(part)?;
                }
            }
        }
        Ok(())
    }

    fn find(
        &self,
        text: &str,
        at: usize,
        region: &mut Region,
    ) -> Result<Option<Range<usize>>, TokenizerError> {
        let options = SearchOptions::SEARCH_OPTION_NONE;
        let found = self
            .regex
            .search_with_param(text, at, text.len(), options, Some(region), MatchParam::default())
            .map_err(|e| TokenizerError::Regex { at, reason: e.description().to_owned() })?;
        if found.is_none() {
            return Ok(None);
        }
        match region.pos(0) {
            Some((start, end)) if start >= at && end > start => Ok(Some(start..end)),
            other => Err(TokenizerError::Regex { at, reason: format!("an impossible match: {other:?}") }),
        }
    }
}

/// Cuts a long text as tokenization_kimi.py does: windows of 400,000 characters, and in each a cut before the
/// 25,001st character of a run of white space or of anything else. The parts are encoded one by one, so a
/// special token's name that is cut in two is none.
pub(super) fn cut_long(text: &str) -> Vec<Range<usize>> {
    cut(text, WINDOW_CHARS, RUN_CHARS)
}

fn cut(text: &str, window: usize, longest_run: usize) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let (mut start, mut in_window, mut run, mut run_is_space) = (0, 0, 0, false);
    for (at, c) in text.char_indices() {
        let space = is_python_space(c);
        if in_window == window {
            parts.push(start..at);
            (start, in_window, run) = (at, 0, 0);
        }
        if run > 0 && space != run_is_space {
            run = 0;
        } else if run == longest_run {
            parts.push(start..at);
            (start, run) = (at, 0);
        }
        run_is_space = space;
        run += 1;
        in_window += 1;
    }
    parts.push(start..text.len());
    parts
}

/// Python's `str.isspace`, which also counts the four information separators.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::cut;

    /// tokenization_kimi.py's rule, written a second time: cut the windows first, then the runs in each.
    fn slow(text: &str, window: usize, longest: usize) -> Vec<String> {
        let chars: Vec<char> = text.chars().collect();
        let mut parts = Vec::new();
        for part in chars.chunks(window) {
            let (mut current, mut run, mut kind) = (String::new(), 0, super::is_python_space(part[0]));
            for &c in part {
                let space = super::is_python_space(c);
                if space == kind {
                    run += 1;
                    if run > longest {
                        parts.push(std::mem::take(&mut current));
                        run = 1;
                    }
                } else {
                    (run, kind) = (1, space);
                }
                current.push(c);
            }
            parts.push(current);
        }
        parts
    }

    proptest::proptest! {
        #[test]
        fn cuts_like_the_reference(text in "[a中 \\n\u{1c}é]{0,60}", window in 1usize..20, run in 1usize..6) {
            let parts: Vec<String> = cut(&text, window, run).into_iter().map(|r| text[r].to_owned()).collect();
            if text.is_empty() {
                proptest::prop_assert_eq!(parts, [""]);
            } else {
                proptest::prop_assert_eq!(parts, slow(&text, window, run));
            }
        }
    }
}
