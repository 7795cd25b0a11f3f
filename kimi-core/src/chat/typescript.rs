//! Tool declarations as TypeScript, the form in which Kimi-K2.5 has learnt to read them.
//!
//! The rules, down to which schemas are refused, are those of Moonshot's tool_declaration_ts.py; a refused
//! schema makes the template print JSON instead. A schema is parsed into [`Type`] first and printed
//! afterwards, because a reference to the schema itself (`#`) anywhere changes how the whole is printed.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};
use thiserror::Error;

use super::bounded::{BoundedText, RenderLimits, Stopped};
use super::message::Tool;
use super::python::{self, shown};

/// Why tools have no TypeScript form. Templates then fall back to JSON.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("tool {tool:?} has no TypeScript form: {reason}")]
pub struct TypeScriptError {
    /// The function's name.
    pub tool: String,
    /// What in its schema has no form.
    pub reason: String,
}

/// Why one tool was not declared.
enum Fault {
    /// Its schema has no form.
    Schema(String),
    /// A limit was met.
    Stopped(Stopped),
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Schema(reason)
    }
}

impl From<&str> for Fault {
    fn from(reason: &str) -> Self {
        Self::Schema(reason.to_owned())
    }
}

impl From<Stopped> for Fault {
    fn from(stopped: Stopped) -> Self {
        Self::Stopped(stopped)
    }
}

type Parsed<T> = Result<T, String>;
type Printed<T = ()> = Result<T, Fault>;

const INDENT: &str = "  ";

/// The declaration of all tools, in the order of their keys.
///
/// # Errors
/// When a schema uses something that the reference does not print, for instance a `$ref` that leads nowhere.
pub fn tools_to_typescript(tools: &[Tool]) -> Result<String, TypeScriptError> {
    // Without limits it is not stopped.
    declare(tools, &RenderLimits::default()).unwrap_or_else(|_| Ok(String::new()))
}

/// [`tools_to_typescript`] within limits. The time is linear in the schemas and in the text.
pub(super) fn declare(
    tools: &[Tool],
    limits: &RenderLimits,
) -> Result<Result<String, TypeScriptError>, Stopped> {
    let mut out = BoundedText::new(limits);
    let mut first = true;
    for tool in tools {
        let Some(Value::Object(function)) = tool.json().get("function") else { continue };
        out.push(if first { "# Tools\n\n## functions\nnamespace functions {\n" } else { "\n" })?;
        first = false;
        match declare_function(function, &mut out) {
            Ok(()) => {}
            Err(Fault::Stopped(stopped)) => return Err(stopped),
            Err(Fault::Schema(reason)) => {
                return Ok(Err(TypeScriptError { tool: tool.name().to_owned(), reason }));
            }
        }
    }
    if !first {
        out.push("\n}\n")?;
    }
    Ok(Ok(out.into_string()))
}

fn declare_function(function: &Map<String, Value>, out: &mut BoundedText<'_>) -> Printed {
    let mut definitions = Definitions::default();
    let nothing = Map::new();
    let parameters = match function.get("parameters") {
        Some(value) if is_true(value) => value.as_object().ok_or("parameters is not an object")?,
        _ => &nothing,
    };
    let root = Object::parse(parameters, &mut definitions)?;
    let refers_to_itself = definitions.refers_to_root;
    if refers_to_itself {
        out.push("interface parameters {")?;
        for (at, field) in root.fields.iter().enumerate() {
            out.push(if at > 0 { ",\n" } else { "\n" })?;
            field.print(out, 1)?;
        }
        out.push(if root.fields.is_empty() { "}\n" } else { "\n}\n" })?;
    }
    for (name, schema) in definitions.all.clone() {
        let kind = Type::parse(schema, &mut definitions)?;
        let map = schema.as_object().ok_or_else(|| format!("$defs.{name} is not an object"))?;
        comment(described(map)?, out, 0)?;
        for text in ["interface ", name, " "] {
            out.push(text)?;
        }
        kind.print(out, 0)?;
        out.push("\n")?;
    }
    comment(described(function)?, out, 0)?;
    let name = function.get("name").map_or_else(|| "function".to_owned(), python::str_of);
    for text in ["type ", &name, " = (_: "] {
        out.push(text)?;
    }
    if refers_to_itself {
        out.push("parameters")?
    } else {
        root.print(out, 0)?
    }
    Ok(out.push(") => any;")?)
}

/// What `$ref` can lead to: the `$defs` met so far, in order, and the root.
#[derive(Default)]
struct Definitions<'s> {
    all: Vec<(&'s str, &'s Value)>,
    /// Where in `all` a name is.
    places: HashMap<&'s str, usize>,
    refers_to_root: bool,
}

impl<'s> Definitions<'s> {
    fn add(&mut self, definitions: &'s Value) -> Parsed<()> {
        if !is_true(definitions) {
            return Ok(());
        }
        for (name, schema) in definitions.as_object().ok_or("$defs is not an object")? {
            match self.places.get(name.as_str()) {
                Some(&place) => self.all[place].1 = schema,
                None => {
                    self.places.insert(name, self.all.len());
                    self.all.push((name, schema));
                }
            }
        }
        Ok(())
    }

    /// The name under which a reference is printed.
    fn resolve(&mut self, reference: &'s Value) -> Parsed<&'s str> {
        let reference = reference.as_str().ok_or("$ref is not a string")?;
        if reference == "#" {
            self.refers_to_root = true;
            return Ok("parameters");
        }
        if !reference.starts_with("#/$defs/") {
            return Err(format!("$ref {reference:?} is not of the form #/$defs/NAME"));
        }
        let name = reference.rsplit('/').next().unwrap_or_default();
        match self.places.get(name).map(|&place| self.all[place].1) {
            Some(Value::Object(_)) => Ok(name),
            Some(_) => Err(format!("$ref {reference:?} leads to something that is not an object")),
            None => Err(format!("$ref {reference:?} leads nowhere")),
        }
    }
}

/// A schema with the comment lines that belong above it.
struct Type<'s> {
    /// A description that is not text only matters where it is printed.
    description: Parsed<&'s str>,
    /// `minimum: 1, maximum: 5` and the like.
    constraints: String,
    kind: Kind<'s>,
}

enum Kind<'s> {
    /// Text that is printed as it is: a scalar, an enumeration, a union of plain types, a reference.
    Plain(Cow<'s, str>),
    AnyOf(Vec<Type<'s>>),
    Array(Box<Type<'s>>),
    Object(Object<'s>),
}

impl<'s> Type<'s> {
    fn plain(name: &'s str) -> Self {
        Self { description: Ok(""), constraints: String::new(), kind: Kind::Plain(name.into()) }
    }

    fn parse(schema: &'s Value, definitions: &mut Definitions<'s>) -> Parsed<Self> {
        let map = match schema {
            Value::Bool(true) => return Ok(Self::plain("any")),
            Value::Bool(false) => return Ok(Self::plain("null")),
            Value::Object(map) if map.is_empty() => return Ok(Self::plain("any")),
            Value::Object(map) => map,
            other => return Err(format!("expected a schema, found {}", shown(other))),
        };
        let mut allowed: &[&str] = &[];
        let kind = if let Some(reference) = map.get("$ref") {
            Kind::Plain(definitions.resolve(reference)?.into())
        } else if let Some(options) = map.get("anyOf") {
            let options = options.as_array().ok_or("anyOf is not a list")?;
            Kind::AnyOf(options.iter().map(|o| Self::parse(o, definitions)).collect::<Parsed<_>>()?)
        } else if let Some(values) = map.get("enum") {
            Kind::Plain(enumeration(values, map.get("type"))?.into())
        } else {
            match map.get("type") {
                Some(Value::Array(names)) => Kind::Plain(union(names)?.into()),
                Some(Value::String(name)) => match name.as_str() {
                    "object" => Kind::Object(Object::parse(map, definitions)?),
                    "array" => {
                        allowed = &["maxItems", "minItems"];
                        Kind::Array(Box::new(match map.get("items") {
                            Some(items) if is_true(items) => Self::parse(items, definitions)?,
                            _ => Self::plain("any"),
                        }))
                    }
                    "integer" | "number" => {
                        allowed = &["maximum", "minimum"];
                        Kind::Plain("number".into())
                    }
                    other => {
                        if other == "string" {
                            allowed = &["maxLength", "minLength", "pattern"];
                        }
                        Kind::Plain(other.into())
                    }
                },
                Some(other) => return Err(format!("expected a type's name, found {}", shown(other))),
                None => return Err(format!("a schema without $ref, anyOf, enum or type: {}", shown(schema))),
            }
        };
        // The lists above are in alphabetical order, in which the reference prints.
        let constraints: Vec<String> =
            allowed.iter().filter_map(|&k| Some(format!("{k}: {}", python::str_of(map.get(k)?)))).collect();
        Ok(Self { description: described(map), constraints: constraints.join(", "), kind })
    }

    fn print(&self, out: &mut BoundedText<'_>, depth: usize) -> Printed {
        match &self.kind {
            Kind::Plain(text) => Ok(out.push(text)?),
            Kind::AnyOf(options) => {
                for (at, option) in options.iter().enumerate() {
                    if at > 0 {
                        out.push(" | ")?;
                    }
                    option.print(out, depth)?;
                }
                Ok(())
            }
            Kind::Object(object) => object.print(out, depth),
            Kind::Array(item) => {
                out.push("Array<")?;
                if item.has_comments()? {
                    out.push("\n")?;
                    item.print_comments(out, depth + 1)?;
                    indent(out, depth + 1)?;
                    item.print(out, depth + 1)?;
                    out.push("\n")?;
                    indent(out, depth)?;
                } else {
                    item.print(out, depth)?;
                }
                Ok(out.push(">")?)
            }
        }
    }

    fn has_comments(&self) -> Parsed<bool> {
        Ok(!self.description.clone()?.is_empty() || !self.constraints.is_empty())
    }

    /// The comment lines above the type, each ended by a line feed.
    fn print_comments(&self, out: &mut BoundedText<'_>, depth: usize) -> Printed {
        comment(self.description.clone()?, out, depth)?;
        if self.constraints.is_empty() {
            return Ok(());
        }
        indent(out, depth)?;
        for text in ["// ", &self.constraints, "\n"] {
            out.push(text)?;
        }
        Ok(())
    }
}

struct Object<'s> {
    fields: Vec<Field<'s>>,
    /// The type of fields that are not listed, if the schema speaks of them.
    others: Option<Box<Type<'s>>>,
}

struct Field<'s> {
    name: &'s str,
    optional: bool,
    /// As printed.
    default: Option<String>,
    kind: Type<'s>,
}

impl<'s> Object<'s> {
    fn parse(schema: &'s Map<String, Value>, definitions: &mut Definitions<'s>) -> Parsed<Self> {
        if let Some(more) = schema.get("$defs") {
            definitions.add(more)?;
        }
        let others = match schema.get("additionalProperties") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(true)) => Some(Type::plain("any")),
            Some(Value::Bool(false)) => Some(Type::plain("never")),
            Some(other @ Value::Object(_)) => Some(Type::parse(other, definitions)?),
            Some(other) => {
                return Err(format!("additionalProperties: expected a schema, found {}", shown(other)));
            }
        };
        let others = others.map(Box::new);
        let Some(properties) = schema.get("properties") else {
            return Ok(Self { fields: Vec::new(), others });
        };
        let properties = properties.as_object().ok_or("properties is not an object")?;
        let required: HashSet<&str> = match schema.get("required") {
            None => HashSet::new(),
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            Some(other) => return Err(format!("required: expected a list of names, found {}", shown(other))),
        };
        let fields = properties.iter().map(|(name, property)| {
            Ok(Field {
                name,
                optional: !required.contains(name.as_str()),
                default: property.get("default").filter(|d| !d.is_null()).map(default_text),
                kind: Type::parse(property, definitions)?,
            })
        });
        Ok(Self { fields: fields.collect::<Parsed<_>>()?, others })
    }

    /// The fields, the required ones first, each group by name.
    fn print(&self, out: &mut BoundedText<'_>, depth: usize) -> Printed {
        let mut fields: Vec<_> = self.fields.iter().collect();
        fields.sort_by_key(|field| (field.optional, field.name));
        out.push("{")?;
        let mut separator = "\n";
        for field in fields {
            out.push(separator)?;
            field.print(out, depth + 1)?;
            separator = ",\n";
        }
        if let Some(others) = &self.others {
            out.push(separator)?;
            indent(out, depth + 1)?;
            out.push("[k: string]: ")?;
            others.print(out, depth + 1)?;
            separator = ",\n";
        }
        if separator == ",\n" {
            out.push("\n")?;
            indent(out, depth)?;
        }
        Ok(out.push("}")?)
    }
}

impl Field<'_> {
    fn print(&self, out: &mut BoundedText<'_>, depth: usize) -> Printed {
        self.kind.print_comments(out, depth)?;
        if let Some(default) = &self.default {
            indent(out, depth)?;
            for text in ["// Default: ", default, "\n"] {
                out.push(text)?;
            }
        }
        indent(out, depth)?;
        out.push(self.name)?;
        out.push(if self.optional { "?: " } else { ": " })?;
        self.kind.print(out, depth)
    }
}

fn indent(out: &mut BoundedText<'_>, depth: usize) -> Printed {
    for _ in 0..depth {
        out.push(INDENT)?;
    }
    Ok(())
}

/// Each line as a comment, ended by a line feed; an empty line stays empty. Nothing for no text.
fn comment(text: &str, out: &mut BoundedText<'_>, depth: usize) -> Printed {
    if text.is_empty() {
        return Ok(());
    }
    for line in text.split('\n') {
        if !line.is_empty() {
            indent(out, depth)?;
            out.push("// ")?;
            out.push(line)?;
        }
        out.push("\n")?;
    }
    Ok(())
}

/// Python's notion of truth.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

fn described(schema: &Map<String, Value>) -> Parsed<&str> {
    match schema.get("description") {
        Some(Value::String(text)) => Ok(text),
        Some(other) if is_true(other) => Err(format!("description: expected text, found {}", shown(other))),
        _ => Ok(""),
    }
}

fn default_text(value: &Value) -> String {
    match value {
        Value::Bool(_) | Value::Number(_) => python::repr(value),
        other => python::dumps(other, &python::JsonStyle::default()),
    }
}

fn union(names: &[Value]) -> Parsed<String> {
    let printed = names.iter().map(|name| match name.as_str() {
        Some(plain @ ("string" | "number" | "boolean" | "null")) => Ok(plain),
        Some("integer") => Ok("number"),
        Some("object") => Ok("{}"),
        Some("array") => Ok("Array<any>"),
        _ => Err(format!("an unknown type in a list of types: {}", shown(name))),
    });
    Ok(printed.collect::<Parsed<Vec<_>>>()?.join(" | "))
}

fn enumeration(values: &Value, declared: Option<&Value>) -> Parsed<String> {
    let values = values.as_array().ok_or("enum is not a list")?;
    let declared = match declared {
        Some(Value::Array(types)) => match types.as_slice() {
            [only] => Some(only),
            [a, b] if a == "null" => Some(b),
            [a, b] if b == "null" => Some(a),
            _ => return Err("an enum of several types".into()),
        },
        other => other,
    };
    let fits = |value: &Value| match declared.and_then(Value::as_str) {
        _ if value.is_null() => true,
        Some("string") => value.is_string(),
        // A bool is a number in Python.
        Some("number") => value.is_number() || value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64() || value.is_boolean(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if let Some(odd) = values.iter().find(|v| !fits(v)) {
        return Err(format!("the enum value {} is not of the declared type", shown(odd)));
    }
    let printed = values.iter().map(|v| match v {
        Value::String(text) => format!("\"{text}\""),
        other => python::repr(other),
    });
    Ok(printed.collect::<Vec<_>>().join(" | "))
}
