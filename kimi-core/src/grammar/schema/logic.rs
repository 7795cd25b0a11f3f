//! Schemas that apply others to the same value: alternatives, conditions, exclusions.

use serde_json::{Map, Value, json};

use super::facts::{Facts, equal, speaks_of_objects};
use super::{
    At, IN_PLACE, Keywords, OF_ARRAYS, OF_NUMBERS, OF_OBJECTS, OF_STRINGS, Rewriter, TYPES, below, fault,
    object, text,
};
use crate::chat_model::GrammarFault;

/// Most dependencies of names that become alternatives; each doubles their number.
const MAX_DEPENDENCIES: usize = 4;

/// Whether the one schema that these keywords apply is all that they say, so that it stands for them.
pub(super) fn passes(keywords: &Keywords) -> bool {
    let one = |key: &str| keywords.get(key).and_then(Value::as_array).is_some_and(|list| list.len() == 1);
    ["$ref", "anyOf", "oneOf"].iter().any(|key| keywords.contains_key(*key)) || one("allOf")
}

/// Whether a keyword restricts values.
pub(super) fn is_assertion(key: &str) -> bool {
    let lists =
        [&IN_PLACE[..], &OF_OBJECTS, &OF_ARRAYS, &OF_STRINGS, &OF_NUMBERS, &["type", "enum", "const"]];
    lists.iter().any(|list| list.contains(&key))
}

impl Rewriter<'_> {
    /// Adds what the keywords apply in place to `all`. Where `at.closed`, what is applied stands for the whole.
    pub(super) fn logic(
        &mut self,
        keywords: &Keywords,
        at: At<'_>,
        all: &mut Vec<Value>,
    ) -> Result<(), GrammarFault> {
        let At { path, closed, depth } = at;
        let open = At { closed: false, ..at };
        if let Some(reference) = keywords.get("$ref") {
            all.push(self.reference(reference, path, closed)?);
        }
        if let Some(list) = keywords.get("allOf") {
            all.extend(self.list(list, at, "allOf")?);
        }
        if let Some(list) = keywords.get("anyOf") {
            all.push(json!({"anyOf": self.list(list, at, "anyOf")?}));
        }
        if let Some(list) = keywords.get("oneOf") {
            all.push(self.one_of(keywords, list, at)?);
        }
        let parent = Value::Object(keywords.clone());
        if let Some(not) = keywords.get("not") {
            let negated = self.negated(not, &parent).ok_or_else(|| {
                fault(path, "not", "can't be enforced in this form; say what is allowed instead")
            })?;
            all.push(self.schema(&negated, &format!("{path}/not"), false, depth + 1)?);
        }
        if let Some(condition) = keywords.get("if") {
            all.push(self.condition(keywords, condition, &parent, open)?);
        }
        self.dependencies(keywords, open, all)
    }

    /// Alternatives of which exactly one holds: each with what excludes the others.
    fn one_of(&mut self, keywords: &Keywords, list: &Value, at: At<'_>) -> Result<Value, GrammarFault> {
        let path = at.path;
        let options = list.as_array().filter(|list| !list.is_empty());
        let options =
            options.ok_or_else(|| fault(path, "oneOf", "expected a list of schemas that is not empty"))?;
        // What stands beside the alternatives holds for each.
        let beside: Map<String, Value> = keywords
            .iter()
            .filter(|(key, _)| !IN_PLACE.contains(&key.as_str()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let beside = Value::Object(beside);
        let whole: Vec<Value> = options.iter().map(|option| json!({"allOf": [option, beside]})).collect();
        let mut alternatives = Vec::new();
        for (place, option) in options.iter().enumerate() {
            let Some(exclusions) = self.exclusions(place, options, &whole) else { continue };
            let at_option = below(path, "oneOf", &place.to_string());
            // Names that are excluded are no reason to allow others.
            let rewritten = self.schema(option, &at_option, at.closed, at.depth + 1)?;
            let mut all = vec![rewritten];
            for exclusion in exclusions {
                all.push(self.schema(&exclusion, &at_option, false, at.depth + 1)?);
            }
            alternatives.push(if all.len() == 1 { all.swap_remove(0) } else { json!({"allOf": all}) });
        }
        if alternatives.is_empty() {
            let reason = "its alternatives overlap in a way that can't be told apart; use anyOf, or a property with a const";
            return Err(fault(path, "oneOf", reason));
        }
        Ok(json!({"anyOf": alternatives}))
    }

    /// What keeps values of an option from being values of the others; `None` if nothing does.
    fn exclusions(&self, place: usize, options: &[Value], whole: &[Value]) -> Option<Vec<Value>> {
        let own = Facts::of(self, &whole[place]);
        let mut values = own.values.clone();
        let mut exclusions = Vec::new();
        for (other, schema) in whole.iter().enumerate().filter(|(other, _)| *other != place) {
            let other_facts = Facts::of(self, schema);
            if own.excludes(self, &other_facts) {
                continue;
            }
            if let Some(values) = &mut values {
                values.retain(|value| other_facts.refuses(value));
                continue;
            }
            let about_objects = |value: &Value| value.as_object().is_some_and(speaks_of_objects);
            if !(own.is_object() || about_objects(&options[place]))
                || !(other_facts.is_object() || about_objects(&options[other]))
            {
                return None;
            }
            if let Some(name) = own.told_by(self, &other_facts) {
                exclusions.push(json!({"type": "object", "required": [name]}));
                continue;
            }
            let optional = other_facts.required.iter().filter(|name| !own.required.contains(*name));
            // A name that the option doesn't list is no loss.
            let name = optional.min_by_key(|name| own.properties.contains_key(**name))?;
            exclusions.push(json!({"type": "object", "properties": {*name: false}}));
        }
        match values {
            Some(values) if values.is_empty() => None,
            Some(values) if own.values.as_ref().is_some_and(|all| all.len() > values.len()) => {
                exclusions.push(json!({"enum": values}));
                Some(exclusions)
            }
            _ => Some(exclusions),
        }
    }

    /// `if`, `then` and `else`: the condition and its consequence, or its negation and the other one.
    fn condition(
        &mut self,
        keywords: &Keywords,
        condition: &Value,
        parent: &Value,
        at: At<'_>,
    ) -> Result<Value, GrammarFault> {
        let all = Value::Bool(true);
        let (then, otherwise) = (keywords.get("then").unwrap_or(&all), keywords.get("else").unwrap_or(&all));
        let mut alternatives = vec![json!({"allOf": [condition, then]})];
        if let Some(negated) = self.negated(condition, parent) {
            alternatives.push(json!({"allOf": [negated, otherwise]}));
        }
        let place = format!("{}/if", at.path);
        let rewritten: Result<Vec<_>, _> =
            alternatives.iter().map(|schema| self.schema(schema, &place, false, at.depth + 1)).collect();
        Ok(json!({"anyOf": rewritten?}))
    }

    /// Names and schemas that depend on a name's presence.
    fn dependencies(
        &mut self,
        keywords: &Keywords,
        at: At<'_>,
        all: &mut Vec<Value>,
    ) -> Result<(), GrammarFault> {
        let mut seen = 0;
        for keyword in ["dependentRequired", "dependentSchemas", "dependencies"] {
            let Some(value) = keywords.get(keyword) else { continue };
            let dependencies =
                value.as_object().ok_or_else(|| fault(at.path, keyword, "expected an object"))?;
            for (name, consequence) in dependencies {
                let consequence = match consequence {
                    Value::Array(_) => {
                        json!({"type": "object", "required": object::names(dependencies, name, at.path)?})
                    }
                    schema => schema.clone(),
                };
                seen += 1;
                let schema = if seen > MAX_DEPENDENCIES {
                    consequence
                } else {
                    json!({"anyOf": [{"type": "object", "properties": {name: false}}, consequence]})
                };
                all.push(self.schema(&schema, &below(at.path, keyword, name), false, at.depth + 1)?);
            }
        }
        Ok(())
    }

    /// A schema whose values are none of `schema`; there may be more such values. `context` holds for them too.
    fn negated(&self, schema: &Value, context: &Value) -> Option<Value> {
        let keywords = match schema {
            Value::Bool(all) => return Some(Value::Bool(!all)),
            Value::Object(keywords) => keywords,
            _ => return None,
        };
        let facts = Facts::of(self, context);
        let mut ways = Vec::new();
        for (key, value) in keywords.iter().filter(|(key, _)| is_assertion(key)) {
            ways.extend(self.negated_keyword(key, value, &facts));
        }
        match ways.len() {
            0 if keywords.keys().any(|key| is_assertion(key)) => None,
            0 => Some(Value::Bool(false)),
            1 => ways.pop(),
            _ => Some(json!({"anyOf": ways})),
        }
    }

    fn negated_keyword(&self, key: &str, value: &Value, facts: &Facts<'_>) -> Option<Value> {
        let of_type =
            |names: &[&str]| TYPES.iter().filter(|name| !names.contains(name)).copied().collect::<Vec<_>>();
        let number = || json!({"type": "number"});
        let with = |mut schema: Value, key: &str, value: Value| {
            if let Some(schema) = schema.as_object_mut() {
                schema.insert(key.into(), value);
            }
            schema
        };
        match key {
            "type" => {
                let mut names: Vec<&str> = match value {
                    Value::String(name) => vec![name],
                    Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
                    _ => return None,
                };
                names.extend(if names.contains(&"number") { Some("integer") } else { None });
                names.extend(if names.contains(&"integer") { Some("number") } else { None });
                let others = of_type(&names);
                (!others.is_empty()).then(|| json!({"type": others}))
            }
            "const" | "enum" => {
                let excluded = if key == "const" { std::slice::from_ref(value) } else { value.as_array()? };
                let Some(left) = facts.finite_values() else { return unequal(excluded, facts) };
                let left: Vec<_> =
                    left.into_iter().filter(|v| !excluded.iter().any(|e| equal(e, v))).collect();
                (!left.is_empty()).then(|| json!({"enum": left}))
            }
            "required" => {
                let names = value.as_array()?.iter().filter_map(Value::as_str);
                let absent = |name: &str| json!({"type": "object", "properties": {name: false}});
                Some(json!({"anyOf": names.map(absent).collect::<Vec<_>>()}))
            }
            "properties" => {
                let ways = value.as_object()?.iter().filter_map(|(name, schema)| {
                    let all = Value::Bool(true);
                    let negated = self.negated(schema, facts.properties.get(name).unwrap_or(&all))?;
                    Some(json!({"type": "object", "required": [name], "properties": {name: negated}}))
                });
                let ways: Vec<_> = ways.collect();
                (!ways.is_empty()).then(|| json!({"anyOf": ways}))
            }
            "not" => Some(value.clone()),
            "anyOf" => {
                let each: Option<Vec<_>> =
                    value.as_array()?.iter().map(|s| self.negated(s, &Value::Bool(true))).collect();
                each.map(|each| json!({"allOf": each}))
            }
            "allOf" => {
                let each: Vec<_> =
                    value.as_array()?.iter().filter_map(|s| self.negated(s, &Value::Bool(true))).collect();
                (!each.is_empty()).then(|| json!({"anyOf": each}))
            }
            "minimum" => Some(with(number(), "exclusiveMaximum", value.clone())),
            "maximum" => Some(with(number(), "exclusiveMinimum", value.clone())),
            "exclusiveMinimum" if value.is_number() => Some(with(number(), "maximum", value.clone())),
            "exclusiveMaximum" if value.is_number() => Some(with(number(), "minimum", value.clone())),
            "minLength" => Some(json!({"type": "string", "maxLength": value.as_u64()?.checked_sub(1)?})),
            "maxLength" => Some(json!({"type": "string", "minLength": value.as_u64()? + 1})),
            "minItems" => Some(json!({"type": "array", "maxItems": value.as_u64()?.checked_sub(1)?})),
            "maxItems" => Some(json!({"type": "array", "minItems": value.as_u64()? + 1})),
            _ => None,
        }
    }
}

/// Strings that are none of some strings, where strings are expected.
fn unequal(excluded: &[Value], facts: &Facts<'_>) -> Option<Value> {
    const MAX_BYTES: usize = 1024;
    if facts.types.as_ref().is_none_or(|types| types.iter().any(|name| *name != "string")) {
        return None;
    }
    let excluded: Vec<&str> = excluded.iter().filter_map(Value::as_str).collect();
    let few = excluded.iter().map(|name| name.len()).sum::<usize>() <= MAX_BYTES;
    few.then(|| json!({"type": "string", "pattern": text::others(excluded.into_iter())}))
}
