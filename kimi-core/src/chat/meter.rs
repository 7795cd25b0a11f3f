//! What a list costs before it is made a text.
//!
//! A template can make a list of any length with a few characters: `[x] * 9**9` and `a + a` are not computed but
//! remembered, and minijinja counts no fuel for them until they are text. So their length is found first, here, and
//! counted.
//!
//! Three operators stay out of reach, since minijinja 3.1 computes them itself, asks nobody, and counts fuel only
//! afterwards: `~` with a list on one side (`ops::string_concat`), `==` between lists that hold lists, and a chain of
//! some dozens of `+` that doubles its list each time (`materialize_seq_concat`). Nor is there a way to end a thread that
//! does it. Only a checkpoint's own template can ask for that.

use minijinja::value::{Rest, Value as JinjaValue, ValueKind};
use minijinja::{Environment, Error as JinjaError, State, filters};

use super::json_node::JsonNode;
use super::template::MAX_DEPTH;

/// Bytes of a list's text that minijinja counts as one step.
const BYTES_PER_STEP: u64 = 4;

/// Makes the filters that turn their arguments into text ask [`afford`] first.
pub(super) fn install(environment: &mut Environment<'_>) {
    let filters = [
        ("capitalize", JinjaValue::from_function(filters::capitalize)),
        ("indent", JinjaValue::from_function(filters::indent)),
        ("join", JinjaValue::from_function(filters::join)),
        ("lower", JinjaValue::from_function(filters::lower)),
        ("pprint", JinjaValue::from_function(filters::pprint)),
        ("replace", JinjaValue::from_function(filters::replace)),
        ("string", JinjaValue::from_function(filters::string)),
        ("title", JinjaValue::from_function(filters::title)),
        ("trim", JinjaValue::from_function(filters::trim)),
        ("upper", JinjaValue::from_function(filters::upper)),
    ];
    for (name, filter) in filters {
        environment.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<JinjaValue>| {
            args.iter().try_for_each(|value| afford(state, value))?;
            filter.call(state, &args)
        });
    }
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
