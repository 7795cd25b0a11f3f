//! The template filter `tojson`: Python's `json.dumps` with the options that transformers hands through.

use minijinja::value::{Kwargs, Value as JinjaValue, ValueKind};
use minijinja::{Error as JinjaError, ErrorKind, State};

use super::bounded::BoundedText;
use super::json_node::JsonNode;
use super::meter::afford;
use super::python::{JsonStyle, Writer};
use super::template::{MAX_DEPTH, Rendering};

/// Bytes of text that count as one step of a rendering.
const BYTES_PER_STEP: usize = 64;

pub(super) fn to_json(
    state: &State<'_, '_>,
    value: &JinjaValue,
    options: Kwargs,
) -> Result<String, JinjaError> {
    if value.is_undefined() {
        return Err(fail("the value is undefined"));
    }
    afford(state, value)?;
    let rendering = Rendering::of(state)?;
    let style = style(&rendering, &options)?;
    let mut text = BoundedText::new(&rendering.limits);
    write(&mut Writer::new(&mut text, &style), value, 0).map_err(|error| rendering.note(error))?;
    let text = text.into_string();
    state.consume_fuel((text.len() / BYTES_PER_STEP) as u64)?;
    Ok(text)
}

fn fail(message: impl std::fmt::Display) -> JinjaError {
    JinjaError::new(ErrorKind::InvalidOperation, format!("tojson: {message}"))
}

fn style(rendering: &Rendering, options: &Kwargs) -> Result<JsonStyle, JinjaError> {
    let mut style = JsonStyle {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        keep: Some(rendering.mark),
        ..JsonStyle::default()
    };
    if let Some(indent) = options.get::<Option<JinjaValue>>("indent")?.filter(|i| !i.is_none()) {
        style.indent = Some(match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) if width <= 64 => " ".repeat(width),
            _ => return Err(fail(format!("indent must be a text or a number up to 64, found {indent}"))),
        });
        style.item_separator = ",".into();
    }
    if let Some(separators) = options.get::<Option<JinjaValue>>("separators")?.filter(|s| !s.is_none()) {
        let (Ok(item), Ok(key)) = (separators.get_item_by_index(0), separators.get_item_by_index(1)) else {
            return Err(fail(format!("separators must be two texts, found {separators}")));
        };
        (style.item_separator, style.key_separator) = (item.to_string(), key.to_string());
    }
    options.assert_all_used()?;
    Ok(style)
}

/// Writes a template's value. What came from JSON is written from there.
fn write(out: &mut Writer<'_, '_>, value: &JinjaValue, depth: usize) -> Result<(), JinjaError> {
    if depth > MAX_DEPTH {
        return Err(fail(format!("nested more than {MAX_DEPTH} levels deep")));
    }
    let stopped = |error| JinjaError::new(ErrorKind::InvalidOperation, "tojson").with_source(error);
    if let Some(node) = value.downcast_object_ref::<JsonNode>() {
        return out.value(node.value(), depth).map_err(stopped);
    }
    match value.kind() {
        ValueKind::Map => {
            let mut keys: Vec<_> = value.try_iter()?.collect();
            if out.style().sort_keys {
                keys.sort();
            }
            out.open("{").map_err(stopped)?;
            let empty = keys.is_empty();
            for (at, key) in keys.into_iter().enumerate() {
                let name = serde_json::to_value(&key).map_err(fail)?;
                let name = name.as_str().map_or_else(|| name.to_string(), str::to_owned);
                out.key(&name, depth + 1, at > 0).map_err(stopped)?;
                write(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.close("}", depth, empty).map_err(stopped)
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.open("[").map_err(stopped)?;
            let mut empty = true;
            for item in value.try_iter()? {
                out.item(depth + 1, !empty).map_err(stopped)?;
                write(out, &item, depth + 1)?;
                empty = false;
            }
            out.close("]", depth, empty).map_err(stopped)
        }
        _ => {
            let scalar = serde_json::to_value(value).map_err(fail)?;
            out.value(&scalar, depth).map_err(stopped)
        }
    }
}
