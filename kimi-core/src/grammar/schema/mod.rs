//! Rewrites JSON schemas so that llguidance takes them, and so that every text it then allows validates.
//!
//! The result may allow less than the schema, never more. It has no keyword that llguidance lacks, no reference but to its
//! own `$defs`, and no name or number that llguidance would read otherwise than a validator does:
//!
//! - Objects whose schema lists properties and says nothing of others take no others (`object.rs`).
//! - `if`, `not`, `oneOf`, `dependentRequired` and the like become alternatives (`logic.rs`, `facts.rs`).
//! - `uniqueItems` and `contains` become lists of positions (`array.rs`).
//! - Patterns and formats become expressions that no dialect reads in another way (`text.rs`).
//! - A definition that nothing finite satisfies is `false` (`finite.rs`).
//!
//! What can't be rewritten is refused with the path of its keyword.

mod array;
mod facts;
mod finite;
mod logic;
mod object;
mod refs;
mod text;

use std::collections::{HashMap, VecDeque};

use serde_json::{Map, Value, json};

pub(super) use text::expression;

use crate::chat_model::GrammarFault;

/// Most schemas within a schema, those that references lead to counted once.
const MAX_SCHEMAS: usize = 10_000;
/// Deepest nesting of schemas within schemas.
const MAX_DEPTH: usize = 64;
/// Most values of an `enum`.
const MAX_VALUES: usize = 2_000;
/// Largest integer that every reader of JSON takes as it is written.
const MAX_SAFE_INTEGER: i64 = (1 << 53) - 1;

/// Largest multiple where a schema says no more than what it is a multiple of.
const MAX_MULTIPLE: i64 = 1_000_000_000_000;

const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];
/// Keywords that apply other schemas to the same value.
const IN_PLACE: [&str; 9] =
    ["$ref", "allOf", "anyOf", "oneOf", "not", "if", "dependentRequired", "dependentSchemas", "dependencies"];
/// Keywords by the type of value that they are about.
const OF_OBJECTS: [&str; 8] = [
    "properties",
    "required",
    "additionalProperties",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "unevaluatedProperties",
];
const OF_ARRAYS: [&str; 6] = ["items", "prefixItems", "minItems", "maxItems", "contains", "uniqueItems"];
const OF_STRINGS: [&str; 4] = ["minLength", "maxLength", "pattern", "format"];
const OF_NUMBERS: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
/// Keywords whose meaning depends on where a schema is applied from, or on what others have looked at.
const REFUSED: [&str; 3] = ["$dynamicRef", "$recursiveRef", "unevaluatedItems"];

type Keywords = Map<String, Value>;

/// A schema for llguidance.
pub(super) struct Normalized {
    pub(super) schema: Value,
    /// Whether a name can be spelled in one way only, or does not matter. If not, `\\u` must not be allowed in strings: with
    /// it a listed name could be spelled so that it passes for another one.
    pub(super) names_once: bool,
}

/// The schema for llguidance.
pub(super) fn normalize(schema: &Value) -> Result<Normalized, GrammarFault> {
    let mut rewriter = Rewriter {
        root: schema,
        numbers: HashMap::new(),
        pending: VecDeque::new(),
        schemas: 0,
        names_once: true,
        closes: false,
    };
    let mut root = rewriter.schema(schema, "#", true, 0)?;
    let mut definitions = Map::new();
    while let Some((number, pointer, closed)) = rewriter.pending.pop_front() {
        let target = rewriter.root.pointer(&pointer).unwrap_or(&Value::Bool(false));
        let target = rewriter.schema(target, &format!("#{pointer}"), closed, 0)?;
        definitions.insert(number.to_string(), target);
    }
    finite::prune(&mut root, &mut definitions);
    if let (Some(root), false) = (root.as_object_mut(), definitions.is_empty()) {
        root.insert("$defs".into(), definitions.into());
    }
    Ok(Normalized { schema: root, names_once: rewriter.names_once })
}

fn fault(path: &str, keyword: &str, reason: impl Into<String>) -> GrammarFault {
    GrammarFault::Schema { path: format!("{path}/{keyword}"), reason: reason.into() }
}

/// One keyword's place, with the characters escaped that a JSON pointer escapes.
fn below(path: &str, keyword: &str, name: &str) -> String {
    format!("{path}/{keyword}/{}", name.replace('~', "~0").replace('/', "~1"))
}

struct Rewriter<'a> {
    root: &'a Value,
    /// The definitions' numbers by the pointer to their source, and by whether they are closed.
    numbers: HashMap<(String, bool), usize>,
    /// Those that are still to be rewritten.
    pending: VecDeque<(usize, String, bool)>,
    schemas: usize,
    /// See [`Normalized::names_once`].
    names_once: bool,
    /// Whether the object that is written takes only names that its schemas list, whatever one of them says.
    closes: bool,
}

impl Rewriter<'_> {
    /// Rewrites the schema at `path`. `closed`: nothing else applies to the same object, so that one with listed properties
    /// takes no others.
    fn schema(
        &mut self,
        schema: &Value,
        path: &str,
        closed: bool,
        depth: usize,
    ) -> Result<Value, GrammarFault> {
        self.schemas += 1;
        if self.schemas > MAX_SCHEMAS {
            let (found, limit) = (self.schemas, MAX_SCHEMAS);
            return Err(GrammarFault::TooLarge {
                what: "the number of schemas within the schema",
                found,
                limit,
            });
        }
        if depth > MAX_DEPTH {
            return Err(GrammarFault::TooLarge {
                what: "the nesting of the schema",
                found: depth,
                limit: MAX_DEPTH,
            });
        }
        let keywords = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(keywords) => keywords,
            other => {
                let reason = format!("expected a schema (an object, true or false), found {other}");
                return Err(GrammarFault::Schema { path: path.to_owned(), reason });
            }
        };
        if let Some(keyword) = REFUSED.iter().find(|k| keywords.contains_key(**k)) {
            return Err(fault(path, keyword, "is not supported; write out what it stands for"));
        }
        let in_place = IN_PLACE.iter().filter(|k| keywords.contains_key(**k)).count();
        let others = OF_OBJECTS.iter().chain(&["enum", "const"]).any(|k| keywords.contains_key(*k));
        // A single reference or choice stands for the whole schema.
        let passes = in_place == 1 && !others && logic::passes(keywords);
        let at = At { path, closed: closed && in_place == 0, depth };
        let closing = if closed && in_place > 0 && !passes { self.closing(keywords) } else { None };
        let outer = self.closes;
        self.closes = if closed { closing.is_some() } else { outer };
        let mut base = Map::new();
        if let Some(types) = types(keywords, path)? {
            base.insert("type".into(), types.into());
        }
        values(keywords, path, &mut base)?;
        numbers(keywords, path, &mut base)?;
        text::strings(keywords, path, &mut base)?;
        let mut all = Vec::new();
        if OF_ARRAYS.iter().any(|k| keywords.contains_key(*k)) {
            self.array(keywords, at, &mut base, &mut all)?;
        }
        if OF_OBJECTS.iter().any(|k| keywords.contains_key(*k)) {
            self.object(keywords, at, in_place, &mut base)?;
        }
        if in_place > 0 {
            self.logic(keywords, At { closed: closed && passes, ..at }, &mut all)?;
            all.extend(closing);
        }
        self.closes = outer;
        Ok(match (base.is_empty(), all.len()) {
            (_, 0) => base.into(),
            (true, 1) => all.swap_remove(0),
            (true, _) => json!({"allOf": all}),
            (false, _) => {
                all.insert(0, base.into());
                json!({"allOf": all})
            }
        })
    }

    /// Schemas in a list.
    fn list(&mut self, list: &Value, at: At<'_>, keyword: &str) -> Result<Vec<Value>, GrammarFault> {
        let list = list.as_array().filter(|list| !list.is_empty());
        let list =
            list.ok_or_else(|| fault(at.path, keyword, "expected a list of schemas that is not empty"))?;
        let each = |(place, schema): (usize, &Value)| {
            self.schema(schema, &below(at.path, keyword, &place.to_string()), at.closed, at.depth + 1)
        };
        list.iter().enumerate().map(each).collect()
    }
}

/// Where a schema stands.
#[derive(Clone, Copy)]
struct At<'p> {
    path: &'p str,
    /// Whether an object with listed properties takes no others.
    closed: bool,
    depth: usize,
}

/// The types of a schema: those that it names, else those that its keywords are about.
fn types(keywords: &Keywords, path: &str) -> Result<Option<Vec<Value>>, GrammarFault> {
    let named: Vec<&str> = match keywords.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => {
            let names: Option<_> = names.iter().map(Value::as_str).collect();
            names.ok_or_else(|| fault(path, "type", "expected names of types"))?
        }
        Some(_) => return Err(fault(path, "type", "expected a name of a type, or a list of them")),
        None => {
            if keywords.contains_key("enum") || keywords.contains_key("const") {
                return Ok(None);
            }
            let about = |list: &[&str]| list.iter().any(|k| keywords.contains_key(*k));
            let mut implied = Vec::new();
            for (name, list) in [("object", &OF_OBJECTS[..]), ("array", &OF_ARRAYS), ("string", &OF_STRINGS)]
            {
                if about(list) {
                    implied.push(name);
                }
            }
            if about(&OF_NUMBERS) {
                implied.push("number");
            }
            if implied.is_empty() {
                return Ok(None);
            }
            implied
        }
    };
    if let Some(unknown) = named.iter().find(|name| !TYPES.contains(name)) {
        let reason = format!("there is no type {unknown:?}; types are {}", TYPES.join(", "));
        return Err(fault(path, "type", reason));
    }
    Ok(Some(named.into_iter().map(Value::from).collect()))
}

/// `enum` and `const`, without values that not every reader takes as they are written.
fn values(keywords: &Keywords, path: &str, base: &mut Map<String, Value>) -> Result<(), GrammarFault> {
    if let Some(value) = keywords.get("const") {
        if !is_exact(value) {
            return Err(fault(
                path,
                "const",
                format!("{value} is no number that every reader takes as it is written"),
            ));
        }
        base.insert("const".into(), value.clone());
    }
    let Some(list) = keywords.get("enum") else { return Ok(()) };
    let list = list.as_array().ok_or_else(|| fault(path, "enum", "expected a list of values"))?;
    if list.len() > MAX_VALUES {
        let (found, limit) = (list.len(), MAX_VALUES);
        return Err(GrammarFault::TooLarge { what: "the number of values of an enum", found, limit });
    }
    let exact: Vec<&Value> = list.iter().filter(|value| is_exact(value)).collect();
    if exact.is_empty() {
        return Err(fault(path, "enum", "there is no value that could be written"));
    }
    base.insert("enum".into(), json!(exact));
    Ok(())
}

fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) => float.abs() <= MAX_SAFE_INTEGER as f64,
            None => false,
        },
        Value::Array(items) => items.iter().all(is_exact),
        Value::Object(fields) => fields.values().all(is_exact),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

/// Bounds of numbers; booleans beside `minimum` and `maximum` are draft 4's.
fn numbers(keywords: &Keywords, path: &str, base: &mut Map<String, Value>) -> Result<(), GrammarFault> {
    for key in OF_NUMBERS {
        let Some(value) = keywords.get(key) else { continue };
        let bound = match value {
            Value::Bool(true) => keywords.get(if key == "exclusiveMinimum" { "minimum" } else { "maximum" }),
            Value::Bool(false) => None,
            value => Some(value),
        };
        let Some(bound) = bound else { continue };
        let number = bound.as_f64().filter(|number| number.is_finite());
        let number = number.ok_or_else(|| fault(path, key, format!("expected a number, found {bound}")))?;
        if key == "multipleOf" && !(number > 0.0 && number < f64::from(u32::MAX)) {
            return Err(fault(
                path,
                key,
                format!("expected a number above 0 and below 2^32, found {number}"),
            ));
        }
        base.insert(key.into(), bound.clone());
    }
    if base.contains_key("multipleOf") {
        // A reader rounds larger numbers, and then they are no multiples any more.
        let given = |keys: [&str; 2]| keys.iter().any(|key| base.contains_key(*key));
        let (below, above) = (given(["minimum", "exclusiveMinimum"]), given(["maximum", "exclusiveMaximum"]));
        if !below {
            base.insert("minimum".into(), (-MAX_MULTIPLE).into());
        }
        if !above {
            base.insert("maximum".into(), MAX_MULTIPLE.into());
        }
    }
    Ok(())
}

/// A keyword that counts.
fn count(keywords: &Keywords, key: &str, path: &str) -> Result<Option<usize>, GrammarFault> {
    let Some(value) = keywords.get(key) else { return Ok(None) };
    let float = value.as_f64().filter(|f| f.fract() == 0.0 && (0.0..1e15).contains(f));
    let count = float.ok_or_else(|| fault(path, key, format!("expected a count, found {value}")))?;
    Ok(Some(count as usize))
}
