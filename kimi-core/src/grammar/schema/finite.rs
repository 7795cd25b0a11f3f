//! Definitions that nothing finite satisfies, such as a list whose every node requires a next one.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// Takes those definitions away, and makes what refers to them `false`, so that an optional property of such a kind is left out instead of never ending.
pub(super) fn prune(root: &mut Value, definitions: &mut Map<String, Value>) {
    let mut finite: HashSet<String> = HashSet::new();
    loop {
        let more: Vec<String> = definitions
            .iter()
            .filter(|(name, schema)| !finite.contains(*name) && has_finite(schema, &finite))
            .map(|(name, _)| name.clone())
            .collect();
        if more.is_empty() {
            break;
        }
        finite.extend(more);
    }
    definitions.retain(|name, _| finite.contains(name));
    refuse(root, &finite);
    definitions.values_mut().for_each(|schema| refuse(schema, &finite));
}

/// Makes references to what is not finite `false`.
fn refuse(schema: &mut Value, finite: &HashSet<String>) {
    match schema {
        Value::Array(list) => list.iter_mut().for_each(|schema| refuse(schema, finite)),
        Value::Object(keywords) => {
            let target = keywords.get("$ref").and_then(Value::as_str);
            let target = target.and_then(|reference| reference.strip_prefix("#/$defs/"));
            if target.is_some_and(|name| !finite.contains(name)) {
                *schema = Value::Bool(false);
                return;
            }
            // Values are no schemas.
            let schemas = keywords.iter_mut().filter(|(key, _)| *key != "enum" && *key != "const");
            schemas.for_each(|(_, schema)| refuse(schema, finite));
        }
        _ => {}
    }
}

/// Whether a rewritten schema has a finite value, as far as is known of the definitions.
fn has_finite(schema: &Value, finite: &HashSet<String>) -> bool {
    let Some(keywords) = schema.as_object() else { return schema == &Value::Bool(true) };
    let each = |key: &str| keywords.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if let Some(reference) = keywords.get("$ref").and_then(Value::as_str) {
        return reference.strip_prefix("#/$defs/").is_some_and(|name| finite.contains(name));
    }
    if !each("allOf").iter().all(|schema| has_finite(schema, finite)) {
        return false;
    }
    if keywords.contains_key("anyOf") && !each("anyOf").iter().any(|schema| has_finite(schema, finite)) {
        return false;
    }
    // A schema of several types has a finite value of another one.
    if each("type").len() > 1 || keywords.contains_key("enum") || keywords.contains_key("const") {
        return true;
    }
    let property = |name: &Value| {
        let named = name.as_str().and_then(|name| keywords.get("properties")?.get(name));
        named.is_none_or(|schema| has_finite(schema, finite))
    };
    if !each("required").iter().all(property) {
        return false;
    }
    let least = keywords.get("minItems").and_then(Value::as_u64).unwrap_or(0) as usize;
    let prefix = each("prefixItems");
    let rest = keywords.get("items").is_none_or(|items| has_finite(items, finite));
    prefix.iter().take(least).all(|item| has_finite(item, finite)) && (least <= prefix.len() || rest)
}
