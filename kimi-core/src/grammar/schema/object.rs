//! Objects: which names they take, and how many.

use std::collections::BTreeSet;

use llguidance::derivre::{RegexAst, RegexBuilder};
use serde_json::{Map, Value, json};

use super::logic::is_assertion;
use super::{At, Keywords, Rewriter, below, count, fault, text};
use crate::chat_model::GrammarFault;

/// States that a look at two patterns may take.
const MAX_STATES: u64 = 5_000;
/// Most bytes of listed names that an expression excludes; an object with more takes no others.
const MAX_LISTED: usize = 4096;
/// How deep references are followed to find an object's names.
const MAX_FOLLOWED: usize = 16;

impl Rewriter<'_> {
    /// Writes the keywords of objects.
    pub(super) fn object(
        &mut self,
        keywords: &Keywords,
        at: At<'_>,
        in_place: usize,
        base: &mut Map<String, Value>,
    ) -> Result<(), GrammarFault> {
        let At { path, depth, closed } = at;
        let mut properties = Map::new();
        for (name, schema) in fields(keywords, "properties", path)? {
            let schema = self.schema(schema, &below(path, "properties", name), true, depth + 1)?;
            properties.insert(name.clone(), schema);
        }
        let mut required = names(keywords, "required", path)?;
        let lists = keywords.contains_key("properties");
        // No others are allowed, or none that the schema speaks of.
        let mut others = match (keywords.get("additionalProperties"), keywords.get("unevaluatedProperties")) {
            (None, Some(Value::Bool(false))) if in_place == 0 => Value::Bool(false),
            (None, None | Some(Value::Bool(true))) => Value::Bool(!(closed && lists)),
            (None, Some(_)) => {
                let reason = "is supported as false, and only beside neither $ref nor allOf, anyOf and the like; use additionalProperties";
                return Err(fault(path, "unevaluatedProperties", reason));
            }
            (Some(schema), _) => {
                self.schema(schema, &format!("{path}/additionalProperties"), true, depth + 1)?
            }
        };
        let mut patterns = Vec::new();
        for (pattern, schema) in fields(keywords, "patternProperties", path)? {
            let place = below(path, "patternProperties", pattern);
            let expression = text::expression(pattern)
                .map_err(|reason| GrammarFault::Schema { path: place.clone(), reason })?;
            patterns.push((expression, self.schema(schema, &place, true, depth + 1)?));
        }
        let named = self.named(keywords, path)?;
        if named.as_deref() != Some("") {
            let Some(expression) = named.filter(|_| patterns.is_empty()) else {
                let reason =
                    "is supported as a pattern, a length or an enum, without patternProperties beside it";
                return Err(fault(path, "propertyNames", reason));
            };
            let wrong = properties.iter_mut().filter(|(name, _)| !matches(&expression, name));
            wrong.for_each(|(_, schema)| *schema = Value::Bool(false));
            if properties.is_empty() && others != Value::Bool(false) {
                patterns.push((expression, others));
            }
            others = Value::Bool(false);
        } else if !patterns.is_empty() {
            self.patterns(&mut properties, &required, &mut patterns, &others, path)?;
            others = Value::Bool(false);
        }
        if others != Value::Bool(false) && !properties.is_empty() {
            if closed {
                // A pattern's names are read without the escapes that could spell a listed name in another way.
                let listed = properties.keys().map(String::as_str);
                if properties.keys().map(String::len).sum::<usize>() <= MAX_LISTED {
                    patterns.push((text::others(listed), others));
                }
                others = Value::Bool(false);
            } else {
                self.names_once &= self.closes;
            }
        }
        for name in &required {
            if others == Value::Bool(false) && lists && patterns.is_empty() && !properties.contains_key(name)
            {
                let free = closed
                    && !keywords.contains_key("additionalProperties")
                    && !keywords.contains_key("patternProperties");
                properties.insert(name.clone(), Value::Bool(free));
            }
        }
        let bounds = (count(keywords, "minProperties", path)?, count(keywords, "maxProperties", path)?);
        if bounds != (None, None) {
            amount(bounds, &mut properties, &mut required, (&mut patterns, &mut others), base, path)?;
        }
        if !properties.is_empty() {
            base.insert("properties".into(), properties.into());
        }
        if !required.is_empty() {
            base.insert("required".into(), required.into());
        }
        if others != Value::Bool(true) {
            base.insert("additionalProperties".into(), others);
        }
        if !patterns.is_empty() {
            base.insert("patternProperties".into(), patterns.into_iter().collect::<Map<_, _>>().into());
        }
        Ok(())
    }

    /// Patterns of names: what a listed name's pattern says holds for it too, and patterns that overlap are left out, with
    /// all names that they match.
    fn patterns(
        &mut self,
        properties: &mut Map<String, Value>,
        required: &[String],
        patterns: &mut Vec<(String, Value)>,
        others: &Value,
        path: &str,
    ) -> Result<(), GrammarFault> {
        for name in required {
            if !properties.contains_key(name) {
                let matched = patterns.iter().any(|(pattern, _)| matches(pattern, name));
                properties.insert(name.clone(), if matched { Value::Bool(true) } else { others.clone() });
            }
        }
        for (name, schema) in properties.iter_mut() {
            for (pattern, of_pattern) in patterns.iter() {
                if matches(pattern, name) {
                    *schema = json!({"allOf": [schema, of_pattern]});
                }
            }
        }
        let overlap = patterns.iter().enumerate().any(|(place, (pattern, _))| {
            patterns[place + 1..].iter().any(|(other, _)| !disjoint(pattern, other))
        });
        if overlap {
            if properties.is_empty() {
                let reason =
                    "the patterns match the same names, which is not supported; make them exclude each other";
                return Err(fault(path, "patternProperties", reason));
            }
            patterns.clear();
        }
        Ok(())
    }

    /// An expression for the names that `propertyNames` allows, empty for all; `None` if there is none.
    fn named(&self, keywords: &Keywords, path: &str) -> Result<Option<String>, GrammarFault> {
        const TAKEN: [&str; 6] = ["type", "enum", "const", "pattern", "minLength", "maxLength"];
        let names = match keywords.get("propertyNames") {
            Some(Value::Bool(true)) | None => return Ok(Some(String::new())),
            Some(Value::Object(names)) => names,
            Some(_) => return Ok(None),
        };
        let place = format!("{path}/propertyNames");
        let target =
            names.get("$ref").and_then(|reference| self.target(reference)).and_then(Value::as_object);
        let names = if names.len() == 1 { target.unwrap_or(names) } else { names };
        if names.keys().any(|key| is_assertion(key) && !TAKEN.contains(&key.as_str())) {
            return Ok(None);
        }
        let listed = names.get("enum").cloned().or_else(|| names.get("const").map(|name| json!([name])));
        if let Some(Value::Array(listed)) = listed {
            let listed: Vec<String> = listed.iter().filter_map(Value::as_str).map(escape).collect();
            return Ok((!listed.is_empty()).then(|| format!("^({})$", listed.join("|"))));
        }
        let lengths = (count(names, "minLength", &place)?, count(names, "maxLength", &place)?);
        match (names.get("pattern").and_then(Value::as_str), lengths) {
            (Some(pattern), (None, None)) => {
                text::expression(pattern).map(Some).map_err(|reason| fault(&place, "pattern", reason))
            }
            (Some(_), _) => Ok(None),
            (None, (None, None)) => Ok(Some(String::new())),
            (None, (min, max)) => {
                let max = max.map_or(String::new(), |max| max.min(1024).to_string());
                Ok(Some(format!(r"^[\x{{0}}-\x{{10ffff}}]{{{},{max}}}$", min.unwrap_or(0))))
            }
        }
    }

    /// What closes an object that several schemas speak of: all their names, and no others.
    pub(super) fn closing(&self, keywords: &Keywords) -> Option<Value> {
        let mut names = BTreeSet::new();
        let known = self.known_names(keywords, &mut names, MAX_FOLLOWED);
        if !known || names.is_empty() {
            return None;
        }
        let names: Map<String, Value> = names.into_iter().map(|name| (name, Value::Bool(true))).collect();
        Some(json!({"properties": names, "additionalProperties": false}))
    }

    /// Collects the names that schemas for one object list; `false` if they say something of others.
    fn known_names(&self, keywords: &Keywords, names: &mut BTreeSet<String>, follow: usize) -> bool {
        let open = keywords.get("additionalProperties").is_some_and(|others| others != &Value::Bool(false))
            || keywords.contains_key("patternProperties")
            || keywords.contains_key("propertyNames");
        if open || follow == 0 {
            return false;
        }
        if let Some(Value::Object(properties)) = keywords.get("properties") {
            names.extend(properties.keys().cloned());
        }
        if let Some(Value::Array(required)) = keywords.get("required") {
            names.extend(required.iter().filter_map(Value::as_str).map(str::to_owned));
        }
        let mut inner: Vec<&Value> = Vec::new();
        for key in ["allOf", "anyOf", "oneOf"] {
            inner.extend(keywords.get(key).and_then(Value::as_array).into_iter().flatten());
        }
        for key in ["then", "else", "if"] {
            inner.extend(keywords.get(key));
        }
        for key in ["dependentSchemas", "dependencies"] {
            inner.extend(keywords.get(key).and_then(Value::as_object).into_iter().flat_map(Map::values));
        }
        inner.extend(keywords.get("$ref").and_then(|reference| self.target(reference)));
        inner
            .into_iter()
            .filter_map(Value::as_object)
            .all(|keywords| self.known_names(keywords, names, follow - 1))
    }
}

/// Numbers of properties: llguidance counts only where all listed names are required.
fn amount(
    (min, max): (Option<usize>, Option<usize>),
    properties: &mut Map<String, Value>,
    required: &mut Vec<String>,
    (patterns, others): (&mut Vec<(String, Value)>, &mut Value),
    base: &mut Map<String, Value>,
    path: &str,
) -> Result<(), GrammarFault> {
    let open = !patterns.is_empty() || *others != Value::Bool(false);
    let mut optional: Vec<String> = properties
        .iter()
        .filter(|(name, schema)| !required.contains(name) && **schema != Value::Bool(false))
        .map(|(name, _)| name.clone())
        .collect();
    let missing = min.unwrap_or(0).saturating_sub(required.len());
    if missing == 1 && max.is_none() && !open && !optional.is_empty() {
        base.insert("minProperties".into(), (required.len() + 1).into());
        return Ok(());
    }
    // The first optional ones are required then.
    let promoted = missing.min(optional.len());
    required.extend(optional.drain(..promoted));
    let unlisted = missing - promoted;
    if unlisted > 0 {
        if !open {
            return Err(fault(path, "minProperties", "the object has fewer properties than it must have"));
        }
        if unlisted > 1 {
            let reason = format!(
                "{unlisted} names that are not listed would have to differ, which can't be enforced; list them"
            );
            return Err(fault(path, "minProperties", reason));
        }
        base.insert("minProperties".into(), (required.len() + unlisted).into());
    }
    let Some(max) = max else { return Ok(()) };
    let Some(room) = max.checked_sub(required.len() + unlisted) else {
        return Err(fault(path, "maxProperties", format!("{max} is less than the object must have")));
    };
    if optional.is_empty() {
        base.insert("maxProperties".into(), max.into());
        return Ok(());
    }
    // The last optional ones are left out then.
    for name in optional.into_iter().skip(room) {
        properties.insert(name, Value::Bool(false));
    }
    patterns.clear();
    *others = Value::Bool(false);
    Ok(())
}

fn fields<'v>(
    keywords: &'v Keywords,
    keyword: &str,
    path: &str,
) -> Result<impl Iterator<Item = (&'v String, &'v Value)>, GrammarFault> {
    let fields = match keywords.get(keyword) {
        None => None,
        Some(Value::Object(fields)) => Some(fields),
        Some(other) => {
            return Err(fault(path, keyword, format!("expected an object of schemas, found {other}")));
        }
    };
    Ok(fields.into_iter().flatten())
}

pub(super) fn names(keywords: &Keywords, keyword: &str, path: &str) -> Result<Vec<String>, GrammarFault> {
    let mut found = Vec::new();
    match keywords.get(keyword) {
        None => {}
        Some(Value::Array(list)) => {
            for name in list {
                let name =
                    name.as_str().ok_or_else(|| fault(path, keyword, "expected names of properties"))?;
                if !found.iter().any(|known| known == name) {
                    found.push(name.to_owned());
                }
            }
        }
        // Draft 3 had a boolean here, which some generators still write; validators refuse it.
        Some(other) => return Err(fault(path, keyword, format!("expected a list of names, found {other}"))),
    }
    Ok(found)
}

/// Whether a rewritten pattern matches within a name; yes, if it can't be told.
fn matches(pattern: &str, name: &str) -> bool {
    let mut builder = RegexBuilder::new();
    let Ok(expression) = builder.mk_regex_for_serach(pattern) else { return true };
    builder.to_regex_limited(expression, MAX_STATES).map_or(true, |mut regex| regex.is_match(name))
}

/// Whether no name matches both patterns, as far as can be told.
fn disjoint(one: &str, other: &str) -> bool {
    let mut builder = RegexBuilder::new();
    let both = (|| {
        let one = builder.mk_regex_for_serach(one)?;
        let other = builder.mk_regex_for_serach(other)?;
        builder.mk(&RegexAst::And(vec![RegexAst::ExprRef(one), RegexAst::ExprRef(other)]))
    })();
    let Ok(both) = both else { return false };
    builder.to_regex_limited(both, MAX_STATES).is_ok_and(|mut regex| regex.always_empty())
}

fn escape(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_alphanumeric() { c.to_string() } else { format!("\\x{{{:x}}}", c as u32) })
        .collect()
}
