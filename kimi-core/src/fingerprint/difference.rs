//! What differs between two checkpoints, for people.

use std::fmt;

/// The first difference between two descriptions. Its text is one sentence for people, in which text of the other
/// machine is shortened and its control characters are escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// They were made by releases that describe checkpoints differently.
    Version {
        /// Version of this side.
        ours: u32,
        /// Version of the other side.
        theirs: u32,
    },
    /// A value of the config.
    Config {
        /// Its key, such as `rope_theta` or `rope_scaling.factor`.
        key: String,
        /// The value of this side, if the key decides anything here.
        ours: Option<String>,
        /// The value of the other side.
        theirs: Option<String>,
    },
    /// A group of tensors.
    Tensors {
        /// The first group that differs, such as `model.layers.3`.
        group: String,
        /// Whether this side has tensors of that group.
        ours: bool,
        /// Whether the other side has.
        theirs: bool,
        /// How many other groups differ.
        others: usize,
    },
    /// Keys or groups stand in another order or more than once, which only a faulty peer sends.
    Form,
}

impl Difference {
    /// The sentence, with words for the places of the two sides, such as `here` and `at the coordinator`.
    pub fn between(&self, our_place: &str, their_place: &str) -> String {
        const ADVICE: &str = "give both machines the same files";
        let (here, there) = (shown(our_place), shown(their_place));
        match self {
            Self::Version { ours, theirs } => format!(
                "checkpoints are described in version {ours} {here} and in version {theirs} {there}; \
                 run the same release of kimi on both machines"
            ),
            Self::Config { key, ours, theirs } => {
                let value = |v: &Option<String>| v.as_deref().map_or_else(|| "not set".to_owned(), shown);
                let (key, ours, theirs) = (shown(key), value(ours), value(theirs));
                format!("config.json: {key} is {ours} {here} and {theirs} {there}; {ADVICE}")
            }
            Self::Tensors { group, ours, theirs, others } => {
                let group = shown(group);
                let more = match others {
                    0 => String::new(),
                    1 => " and of 1 other group".to_owned(),
                    n => format!(" and of {n} other groups"),
                };
                match (ours, theirs) {
                    (true, false) => {
                        format!("there are tensors of {group} {here} and none {there}; {ADVICE}")
                    }
                    (false, true) => {
                        format!("there are tensors of {group} {there} and none {here}; {ADVICE}")
                    }
                    _ => format!(
                        "the tensors of {group}{more} differ {here} and {there} (names, types, shapes, bits or \
                         weights); {ADVICE}"
                    ),
                }
            }
            Self::Form => format!(
                "the checkpoint is described in another form {here} than {there}; \
                 run the same release of kimi on both machines"
            ),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.between("here", "on the other machine"))
    }
}

/// Text of a peer as it may stand on a terminal and in a log: short, and without control characters.
fn shown(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    let mut shown = String::new();
    for (i, c) in text.chars().enumerate() {
        match c {
            _ if i == MAX_CHARS => {
                shown.push('…');
                break;
            }
            '"' | '\'' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_shown_as_it_is() {
        assert_eq!(shown("Ann's Mac"), "Ann's Mac");
    }
}
