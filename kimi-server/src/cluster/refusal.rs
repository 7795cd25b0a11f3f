//! What a worker can't do: told in full in its own log, and without its folders to the coordinator.

use kimi_net::ErrorCode;

use crate::models::LookupError;

/// A refusal, with its code.
pub(super) struct Refusal {
    pub(super) code: ErrorCode,
    /// For this machine's log.
    pub(super) text: String,
    /// For the coordinator.
    pub(super) told: String,
}

impl Refusal {
    pub(super) fn new(code: ErrorCode, text: impl ToString) -> Self {
        let text = text.to_string();
        Self { code, told: without_folders(&text), text }
    }

    pub(super) fn load(text: impl ToString) -> Self {
        Self::new(ErrorCode::LoadFailed, text)
    }

    /// The model `name` is not here, or can't be opened.
    pub(super) fn lookup(name: &str, error: &LookupError) -> Self {
        match error {
            LookupError::Checkpoint(_) => Self::load(error),
            LookupError::NotFound { .. } => Self {
                code: ErrorCode::UnknownModel,
                text: error.to_string(),
                told: format!(
                    "model {name:?} is nowhere on this worker, whose log says where it looked; put it there, or start the \
                     worker with --default-model PATH"
                ),
            },
            _ => Self::new(ErrorCode::UnknownModel, error),
        }
    }
}

/// A text in which only the last part of each absolute path is left.
fn without_folders(text: &str) -> String {
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ',' | ';' | ')');
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        let (before, path) = rest.split_at(at);
        shown.push_str(before);
        let begins = before.chars().next_back().is_none_or(|c| ends(c) || matches!(c, '(' | '=' | ':'));
        let (path, after) = path.split_at(path.find(ends).unwrap_or(path.len()));
        match path.rsplit_once('/') {
            Some((_, last)) if begins && !path.starts_with("//") => shown.extend(["…/", last]),
            _ => shown.push_str(path),
        }
        rest = after;
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_a_path_is_left() {
        for (text, told) in [
            ("can't read /home/ann/models/k2/config.json: no", "can't read …/config.json: no"),
            ("/home/ann/k2: it is empty", "…/k2: it is empty"),
            ("in \"/a/b\", (/c/d) and path=/e/f", "in \"…/b\", (…/d) and path=…/f"),
            ("give org/name, 3/4 of it, or https://x.org/y", "give org/name, 3/4 of it, or https://x.org/y"),
            ("no path at all", "no path at all"),
        ] {
            assert_eq!(without_folders(text), told);
        }
    }

    #[test]
    fn a_model_that_is_not_here_is_told_without_the_places() {
        let looked = vec!["/home/ann/models/x".to_owned()];
        let error = LookupError::NotFound { name: "x".into(), hub: None, looked, known: Vec::new() };
        let refusal = Refusal::lookup("x", &error);
        assert!(refusal.text.contains("/home/ann") && !refusal.told.contains("ann"), "{}", refusal.told);
    }
}
