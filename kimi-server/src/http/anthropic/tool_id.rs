//! Ids of tool calls. Anthropic's have letters, digits, `_` and `-` only; Kimi's are `functions.NAME:COUNTER`.

/// An id as clients get it: other signs are `_` there.
pub(super) fn shown(id: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    id.chars().map(|c| if fits(c) { c } else { '_' }).collect()
}

/// The id that a call of this function was shown under, so that the model sees what it wrote; another id as it is.
pub(super) fn restored(id: &str, name: &str) -> String {
    let head = id.trim_end_matches(|c: char| c.is_ascii_digit());
    let own = format!("functions.{name}:{}", &id[head.len()..]);
    if shown(&own) == id { own } else { id.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_as_they_were() {
        for (name, counter) in [("weather", 0), ("get weather", 12), ("wetter.höchst", 7), ("a_1", 1)] {
            let id = format!("functions.{name}:{counter}");
            let shown = shown(&id);
            assert!(shown.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'), "{shown}");
            assert_eq!(restored(&shown, name), id);
            assert_eq!(restored(&shown, "other"), shown);
        }
        assert_eq!(restored("toolu_01", "weather"), "toolu_01");
        assert_eq!(restored("", "weather"), "");
    }
}
