//! Tool declarations as TypeScript, the form in which Kimi-K2.5 has learnt to read them.
//!
//! The rules, down to which schemas are refused, are those of Moonshot's tool_declaration_ts.py; a refused
//! schema makes the template print JSON instead. A schema is parsed into [`Type`] first and printed
//! afterwards, because a reference to the schema itself (`#`) anywhere changes how the whole is printed.

use serde_json::{Map, Value};
use thiserror::Error;

use super::message::Tool;
use super::python;

/// Why tools have no TypeScript form. Templates then fall back to JSON.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("tool {tool:?} has no TypeScript form: {reason}")]
pub struct TypeScriptError {
    /// The function's name.
    pub tool: String,
    /// What in its schema has no form.
    pub reason: String,
}

type Parsed<T> = Result<T, String>;

const INDENT: &str = "  ";

/// The declaration of all tools, in the order of their keys as given (a template's caller sorts them first).
///
/// # Errors
/// When a schema uses something that the reference does not print, for instance a `$ref` that leads nowhere.
pub fn tools_to_typescript(tools: &[Tool]) -> Result<String, TypeScriptError> {
    let mut functions = Vec::with_capacity(tools.len());
    for tool in tools {
        let Some(Value::Object(function)) = tool.json().get("function") else { continue };
        let declared = function_declaration(function);
        functions.push(declared.map_err(|reason| TypeScriptError { tool: tool.name().to_owned(), reason })?);
    }
    if functions.is_empty() {
        return Ok(String::new());
    }
    Ok(format!("# Tools\n\n## functions\nnamespace functions {{\n{}\n}}\n", functions.join("\n")))
}

fn function_declaration(function: &Map<String, Value>) -> Parsed<String> {
    let mut definitions = Definitions::default();
    let nothing = Map::new();
    let parameters = match function.get("parameters") {
        Some(value) if is_true(value) => value.as_object().ok_or("parameters is not an object")?,
        _ => &nothing,
    };
    let root = Object::parse(parameters, &mut definitions)?;

    let mut lines = Vec::new();
    let refers_to_itself = definitions.refers_to_root;
    if refers_to_itself {
        let fields = root.fields.iter().map(|f| f.print(INDENT)).collect::<Parsed<Vec<_>>>()?.join(",\n");
        let fields = if fields.is_empty() { fields } else { format!("\n{fields}\n") };
        lines.push(format!("interface parameters {{{fields}}}"));
    }
    for (name, schema) in definitions.all.clone() {
        let printed = Type::parse(schema, &mut definitions)?.print("")?;
        let description =
            described(schema.as_object().ok_or_else(|| format!("$defs.{name} is not an object"))?)?;
        let comment = if description.is_empty() { String::new() } else { comment(&description, "") + "\n" };
        lines.push(format!("{comment}interface {name} {printed}"));
    }
    let description = described(function)?;
    if !description.is_empty() {
        lines.push(comment(&description, ""));
    }
    let argument = if refers_to_itself { "parameters".to_owned() } else { root.print("")? };
    let name = function.get("name").map_or_else(|| "function".to_owned(), python::str_of);
    lines.push(format!("type {name} = (_: {argument}) => any;"));
    Ok(lines.join("\n"))
}

/// What `$ref` can lead to: the `$defs` met so far, in order, and the root.
#[derive(Default)]
struct Definitions<'s> {
    all: Vec<(&'s str, &'s Value)>,
    refers_to_root: bool,
}

impl<'s> Definitions<'s> {
    fn add(&mut self, definitions: &'s Value) -> Parsed<()> {
        if !is_true(definitions) {
            return Ok(());
        }
        for (name, schema) in definitions.as_object().ok_or("$defs is not an object")? {
            match self.all.iter_mut().find(|(known, _)| known == name) {
                Some(known) => known.1 = schema,
                None => self.all.push((name, schema)),
            }
        }
        Ok(())
    }

    /// The name under which a reference is printed.
    fn resolve(&mut self, reference: &Value) -> Parsed<String> {
        let reference = reference.as_str().ok_or("$ref is not a string")?;
        if reference == "#" {
            self.refers_to_root = true;
            return Ok("parameters".into());
        }
        if !reference.starts_with("#/$defs/") {
            return Err(format!("$ref {reference:?} is not of the form #/$defs/NAME"));
        }
        let name = reference.rsplit('/').next().unwrap_or_default();
        match self.all.iter().find(|(known, _)| *known == name) {
            Some((_, Value::Object(_))) => Ok(name.to_owned()),
            Some(_) => Err(format!("$ref {reference:?} leads to something that is not an object")),
            None => Err(format!("$ref {reference:?} leads nowhere")),
        }
    }
}

/// A schema with the comment lines that belong above it.
struct Type {
    /// A description that is not text only matters where it is printed.
    description: Parsed<String>,
    /// `minimum: 1, maximum: 5` and the like.
    constraints: String,
    kind: Kind,
}

enum Kind {
    /// Text that is printed as it is: a scalar, an enumeration, a union of plain types, a reference.
    Plain(String),
    AnyOf(Vec<Type>),
    Array(Box<Type>),
    Object(Object),
}

impl Type {
    fn plain(name: &str) -> Self {
        Self { description: Ok(String::new()), constraints: String::new(), kind: Kind::Plain(name.into()) }
    }

    fn parse<'s>(schema: &'s Value, definitions: &mut Definitions<'s>) -> Parsed<Self> {
        let map = match schema {
            Value::Bool(true) => return Ok(Self::plain("any")),
            Value::Bool(false) => return Ok(Self::plain("null")),
            Value::Object(map) if map.is_empty() => return Ok(Self::plain("any")),
            Value::Object(map) => map,
            other => return Err(format!("expected a schema, found {other}")),
        };
        let mut allowed: &[&str] = &[];
        let kind = if let Some(reference) = map.get("$ref") {
            Kind::Plain(definitions.resolve(reference)?)
        } else if let Some(options) = map.get("anyOf") {
            let options = options.as_array().ok_or("anyOf is not a list")?;
            Kind::AnyOf(options.iter().map(|o| Self::parse(o, definitions)).collect::<Parsed<_>>()?)
        } else if let Some(values) = map.get("enum") {
            Kind::Plain(enumeration(values, map.get("type"))?)
        } else {
            match map.get("type") {
                Some(Value::Array(names)) => Kind::Plain(union(names)?),
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
                        Kind::Plain(other.to_owned())
                    }
                },
                Some(other) => return Err(format!("expected a type's name, found {other}")),
                None => return Err(format!("a schema without $ref, anyOf, enum or type: {schema}")),
            }
        };
        // The lists above are in alphabetical order, in which the reference prints.
        let constraints: Vec<String> =
            allowed.iter().filter_map(|&k| Some(format!("{k}: {}", python::str_of(map.get(k)?)))).collect();
        Ok(Self { description: described(map), constraints: constraints.join(", "), kind })
    }

    fn print(&self, indent: &str) -> Parsed<String> {
        Ok(match &self.kind {
            Kind::Plain(text) => text.clone(),
            Kind::AnyOf(options) => {
                options.iter().map(|o| o.print(indent)).collect::<Parsed<Vec<_>>>()?.join(" | ")
            }
            Kind::Object(object) => object.print(indent)?,
            Kind::Array(item) => {
                let inner = format!("{indent}{INDENT}");
                let comments = item.comments(&inner)?;
                if comments.is_empty() {
                    format!("Array<{}>", item.print(indent)?)
                } else {
                    format!("Array<\n{comments}{inner}{}\n{indent}>", item.print(&inner)?)
                }
            }
        })
    }

    /// The comment lines above the type, each ended by a line feed.
    fn comments(&self, indent: &str) -> Parsed<String> {
        let mut lines = String::new();
        let description = self.description.clone()?;
        if !description.is_empty() {
            lines = comment(&description, indent) + "\n";
        }
        if !self.constraints.is_empty() {
            lines.push_str(&format!("{indent}// {}\n", self.constraints));
        }
        Ok(lines)
    }
}

struct Object {
    fields: Vec<Field>,
    /// The type of fields that are not listed, if the schema speaks of them.
    others: Option<Box<Type>>,
}

struct Field {
    name: String,
    optional: bool,
    /// As printed.
    default: Option<String>,
    kind: Type,
}

impl Object {
    fn parse<'s>(schema: &'s Map<String, Value>, definitions: &mut Definitions<'s>) -> Parsed<Self> {
        if let Some(more) = schema.get("$defs") {
            definitions.add(more)?;
        }
        let others = match schema.get("additionalProperties") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(true)) => Some(Type::plain("any")),
            Some(Value::Bool(false)) => Some(Type::plain("never")),
            Some(other @ Value::Object(_)) => Some(Type::parse(other, definitions)?),
            Some(other) => return Err(format!("additionalProperties: expected a schema, found {other}")),
        };
        let others = others.map(Box::new);
        let Some(properties) = schema.get("properties") else {
            return Ok(Self { fields: Vec::new(), others });
        };
        let properties = properties.as_object().ok_or("properties is not an object")?;
        let required = match schema.get("required") {
            None => &[][..],
            Some(Value::Array(names)) => names.as_slice(),
            Some(other) => return Err(format!("required: expected a list of names, found {other}")),
        };
        let fields = properties.iter().map(|(name, property)| {
            Ok(Field {
                name: name.clone(),
                optional: !required.iter().any(|r| r.as_str() == Some(name)),
                default: property.get("default").filter(|d| !d.is_null()).map(default_text),
                kind: Type::parse(property, definitions)?,
            })
        });
        Ok(Self { fields: fields.collect::<Parsed<_>>()?, others })
    }

    /// The fields, the required ones first, each group by name.
    fn print(&self, indent: &str) -> Parsed<String> {
        let inner = format!("{indent}{INDENT}");
        let mut fields: Vec<&Field> = self.fields.iter().collect();
        fields.sort_by(|a, b| (a.optional, &a.name).cmp(&(b.optional, &b.name)));
        let mut lines = fields.iter().map(|f| f.print(&inner)).collect::<Parsed<Vec<_>>>()?;
        if let Some(others) = &self.others {
            lines.push(format!("{inner}[k: string]: {}", others.print(&inner)?));
        }
        Ok(if lines.is_empty() { "{}".into() } else { format!("{{\n{}\n{indent}}}", lines.join(",\n")) })
    }
}

impl Field {
    fn print(&self, indent: &str) -> Parsed<String> {
        let mut text = self.kind.comments(indent)?;
        if let Some(default) = &self.default {
            text.push_str(&format!("{indent}// Default: {default}\n"));
        }
        let mark = if self.optional { "?" } else { "" };
        Ok(format!("{text}{indent}{}{mark}: {}", self.name, self.kind.print(indent)?))
    }
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

fn described(schema: &Map<String, Value>) -> Parsed<String> {
    match schema.get("description") {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) if is_true(other) => Err(format!("description: expected text, found {other}")),
        _ => Ok(String::new()),
    }
}

/// Each line as a comment; an empty line stays empty.
fn comment(text: &str, indent: &str) -> String {
    let line = |l: &str| if l.is_empty() { String::new() } else { format!("{indent}// {l}") };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
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
        _ => Err(format!("an unknown type in a list of types: {name}")),
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
        return Err(format!("the enum value {odd} is not of the declared type"));
    }
    let printed = values.iter().map(|v| match v {
        Value::String(text) => format!("\"{text}\""),
        other => python::repr(other),
    });
    Ok(printed.collect::<Vec<_>>().join(" | "))
}
