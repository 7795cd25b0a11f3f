//! What a list costs before it is made a text.
//!
//! A template can make a list of any length with a few characters: `[x] * 9**9` and `a + a` are not computed but
//! remembered, and minijinja counts no fuel for them until they are text. So their length is found first, here, and
//! counted.
//!
//! Some operators stay out of reach, since minijinja 3.1 computes them itself, asks nobody, and counts fuel only
//! afterwards: `~` with a list on one side (`ops::string_concat`), `in` with a list on the left and a text on the right,
//! comparisons between lists that hold lists, and a chain of some dozens of `+` that doubles its list each time
//! (`materialize_seq_concat`). Nor is there a way to end a thread that does it. Only a checkpoint's own template can ask for
//! that.

use std::sync::Arc;

use minijinja::value::{Rest, Value as JinjaValue, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error as JinjaError, State};

use super::json_node::JsonNode;
use super::template::{FUEL, MAX_DEPTH};

/// Bytes of a list's text that minijinja counts as one step.
const BYTES_PER_STEP: u64 = 4;

/// minijinja's filters that make text of what they are given.
const TEXT_FILTERS: [&str; 14] = [
    "capitalize",
    "e",
    "escape",
    "format",
    "indent",
    "join",
    "lower",
    "pprint",
    "replace",
    "safe",
    "string",
    "title",
    "trim",
    "upper",
];

/// Makes these filters ask [`afford`] first, and takes away `debug`, which Jinja does not have and which prints everything.
pub(super) fn install(environment: &mut Environment<'_>) {
    let mut plain = Environment::new();
    plain.set_fuel(Some(FUEL));
    let plain = Arc::new(plain);
    for name in TEXT_FILTERS {
        let plain = plain.clone();
        environment.add_filter(name, move |state: &State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            args.iter().try_for_each(|value| afford(state, value))?;
            plain.empty_state().apply_filter(name, &args)
        });
    }
    environment.remove_global("debug");
}

/// Counts the items of a list or map, at every level, as steps of the rendering.
///
/// # Errors
/// When there are more than steps are left, or when its text would take more.
pub(super) fn afford(state: &State<'_, '_>, value: &JinjaValue) -> Result<(), JinjaError> {
    let Some((_, steps)) = state.fuel_levels().filter(|_| value.as_object().is_some()) else {
        return Ok(());
    };
    let mut left = Left { items: steps, bytes: steps.saturating_mul(BYTES_PER_STEP) };
    match left.take(value, 0) {
        Some(()) => state.consume_fuel(steps - left.items),
        None => state.consume_fuel(u64::MAX),
    }
}

/// What a value may still take.
struct Left {
    items: u64,
    bytes: u64,
}

impl Left {
    /// Subtracts a value; `None` when it is too large.
    fn take(&mut self, value: &JinjaValue, depth: usize) -> Option<()> {
        self.items = self.items.checked_sub(1)?;
        let Some(object) = value.as_object() else {
            self.bytes = self.bytes.checked_sub(value.as_str().map_or(0, str::len) as u64)?;
            return Some(());
        };
        // What a request holds has its own limits.
        if object.is::<JsonNode>() {
            return Some(());
        }
        if depth > MAX_DEPTH || object.enumerator_len().is_some_and(|len| len as u64 > self.items) {
            return None;
        }
        let is_map = value.kind() == ValueKind::Map;
        for item in object.try_iter().into_iter().flatten() {
            if is_map {
                self.take(&value.get_item(&item).ok()?, depth + 1)?;
            }
            self.take(&item, depth + 1)?;
        }
        Some(())
    }
}
