//! What is surely true of a schema's values, to tell schemas that no value satisfies both.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Keywords, OF_OBJECTS, Rewriter};

/// How deep references and `allOf` are followed.
const MAX_FOLLOWED: usize = 8;
/// How deep properties are compared.
const MAX_COMPARED: usize = 4;

/// Conditions that every value of a schema satisfies; there may be more.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts<'v> {
    /// Its types; `None` for any.
    pub(super) types: Option<BTreeSet<&'v str>>,
    /// All its values.
    pub(super) values: Option<Vec<&'v Value>>,
    pub(super) required: BTreeSet<&'v str>,
    pub(super) properties: Map<String, Value>,
    /// Whether it takes no names but those of `properties`.
    closed: bool,
    least: Option<f64>,
    most: Option<f64>,
}

impl<'v> Facts<'v> {
    pub(super) fn of(rewriter: &'v Rewriter<'_>, schema: &'v Value) -> Self {
        let mut facts = Self::default();
        facts.add(rewriter, schema, MAX_FOLLOWED);
        facts
    }

    fn add(&mut self, rewriter: &'v Rewriter<'_>, schema: &'v Value, follow: usize) {
        let Some(keywords) = schema.as_object() else { return };
        self.add_types(keywords);
        let values = match (keywords.get("const"), keywords.get("enum")) {
            (Some(value), _) => Some(vec![value]),
            (None, Some(Value::Array(values))) => Some(values.iter().collect()),
            _ => None,
        };
        self.values = match (self.values.take(), values) {
            (Some(known), Some(values)) => Some(known.into_iter().filter(|v| values.contains(v)).collect()),
            (known, values) => known.or(values),
        };
        if let Some(Value::Array(required)) = keywords.get("required") {
            self.required.extend(required.iter().filter_map(Value::as_str));
        }
        let listed = keywords.get("properties").and_then(Value::as_object);
        for (name, schema) in listed.into_iter().flatten() {
            self.properties.entry(name.clone()).or_insert_with(|| schema.clone());
        }
        if keywords.get("additionalProperties") == Some(&Value::Bool(false))
            && !keywords.contains_key("patternProperties")
        {
            self.closed = true;
            for name in self.required.iter().filter(|name| listed.is_none_or(|l| !l.contains_key(**name))) {
                self.properties.insert((*name).to_owned(), Value::Bool(false));
            }
        }
        let number = |key: &str| keywords.get(key).and_then(Value::as_f64);
        self.least =
            number("minimum").or(number("exclusiveMinimum")).into_iter().chain(self.least).reduce(f64::max);
        self.most =
            number("maximum").or(number("exclusiveMaximum")).into_iter().chain(self.most).reduce(f64::min);
        if follow == 0 {
            return;
        }
        if let Some(target) = keywords.get("$ref").and_then(|reference| rewriter.target(reference)) {
            self.add(rewriter, target, follow - 1);
        }
        for schema in keywords.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            self.add(rewriter, schema, follow - 1);
        }
    }

    fn add_types(&mut self, keywords: &'v Keywords) {
        let named: Option<BTreeSet<&str>> = match keywords.get("type") {
            Some(Value::String(name)) => Some([name.as_str()].into()),
            Some(Value::Array(names)) => Some(names.iter().filter_map(Value::as_str).collect()),
            _ => None,
        };
        self.types = match (self.types.take(), named) {
            (Some(known), Some(named)) => {
                let both =
                    |name: &&str| named.contains(name) || (*name == "integer" && named.contains("number"));
                let mut common: BTreeSet<&str> = known.iter().copied().filter(both).collect();
                if named.contains("integer") && known.contains("number") {
                    common.insert("integer");
                }
                Some(common)
            }
            (known, named) => known.or(named),
        };
    }

    /// All values, where they are few and known.
    pub(super) fn finite_values(&self) -> Option<Vec<Value>> {
        if let Some(values) = &self.values {
            let mut different: Vec<Value> = Vec::new();
            for value in values {
                if !different.iter().any(|known| equal(known, value)) && super::is_exact(value) {
                    different.push((*value).clone());
                }
            }
            return Some(different);
        }
        let types = self.types.as_ref()?;
        let mut values = Vec::new();
        for name in types {
            match *name {
                "null" => values.push(Value::Null),
                "boolean" => values.extend([Value::Bool(false), Value::Bool(true)]),
                _ => return None,
            }
        }
        Some(values)
    }

    /// Whether values are objects only.
    pub(super) fn is_object(&self) -> bool {
        self.types.as_ref().is_some_and(|types| types.iter().all(|name| *name == "object"))
    }

    /// Whether surely no value satisfies both.
    pub(super) fn excludes(&self, rewriter: &Rewriter<'_>, other: &Facts<'_>) -> bool {
        self.excludes_within(rewriter, other, MAX_COMPARED)
    }

    fn excludes_within(&self, rewriter: &Rewriter<'_>, other: &Facts<'_>, depth: usize) -> bool {
        if let (Some(one), Some(two)) = (&self.types, &other.types)
            && !one.iter().any(|a| two.iter().any(|b| types_meet(a, b)))
        {
            return true;
        }
        if self.values_outside(other) || other.values_outside(self) {
            return true;
        }
        let numeric = |facts: &Facts<'_>| {
            facts.types.as_ref().is_some_and(|t| t.iter().all(|name| matches!(*name, "integer" | "number")))
        };
        if numeric(self) && numeric(other) {
            let apart = |a: &Facts<'_>, b: &Facts<'_>| matches!((a.most, b.least), (Some(most), Some(least)) if most < least);
            if apart(self, other) || apart(other, self) {
                return true;
            }
        }
        if !self.is_object() || !other.is_object() || depth == 0 {
            return false;
        }
        let missing = |a: &Facts<'_>, b: &Facts<'_>| {
            b.closed && a.required.iter().any(|name| !b.properties.contains_key(*name))
        };
        if missing(self, other) || missing(other, self) {
            return true;
        }
        self.properties.iter().any(|(name, schema)| {
            let name = name.as_str();
            (self.required.contains(name) || other.required.contains(name))
                && other.properties.get(name).is_some_and(|two| apart(rewriter, schema, two, depth - 1))
        })
    }

    /// Whether all values are known, and none is the other's.
    fn values_outside(&self, other: &Facts<'_>) -> bool {
        self.values.as_ref().is_some_and(|values| values.iter().all(|value| other.refuses(value)))
    }

    /// Whether the value is surely none of these.
    pub(super) fn refuses(&self, value: &Value) -> bool {
        let wrong_type = self
            .types
            .as_ref()
            .is_some_and(|types| !types.iter().any(|name| types_meet(name, type_of(value))));
        let not_listed =
            self.values.as_ref().is_some_and(|values| !values.iter().any(|known| equal(known, value)));
        wrong_type || not_listed
    }

    /// A property that both list and that can't have the same value in both.
    pub(super) fn told_by(&self, rewriter: &Rewriter<'_>, other: &Facts<'_>) -> Option<&str> {
        let tells = |(name, schema): &(&String, &Value)| {
            other.properties.get(*name).is_some_and(|two| apart(rewriter, schema, two, MAX_COMPARED))
        };
        self.properties.iter().find(tells).map(|(name, _)| name.as_str())
    }
}

fn apart(rewriter: &Rewriter<'_>, one: &Value, two: &Value, depth: usize) -> bool {
    if one == &Value::Bool(false) || two == &Value::Bool(false) {
        return true;
    }
    Facts::of(rewriter, one).excludes_within(rewriter, &Facts::of(rewriter, two), depth)
}

fn types_meet(one: &str, two: &str) -> bool {
    one == two || matches!((one, two), ("integer", "number") | ("number", "integer"))
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Whether values are equal as JSON Schema means it: 1 is 1.0.
pub(super) fn equal(one: &Value, two: &Value) -> bool {
    match (one, two) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => one == two,
    }
}

/// Whether a schema without a type can only be about objects.
pub(super) fn speaks_of_objects(keywords: &Keywords) -> bool {
    OF_OBJECTS.iter().any(|key| keywords.contains_key(*key))
}
